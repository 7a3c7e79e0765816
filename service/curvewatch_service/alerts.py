"""What Alertmanager tells of runs: noted once each, in any order and any number of times, and acted on.

A notification is told again and again, and a late one may come after a newer one. So what is kept is a set: each
alert by its fingerprint and its start, and its end once that is known. From the set follows what is shown.

Not every end is told: Alertmanager says nothing of one that ends while a worse one keeps it quiet, or while a person
silences it. What it tells no longer is over too, therefore, after a while.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, aliased

from curvewatch_service.errors import RunEndedError
from curvewatch_service.notifications import Notification
from curvewatch_service.rows import add_event
from curvewatch_service.runs import RunState
from curvewatch_service.store import Store
from curvewatch_service.tables import AlertRow, RunRow
from curvewatch_workers.contract import Control, JobSpec
from curvewatch_workers.series import ALERTS_RECEIVED

ACTOR = "alertmanager"
SHOWN = 100
"""Most alerts of a run that are shown: those that fire, then the latest."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert on a run, from its start to its end."""

    name: str
    severity: str
    summary: str
    description: str
    runbook_url: str
    started_at: datetime
    ended_at: datetime | None
    """None while it fires; when it was told the last time, where its end was not."""


@dataclass(frozen=True, kw_only=True)
class Noted:
    """What became of the alerts of one notification."""

    new: int
    """Those that said what was not known."""
    known: int
    without_run: int
    """Those on no run, or on one that is not here."""
    stops: int
    """Those for which a run was asked to stop."""


class _Taken(NamedTuple):
    """What became of one alert on a run that is here."""

    new: bool
    stops: bool


def take_alerts(store: Store, notifications: Sequence[Notification]) -> Noted:
    """Note alerts, and stop the runs whose jobs say so."""
    new = known = without_run = stops = 0
    for told in notifications:
        outcome = _take(store, told)
        if outcome is None:
            without_run += 1
            continue
        stops += outcome.stops
        if outcome.new:
            new += 1
            store.counters.add(ALERTS_RECEIVED, told.status)
        else:
            known += 1
    return Noted(new=new, known=known, without_run=without_run, stops=stops)


def alerts_of(store: Store, run_id: str, *, silence_seconds: float) -> list[Alert]:
    """Return the alerts on a run: those that fire, then the others, the latest first.

    Args:
        store: Where they are kept.
        run_id: The run.
        silence_seconds: How long one may go untold and still count as firing.
    """
    told_since = datetime.now(UTC) - timedelta(seconds=silence_seconds)
    fires = _unended() & (AlertRow.told_at >= told_since)
    query = (
        select(AlertRow)
        .where(AlertRow.run_id == run_id)
        .order_by(fires.desc().nulls_last(), AlertRow.started_at.desc(), AlertRow.fingerprint)
        .limit(SHOWN)
    )
    with store.read() as session:
        rows = list(session.scalars(query))
    # One that began anew has ended before, whether or not its end was told.
    began: dict[str, datetime] = {}
    alerts = []
    for row in rows:
        ended_at = row.ended_at or began.get(row.fingerprint)
        if ended_at is None and (row.told_at is None or row.told_at < told_since):
            ended_at = max(row.told_at or row.started_at, row.started_at)
        began[row.fingerprint] = row.started_at
        alerts.append(
            Alert(
                name=row.name,
                severity=row.severity,
                summary=row.summary,
                description=row.description,
                runbook_url=row.runbook_url,
                started_at=row.started_at,
                ended_at=ended_at,
            )
        )
    return sorted(alerts, key=lambda alert: alert.ended_at is not None)


def _unended() -> ColumnElement[bool]:
    """Return the condition of an alert whose end was not told, and that did not begin anew later."""
    later = aliased(AlertRow)
    again = select(later.fingerprint).where(
        later.run_id == AlertRow.run_id,
        later.fingerprint == AlertRow.fingerprint,
        later.started_at > AlertRow.started_at,
    )
    return AlertRow.ended_at.is_(None) & ~again.exists()


def _take(store: Store, told: Notification) -> _Taken | None:
    """Note one alert; return what became of it, None when it is on no run that is here."""
    with store.write() as session:
        row = session.get(RunRow, told.run_id, with_for_update=True) if told.run_id else None
        if row is None:
            _logger.info(
                "Alert %s is on no run of this service.",
                told.name,
                extra={"action": "alert_without_run", "alert": told.name, "run_id": told.run_id},
            )
            return None
        new = _note(session, row.run_id, told)
        # Also when it is told again: a stop that was lost, or that came while the run was queued, is made up for.
        stop = _fires(session, row.run_id, told) and _wants_stop(row, told.name)
    if stop:
        # It may have ended meanwhile: then there is nothing to stop, and the other alerts are still to be noted.
        with contextlib.suppress(RunEndedError):
            store.stop(told.run_id, actor=ACTOR, control=Control.STOP_ON_ALERT, why=f"{told.name} fires")
    return _Taken(new=new, stops=stop)


def _note(session: Session, run_id: str, told: Notification) -> bool:
    """Keep what an alert says; return whether it was not known."""
    row, now = session.get(AlertRow, (run_id, told.fingerprint, told.started_at)), datetime.now(UTC)
    if row is not None and told.ended_at is None:
        row.told_at = now
    if row is not None and (told.ended_at is None or row.ended_at is not None):
        return False
    if row is None:
        row = AlertRow(
            run_id=run_id,
            fingerprint=told.fingerprint,
            started_at=told.started_at,
            told_at=now,
            name=told.name,
            severity=told.severity,
            summary=told.summary,
            description=told.description,
            runbook_url=told.runbook_url,
        )
        session.add(row)
        text = f"{told.name} ({told.severity}): {told.description or told.summary}"
        add_event(session, run_id, "alert_firing", text, ACTOR, time=told.started_at)
    if told.ended_at is not None:
        row.ended_at = told.ended_at
        text = f"{told.name} fires no longer"
        add_event(session, run_id, "alert_resolved", text, ACTOR, time=told.ended_at)
    session.flush()
    return True


def _fires(session: Session, run_id: str, told: Notification) -> bool:
    """Tell whether an alert still fires as far as is known, and not one of its name that began later."""
    query = select(AlertRow.fingerprint).where(
        AlertRow.run_id == run_id,
        AlertRow.fingerprint == told.fingerprint,
        AlertRow.started_at == told.started_at,
        _unended(),
    )
    return session.scalar(query) is not None


def _wants_stop(row: RunRow, alert: str) -> bool:
    """Tell whether a run is to be stopped by an alert: its job says so, and it trains."""
    state = RunState.parse(row.state)
    if not state.holds_resources or state is RunState.STOPPING:
        return False
    return JobSpec.model_validate_json(row.spec).policy.on_alert.get(alert) == "stop"
