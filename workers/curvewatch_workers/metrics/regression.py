"""Metrics of regression that are no plain means."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curvewatch_workers.contract import MetricTotals
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.means import MeanSquaredError
from curvewatch_workers.metrics.protocol import (
    LARGEST_VALUE,
    MeanOfSamples,
    MetricReading,
    Sums,
    require_same_shape,
    single,
)


class RootMeanSquaredError(MeanOfSamples):
    """Root of the mean squared error over all samples and columns, in the target's unit."""

    def __init__(self) -> None:
        super().__init__(MeanSquaredError())

    def read(self, sums: Sums) -> MetricReading:
        """Return the root."""
        return single(MetricTotals(total=float(sums[0]), count=int(sums[1]), form="root"))


class R2:
    """Coefficient of determination: 1 is perfect, 0 as good as the mean of the targets; averaged over columns.

    The spread of the targets comes from sums of their squares in float64. A column has no part in the average whose
    variance is below 2.2e-16 times the samples times its mean square: that much may be rounding. So of a million
    samples, targets whose mean is 67000 times their standard deviation or more give no number; subtract their mean.

    Args:
        columns: Values of one sample's target.
    """

    def __init__(self, columns: int = 1) -> None:
        if columns < 1:
            raise TaskError(f"R2 needs the number of target columns, at least 1; got {columns}")
        self._columns = columns

    @property
    def slots(self) -> int:
        """Samples, targets, their squares and squared errors of each column."""
        return 4 * self._columns

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Compare two tensors of the same shape, [batch] or [batch, columns]."""
        require_same_shape("R2", outputs, targets)
        if targets[0:1].numel() not in (self._columns, 0) or targets.dim() > 2:
            raise TaskError(
                f"R2(columns={self._columns}) got targets of shape {tuple(targets.shape)}; give it the number of "
                "columns of the targets"
            )
        truth = targets.double().reshape(-1, self._columns)
        squares = (outputs.double().reshape(-1, self._columns) - truth).square()
        sound = (squares < LARGEST_VALUE) & (truth.square() < LARGEST_VALUE)  # false for NaN too
        parts = [sound.double(), truth, truth.square(), squares]
        sums += torch.where(sound, torch.stack(parts), 0.0).sum(dim=1).flatten()

    def read(self, sums: Sums) -> MetricReading:
        """Return the mean over the columns; one whose spread may be rounding alone has no part in it."""
        samples, truth, squares, errors = sums.reshape(4, self._columns)
        spread = squares - truth * np.divide(truth, samples, out=np.zeros_like(truth), where=samples > 0)
        # Each of `samples` additions rounds by half an epsilon of the sum so far, which is half the whole on average:
        # a quarter of an epsilon a sample for the squares, and twice that for the square of the mean.
        varies = spread > np.finfo(np.float64).eps * samples * squares
        scores = 1 - errors[varies] / spread[varies]
        return single(MetricTotals(total=float(scores.sum()), count=int(varies.sum())))
