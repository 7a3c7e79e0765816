"""The outbox: the epochs that the remote-write receiver has not taken yet.

An epoch comes into it in the transaction that stores it, so that no crash comes between the two, and leaves it once
the receiver has answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from curvewatch_service.rows import add_event, lock_run
from curvewatch_service.samples import end_millisecond
from curvewatch_service.stored import Run, run_from
from curvewatch_service.tables import EpochRow, OutboxRow, RunRow
from curvewatch_workers.contract import EpochRecord

HISTORY_REFUSED = "history_refused"
"""Reason of the event that the receiver will never take an epoch; a run has it once."""


@dataclass(frozen=True, kw_only=True)
class Pending:
    """One epoch that waits."""

    outbox_id: int
    run: Run
    record: EpochRecord
    millisecond: int
    """Time of its samples, in milliseconds since 1970."""


def add(session: Session, row: RunRow, record: EpochRecord) -> None:
    """Put an epoch into the outbox, in the transaction that stores it and that holds its run.

    Prometheus takes the samples of a series in order of time only. So one that ended no later than what is in the
    outbox before it is put a millisecond after that: another machine's clock, or a record that came late.
    """
    time, before = end_millisecond(record), row.sent_until_millisecond
    if before is not None:
        time = max(time, before + 1)
    row.sent_until_millisecond = time
    session.add(OutboxRow(run_id=record.run_id, epoch=record.epoch, attempt=record.attempt, millisecond=time))


def pending(session: Session, *, most: int) -> list[Pending]:
    """Return the epochs that have waited longest; those of one run in order of time."""
    query = (
        select(OutboxRow, EpochRow.record)
        .join(
            EpochRow,
            (EpochRow.run_id == OutboxRow.run_id)
            & (EpochRow.epoch == OutboxRow.epoch)
            & (EpochRow.attempt == OutboxRow.attempt),
        )
        .order_by(OutboxRow.outbox_id)
        .limit(most)
    )
    rows = session.execute(query).all()
    ids = {waiting.run_id for waiting, _ in rows}
    runs = {
        row.run_id: run_from(row) for row in session.scalars(select(RunRow).where(RunRow.run_id.in_(ids)))
    }
    return [
        Pending(
            outbox_id=waiting.outbox_id,
            run=runs[waiting.run_id],
            record=EpochRecord.model_validate_json(record),
            millisecond=waiting.millisecond,
        )
        for waiting, record in rows
    ]


def remove(session: Session, epochs: Iterable[Pending]) -> int:
    """Take epochs out; returns how many were still in it."""
    ids = [epoch.outbox_id for epoch in epochs]
    gone = session.scalars(
        delete(OutboxRow).where(OutboxRow.outbox_id.in_(ids)).returning(OutboxRow.outbox_id)
    )
    return len(gone.all())


def refuse(session: Session, epoch: Pending, why: str) -> bool | None:
    """Take an epoch out that the receiver will never take, and note the first of a run as an event.

    Returns:
        Whether it is the first of its run; None when it was not in the outbox any more.
    """
    lock_run(session, epoch.run.run_id)
    if not remove(session, [epoch]):
        return None
    text = (
        f"the remote-write receiver will never take epoch {epoch.record.epoch} ({why}); the run itself has it, and "
        "`curvewatch export --openmetrics` exports it. Of other epochs of this run that it refuses no event tells."
    )
    return add_event(session, epoch.run.run_id, HISTORY_REFUSED, text, "service", key=HISTORY_REFUSED)
