"""Metrics of classification that count predictions by class."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curvewatch_workers.contract import LARGEST_MATRIX, MetricTotals
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.labels import ClassMetric
from curvewatch_workers.metrics.protocol import MetricReading, Sums

Average = Literal["macro", "micro", "weighted"]
Floats = npt.NDArray[np.float64]


class _Counts(ClassMetric):
    """Counts by class, of a known number of classes."""

    def __init__(self, classes: int, ignore_index: int | None) -> None:
        super().__init__(ignore_index)
        if classes < 2:
            raise TaskError(
                f"{type(self).__name__} needs the number of classes, at least 2; got {classes} (a model of one logit "
                "has 2 classes)"
            )
        self._classes = classes

    def _predictions(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return predicted classes, which targets count, and true classes, flat."""
        logits, true, kept = self._classified(outputs, targets)
        if logits.shape[1] != self._classes:
            raise TaskError(
                f"{type(self).__name__}(classes={self._classes}) takes {self._classes} logits in dimension 1, got "
                f"outputs of shape {tuple(outputs.shape)}; give it the number of classes that the model has"
            )
        return logits.argmax(dim=1).flatten(), kept.flatten(), true.flatten()


class ConfusionMatrix(_Counts):
    """How often each class was taken for each other; its number is the accuracy, the diagonal's share.

    Up to 100 classes the record of an epoch carries the matrix; with more it carries the number alone.

    Args:
        classes: Number of classes.
        ignore_index: Target that is not counted; None takes the loss's.
    """

    def __init__(self, classes: int, *, ignore_index: int | None = None) -> None:
        super().__init__(classes, ignore_index)

    @property
    def slots(self) -> int:
        """One for each pair of true and predicted class; a row more for labels that are no class."""
        return (self._classes + 1) * self._classes

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add logits [batch, classes, ...] with their classes [batch, ...]."""
        predicted, kept, true = self._predictions(outputs, targets)
        sums.index_put_((true * self._classes + predicted,), kept.double(), accumulate=True)

    def read(self, sums: Sums) -> MetricReading:
        """Return the accuracy and the matrix.

        Raises:
            TaskError: There were labels that are no class.
        """
        self._require_classes(sums[self._classes**2 :].sum(), self._classes)
        counts = sums[: self._classes**2].reshape(self._classes, self._classes)
        accuracy = MetricTotals(total=float(np.trace(counts)), count=int(counts.sum()))
        small = self._classes <= LARGEST_MATRIX
        matrix = tuple(tuple(int(cell) for cell in row) for row in counts) if small else None
        return MetricReading(values={"": accuracy}, matrix=matrix)


class _ByClass(_Counts):
    """Counts for each class: predicted rightly, predicted, true."""

    def __init__(
        self, classes: int, *, average: Average | None = "macro", ignore_index: int | None = None
    ) -> None:
        super().__init__(classes, ignore_index)
        if average not in ("macro", "micro", "weighted", None):
            raise TaskError(
                f"{type(self).__name__} averages 'macro', 'micro' or 'weighted', or gives each class its own number "
                f"with None; got {average!r}"
            )
        self._average = average

    @property
    def slots(self) -> int:
        """Three for each class, and the labels that are no class."""
        return 3 * self._classes + 1

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add logits [batch, classes, ...] with their classes [batch, ...]."""
        predicted, kept, true = self._predictions(outputs, targets)
        hits = kept & (predicted == true)
        # A label that is no class is no hit, and comes behind the true ones.
        where = torch.cat([true, predicted + self._classes, true + 2 * self._classes])
        sums.index_put_((where,), torch.cat([hits, kept, kept]).double(), accumulate=True)

    def read(self, sums: Sums) -> MetricReading:
        """Return one number, or one for each class.

        Raises:
            TaskError: There were labels that are no class.
        """
        self._require_classes(sums[-1], self._classes)
        hits, predicted, true = sums[:-1].reshape(3, self._classes)
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
        ignore_index: Target that is not counted; None takes the loss's.
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
