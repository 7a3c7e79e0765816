"""What one scrape reads: the store as of one moment."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from curvewatch_service.rows import (
    count_states,
    latest_record,
    require_run,
    run_totals,
    shown_runs,
    visible_epochs,
)
from curvewatch_service.runs import RunState
from curvewatch_service.store import Store
from curvewatch_service.stored import Run, Snapshot, run_from
from curvewatch_service.tables import EpochRow, EventRow, OutboxRow, RunRow
from curvewatch_workers.contract import EpochRecord

_EPOCHS = 200
"""That are read from the database at once."""
_BEGINNINGS = ("state_starting", "state_restarting", "state_running", "worker_restart")
"""Reasons of the events after which the next epoch is awaited anew."""
_BEGUN = select(func.max(EventRow.time)).where(
    EventRow.run_id == bindparam("of_run"), EventRow.reason.in_(_BEGINNINGS)
)


@contextmanager
def scraping(store: Store) -> Iterator[Scrape]:
    """Begin a scrape; what happens meanwhile is in the next one."""
    with store.read_one_moment() as session:
        yield Scrape(session)


@dataclass(frozen=True, kw_only=True)
class ScrapedRun:
    """A run as a scrape shows it."""

    snapshot: Snapshot
    awaited_since: datetime | None
    """Since when its next epoch is awaited; None while it is not on the cluster."""


class Scrape:
    """Reads runs in one transaction, each by itself: what is wrong with one costs no other."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def shown_since(self, since: datetime) -> list[str]:
        """Return the ids of the runs that have not ended, or not before a moment; oldest first."""
        return list(self._session.scalars(shown_runs(RunRow.run_id, since=since)))

    def count(self) -> dict[RunState, int]:
        """Return the number of runs in each state, 0 included."""
        return count_states(self._session)

    def pending_epochs(self) -> int:
        """Return the number of epochs in the outbox."""
        return self._session.scalar(select(func.count()).select_from(OutboxRow)) or 0

    def run(self, run_id: str) -> ScrapedRun:
        """Return a run."""
        row = require_run(self._session, run_id)
        snapshot = Snapshot(
            run=run_from(row),
            latest=latest_record(self._session, row),
            totals=run_totals(self._session, run_id),
        )
        return ScrapedRun(snapshot=snapshot, awaited_since=self._awaited_since(snapshot))

    def epoch_numbers(self, run_id: str) -> tuple[Run, list[int]]:
        """Return a run and the epochs of its visible curve, in order."""
        row = require_run(self._session, run_id)
        return run_from(row), list(self._session.scalars(visible_epochs(self._session, row, EpochRow.epoch)))

    def epochs(self, run_id: str, only: Collection[int]) -> list[EpochRecord]:
        """Return some epochs of a run's visible curve, in order."""
        query = visible_epochs(self._session, require_run(self._session, run_id), EpochRow.record)
        records = self._session.scalars(query.where(EpochRow.epoch.in_(only)))
        return [EpochRecord.model_validate_json(record) for record in records]

    def history(self, run_id: str) -> tuple[Run, Iterator[EpochRecord]]:
        """Return a run and its visible curve, which is read a few epochs at a time; good until the scrape ends."""
        row = require_run(self._session, run_id)
        query = visible_epochs(self._session, row, EpochRow.record).execution_options(yield_per=_EPOCHS)
        records = self._session.scalars(query)
        return run_from(row), (EpochRecord.model_validate_json(record) for record in records)

    def _awaited_since(self, snapshot: Snapshot) -> datetime | None:
        run = snapshot.run
        if not run.state.holds_resources:
            return None
        begun = self._session.scalar(_BEGUN, {"of_run": run.run_id})
        finished_at = snapshot.latest.finished_at if snapshot.latest is not None else None
        return max((moment for moment in (begun, finished_at) if moment is not None), default=None)
