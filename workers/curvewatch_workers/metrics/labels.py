"""What the metrics of classification share: which labels count, and what becomes of one that is no class."""

from __future__ import annotations

import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor

from curvewatch_workers.contract import MetricTotals
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.protocol import (
    LARGEST_VALUE,
    MetricReading,
    Sums,
    require_same_shape,
    single,
)

IGNORED_CLASS = -100
"""Target that no classification metric counts, as in torch's losses."""


class Labels(NamedTuple):
    """Targets as classes, shape [batch, ...]."""

    true: Tensor
    """int64, from 0 to the number of classes, which stands for a label that is no class."""
    kept: Tensor
    """Whether the target counts: it is not the ignored one."""


class ClassMetric:
    """A metric that compares logits [batch, classes, ...] with labels [batch, ...] of any number type.

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

    def _labels(self, logits: Tensor, targets: Tensor) -> Labels:
        """Read the targets.

        Raises:
            TaskError: There is not one target for each row of logits.
        """
        if logits.dim() < 2:
            raise TaskError(
                f"{type(self).__name__} takes logits [batch, classes, ...], got outputs of shape {tuple(logits.shape)}"
            )
        name = f"{type(self).__name__}, which takes the highest of the logits of dimension 1,"
        require_same_shape(name, logits.select(1, 0), targets)
        classes = logits.shape[1]
        # Of small types, arithmetic overflows and -100 is another number.
        labels = targets.long()
        nearest = labels.clamp(0, classes - 1)
        return Labels(torch.where(nearest == targets, nearest, classes), labels != self._ignore_index)

    def _require_classes(self, outside: float, classes: int | None = None) -> None:
        """Refuse labels that are no class.

        Args:
            outside: How many there are.
            classes: Number of classes, where it is known.

        Raises:
            TaskError: There are some.
        """
        if outside:
            range_ = (
                "from 0 and below the number of logits" if classes is None else f"from 0 to {classes - 1}"
            )
            raise TaskError(
                f"{type(self).__name__} got {int(outside)} labels that are no class: labels are whole numbers "
                f"{range_}; count them from 0, give model and metric more classes, or name the label that does not "
                "count (ignore_index)"
            )


class ClassMean(ClassMetric):
    """The mean over the labels that count of what `_values` gives."""

    slots = 3

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add logits [batch, classes, ...] with their classes [batch, ...]."""
        true, kept = self._labels(outputs, targets)
        values = self._values(outputs, true).double()
        counted = kept & (values.abs() < LARGEST_VALUE)  # false for NaN too
        outside = kept & (true == outputs.shape[1])
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
        """Return the value of each label; what it gives for one that is no class is not reported."""
        raise NotImplementedError
