"""How well a classifier knows what it does not know."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curvewatch_workers.contract import MetricTotals
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.protocol import (
    IGNORED_CLASS,
    MetricReading,
    Sums,
    require_same_shape,
    single,
)


class CalibrationError:
    """Expected calibration error: mean distance between confidence and accuracy, over bins of confidence; 0 to 1.

    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks (2017), section 2. A bin holds its
    upper border.

    Args:
        bins: Bins of equal width.
        ignore_index: Target that is not counted.

    Raises:
        TaskError: There is no bin.
    """

    def __init__(self, bins: int = 15, *, ignore_index: int = IGNORED_CLASS) -> None:
        if bins < 1:
            raise TaskError(f"CalibrationError needs at least 1 bin, got {bins}")
        self._bins = bins
        self._ignore_index = ignore_index

    @property
    def slots(self) -> int:
        """Samples, confidence and right predictions of each bin."""
        return 3 * self._bins

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add logits [batch, classes, ...] with their classes [batch, ...]."""
        confidence, predicted = outputs.float().softmax(dim=1).max(dim=1)
        require_same_shape("CalibrationError", predicted, targets)
        # NaN logits have no confidence.
        kept = ((targets != self._ignore_index) & confidence.isfinite()).flatten()
        confidence = torch.where(kept, confidence.flatten(), 0.0)
        right = kept & (predicted == targets).flatten()
        number = ((confidence * self._bins).ceil().long() - 1).clamp(0, self._bins - 1)
        where = torch.cat([number, number + self._bins, number + 2 * self._bins])
        sums.index_put_(
            (where,), torch.cat([kept.double(), confidence.double(), right.double()]), accumulate=True
        )

    def read(self, sums: Sums) -> MetricReading:
        """Return the error."""
        samples, confidence, right = sums.reshape(3, self._bins)
        return single(MetricTotals(total=float(np.abs(right - confidence).sum()), count=float(samples.sum())))
