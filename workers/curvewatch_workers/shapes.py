"""What a model, a loss or a metric may give, and shapes that torch would stretch to each other without a word."""

from __future__ import annotations

from torch import Tensor
from torch.utils import _pytree as pytree

from curvewatch_workers.errors import TaskError


def require_unstretched(what: str, values: Tensor, outputs: object, targets: Tensor) -> None:
    """Refuse more values than there are outputs or targets: [batch, 1] minus [batch] is [batch, batch].

    Args:
        what: Calls in a message what gave the values.
        values: Given for a batch.
        outputs: The batch's, a tensor or a structure of tensors.
        targets: The batch's.

    Raises:
        TaskError: There are more.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    # Of an empty share, a sum over the batch is still one value.
    if values.dim() and values.numel() > max(tensor.numel() for tensor in (*leaves, targets)):
        shapes = " and ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise TaskError(
            f"{what} gave {values.numel()} values for outputs of shape {shapes} and targets of shape "
            f"{tuple(targets.shape)}, which torch stretched to each other; make the shapes equal"
        )


def require_tensor(what: str, values: object) -> None:
    """Refuse values that are no tensor.

    Args:
        what: Calls in a message what gave the values.
        values: Given for a batch.

    Raises:
        TaskError: They are something else.
    """
    if not isinstance(values, Tensor):
        raise TaskError(
            f"{what} must give a tensor, one value for each sample, got {type(values).__name__}; return the values "
            "themselves: no item(), tolist() or dict"
        )


def require_one_tensor(name: str, outputs: object) -> None:
    """Refuse outputs of several tensors.

    Args:
        name: Calls in a message what takes the outputs.
        outputs: What the model returned.

    Raises:
        TaskError: They are no tensor.
    """
    if not isinstance(outputs, Tensor):
        raise TaskError(
            f"{name} takes one tensor of outputs, and the model returned a {type(outputs).__name__}; give a function "
            "(outputs, targets) that takes the tensor out of it"
        )
