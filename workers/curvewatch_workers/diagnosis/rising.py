"""Rules for curves that go up: diverging, overfitting, overconfident, unstable."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

from curvewatch_workers.diagnosis.findings import (
    Finding,
    about_train,
    about_validation,
    evidence,
    percent,
)
from curvewatch_workers.diagnosis.reading import Reading
from curvewatch_workers.diagnosis.trend import CALM, FLAT, Trend
from curvewatch_workers.diagnosis.verdict import Evidence, Verdict

RISE: Final = 0.05
"""Rise of the validation loss, on the yardstick, from which a run overfits: smaller ones cost nobody much. It is one
standard error at least, where that is known (Breiman et al.: Classification and Regression Trees, 1984): another
validation set of the same size may well show none."""
CLEAR_RISE: Final = 0.2
"""The same for a rise that went on at every epoch since the best: it needs no estimate of the noise, of which
there is none in a run of a few epochs."""
RISES: Final = 5
"""Rises in a row that are no chance: of six values in any order, one order in 720."""
FEW_RISES: Final = 2
"""Rises in a row that are enough at least where everything before was in order too."""
FALL: Final = 0.02
"""Fall of the train loss, on its yardstick, that counts as going on learning the train set."""
BY_HEART: Final = 0.05
"""Share of the validation loss below which train loss is so low that it need not fall any more."""
BLOW_UP: Final = 0.25
"""Rise of a loss, as a share of its start or of what was learned, from which it diverges."""
EARLY_BLOW_UP: Final = 0.5
"""The same in the first epochs, where a learning rate that is warming up may lift the loss for a while."""
FIRST_EPOCHS: Final = 10
GRACE: Final = 0.25
"""Epochs after which a loss that was lifted at once has to come down again, by those before: in a cosine cycle twice as
long as all before it the learning rate has come down by 4 % by then."""
ON_ITS_WAY: Final = 0.1
"""Share of its rise by which a loss goes on rising that is on its way up."""
LEAST_CYCLE: Final = 4
"""Epochs from one warm restart to the next, at least."""
EXPLODED: Final = 10.0
"""Times its start from which a validation loss diverges even while train loss falls."""
LEFT_BEHIND: Final = 0.2
"""Share of what train loss learned that validation loss learned, below which the train set is learned by
heart; and the share of its start that train loss must have learned for the question to make sense."""
ACCURACY_LOSS: Final = 0.02
"""Accuracy that may be lost and still count as kept: 2 points."""
ACCURACY_DOUBT: Final = 0.05
"""Accuracy that may be lost and still be noise, however noisy it is."""
JUMP: Final = 0.2
"""Rise from one epoch to the next, on the yardstick, that is a jump."""
JUMPY: Final = 0.15
"""Share of the later half's epochs that jump in an unstable run."""
LEAST_JUMPS: Final = 3
LEARNABLE: Final = 0.5
"""Share of its start that a loss is taken to have learned at least when jumps are measured: where nothing was
learned, every wobble would be a jump."""
FIRST_LOOK: Final = 8
"""Epochs from which jumps can be counted, and a validation loss be called left behind."""


def diverging_train(reading: Reading) -> Finding | None:
    """Train loss has risen far above its best, and stays there."""
    if not _blows_up(reading, reading.train):
        return None
    best = reading.train.lowest + 1
    return Finding(
        verdict=Verdict.DIVERGING,
        summary=f"Training diverges: train loss has been rising since epoch {best} and does not recover.",
        evidence=(
            about_train(reading, "train_rises", (best, reading.epochs)),
            about_validation(reading, "validation_beside", (best, reading.epochs)),
        ),
        strength=_strength_of_blow_up(reading, reading.train),
    )


def exploding_validation(reading: Reading) -> Finding | None:
    """Validation loss has risen far above where it began, whatever train loss does."""
    validation = reading.validation
    if not _blows_up(reading, validation):
        return None
    if validation.level <= EXPLODED * max(abs(validation.start), abs(reading.train.start)):
        return None
    return _diverging(reading, "validation_explodes", "to more than ten times its start")


def diverging_validation(reading: Reading) -> Finding | None:
    """Validation loss has risen far above its best, and train loss did not fall meanwhile."""
    if not _blows_up(reading, reading.validation) or _went_on_learning(reading):
        return None
    return _diverging(reading, "validation_rises", "and train loss does not fall meanwhile")


