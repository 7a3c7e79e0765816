"""Keeps the store and the cluster in step: load, decide, apply unless somebody else was first."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from curvewatch_service.cluster import Cluster, JobState, JobStatus
from curvewatch_service.decisions import Action, Move, StopJob, Submit, decide, decide_elsewhere, pause_after
from curvewatch_service.elsewhere import Silence
from curvewatch_service.errors import CannotFitError, ClusterUnavailableError, JobRefusedError
from curvewatch_service.planning import Resources, plan, require_fit
from curvewatch_service.ray_head import write_private
from curvewatch_service.runs import RunState
from curvewatch_service.settings import Settings
from curvewatch_service.spool import SpoolReader
from curvewatch_service.store import CLUSTER_LOST_JOB, DRIVER_DIED, Run, Store
from curvewatch_workers.contract import Control, KeptFailure, RunLayout, WorkerJob, repeated_failure
from curvewatch_workers.series import RECONCILE_ERRORS

logger = logging.getLogger(__name__)

OUTAGE_SECONDS = 30.0
"""Silence of the cluster after which its runs are told of it; a head that starts is silent for less."""
STOP_AGAIN_SECONDS = 30.0
"""Pause between two requests to end the same job."""
LAST_WORDS_SECONDS = 10.0
"""How long after its job has ended a program's last lines may take through a shared file system."""
LATE_SPOOL_SECONDS = 10.0
"""Pause between two looks at the spools of runs that have ended."""
LATE_AT_START_SECONDS = 3600.0
"""How far back runs have ended whose spools are read once when the service starts."""
LONGEST_PAUSE_SECONDS = 10.0
"""Between two looks at a cluster that does not answer."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _job_of(run: Run) -> str:
    if run.submission_id is None:
        raise RuntimeError(f"run {run.run_id} is {run.state.label} but was never submitted")
    return run.submission_id


def _workers_of(run: Run) -> int:
    """Return how many workers a run that is on the cluster has there, as far as it is known."""
    scaling = run.spec.scaling
    return run.world_size if scaling.elastic and run.world_size else scaling.min_workers


def _failed(job: JobState | None) -> bool:
    return job is not None and job.state is JobStatus.FAILED


def _write_for_workers(job: WorkerJob) -> None:
    path = RunLayout(job.storage_path, job.run_id).job(job.submission)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, job.model_dump_json())


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
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        self.admitting = True
        """Whether queued runs are given to the cluster."""
        self._store = store
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._now = now
        self._silence = Silence(store, clock)
        self._spool = SpoolReader(store, settings.storage_path)
        self._outage = _Outage()
        self._stop_due: dict[str, float] = {}
        self._ended_since: dict[str, float] = {}
        self._taken: set[str] = set()
        self._late_due: float | None = None
        self._told_too_large: set[str] = set()

    def step(self) -> bool:
        """Bring every run one step on; return whether the cluster answered."""
        runs = self._store.active_runs()
        self._forget_ended(runs)
        jobs = [run for run in runs if not run.trained_elsewhere]
        for run in jobs:
            self._guarded(run, self._take_spool)
        for run in runs:
            if run.trained_elsewhere:
                self._guarded(run, self._follow_elsewhere)
        answered = self._bring_on(jobs)
        self._take_late_spools()
        return answered

    def _bring_on(self, runs: list[Run]) -> bool:
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
        return [run for run in self._jobs() if run.state.holds_resources]

    def _jobs(self) -> list[Run]:
        """Return the runs of the cluster that have not ended, oldest first."""
        return [run for run in self._store.active_runs() if not run.trained_elsewhere]

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

    def _take_late_spools(self) -> None:
        """Take what reached the spools of runs after their end.

        It comes from ranks that outlived their driver, or through a file system that showed it late.
        """
        now, first = self._clock(), self._late_due is None
        if self._late_due is not None and now < self._late_due:
            return
        self._late_due = now + LATE_SPOOL_SECONDS
        seconds = self._settings.linger_seconds
        window = timedelta(seconds=max(seconds, LATE_AT_START_SECONDS) if first else seconds)
        shown = self._store.shown_since(self._now() - window)
        for run_id in shown:
            run = self._store.run(run_id)
            if run.state.terminal:
                self._guarded(run, self._take_spool)
        for run_id in self._spool.known() - set(shown):
            self._spool.forget(run_id)

    def _follow(self, run: Run) -> None:
        job = self._cluster.status(_job_of(run))
        if job is None or job.state.ended:
            # Its program has ended: what it wrote last decides what becomes of the run. A spool that
            # cannot be read must not keep the run from its end.
            self._guarded(run, self._take_spool)
        run = self._store.run(run.run_id)
        if not run.state.holds_resources:
            return
        match self._decide(run, job):
            case Submit():
                self._submit(run)
            case StopJob():
                self._stop_job(run)
            case Move() as move:
                if job is not None:
                    self._keep_logs(run)
                self._move(run, move)

    def _follow_elsewhere(self, run: Run) -> None:
        move = decide_elsewhere(
            run, silent=self._silence.seconds(run), allowed=self._settings.silence_seconds
        )
        if move is not None:
            self._move(run, move)

    def _decide(self, run: Run, job: JobState | None) -> Action | None:
        if job is not None:
            self._taken.add(_job_of(run))
        return decide(
            run,
            job,
            embedded=self._settings.embedded,
            stop_overdue=run.state is RunState.STOPPING and self._stop_is_overdue(run, job),
            told_all=self._told_all(run, job),
            taken=_job_of(run) in self._taken,
            losses=self._store.setbacks(run.run_id, CLUSTER_LOST_JOB).count if job is None else 0,
            deaths=self._store.setbacks(run.run_id, DRIVER_DIED).count if _failed(job) else 0,
            failure=self._repeated_failure(run) if _failed(job) else None,
        )

    def _repeated_failure(self, run: Run) -> KeptFailure | None:
        return repeated_failure(RunLayout(self._settings.storage_path, run.run_id), run.submission)

    def _admit(self) -> None:
        """Submit what is queued, oldest first, as long as it fits beside what is on the cluster."""
        runs = self._jobs()
        queued = [run for run in runs if run.state is RunState.QUEUED]
        if not queued:
            return
        total = self._cluster.resources()
        free = total
        for run in runs:
            if run.state.holds_resources:
                free = free.minus_workers(run.spec.scaling, _workers_of(run))
        for run in queued:
            if not total.holds(run.spec):
                self._guarded(run, lambda run: self._handle_too_large(run, total))
                continue
            if not free.holds(run.spec):
                # A smaller, younger run does not overtake: a large one would wait for ever.
                break
            free = free.minus_workers(run.spec.scaling, run.spec.scaling.min_workers)
            if self._pauses(run):
                # Its place is kept: nobody younger may take it in these seconds.
                continue
            started = self._store.begin_submission(run.run_id)
            if started is not None:
                self._guarded(started, self._submit)

    def _pauses(self, run: Run) -> bool:
        """Tell whether the death of its driver is too recent for another start."""
        deaths = self._store.setbacks(run.run_id, DRIVER_DIED)
        pause = timedelta(seconds=pause_after(deaths.count))
        # A death that lies ahead was told before the clock was set back: nobody waits for it.
        return deaths.latest is not None and deaths.latest <= self._now() < deaths.latest + pause

    def _submit(self, run: Run) -> None:
        request = plan(run, settings=self._settings)
        if request.worker_job is not None:
            _write_for_workers(request.worker_job)
        try:
            self._cluster.submit(request)
            self._taken.add(_job_of(run))
        except JobRefusedError as error:
            self._move(run, Move(target=RunState.FAILED, reason=str(error)))

    def _keep_logs(self, run: Run) -> None:
        try:
            self._cluster.keep_logs(_job_of(run))
        except (ClusterUnavailableError, OSError) as error:
            logger.warning(
                "The log of run %s is not kept: %s",
                run.run_id,
                error,
                extra={"action": "log_not_kept", "run_id": run.run_id},
            )

    def _stop_job(self, run: Run) -> None:
        self._cluster.stop(_job_of(run))
        self._stop_due[run.run_id] = self._clock() + STOP_AGAIN_SECONDS
        message = f"asked Ray to end job {_job_of(run)}"
        self._store.add_event(run.run_id, reason="job_stop_requested", message=message)

    def _move(self, run: Run, move: Move) -> None:
        fields = {"traceback": move.traceback} if move.traceback and not run.traceback else {}
        moved = self._store.transition(
            run.run_id,
            move.target,
            expected={run.state},
            reason=move.reason,
            message=move.reason,
            setback=None if move.event is None else (move.event, self._now()),
            **fields,
        )
        if not moved:
            return
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

    def _told_all(self, run: Run, job: JobState | None) -> bool:
        """Tell whether the job's last words have had their time to arrive since it was first seen ended."""
        if job is None or not job.state.ended:
            return True
        since = self._ended_since.setdefault(_job_of(run), self._clock())
        return self._clock() - since >= LAST_WORDS_SECONDS

    def _handle_too_large(self, run: Run, total: Resources) -> None:
        """Our own Ray never grows: the run has failed. Another cluster may: the run waits."""
        try:
            require_fit(run.spec, total)
        except CannotFitError as error:
            reason = str(error)
            if self._settings.embedded:
                self._move(run, Move(target=RunState.FAILED, reason=reason))
            elif run.run_id not in self._told_too_large:
                self._told_too_large.add(run.run_id)
                message = f"waits until the cluster has grown, others go first: {reason}"
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
        self._told_too_large &= active
        jobs = {run.submission_id for run in runs if run.submission_id is not None}
        self._taken &= jobs
        for job in self._ended_since.keys() - jobs:
            del self._ended_since[job]
        self._silence.keep(active)
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
