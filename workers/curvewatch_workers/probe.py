"""Tries a model on the smallest share that it will meet, before the first epoch."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from curvewatch_workers.batches import BatchPlan
from curvewatch_workers.data import Batch
from curvewatch_workers.errors import TaskError
from curvewatch_workers.feeds import MapTrainFeed
from curvewatch_workers.forward import Forward
from curvewatch_workers.model import as_in_training

_SURE = 2
"""Samples that every model takes that takes any."""


def require_smallest_share(
    model: nn.Module, forward: Forward, feed: MapTrainFeed, world_sizes: Collection[int]
) -> None:
    """Check that the model can be trained on the smallest share of an epoch.

    Args:
        model: The model, placed but unwrapped: nothing here is a collective.
        forward: Runs a batch.
        feed: Gives the first samples.
        world_sizes: Every number of ranks that this run may have.

    Raises:
        TaskError: It cannot; with a global batch size that works.
    """
    plan = feed.plan(feed.expected(1).samples)
    small = {size: ranks for ranks in sorted(world_sizes) for size in plan.share_sizes(ranks) if size < _SURE}
    if not small:
        return
    try:
        batches = feed.trials(_SURE)
    except Exception:  # noqa: BLE001 - the user's dataset; the first step shows it with its place
        return
    troubles = {batch.samples: _trouble(model, forward, batch) for batch in batches}
    works = next((rows for rows in reversed(troubles) if troubles[rows] is not None), -1) + 1
    failing = next((size for size in sorted(small) if troubles.get(size) is not None), None)
    # Where the largest fails too, the first step will show how, with the user's own traceback.
    if failing is not None and works in troubles:
        trouble = troubles[failing]
        raise TaskError(_message(trouble, failing, works, plan, small[failing])) from trouble


def _trouble(model: nn.Module, forward: Forward, batch: Batch) -> Exception | None:
    """Return what a train step raises; leaves buffers, gradients, modes and random numbers as they were."""
    # Themselves, not their names: a model may make others on its way.
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [batch.targets.device] if batch.targets.device.type == "cuda" else []
    try:
        with as_in_training(model), torch.random.fork_rng(devices):
            outputs = forward.outputs(model, batch)
            torch.autograd.backward(forward.loss(outputs, batch).sums.sum())
    except Exception as error:  # noqa: BLE001 - whatever the user's model raises
        return error
    finally:
        model.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)
    return None


def _message(trouble: Exception | None, failing: int, works: int, plan: BatchPlan, world_size: int) -> str:
    parts = world_size * plan.micro_batches
    size = _size_that_works(plan, works * parts)
    what = f"{failing} sample{'s' if failing != 1 else ''}"
    remedy = (
        f"training.global_batch_size {size} leaves each worker {works} or more"
        if size is not None
        else f"{plan.samples} samples are too few for {parts} workers or micro-batches: take fewer"
    )
    return (
        f"the model cannot be trained on {what}, which is what some worker gets of a global batch: "
        f"{plan.samples} samples in global batches of {plan.global_batch_size} over {world_size} workers "
        f"and {plan.micro_batches} micro-batches ({type(trouble).__name__}: {trouble}); "
        f"{remedy}, or let the model take such a batch "
        "(x.flatten(1) for x.view(len(x), -1), GroupNorm for BatchNorm)"
    )


def _size_that_works(plan: BatchPlan, least: int) -> int | None:
    """Return the global batch size nearest to the plan's whose last step has at least so many samples."""

    def works(size: int) -> bool:
        return size >= least and (plan.samples % size or size) >= least

    asked = plan.global_batch_size
    for distance in range(max(asked, plan.samples)):
        for size in (asked - distance, asked + distance):
            if 1 <= size <= plan.samples and works(size):
                return size
    return None
