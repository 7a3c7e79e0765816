"""What the messages of workers do to a run: idempotent, and the same in whatever order they arrive."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from curvewatch_service import outbox, replays
from curvewatch_service.curves import describe_curve, describe_savings, finite, read_further
from curvewatch_service.errors import BadRequestError
from curvewatch_service.pace import SLOWNESS_EPOCHS, rank_slowness
from curvewatch_service.rows import REPLAY_KEY, add_event, other_attempts, visible_epochs
from curvewatch_service.runs import RunState
from curvewatch_service.tables import AttemptRow, EpochRow, RunRow
from curvewatch_workers.contract import (
    SPLITS,
    AttemptStarted,
    EpochFinished,
    EpochRecord,
    IngestMessage,
    JobSpec,
    RunFinished,
    WorkerEvent,
    standing,
)
from curvewatch_workers.diagnosis import Curve

LARGEST_INTEGER = 2**53
"""Largest number kept: a float64 of a chart or of Prometheus holds it exactly, and sums stay below 2**63."""
_logger = logging.getLogger(__name__)


class Ingestion:
    """Takes messages for one run, inside one transaction that holds the run."""

    def __init__(self, session: Session, row: RunRow, *, to_outbox: bool = False) -> None:
        self._session = session
        self._row = row
        self._to_outbox = to_outbox
        self._new: list[EpochRecord] = []
        self.raised_attempt = False
        """Whether a message told of a higher attempt than any before, of the job's present start."""

    def take(self, messages: Sequence[IngestMessage]) -> Counter[str]:
        """Apply messages; those that were taken before change nothing.

        Returns:
            How many were new, by kind.

        Raises:
            BadRequestError: A message is about another run or holds a number or time that cannot be kept.
        """
        new: Counter[str] = Counter()
        for message in messages:
            new[message.kind] += self._take(message)
        # An attempt or an outcome that comes after the end tells where the curve ends.
        if new["epoch"] or (new.total() and RunState.parse(self._row.state).terminal):
            self.refresh()
        return new

    def _take(self, message: IngestMessage) -> bool:
        match message:
            case AttemptStarted():
                return self._attempt(message)
            case EpochFinished():
                return self._epoch(message.record)
            case WorkerEvent():
                return self._event(message)
            case RunFinished():
                return self._finished(message)

    def _attempt(self, message: AttemptStarted) -> bool:
        row, attempt = self._row, message.attempt
        _require_storable(attempt=attempt, epoch=message.resumed_after_epoch, world_size=message.world_size)
        _require_utc(time=message.time)
        if self._session.get(AttemptRow, (row.run_id, attempt)) is not None:
            return False
        self._session.add(
            AttemptRow(
                run_id=row.run_id,
                attempt=attempt,
                started_at=message.time,
                world_size=message.world_size,
                resumed_after_epoch=message.resumed_after_epoch,
            )
        )
        if row.started_at is None or message.time < row.started_at:
            row.started_at = message.time
        if attempt > row.attempt:
            if row.world_size not in (None, message.world_size):
                text = f"attempt {attempt} trains on {message.world_size} workers, the one before on {row.world_size}"
                add_event(self._session, row.run_id, "world_size_changed", text, "worker", time=message.time)
            row.attempt, row.world_size = attempt, message.world_size
            # A late word from an earlier start of the job does not make the present one run.
            self.raised_attempt = self.raised_attempt or message.submission == row.submission
        if attempt > 1:
            origin = _origin(message)
            text = f"attempt {attempt} started on {message.world_size} workers, {origin}"
            add_event(self._session, row.run_id, "worker_restart", text, "worker", time=message.time)
        self._session.flush()
        return True

    def _epoch(self, record: EpochRecord) -> bool:
        run_id = self._row.run_id
        if record.run_id != run_id:
            raise BadRequestError(
                f"a record of run {record.run_id!r} was sent to run {run_id!r}; "
                "send each run's records to its own address"
            )
        _require_storable(
            attempt=record.attempt,
            epoch=record.epoch,
            world_size=record.world_size,
            samples=max(record.train.samples_seen, record.validation.samples_seen),
            nonfinite_samples=max(record.train.nonfinite_samples, record.validation.nonfinite_samples),
        )
        _require_utc(started_at=record.started_at, finished_at=record.finished_at)
        if self._session.get(EpochRow, (run_id, record.epoch, record.attempt)) is not None:
            return False
        self._session.add(_epoch_row(record))
        frameworks = {record.split(name).reported_by for name in SPLITS} - {None}
        wrong = [name for name in SPLITS if not record.split(name).exact]
        if frameworks:
            names = " and ".join(sorted(map(str, frameworks)))
            text = (
                f"the numbers are the means that {names} reports: which samples are behind them is not known, so that "
                "no epoch counts as exact"
            )
            key = reason = "means_of_framework"
            add_event(self._session, run_id, reason, text, "worker", time=record.finished_at, key=key)
        elif wrong:
            key = f"receipt_not_exact:{record.epoch}"
            text = _receipt_message(record, wrong)
            add_event(
                self._session, run_id, "receipt_not_exact", text, "worker", time=record.finished_at, key=key
            )
        self._compare_replays(record)
        self._new.append(record)
        self._session.flush()
        if self._to_outbox:
            outbox.add(self._session, self._row, record)
        return True

    def _compare_replays(self, record: EpochRecord) -> None:
        """Note once for an epoch that two of its attempts differ, whichever of them came first."""
        for other in other_attempts(self._session, record):
            one, again = sorted((other, record), key=lambda found: found.attempt)
            numbers = replays.difference(one, again)
            if numbers is not None:
                add_event(
                    self._session,
                    record.run_id,
                    replays.reason_for(JobSpec.model_validate_json(self._row.spec)),
                    replays.describe(one, again, numbers),
                    "worker",
                    time=again.finished_at,
                    key=f"{REPLAY_KEY}{record.epoch}",
                )
                return

    def _event(self, message: WorkerEvent) -> bool:
        _require_storable(attempt=message.attempt)
        _require_utc(time=message.time)
        key = hashlib.sha256(message.model_dump_json().encode()).hexdigest()
        return add_event(
            self._session,
            self._row.run_id,
            message.reason,
            message.message,
            "worker",
            time=message.time,
            key=key,
        )

    def _finished(self, message: RunFinished) -> bool:
        row = self._row
        _require_utc(time=message.time)
        # Of an earlier start of the job, or told before.
        if message.submission != row.submission or (row.outcome_at and message.time <= row.outcome_at):
            return False
        row.outcome, row.outcome_at, row.outcome_reason = message.outcome.value, message.time, message.reason
        row.traceback = message.traceback
        row.checkpoint = message.checkpoint or row.checkpoint
        row.best_checkpoint = message.best_checkpoint or row.best_checkpoint
        return True

    def refresh(self) -> None:
        """Bring the run's latest epoch and its diagnosis up to its curve."""
        row, session = self._row, self._session
        # Without the records themselves: a long run has many, and each epoch comes by here.
        columns = (getattr(EpochRow, name) for name in Point._fields)
        points = [Point(*values) for values in session.execute(visible_epochs(session, row, *columns))]
        row.epoch = points[-1].epoch if points else 0
        spec = JobSpec.model_validate_json(row.spec)
        try:
            curve, before = curve_of(points), row.diagnosis
            found, counted = read_further(curve, before, unchanged=self._unchanged())
            said = describe_curve(curve, window=spec.patience_epochs, said=found)
            # With the diagnosis, so that who asks how a run is doing does not have its records read each time.
            savings = savings_until(session, row, spec, best=said["best_epoch"], last=len(curve))
            counted["nonfinite_epochs"] = _nonfinite_epochs(points)
            row.diagnosis = {**said, **counted, **self._pace(before or {}), "savings": savings}
        except Exception:  # a curve that cannot be read must not cost the records
            _logger.exception(
                "The curve of run %s could not be diagnosed.",
                row.run_id,
                extra={"action": "diagnosis_failed", "run_id": row.run_id},
            )

    def _unchanged(self) -> int:
        """Return how many first epochs of the curve are as they were before this."""
        # A rescue takes the place of the epochs that it undid.
        first = (min(record.epoch, (record.rolled_back_to or record.epoch) + 1) for record in self._new)
        return min(first, default=LARGEST_INTEGER) - 1

    def _pace(self, before: dict[str, Any]) -> dict[str, Any]:
        longest = [record.duration_seconds for record in self._new]
        if before.get("longest_epoch_seconds") is not None:
            longest.append(before["longest_epoch_seconds"])
        query = visible_epochs(self._session, self._row, EpochRow.record).where(
            EpochRow.epoch > self._row.epoch - SLOWNESS_EPOCHS
        )
        several = self._row.world_size is not None and self._row.world_size > 1
        latest = self._session.scalars(query) if several else ()
        return {
            "longest_epoch_seconds": max(longest, default=None),
            "rank_slowness": rank_slowness([EpochRecord.model_validate_json(record) for record in latest]),
        }


