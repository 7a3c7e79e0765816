"""What the metrics of classification share: which labels count, and what becomes of one that is no class."""

from __future__ import annotations

import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor

from curvewatch_workers.contract import MetricTotals
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.protocol import LARGEST_VALUE, MetricReading, Sums, single
from curvewatch_workers.shapes import require_one_tensor

IGNORED_CLASS = -100
"""Target that no classification metric counts, as in torch's losses."""


class Classified(NamedTuple):
    """A batch as logits of two classes or more, and its targets as classes."""

    logits: Tensor
    """Shape [batch, classes, ...]."""
    true: Tensor
    """int64 [batch, ...], from 0 to the number of classes, which stands for a label that is no class."""
    kept: Tensor
    """Whether the target counts, shape [batch, ...]: it is not the ignored one."""

    @property
    def outside(self) -> Tensor:
        """Whether a target that counts is no class, shape [batch, ...]."""
        return self.kept & (self.true == self.logits.shape[1])


class ClassMetric:
    """A metric that compares logits [batch, classes, ...] with labels [batch, ...] of any number type.

    A model of two classes may have one logit, [batch] or [batch, 1, ...], as BCEWithLogitsLoss takes it: above 0 is
    class 1, and its sigmoid is the probability of that.

    Labels that are no class are counted, and told when the epoch's sums are read: in the loop no value is read.

    Args:
        ignore_index: Target that is not counted; None takes the loss's, -100 where it is not known.
    """

    def __init__(self, ignore_index: int | None) -> None:
        self._follows = ignore_index is None
        self._ignore_index = IGNORED_CLASS if ignore_index is None else ignore_index

    def following(self, ignored: int) -> Self:
        """Return the metric beside a loss that ignores this target."""
        if not self._follows:
            return self
        following = copy.copy(self)
        following._ignore_index = ignored
        return following

    def _classified(self, outputs: Tensor, targets: Tensor) -> Classified:
        """Read a batch.

        Raises:
            TaskError: There is not one target for each row of logits, or the outputs are no tensor.
        """
        require_one_tensor(type(self).__name__, outputs)
        logits, targets = _at_least_two(outputs, targets)
        if logits.dim() < 2 or logits.shape[:1] + logits.shape[2:] != targets.shape:
            raise TaskError(
                f"{type(self).__name__} takes logits [batch, classes, ...] with targets [batch, ...], or one logit "
                f"for each target, [batch] or [batch, 1, ...]; got outputs of shape {tuple(outputs.shape)} and targets "
                f"of shape {tuple(targets.shape)}; targets that are probabilities or several labels need a function of "
                "your own, such as lambda outputs, targets: outputs.argmax(1) == targets.argmax(1)"
            )
        classes = logits.shape[1]
        # Of small types, arithmetic overflows and -100 is another number.
        labels = targets.long()
        nearest = labels.clamp(0, classes - 1)
        true = torch.where(nearest == targets, nearest, classes)
        return Classified(logits, true, labels != self._ignore_index)

    def _require_classes(self, outside: float, classes: int | None = None) -> None:
        """Refuse labels that are no class.

        Args:
            outside: How many there are.
            classes: Number of classes, where it is known.

        Raises:
            TaskError: There are some.
        """
        if outside:
            known = "from 0 and below the number of logits" if classes is None else f"from 0 to {classes - 1}"
            raise TaskError(
                f"{type(self).__name__} got {int(outside)} labels that are no class: labels are whole numbers "
                f"{known}; count them from 0, give model and metric more classes, or name the label that does not "
                "count (ignore_index)"
            )


class ClassMean(ClassMetric):
    """The mean over the labels that count of what `_values` gives."""

    slots = 3

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add logits [batch, classes, ...] with their classes [batch, ...]."""
        batch = self._classified(outputs, targets)
        logits, true, kept = batch
        values, outside = self._values(logits, true), batch.outside
        if values.dtype is torch.bool:
            # Hits need no look for what is not finite, and few kernels.
            rows = torch.stack([values & kept, kept, outside])
        else:
            values = values.double()
            counted = kept & (values.abs() < LARGEST_VALUE)  # false for NaN too
            rows = torch.stack([torch.where(counted, values, 0.0), counted.double(), outside.double()])
        sums += rows.flatten(1).sum(dim=1)

    def read(self, sums: Sums) -> MetricReading:
        """Return the mean.

        Raises:
            TaskError: There were labels that are no class.
        """
        self._require_classes(sums[2])
        return single(MetricTotals(total=float(sums[0]), count=int(sums[1])))

    def _values(self, logits: Tensor, true: Tensor) -> Tensor:
        """Return the value of each label, or whether it is a hit; of one that is no class nothing is reported."""
        raise NotImplementedError


def _at_least_two(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return one logit of class 1 as the two logits that say the same, 0 and itself; others as they are."""
    single_logit = outputs.unsqueeze(1) if outputs.dim() == 1 else outputs
    if single_logit.dim() < 2 or single_logit.shape[1] != 1:
        return outputs, targets
    if targets.dim() == single_logit.dim() and targets.shape[1] == 1:
        targets = targets.squeeze(1)
    return torch.cat([torch.zeros_like(single_logit), single_logit], dim=1), targets
