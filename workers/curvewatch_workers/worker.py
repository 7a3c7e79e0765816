"""One worker of a run, from its start to its ending: the same under Ray and under torchrun."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from curvewatch_workers.checkpoint import Checkpoints
from curvewatch_workers.contract import (
    AttemptStarted,
    Control,
    EpochFinished,
    IngestMessage,
    JobSpec,
    KeptFailure,
    Outcome,
    RunLayout,
    WorkerEvent,
    WorkerJob,
    repeated_failure,
)
from curvewatch_workers.errors import (
    CheckpointError,
    DamagedCheckpointError,
    ExitedError,
    StorageError,
    SupersededError,
    UnsavableStateError,
    UserCodeError,
    WorkersError,
    frames_of_others,
    printable,
    user_traceback,
)
from curvewatch_workers.group import Group, is_lost_peer
from curvewatch_workers.history import told_before
from curvewatch_workers.loop import Position, Trainer, utc_now
from curvewatch_workers.meter import MeterRun, metering
from curvewatch_workers.preemption import Notices
from curvewatch_workers.reporter import NullReporter, Reporter
from curvewatch_workers.seeds import seed_from
from curvewatch_workers.task import load_entry, load_task

_OUTCOMES = {
    Control.STOP: Outcome.STOPPED,
    Control.STOP_ON_ALERT: Outcome.STOPPED,
    Control.PAUSE: Outcome.PAUSED,
}
logger = logging.getLogger(__name__)


class WorkerEnding(BaseModel):
    """What rank 0 returns to the driver."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    reason: str
    traceback: str | None = None

    @classmethod
    def of_failure(cls, failure: KeptFailure, how: str) -> WorkerEnding:
        """Return the ending that a kept failure makes."""
        return cls(outcome=Outcome.FAILED, reason=failure.told(how), traceback=failure.traceback)


class FencedReporter:
    """Passes on what an attempt tells, until a later attempt has started.

    Ray ends the workers of a driver or a controller that died, but nothing promises that it has done so before the
    next group trains: one that lives on ends itself at the end of its epoch, before the epoch is told or kept.
    """

    def __init__(self, inner: Reporter, layout: RunLayout, attempt: int) -> None:
        self._inner = inner
        self._attempt = attempt
        # Attempts are numbered without a gap: the next one is there if any later one is.
        self._next = layout.attempts / f"{attempt + 1:06d}"

    def send(self, message: IngestMessage) -> None:
        """Take a message; the service knows by its attempt whether it counts."""
        self._inner.send(message)

    def control(self) -> Control:
        """Return the latest control word.

        Raises:
            SupersededError: A later attempt has started.
        """
        if self._next.exists():
            raise SupersededError(
                f"attempt {self._attempt} ends: attempt {self._attempt + 1} of this run has started, and only the "
                "latest may train; there is nothing to do"
            )
        return self._inner.control()

    def close(self) -> None:
        """Close the inner reporter."""
        self._inner.close()


def run_worker(
    job: WorkerJob,
    group: Group,
    checkpoints: Checkpoints,
    make_reporter: Callable[[int], Reporter],
    notices: Notices | None = None,
) -> WorkerEnding:
    """Run one rank of a job until it ends.

    An error that every rank can be told of (the task cannot be built, or failed twice at the same step) is an
    ending. Any other exception is raised, so that the group is torn down and started again.

    Args:
        job: The job.
        group: The ranks.
        checkpoints: Where checkpoints are kept.
        make_reporter: Makes rank 0's reporter of an attempt.
        notices: Where it is told that a node will leave; None when nobody tells.
    """
    layout = RunLayout(job.storage_path, job.run_id)
    over = group.first_problem(_ending_before_start(layout, job.submission) if group.rank == 0 else None)
    if over is not None:
        return WorkerEnding.model_validate_json(over)
    attempt = _claim_attempt(layout, group, job.submission)
    reporter: Reporter = NullReporter()
    if group.rank == 0:
        reporter = FencedReporter(make_reporter(attempt), layout, attempt)
    try:
        return _train(job, group, checkpoints, reporter, attempt, layout, notices)
    finally:
        reporter.close()


