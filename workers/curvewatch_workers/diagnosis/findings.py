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


def evidence(rule: str, message: str, epochs: Sequence[int], series: Sequence[float]) -> Evidence:
    """Make evidence of the values of a series at some epochs, each once and in order."""
    places = sorted(set(epochs))
    return Evidence(
        rule=rule, message=message, epochs=tuple(places), values=tuple(series[place - 1] for place in places)
    )


def about_train(reading: Reading, rule: str, epochs: Sequence[int]) -> Evidence:
    """Tell where train loss was and is."""
    return evidence(rule, _path("Train loss", reading.curve.train, epochs), epochs, reading.curve.train)


def about_validation(reading: Reading, rule: str, epochs: Sequence[int]) -> Evidence:
    """Tell where validation loss was and is."""
    series = reading.curve.validation
    return evidence(rule, _path("Validation loss", series, epochs), epochs, series)


def percent(share: float) -> str:
    """Write a share as a percentage of two digits."""
    return f"{100 * share:.2g} %"


def _path(name: str, series: Sequence[float], epochs: Sequence[int]) -> str:
    first, last = min(epochs), max(epochs)
    before, now = series[first - 1], series[last - 1]
    word = "fell" if now < before else "rose" if now > before else "stayed"
    return f"{name} {word} from {before:.4g} at epoch {first} to {now:.4g} at epoch {last}."
