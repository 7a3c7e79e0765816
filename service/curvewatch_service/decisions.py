"""What to do about a run, given what the cluster says of its job: pure, so that every case can be tested."""

from __future__ import annotations

from dataclasses import dataclass

from curvewatch_service.cluster import JobState, JobStatus
from curvewatch_service.runs import RunState
from curvewatch_service.store import CLUSTER_LOST_JOB, DRIVER_DIED, Run
from curvewatch_workers.contract import Control, KeptFailure, Outcome

FIRST_PAUSE_SECONDS = 2.0
"""Before a run whose driver died is given to the cluster again; doubled with each death."""
LONGEST_PAUSE_SECONDS = 300.0
LARGEST_EXIT_CODE = 128
"""Above it a shell tells of a signal that ended its command."""


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Give the run's job to the cluster, which does not have it."""


@dataclass(frozen=True, kw_only=True)
class StopJob:
    """End the run's job through the Jobs API."""


@dataclass(frozen=True, kw_only=True)
class Move:
    """Bring the run to another state."""

    target: RunState
    reason: str
    """One sentence for the run and its event."""
    event: str | None = None
    """Reason of a further event with the same sentence."""
    traceback: str | None = None
    """What the job printed last, when that is all there is to say why it failed."""


Action = Submit | StopJob | Move


def decide(
    run: Run,
    job: JobState | None,
    *,
    embedded: bool,
    stop_overdue: bool = False,
    told_all: bool = True,
    taken: bool = False,
    losses: int = 0,
    deaths: int = 0,
    failure: KeptFailure | None = None,
) -> Action | None:
    """Return what to do about a run that the cluster should have.

    Args:
        run: A run in a state that holds resources, its spool ingested since the job was looked at.
        job: What the cluster says of its latest submission; None when it does not know it.
        embedded: Whether the cluster is the service's own, which forgets its jobs when it starts anew.
        stop_overdue: Whether the workers have had their time to stop by themselves.
        told_all: Whether the last words of a job that has ended have had their time to reach the spool.
        taken: Whether the cluster is known to have had the job.
        losses: How often our own cluster ended under the run since its last new epoch, before now.
        deaths: How often its driver died since its last new epoch, before now.
        failure: What the user's code has failed with twice at the same step of the latest submission.
    """
    if job is not None and not job.state.ended:
        return StopJob() if run.state is RunState.STOPPING and stop_overdue else None
    if run.outcome is not None:
        return _after_outcome(run, run.outcome)
    if job is None:
        return _after_loss(run, embedded=embedded, taken=taken, losses=losses + 1)
    if not (told_all or _ended_as_asked(run, job)):
        return None
    return _after_silent_end(run, job, deaths=deaths + 1, failure=failure)


def decide_elsewhere(run: Run, *, silent: float, allowed: float) -> Move | None:
    """Return what to do about a run that is trained elsewhere: what its trainer tells is all there is.

    Args:
        run: A run that has not ended.
        silent: Seconds since its trainer was last heard.
        allowed: Seconds that it may be silent.
    """
    if run.outcome is not None:
        return _after_outcome(run, run.outcome)
    if silent < allowed:
        return None
    if run.state is RunState.STOPPING:
        return Move(
            target=RunState.STOPPED, reason=f"stopped; its trainer has been silent for {allowed:.0f} s"
        )
    reason = (
        f"its trainer has been silent for {allowed:.0f} s; if it still trains, see whether it reaches this service, "
        "and send what it has kept with `curvewatch send`"
    )
    return Move(target=RunState.LOST, reason=reason)


def _after_outcome(run: Run, outcome: Outcome) -> Move:
    """The training program told how it ended: that is what counts, not its exit code."""
    reason = run.outcome_reason
    match outcome:
        case Outcome.SUCCEEDED:
            return Move(target=RunState.SUCCEEDED, reason=reason or "the training program has finished")
        case Outcome.STOPPED:
            return Move(target=RunState.STOPPED, reason=reason or "stopped as asked")
        case Outcome.FAILED:
            return Move(target=RunState.FAILED, reason=reason or "the training program failed")
        case Outcome.PAUSED if run.state is RunState.STOPPING:
            return Move(target=RunState.STOPPED, reason="stopped while it was being paused")
        case Outcome.PAUSED:
            return _paused(run, "paused with a checkpoint")