def _train(
    job: WorkerJob,
    group: Group,
    checkpoints: Checkpoints,
    reporter: Reporter,
    attempt: int,
    layout: RunLayout,
    notices: Notices | None,
) -> WorkerEnding:
    if job.spec.code.loop is not None:
        return _run_own_loop(job, group, reporter, attempt, layout)
    position = Position(0, "train", 0)
    trainer: Trainer | None = None
    try:
        with _exits_are_errors():
            trainer, problem = _build(job, group, checkpoints, reporter, attempt, notices)
            if trainer is None:
                return WorkerEnding.model_validate_json(problem)
            resumed = trainer.resume()
            reporter.send(
                AttemptStarted(
                    attempt=attempt,
                    submission=job.submission,
                    world_size=group.world_size,
                    time=utc_now(),
                    resumed_after_epoch=resumed.epoch,
                    resumed_after_step=resumed.step,
                )
            )
            ending = trainer.run(after_epoch=resumed.epoch)
    except SupersededError:
        raise  # no failure of the run
    except DamagedCheckpointError as error:
        # The storage may be back for the next attempt.
        _keep_failure(layout, job.submission, attempt, group.rank, position, error)
        raise
    except (UnsavableStateError, CheckpointError) as error:
        return _task_ending(error)
    except Exception as error:
        position = position if trainer is None else trainer.position
        _keep_failure(layout, job.submission, attempt, group.rank, position, error)
        raise
    return WorkerEnding(outcome=ending.outcome, reason=ending.reason)


