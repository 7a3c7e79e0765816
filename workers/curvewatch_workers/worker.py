"""One worker of a run, from its start to its ending: the same under Ray and under torchrun."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from curvewatch_workers.checkpoint import Checkpoints
from curvewatch_workers.contract import AttemptStarted, Control, Outcome, RunLayout, WorkerJob
from curvewatch_workers.errors import (
    LayoutMismatchError,
    UserCodeError,
    WorkersError,
    printable,
    user_traceback,
)
from curvewatch_workers.group import Group
from curvewatch_workers.loop import Position, Trainer, utc_now
from curvewatch_workers.meter import MeterRun, metering
from curvewatch_workers.reporter import NullReporter, Reporter
from curvewatch_workers.seeds import seed_from
from curvewatch_workers.task import load_entry, load_task

_OUTCOMES = {Control.STOP: Outcome.STOPPED, Control.PAUSE: Outcome.PAUSED}
logger = logging.getLogger(__name__)


class WorkerEnding(BaseModel):
    """What rank 0 returns to the driver."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    reason: str
    traceback: str | None = None


class _Failure(BaseModel):
    """An exception in the middle of training, kept for the next attempt to compare with."""

    model_config = ConfigDict(frozen=True)

    submission: int
    error: str
    position: Position
    traceback: str

    def same_as(self, other: _Failure) -> bool:
        return (self.error, self.position) == (other.error, other.position)


def run_worker(
    job: WorkerJob,
    group: Group,
    checkpoints: Checkpoints,
    make_reporter: Callable[[int], Reporter],
) -> WorkerEnding:
    """Run one rank of a job until it ends.

    An error that every rank can be told of (the task cannot be built, or failed twice at the same step) is an
    ending. Any other exception is raised, so that the group is torn down and started again.

    Args:
        job: The job.
        group: The ranks.
        checkpoints: Where checkpoints are kept.
        make_reporter: Makes rank 0's reporter of an attempt.
    """
    layout = RunLayout(job.storage_path, job.run_id)
    repeated = group.first_problem(_repeated_failure(layout, job.submission) if group.rank == 0 else None)
    if repeated is not None:
        return WorkerEnding.model_validate_json(repeated)
    attempt = _claim_attempt(layout, group)
    reporter = make_reporter(attempt) if group.rank == 0 else NullReporter()
    try:
        return _train(job, group, checkpoints, reporter, attempt, layout)
    finally:
        reporter.close()


def _train(
    job: WorkerJob,
    group: Group,
    checkpoints: Checkpoints,
    reporter: Reporter,
    attempt: int,
    layout: RunLayout,
) -> WorkerEnding:
    if job.spec.code.loop is not None:
        return _run_own_loop(job, group, reporter, attempt, layout)
    position = Position(0, "train", 0)
    trainer: Trainer | None = None
    try:
        trainer, problem = _build(job, group, checkpoints, reporter, attempt)
        if trainer is None:
            return WorkerEnding.model_validate_json(problem)
        after_epoch = trainer.resume()
        reporter.send(
            AttemptStarted(
                attempt=attempt,
                submission=job.submission,
                world_size=group.world_size,
                time=utc_now(),
                resumed_after_epoch=after_epoch,
            )
        )
        ending = trainer.run(after_epoch=after_epoch)
    except Exception as error:
        position = position if trainer is None else trainer.position
        _keep_failure(layout, job.submission, attempt, group.rank, position, error)
        raise
    return WorkerEnding(outcome=ending.outcome, reason=ending.reason)


def _run_own_loop(
    job: WorkerJob, group: Group, reporter: Reporter, attempt: int, layout: RunLayout
) -> WorkerEnding:
    """Call the user's own training function; its meters tell the epochs."""
    run = MeterRun(
        run_id=job.run_id, attempt=attempt, epochs=job.spec.training.epochs, reporter=reporter, group=group
    )
    seed_from(job.spec.training.seed, 0, group.rank)
    loop: Callable[..., object] | None = None
    problem: str | None = None
    try:
        loop = load_entry(job.spec)
    except WorkersError as error:
        problem = _task_ending(error).model_dump_json()
    problem = group.first_problem(problem)
    if problem is not None or loop is None:
        return WorkerEnding.model_validate_json(problem or "")
    reporter.send(
        AttemptStarted(
            attempt=attempt, submission=job.submission, world_size=group.world_size, time=utc_now()
        )
    )
    try:
        with metering(run):
            loop(**job.spec.params)
    except Exception as error:
        _keep_failure(
            layout, job.submission, attempt, group.rank, Position(run.last_epoch + 1, "train", 0), error
        )
        raise
    outcome = (
        _OUTCOMES.get(run.control, Outcome.SUCCEEDED) if run.last_epoch < job.spec.training.epochs else None
    )
    return WorkerEnding(
        outcome=outcome or Outcome.SUCCEEDED, reason=f"the loop has returned after epoch {run.last_epoch}"
    )


