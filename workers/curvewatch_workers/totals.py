"""What one rank sums up in one pass: float64, on the rank's device, never read before the epoch ends."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from curvewatch_workers.losses import BatchLoss, Loss
from curvewatch_workers.metrics import SumMetric
from curvewatch_workers.metrics.foreign import ForeignMetrics

_KEPT_BATCHES = 256
_KEPT_BYTES = 1 << 19
"""Small batches that are kept before they are summed, and what their outputs may hold in memory."""
_LARGEST_LOSS = 1e145
_LARGEST_SQUARE = _LARGEST_LOSS**2
"""From there on a loss counts as infinite: the sum of so many squares would leave the range of a float64."""


class _Batches(NamedTuple):
    """Batches of one kind."""

    losses: list[Tensor]
    """None where they are computed of the outputs."""
    weights: list[Tensor]
    """None where each sample weighs 1."""
    outputs: list[Tensor]
    targets: list[Tensor]


class Totals:
    """The sums of one split on one rank.

    Small batches are kept and summed many at a time: there a kernel's launch costs more than its work, and the
    sums are the same. So is the loss, where nobody needs it before. Of what is kept only the first is copied, and
    nothing is read: as soon as a batch comes in memory that the first one had (a view of a parameter, tensors that the
    model fills in turn), what is kept is summed.

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
        self._kept = _Batches([], [], [], [])
        self._kind: object = None
        self._room = 0
        self._tried: set[object] = set()
        self._first: tuple[Tensor, Tensor] | None = None
        """Outputs and targets of the first batch that is kept, as they came."""

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
        sums, weights = loss
        if sums.requires_grad or outputs.requires_grad:
            sums, outputs = sums.detach(), outputs.detach()
        kind = (outputs.shape, targets.shape, sums.shape, outputs.dtype, targets.dtype, weights is None)
        if kind != self._kind:
            self._make_room(kind, outputs, targets)
        self._kept.losses.append(sums)
        if weights is not None:
            self._kept.weights.append(weights)
        self._keep(outputs, targets)

    def measure(self, outputs: object, targets: Tensor) -> None:
        """Take in a batch whose loss is wanted for the sums alone: that of small ones is computed many at a time.

        Args:
            outputs: What the model returned, as for `add`.
            targets: What it should have, shape [batch, ...].

        Raises:
            TaskError: The loss or a metric cannot work with these shapes.
        """
        if not isinstance(outputs, Tensor) or not self._loss.by_sample:
            self.add(self._loss(cast("Tensor", outputs), targets), outputs, targets)
            return
        kind = (outputs.shape, targets.shape, outputs.dtype, targets.dtype)
        if kind != self._kind:
            self._make_room(kind, outputs, targets, self._loss)
        self._keep(outputs.detach() if outputs.requires_grad else outputs, targets)

    def _keep(self, outputs: Tensor, targets: Tensor) -> None:
        kept, first = self._kept, not self._kept.targets
        if first and self._room > 1:
            # Copies: a later batch may come in the same memory, the next one or, of buffers that are filled in turn,
            # the one after all the others. Held until the flush, so that no new tensor is given this memory.
            self._first = outputs, targets
            outputs, targets = outputs.clone(), targets.clone()
            kept.losses[:] = map(torch.clone, kept.losses)
            kept.weights[:] = map(torch.clone, kept.weights)
        elif self._first is not None and any(map(_share_memory, self._first, (outputs, targets))):
            self._room = 0
        kept.outputs.append(outputs)
        kept.targets.append(targets)
        if len(kept.targets) >= self._room:
            self.flush()

    def flush(self) -> None:
        """Sum what is kept; to be called when the pass ends."""
        kept, self._kept, self._kind, self._first = self._kept, _Batches([], [], [], []), None, None
        if not kept.targets:
            return
        outputs, targets = _joined(kept.outputs), _joined(kept.targets)
        if kept.losses:
            loss = BatchLoss(_joined(kept.losses), _joined(kept.weights) if kept.weights else None)
        else:
            loss = self._measured(outputs, targets, len(kept.targets))
        self._add(loss, outputs, targets)

    @torch.no_grad()
    def _measured(self, outputs: Tensor, targets: Tensor, batches: int) -> BatchLoss:
        """Return the loss of so many batches."""
        try:
            return self._loss(outputs, targets)
        except Exception as error:
            if batches > 1:
                error.add_note(
                    f"The loss of {batches} batches was computed at once: the cause is in the last one or in one of "
                    "those before it."
                )
            raise

    def _make_room(self, kind: object, outputs: Tensor, targets: Tensor, loss: Loss | None = None) -> None:
        """Sum what is of another kind, and tell how many batches of this one can be kept, their loss still to come."""
        self.flush()
        self._kind = kind
        # Outputs with another dimension in front cannot be joined; a part of something keeps the whole in memory.
        size = sum(one.untyped_storage().nbytes() for one in (outputs, targets))
        joins = outputs.shape[:1] == targets.shape[:1]
        self._room = min(_KEPT_BATCHES, _KEPT_BYTES // max(size, 1)) if joins else 0
        if self._room > 1 and kind not in self._tried:
            self._tried.add(kind)
            # Copies: what a metric writes into them, it would write before the batch's loss is computed, and once more
            # when the batch is summed.
            self._try(outputs.clone(), targets.clone(), loss)

    @torch.no_grad()
    def _try(self, outputs: Tensor, targets: Tensor, loss: Loss | None) -> None:
        """Let what cannot work with these shapes say so where the batch comes, not where batches are summed."""
        if loss is not None:
            loss(outputs, targets)
        for metric, part in zip(self._metrics, self._parts, strict=True):
            metric.update(torch.zeros_like(part), outputs, targets)

    @torch.no_grad()
    def _add(self, loss: BatchLoss, outputs: Any, targets: Tensor) -> None:
        sums = loss.sums.double().reshape(-1)
        if loss.weights is None:
            finite = sums.abs() < _LARGEST_LOSS  # false for NaN too
            kept = torch.where(finite, sums, 0.0)
            number = finite.sum()
            found = torch.stack([kept.sum(), kept.dot(kept), number, number])
        else:
            weights = loss.weights.double().reshape(-1)
            # A sample of weight 0 has a sum of 0, and no part in any mean.
            squares = torch.where(weights > 0, sums.square() / weights, sums)
            finite = (squares < _LARGEST_SQUARE) & (weights < _LARGEST_LOSS)
            rows = torch.stack([sums, squares, weights, weights.square()])
            found, number = torch.where(finite, rows, 0.0).sum(dim=1), finite.sum()
        self._fixed[: self.NONFINITE] += found
        # Of a loss that is one number for the batch, all samples share the fate.
        samples = len(targets) // max(len(sums), 1)
        self._fixed[self.NONFINITE] += (len(sums) - number) * samples
        overlooked = self._loss.overlooked(targets)
        if overlooked is not None:
            self._fixed[self.OVERLOOKED] += overlooked
        for metric, part in zip(self._metrics, self._parts, strict=True):
            metric.update(part, outputs, targets)
        if self._foreign is not None:
            self._foreign.add(outputs, targets)


def _joined(tensors: list[Tensor]) -> Tensor:
    """Join tensors [batch, ...], or scalars, into one [all, ...]."""
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat(tensors) if tensors[0].dim() else torch.stack(tensors)


def _share_memory(one: Tensor, other: Tensor) -> bool:
    address = one.untyped_storage().data_ptr()
    # 0 where there is none: no rows, or the meta device.
    return address != 0 and address == other.untyped_storage().data_ptr()


def _detached(loss: BatchLoss) -> BatchLoss:
    return BatchLoss(loss.sums.detach(), loss.weights)
