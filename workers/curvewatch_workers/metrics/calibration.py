"""How well a classifier knows what it does not know."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curvewatch_workers.contract import MetricTotals
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.labels import ClassMetric
from curvewatch_workers.metrics.protocol import MetricReading, Sums, single


class CalibrationError(ClassMetric):
    """Expected calibration error: mean distance between confidence and accuracy, over bins of confidence; 0 to 1.

    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks (2017), section 2. A bin holds its
    upper border.

    Args:
        bins: Bins of equal width.
        ignore_index: Target that is not counted; None takes the loss's.

    Raises:
        TaskError: There is no bin.
    """

    def __init__(self, bins: int = 15, *, ignore_index: int | None = None) -> None:
        if bins < 1:
            raise TaskError(f"CalibrationError needs at least 1 bin, got {bins}")
        super().__init__(ignore_index)
        self._bins = bins

    @property
    def slots(self) -> int:
        """Samples, confidence and right predictions of each bin, and the labels that are no class."""
        return 3 * self._bins + 1

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add logits [batch, classes, ...] with their classes [batch, ...]."""
        batch = self._classified(outputs, targets)
        logits, true, kept = batch
        confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
        # NaN logits have no confidence.
        counted = (kept & confidence.isfinite()).flatten()
        confidence = torch.where(counted, confidence.flatten(), 0.0)
        right = counted & (predicted == true).flatten()
        number = ((confidence * self._bins).ceil().long() - 1).clamp(0, self._bins - 1)
        where = torch.cat([number, number + self._bins, number + 2 * self._bins])
        sums.index_put_(
            (where,), torch.cat([counted.double(), confidence.double(), right.double()]), accumulate=True
        )
        sums[-1] += batch.outside.sum()

    def read(self, sums: Sums) -> MetricReading:
        """Return the error.

        Raises:
            TaskError: There were labels that are no class.
        """
        self._require_classes(sums[-1])
        samples, confidence, right = sums[:-1].reshape(3, self._bins)
        return single(MetricTotals(total=float(np.abs(right - confidence).sum()), count=float(samples.sum())))