def _run_own_loop(
    job: WorkerJob, group: Group, reporter: Reporter, attempt: int, layout: RunLayout
) -> WorkerEnding:
    """Call the user's own training function; its meters tell the epochs."""

    def tell_start(after_epoch: int | None) -> None:
        # The service may lack them, and trackers show the curve of one attempt.
        told = told_before(layout, after_epoch) if group.rank == 0 else ()
        for record in told:
            reporter.send(EpochFinished(record=record))
        reporter.send(
            AttemptStarted(
                attempt=attempt,
                submission=job.submission,
                world_size=group.world_size,
                time=started_at,
                # A loop that returns without a meter has trained nothing: all that was told stands.
                resumed_after_epoch=max((record.epoch for record in told), default=0)
                if after_epoch is None
                else after_epoch,
            )
        )
        unused = _unused_by_loop(job.spec)
        if unused:
            message = (
                f"the job sets {', '.join(unused)}, which a loop of one's own does not use: it decides for itself; "
                "take them out of the job"
            )
            event = WorkerEvent(attempt=attempt, time=started_at, reason="settings_not_used", message=message)
            reporter.send(event)

    started_at = utc_now()
    run = MeterRun(
        run_id=job.run_id,
        attempt=attempt,
        epochs=job.spec.training.epochs,
        reporter=reporter,
        group=group,
        tell_start=tell_start,
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
    try:
        with metering(run), _exits_are_errors():
            loop(**job.spec.params)
    except SupersededError:
        raise  # no failure of the run
    except Exception as error:
        position = Position(run.last_epoch + 1, "train", 0)
        _keep_failure(layout, job.submission, attempt, group.rank, position, error)
        raise
    finally:
        run.start(None)
    outcome = (
        _OUTCOMES.get(run.control, Outcome.SUCCEEDED) if run.last_epoch < job.spec.training.epochs else None
    )
    return WorkerEnding(
        outcome=outcome or Outcome.SUCCEEDED, reason=f"the loop has returned after epoch {run.last_epoch}"
    )


def _unused_by_loop(spec: JobSpec) -> list[str]:
    """Return the settings that differ from their default and that only the engine's loop would use."""
    # Ray Train keeps what the loop reports to it, and the meter hands the loop the word to stop.
    used = {"training.seed", "checkpoints.keep", "checkpoints.path", "policy.on_alert"}
    parts = {"checkpoints": spec.checkpoints, "policy": spec.policy, "training": spec.training}
    changed = [
        f"{part}.{name}"
        for part, values in parts.items()
        for name, field in sorted(type(values).model_fields.items())
        if not field.is_required() and getattr(values, name) != field.get_default(call_default_factory=True)
    ]
    return [name for name in changed if name not in used]


def _build(
    job: WorkerJob,
    group: Group,
    checkpoints: Checkpoints,
    reporter: Reporter,
    attempt: int,
    notices: Notices | None,
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
            notices=notices,
        )
        trainer.probe()
    except WorkersError as error:
        problem = _task_ending(error).model_dump_json()
    problem = group.first_problem(problem)
    if problem is not None or trainer is None:
        return None, problem or ""
    try:
        trainer.require_agreement()
    except WorkersError as error:
        return None, _task_ending(error).model_dump_json()
    return trainer, ""


def _task_ending(error: WorkersError) -> WorkerEnding:
    text = error.traceback_text if isinstance(error, UserCodeError) else None
    return WorkerEnding(outcome=Outcome.FAILED, reason=str(error), traceback=text)


def _claim_attempt(layout: RunLayout, group: Group, submission: int) -> int:
    """Number this start of the worker group: rank 0 creates the attempt's file, which only one can.

    Raises:
        StorageError: On rank 0: it cannot be written.
    """
    number = 0
    if group.rank == 0:
        try:
            layout.attempts.mkdir(parents=True, exist_ok=True)
            number = 1 + latest_attempt(layout)
            while not _create(layout.attempts / f"{number:06d}", str(submission)):
                number += 1
        except OSError as error:
            raise StorageError(
                f"{layout.attempts} cannot be written: {error.strerror}; make room there, or mend the storage"
            ) from error
    claimed = torch.tensor(number, dtype=torch.int64, device=group.device)
    group.broadcast(claimed)
    return int(claimed)


def latest_attempt(layout: RunLayout) -> int:
    """Return the number of the latest attempt that has started, 0 before the first."""
    return max((int(path.name) for path in layout.attempts.glob("*") if path.name.isdigit()), default=0)


def _create(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _keep_failure(
    layout: RunLayout, submission: int, attempt: int, rank: int, position: Position, error: Exception
) -> None:
    failure = KeptFailure(
        submission=submission,
        time=utc_now(),
        error=printable(f"{type(error).__name__}: {error}"),
        position=position,
        traceback=user_traceback((isinstance(error, ExitedError) and error.__cause__) or error),
        kind=printable(f"{type(error).__module__}.{type(error).__qualname__}"),
        frames=frames_of_others(error),
        passing=isinstance(error, StorageError) or is_lost_peer(error),
    )
    path = layout.attempts / f"{attempt:06d}-failure-{rank:04d}.json"
    try:
        path.write_text(failure.model_dump_json(), encoding="utf-8")
    except OSError:
        logger.exception(
            "Could not keep the failure of attempt %d", attempt, extra={"action": "failure_not_kept"}
        )


@contextlib.contextmanager
def _exits_are_errors() -> Iterator[None]:
    """Let no sys.exit of the user's code end a worker as if it were done, or its thread without a word."""
    try:
        yield
    except SystemExit as error:
        raise ExitedError(
            f"the job's code called sys.exit({error.code!r}) in a worker; let it return when it is done, and raise an "
            "exception that says what is wrong when it is not"
        ) from error


def _ending_before_start(layout: RunLayout, submission: int) -> str | None:
    """Return why this group must not train: a newer start of the job does, or it would fail as it did before."""
    newest = latest_submission(layout)
    if newest > submission:
        reason = (
            f"start {submission} of the job ends: start {newest} of it has begun to train, and only the latest may; "
            "there is nothing to do"
        )
        return WorkerEnding(outcome=Outcome.FAILED, reason=reason).model_dump_json()
    failure = repeated_failure(layout, submission)
    return None if failure is None else WorkerEnding.of_failure(failure, "failed twice").model_dump_json()


def latest_submission(layout: RunLayout) -> int:
    """Return which start of the job claimed an attempt last, 0 before the first."""
    return max((_submission_in(path) for path in layout.attempts.glob("*") if path.name.isdigit()), default=0)


def _submission_in(path: Path) -> int:
    """Return which start of the job claimed an attempt; 0 while its file is being written."""
    text = path.read_text(encoding="utf-8")
    return int(text) if text.isdigit() else 0
