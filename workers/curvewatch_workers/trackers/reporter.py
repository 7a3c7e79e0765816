"""The reporter that feeds trackers with what it passes on."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial

from curvewatch_workers.contract import (
    Control,
    IngestMessage,
    RunLayout,
    TrackerName,
    WorkerEvent,
    WorkerJob,
)
from curvewatch_workers.errors import TrackerError, shortened
from curvewatch_workers.reporter import Reporter
from curvewatch_workers.trackers.feed import Feed
from curvewatch_workers.trackers.tracker import FLUSH_SECONDS, TrackedRun, Tracker, claim_key

logger = logging.getLogger(__name__)

_LONGEST_EVENT = 1000


class TrackingReporter:
    """Passes every message on, and gives it to the trackers.

    Args:
        inner: Takes the messages, and one event for each tracker that fails.
        attempt: The attempt.
        flush_seconds: Longest wait for all trackers together in `close`.
    """

    def __init__(self, inner: Reporter, attempt: int, *, flush_seconds: float = FLUSH_SECONDS) -> None:
        self._inner = inner
        self._attempt = attempt
        self._flush = flush_seconds
        self._feeds: list[Feed] = []

    def add(self, name: str, make: Callable[[], Tracker], superseded: Callable[[], bool]) -> None:
        """Make a tracker and feed it; one that cannot be made is told and left out."""
        try:
            self._feeds.append(Feed(name, make(), self._tell, superseded))
        except Exception as error:
            logger.debug("Tracker %s", name, exc_info=True, extra={"action": "tracker_traceback"})
            self._tell(f"tracker {name} cannot be used: {error}")

    def send(self, message: IngestMessage) -> None:
        """Take a message; returns at once."""
        self._inner.send(message)
        for feed in self._feeds:
            feed.put(message)

    def control(self) -> Control:
        """Return the inner reporter's control word."""
        return self._inner.control()

    def close(self) -> None:
        """Wait for the trackers for at most `flush_seconds`, then close the inner reporter."""
        deadline = time.monotonic() + self._flush
        for feed in self._feeds:
            feed.end()
        for feed in self._feeds:
            if not feed.ended(deadline - time.monotonic()):
                self._tell(
                    f"tracker {feed.name} had not taken everything {self._flush:g} s after the last epoch"
                )
        self._inner.close()

    def _tell(self, what: str) -> None:
        message = f"{shortened(' '.join(what.split()), _LONGEST_EVENT)}; the run goes on without it"
        logger.warning("%s", message, extra={"action": "tracker_failed"})
        now = dt.datetime.now(dt.UTC)
        self._inner.send(
            WorkerEvent(attempt=self._attempt, time=now, reason="tracker_failed", message=message)
        )


def tracked(
    job: WorkerJob,
    attempt: int,
    reporter: Reporter,
    environment: Mapping[str, str],
    *,
    flush_seconds: float = FLUSH_SECONDS,
) -> Reporter:
    """Return a reporter that also feeds the job's trackers; the reporter itself when the job has none.

    Libraries are imported here, before training: a process that loads data must not be forked in the middle of an
    import.

    Args:
        job: The job.
        attempt: The attempt.
        reporter: Rank 0's reporter of the attempt.
        environment: The process's environment variables.
        flush_seconds: Longest wait for the trackers when the reporter is closed.
    """
    if not job.spec.track:
        return reporter
    layout = RunLayout(job.storage_path, job.run_id)
    successor = layout.attempts / f"{attempt + 1:06d}"
    tracking = TrackingReporter(reporter, attempt, flush_seconds=flush_seconds)
    for name in job.spec.track:
        tracking.add(name, partial(_make, name, job, layout, environment), successor.exists)
    return tracking


def _make(name: TrackerName, job: WorkerJob, layout: RunLayout, environment: Mapping[str, str]) -> Tracker:
    layout.tracking.mkdir(parents=True, exist_ok=True)
    run = TrackedRun(
        run_id=job.run_id,
        key=claim_key(layout.tracking, job.run_id),
        spec=job.spec,
        folder=layout.tracking,
        environment=environment,
    )
    try:
        return _tracker_class(name)(run)
    except ModuleNotFoundError as error:
        raise TrackerError(
            f"it needs the Python package {error.name!r}, which the workers do not have; "
            f"install curvewatch[{name}] where they run"
        ) from error


def _tracker_class(name: TrackerName) -> Callable[[TrackedRun], Tracker]:
    """Import a tracker, and with it its library."""
    match name:
        case "tensorboard":
            from curvewatch_workers.trackers.tensorboard_tracker import TensorBoardTracker

            return TensorBoardTracker
        case "wandb":
            from curvewatch_workers.trackers.wandb_tracker import WandbTracker

            return WandbTracker
        case "mlflow":
            from curvewatch_workers.trackers.mlflow_tracker import MlflowTracker

            return MlflowTracker
        case "csv":
            from curvewatch_workers.trackers.csv_tracker import CsvTracker

            return CsvTracker
        case "jsonl":
            from curvewatch_workers.trackers.jsonl_tracker import JsonlTracker

            return JsonlTracker
