"""Rules for curves that do not go up: how far down they came, and whether they still move."""

from __future__ import annotations

import math
from typing import Final

from curvewatch_workers.diagnosis.findings import (
    Finding,
    about_schedule,
    about_train,
    about_validation,
    evidence,
    percent,
)
from curvewatch_workers.diagnosis.reading import Reading
from curvewatch_workers.diagnosis.rising import RISE
from curvewatch_workers.diagnosis.stopping import HOPE
from curvewatch_workers.diagnosis.trend import CALM, FLAT, Trend
from curvewatch_workers.diagnosis.verdict import Verdict

FIRST_LOOK: Final = 8
"""Epochs before which a loss that is still high says nothing: some networks start late."""
HIGH: Final = 0.6
"""Share of the first train loss above which a loss is high."""
MIDDLE: Final = 0.3
"""Share of the first train loss below which a loss is low."""
SLOWING: Final = 0.1
"""Share of all it learned that a loss which has nearly come to rest gains in a third of the run; a straight
line gains a third."""
ACCURATE: Final = 0.9
"""Accuracy from which a loss is never called high."""
INACCURATE: Final = 0.5
"""Accuracy below which a loss at rest is always called high."""
STEP: Final = 0.05
"""Share of all it learned that a loss gains in the epoch before it halts at once."""
FAR: Final = 5.0
"""Times that a bar is as high as what was seen, from which a good fit cannot be better."""
AHEAD: Final = 1.5
"""Epochs, by those so far, within which the noise must not let a high loss come down for it to be one at rest."""
LEAST_HALT: Final = 5
"""Epochs that a halt lasts at least; and never less than a quarter of the run."""


