"""The user's model, made ready for the device, the ranks and the options of the job."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvewatch_workers.contract import TrainingSpec
from curvewatch_workers.errors import TaskError
from curvewatch_workers.group import Group

_Call = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """One model in the forms in which an epoch needs it; all share the parameters."""

    module: nn.Module
    """Itself: what checkpoints hold."""
    wrapped: nn.Module
    """With gradients that are averaged over the ranks."""
    train: _Call
    """What a train step calls."""
    validate: _Call
    """What the validation pass calls: unwrapped, because a DDP forward is a collective and shards are uneven."""
    resting: Sequence[nn.Module]
    """Layers that stay in eval mode, see `resting_layers`."""

    def begin_training(self) -> None:
        """Put the model in train mode, but for the layers that rest."""
        to_train_mode(self.wrapped, self.resting)


def place(model: nn.Module, training: TrainingSpec, group: Group) -> nn.Module:
    """Return the model on the rank's device, with the job's options; parameters stay the optimizer's.

    Raises:
        TaskError: `sync_batchnorm` is asked for on CPUs.
    """
    if training.sync_batchnorm:
        model = _synchronised(model, group)
    if training.tf32 and group.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    if training.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(group.device)


def wrap(model: nn.Module, training: TrainingSpec, group: Group) -> PreparedModel:
    """Return the forms of a model that was placed, in the modes that the task gave its layers. A collective call."""
    resting = list(resting_layers(model).values())
    wrapped = group.wrap(model, find_unused_parameters=training.find_unused_parameters)
    if not training.compile:
        return PreparedModel(module=model, wrapped=wrapped, train=wrapped, validate=model, resting=resting)
    compiled = torch.compile(wrapped)
    validate = compiled if wrapped is model else torch.compile(model)
    return PreparedModel(module=model, wrapped=wrapped, train=compiled, validate=validate, resting=resting)


def share_buffers(model: nn.Module, group: Group) -> None:
    """Give every rank rank 0's buffers: BatchNorm's statistics differ by rank. A collective call."""
    _share(model.buffers(), group)


@torch.no_grad()
def share_weights(model: nn.Module, group: Group) -> None:
    """Give every rank rank 0's parameters and buffers. A collective call."""
    _share((*model.parameters(), *model.buffers()), group)


def _share(tensors: Iterable[Tensor], group: Group) -> None:
    if group.world_size == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for alike in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        group.broadcast(flat)
        parts = torch.split(flat, [one.numel() for one in alike])
        for tensor, part in zip(alike, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def resting_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return by name the layers that the task put in eval mode and that stay so: BatchNorm in a frozen backbone.

    There are none in a model that is in eval mode as a whole: libraries return pretrained models so.
    """
    return {name: layer for name, layer in model.named_modules() if model.training and not layer.training}


def to_train_mode(model: nn.Module, resting: Iterable[nn.Module]) -> None:
    """Put a model in train mode, but for some layers."""
    model.train()
    for layer in resting:
        # Of itself alone: each layer below it has its own word.
        layer.training = False


@contextlib.contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """Put a model in train mode, but for the layers that rest; afterwards each layer has its mode again."""
    modes = [(layer, layer.training) for layer in model.modules()]
    to_train_mode(model, resting_layers(model).values())
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def batch_statistics(model: nn.Module) -> list[str]:
    """Return the names of layers whose statistics are those of one rank's share."""
    # A model may keep some in eval mode by a `train` of its own.
    with as_in_training(model):
        return [
            name
            for name, layer in model.named_modules()
            if _takes_statistics(layer, rests=not layer.training)
        ]


def remarks(model: nn.Module, world_size: int) -> Iterator[tuple[str, str]]:
    """Yield what a user may not know of a model in its run: the reason of an event, and its message."""
    resting, statistics = list(resting_layers(model)), batch_statistics(model)
    if resting:
        yield (
            "layers_in_eval_mode",
            f"{len(resting)} layers ({resting[0]}, ...) were in eval mode in the task and stay so in training, with "
            "neither dropout nor new statistics; if they shall train, call model.train() in the task's callable",
        )
    if statistics and world_size > 1:
        yield (
            "batch_statistics_per_rank",
            f"{len(statistics)} BatchNorm or InstanceNorm layers ({statistics[0]}, ...) take their statistics from "
            "each worker's share, and rank 0's are validated: the curve depends on the number of workers; set "
            "training.sync_batchnorm on GPUs, or use GroupNorm",
        )


def _takes_statistics(layer: nn.Module, *, rests: bool) -> bool:
    """Tell whether numbers of a batch go into a layer's outputs, in training or in validation."""
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return not isinstance(layer, nn.SyncBatchNorm) and not (rests and layer.track_running_stats)
    # InstanceNorm is made of the sample alone, but for running statistics, which validation takes.
    return (
        isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats and not rests
    )


def _synchronised(model: nn.Module, group: Group) -> nn.Module:
    if group.world_size == 1:
        return model
    if group.device.type != "cuda":
        raise TaskError(
            "training.sync_batchnorm is true, but torch's SyncBatchNorm works on GPUs only and this run trains on "
            f"{group.world_size} CPU workers; use GPUs, one worker, or GroupNorm"
        )
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted
