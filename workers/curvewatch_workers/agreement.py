"""What each rank builds for itself and all must have in common: samples, what a sampler draws, a loss's weights."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curvewatch_workers.batches import Indices
from curvewatch_workers.data import ShareLoader
from curvewatch_workers.errors import TaskError
from curvewatch_workers.group import Group
from curvewatch_workers.seeds import seeded
from curvewatch_workers.sources import Source

_SAMPLES = 8
"""Of each split: a look at a sample may cost as much as an image."""
_TOLERANCE = 1e-4
"""Relative: processors of two kinds may round floating-point targets differently."""

WEIGHTS_AT_TIMES = (
    "the loss gives weights with some batches and none with others, and the workers would wait for each other for "
    "ever: let a function always return (sum, weight), or never; let all samples have a weight, or none; beside class "
    "weights, let targets be all classes or all probabilities"
)


class _Targets(NamedTuple):
    means: Tensor
    """Mean of each sample's targets, float64 [samples]."""
    rounding: Tensor
    """How far from them another processor's may be, float64 [samples]."""


def require_same_targets(group: Group, sources: Sequence[Source], *, seed: int) -> None:
    """Check on a few samples of each split that every rank has the same in the same order. A collective call.

    Targets alone are compared: inputs may be augmented. Those that are not the same at a second look under the same
    seed, that cannot be read on some rank, or that come from a stream, are not compared.

    Args:
        group: The ranks.
        sources: The splits, of the same sizes on each rank.
        seed: What random numbers in the looks start from.

    Raises:
        TaskError: On every rank, when targets differ.
    """
    if group.world_size == 1:
        return
    looks = [_targets(source, seed) for source in sources]
    unknown = torch.tensor([look is None for look in looks], dtype=torch.float64, device=group.device)
    group.all_reduce_sum(unknown)
    problems = (
        _other_targets(group, source, look)
        for source, look, ranks in zip(sources, looks, unknown.tolist(), strict=True)
        if look is not None and not ranks
    )
    _raise_first(group, problems)


def require_same_draws(group: Group, epoch: int, drawn: Iterable[tuple[Source, Indices | None]]) -> None:
    """Check that the users' samplers draw the same on every rank; else some would take more steps than others.

    A collective call where there is a sampler.

    Args:
        group: The ranks.
        epoch: The epoch that was drawn.
        drawn: Each split, and what its sampler drew; None where the engine draws.

    Raises:
        TaskError: On every rank, when any two differ.
    """
    sampled = [(source, indices) for source, indices in drawn if indices is not None]
    if group.world_size > 1 and sampled:
        _raise_first(group, (_other_draw(group, epoch, source, indices) for source, indices in sampled))


def require_same_weighting(group: Group, *, weighted: bool) -> None:
    """Check that the loss gives weights on every rank or on none. A collective call.

    Args:
        group: The ranks.
        weighted: Whether it gave weights on this rank.

    Raises:
        TaskError: On every rank, when any two differ.
    """
    if group.world_size > 1:
        first = torch.tensor(weighted, dtype=torch.uint8, device=group.device)
        group.broadcast(first)
        _raise_first(group, [None if bool(first) is weighted else WEIGHTS_AT_TIMES])


def _raise_first(group: Group, problems: Iterable[str | None]) -> None:
    """Raise the first problem of the lowest rank that has one, on every rank."""
    # Each is a collective call: all are made, whatever they find.
    found = [problem for problem in list(problems) if problem is not None]
    told = group.first_problem(found[0] if found else None)
    if told is not None:
        raise TaskError(told)


def _targets(source: Source, seed: int) -> _Targets | None:
    if source.streams:
        return None
    indices = _spread(source.size)
    try:
        loader = ShareLoader(source.for_a_look(), torch.device("cpu"))
        looks = [_look(loader, indices, seed) for _ in range(2)]
    except Exception:  # noqa: BLE001 - the user's dataset; the first step shows it with its place
        return None
    return looks[0] if torch.equal(*(look.means.nan_to_num() for look in looks)) else None


def _look(loader: ShareLoader, indices: Indices, seed: int) -> _Targets:
    with seeded(seed):
        (batch,) = loader.batches(lambda: iter([indices]), seed=(seed,))
    values = batch.targets.double().reshape(batch.samples, -1)
    tolerance = _TOLERANCE if batch.targets.is_floating_point() else 0.0
    return _Targets(values.mean(dim=1), tolerance * values.abs().mean(dim=1))


def _spread(size: int) -> Indices:
    """Return indices at equal distances, from the first sample to the last."""
    return np.unique(np.linspace(0, size - 1, min(size, _SAMPLES)).astype(np.int64))


def _other_targets(group: Group, source: Source, look: _Targets) -> str | None:
    told = look.means.to(group.device, copy=True)
    group.broadcast(told)
    own, first = look.means, told.cpu()
    same = (own == first) | ((own - first).abs() <= look.rounding) | (own.isnan() & first.isnan())
    if bool(same.all()):
        return None
    at = int((~same).nonzero()[0])
    return (
        f"TrainingTask.{source.split} is not the same on each worker: the target (its mean) of sample "
        f"{_spread(source.size)[at]} is {float(own[at]):g} on rank {group.rank} and {float(first[at]):g} on rank 0; "
        "every worker must build the same dataset in the same order: seed what shuffles or splits it alike, sort the "
        "files that a glob finds, and leave the sharding to the engine"
    )


def _other_draw(group: Group, epoch: int, source: Source, indices: Indices) -> str | None:
    own = torch.tensor([len(indices), zlib.crc32(indices.tobytes())], dtype=torch.int64, device=group.device)
    first = own.clone()
    group.broadcast(first)
    if torch.equal(own, first):
        return None
    counts = int(own[0]), int(first[0])
    difference = (
        f"draws {counts[0]} samples in epoch {epoch} on rank {group.rank} and {counts[1]} on rank 0"
        if counts[0] != counts[1]
        else f"draws other samples in epoch {epoch} on rank {group.rank} than on rank 0"
    )
    return (
        f"the {type(source.sampler).__name__} of TrainingTask.{source.split} {difference}; it must draw the same on "
        "every worker, for the engine shares the samples out: let it know nothing of ranks, and draw from torch's "
        "global generator or follow set_epoch(epoch)"
    )
