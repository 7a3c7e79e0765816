"""What an attempt goes on from: the latest checkpoint that every rank can read, if it fits the task."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curvewatch_workers.checkpoint import Checkpoints, Snapshot
from curvewatch_workers.contract import JobSpec
from curvewatch_workers.errors import CheckpointError, DamagedCheckpointError
from curvewatch_workers.group import Group
from curvewatch_workers.task import TrainingTask


def read_latest(
    checkpoints: Checkpoints, group: Group, wanted: Callable[[Snapshot], bool] = lambda _snapshot: True
) -> tuple[Snapshot | None, tuple[str, ...]]:
    """Read the latest wanted checkpoint that every rank can read; every rank makes this call.

    Args:
        checkpoints: Where they are kept.
        group: The ranks.
        wanted: Tells, the same on every rank, whether one will do; every one does if none is given.

    Returns:
        The snapshot, None when there is no such checkpoint; and, for each later checkpoint that some rank cannot
        read, why, in one sentence.

    Raises:
        DamagedCheckpointError: On every rank, when there are checkpoints and none of them can be read.
        CheckpointError: The checkpoint has another format, or holds what cannot be loaded.
    """
    # Rank 0's list is everybody's: a shared file system may show another rank an older one.
    listed = group.first_problem(json.dumps(checkpoints.names()) if group.rank == 0 else None)
    damages: list[str] = []
    names = json.loads(listed or "[]")
    for name in names:
        snapshot, damage = _read(checkpoints, name)
        damage = group.first_problem(damage)
        if damage is not None:
            damages.append(damage)
        elif snapshot is not None and wanted(snapshot):
            return snapshot, tuple(damages)
    if damages and len(damages) == len(names):
        raise DamagedCheckpointError(
            f"none of {len(damages)} checkpoints can be read, of the latest: {damages[0]}; "
            "mend the storage, or submit the job anew"
        )
    return None, tuple(damages)


def restore(snapshot: Snapshot, task: TrainingTask, model: nn.Module, scaler: torch.amp.GradScaler) -> None:
    """Give model, optimizer, schedule, loss and gradient scaler the state of a snapshot.

    Raises:
        CheckpointError: It does not fit: the job was changed.
    """
    kind = type(task.optimizer).__name__
    if snapshot.optimizer_class not in (None, kind):
        # torch loads the state of one into another, and fails or goes astray in the first step.
        raise _misfit(snapshot, f"its optimizer is {snapshot.optimizer_class}, the task's is {kind}")
    try:
        model.load_state_dict(snapshot.model)
        task.optimizer.load_state_dict(snapshot.optimizer)
        if task.scheduler is not None and snapshot.scheduler is not None:
            task.scheduler.load_state_dict(snapshot.scheduler)
        if snapshot.scaler is not None:
            scaler.load_state_dict(snapshot.scaler)
        if isinstance(task.loss, nn.Module) and snapshot.loss is not None:
            task.loss.load_state_dict(snapshot.loss)
    except torch.OutOfMemoryError:
        raise  # of the machine, not of the job
    except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _misfit(snapshot, " ".join(str(error).split())) from error


def require_measured_before(snapshot: Snapshot, spec: JobSpec) -> None:
    """Check that the epochs so far have the numbers that the job decides by.

    Raises:
        CheckpointError: One lacks a number: the job decides by a new one.
    """
    stopping = spec.policy.early_stopping
    named = {"checkpoints.best.metric": spec.checkpoints.best.metric}
    if stopping is not None:
        named["policy.early_stopping.metric"] = stopping.metric
    for field, metric in named.items():
        for record in snapshot.records:
            if metric not in ("loss", *record.validation.metrics):
                raise _misfit(snapshot, f"{field} is {metric!r}, which epoch {record.epoch} did not measure")


def require_best_weights(snapshot: Snapshot, best_epoch: int) -> None:
    """Check that the weights which may be put back are those of the best epoch.

    Args:
        snapshot: Where the run goes on from.
        best_epoch: The best of its epochs by what the job asks for now; 0 when none is marked.

    Raises:
        CheckpointError: They are of another epoch, or were not kept: the job has asked for something else.
    """
    if snapshot.best_model_epoch not in (None, best_epoch):
        raise _misfit(
            snapshot,
            f"the policy would put back the weights of epoch {best_epoch}, which it does not have, for the policy was "
            "set otherwise; set restore_best: false, and let the verdict lead to no stop or rescue",
        )


def weights_put_back(snapshot: Snapshot) -> str | None:
    """Say that a run which had stopped early with its best weights goes on from these; None when it did not."""
    best, epoch = snapshot.best_model, snapshot.best_model_epoch
    if best is None or epoch is None or epoch == snapshot.epoch or snapshot.partial is not None:
        return None
    if snapshot.rolled_back_to is not None:
        return None  # by a rescue, of which its event tells
    states = zip(pytree.tree_leaves(snapshot.model), pytree.tree_leaves(best), strict=True)
    if not all(torch.equal(one, other) if isinstance(one, Tensor) else one == other for one, other in states):
        return None
    return (
        f"the checkpoint of epoch {snapshot.epoch} has the weights of epoch {epoch}, which early stopping put back; "
        "what is trained after it begins with these"
    )


def _misfit(snapshot: Snapshot, why: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint of epoch {snapshot.epoch} does not fit the job: {why}; go on with the code and params that "
        "wrote it, or train the changed job as a run of its own"
    )


def _read(checkpoints: Checkpoints, name: str) -> tuple[Snapshot, None] | tuple[None, str]:
    try:
        with checkpoints.open(name) as folder:
            return Snapshot.read(folder), None
    except DamagedCheckpointError as error:
        return None, str(error)
    except OSError as error:
        return None, f"checkpoint {name} cannot be read: {error}"
