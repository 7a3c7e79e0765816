"""What the workers tell the service, and what it answers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from curvewatch_workers.contract.records import EpochRecord, Record
from curvewatch_workers.contract.spec import JobSpec


class Control(StrEnum):
    """What the service wants of a run; obeyed by all ranks at the end of the same epoch."""

    CONTINUE = "continue"
    STOP = "stop"
    """Take a checkpoint and end: the user asked for it."""
    PAUSE = "pause"
    """Take a checkpoint and leave the cluster: the run goes on later, from that checkpoint."""
    STOP_ON_ALERT = "stop_on_alert"
    """Take a checkpoint and end, unless the verdict of this epoch leads to something else: an alert asked for it."""

    @property
    def stops(self) -> bool:
        """Whether the run is to end."""
        return self in (Control.STOP, Control.STOP_ON_ALERT)


class Outcome(StrEnum):
    """How the training program ended."""

    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    PAUSED = "paused"
    FAILED = "failed"


class AttemptStarted(Record):
    """A worker group has started; later attempts win over earlier ones."""

    kind: Literal["attempt_started"] = "attempt_started"
    attempt: int = Field(ge=1)
    """Start of the worker group, from 1, counted over all submissions of the run."""
    submission: int = Field(default=1, ge=1)
    """Which start of the Ray job it belongs to, from 1."""
    world_size: int = Field(ge=1)
    """Ranks of this attempt."""
    time: AwareDatetime
    """When it started."""
    resumed_after_epoch: int = Field(default=0, ge=0)
    """Last finished epoch of the checkpoint it starts from; 0 for a fresh start."""
    resumed_after_step: int = Field(default=0, ge=0)
    """Optimizer steps of the next epoch that the checkpoint holds too; 0 for one that was taken between epochs."""


class EpochFinished(Record):
    """An epoch's global numbers are known."""

    kind: Literal["epoch"] = "epoch"
    record: EpochRecord
    """The numbers."""


class WorkerEvent(Record):
    """Something that a person should know of, told once."""

    kind: Literal["event"] = "event"
    attempt: int = Field(ge=0)
    """Attempt in which it happened; 0 before the first."""
    time: AwareDatetime
    """When it happened."""
    reason: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """Stable key, such as `receipt_not_exact`."""
    message: str = Field(max_length=4096)
    """One sentence for a person."""


class RunFinished(Record):
    """The training program has ended, and how."""

    kind: Literal["finished"] = "finished"
    submission: int = Field(ge=1)
    """Which start of the Ray job this was, from 1."""
    time: AwareDatetime
    """When it ended."""
    outcome: Outcome
    """How it ended."""
    reason: str = Field(default="", max_length=4096)
    """One sentence: what ended it."""
    traceback: str | None = Field(default=None, max_length=65536)
    """Traceback of the user's code, when that is what failed."""
    checkpoint: str | None = None
    """Path or URI of the latest checkpoint."""
    best_checkpoint: str | None = None
    """Path or URI of the best checkpoint by `checkpoints.best`; null when none has a finite number."""


IngestMessage = Annotated[
    AttemptStarted | EpochFinished | WorkerEvent | RunFinished, Field(discriminator="kind")
]


class IngestRequest(Record):
    """Body of `POST /api/v1/runs/{run_id}/ingest`: messages in the order in which they happened."""

    messages: tuple[IngestMessage, ...] = Field(max_length=1000)
    """None at all asks for the control word only."""


class IngestAnswer(Record):
    """Answer to an ingest: the messages are durable, and what the run should do next."""

    control: Control


class WorkerJob(Record):
    """What the Ray job is told, through a file in the run's storage: a variable holds no more than 128 KiB."""

    run_id: str
    """The run."""
    submission: int = Field(ge=1)
    """Which start of the Ray job this is, from 1."""
    spec: JobSpec
    """The job as the user wrote it."""
    storage_path: str
    """Folder of all runs, shared between the workers and the service; the run's own is below it."""
    service_url: str | None
    """Where records are sent; null only spools them."""


WORKER_JOB_VARIABLE = "CURVEWATCH_JOB_FILE"
"""Environment variable that carries the path of the `WorkerJob`, which is written as JSON."""
