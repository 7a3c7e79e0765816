"""Reads and changes of rows inside a transaction, shared by the store and the ingest."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from curvewatch_service.errors import NotFoundError
from curvewatch_service.runs import RunState
from curvewatch_service.stored import Totals
from curvewatch_service.tables import AttemptRow, EpochRow, EventRow, RunRow
from curvewatch_workers.contract import Control, EpochRecord, JobSpec, Outcome

TERMINAL = frozenset(state for state in RunState if state.terminal)
LARGEST_EPOCH = 2**63 - 1
REPLAY_KEY = "replay:"
"""Begins the key of an event that an epoch's attempts differ; no key of a worker's event has a colon."""


def require_run(session: Session, run_id: str, *, lock: bool = False) -> RunRow:
    """Load a run.

    Raises:
        NotFoundError: There is none of this id.
    """
    row = session.get(RunRow, run_id, with_for_update=True if lock else None)
    if row is None:
        raise NotFoundError(f"there is no run {run_id!r}; list the runs to see their ids")
    return row


def lock_run(session: Session, run_id: str) -> RunRow:
    """Load a run and keep other writers from it until the transaction ends.

    Raises:
        NotFoundError: There is none of this id.
    """
    return require_run(session, run_id, lock=True)


def in_states(states: Collection[RunState]) -> ColumnElement[bool]:
    """Return the condition that a run is in one of these states."""
    return RunRow.state.in_([state.label for state in states])


def count_states(session: Session) -> dict[RunState, int]:
    """Return the number of runs in each state, 0 included."""
    counted = session.execute(select(RunRow.state, func.count()).group_by(RunRow.state))
    found = {row[0]: row[1] for row in counted}
    return {state: found.get(state.label, 0) for state in RunState}


def shown_runs(*columns: InstrumentedAttribute[Any], since: datetime) -> Select[Any]:
    """Return the query of the runs that have not ended, or not before a moment; oldest first."""
    return (
        select(*columns)
        .where(or_(~in_states(TERMINAL), RunRow.finished_at >= since))
        .order_by(RunRow.created_at, RunRow.run_id)
    )


def add_event(
    session: Session,
    run_id: str,
    reason: str,
    message: str,
    actor: str,
    *,
    time: datetime | None = None,
    key: str | None = None,
) -> bool:
    """Note that something happened; with a key it is noted once, and False tells that it was noted before."""
    if key is not None:
        told = select(EventRow.event_id).where(EventRow.run_id == run_id, EventRow.key == key)
        if session.scalar(told) is not None:
            return False
    session.add(
        EventRow(
            run_id=run_id,
            time=time or datetime.now(UTC),
            reason=reason,
            message=message,
            actor=actor,
            key=key,
        )
    )
    return True


def add_run(
    session: Session,
    state: RunState,
    *,
    run_id: str,
    spec: JobSpec,
    owner: str,
    code_hash: str,
    ingest_token_hash: str,
    reason: str,
    how: str,
    submission: int = 0,
) -> RunRow:
    """Add a run in its first state, with the event `state_<state>` that says how it came and why it is in it."""
    row = RunRow(
        run_id=run_id,
        name=spec.name,
        owner=owner,
        state=state.label,
        reason=reason,
        spec=spec.model_dump_json(),
        code_hash=code_hash,
        ingest_token_hash=ingest_token_hash,
        created_at=datetime.now(UTC),
        control=Control.CONTINUE.value,
        submission=submission,
    )
    session.add(row)
    session.flush()
    add_event(session, run_id, f"state_{state.label.lower()}", f"{how}; {reason}", owner)
    session.flush()
    return row


def move(
    session: Session,
    row: RunRow,
    target: RunState,
    *,
    reason: str,
    message: str,
    actor: str,
    time: datetime | None = None,
) -> None:
    """Move a run to another state, with the event `state_<target>`; at a time, by default now.

    Raises:
        IllegalTransitionError: The move is not one of the life of a run.
    """
    RunState.parse(row.state).require(target)
    now = time or datetime.now(UTC)
    row.state, row.reason = target.label, reason
    if target.terminal:
        row.finished_at = now
    add_event(session, row.run_id, f"state_{target.label.lower()}", message, actor, time=now)


def final_epoch(session: Session, row: RunRow) -> int:
    """Return the last epoch that belongs to a run's curve.

    Once a run has ended, that is where its final attempt came to: what an earlier one had trained beyond
    that went into no weights that were kept.
    """
    if not RunState.parse(row.state).terminal:
        return LARGEST_EPOCH
    of_run = EpochRow.run_id == row.run_id
    attempt = max(row.attempt, session.scalar(select(func.max(EpochRow.attempt)).where(of_run)) or 0)
    trained = session.scalar(select(func.max(EpochRow.epoch)).where(of_run, EpochRow.attempt == attempt))
    if trained is None and row.outcome in (Outcome.SUCCEEDED, Outcome.STOPPED):
        started = session.get(AttemptRow, (row.run_id, attempt))
        trained = None if started is None else started.resumed_after_epoch
    return LARGEST_EPOCH if trained is None else trained


_OTHER = aliased(EpochRow)
# Made once, as the other statements of a scrape are: to make one takes longer than to have it answered.
_HIGHEST = (
    select(func.max(_OTHER.attempt))
    .where(_OTHER.run_id == EpochRow.run_id, _OTHER.epoch == EpochRow.epoch)
    .correlate(EpochRow)
    .scalar_subquery()
)


def visible_epochs(session: Session, row: RunRow, *columns: InstrumentedAttribute[Any]) -> Select[Any]:
    """Return the query of a run's curve: these columns of each epoch's highest attempt, in order of epoch."""
    return (
        select(*columns)
        .where(EpochRow.run_id == row.run_id, EpochRow.attempt == _HIGHEST)
        .where(EpochRow.epoch <= final_epoch(session, row))
        .order_by(EpochRow.epoch)
    )


_LATEST = (
    select(EpochRow.record)
    .where(EpochRow.run_id == bindparam("of_run"), EpochRow.epoch <= bindparam("last"))
    .order_by(EpochRow.epoch.desc(), EpochRow.attempt.desc())
    .limit(1)
)


def latest_record(session: Session, row: RunRow) -> EpochRecord | None:
    """Return the record of a run's latest epoch; None before the first."""
    record = session.scalar(_LATEST, {"of_run": row.run_id, "last": final_epoch(session, row)})
    return None if record is None else EpochRecord.model_validate_json(record)