def halted(reading: Reading) -> Finding | None:
    """Learning stopped from one epoch to the next, above the floor that it was heading for."""
    epoch = _halted_after(reading.train)
    if epoch is None or reading.remaining <= MIDDLE / 2 or _is_accurate(reading):
        return None
    if not reading.validation.rests(reading.epochs // 4) or reading.rates.is_above(
        reading.epochs + 1 - epoch
    ):
        return None
    return Finding(
        verdict=Verdict.PLATEAU,
        summary=f"Learning stopped all at once at epoch {epoch} of {reading.epochs}, while it went fast.",
        evidence=(
            about_train(reading, "train_halts", (epoch - 3, epoch)),
            about_train(reading, "train_flat", (epoch, reading.epochs)),
            *about_schedule(reading),
        ),
        strength=(reading.epochs - epoch + 1) / max(LEAST_HALT, reading.epochs // 4),
    )


def too_early(reading: Reading) -> Finding | None:
    """The loss is still high, but the run is too short to say why."""
    if reading.epochs >= FIRST_LOOK or reading.remaining <= HIGH or not reading.has_zero:
        return None
    return _nothing_yet(
        reading,
        f"Nothing is wrong so far; {reading.epochs} epochs do not tell yet how well it learns.",
        f"from epoch {FIRST_LOOK} on that would say something",
    )


def high(reading: Reading) -> Finding | None:
    """The loss is high: it comes down slowly, or it has come to rest there."""
    if reading.epochs < FIRST_LOOK or not reading.has_zero or _is_accurate(reading):
        return None
    third = reading.epochs // 3
    since = reading.epochs - third
    if not reading.train.rests(third, SLOWING) or _falls_through_noise(reading.train):
        return _slow(reading, since) if reading.remaining > HIGH else None
    inaccurate = reading.accuracy is not None and reading.accuracy.level < INACCURATE
    if reading.remaining <= HIGH and not inaccurate:
        return None
    if reading.remaining > HIGH and _may_come_down(reading):
        return _nothing_yet(
            reading,
            "The loss is still high, and too noisy so far to tell whether it comes down.",
            "the noise hides whether it still comes down",
        )
    accuracy = f", with an accuracy of {percent(reading.accuracy.level)}" if reading.accuracy else ""
    return Finding(
        verdict=Verdict.UNDERFITTING,
        summary=f"The model does not even fit the train set: the losses have come to rest high up{accuracy}.",
        evidence=(
            evidence("loss_high", f"{_left(reading)}.", (1, reading.epochs), reading.train_losses),
            about_train(reading, "train_flat", (since, reading.epochs)),
            about_validation(reading, "validation_beside", (since, reading.epochs)),
            *about_schedule(reading),
        ),
        strength=reading.remaining / HIGH,
    )


def _falls_through_noise(trend: Trend) -> bool:
    """Tell whether a straight line shows a fall that the noise hides from one smoothed value to the next."""
    half = len(trend.values) // 2
    return trend.hides(SLOWING) and trend.sure_fall(half) > SLOWING * trend.learned


def _may_come_down(reading: Reading) -> bool:
    """Tell whether the noise leaves open a fall that would bring the train loss down in time."""
    train = reading.train
    if not train.hides(SLOWING):
        return False
    latest = reading.epochs * 2 // 3
    ahead = train.possible_fall(latest) * AHEAD * reading.epochs / latest
    return reading.remaining - ahead / train.start <= HIGH


def _nothing_yet(reading: Reading, summary: str, why: str) -> Finding:
    message = f"{_left(reading)}; {why}."
    return Finding(
        verdict=Verdict.TOO_EARLY,
        summary=summary,
        evidence=(evidence("loss_high", message, (1, reading.epochs), reading.train_losses),),
        strength=math.inf,
    )


def flat_midway(reading: Reading) -> Finding | None:
    """Both losses came down part of the way, and have been flat for half of the run."""
    if reading.epochs < FIRST_LOOK or not reading.has_zero or _is_accurate(reading):
        return None
    half = reading.epochs // 2
    if reading.remaining <= MIDDLE or not (reading.train.rests(half) and reading.validation.rests(half)):
        return None
    if reading.rates.is_above(half) or _may_fall(reading.train, half):
        return None
    since = reading.epochs - half
    return Finding(
        verdict=Verdict.PLATEAU,
        summary=(
            f"Neither loss has improved since epoch {since} of {reading.epochs}, with "
            f"{percent(reading.remaining)} of the first train loss left."
        ),
        evidence=(
            about_train(reading, "train_flat", (since, reading.epochs)),
            about_validation(reading, "validation_flat", (since, reading.epochs)),
            *about_schedule(reading),
        ),
        strength=reading.remaining / MIDDLE,
    )


def good_fit(reading: Reading) -> Finding:
    """Nothing is wrong: validation loss is at or near its best."""
    losses, best, now = reading.validation_losses, reading.best_epoch, reading.epochs
    since = "its best so far" if best == now else f"its best was {losses[best - 1]:.4g} at epoch {best}"
    gap = losses[-1] - reading.train_losses[-1]
    message = (
        f"Validation loss is {losses[-1]:.4g} at epoch {now}, {since}; its gap to train loss is {gap:.4g}."
    )
    state = "has come to rest" if reading.validation.rests(reading.epochs // 3) else "is still coming down"
    return Finding(
        verdict=Verdict.GOOD_FIT,
        summary=f"Validation loss came down with train loss and {state}, at or near its best.",
        evidence=(
            evidence("validation_near_best", message, (best, now), losses),
            about_train(reading, "train_beside", (1, now)),
        ),
        strength=_room(reading),
    )


def _room(reading: Reading) -> float:
    """Return how far a curve is from what would be a fault: the bars by what was seen, at most `FAR`."""
    validation = reading.validation
    rise, remaining = validation.held_rise, reading.remaining
    bar = RISE * reading.yardstick(validation.low, reading.learned)
    room = [FAR]
    if rise > 0:
        room.append(bar / rise)
    if remaining > 0 and reading.has_zero and not _is_accurate(reading):
        room.append(HIGH / remaining)
    return min(room)


def _slow(reading: Reading, since: int) -> Finding:
    return Finding(
        verdict=Verdict.SLOW_CONVERGENCE,
        summary="The losses come down steadily, but so slowly that most of the way is still ahead.",
        evidence=(
            evidence("loss_high", f"{_left(reading)}.", (1, reading.epochs), reading.train_losses),
            about_train(reading, "train_falls_steadily", (since, reading.epochs)),
        ),
        strength=reading.remaining / HIGH,
    )


def _left(reading: Reading) -> str:
    return f"{percent(reading.remaining)} of the first train loss is left after {reading.epochs} epochs"


def _may_fall(trend: Trend, epochs: int) -> bool:
    """Tell whether the noise leaves open that a loss which seems to rest fell by more than a stop would risk."""
    return trend.hides(FLAT) and trend.possible_fall(epochs) > HOPE * trend.learned


def _halted_after(trend: Trend) -> int | None:
    """Return the epoch after which a loss that was falling steadily stands still; None if it does not."""
    values = trend.values
    floor = max(FLAT * trend.learned, CALM * trend.noise)
    last = len(values) - 1
    while last > 0 and abs(values[last - 1] - trend.level) <= floor:
        last -= 1
    flat = len(values) - last
    if floor > STEP * trend.learned or last < 3 or flat < max(LEAST_HALT, len(values) // 4):
        return None
    first, second, third = (values[i] - values[i + 1] for i in range(last - 3, last))
    # Steps of an exponential that ends so near its floor would shrink faster. A mean over an epoch in whose
    # middle learning stops makes half a step; the one large step of a lower learning rate has none before it.
    steady = second / 1.5 <= first <= second * 1.5 and second / 2.2 <= third <= second * 2
    return last + 1 if steady and third > STEP * trend.learned else None


def _is_accurate(reading: Reading) -> bool:
    return reading.accuracy is not None and reading.accuracy.level >= ACCURATE
