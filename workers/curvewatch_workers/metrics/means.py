"""Metrics that are means of values of samples."""

from __future__ import annotations

from torch import Tensor

from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.labels import ClassMean
from curvewatch_workers.metrics.protocol import MetricReading, Sums, require_same_shape, single


class Accuracy(ClassMean):
    """Share of samples (tokens, pixels) whose highest logit is the target's class; a ratio from 0 to 1.

    Args:
        ignore_index: Target that is not counted; None takes the loss's.
    """

    def __init__(self, *, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index)

    def _values(self, logits: Tensor, true: Tensor) -> Tensor:
        # The same as argmax, and quicker on a CPU.
        return logits.max(dim=1).indices == true


class TopKAccuracy(ClassMean):
    """Share of samples whose target is among the `k` highest logits; a ratio from 0 to 1.

    Args:
        k: How many of the logits count.
        ignore_index: Target that is not counted; None takes the loss's.

    Raises:
        TaskError: `k` is below 1.
    """

    def __init__(self, k: int, *, ignore_index: int | None = None) -> None:
        if k < 1:
            raise TaskError(f"TopKAccuracy takes the k highest logits, at least 1; got k={k}")
        super().__init__(ignore_index)
        self._k = k

    def _values(self, logits: Tensor, true: Tensor) -> Tensor:
        if self._k > logits.shape[1]:
            raise TaskError(
                f"TopKAccuracy(k={self._k}) needs at least {self._k} logits in dimension 1, got outputs of shape "
                f"{tuple(logits.shape)}; lower k"
            )
        return (logits.topk(self._k, dim=1).indices == true.unsqueeze(1)).any(dim=1)


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


class Perplexity(ClassMean):
    """Exponential of the mean negative log-likelihood of the targets, each token weighing the same.

    Args:
        ignore_index: Target that is not counted; None takes the loss's.
    """

    def __init__(self, *, ignore_index: int | None = None) -> None:
        super().__init__(ignore_index)

    def _values(self, logits: Tensor, true: Tensor) -> Tensor:
        index = true.clamp(max=logits.shape[1] - 1).unsqueeze(1)
        return -logits.float().log_softmax(dim=1).gather(1, index).squeeze(1)

    def read(self, sums: Sums) -> MetricReading:
        """Return the perplexity.

        Raises:
            TaskError: There were labels that are no class.
        """
        mean = super().read(sums).values[""]
        return single(mean.model_copy(update={"form": "exponential"}))