def savings_until(
    session: Session, row: RunRow, spec: JobSpec, *, best: int | None, last: int
) -> dict[str, Any] | None:
    """Work out what stopping a run at its best epoch would have saved until another."""
    if best is None or best == last:
        return None
    query = visible_epochs(session, row, EpochRow.record).where(EpochRow.epoch.between(best, last))
    records = [EpochRecord.model_validate_json(record) for record in session.scalars(query)]
    return describe_savings(records, spec)


class Point(NamedTuple):
    """What a curve takes of an epoch; null where a number is not finite."""

    epoch: int
    train_loss: float | None
    validation_loss: float | None
    validation_error: float | None
    validation_metrics: dict[str, float | None]
    validation_nonfinite_samples: int
    nonfinite: bool
    learning_rate: float | None
    rolled_back_to: int | None


def curve_of(points: Sequence[Point]) -> Curve:
    """Return the curve from epoch 1 up to the first epoch that is missing (it may still be on its way).

    In place of an epoch that a rescue undid stands the one whose weights came back.
    """
    known = standing([point for number, point in enumerate(points, start=1) if point.epoch == number])
    names = set.intersection(*(set(point.validation_metrics) for point in known)) if known else set()
    return Curve(
        train=tuple(_number(point.train_loss) for point in known),
        # As checkpoints are ranked: a mean over what was finite compares with no other epoch.
        validation=tuple(
            math.nan if point.validation_nonfinite_samples else _number(point.validation_loss)
            for point in known
        ),
        validation_errors=tuple(_number(point.validation_error) for point in known),
        nonfinite=tuple(point.nonfinite for point in known),
        metrics={
            name: tuple(_number(point.validation_metrics[name]) for point in known) for name in sorted(names)
        },
        learning_rates=tuple(_number(point.learning_rate) for point in known),
    )


