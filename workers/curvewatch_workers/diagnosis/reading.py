"""A curve made ready for the rules: scaled, smoothed, and measured against what was learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from curvewatch_workers.diagnosis.rates import Rates
from curvewatch_workers.diagnosis.trend import Trend

LEAST_SHARE: Final = 0.05
"""Share of what was learned that a yardstick has at least, so that a loss near 0 does not make it 0."""
ACCURACY_NAMES: Final = ("accuracy", "acc", "balanced_accuracy", "top_1", "top1")
CALIBRATION_NAMES: Final = ("calibration_error", "expected_calibration_error", "ece", "calibration")


class Reading:
    """A curve whose losses are all finite, read as it grows epoch by epoch."""

    def __init__(self) -> None:
        self.train_losses: list[float] = []
        """Mean train loss of each epoch, in the curve's own unit."""
        self.validation_losses: list[float] = []
        """Mean validation loss of each epoch, in the curve's own unit."""
        self.validation_errors: list[float] = []
        """Standard error of each mean validation loss; NaN where it is not known."""
        self.unit = 1.0
        """A power of two that no loss is larger than. Both trends are in this unit, so that nothing overflows."""
        self.train, self.validation = Trend(), Trend()
        self.rates = Rates()
        self._ratios: dict[str, Trend] = {}

    def append(
        self,
        train: float,
        validation: float,
        validation_error: float,
        metrics: Mapping[str, float],
        learning_rate: float,
    ) -> None:
        """Take in the next epoch.

        Args:
            train: Mean train loss, finite.
            validation: Mean validation loss, finite.
            validation_error: Its standard error, or NaN.
            metrics: Validation metrics by name.
            learning_rate: NaN where it is not known.
        """
        self.rates.append(learning_rate)
        self.train_losses.append(train)
        self.validation_losses.append(validation)
        self.validation_errors.append(validation_error)
        largest = max(abs(train), abs(validation))
        if self.epochs == 1 or largest > self.unit:
            # Exact, so that it makes no difference when the unit grew.
            self.unit = math.ldexp(1.0, max(min(math.frexp(largest)[1], 1023), -1021)) if largest else 1.0
            self.train = Trend(loss / self.unit for loss in self.train_losses)
            self.validation = Trend(loss / self.unit for loss in self.validation_losses)
        else:
            self.train.append(train / self.unit)
            self.validation.append(validation / self.unit)
        for name in (*ACCURACY_NAMES, *CALIBRATION_NAMES):
            self._note_ratio(name, metrics.get(name))

    def _note_ratio(self, name: str, value: float | None) -> None:
        if value is None or not 0 <= value <= 1:
            self._ratios.pop(name, None)
        elif self.epochs == 1:
            self._ratios[name] = Trend([value])
        elif name in self._ratios:
            self._ratios[name].append(value)

    def _ratio(self, names: tuple[str, ...]) -> Trend | None:
        return next((self._ratios[name] for name in names if name in self._ratios), None)

    @property
    def epochs(self) -> int:
        """Epochs so far."""
        return len(self.train_losses)

    @property
    def best_epoch(self) -> int:
        """Epoch of the lowest validation loss."""
        return self.validation.lowest + 1

    @property
    def restarted_after(self) -> int:
        """Latest epoch before the learning rate rose above what it was when either loss was at its best.

        A warm restart does that, and so does warm-up. 0 if it has not, or if validation loss has a new best since.
        """
        if not self.epochs:
            return 0
        after = max(self.raised_after(self.train), self.raised_after(self.validation))
        return after if self.validation.best < after else 0

    def raised_after(self, trend: Trend) -> int:
        """Return the latest epoch before the learning rate rose above what it was at a loss's best; 0 if not."""
        return self.rates.raised_after(trend.best, trend.best + trend.window)

    @property
    def error_of_best(self) -> float:
        """Standard error of the lowest validation loss, in the trends' unit; 0 where it is not known."""
        error = self.validation_errors[self.validation.lowest]
        return error / self.unit if math.isfinite(error) else 0.0

    @property
    def has_zero(self) -> bool:
        """Tell whether 0 may be the lowest possible loss; a loss that goes below has no level to judge."""
        return min(self.train.values[self.train.lowest], self.validation.values[self.validation.lowest]) >= 0

    @property
    def learned(self) -> float:
        """How far validation loss came down, or train loss where that came down further."""
        start = min(self.train.start, self.validation.start)
        return max(start - self.validation.low, self.train.start - self.train.level, 0.0)

    def yardstick(self, level: float, learned: float) -> float:
        """Return what a change of a loss is compared with.

        The geometric mean of its level and of what it learned, because neither alone will do. Measured
        by its level, a loss near 0 overfits with every wobble; measured by what was learned, a loss that came
        down from 100 may double unseen.
        """
        if not self.has_zero:
            return learned
        return max(float((level * learned) ** 0.5), LEAST_SHARE * learned)

    @property
    def remaining(self) -> float:
        """Share of the first train loss that is left, on the better of both splits.

        The better, because a regularised train loss stays above the validation loss.
        """
        level = min(self.train.level, self.validation.level)
        return level / self.train.start if self.train.start > 0 else 0.0

    @property
    def accuracy(self) -> Trend | None:
        """Validation accuracy, as a ratio; None when the curve has none or some of it is not known."""
        return self._ratio(ACCURACY_NAMES)

    @property
    def calibration_error(self) -> Trend | None:
        """Validation calibration error, as a ratio; None when the curve has none or some of it is not known."""
        return self._ratio(CALIBRATION_NAMES)
