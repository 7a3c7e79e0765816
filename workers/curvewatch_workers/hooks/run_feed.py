"""The run of a Curvewatch job that a hook is in: its epochs, as records that say whose means they hold."""

from __future__ import annotations

import datetime as dt
import math
import time
from typing import TYPE_CHECKING, Protocol

from curvewatch_workers.errors import HookError
from curvewatch_workers.hooks.curve_file import Row
from curvewatch_workers.meter_run import RUN

if TYPE_CHECKING:
    from curvewatch_workers.contract import SplitRecord
    from curvewatch_workers.meter import MeterRun


class RunFeed(Protocol):
    """Tells the epochs of a training."""

    def begin(self, after_epoch: int, processes: int) -> None:
        """Say after which epoch the training goes on, and on how many processes."""

    def tell(self, epoch: int, row: Row) -> bool:
        """Tell a finished epoch; return whether the service wants the run to end."""

    def note(self, epoch: int) -> None:
        """Note an epoch that the leader tells."""


class NoRun:
    """Outside of a job there is nobody to tell."""

    def begin(self, after_epoch: int, processes: int) -> None:
        """Do nothing."""

    def tell(self, epoch: int, row: Row) -> bool:
        """Go on."""
        return False

    def note(self, epoch: int) -> None:
        """Do nothing."""


class JobRun:
    """A run whose loop is the user's.

    Args:
        run: The run.
        framework: Whose means the numbers are, such as `lightning`.
    """

    def __init__(self, run: MeterRun, framework: str) -> None:
        self._run, self._framework = run, framework
        self._started_at, self._clock = dt.datetime.now(dt.UTC), time.perf_counter()
        self._ranks = 1 if run.group is None else run.group.world_size

    def begin(self, after_epoch: int, processes: int) -> None:
        """Say after which epoch the attempt goes on.

        Raises:
            HookError: Each worker trains by itself, and the numbers would be those of one of them.
        """
        if processes != self._ranks:
            raise HookError(
                f"CurvewatchCallback: the job has {self._ranks} workers, but {self._framework} trains on "
                f"{processes} {'process' if processes == 1 else 'processes'} together; set it up for "
                f"{self._ranks}, or set scaling.workers to {processes}"
            )
        self._run.last_epoch = after_epoch
        self._run.start(after_epoch)
        self._started_at, self._clock = dt.datetime.now(dt.UTC), time.perf_counter()

    def tell(self, epoch: int, row: Row) -> bool:
        """Report a finished epoch."""
        from curvewatch_workers.contract import Control, EpochFinished, EpochRecord

        seconds = time.perf_counter() - self._clock
        record = EpochRecord(
            run_id=self._run.run_id,
            attempt=self._run.attempt,
            epoch=epoch,
            world_size=self._ranks,
            started_at=self._started_at,
            finished_at=self._started_at + dt.timedelta(seconds=seconds),
            learning_rate=math.nan if row.learning_rate is None else row.learning_rate,
            rank_seconds=(seconds,) * self._ranks,
            train=self._split(row.train, None),
            validation=self._split(row.validation, row.accuracy),
        )
        self._run.reporter.send(EpochFinished(record=record))
        self._run.control = self._run.reporter.control()
        self.note(epoch)
        self._started_at, self._clock = record.finished_at, self._clock + seconds
        return self._run.control is not Control.CONTINUE

    def note(self, epoch: int) -> None:
        """Note an epoch that the leader tells."""
        self._run.last_epoch = epoch

    def _split(self, loss: float | None, accuracy: float | None) -> SplitRecord:
        from curvewatch_workers.contract import MetricTotals, RankShare, SplitRecord

        known = loss is not None and math.isfinite(loss)
        told = accuracy is not None and math.isfinite(accuracy)
        return SplitRecord(
            loss_sum=loss if known else 0.0,
            loss_square_sum=0.0,
            weight_sum=1.0 if known else 0.0,
            samples_expected=0,
            samples_seen=0,
            checksum_expected=0,
            checksum_seen=0,
            nonfinite_samples=0,
            metrics={"accuracy": MetricTotals(total=accuracy, count=1)} if told else {},
            ranks=(RankShare(loss_sum=0.0, weight_sum=0.0, samples=0),) * self._ranks,
            reported_by=self._framework,
        )


def feed_of_process(framework: str) -> RunFeed:
    """Return what tells the run of the job that this process is in; outside of a job what tells nobody."""
    run = RUN.get()
    return NoRun() if run is None else JobRun(run, framework)
