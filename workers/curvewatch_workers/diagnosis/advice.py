"""What an expert would change: from a verdict and what it rests on to a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from curvewatch_workers.diagnosis.findings import Finding, percent
from curvewatch_workers.diagnosis.reading import Reading
from curvewatch_workers.diagnosis.verdict import Verdict

FAR_BELOW: Final = 0.2
"""Train loss by validation loss below which the gap between both is large."""
EARLY: Final = 5
"""Epochs within which the best one comes early."""
HARDLY: Final = 0.02
"""Share of its start by which a loss that never moved has come down at most."""
ABOVE: Final = 1.05
"""Train loss by validation loss above which regularisation holds train loss up."""
WARM_UP: Final = 5
"""Epochs to warm up over; and twice as many within which a run diverges early."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What advice is drawn from."""

    finding: Finding
    reading: Reading
    stop: bool
    """Whether to stop now and take the best epoch."""

    def is_about(self, *rules: str) -> bool:
        """Tell whether one of these rules gave the weightiest evidence."""
        return self.finding.evidence[0].rule in rules


def advise(case: Case) -> str:
    """Return what to do: short sentences, each true of this curve."""
    return " ".join(sentence for sentence in _ADVISERS[case.finding.verdict](case) if sentence)


def _good_fit(case: Case) -> tuple[str, ...]:
    reading = case.reading
    if reading.validation.rests(reading.epochs // 3):
        return ("Nothing needs to change.", _take(case), "More epochs would gain little.")
    longer = "Validation loss still falls, so train longer"
    if reading.rates.schedule_ended:
        longer += f", with a longer schedule: the learning rate is already down to {reading.rates.latest:.2g}"
    return ("Nothing needs to change.", _take(case), f"{longer}.")


def _overfitting(case: Case) -> tuple[str, ...]:
    if case.is_about("validation_left_behind"):
        check = (
            "First check that both splits are made alike (labels, normalisation, tokens), and that no label "
            "is wrong."
        )
        return (_stop(case), check, "Then more or augmented data, or a much smaller model.")
    return (_take(case), *_regularisation(case.reading), _early(case.reading))


def _regularisation(reading: Reading) -> tuple[str, ...]:
    ratio = _ratio(reading)
    kinds = "more or augmented data, dropout, stronger weight decay, or a smaller model"
    if ratio is None:
        return (f"To get further: {kinds}; and look for wrong labels.",)
    gap = f"train loss is {percent(ratio)} of validation loss"
    if ratio < FAR_BELOW:
        return (
            f"The gap is large ({gap}), so regularise strongly: {kinds}.",
            "And look for wrong labels: they are learned by heart last.",
        )
    return (
        f"The gap is moderate ({gap}): early stopping gets most of it; stronger weight decay or light "
        "augmentation may gain a little more.",
    )


def _early(reading: Reading) -> str:
    if reading.best_epoch > EARLY:
        return ""
    rate = "a lower learning rate"
    if reading.rates.are_known:
        rate += f" ({_times(reading.rates.highest, 1 / 3)} instead of {reading.rates.highest:.2g})"
    return (
        f"The best epoch came as early as {reading.best_epoch}: if the model was trained before, freeze its lower "
        f"layers or take {rate}."
    )


def _overconfident(case: Case) -> tuple[str, ...]:
    reading = case.reading
    rise = reading.validation.level - reading.validation.values[reading.validation.lowest]
    share = f" ({percent(rise / reading.validation.level)})" if reading.has_zero else ""
    return (
        _take(case),
        "If only the decisions matter, the latest epoch is as good.",
        "If the probabilities matter, fit a temperature on the validation set, which changes no decision, or "
        "train with label smoothing of 0.1 or more weight decay.",
        f"Expect back at most what validation loss has risen by since its best: {rise * reading.unit:.3g}{share}.",
    )


def _underfitting(case: Case) -> tuple[str, ...]:
    reading = case.reading
    by_heart = "First check that it can learn ten samples by heart: if not, inputs, labels or loss are wrong."
    capacity = "give the model more capacity (width, depth, better features)"
    if reading.rates.schedule_ended:
        return (_stop(case), _longer_schedule(reading), f"If it rests there too, {capacity}.")
    if reading.learned <= HARDLY * abs(reading.train.start):
        return (_stop(case), by_heart, f"Then {_other_rates(reading)}.")
    ratio = _ratio(reading)
    if ratio is not None and ratio > ABOVE:
        weaker = (
            f"Train loss is {percent(ratio)} of validation loss, so regularisation holds it up: weaken dropout, "
            f"augmentation, label smoothing or weight decay; if that does not help, {capacity}."
        )
        return (_stop(case), weaker, by_heart)
    unknown = (
        "" if reading.rates.are_known else "And check that the learning rate has not gone to 0 too soon."
    )
    return (_stop(case), by_heart, f"If it can, {capacity}, or less weight decay.", unknown)


def _plateau(case: Case) -> tuple[str, ...]:
    reading = case.reading
    model = "If that does not help, this is what this model can do with these data: change the model."
    if reading.rates.schedule_ended:
        return (_stop(case), _longer_schedule(reading), model)
    if not reading.rates.are_known:
        lower = (
            "Lower the learning rate three to ten times if it was constant, and check the schedule if it had "
            "already gone to 0."
        )
        return (_stop(case), lower, model)
    return (_stop(case), f"{_lower(reading.rates.latest)}.", model)


def _slow_convergence(case: Case) -> tuple[str, ...]:
    rates = case.reading.rates
    others = "Check that inputs are normalised, or use Adam instead of plain SGD."
    if not rates.are_known:
        higher = "Raise the learning rate three to ten times"
    elif rates.rises_now:
        return (f"Wait: the learning rate is still on its way up, at {rates.latest:.2g}.", others)
    else:
        rate = rates.highest
        higher = (
            f"Raise the learning rate from {rate:.2g}: try {_times(rate, 3)} or {_times(rate, 10)}"
            f"{', and let it come down later' if rates.varies else ''}"
        )
    return (f"{higher} (until the loss begins to jump, then take half).", others, "Else train longer.")


def _unstable(case: Case) -> tuple[str, ...]:
    rates = case.reading.rates
    lower = _lower(rates.latest) if rates.are_known else "Lower the learning rate three to ten times"
    steps = f"{lower}; clip the gradient norm at 1, or use larger batches."
    if not case.is_about("validation_jumps"):
        return (_stop(case), steps)
    return (
        _stop(case),
        "Train loss does not jump: look at the size of the validation set and at the BatchNorm statistics.",
        f"If they are right: {steps[0].lower()}{steps[1:]}",
    )


def _diverging(case: Case) -> tuple[str, ...]:
    reading = case.reading
    clip = "and clip the gradient norm at 1."
    if case.is_about("validation_rises", "validation_explodes"):
        validation = (
            "Train loss does not rise like that: check the validation set and the BatchNorm statistics."
        )
        return (_take(case), validation, f"{_tenfold(reading, reading.best_epoch)}, {clip}")
    best = reading.train.lowest + 1
    if best > 2 * WARM_UP:
        return (_take(case), f"{_tenfold(reading, best)}, {clip}")
    warm = f"{_tenfold(reading, best)}, warm it up over the first {WARM_UP} epochs, {clip}"
    return (_take(case), warm)


def _not_finite(case: Case) -> tuple[str, ...]:
    (bad,) = case.finding.evidence[0].epochs
    kept = f", but from before epoch {bad}" if bad > 1 else ""
    take = f"{_take(case).removesuffix('.')}{kept}." if bad > 1 else "Stop now: no epoch before it is sound."
    causes = "Look for a division by 0, the logarithm of 0 or an overflow in half precision, and for NaN in the data."
    return (take, causes, f"{_tenfold(case.reading, bad - 1)}, and clip the gradient norm at 1.")


def _too_early(_case: Case) -> tuple[str, ...]:
    return ("Wait for more epochs.",)


def _take(case: Case) -> str:
    """Name the epoch to take; checkpoints are spaced in time: in short epochs the best one may have none."""
    best = case.reading.best_epoch
    if case.stop:
        return f"Stop now and take epoch {best} or the nearest one of which a checkpoint was kept."
    return f"Use the best checkpoint that was kept, of epoch {best} or near it."


def _stop(case: Case) -> str:
    return _take(case) if case.stop else ""


def _ratio(reading: Reading) -> float | None:
    """Return train loss by validation loss; None where a loss goes below 0."""
    validation = reading.validation.level
    return reading.train.level / validation if reading.has_zero and validation > 0 else None


def _longer_schedule(reading: Reading) -> str:
    rates = reading.rates
    return (
        f"The schedule had taken the learning rate from {rates.highest:.2g} to {rates.latest:.2g}, where nothing "
        f"moves: let it come down later, or not below {_times(rates.highest, 0.1)}."
    )


def _lower(rate: float) -> str:
    return f"Lower the learning rate from {rate:.2g}: try {_times(rate, 1 / 3)} or {_times(rate, 1 / 10)}"


def _tenfold(reading: Reading, best: int) -> str:
    """Tell to lower the rate with which the loss left its best epoch."""
    if not reading.rates.are_known:
        return "Lower the learning rate ten times"
    rate = reading.rates.values[min(best, reading.epochs - 1)]
    return f"Lower the learning rate ten times, from {rate:.2g} to {_times(rate, 0.1)}"


def _other_rates(reading: Reading) -> str:
    if not reading.rates.are_known:
        return "try a learning rate ten times higher, and one ten times lower"
    rate = reading.rates.highest
    return f"try learning rates of {_times(rate, 10)} and {_times(rate, 0.1)} instead of {rate:.2g}"


def _times(rate: float, factor: float) -> str:
    """Return a rate to try, with one digit: nobody tunes to two."""
    return f"{float(f'{rate * factor:.1g}'):g}"


_ADVISERS: Final[dict[Verdict, Callable[[Case], tuple[str, ...]]]] = {
    Verdict.GOOD_FIT: _good_fit,
    Verdict.OVERFITTING: _overfitting,
    Verdict.OVERCONFIDENT: _overconfident,
    Verdict.UNDERFITTING: _underfitting,
    Verdict.PLATEAU: _plateau,
    Verdict.SLOW_CONVERGENCE: _slow_convergence,
    Verdict.UNSTABLE: _unstable,
    Verdict.DIVERGING: _diverging,
    Verdict.NOT_FINITE: _not_finite,
    Verdict.TOO_EARLY: _too_early,
}
