"""The run that a hook tells of its epochs, as records that say whose means they hold."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from curvewatch_workers.errors import HookError
from curvewatch_workers.hooks.curve_file import Row

if TYPE_CHECKING:
    from curvewatch_workers.contract import EpochRecord, SplitRecord
    from curvewatch_workers.meter import MeterRun


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """How a training begins or goes on."""

    after: int
    """The last epoch that is not trained again."""
    processes: int
    """How many train together."""
    planned: int | None
    """The epochs that it is to have in all; None when that is open."""
    known: Mapping[int, Row]
    """The epochs before, as far as they are known."""


class RunFeed(Protocol):
    """Tells the epochs of a training."""

    def begin(self, beginning: Beginning) -> None:
        """Say that the training begins or goes on."""

    def tell(self, epoch: int, row: Row) -> bool:
        """Tell a finished epoch; return whether the service wants the run to end."""

    def note(self, epoch: int) -> None:
        """Note an epoch that the leader tells."""

    def end(self, reason: str, error: BaseException | None = None) -> None:
        """Say that the training is over, and why, in one sentence; or what ended it early."""


class NoRun:
    """Nobody to tell."""

    def begin(self, beginning: Beginning) -> None:
        """Do nothing."""

    def tell(self, epoch: int, row: Row) -> bool:
        """Go on."""
        return False

    def note(self, epoch: int) -> None:
        """Do nothing."""

    def end(self, reason: str, error: BaseException | None = None) -> None:
        """Do nothing."""


class Stopwatch:
    """When an epoch began, and how long it took; its end is the beginning of the next."""

    def __init__(self) -> None:
        self._at, self._clock = dt.datetime.now(dt.UTC), time.perf_counter()

    def lap(self) -> tuple[dt.datetime, float]:
        """Return when the epoch began and its seconds, and begin the next."""
        began, seconds = self._at, time.perf_counter() - self._clock
        self._at, self._clock = began + dt.timedelta(seconds=seconds), self._clock + seconds
        return began, seconds


class JobRun:
    """The run of a job whose loop is the user's.

    Args:
        run: The run.
        framework: Whose means the numbers are, such as `lightning`.
    """

    def __init__(self, run: MeterRun, framework: str) -> None:
        self._run, self._framework = run, framework
        self._watch = Stopwatch()
        self._ranks = 1 if run.group is None else run.group.world_size

    def begin(self, beginning: Beginning) -> None:
        """Say after which epoch the attempt goes on.

        Raises:
            HookError: Each worker trains by itself, and the numbers would be those of one of them.
        """
        processes = beginning.processes
        if processes != self._ranks:
            raise HookError(
                f"CurvewatchCallback: the job has {self._ranks} workers, but {self._framework} trains on "
                f"{processes} {'process' if processes == 1 else 'processes'} together; set it up for "
                f"{self._ranks}, or set scaling.workers to {processes}"
            )
        self._run.last_epoch = beginning.after
        self._run.start(beginning.after)
        self._watch = Stopwatch()

    def tell(self, epoch: int, row: Row) -> bool:
        """Report a finished epoch."""
        from curvewatch_workers.contract import Control, EpochFinished

        record = record_of(
            row,
            *self._watch.lap(),
            run_id=self._run.run_id,
            attempt=self._run.attempt,
            epoch=epoch,
            ranks=self._ranks,
            framework=self._framework,
        )
        self._run.reporter.send(EpochFinished(record=record))
        self._run.control = self._run.reporter.control()
        self.note(epoch)
        return self._run.control is not Control.CONTINUE

    def note(self, epoch: int) -> None:
        """Note an epoch that the leader tells."""
        self._run.last_epoch = epoch

    def end(self, reason: str, error: BaseException | None = None) -> None:
        """Do nothing: the job goes on with what the user's function does next."""


def record_of(
    row: Row,
    started_at: dt.datetime,
    seconds: float,
    *,
    run_id: str,
    attempt: int,
    epoch: int,
    ranks: int,
    framework: str,
) -> EpochRecord:
    """Return the record of an epoch whose numbers are a framework's own means: nothing was counted.

    Args:
        row: The numbers.
        started_at: When the epoch began.
        seconds: How long it took.
        run_id: The run.
        attempt: Its start.
        epoch: The epoch, from 1.
        ranks: How many trained it.
        framework: Whose means they are.
    """
    from curvewatch_workers.contract import EpochRecord

    return EpochRecord(
        run_id=run_id,
        attempt=attempt,
        epoch=epoch,
        world_size=ranks,
        started_at=started_at,
        finished_at=started_at + dt.timedelta(seconds=seconds),
        learning_rate=math.nan if row.learning_rate is None else row.learning_rate,
        rank_seconds=(seconds,) * ranks,
        train=_split(row.train, None, ranks, framework),
        validation=_split(row.validation, row.accuracy, ranks, framework),
    )


def _split(loss: float | None, accuracy: float | None, ranks: int, framework: str) -> SplitRecord:
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
        ranks=(RankShare(loss_sum=0.0, weight_sum=0.0, samples=0),) * ranks,
        reported_by=framework,
    )
