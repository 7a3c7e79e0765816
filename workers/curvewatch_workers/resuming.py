"""What an attempt goes on from: the latest checkpoint that every rank can read, if it fits the task."""

from __future__ import annotations

import json

import torch
from torch import nn

from curvewatch_workers.checkpoint import Checkpoints, Snapshot
from curvewatch_workers.errors import CheckpointError, DamagedCheckpointError
from curvewatch_workers.group import Group
from curvewatch_workers.task import TrainingTask


def read_latest(checkpoints: Checkpoints, group: Group) -> tuple[Snapshot | None, tuple[str, ...]]:
    """Read the latest checkpoint that every rank can read; every rank makes this call.

    Returns:
        The snapshot, None when there is no checkpoint; and, for each later checkpoint that some rank cannot
        read, why, in one sentence.

    Raises:
        DamagedCheckpointError: On every rank, when there are checkpoints and none can be read.
        CheckpointError: The checkpoint has another format, or holds what cannot be loaded.
    """
    # Rank 0's list is everybody's: a shared file system may show another rank an older one.
    listed = group.first_problem(json.dumps(checkpoints.names()) if group.rank == 0 else None)
    damages: list[str] = []
    for name in json.loads(listed or "[]"):
        snapshot, damage = _read(checkpoints, name)
        damage = group.first_problem(damage)
        if damage is None:
            return snapshot, tuple(damages)
        damages.append(damage)
    if damages:
        raise DamagedCheckpointError(
            f"none of {len(damages)} checkpoints can be read, of the latest: {damages[0]}; "
            "mend the storage, or submit the job anew"
        )
    return None, ()


def restore(snapshot: Snapshot, task: TrainingTask, model: nn.Module, scaler: torch.amp.GradScaler) -> None:
    """Give model, optimizer, schedule, loss and gradient scaler the state of a snapshot.

    Raises:
        CheckpointError: It does not fit: the job was changed.
    """
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
        raise CheckpointError(
            f"the checkpoint of epoch {snapshot.epoch} does not fit the job: {' '.join(str(error).split())}; go on "
            "with the code and params that wrote it, or train the changed job as a run of its own"
        ) from error


def _read(checkpoints: Checkpoints, name: str) -> tuple[Snapshot, None] | tuple[None, str]:
    try:
        with checkpoints.open(name) as folder:
            return Snapshot.read(folder), None
    except DamagedCheckpointError as error:
        return None, str(error)
    except OSError as error:
        return None, f"checkpoint {name} cannot be read: {error}"
