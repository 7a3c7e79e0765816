"""The input of a diagnosis: losses by epoch, and the plain numbers that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Losses of a run by epoch; epoch i has index i - 1.

    Raises:
        ValueError: The series differ in length.
    """

    train: tuple[float, ...]
    """Mean train loss; NaN where it is not known."""
    validation: tuple[float, ...]
    """Mean validation loss; NaN where it is not known."""
    validation_errors: tuple[float, ...] = ()
    """Standard error of each mean validation loss, from the spread of the samples' losses; NaN where it is not known,
    empty when it never is."""
    nonfinite: tuple[bool, ...] = ()
    """True where a sample's loss was NaN or infinite; empty when that was never so."""
    metrics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Validation metrics by name, such as `accuracy` as a ratio from 0 to 1."""
    learning_rates: tuple[float, ...] = ()
    """Learning rate of each epoch; NaN where it is not known, empty when it never is."""

    def __post_init__(self) -> None:
        series: dict[str, Sequence[object]] = {"validation": self.validation}
        if self.validation_errors:
            series["validation_errors"] = self.validation_errors
        if self.nonfinite:
            series["nonfinite"] = self.nonfinite
        if self.learning_rates:
            series["learning_rates"] = self.learning_rates
        series.update({f"metrics[{name!r}]": values for name, values in self.metrics.items()})
        for name, values in series.items():
            if len(values) != len(self.train):
                raise ValueError(
                    f"each series of a curve has one value an epoch: train has {len(self.train)}, "
                    f"{name} has {len(values)}; cut them to the epochs that all have finished"
                )

    def __len__(self) -> int:
        return len(self.train)

    def is_finite_at(self, index: int) -> bool:
        """Tell whether every loss of this epoch was finite."""
        flagged = bool(self.nonfinite) and self.nonfinite[index]
        return not flagged and math.isfinite(self.train[index]) and math.isfinite(self.validation[index])


@dataclass(frozen=True, kw_only=True)
class CurveSummary:
    """Numbers of a curve that alerts compare; None where the curve does not tell."""

    best_epoch: int | None
    """Epoch of the lowest finite validation loss, the first one when several share it."""
    best_validation_loss: float | None
    epochs_since_best: int | None
    """0 when the latest epoch is the best."""
    train_slope: float | None
    """Change of the train loss per epoch."""
    validation_slope: float | None
    """Change of the validation loss per epoch."""
    generalization_gap: float | None
    """Validation loss minus train loss at the latest epoch."""


def summarize(curve: Curve, *, window: int) -> CurveSummary:
    """Compute the numbers that alerts compare.

    Args:
        curve: The run so far.
        window: Latest epochs that the slopes are fitted over; at least 2 are taken.

    Raises:
        ValueError: The window is below 1.
    """
    if window < 1:
        raise ValueError(f"the window of the slopes is at least 1 epoch, got {window}")
    window = max(window, 2)
    finite = [index for index, loss in enumerate(curve.validation) if math.isfinite(loss)]
    best = min(finite, key=lambda index: curve.validation[index], default=None)
    gap = curve.validation[-1] - curve.train[-1] if len(curve) else math.nan
    return CurveSummary(
        best_epoch=None if best is None else best + 1,
        best_validation_loss=None if best is None else curve.validation[best],
        epochs_since_best=None if best is None else len(curve) - 1 - best,
        train_slope=_slope(curve.train[-window:]),
        validation_slope=_slope(curve.validation[-window:]),
        generalization_gap=gap if math.isfinite(gap) else None,
    )


def _slope(values: Sequence[float]) -> float | None:
    """Least-squares slope over the finite values; None when fewer than two are."""
    points = [(x, y) for x, y in enumerate(values) if math.isfinite(y)]
    if len(points) < 2:
        return None
    # Scaled, because sums near the largest float overflow; from the first value, so that flat is exactly 0.
    unit = max(abs(y) for _, y in points) or 1.0
    first = points[0][1] / unit
    mean_x = math.fsum(x for x, _ in points) / len(points)
    spread = math.fsum((x - mean_x) ** 2 for x, _ in points)
    slope = unit * math.fsum((x - mean_x) / spread * (y / unit - first) for x, y in points)
    return slope if math.isfinite(slope) else None
