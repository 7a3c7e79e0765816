"""Evidence in words: what every rule needs to say what it saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curvewatch_workers.diagnosis.reading import Reading
from curvewatch_workers.diagnosis.verdict import Evidence, Verdict


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a rule found."""

    verdict: Verdict
    summary: str
    evidence: tuple[Evidence, ...]
    strength: float = 1.0
    """What was seen, by the bar that it had to reach: at least 1."""


def evidence(rule: str, message: str, epochs: Sequence[int], series: Sequence[float]) -> Evidence:
    """Make evidence of the values of a series at some epochs, each once and in order."""
    places = sorted(set(epochs))
    return Evidence(
        rule=rule, message=message, epochs=tuple(places), values=tuple(series[place - 1] for place in places)
    )


def about_train(reading: Reading, rule: str, epochs: Sequence[int]) -> Evidence:
    """Tell where train loss was and is."""
    return evidence(rule, _path("Train loss", reading.train_losses, epochs), epochs, reading.train_losses)


def about_validation(reading: Reading, rule: str, epochs: Sequence[int]) -> Evidence:
    """Tell where validation loss was and is."""
    series = reading.validation_losses
    return evidence(rule, _path("Validation loss", series, epochs), epochs, series)


def about_restart(reading: Reading) -> Evidence:
    """Tell that the learning rate is above what it was at the best epoch, and since when."""
    rates, before, now = reading.rates, reading.restarted_after, reading.epochs
    message = (
        f"The learning rate was raised after epoch {before}, from {rates.values[before - 1]:.3g} to "
        f"{rates.values[before]:.3g}, and is {rates.latest:.3g}: until it is back, higher losses are no trouble, and "
        "what was seen before stands."
    )
    return evidence("learning_rate_raised", message, (before, now), rates.values)


def about_schedule(reading: Reading) -> tuple[Evidence, ...]:
    """Tell that the schedule has come to its end; nothing where it has not, or where none is known."""
    rates = reading.rates
    if not rates.schedule_ended:
        return ()
    epochs = (rates.values.index(rates.highest) + 1, reading.epochs)
    message = (
        f"The learning rate was {rates.highest:.3g} at epoch {epochs[0]} and is {rates.latest:.3g} at epoch "
        f"{epochs[1]}: the schedule has come to its end."
    )
    return (evidence("schedule_ended", message, epochs, rates.values),)


def percent(share: float) -> str:
    """Write a share as a percentage of three digits."""
    return f"{100 * share:.3g} %"


def _path(name: str, series: Sequence[float], epochs: Sequence[int]) -> str:
    first, last = min(epochs), max(epochs)
    before, now = f"{series[first - 1]:.4g}", f"{series[last - 1]:.4g}"
    if before == now:
        return f"{name} stayed at {now} from epoch {first} to epoch {last}."
    word = "fell" if series[last - 1] < series[first - 1] else "rose"
    return f"{name} {word} from {before} at epoch {first} to {now} at epoch {last}."
