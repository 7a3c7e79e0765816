"""Whether a launch of torchrun may train a run: a restarted group goes on with its own, and with no other unasked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from curvewatch_workers.contract import RunLayout, WorkerJob
from curvewatch_workers.errors import StorageError
from curvewatch_workers.storage import address_below
from curvewatch_workers.worker import latest_submission

_UNNAMED = "none"
"""How torchrun calls every launch that was given no `--rdzv-id`, unless it is `--standalone`."""


class Launch(NamedTuple):
    """One call of torchrun, with all its restarts of the worker group."""

    name: str
    restarts: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Launch:
        """Return the launch that torchrun describes in the environment."""
        name = environment.get("TORCHELASTIC_RUN_ID", "")
        if name == _UNNAMED:
            # The folder of its logs is its own: in it, each restart and rank has another file.
            name = str(Path(environment.get("TORCHELASTIC_ERROR_FILE", "")).parent.parent.parent)
        return cls(name, int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")))


class Start(NamedTuple):
    """What rank 0 tells every rank."""

    submission: int
    refusal: str | None


def begin(job: WorkerJob, launch: Launch, *, resume: bool, elsewhere: bool) -> Start:
    """Decide on rank 0 whether the group may train, as which submission of the run; note it for a restart.

    All groups of one launch are one submission, so that what fails twice is known again. A later launch is another:
    the code may have been mended.

    Args:
        job: The job.
        launch: The launch.
        resume: Whether the user asked to go on with an earlier run.
        elsewhere: Whether `checkpoints.path` holds checkpoints of the run.

    Raises:
        StorageError: The output folder cannot be made or written.
    """
    layout = RunLayout(job.storage_path, job.run_id)
    try:
        layout.attempts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"--output is {job.storage_path}, where no folder can be made: {error.strerror}; name a folder"
        ) from error
    note = layout.attempts / "launch.json"
    noted = _noted(note) if launch.restarts else None
    if noted is not None and noted[0] == launch.name:
        return Start(noted[1], None)
    before = latest_submission(layout)
    if (before or elsewhere) and not resume:
        note.unlink(missing_ok=True)
        path = job.spec.checkpoints.path or ""
        where, remedy = (
            (layout.root, "--output") if before else (address_below(path, job.run_id), "checkpoints.path")
        )
        refusal = (
            f"{where} holds an earlier run; go on with it by --resume, or name another folder with {remedy}"
        )
        return Start(0, refusal)
    try:
        note.write_text(json.dumps([launch.name, before + 1]), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{note} cannot be written: {error.strerror}; make room there") from error
    return Start(before + 1, None)


def _noted(note: Path) -> tuple[str, int] | None:
    with contextlib.suppress(OSError, ValueError):
        name, submission = json.loads(note.read_text(encoding="utf-8"))
        return name, submission
    return None