def _nonfinite_epochs(points: Sequence[Point]) -> int:
    """Return how many latest epochs in a row have a sample whose loss is not finite."""
    return next((count for count, point in enumerate(reversed(points)) if not point.nonfinite), len(points))


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _epoch_row(record: EpochRecord) -> EpochRow:
    train, validation = record.train, record.validation
    return EpochRow(
        run_id=record.run_id,
        epoch=record.epoch,
        attempt=record.attempt,
        train_loss=finite(train.loss),
        validation_loss=finite(validation.loss),
        validation_error=finite(validation.standard_error),
        validation_metrics=finite(validation.metric_values),
        nonfinite=bool(train.nonfinite_samples or validation.nonfinite_samples),
        learning_rate=finite(record.learning_rate),
        rolled_back_to=record.rolled_back_to,
        train_samples=train.samples_seen,
        train_nonfinite_samples=train.nonfinite_samples,
        validation_nonfinite_samples=validation.nonfinite_samples,
        worker_seconds=record.duration_seconds * record.world_size,
        record=record.model_dump_json(),
    )


def _receipt_message(record: EpochRecord, wrong: Sequence[str]) -> str:
    counts = ", ".join(
        f"{name} saw {split.samples_seen} of {split.samples_expected} samples"
        for name, split in (("train", record.train), ("validation", record.validation))
        if name in wrong
    )
    return f"epoch {record.epoch} did not count each sample exactly once: {counts}"


def _origin(message: AttemptStarted) -> str:
    """Say where in the run an attempt begins."""
    epoch, step = message.resumed_after_epoch, message.resumed_after_step
    if step:
        return f"after step {step} of epoch {epoch + 1}"
    return f"after epoch {epoch}" if epoch else "from the beginning"


def _require_storable(**numbers: int) -> None:
    for name, number in numbers.items():
        if number > LARGEST_INTEGER:
            raise BadRequestError(
                f"{name} is {number}, more than the largest integer kept, {LARGEST_INTEGER}"
            )


def _require_utc(**times: datetime) -> None:
    """Refuse the hours around the years 1 and 9999 whose moment in UTC has no date."""
    for name, time in times.items():
        try:
            time.astimezone(UTC)
        except OverflowError:
            raise BadRequestError(
                f"{name} is {time.isoformat()}, which in UTC is not in the years 1 to 9999; "
                "is the clock of its machine right?"
            ) from None
