"""The user's loss as a weighted sum over samples and the weight that it is divided by.

The loss that is reported and the loss that is optimised are both the sum of the weighted losses over the sum of the
weights, over all ranks: the mean that torch computes over one batch, taken over the global one.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from curvewatch_workers.errors import TaskError
from curvewatch_workers.shapes import require_one_tensor, require_tensor, require_unstretched

_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.BCELoss)
_BY_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss)
_DEFAULT_IGNORED = -100


class LossFunction(Protocol):
    """A loss before its division."""

    def __call__(self, outputs: Tensor, targets: Tensor, /) -> Tensor | tuple[Tensor, Tensor]:
        """Return the losses of a batch.

        One value, or one row of values, for each sample, shape [batch, ...], each weighing the same; or a pair
        (weighted losses, weights) of two such tensors; or a pair (sum, weight) of two scalars.
        """


class BatchLoss(NamedTuple):
    """The loss of a batch before its division."""

    sums: Tensor
    """Weighted loss of each sample, shape [batch], with its gradient; or of the whole batch, shape []."""
    weights: Tensor | None
    """Their weights, the same shape; None where each sample weighs 1, which needs no look at the data. A negative one
    is written as minus infinity, which no other weight can hide in a sum: `require_weights` finds it there."""


class Loss:
    """What the user returned as a loss.

    Args:
        loss: A loss of torch.nn, or a `LossFunction`.
        ignores_targets: Look for `ignore_index` in targets of one class a sample too; targets of more are
            always looked through.

    Raises:
        TaskError: It cannot be taken apart into samples.
    """

    def __init__(self, loss: object, *, ignores_targets: bool = False) -> None:
        self._loss, self._sum_rows = _unreduced(loss)
        self._call = _directly(self._loss)
        self.by_sample = _is_by_sample(self._loss) and self._call is not self._loss
        """Whether a sample's loss is known to be the same whichever others are in the batch."""
        # One that extends them may take its outputs as it likes.
        self._elementwise = type(loss) in _ELEMENTWISE
        self._of_torch = self._elementwise or type(loss) in _BY_CLASS
        self._by_class = isinstance(loss, _BY_CLASS)
        self._class_weights: Tensor | None = getattr(loss, "weight", None) if self._by_class else None
        if self._class_weights is not None and bool((self._class_weights < 0).any()):
            raise TaskError(
                f"class weights of {type(loss).__name__} are negative, but a weighted mean needs weights of 0 or more; "
                f"got {self._class_weights.tolist()}"
            )
        self._ignore_index = ignored_target(loss)
        explicit = self._by_class and self._ignore_index != _DEFAULT_IGNORED
        self._weighted = ignores_targets or explicit or self._class_weights is not None

    def to(self, device: torch.device) -> None:
        """Move what the loss holds, such as class weights, to a device."""
        if isinstance(self._loss, nn.Module):
            self._loss.to(device)
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(device)

    def __call__(self, outputs: Tensor, targets: Tensor, sample_weights: Tensor | None = None) -> BatchLoss:
        """Return the loss of a batch.

        Args:
            outputs: What the model returned.
            targets: What it should have, shape [batch, ...].
            sample_weights: Weight of each sample, shape [batch]; None weighs them equally.

        Raises:
            TaskError: The loss does not give what a `LossFunction` must.
        """
        if self._of_torch:
            require_one_tensor(type(self._loss).__name__, outputs)
        if self._elementwise and outputs.shape != targets.shape:
            raise TaskError(
                f"{type(self._loss).__name__} compares outputs of shape {tuple(outputs.shape)} with targets of "
                f"shape {tuple(targets.shape)}, which torch would stretch to each other; make the shapes equal"
            )
        if isinstance(outputs, Tensor) and outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()
        made = self.of(self._call(outputs, targets), outputs, targets)
        return made if sample_weights is None else _weigh(made, sample_weights)

    def of(self, returned: Tensor | tuple[Tensor, Tensor], outputs: Tensor, targets: Tensor) -> BatchLoss:
        """Return the loss of a batch, given what the function returned for it.

        Raises:
            TaskError: That is not what a `LossFunction` must return.
        """
        if isinstance(returned, tuple):
            return _pair(returned, outputs, targets)
        require_tensor("the loss", returned)
        if returned.dim() == 1 and returned.size(0) == targets.size(0):
            if not self._by_class or (targets.dim() == 1 and not self._weighted):
                return BatchLoss(returned, None)
        else:
            _require_rows(returned, outputs, targets)
        return self._of_rows(returned, targets)

    def overlooked(self, targets: Tensor) -> Tensor | None:
        """Count the targets that the loss left out while each sample was to weigh 1, as a scalar that is not read.

        None when there can be none.
        """
        if not self._by_class or self._weighted or targets.dim() != 1 or targets.is_floating_point():
            return None
        return (targets.long() == self._ignore_index).sum()

    def _of_rows(self, losses: Tensor, targets: Tensor) -> BatchLoss:
        # Losses of classes given as probabilities leave none out, and torch divides them by the batch.
        if not self._by_class or targets.is_floating_point():
            return BatchLoss(_rows(losses).sum(dim=1) if self._sum_rows else _rows(losses).mean(dim=1), None)
        # Of small types, an index would be a mask, and -100 is another number.
        targets = targets.long()
        kept = targets != self._ignore_index
        if self._class_weights is None:
            weights = kept.to(losses.dtype)
        else:
            weights = torch.where(kept, self._class_weights[torch.where(kept, targets, 0)], 0.0)
        return BatchLoss(_rows(losses).sum(dim=1), _rows(weights).sum(dim=1))


