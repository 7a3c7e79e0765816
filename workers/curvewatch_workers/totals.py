"""What one rank sums up in one pass: float64, on the rank's device, never read before the epoch ends."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvewatch_workers.losses import BatchLoss, Loss
from curvewatch_workers.metrics import SumMetric
from curvewatch_workers.metrics.foreign import ForeignMetrics

_KEPT_BATCHES = 256
_KEPT_BYTES = 1 << 19
"""Small batches that are kept before they are summed, and what their outputs may hold in memory."""
_LARGEST_WEIGHT = 1e145
_LARGEST_SQUARE = 1e290
"""From there on a loss counts as infinite: the sum of so many squares would leave the range of a float64."""

_Batch = tuple[BatchLoss, Tensor, Tensor]
"""Loss, outputs, targets."""


class Totals:
    """The sums of one split on one rank.

    Small batches are kept and summed many at a time: there a kernel's launch costs more than its work, and the
    sums are the same. Nothing is copied for it, and nothing is read: what comes in memory that the batch before had
    (a view of a parameter, a tensor that the model fills in each call) is summed at once.

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
        self._kept: list[_Batch] = []
        self._shape: torch.Size | None = None
        self._room = 0
        self._before: tuple[Tensor, Tensor] | None = None
        self._tried: set[torch.Size] = set()

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
        if not isinstance(outputs, Tensor):
            outputs = pytree.tree_map_only(Tensor, Tensor.detach, outputs)
            self._add(_detached(loss), outputs, targets)
            return
        if loss.sums.requires_grad or outputs.requires_grad:
            loss, outputs = _detached(loss), outputs.detach()
        if outputs.shape != self._shape:
            self._make_room(outputs, targets)
        self._kept.append((loss, outputs, targets))
        if len(self._kept) >= self._room:
            self._sum_kept()

    def flush(self) -> None:
        """Sum what is kept; to be called when the pass ends."""
        self._sum_kept()
        # Each pass begins alike: the same batches give the same bits.
        self._before = None

    def _sum_kept(self) -> None:
        kept, self._kept, self._shape = self._kept, [], None
        for _, group in groupby(kept, key=_kind):
            alike = list(group)
            if len(alike) == 1:
                self._add(*alike[0])
                continue
            losses, outputs, targets = zip(*alike, strict=True)
            self._add(_joined(losses), torch.cat(outputs), torch.cat(targets))

    def _make_room(self, outputs: Tensor, targets: Tensor) -> None:
        """Sum what has another shape, and tell how many batches of this one can be kept."""
        self._sum_kept()
        self._shape = outputs.shape
        # Outputs with another dimension in front cannot be joined; a part of something keeps the whole in memory.
        size = outputs.untyped_storage().nbytes() + targets.nbytes
        joins = outputs.shape[:1] == targets.shape[:1]
        room = min(_KEPT_BATCHES, _KEPT_BYTES // max(size, 1))
        before, self._before = self._before, (outputs, targets) if room > 1 else None
        # Held until now, what was before has its memory still: who has the same was given it again.
        fresh = before is not None and not any(map(_share_memory, before, (outputs, targets)))
        self._room = room if joins and fresh else 0
        if self._room > 1 and self._shape not in self._tried:
            self._tried.add(self._shape)
            # A copy: what a metric writes into it, it would write once more when the batch is summed.
            self._try(outputs.clone(), targets)

    @torch.no_grad()
    def _try(self, outputs: Tensor, targets: Tensor) -> None:
        """Let a metric that cannot work with these shapes say so where it was called, not where batches are summed."""
        for metric, part in zip(self._metrics, self._parts, strict=True):
            metric.update(torch.zeros_like(part), outputs, targets)

    @torch.no_grad()
    def _add(self, loss: BatchLoss, outputs: Any, targets: Tensor) -> None:
        sums = loss.sums.double().reshape(-1)
        if loss.weights is None:
            weights, squares = torch.ones_like(sums), sums.square()
            finite = squares < _LARGEST_SQUARE  # false for NaN too
            rows = torch.stack([sums, squares, weights, weights, weights])
        else:
            weights = loss.weights.double().reshape(-1)
            # A sample of weight 0 has a sum of 0, and no part in any mean.
            squares = torch.where(weights > 0, sums.square() / weights, sums)
            finite = (squares < _LARGEST_SQUARE) & (weights < _LARGEST_WEIGHT)
            rows = torch.stack([sums, squares, weights, weights.square(), torch.ones_like(sums)])
        # Of a loss that is one number for the batch, all samples share the fate.
        samples = len(targets) // max(len(sums), 1)
        found = torch.where(finite, rows, 0.0).sum(dim=1)
        self._fixed[: self.NONFINITE] += found[:-1]
        self._fixed[self.NONFINITE] += (len(sums) - found[-1]) * samples
        overlooked = self._loss.overlooked(targets)
        if overlooked is not None:
            self._fixed[self.OVERLOOKED] += overlooked
        for metric, part in zip(self._metrics, self._parts, strict=True):
            metric.update(part, outputs, targets)
        if self._foreign is not None:
            self._foreign.add(outputs, targets)


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _detached(loss: BatchLoss) -> BatchLoss:
    return BatchLoss(loss.sums.detach(), loss.weights)


def _kind(batch: _Batch) -> object:
    """Return what batches must share, beside the outputs' shape, to be joined."""
    loss, outputs, targets = batch
    return targets.shape, targets.dtype, outputs.dtype, loss.sums.dim(), loss.weights is None


def _joined(losses: tuple[BatchLoss, ...]) -> BatchLoss:
    join = torch.cat if losses[0].sums.dim() else torch.stack
    weights = [loss.weights for loss in losses if loss.weights is not None]
    return BatchLoss(join([loss.sums for loss in losses]), join(weights) if weights else None)
