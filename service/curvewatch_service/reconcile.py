"""Keeps the store and the cluster in step: load, decide, apply unless somebody else was first."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from curvewatch_service.cluster import Cluster, JobState, JobStatus
from curvewatch_service.errors import ClusterUnavailableError, JobRefusedError
from curvewatch_service.planning import plan
from curvewatch_service.runs import RunState
from curvewatch_service.settings import Settings
from curvewatch_service.spool import SpoolReader
from curvewatch_service.store import Run, Store
from curvewatch_workers.contract import Control, Outcome
from curvewatch_workers.series import RECONCILE_ERRORS

logger = logging.getLogger(__name__)

OUTAGE_SECONDS = 30.0
"""Silence of the cluster after which its runs are told of it; a head that starts is silent for less."""
STOP_AGAIN_SECONDS = 30.0
"""Pause between two requests to end the same job."""
LONGEST_PAUSE_SECONDS = 10.0
"""Between two looks at a cluster that does not answer."""


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


def decide(run: Run, job: JobState | None, *, embedded: bool, stop_overdue: bool = False) -> Action | None:
    """Return what to do about a run that the cluster should have.

    Args:
        run: A run in a state that holds resources, its spool ingested since the job was looked at.
        job: What the cluster says of its latest submission; None when it does not know it.
        embedded: Whether the cluster is the service's own, which forgets its jobs when it starts anew.
        stop_overdue: Whether the workers have had their time to stop by themselves.
    """
    if job is not None and not job.state.ended:
        return StopJob() if run.state is RunState.STOPPING and stop_overdue else None
    if run.outcome is not None:
        return _after_outcome(run, run.outcome)
    return _after_loss(run, embedded=embedded) if job is None else _after_silent_end(run, job)


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


def _after_loss(run: Run, *, embedded: bool) -> Action:
    """The cluster does not know the job, and nobody told how it ended."""
    match run.state:
        case RunState.STARTING:
            return Submit()
        case RunState.STOPPING:
            return Move(target=RunState.STOPPED, reason="stopped; its job is gone from the cluster")
        case _ if embedded:
            reason = "the service's own Ray ended under it; it goes on from its latest checkpoint"
            return Move(target=RunState.QUEUED, reason=reason, event="cluster_lost_job")
        case _:
            reason = f"the cluster does not know job {run.submission_id} any more; was its head replaced?"
            return Move(target=RunState.LOST, reason=reason)


def _after_silent_end(run: Run, job: JobState) -> Move:
    """The job is over, and its program did not tell how it ended."""
    first_line = job.message.partition("\n")[0].strip()
    if job.state is JobStatus.STOPPED:
        if run.state is RunState.STOPPING:
            return Move(target=RunState.STOPPED, reason="stopped before the end of its epoch")
        if run.control is Control.PAUSE:
            return _paused(run, "ended before it could pause")
        return Move(
            target=RunState.STOPPED, reason="its job was stopped on the cluster, not through Curvewatch"
        )
    if job.state is JobStatus.SUCCEEDED:
        reason = "its job ended with exit code 0 but never told that the training had finished; see its log"
        return Move(target=RunState.FAILED, reason=reason)
    reason = f"its job failed without a word of its own; Ray says: {first_line or 'nothing'}"
    return Move(target=RunState.FAILED, reason=reason, traceback=job.message or None)


def _paused(run: Run, what: str) -> Move:
    reason = f"{what} after epoch {run.epoch}; it goes on when it is admitted again"
    return Move(target=RunState.QUEUED, reason=reason, event="run_paused")


def _job_of(run: Run) -> str:
    if run.submission_id is None:
        raise RuntimeError(f"run {run.run_id} is {run.state.label} but was never submitted")
    return run.submission_id


@dataclass
class _Outage:
    """How long the cluster has been silent, and which runs were told."""

    since: float | None = None
    logged: bool = False
    told: set[str] = field(default_factory=set)


class Reconciler:
    """Follows the cluster's jobs and admits what is queued. One thread calls `step`.

    No transaction is open while the cluster is spoken to; each move applies only to a run that is
    still in the state in which it was decided.
    """

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.admitting = True
        """Whether queued runs are given to the cluster."""
        self._store = store
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._spool = SpoolReader(store, settings.storage_path)
        self._outage = _Outage()
        self._stop_due: dict[str, float] = {}
        self._told_too_large: set[str] = set()

    def step(self) -> bool:
        """Bring every run one step on; return whether the cluster answered."""
        runs = self._store.active_runs()
        self._forget_ended(runs)
        for run in runs:
            self._guarded(run, self._take_spool)
        try:
            for run in runs:
                if run.state.holds_resources:
                    self._guarded(run, self._follow)
            if self.admitting:
                self._admit()
        except ClusterUnavailableError as error:
            self._note_outage(str(error))
            return False
        self._outage = _Outage()
        return True

    def pause_all(self) -> None:
        """Ask every run on the cluster to take a checkpoint and leave it."""
        for run in self._holding():
            if run.state is not RunState.STOPPING:
                self._store.request_control(run.run_id, Control.PAUSE, actor="service")

    def stop_jobs(self) -> None:
        """End the job of every run that is still on the cluster, through the Jobs API."""
        for run in self._holding():
            self._guarded(run, self._stop_job)

    def idle(self) -> bool:
        """Tell whether no run is on the cluster."""
        return not self._holding()

    def _holding(self) -> list[Run]:
        return [run for run in self._store.active_runs() if run.state.holds_resources]

    def _guarded(self, run: Run, action: Callable[[Run], None]) -> None:
        """Do something about one run; what goes wrong there must not cost the others their turn."""
        try:
            action(run)
        except ClusterUnavailableError:
            raise
        except Exception:
            self._store.counters.add(RECONCILE_ERRORS)
            logger.exception(
                "Run %s could not be brought on; it is tried again.",
                run.run_id,
                extra={"action": "reconcile_failed", "run_id": run.run_id},
            )

    def _take_spool(self, run: Run) -> None:
        self._spool.ingest(run.run_id)

    def _follow(self, run: Run) -> None:
        job = self._cluster.status(_job_of(run))
        if job is None or job.state.ended:
            # Its program has ended: what it wrote last decides what becomes of the run.
            self._spool.ingest(run.run_id)
        run = self._store.run(run.run_id)
        if not run.state.holds_resources:
            return
        overdue = run.state is RunState.STOPPING and self._stop_is_overdue(run, job)
        match decide(run, job, embedded=self._settings.embedded, stop_overdue=overdue):
            case Submit():
                self._submit(run)
            case StopJob():
                self._stop_job(run)
            case Move() as move:
                self._move(run, move)

    def _admit(self) -> None:
        """Submit what is queued, oldest first, as long as it fits beside what is on the cluster."""
        runs = self._store.active_runs()
        queued = [run for run in runs if run.state is RunState.QUEUED]
        if not queued:
            return
        total = self._cluster.resources()
        free = total
        for run in runs:
            if run.state.holds_resources:
                free = free.minus(run.spec.scaling.total_cpus, run.spec.scaling.total_gpus)
        for run in queued:
            if not total.holds(run.spec):
                self._tell_too_large(run)
                continue
            if not free.holds(run.spec):
                # A smaller, younger run does not overtake: a large one would wait for ever.
                break
            free = free.minus(run.spec.scaling.total_cpus, run.spec.scaling.total_gpus)
            started = self._store.begin_submission(run.run_id)
            if started is not None:
                self._guarded(started, self._submit)

    def _submit(self, run: Run) -> None:
        try:
            self._cluster.submit(plan(run, settings=self._settings))
        except JobRefusedError as error:
            self._move(run, Move(target=RunState.FAILED, reason=str(error)))

    def _stop_job(self, run: Run) -> None:
        self._cluster.stop(_job_of(run))
        self._stop_due[run.run_id] = self._clock() + STOP_AGAIN_SECONDS
        message = f"asked Ray to end job {_job_of(run)}"
        self._store.add_event(run.run_id, reason="job_stop_requested", message=message)

    def _move(self, run: Run, move: Move) -> None:
        fields = {"traceback": move.traceback} if move.traceback and not run.traceback else {}
        moved = self._store.transition(
            run.run_id, move.target, expected={run.state}, reason=move.reason, message=move.reason, **fields
        )
        if not moved:
            return
        if move.event is not None:
            self._store.add_event(run.run_id, reason=move.event, message=move.reason)
        logger.info(
            "Run %s is %s: %s",
            run.run_id,
            move.target.label,
            move.reason,
            extra={"action": "run_moved", "run_id": run.run_id, "state": move.target.label},
        )

    def _stop_is_overdue(self, run: Run, job: JobState | None) -> bool:
        """Tell whether the workers had their time to reach the end of an epoch like the last one."""
        due = self._stop_due.get(run.run_id)
        if due is None:
            if job is not None and job.state is JobStatus.PENDING:
                return True
            grace = self._settings.shutdown_grace_seconds
            latest = self._store.latest_epochs([run.run_id]).get(run.run_id)
            if latest is not None:
                grace = max(grace, 2 * (latest.finished_at - latest.started_at).total_seconds())
            due = self._stop_due[run.run_id] = self._clock() + grace
        return self._clock() >= due

    def _tell_too_large(self, run: Run) -> None:
        if run.run_id in self._told_too_large:
            return
        self._told_too_large.add(run.run_id)
        scaling = run.spec.scaling
        message = (
            f"the cluster is too small now for {scaling.total_cpus:g} CPUs and {scaling.total_gpus} GPUs; "
            "the run waits until it has grown, others go first"
        )
        self._store.add_event(run.run_id, reason="does_not_fit", message=message)

    def _note_outage(self, trouble: str) -> None:
        outage = self._outage
        if outage.since is None:
            outage.since = self._clock()
        if self._clock() - outage.since < OUTAGE_SECONDS:
            return
        if not outage.logged:
            outage.logged = True
            logger.warning("%s", trouble, extra={"action": "cluster_unavailable"})
        for run in self._holding():
            if run.run_id not in outage.told:
                outage.told.add(run.run_id)
                self._store.add_event(run.run_id, reason="cluster_unavailable", message=trouble)

    def _forget_ended(self, runs: list[Run]) -> None:
        active = {run.run_id for run in runs}
        for run_id in self._spool.known() - active:
            self._spool.forget(run_id)
        self._told_too_large &= active
        for run_id in self._stop_due.keys() - active:
            del self._stop_due[run_id]


class ReconcilerLoop:
    """Runs `Reconciler.step` in a thread, at an interval and whenever woken."""

    def __init__(self, reconciler: Reconciler, *, interval_seconds: float) -> None:
        self._reconciler = reconciler
        self._interval = interval_seconds
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="curvewatch-reconciler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """Let the next step begin now; any thread may call."""
        self._wake.set()

    def stop(self, *, seconds: float = 15) -> None:
        """End the thread after the step that it is in; wait for it no longer than this."""
        self._stopping = True
        self._wake.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        pause = self._interval
        while not self._stopping:
            self._wake.clear()
            try:
                answered = self._reconciler.step()
            except Exception:
                answered = False
                logger.exception("A pass of the reconciler failed.", extra={"action": "reconcile_failed"})
            longest = max(self._interval, LONGEST_PAUSE_SECONDS)
            pause = self._interval if answered else min(2 * pause, longest)
            self._wake.wait(pause)