def other_attempts(session: Session, record: EpochRecord) -> list[EpochRecord]:
    """Return the records that other attempts have of the epoch of a record, in order of attempt."""
    query = (
        select(EpochRow.record)
        .where(EpochRow.run_id == record.run_id, EpochRow.epoch == record.epoch)
        .where(EpochRow.attempt != record.attempt)
        .order_by(EpochRow.attempt)
    )
    return [EpochRecord.model_validate_json(found) for found in session.scalars(query)]


# The largest over the attempts, and not the visible one: a counter that goes down looks like a restart to Prometheus,
# which would then add the whole number again.
_BY_EPOCH = (
    select(
        *(
            func.max(column).label(column.key)
            for column in (
                EpochRow.train_samples,
                EpochRow.train_nonfinite_samples,
                EpochRow.validation_nonfinite_samples,
                EpochRow.worker_seconds,
            )
        )
    )
    .where(EpochRow.run_id == bindparam("of_run"))
    .group_by(EpochRow.epoch)
    .subquery()
)
_TOTALS = select(*map(func.sum, _BY_EPOCH.c))
_DIFFERING = (
    select(EventRow.reason, func.count())
    .where(EventRow.run_id == bindparam("of_run"), EventRow.key.startswith(REPLAY_KEY))
    .group_by(EventRow.reason)
)


def run_totals(session: Session, run_id: str) -> Totals:
    """Return the sums over a run's epochs."""
    sums: tuple[Any, ...] = tuple(session.execute(_TOTALS, {"of_run": run_id}).one())
    samples, train_nonfinite, validation_nonfinite, seconds = (value or 0 for value in sums)
    return Totals(
        train_samples=int(samples),
        train_nonfinite_samples=int(train_nonfinite),
        validation_nonfinite_samples=int(validation_nonfinite),
        worker_seconds=float(seconds),
        differing_epochs={row[0]: row[1] for row in session.execute(_DIFFERING, {"of_run": run_id})},
    )
