"""The ranks of a run behind one small protocol; nothing else calls ``torch.distributed``."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import time
from contextlib import AbstractContextManager
from typing import Protocol, cast

import torch
import torch.distributed as dist

# DistributedDataParallel imports this, and its functions' defaults keep the process group that they find. Imported
# before there is one, they keep none: else the group would outlive `leave`, and its threads, which may release a
# tensor while the interpreter ends, would sometimes abort the process.
import torch.distributed.nn
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from curvewatch_workers.errors import TaskError

_ANSWER = dt.timedelta(seconds=0.2)
"""How long rank 0 waits for a rank that it has answered before it looks for another in its place."""


class Group(Protocol):
    """The ranks that train together. Every rank makes the same calls in the same order, always."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def device(self) -> torch.device:
        """Device of this rank's model and of every tensor that is reduced."""

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """Replace a tensor, in place, by its sum over the ranks. The same shape on each rank."""

    def broadcast(self, tensor: Tensor) -> None:
        """Replace a tensor, in place, by that of rank 0."""

    def first_problem(self, problem: str | None) -> str | None:
        """Return the problem of the lowest rank that has one, the same on each rank; None without any."""

    def wrap(self, model: nn.Module, *, find_unused_parameters: bool) -> nn.Module:
        """Return the model whose backward averages the gradients over the ranks.

        Args:
            model: The model, on this rank's device.
            find_unused_parameters: Look at each step for parameters that the loss does not depend on.
        """


class SoloGroup:
    """One process alone: no collective at all."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """Leave the tensor: the sum over one rank is itself."""

    def broadcast(self, tensor: Tensor) -> None:
        """Leave the tensor: it is rank 0's."""

    def first_problem(self, problem: str | None) -> str | None:
        """Return the problem."""
        return problem

    def wrap(self, model: nn.Module, *, find_unused_parameters: bool) -> nn.Module:  # noqa: ARG002 - the protocol's
        """Return the model as it is."""
        return model


class TorchGroup:
    """The default process group of ``torch.distributed``, which must be initialised."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """Sum a tensor over the ranks, in place."""
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)

    def broadcast(self, tensor: Tensor) -> None:
        """Take rank 0's tensor, in place."""
        dist.broadcast(tensor, src=0)

    def first_problem(self, problem: str | None) -> str | None:
        """Return the problem of the lowest rank that has one."""
        problems: list[str | None] = [None] * self.world_size
        dist.all_gather_object(problems, problem)
        return next((one for one in problems if one is not None), None)

    def wrap(self, model: nn.Module, *, find_unused_parameters: bool) -> nn.Module:
        """Wrap the model in DistributedDataParallel."""
        device_ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=device_ids, find_unused_parameters=find_unused_parameters
        )


def without_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which backward adds up gradients of a wrapped model without averaging them."""
    if isinstance(model, DistributedDataParallel):
        return cast("AbstractContextManager[None]", model.no_sync())
    return contextlib.nullcontext()


def group_of_process(device: torch.device) -> Group:
    """Return the group of this process: the initialised process group, or itself alone.

    A process group of one rank is a group alone too: nothing needs to travel.

    Raises:
        TaskError: A launcher started this process as one of several, and it joined no process group.
    """
    if dist.is_available() and dist.is_initialized():
        return TorchGroup(device) if dist.get_world_size() > 1 else SoloGroup(device)
    processes = _launched_processes()
    if processes > 1:
        raise TaskError(
            f"this process is one of several (WORLD_SIZE is {processes}, as torchrun sets it), but it has joined no "
            "process group and would take its own share for the whole; call torch.distributed.init_process_group() "
            "first, or unset WORLD_SIZE if the process is alone"
        )
    return SoloGroup(device)


def _launched_processes() -> int:
    """Return how many processes a launcher says that it has started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_torchrun(*, gpu: bool, timeout: dt.timedelta = dt.timedelta(minutes=30)) -> Group:
    """Join the process group that ``torchrun`` describes in the environment; alone without torchrun.

    Args:
        gpu: Use the GPU of this local rank, with NCCL; else the CPU, with gloo.
        timeout: Longest wait in one collective.
    """
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if _launched_processes() > 1:
        store, rank, world_size = next(iter(rendezvous("env://", timeout=timeout)))
        own = own_part(store, rank, world_size, timeout)
        dist.init_process_group(
            "nccl" if gpu else "gloo", store=own, rank=rank, world_size=world_size, timeout=timeout
        )
    return group_of_process(device)


def own_part(store: Store, rank: int, world_size: int, timeout: dt.timedelta) -> Store:
    """Return a part of a store that these processes share, and no earlier ones have used. A collective call.

    torchrun's store may live on when it restarts the group, with the addresses of ranks that have gone; and the agents
    of several nodes may count its restarts differently, so that their count does not tell the groups apart.

    Raises:
        DistStoreError: A rank did not come within the timeout, which is the store's own as well.
    """
    me = secrets.token_hex(8)
    if rank != 0:
        store.set(f"curvewatch/here/{rank}", me)
        part = store.get(f"curvewatch/part-of/{me}").decode()
        store.set(f"{part}/taken/{rank}", "")
        return PrefixStore(part, store)
    part = f"curvewatch/{me}"
    missing = set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"ranks {sorted(missing)} did not come within {timeout}")
        for other in sorted(missing):
            # It may still be the name of a rank that has gone; then that of the new one comes.
            name = store.get(f"curvewatch/here/{other}").decode()
            store.set(f"curvewatch/part-of/{name}", part)
            with contextlib.suppress(dist.DistStoreError):
                store.wait([f"{part}/taken/{other}"], _ANSWER)
                missing.remove(other)
    return PrefixStore(part, store)


def is_lost_peer(error: BaseException) -> bool:
    """Tell whether an error is that of a collective: another rank, or the network to it, has gone."""
    # Gloo's errors have no type of their own; those of NCCL and of the store have.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )


def leave() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