def _build(
    job: WorkerJob, group: Group, checkpoints: Checkpoints, reporter: Reporter, attempt: int
) -> tuple[Trainer, str] | tuple[None, str]:
    """Build task and trainer on every rank, or return the same ending on every rank.

    What one rank alone finds wrong is told to all before the next collective: a rank that just left would
    leave the others waiting for it.
    """
    seed_from(job.spec.training.seed, 0, 0)
    trainer: Trainer | None = None
    problem: str | None = None
    try:
        trainer = Trainer(
            run_id=job.run_id,
            attempt=attempt,
            spec=job.spec,
            task=load_task(job.spec),
            group=group,
            checkpoints=checkpoints,
            reporter=reporter,
        )
        trainer.probe()
    except WorkersError as error:
        problem = _task_ending(error).model_dump_json()
    problem = group.first_problem(problem)
    if problem is not None or trainer is None:
        return None, problem or ""
    try:
        trainer.require_agreement()
    except LayoutMismatchError as error:
        return None, _task_ending(error).model_dump_json()
    return trainer, ""


def _task_ending(error: WorkersError) -> WorkerEnding:
    text = error.traceback_text if isinstance(error, UserCodeError) else None
    return WorkerEnding(outcome=Outcome.FAILED, reason=str(error), traceback=text)


def _claim_attempt(layout: RunLayout, group: Group) -> int:
    """Number this start of the worker group: rank 0 creates the attempt's file, which only one can."""
    number = 0
    if group.rank == 0:
        layout.attempts.mkdir(parents=True, exist_ok=True)
        number = 1 + max(
            (int(path.name) for path in layout.attempts.iterdir() if path.name.isdigit()), default=0
        )
        while not _create(layout.attempts / f"{number:06d}"):
            number += 1
    claimed = torch.tensor(number, dtype=torch.int64, device=group.device)
    group.broadcast(claimed)
    return int(claimed)


def _create(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    return True


def _keep_failure(
    layout: RunLayout, submission: int, attempt: int, rank: int, position: Position, error: Exception
) -> None:
    failure = _Failure(
        submission=submission,
        error=printable(f"{type(error).__name__}: {error}"),
        position=position,
        traceback=user_traceback(error),
    )
    path = layout.attempts / f"{attempt:06d}-failure-{rank:04d}.json"
    try:
        path.write_text(failure.model_dump_json(), encoding="utf-8")
    except OSError:
        logger.exception(
            "Could not keep the failure of attempt %d", attempt, extra={"action": "failure_not_kept"}
        )


def last_failure(layout: RunLayout, submission: int) -> WorkerEnding | None:
    """Return the ending that the last kept failure of a submission makes; None when none was kept."""
    failures = list(_failures(layout, submission).values())
    return _ending_of(failures[-1][0], "failed") if failures else None


def _repeated_failure(layout: RunLayout, submission: int) -> str | None:
    """Return the ending that the last two attempts' common failure makes: what fails twice at one step fails always.

    Only of this submission: who submits again has changed something.
    """
    attempts = list(_failures(layout, submission).values())
    if len(attempts) < 2:
        return None
    before, last = attempts[-2:]
    same = (one for one in last for other in before if one.same_as(other))
    return next((_ending_of(failure, "failed twice").model_dump_json() for failure in same), None)


def _failures(layout: RunLayout, submission: int) -> dict[str, list[_Failure]]:
    """Return the kept failures of a submission by attempt, in order."""
    attempts: dict[str, list[_Failure]] = {}
    for path in sorted(layout.attempts.glob("*-failure-*.json")):
        try:
            failure = _Failure.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if failure.submission == submission:
            attempts.setdefault(path.name.split("-")[0], []).append(failure)
    return attempts


def _ending_of(failure: _Failure, how: str) -> WorkerEnding:
    epoch, split, step = failure.position
    place = f"at epoch {epoch}, {split} step {step + 1}" if epoch else "before the first epoch"
    return WorkerEnding(
        outcome=Outcome.FAILED, reason=f"{how} {place}: {failure.error}", traceback=failure.traceback
    )
