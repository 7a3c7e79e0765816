"""Runs that are trained outside of the cluster, by a trainer that reports them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from curvewatch_workers.contract.layout import RunLayout
from curvewatch_workers.contract.messages import IngestMessage
from curvewatch_workers.contract.records import Record
from curvewatch_workers.contract.spec import (
    FRAMEWORK_PATTERN,
    NAME_PATTERN,
    CodeSpec,
    JobSpec,
    MonitoringSpec,
    ScalingSpec,
    TrainingSpec,
)

RUN_ID_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
LONGEST_RUN_ID = 80
MOST_EPOCHS = 1_000_000
"""Epochs planned of a training that has no end of its own."""
OPEN_PATIENCE = 10
"""Patience of its alerts, which else is a tenth of the epochs planned."""
_MESSAGE: TypeAdapter[IngestMessage] = TypeAdapter(IngestMessage)


class ReportedRun(Record):
    """Body of `PUT /api/v1/runs/{run_id}`: a run that is trained elsewhere, and told of by its trainer."""

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    """Name of the run in lists and on dashboards."""
    trained_by: Annotated[str, StringConstraints(pattern=FRAMEWORK_PATTERN)]
    """Framework that trains it, such as `keras`."""
    epochs: int | None = Field(default=None, ge=1, le=MOST_EPOCHS)
    """Epochs that are planned; null for a training without an end of its own."""
    world_size: int = Field(default=1, ge=1, le=4096)
    """Processes that train it."""

    def spec(self) -> JobSpec:
        """Return what is known of it in the form of a job."""
        return JobSpec(
            name=self.name,
            code=CodeSpec(trained_by=self.trained_by),
            # Nobody tells how large a batch is: the least that so many processes can have.
            training=TrainingSpec(epochs=self.epochs or MOST_EPOCHS, global_batch_size=self.world_size),
            scaling=ScalingSpec(workers=self.world_size),
            monitoring=MonitoringSpec(patience_epochs=None if self.epochs else OPEN_PATIENCE),
        )


class ReportedRunAnswer(Record):
    """Answer to a `ReportedRun`."""

    ingest_token: str = Field(repr=False)
    """Good for this run's ingest only, until the run is put again."""


class ReportedState(Record):
    """What a trainer remembers of a run that it reports, beside the run's spool (mode 0600)."""

    run_id: str
    """The run."""
    run: ReportedRun
    """What the service is told of it."""
    server: str
    """Address of the service."""
    ingest_token: str | None = Field(default=None, repr=False)
    """The run's token; null while the service has not been reached."""
    attempt: int = Field(ge=1)
    """Latest start of the training, from 1."""
    unknown_epochs: int = Field(default=0, ge=0)
    """Epochs that had been trained before the run was first told of, and whose numbers nobody knows: its epochs are
    counted without them, since a curve is read up to the first that is missing."""
    ended: bool = False
    """Whether the training has ended."""


def kept_messages(spool: Path) -> Iterator[IngestMessage | None]:
    """Yield what a trainer has kept in a spool, in order; None for a line that cannot be read, such as a torn one.

    Raises:
        OSError: A file cannot be read.
    """
    for path in sorted(spool.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                yield _MESSAGE.validate_json(line)
            except ValidationError:
                yield None


def read_state(path: Path) -> ReportedState:
    """Read what a trainer remembers of a run.

    Raises:
        OSError: The file cannot be read.
        ValidationError: It is something else.
    """
    return ReportedState.model_validate_json(path.read_bytes())


def keep_state(folder: Path, state: ReportedState) -> None:
    """Write down what a trainer remembers of a run, below the folder of its runs.

    Raises:
        OSError: It cannot be written.
    """
    path = RunLayout(folder, state.run_id).reported
    path.parent.mkdir(parents=True, exist_ok=True)
    # Tokens and spools are no part of anybody's repository.
    ignored = folder / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n", encoding="utf-8")
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    # The token must never be readable by others, not even before a chmod.
    with os.fdopen(
        os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(state.model_dump_json())
    draft.replace(path)
