"""The user's model, made ready for the device, the ranks and the options of the job."""

from __future__ import annotations

from collections.abc import Callable
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
    """Return the forms of a model that was placed. A collective call."""
    wrapped = group.wrap(model, find_unused_parameters=training.find_unused_parameters)
    if not training.compile:
        return PreparedModel(module=model, wrapped=wrapped, train=wrapped, validate=model)
    compiled = torch.compile(wrapped)
    validate = compiled if wrapped is model else torch.compile(model)
    return PreparedModel(module=model, wrapped=wrapped, train=compiled, validate=validate)


def share_buffers(model: nn.Module, group: Group) -> None:
    """Give every rank rank 0's buffers: BatchNorm's statistics differ by rank. A collective call."""
    if group.world_size == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for buffer in model.buffers():
        by_type.setdefault(buffer.dtype, []).append(buffer)
    for buffers in by_type.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        group.broadcast(flat)
        parts = torch.split(flat, [one.numel() for one in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))


def batch_statistics(model: nn.Module) -> list[str]:
    """Return the names of layers whose statistics are those of one rank's share."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and not isinstance(layer, nn.SyncBatchNorm)
        and layer.training
    ]


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