def overfitting(reading: Reading) -> Finding | None:
    """Validation loss has risen above its best while train loss went on falling."""
    validation = reading.validation
    yardstick = reading.yardstick(validation.low, reading.learned)
    bar = max(RISE * yardstick, reading.error_of_best)
    if validation.held_rise <= bar or not _went_on_learning(reading):
        return None
    clear = validation.level - validation.low > CLEAR_RISE * yardstick and _rises_clearly(reading)
    if not clear and not validation.rise_beats_noise:
        return None
    best, now = reading.best_epoch, reading.epochs
    seen = (_rise(reading), about_train(reading, "train_still_falls", (best, now)))
    strength = validation.held_rise / bar if bar > 0 else math.inf
    if not clear:
        strength = min(strength, validation.rise_by_noise)
    kept = _accuracy_kept(reading)
    if kept is None or _is_better_calibrated(reading):
        return Finding(
            verdict=Verdict.OVERFITTING,
            summary=(
                f"The model was at its best at epoch {best} of {now}. Since then it has learned the train "
                "set by heart, and does worse on new samples."
            ),
            evidence=seen,
            strength=strength,
        )
    return Finding(
        verdict=Verdict.OVERCONFIDENT,
        summary=(
            f"Since epoch {best} of {now} validation loss rises but accuracy does not fall: the model is "
            "right as often as before, and surer of its mistakes."
        ),
        evidence=(*seen, kept, *_about_calibration(reading)),
        strength=strength,
    )


def left_behind(reading: Reading) -> Finding | None:
    """Train loss has come down, and validation loss hardly at all."""
    validation, train = reading.validation, reading.train
    if reading.epochs < FIRST_LOOK or train.start <= 0 or not validation.rests(reading.epochs // 3):
        return None
    learned = train.start - train.level
    generalised = max(train.start - validation.low, 0.0)
    if learned < LEFT_BEHIND * train.start or generalised >= LEFT_BEHIND * learned:
        return None
    message = (
        f"Train loss came down by {percent(learned / train.start)} of its start, validation loss by "
        f"{percent(generalised / train.start)}."
    )
    epochs = (1, reading.epochs)
    return Finding(
        verdict=Verdict.OVERFITTING,
        summary="The model learns the train set by heart, and next to nothing that holds for new samples.",
        evidence=(
            evidence("validation_left_behind", message, epochs, reading.validation_losses),
            about_train(reading, "train_still_falls", epochs),
        ),
        strength=learned / (LEFT_BEHIND * train.start),
    )


def unstable(reading: Reading) -> Finding | None:
    """A loss keeps jumping up from one epoch to the next."""
    if reading.epochs < FIRST_LOOK:
        return None
    later = reading.epochs - reading.epochs // 2
    for name, trend, losses in (
        ("train", reading.train, reading.train_losses),
        ("validation", reading.validation, reading.validation_losses),
    ):
        jumps = _jumps(reading, trend)
        if len(jumps) < max(LEAST_JUMPS, JUMPY * later) or (
            not reading.rates.are_known and _are_restarts(jumps)
        ):
            continue
        latest = jumps[-1]
        message = (
            f"{name.capitalize()} loss jumped up {len(jumps)} times in the latest {later} epochs, last from "
            f"{losses[latest - 2]:.4g} to {losses[latest - 1]:.4g} at epoch {latest}."
        )
        return Finding(
            verdict=Verdict.UNSTABLE,
            summary=f"The {name} loss jumps up and down instead of settling.",
            evidence=(evidence(f"{name}_jumps", message, jumps, losses),),
            strength=len(jumps) / max(LEAST_JUMPS, JUMPY * later),
        )
    return None


def _strength_of_blow_up(reading: Reading, trend: Trend) -> float:
    bar = _bar_of_blow_up(trend, reading.epochs)
    return _held_rise(reading, trend) / bar if bar > 0 else math.inf


def _held_rise(reading: Reading, trend: Trend) -> float:
    """Return how far a loss stays above its best; under a higher learning rate than there, how far above its start."""
    return trend.held_rise - (trend.learned if reading.raised_after(trend) else 0.0)


def _bar_of_blow_up(trend: Trend, epochs: int) -> float:
    share = EARLY_BLOW_UP if epochs < FIRST_EPOCHS else BLOW_UP
    return share * max(trend.learned, abs(trend.start))


def _blows_up(reading: Reading, trend: Trend) -> bool:
    bar = _bar_of_blow_up(trend, reading.epochs)
    # Of so large a rise two steps in a row are enough.
    is_rise = trend.rise_beats_noise or trend.rises_in_a_row >= FEW_RISES
    if _held_rise(reading, trend) <= bar or not is_rise or trend.is_recovering():
        return False
    return reading.rates.are_known or not _may_be_restart(trend)


def _may_be_restart(trend: Trend) -> bool:
    """Tell whether a warm restart may have lifted a loss: at once, to below its start, and not on its way up since.

    A restart that nobody told of is given a quarter of the epochs before it; then the loss has to come down.
    """
    values, peak = trend.values, max(trend.smooth[trend.best :])
    rise, doubt = peak - trend.low, trend.noise_bar(CALM)
    after_best = range(len(values) - 1, trend.best, -1)
    jump = next((index for index in after_best if values[index] - values[index - 1] >= rise / 2), None)
    if jump is None or trend.level >= min(trend.start, values[jump] + max(ON_ITS_WAY * rise, doubt)):
        return False
    comes_down = peak - trend.level > max(FLAT * rise, doubt)
    return comes_down or len(values) - jump < jump * GRACE


def _went_on_learning(reading: Reading) -> bool:
    """Tell whether train loss fell since validation loss was at its best, or had nothing left to fall."""
    train, validation = reading.train, reading.validation
    then = train.smooth[validation.best]
    by_heart = reading.has_zero and train.level <= BY_HEART * validation.level and train.level <= then
    # A run of a few epochs is steep, which would pass for noise.
    noise = train.noise_bar(1.0) if reading.epochs >= FIRST_EPOCHS else 0.0
    return by_heart or then - train.level > max(FALL * reading.yardstick(then, train.learned), noise)


def _rises_clearly(reading: Reading) -> bool:
    """Tell whether validation loss rose without a break since its best, more often than chance would have it."""
    train, validation = reading.train, reading.validation
    rises = validation.rises_in_a_row
    if rises >= RISES:
        return True
    # Both fell without a break until validation loss turned, and it has risen as often as it fell: noise does that in
    # one run of hundreds. Fewer rises will not do: the first falls of a run are so steep that noise breaks none.
    return (
        rises >= max(FEW_RISES, validation.lowest)
        and validation.falls_without_a_break(validation.lowest)
        and train.falls_without_a_break(reading.epochs - 1)
    )


def _diverging(reading: Reading, rule: str, how: str) -> Finding:
    best = reading.best_epoch
    return Finding(
        verdict=Verdict.DIVERGING,
        summary=f"Validation loss diverges: it has been rising since epoch {best}, {how}.",
        evidence=(
            about_validation(reading, rule, (best, reading.epochs)),
            about_train(reading, "train_beside", (best, reading.epochs)),
        ),
        strength=_strength_of_blow_up(reading, reading.validation),
    )


def _rise(reading: Reading) -> Evidence:
    validation, best, now = reading.validation, reading.best_epoch, reading.epochs
    window = f"the latest {validation.window} epochs" if validation.window > 1 else "the latest epoch"
    message = (
        f"Validation loss was {reading.validation_losses[best - 1]:.4g} at epoch {best} and is "
        f"{validation.level * reading.unit:.4g} over {window}; its noise is about "
        f"{validation.noise * reading.unit:.2g}."
    )
    return evidence("validation_rises", message, (best, now), reading.validation_losses)


def _accuracy_kept(reading: Reading) -> Evidence | None:
    """Return the evidence that accuracy is as good as it ever was; None when it fell or is not known."""
    accuracy = reading.accuracy
    if accuracy is None:
        return None
    top = max(accuracy.smooth)
    if top - accuracy.level > min(max(accuracy.noise_bar(CALM), ACCURACY_LOSS), ACCURACY_DOUBT):
        return None
    message = f"Accuracy is {percent(accuracy.level)}, as good as at its best ({percent(top)}) or nearly so."
    return evidence("accuracy_kept", message, (reading.best_epoch, reading.epochs), accuracy.values)


def _is_better_calibrated(reading: Reading) -> bool:
    """Tell whether the model knows better, by more than noise, what it does not know than at its best epoch."""
    error = reading.calibration_error
    if error is None:
        return False
    return error.smooth[reading.validation.best] - error.level > error.noise_bar(CALM)


def _about_calibration(reading: Reading) -> tuple[Evidence, ...]:
    """Tell where the calibration error was and is; nothing where it is not known."""
    error, best, now = reading.calibration_error, reading.best_epoch, reading.epochs
    if error is None:
        return ()
    before, after = percent(error.values[best - 1]), percent(error.values[-1])
    message = f"The calibration error was {before} at epoch {best} and is {after} at epoch {now}."
    return (evidence("calibration", message, (best, now), error.values),)


def _jumps(reading: Reading, trend: Trend) -> list[int]:
    """Return the epochs of the later half whose loss is a jump above the epoch before, but not the rate's own."""
    least = JUMP * reading.yardstick(trend.low, max(trend.learned, LEARNABLE * abs(trend.start)))
    values = trend.values
    later = range(max(reading.epochs // 2, 1), reading.epochs)
    return [
        index + 1
        for index in later
        if values[index] - values[index - 1] > least > 0 and not reading.rates.rises_at(index)
    ]


def _are_restarts(jumps: list[int]) -> bool:
    """Tell whether jumps come like warm restarts: after the same number of epochs each."""
    lengths = {later - earlier for earlier, later in pairwise(jumps)}
    return len(lengths) == 1 and min(lengths) >= LEAST_CYCLE
