"""A curve made ready for the rules: scaled, smoothed, and measured against what was learned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

from curvewatch_workers.diagnosis.curve import Curve
from curvewatch_workers.diagnosis.trend import Trend

LEAST_SHARE: Final = 0.05
"""Share of what was learned that a yardstick has at least, so that a loss near 0 does not make it 0."""
ACCURACY_NAMES: Final = ("accuracy", "acc", "balanced_accuracy", "top_1", "top1")


@dataclass(frozen=True)
class Reading:
    """A curve of at least one epoch whose losses are all finite."""

    curve: Curve
    unit: float
    """Largest absolute loss. Both trends are in this unit, so that scaling the losses changes nothing."""
    train: Trend
    validation: Trend

    @classmethod
    def of(cls, curve: Curve) -> Reading:
        """Read a curve."""
        unit = max(abs(loss) for loss in (*curve.train, *curve.validation)) or 1.0
        return cls(
            curve,
            unit,
            Trend(tuple(loss / unit for loss in curve.train)),
            Trend(tuple(loss / unit for loss in curve.validation)),
        )

    @property
    def epochs(self) -> int:
        """Epochs so far."""
        return len(self.curve)

    @cached_property
    def best_epoch(self) -> int:
        """Epoch of the lowest validation loss."""
        return self.curve.validation.index(min(self.curve.validation)) + 1

    @cached_property
    def has_zero(self) -> bool:
        """Tell whether 0 may be the lowest possible loss; a loss that goes below has no level to judge."""
        return min(*self.train.values, *self.validation.values) >= 0

    @cached_property
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

    @cached_property
    def remaining(self) -> float:
        """Share of the first train loss that is left, on the better of both splits.

        The better, because a regularised train loss stays above the validation loss.
        """
        level = min(self.train.level, self.validation.level)
        return level / self.train.start if self.train.start > 0 else 0.0

    @cached_property
    def accuracy(self) -> Trend | None:
        """Validation accuracy, as a ratio; None when the curve has none or some of it is not known."""
        for name in ACCURACY_NAMES:
            values = self.curve.metrics.get(name)
            if values and all(0 <= value <= 1 for value in values):
                return Trend(tuple(values))
        return None