def ignored_target(loss: object) -> int:
    """Return the target that a loss leaves out, torch's default where it names none."""
    ignored = getattr(loss, "ignore_index", None)
    return ignored if isinstance(ignored, int) else _DEFAULT_IGNORED


def _unreduced(loss: object) -> tuple[LossFunction, bool]:
    """Return the loss without its reduction over the batch, and whether a sample's values add up."""
    if loss is None:
        raise TaskError("TrainingTask.loss is None; give one, such as nn.CrossEntropyLoss()")
    if isinstance(loss, type):
        raise TaskError(
            f"TrainingTask.loss is the class {loss.__name__}, not a loss; write {loss.__name__}(...)"
        )
    if not callable(loss):
        raise TaskError(
            f"TrainingTask.loss must be callable, got {type(loss).__name__}; of several losses give a function "
            "(outputs, targets) that adds them up, one value for each sample"
        )
    if isinstance(loss, nn.CTCLoss):
        raise TaskError(
            "CTCLoss needs lengths beside outputs and targets; wrap it in a function (outputs, targets) that "
            "returns one loss for each sample, or (sum, weight)"
        )
    reduction = getattr(loss, "reduction", None)
    if reduction is None:
        return loss, False
    if reduction not in ("mean", "none", "sum", "batchmean"):
        raise TaskError(
            f"{type(loss).__name__} has reduction={reduction!r}; use 'mean', 'sum' or 'none', or wrap it in a "
            "function that returns one loss for each sample"
        )
    unreduced = copy.copy(loss)
    unreduced.reduction = "none"  # type: ignore[attr-defined]
    return unreduced, reduction in ("sum", "batchmean")


def _directly(loss: LossFunction) -> LossFunction:
    """Return what to call for a loss: of one of torch's own as it comes its forward, all that a call would do."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    plain = (
        type(loss).__module__ == "torch.nn.modules.loss"
        and "forward" not in vars(loss)
        and not any(getattr(loss, name) for name in hooks)
    )
    return cast("nn.Module", loss).forward if plain else loss


def _is_by_sample(loss: LossFunction) -> bool:
    # Tensors of the element-wise ones may weigh a sample by its place in the batch.
    elementwise = isinstance(loss, _ELEMENTWISE) and next(loss.buffers(), None) is None
    return (elementwise or isinstance(loss, _BY_CLASS)) and type(loss) in (*_ELEMENTWISE, *_BY_CLASS)


def _rows(values: Tensor) -> Tensor:
    """Return the values of each sample as a row: [batch, ...] to [batch, values]."""
    return values.flatten(start_dim=1) if values.dim() > 1 else values.unsqueeze(1)


def _pair(returned: tuple[Tensor, ...], outputs: object, targets: Tensor) -> BatchLoss:
    """Check and take what a loss returned as (sums, weights)."""
    shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in returned]
    if (
        len(returned) != 2
        or shapes[0] != shapes[1]
        or (returned[0].dim() and len(returned[0]) != len(targets))
    ):
        raise TaskError(
            f"a loss that returns a tuple must return (sum, weight), as scalars or both of shape [batch, ...]; "
            f"for a batch of {len(targets)} it returned {shapes}"
        )
    require_unstretched("the loss", returned[0], outputs, targets)
    sums, weights = returned[0], returned[1].detach()
    if sums.dim() == 0:
        return BatchLoss(sums, _marked(weights, weights))
    return BatchLoss(_rows(sums).sum(dim=1), _rows(_marked(weights, weights)).sum(dim=1))


def _require_rows(losses: Tensor, outputs: object, targets: Tensor) -> None:
    if losses.dim() == 0 or losses.size(0) != targets.size(0):
        raise TaskError(
            f"the loss must give one value for each sample: for a batch of {len(targets)} it gave shape "
            f"{tuple(losses.shape)}; use a loss of torch.nn, return the losses of the samples unreduced, or return "
            "(sum, weight)"
        )
    require_unstretched("the loss", losses, outputs, targets)


def _weigh(loss: BatchLoss, sample_weights: Tensor) -> BatchLoss:
    if sample_weights.shape != loss.sums.shape:
        raise TaskError(
            f"a batch's sample weights must have shape {tuple(loss.sums.shape)}, one for each sample whose loss is "
            f"known; got {tuple(sample_weights.shape)}"
        )
    sample_weights = sample_weights.to(loss.sums.dtype)
    weights = sample_weights if loss.weights is None else loss.weights * sample_weights
    return BatchLoss(loss.sums * sample_weights, _marked(weights, sample_weights))


def _marked(weights: Tensor, given: Tensor) -> Tensor:
    """Return weights that are minus infinity where what was given is negative."""
    if not weights.is_floating_point():
        weights = weights.double()
    return torch.where(given < 0, -math.inf, weights)


def require_weights(split: str, weight_sum: float) -> None:
    """Check at the end of an epoch that no weight was negative.

    Args:
        split: The split.
        weight_sum: Its sum of weights over all ranks.

    Raises:
        TaskError: One was; on every rank.
    """
    if weight_sum < 0:
        raise TaskError(
            f"weights of the {split} split are negative: a weighted mean needs weights of 0 or more; put the sign into "
            "the loss, or leave such samples out"
        )
