"""What one rank sums up in one pass: float64, on the rank's device, never read before the epoch ends."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvewatch_workers.losses import BatchLoss, Loss
from curvewatch_workers.metrics import SumMetric
from curvewatch_workers.metrics.foreign import ForeignMetrics

_KEPT_BATCHES = 64
_KEPT_VALUES = 1 << 16
"""Numbers of small batches that are kept before they are summed; half a megabyte at most."""
_LARGEST_WEIGHT = 1e145
_LARGEST_SQUARE = 1e290
"""From there on a loss counts as infinite: the sum of so many squares would leave the range of a float64."""


class _Kept(NamedTuple):
    loss: BatchLoss
    outputs: Tensor
    targets: Tensor


class Totals:
    """The sums of one split on one rank.

    Small batches are kept and summed many at a time: there a kernel's launch costs more than its work, and the
    sums are the same. Nothing is copied for it, and nothing is read.

    Args:
        loss: The loss that is summed.
        metrics: The metrics that are summed.
        sums: Zeros, float64 [slots], that are added to in place; a part of the epoch's buffer.
        foreign: Metrics that are no sums.
    """

    LOSS_SUM, LOSS_SQUARE_SUM, WEIGHT_SUM, WEIGHT_SQUARE_SUM, NONFINITE, OVERLOOKED = range(6)
    FIXED = 6

    def __init__(
        self,
        loss: Loss,
        metrics: tuple[SumMetric, ...],
        sums: Tensor,
        foreign: ForeignMetrics | None = None,
    ) -> None:
        self._foreign = foreign
        self._loss = loss
        self._metrics = metrics
        self.sums = sums
        """What was added up; not read here."""
        self._fixed = sums[: self.FIXED]
        self._parts = torch.split(sums[self.FIXED :], [metric.slots for metric in metrics])
        self._kept: list[_Kept] = []
        self._kept_values = 0
        self._checked = False

    @classmethod
    def slots(cls, metrics: tuple[SumMetric, ...]) -> int:
        """Return the number of sums for these metrics."""
        return cls.FIXED + sum(metric.slots for metric in metrics)

    def add(self, loss: BatchLoss, outputs: object, targets: Tensor) -> None:
        """Take in a batch.

        Args:
            loss: Its loss.
            outputs: What the model returned, shape [batch, ...], or a structure that the metrics understand.
            targets: What it should have, shape [batch, ...].

        Raises:
            TaskError: A metric cannot work with these shapes.
        """
        loss = BatchLoss(loss.sums.detach(), loss.weights)
        if not isinstance(outputs, Tensor) or loss.sums.dim() == 0 or outputs.shape[:1] != targets.shape[:1]:
            self._add(loss, pytree.tree_map_only(Tensor, Tensor.detach, outputs), targets)
            return
        batch = _Kept(loss, outputs.detach(), targets)
        values = outputs.numel() + targets.numel()
        # The first batch at once: a metric that cannot work says so where it was called.
        if not self._checked or values > _KEPT_VALUES // 2:
            self._checked = True
            self._add(*batch)
            return
        if self._kept and not _alike(self._kept[0], batch):
            self.flush()
        self._kept.append(batch)
        self._kept_values += values
        if len(self._kept) == _KEPT_BATCHES or self._kept_values > _KEPT_VALUES:
            self.flush()

    def flush(self) -> None:
        """Sum what is kept; to be called when the pass ends."""
        kept, self._kept, self._kept_values = self._kept, [], 0
        if not kept:
            return
        losses, outputs, targets = zip(*kept, strict=True)
        weights = None if losses[0].weights is None else torch.cat([one.weights for one in losses])
        joined = BatchLoss(torch.cat([one.sums for one in losses]), weights)
        self._add(joined, torch.cat(outputs), torch.cat(targets))

    @torch.no_grad()
    def _add(self, loss: BatchLoss, outputs: Tensor, targets: Tensor) -> None:
        sums = loss.sums.double().reshape(-1)
        weights = torch.ones_like(sums) if loss.weights is None else loss.weights.double().reshape(-1)
        # A sample of weight 0 has a sum of 0, and no part in any mean.
        squares = torch.where(weights > 0, sums.square() / weights, sums)
        finite = (squares < _LARGEST_SQUARE) & (weights < _LARGEST_WEIGHT)  # false for NaN too
        rows = torch.stack([sums, squares, weights, weights.square()])
        self._fixed[: self.NONFINITE] += torch.where(finite, rows, 0.0).sum(dim=1)
        # Of a loss that is one number for the batch, all samples share the fate.
        samples = len(targets) if loss.sums.dim() == 0 else 1
        self._fixed[self.NONFINITE] += (~finite).sum() * samples
        overlooked = self._loss.overlooked(targets)
        if overlooked is not None:
            self._fixed[self.OVERLOOKED] += overlooked
        for metric, part in zip(self._metrics, self._parts, strict=True):
            metric.update(part, outputs, targets)
        if self._foreign is not None:
            self._foreign.add(outputs, targets)


def _alike(one: _Kept, other: _Kept) -> bool:
    """Tell whether two batches can be joined."""
    return (
        one.outputs.shape[1:] == other.outputs.shape[1:]
        and one.targets.shape[1:] == other.targets.shape[1:]
        and one.outputs.dtype == other.outputs.dtype
        and (one.loss.weights is None) == (other.loss.weights is None)
    )
