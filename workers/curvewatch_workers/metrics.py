"""Metrics as totals and counts: what is summed over samples, never a mean of means."""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from curvewatch_workers.errors import TaskError

_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.BCELoss)


class SampleLossFunction(Protocol):
    """A loss before its reduction: one value, or one row of values, for each sample."""

    def __call__(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        """Return the losses, shape [batch, ...]."""


class Metric(Protocol):
    """A mean over samples. The engine sums it in float64 and divides once, at the end of the epoch."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return one value for each sample of a batch, shape [batch], without reading any of them."""


class Accuracy:
    """Share of samples whose highest logit is the target's class; a ratio from 0 to 1."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compare logits [batch, classes, ...] with classes [batch, ...]."""
        predicted = outputs.argmax(dim=1)
        _require_same_shape(
            "Accuracy, which takes the highest of the logits of dimension 1,", predicted, targets
        )
        return (predicted == targets).float()


class MeanAbsoluteError:
    """Mean absolute error, in the target's unit."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compare two tensors of the same shape [batch, ...]."""
        _require_same_shape("MeanAbsoluteError", outputs, targets)
        return _mean_of_rows((outputs.double() - targets).abs())


class MeanSquaredError:
    """Mean squared error, in the square of the target's unit."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compare two tensors of the same shape [batch, ...]."""
        _require_same_shape("MeanSquaredError", outputs, targets)
        return _mean_of_rows((outputs.double() - targets).square())


def _require_same_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise TaskError(
            f"{name} compares outputs of shape {tuple(outputs.shape)} with targets of shape "
            f"{tuple(targets.shape)}; make the shapes equal"
        )


def _mean_of_rows(values: Tensor) -> Tensor:
    """Average the values of each sample: [batch, ...] to [batch]."""
    return values.flatten(start_dim=1).mean(dim=1) if values.dim() > 1 else values


class Totals:
    """What one rank has summed in one pass: float64, on the rank's device, never read before the epoch ends."""

    LOSS_SUM, LOSS_SQUARE_SUM, FINITE, NONFINITE, IGNORED = range(5)
    FIXED = 5

    def __init__(self, metrics: tuple[Metric, ...], device: torch.device) -> None:
        self._metrics = metrics
        self.values = torch.zeros(self.width(len(metrics)), dtype=torch.float64, device=device)

    @classmethod
    def width(cls, metrics: int) -> int:
        """Return the number of slots for so many metrics: the fixed ones, then total and count of each."""
        return cls.FIXED + 2 * metrics

    @torch.no_grad()
    def update(self, losses: Tensor, ignored: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            losses: One loss for each sample, shape [batch].
            ignored: Number of targets that the loss left out, a scalar.
            outputs: What the model returned, shape [batch, ...].
            targets: What it should have, shape [batch, ...].
        """
        losses = losses.detach().double()
        squares = losses.square()
        # A loss whose square overflows has left the range of every sum that we keep.
        finite = squares.isfinite()
        kept = torch.where(finite, losses, 0.0)
        sums = [kept.sum(), torch.where(finite, squares, 0.0).sum(), finite.sum(), (~finite).sum(), ignored]
        for metric in self._metrics:
            values = metric(outputs, targets)
            if values.dim() == 0 or len(values) != len(targets):
                raise TaskError(
                    f"metric {type(metric).__name__} must give one value for each sample: for a batch of "
                    f"{len(targets)} it gave shape {tuple(values.shape)}; return the values before their mean"
                )
            values = _mean_of_rows(values.double())
            sound = values.isfinite()
            sums += [torch.where(sound, values, 0.0).sum(), sound.sum()]
        self.values += torch.stack([one.double() for one in sums])


class SampleLoss:
    """A loss that gives one value for each sample, made from what the user returned."""

    def __init__(self, loss: object) -> None:
        self._loss = per_sample(loss)
        self._ignore_index: int | None = getattr(loss, "ignore_index", None)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses, shape [batch].

        Raises:
            TaskError: The loss does not give one value, or one row of values, for each sample.
        """
        if isinstance(self._loss, _ELEMENTWISE) and outputs.shape != targets.shape:
            raise TaskError(
                f"{type(self._loss).__name__} compares outputs of shape {tuple(outputs.shape)} with targets of "
                f"shape {tuple(targets.shape)}, which torch would stretch to each other; make the shapes equal"
            )
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()
        losses = self._loss(outputs, targets)
        if losses.dim() == 0 or len(losses) != len(targets):
            raise TaskError(
                f"the loss must give one value for each sample: for a batch of {len(targets)} it gave shape "
                f"{tuple(losses.shape)}; use a loss of torch.nn, or return the losses of the samples unreduced"
            )
        if losses.numel() > max(outputs.numel(), targets.numel()):
            raise TaskError(
                f"the loss gave {losses.numel()} values for outputs of shape {tuple(outputs.shape)} and targets of "
                f"shape {tuple(targets.shape)}, which torch stretched to each other; make the shapes equal"
            )
        # The values of a sample (pixels, outputs) weigh the same, so the sample's loss is their mean.
        return _mean_of_rows(losses)

    def ignored(self, targets: Tensor) -> Tensor:
        """Count the targets that the loss leaves out (`ignore_index`), as a tensor that is not read."""
        if self._ignore_index is None or targets.is_floating_point():
            return torch.zeros((), device=targets.device)
        return (targets == self._ignore_index).sum()


def per_sample(loss: object) -> SampleLossFunction:
    """Return the loss without its reduction over the batch.

    Raises:
        TaskError: The loss cannot be taken apart into samples of equal weight.
    """
    if not callable(loss):
        raise TaskError(f"TrainingTask.loss must be callable, got {type(loss).__name__}")
    reduction = getattr(loss, "reduction", None)
    if reduction is None:
        return loss
    if getattr(loss, "weight", None) is not None or getattr(loss, "pos_weight", None) is not None:
        raise TaskError(
            f"{type(loss).__name__} has class weights, whose mean is no mean over samples; "
            "leave `weight` and `pos_weight` out"
        )
    if reduction not in ("mean", "none"):
        raise TaskError(f"{type(loss).__name__} has reduction={reduction!r}; use 'mean' or 'none'")
    unreduced = copy.copy(loss)
    unreduced.reduction = "none"  # type: ignore[attr-defined]
    return unreduced