def _after_loss(run: Run, *, embedded: bool, taken: bool, losses: int) -> Action:
    """The cluster does not know the job, and nobody told how it ended."""
    match run.state:
        case RunState.STARTING | RunState.RESTARTING if not (embedded and taken):
            return Submit()
        case RunState.STOPPING:
            return Move(target=RunState.STOPPED, reason="stopped; its job is gone from the cluster")
        case _ if embedded and losses > run.spec.fault_tolerance.max_restarts:
            # It may be what ends Ray: going on would take the others' work with it, again and again.
            return Move(target=RunState.FAILED, reason=_too_many_losses(run, losses), event=CLUSTER_LOST_JOB)
        case _ if embedded:
            reason = "the service's own Ray ended under it; it goes on from its latest checkpoint"
            return Move(target=RunState.QUEUED, reason=reason, event=CLUSTER_LOST_JOB)
        case _:
            reason = f"the cluster does not know job {run.submission_id} any more; was its head replaced?"
            return Move(target=RunState.LOST, reason=reason)


def _too_many_losses(run: Run, losses: int) -> str:
    times = "once" if losses == 1 else f"{losses} times"
    return (
        f"the service's own Ray ended under it {times} without a new epoch, and max_restarts is "
        f"{run.spec.fault_tolerance.max_restarts}; if it needs more memory than this machine has, give it fewer "
        "workers or a smaller batch, otherwise raise fault_tolerance.max_restarts, and submit it again"
    )


def _ended_as_asked(run: Run, job: JobState) -> bool:
    """Of a job that Ray ended for us nobody waits for last words."""
    asked = run.state is RunState.STOPPING or run.control is Control.PAUSE
    return asked and job.state is JobStatus.STOPPED


def _after_silent_end(run: Run, job: JobState, *, deaths: int, failure: KeptFailure | None) -> Move:
    """The job is over, and its program did not tell how it ended."""
    if run.state is RunState.STOPPING:
        return Move(target=RunState.STOPPED, reason=_stopped(run, job))
    if failure is not None:
        reason = failure.told("failed twice")
        return Move(target=RunState.FAILED, reason=reason, traceback=failure.traceback)
    if run.control is Control.PAUSE and job.state is not JobStatus.SUCCEEDED:
        return _paused(run, "ended before it could pause")
    if job.state is JobStatus.STOPPED:
        return Move(
            target=RunState.STOPPED, reason="its job was stopped on the cluster, not through Curvewatch"
        )
    if job.state is JobStatus.SUCCEEDED:
        reason = "its job ended with exit code 0 but never told that the training had finished; see its log"
        return Move(target=RunState.FAILED, reason=reason)
    return _after_driver_death(run, job, deaths)


def _stopped(run: Run, job: JobState) -> str:
    if run.attempt or job.state is not JobStatus.FAILED:
        return "stopped before the end of its epoch"
    # Nothing was trained that could have failed: it has what its user wants.
    words = job.message.partition("\n")[0].strip() or "nothing"
    return f"stopped before its workers started; Ray says: {words}"


def _after_driver_death(run: Run, job: JobState, deaths: int) -> Move:
    """Nothing says that it would end like this again, unless it has never come further."""
    words = job.message.partition("\n")[0].strip() or "nothing"
    ended_itself = job.exit_code is not None and 0 < job.exit_code <= LARGEST_EXIT_CODE
    if run.attempt == 0 and ended_itself:
        reason = f"its job failed without a word of its own, before any worker started; Ray says: {words}"
        return Move(target=RunState.FAILED, reason=reason, traceback=job.message or None)
    allowed = run.spec.fault_tolerance.max_restarts
    if deaths > allowed:
        times = "once" if deaths == 1 else f"{deaths} times"
        reason = (
            f"its driver died {times} without a new epoch, and max_restarts is {allowed}; look at its log, "
            f"raise fault_tolerance.max_restarts, and submit it again; Ray says: {words}"
        )
        return Move(target=RunState.FAILED, reason=reason, event=DRIVER_DIED, traceback=job.message or None)
    reason = (
        f"its driver died without a word; it goes on from its latest checkpoint in "
        f"{pause_after(deaths):.0f} s ({deaths} of {allowed}); Ray says: {words}"
    )
    return Move(target=RunState.QUEUED, reason=reason, event=DRIVER_DIED)


def pause_after(deaths: int) -> float:
    """Return the seconds between a driver's death and the next submission; 0 when none died.

    Args:
        deaths: Deaths since the run's last new epoch, this one included.
    """
    return min(FIRST_PAUSE_SECONDS * 2 ** min(deaths - 1, 30), LONGEST_PAUSE_SECONDS) if deaths else 0.0


def _paused(run: Run, what: str) -> Move:
    reason = f"{what} after epoch {run.epoch}; it goes on when it is admitted again"
    return Move(target=RunState.QUEUED, reason=reason, event="run_paused")
