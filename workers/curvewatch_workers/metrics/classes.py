"""Metrics of classification that count predictions by class."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curvewatch_workers.contract import LARGEST_MATRIX, MetricTotals
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.protocol import IGNORED_CLASS, MetricReading, Sums, require_same_shape

Average = Literal["macro", "micro", "weighted"]
Floats = npt.NDArray[np.float64]


class ConfusionMatrix:
    """How often each class was taken for each other; its number is the accuracy, the diagonal's share.

    Up to 100 classes the record of an epoch carries the matrix; with more it carries the number alone.

    Args:
        classes: Number of classes.
        ignore_index: Target that is not counted.
    """

    def __init__(self, classes: int, *, ignore_index: int = IGNORED_CLASS) -> None:
        self._classes = _require_classes("ConfusionMatrix", classes)
        self._ignore_index = ignore_index

    @property
    def slots(self) -> int:
        """One for each pair of true and predicted class."""
        return self._classes**2

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add logits [batch, classes, ...] with their classes [batch, ...]."""
        predicted, kept, true = _predictions(self, self._classes, self._ignore_index, outputs, targets)
        sums.index_put_((true * self._classes + predicted,), kept.double(), accumulate=True)

    def read(self, sums: Sums) -> MetricReading:
        """Return the accuracy and the matrix."""
        counts = sums.reshape(self._classes, self._classes)
        accuracy = MetricTotals(total=float(np.trace(counts)), count=int(counts.sum()))
        small = self._classes <= LARGEST_MATRIX
        matrix = tuple(tuple(int(cell) for cell in row) for row in counts) if small else None
        return MetricReading(values={"": accuracy}, matrix=matrix)


class _ByClass:
    """Counts for each class: predicted rightly, predicted, true."""

    def __init__(
        self, classes: int, *, average: Average | None = "macro", ignore_index: int = IGNORED_CLASS
    ) -> None:
        self._classes = _require_classes(type(self).__name__, classes)
        if average not in ("macro", "micro", "weighted", None):
            raise TaskError(
                f"{type(self).__name__} averages 'macro', 'micro' or 'weighted', or gives each class its own number "
                f"with None; got {average!r}"
            )
        self._average = average
        self._ignore_index = ignore_index

    @property
    def slots(self) -> int:
        """Three for each class."""
        return 3 * self._classes

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add logits [batch, classes, ...] with their classes [batch, ...]."""
        predicted, kept, true = _predictions(self, self._classes, self._ignore_index, outputs, targets)
        hits = kept & (predicted == true)
        where = torch.cat([true, predicted + self._classes, true + 2 * self._classes])
        sums.index_put_((where,), torch.cat([hits, kept, kept]).double(), accumulate=True)

    def read(self, sums: Sums) -> MetricReading:
        """Return one number, or one for each class."""
        hits, predicted, true = sums.reshape(3, self._classes)
        numerators, denominators = self._ratio(hits, predicted, true)
        if self._average == "micro":
            return _reading(numerators.sum(), denominators.sum())
        # As in scikit-learn, a division by zero counts as 0.
        scores = np.divide(numerators, denominators, out=np.zeros_like(numerators), where=denominators > 0)
        if self._average == "weighted":
            return _reading(float(scores @ true), true.sum())
        if self._average == "macro":
            seen = (predicted + true) > 0
            return _reading(scores[seen].sum(), seen.sum())
        return MetricReading(
            values={
                str(number): MetricTotals(total=float(top), count=float(bottom))
                for number, (top, bottom) in enumerate(zip(numerators, denominators, strict=True))
            }
        )

    def _ratio(self, hits: Floats, predicted: Floats, true: Floats) -> tuple[Floats, Floats]:
        raise NotImplementedError


class Precision(_ByClass):
    """Share of the samples predicted as a class that are of it; a ratio from 0 to 1.

    Args:
        classes: Number of classes.
        average: `macro` weighs the classes that occur equally, `weighted` by their true samples, `micro` pools
            the counts; None gives each class its own number, named `<metric>_<class>`.
        ignore_index: Target that is not counted.
    """

    def _ratio(self, hits: Floats, predicted: Floats, true: Floats) -> tuple[Floats, Floats]:  # noqa: ARG002
        return hits, predicted


class Recall(_ByClass):
    """Share of the samples of a class that are predicted as it; a ratio from 0 to 1. Arguments as for Precision."""

    def _ratio(self, hits: Floats, predicted: Floats, true: Floats) -> tuple[Floats, Floats]:  # noqa: ARG002
        return hits, true


class F1(_ByClass):
    """Harmonic mean of precision and recall; a ratio from 0 to 1. Arguments as for Precision."""

    def _ratio(self, hits: Floats, predicted: Floats, true: Floats) -> tuple[Floats, Floats]:
        return 2 * hits, predicted + true


def _reading(total: float, count: float) -> MetricReading:
    return MetricReading(values={"": MetricTotals(total=float(total), count=float(count))})


def _require_classes(name: str, classes: int) -> int:
    if classes < 2:
        raise TaskError(f"{name} needs the number of classes, at least 2; got {classes}")
    return classes


def _predictions(
    metric: object, classes: int, ignore_index: int, outputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return predicted classes, which targets count, and true classes, flat; a target that does not count is 0."""
    name = type(metric).__name__
    if outputs.dim() < 2 or outputs.shape[1] != classes:
        raise TaskError(
            f"{name}(classes={classes}) takes {classes} logits in dimension 1, got outputs of shape "
            f"{tuple(outputs.shape)}; give it the number of classes that the model has"
        )
    predicted = outputs.argmax(dim=1)
    require_same_shape(f"{name}, which takes the highest of the logits of dimension 1,", predicted, targets)
    kept = targets != ignore_index
    true = torch.where(kept, targets, 0)
    return predicted.flatten(), kept.flatten(), true.flatten()
