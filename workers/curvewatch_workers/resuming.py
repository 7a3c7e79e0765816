"""Which checkpoint an attempt goes on from: the latest that every rank can read."""

from __future__ import annotations

import json

from curvewatch_workers.checkpoint import Checkpoints, Snapshot
from curvewatch_workers.errors import DamagedCheckpointError
from curvewatch_workers.group import Group


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


def _read(checkpoints: Checkpoints, name: str) -> tuple[Snapshot, None] | tuple[None, str]:
    try:
        with checkpoints.open(name) as folder:
            return Snapshot.read(folder), None
    except DamagedCheckpointError as error:
        return None, str(error)
    except OSError as error:
        return None, f"checkpoint {name} cannot be read: {error}"
