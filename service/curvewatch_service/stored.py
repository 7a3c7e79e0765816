"""What the store gives out: runs, events and sums, read from their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from curvewatch_service.runs import RunState
from curvewatch_service.tables import RunRow
from curvewatch_workers.contract import MOST_EPOCHS, Control, EpochRecord, JobSpec, Outcome


@dataclass(frozen=True, kw_only=True)
class Run:
    """One submitted job, whatever its restarts."""

    run_id: str
    name: str
    owner: str
    state: RunState
    reason: str
    """Why it is in this state, one sentence."""
    spec: JobSpec
    code_hash: str
    """SHA-256 of the zipped code folder; empty for a run that is trained elsewhere."""
    created_at: datetime
    started_at: datetime | None
    """Start of the first attempt."""
    finished_at: datetime | None
    attempt: int
    """Highest attempt that has started; 0 before the first."""
    submission: int
    """How often it was given to the cluster; 0 before the first time."""
    control: Control
    world_size: int | None
    """Ranks of the highest attempt."""
    epoch: int
    """Latest visible epoch; 0 before the first."""
    outcome: Outcome | None
    """How the latest submission ended, as its driver told."""
    outcome_reason: str
    """What ended it, one sentence; empty while it has not."""
    traceback: str | None
    checkpoint: str | None
    best_checkpoint: str | None
    diagnosis: dict[str, Any] | None
    """Fields of `Diagnosis` and of `CurveSummary` together, as JSON; numbers that are not finite are null."""
    version: int
    """Grows with each change of the run."""

    @property
    def submission_id(self) -> str | None:
        """Name of the Ray job that runs it now or ran it last."""
        return f"{self.run_id}-{self.submission}" if self.submission and not self.trained_elsewhere else None

    @property
    def epochs_planned(self) -> int | None:
        """Epochs that it is to have; None for one that is trained elsewhere without an end of its own."""
        epochs = self.spec.training.epochs
        return None if self.trained_elsewhere and epochs == MOST_EPOCHS else epochs

    @property
    def trained_elsewhere(self) -> bool:
        """Whether it is no job of the cluster: a trainer outside of it reports it."""
        return self.spec.code.trained_by is not None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened to a run."""

    time: datetime
    reason: str
    """Stable key, such as `state_running` or `worker_restart`."""
    message: str
    actor: str
    """A user's name, `service` or `worker`."""


@dataclass(frozen=True, kw_only=True)
class Setbacks:
    """What threw a run back since its last new epoch."""

    count: int
    latest: datetime | None
    """When it last happened; None when it did not."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over the epochs of a run.

    They never go down: of an epoch that was replayed the larger number counts.
    """

    train_samples: int
    train_nonfinite_samples: int
    validation_nonfinite_samples: int
    worker_seconds: float
    """Duration of each epoch times its ranks."""
    differing_epochs: Mapping[str, int]
    """Epochs of which two attempts have different numbers, by the reason of their events; none when there is none."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run, its latest epoch and its totals, as of one moment."""

    run: Run
    latest: EpochRecord | None
    totals: Totals


def run_from(row: RunRow) -> Run:
    """Read a run from its row."""
    return Run(
        run_id=row.run_id,
        name=row.name,
        owner=row.owner,
        state=RunState.parse(row.state),
        reason=row.reason,
        spec=JobSpec.model_validate_json(row.spec),
        code_hash=row.code_hash,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempt=row.attempt,
        submission=row.submission,
        control=Control(row.control),
        world_size=row.world_size,
        epoch=row.epoch,
        outcome=Outcome(row.outcome) if row.outcome is not None else None,
        outcome_reason=row.outcome_reason,
        traceback=row.traceback,
        checkpoint=row.checkpoint,
        best_checkpoint=row.best_checkpoint,
        diagnosis=row.diagnosis,
        version=row.version,
    )
