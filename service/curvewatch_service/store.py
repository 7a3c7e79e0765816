"""The store: every run, what its workers told, and what happened to it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from curvewatch_service.counters import Counters
from curvewatch_service.database import for_one_moment, for_writing, open_database
from curvewatch_service.errors import RunEndedError
from curvewatch_service.ingest import Ingestion, savings_until
from curvewatch_service.rows import (
    TERMINAL,
    add_event,
    add_run,
    count_states,
    in_states,
    latest_record,
    lock_run,
    move,
    require_run,
    run_totals,
    shown_runs,
    visible_epochs,
)
from curvewatch_service.runs import RunState
from curvewatch_service.stored import Event, Run, Setbacks, Snapshot, Totals, run_from
from curvewatch_service.tables import EpochRow, EventRow, RunRow
from curvewatch_workers.contract import Control, EpochRecord, IngestMessage, JobSpec
from curvewatch_workers.series import INGESTED_MESSAGES

__all__ = ["CLUSTER_LOST_JOB", "DRIVER_DIED", "Event", "Run", "Setbacks", "Snapshot", "Store", "Totals"]

CLUSTER_LOST_JOB = "cluster_lost_job"
"""Reason of the event that our own cluster ended under a run."""
DRIVER_DIED = "driver_died"
"""Reason of the event that a run's driver ended without a word."""
_SETTABLE = frozenset({"world_size", "outcome_reason", "traceback", "checkpoint", "best_checkpoint"})


