"""Metrics that are means of values of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from curvewatch_workers.contract import MetricTotals
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.protocol import (
    IGNORED_CLASS,
    MeanOfSamples,
    MetricReading,
    Sums,
    require_same_shape,
    single,
)


class Accuracy:
    """Share of samples (tokens, pixels) whose highest logit is the target's class; a ratio from 0 to 1.

    Args:
        ignore_index: Target that is not counted.
    """

    def __init__(self, *, ignore_index: int = IGNORED_CLASS) -> None:
        self._ignore_index = ignore_index

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compare logits [batch, classes, ...] with classes [batch, ...]."""
        predicted = outputs.argmax(dim=1)
        require_same_shape(
            "Accuracy, which takes the highest of the logits of dimension 1,", predicted, targets
        )
        return torch.where(targets == self._ignore_index, torch.nan, (predicted == targets).float())


class TopKAccuracy:
    """Share of samples whose target is among the `k` highest logits; a ratio from 0 to 1.

    Args:
        k: How many of the logits count.
        ignore_index: Target that is not counted.

    Raises:
        TaskError: `k` is below 1.
    """

    def __init__(self, k: int, *, ignore_index: int = IGNORED_CLASS) -> None:
        if k < 1:
            raise TaskError(f"TopKAccuracy takes the k highest logits, at least 1; got k={k}")
        self._k = k
        self._ignore_index = ignore_index

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Look for classes [batch, ...] among the highest of logits [batch, classes, ...]."""
        if outputs.dim() < 2 or self._k > outputs.shape[1]:
            raise TaskError(
                f"TopKAccuracy(k={self._k}) needs at least {self._k} logits in dimension 1, got outputs of shape "
                f"{tuple(outputs.shape)}; lower k"
            )
        highest = outputs.topk(self._k, dim=1).indices
        require_same_shape("TopKAccuracy", highest[:, 0], targets)
        found = (highest == targets.unsqueeze(1)).any(dim=1)
        return torch.where(targets == self._ignore_index, torch.nan, found.float())


class MeanAbsoluteError:
    """Mean absolute error, in the target's unit."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compare two tensors of the same shape [batch, ...]."""
        require_same_shape("MeanAbsoluteError", outputs, targets)
        return (outputs.double() - targets).abs()


class MeanSquaredError:
    """Mean squared error, in the square of the target's unit."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compare two tensors of the same shape [batch, ...]."""
        require_same_shape("MeanSquaredError", outputs, targets)
        return (outputs.double() - targets).square()


class _NegativeLogLikelihood:
    def __init__(self, ignore_index: int) -> None:
        self._ignore_index = ignore_index

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        require_same_shape("Perplexity", outputs.select(1, 0), targets)
        kept = targets != self._ignore_index
        likelihoods = outputs.float().log_softmax(dim=1)
        chosen = likelihoods.gather(1, torch.where(kept, targets, 0).unsqueeze(1)).squeeze(1)
        return torch.where(kept, -chosen, torch.nan)


class Perplexity(MeanOfSamples):
    """Exponential of the mean negative log-likelihood of the targets, each token weighing the same.

    Args:
        ignore_index: Target that is not counted.
    """

    def __init__(self, *, ignore_index: int = IGNORED_CLASS) -> None:
        super().__init__(_NegativeLogLikelihood(ignore_index))

    def read(self, sums: Sums) -> MetricReading:
        """Return the perplexity."""
        return single(MetricTotals(total=float(sums[0]), count=int(sums[1]), form="exponential"))