class Store:
    """Runs in a database. Every method is one transaction; threads may share the store."""

    def __init__(self, url: str, *, counters: Counters | None = None, to_outbox: bool = False) -> None:
        """Open the database and bring it to the newest schema.

        With `to_outbox`, each new epoch waits in the outbox for remote write as well.

        Raises:
            DatabaseVersionError: It was written by a newer Curvewatch.
        """
        self.counters = counters or Counters()
        self._to_outbox = to_outbox
        self._heard: dict[str, datetime] = {}
        self._engine = open_database(url)

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Begin a transaction that reads."""
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def read_one_moment(self) -> Iterator[Session]:
        """Begin a transaction whose reads all see the store as it is at the first of them."""
        with Session(for_one_moment(self._engine)) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Begin a transaction that writes; it commits unless the block raises."""
        with Session(for_writing(self._engine), expire_on_commit=False) as session, session.begin():
            yield session

    def create_run(
        self, *, run_id: str, spec: JobSpec, owner: str, code_hash: str, ingest_token_hash: str
    ) -> Run:
        """Add a run, QUEUED."""
        with self.write() as session:
            row = add_run(
                session,
                RunState.QUEUED,
                run_id=run_id,
                spec=spec,
                owner=owner,
                code_hash=code_hash,
                ingest_token_hash=ingest_token_hash,
                reason="waits for room on the cluster",
                how="submitted",
            )
            return run_from(row)

    def heard(self, run_id: str) -> datetime | None:
        """Return when the workers of a run last told or asked something; None for not since this service began."""
        return self._heard.get(run_id)

    def run(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            NotFoundError: There is none of this id.
        """
        with self.read() as session:
            return run_from(require_run(session, run_id))

    def runs(
        self, *, states: Collection[RunState] | None = None, limit: int | None = None, offset: int = 0
    ) -> list[Run]:
        """Return runs, newest first."""
        query = select(RunRow).order_by(RunRow.created_at.desc(), RunRow.run_id).limit(limit).offset(offset)
        if states is not None:
            query = query.where(in_states(states))
        with self.read() as session:
            return [run_from(row) for row in session.scalars(query)]

    def active_runs(self) -> list[Run]:
        """Return the runs that have not ended, oldest first."""
        query = select(RunRow).where(~in_states(TERMINAL)).order_by(RunRow.created_at, RunRow.run_id)
        with self.read() as session:
            return [run_from(row) for row in session.scalars(query)]

    def count(self) -> dict[RunState, int]:
        """Return the number of runs in each state, 0 included."""
        with self.read() as session:
            return count_states(session)

    def transition(
        self,
        run_id: str,
        target: RunState,
        *,
        expected: Collection[RunState],
        reason: str,
        message: str,
        actor: str = "service",
        setback: tuple[str, datetime] | None = None,
        **fields: object,
    ) -> bool:
        """Move a run, if it is still in one of the expected states; with the event `state_<target>`.

        Args:
            run_id: The run.
            target: Where it goes.
            expected: States in which the decision to move it was taken.
            reason: Why it is in its new state, for the run.
            message: What happened, for the event.
            actor: Who did it: a user's name, `service` or `worker`.
            setback: Reason and time of a further event with the same message, for `setbacks` to count.
            **fields: More of the run: world_size, outcome_reason, traceback, checkpoint, best_checkpoint.

        Returns:
            False when the run has left the expected states meanwhile; then nothing has changed.

        Raises:
            IllegalTransitionError: The move is not one of the life of a run.
            NotFoundError: There is no such run.
        """
        if unknown := fields.keys() - _SETTABLE:
            raise TypeError(f"transition() cannot set {sorted(unknown)}; it sets {sorted(_SETTABLE)}")
        with self.write() as session:
            row = lock_run(session, run_id)
            if RunState.parse(row.state) not in expected:
                return False
            for name, value in fields.items():
                setattr(row, name, value)
            # Both at one time: the list of events has the move first.
            time = setback[1] if setback is not None else None
            move(session, row, target, reason=reason, message=message, actor=actor, time=time)
            if setback is not None:
                add_event(session, run_id, setback[0], message, actor, time=setback[1])
            _settle_curve(session, row)
            return True

    def begin_submission(self, run_id: str) -> Run | None:
        """Move a run from QUEUED to STARTING, the second time to RESTARTING, and count the submission.

        Returns:
            The run; None when it was not QUEUED any more.
        """
        with self.write() as session:
            row = lock_run(session, run_id)
            if row.state != RunState.QUEUED.label:
                return None
            row.submission += 1
            row.control = Control.CONTINUE.value
            row.outcome, row.outcome_at, row.outcome_reason, row.traceback = None, None, "", None
            again = row.submission > 1
            move(
                session,
                row,
                RunState.RESTARTING if again else RunState.STARTING,
                reason="the cluster starts its workers" + (" again" if again else ""),
                message=f"given to the cluster as job {run_id}-{row.submission}",
                actor="service",
            )
            session.flush()
            return run_from(row)

    def stop(
        self, run_id: str, *, actor: str, control: Control = Control.STOP, why: str = "stop was asked for"
    ) -> Run:
        """End a run: at once while it is queued, else after its current epoch.

        A run that is stopping or stopped stays as it is; but a user's word takes the place of an alert's.

        Args:
            run_id: The run.
            actor: Who stops it.
            control: Whose word it is: a user's, or an alert's, which comes after what the verdict leads to.
            why: What made an alert stop it.

        Raises:
            RunEndedError: It has ended otherwise already.
            NotFoundError: There is no such run.
        """
        with self.write() as session:
            row = lock_run(session, run_id)
            state, by_user = RunState.parse(row.state), control is Control.STOP
            message = f"{actor} asked it to stop" if by_user else f"{why}, and the job says to stop then"
            if state is RunState.QUEUED:
                move(session, row, RunState.STOPPED, reason=message, message=message, actor=actor)
                _settle_curve(session, row)
            elif state.terminal and state is not RunState.STOPPED:
                raise RunEndedError(run_id, state.label, row.reason)
            elif state not in (RunState.STOPPING, RunState.STOPPED):
                row.control = control.value
                move(session, row, RunState.STOPPING, reason=message, message=message, actor=actor)
            elif by_user and row.control == Control.STOP_ON_ALERT.value:
                row.control = control.value
                add_event(session, run_id, "control_stop", message, actor)
            session.flush()
            return run_from(row)

    def request_control(self, run_id: str, control: Control, *, actor: str) -> bool:
        """Set the word that the run's workers get with their next epoch; False when the run has ended.

        Raises:
            NotFoundError: There is no such run.
        """
        with self.write() as session:
            row = lock_run(session, run_id)
            if RunState.parse(row.state).terminal:
                return False
            if row.control != control.value:
                row.control = control.value
                add_event(
                    session,
                    run_id,
                    f"control_{control.value}",
                    f"{actor} asked the workers: {control.value}",
                    actor,
                )
            return True

    def ingest(self, run_id: str, messages: Sequence[IngestMessage]) -> Control:
        """Take what workers tell, in any order and any number of times.

        Returns:
            What the run should do next.

        Raises:
            BadRequestError: A message is about another run or holds a number that cannot be kept.
            NotFoundError: There is no such run.
        """
        with self.write() as session:
            row = lock_run(session, run_id)
            ingestion = Ingestion(session, row, to_outbox=self._to_outbox)
            new = ingestion.take(messages)
            if ingestion.raised_attempt and row.state in (RunState.STARTING.label, RunState.RESTARTING.label):
                reason = f"attempt {row.attempt} trains on {row.world_size} workers"
                move(session, row, RunState.RUNNING, reason=reason, message=reason, actor="worker")
            control, ended = _control_of(row), RunState.parse(row.state).terminal
        if ended:
            self._heard.pop(run_id, None)
        else:
            self._heard[run_id] = datetime.now(UTC)
        for kind, number in new.items():
            self.counters.add(INGESTED_MESSAGES, kind, amount=number)
        return control

    def epochs(self, run_id: str) -> list[EpochRecord]:
        """Return the visible curve: of each epoch the record of its highest attempt, in order.

        Raises:
            NotFoundError: There is no such run.
        """
        with self.read() as session:
            query = visible_epochs(session, require_run(session, run_id), EpochRow.record)
            return [EpochRecord.model_validate_json(record) for record in session.scalars(query)]

    def latest_epochs(self, run_ids: Collection[str]) -> dict[str, EpochRecord]:
        """Return the latest visible record of each run that has one."""
        with self.read() as session:
            rows = session.scalars(select(RunRow).where(RunRow.run_id.in_(run_ids))).all()
            found = ((row.run_id, latest_record(session, row)) for row in rows)
            return {run_id: record for run_id, record in found if record is not None}

    def events(self, run_id: str) -> list[Event]:
        """Return what happened to a run, in order.

        Raises:
            NotFoundError: There is no such run.
        """
        with self.read() as session:
            require_run(session, run_id)
            query = (
                select(EventRow).where(EventRow.run_id == run_id).order_by(EventRow.time, EventRow.event_id)
            )
            return [
                Event(time=row.time, reason=row.reason, message=row.message, actor=row.actor)
                for row in session.scalars(query)
            ]

    def setbacks(self, run_id: str, reason: str) -> Setbacks:
        """Return the events of a reason since the run first finished its latest epoch.

        Args:
            run_id: The run.
            reason: `CLUSTER_LOST_JOB` or `DRIVER_DIED`.
        """
        first = (
            select(EpochRow.record)
            .where(EpochRow.run_id == run_id)
            .order_by(EpochRow.epoch.desc(), EpochRow.attempt)
            .limit(1)
        )
        found = select(func.count(), func.max(EventRow.time)).where(
            EventRow.run_id == run_id, EventRow.reason == reason
        )
        with self.read() as session:
            record = session.scalar(first)
            if record is not None:
                found = found.where(EventRow.time > EpochRecord.model_validate_json(record).finished_at)
            count, latest = session.execute(found).one()
        return Setbacks(count=count, latest=latest)

    def add_event(self, run_id: str, *, reason: str, message: str, actor: str = "service") -> None:
        """Note that something happened to a run.

        Raises:
            NotFoundError: There is no such run.
        """
        with self.write() as session:
            lock_run(session, run_id)
            add_event(session, run_id, reason, message, actor)

    def ingest_token_hash(self, run_id: str) -> str:
        """Return the hash of the token that is good for the run's ingest.

        Raises:
            NotFoundError: There is no such run.
        """
        with self.read() as session:
            return require_run(session, run_id).ingest_token_hash

    def shown_since(self, since: datetime) -> list[str]:
        """Return the ids of the runs that have not ended, or not before a moment; oldest first."""
        with self.read() as session:
            return list(session.scalars(shown_runs(RunRow.run_id, since=since)))

    def snapshot(self, run_id: str) -> Snapshot:
        """Return a run with its latest epoch and its totals, as of one moment.

        Raises:
            NotFoundError: There is no such run.
        """
        with self.read() as session:
            row = require_run(session, run_id)
            run = run_from(row)
            if run.diagnosis is not None and "savings" not in run.diagnosis:
                run = replace(run, diagnosis=_with_savings(session, row, run.spec, run.diagnosis))
            return Snapshot(run=run, latest=latest_record(session, row), totals=run_totals(session, run_id))


def _with_savings(session: Session, row: RunRow, spec: JobSpec, diagnosis: dict[str, Any]) -> dict[str, Any]:
    """Complete the diagnosis of a run that has told of no epoch since a Curvewatch that did not keep its savings."""
    best, since = diagnosis["best_epoch"], diagnosis["epochs_since_best"]
    last = 0 if best is None else best + since
    return {**diagnosis, "savings": savings_until(session, row, spec, best=best, last=last)}


def _settle_curve(session: Session, row: RunRow) -> None:
    """Bring what is derived from a run's curve up to its end: see `final_epoch`."""
    if row.epoch and RunState.parse(row.state).terminal:
        session.flush()
        Ingestion(session, row).refresh()


def _control_of(row: RunRow) -> Control:
    """Return what a run's workers should do next."""
    state = RunState.parse(row.state)
    if state is RunState.LOST and run_from(row).trained_elsewhere:
        # A trainer that was cut off for long may well be at it still: it trains on.
        return Control.CONTINUE
    return Control.STOP if state.terminal else Control(row.control)
