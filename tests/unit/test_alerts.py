"""Alerts on runs in the store: a set, whatever the order and the repetition in which they are told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curvewatch_dashboards.alerts import all_alerts
from curvewatch_dashboards.knobs import Knobs
from curvewatch_service.alerts import ACTOR, SHOWN, Alert, alerts_of, take_alerts
from curvewatch_service.errors import SettingsError
from curvewatch_service.first_token import provide_alerts_token
from curvewatch_service.notifications import Notification
from curvewatch_service.runs import RunState
from curvewatch_service.settings import Settings
from curvewatch_service.store import Run, Store
from curvewatch_workers.contract import ALERTS_ON_RUNS, Control, Outcome
from curvewatch_workers.decisions import ending_after
from curvewatch_workers.diagnosis import Verdict
from curvewatch_workers.policy import Action
from engine_support import make_spec
from record_support import make_record
from store_support import START, database_url, new_run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


def told(start: int, *, resolved: bool, which: str = "a", run_id: str = "digits-1") -> Notification:
    """A notification of an alert that begins at a minute, and ends three minutes later."""
    started_at = START + timedelta(minutes=start)
    return Notification(
        run_id=run_id,
        fingerprint=which,
        name=f"Alert{which}",
        severity="warning",
        summary="It fires.",
        description="",
        runbook_url="",
        started_at=started_at,
        ended_at=started_at + timedelta(minutes=3) if resolved else None,
    )


NUMBERS = count()
HOUR = 3600.0
TELLINGS = st.lists(
    st.builds(told, st.sampled_from([0, 10, 20]), resolved=st.booleans(), which=st.sampled_from("ab")),
    max_size=12,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tellings=TELLINGS, order=st.randoms(use_true_random=False))
def test_what_is_shown_depends_on_what_was_told_and_not_on_when(
    store: Store, tellings: list[Notification], order: Random
) -> None:
    again = [*tellings, *tellings]
    order.shuffle(again)
    shown = []
    for notifications in (tellings, again):
        run_id = f"run-{next(NUMBERS)}"
        new_run(store, run_id)
        noted = take_alerts(store, [one.model_copy(update={"run_id": run_id}) for one in notifications])
        assert noted.new + noted.known == len(notifications)
        events = [event for event in store.events(run_id) if event.actor == ACTOR]
        by_time = sorted((event.time, event.reason, event.message) for event in events)
        shown.append((alerts_of(store, run_id, silence_seconds=HOUR), by_time))
    assert shown[0] == shown[1]
    alerts = shown[0][0]
    ended = {(one.fingerprint, one.started_at) for one in tellings if one.ended_at is not None}
    begun = {(one.fingerprint, one.started_at) for one in tellings}
    assert len(alerts) == len(begun)
    firing = {(alert.name[-1], alert.started_at) for alert in alerts if alert.ended_at is None}
    latest = {(which, max(start for name, start in begun if name == which)) for which, _ in begun}
    assert firing == latest - ended
    assert [alert.ended_at is not None for alert in alerts] == sorted(
        alert.ended_at is not None for alert in alerts
    )


def test_as_many_alerts_are_shown_as_a_page_can_take(store: Store) -> None:
    new_run(store)
    take_alerts(store, [told(10 * number, resolved=True) for number in range(SHOWN + 5)])
    alerts = alerts_of(store, "digits-1", silence_seconds=HOUR)
    assert len(alerts) == SHOWN
    assert alerts[0] == Alert(
        name="Alerta",
        severity="warning",
        summary="It fires.",
        description="",
        runbook_url="",
        started_at=START + timedelta(minutes=10 * (SHOWN + 4)),
        ended_at=START + timedelta(minutes=10 * (SHOWN + 4) + 3),
    )


def test_one_that_fires_is_shown_before_as_many_as_have_ended_since(store: Store) -> None:
    new_run(store)
    take_alerts(store, [told(0, resolved=False, which="b")])
    take_alerts(store, [told(10 * number, resolved=True) for number in range(1, SHOWN + 5)])
    # As often begun anew, and its end never told.
    take_alerts(store, [told(10 * number, resolved=False, which="c") for number in range(1, SHOWN + 5)])
    first, second, *others = alerts_of(store, "digits-1", silence_seconds=HOUR)
    assert [(first.name, first.ended_at), (second.name, second.ended_at)] == [
        ("Alertc", None),
        ("Alertb", None),
    ]
    assert len(others) == SHOWN - 2
    assert None not in [one.ended_at for one in others]


def test_what_is_told_no_longer_is_over(store: Store) -> None:
    new_run(store)
    before = datetime.now(UTC)
    take_alerts(store, [told(0, resolved=False)])
    (fires,) = alerts_of(store, "digits-1", silence_seconds=HOUR)
    assert fires.ended_at is None
    (over,) = alerts_of(store, "digits-1", silence_seconds=1e-6)
    assert over.ended_at is not None
    assert over.ended_at >= before, "it fired when it was told"
    # Told again it fires again, and is nothing new.
    noted = take_alerts(store, [told(0, resolved=False)])
    assert noted.known == 1
    (again,) = alerts_of(store, "digits-1", silence_seconds=1e-6)
    assert again.ended_at is not None
    assert again.ended_at > over.ended_at


def test_a_run_that_ends_before_its_alert_stops_it_costs_no_other_alert(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_run(store, policy={"on_alert": {"Alerta": "stop"}})
    new_run(store, "digits-2")
    store.begin_submission("digits-1")
    really_stop = Store.stop

    def ends_first(self: Store, run_id: str, **how: Any) -> Run:
        gone = "its job is gone"
        self.transition(run_id, RunState.FAILED, expected=[RunState.STARTING], reason=gone, message=gone)
        return really_stop(self, run_id, **how)

    monkeypatch.setattr(Store, "stop", ends_first)
    noted = take_alerts(store, [told(0, resolved=False), told(0, resolved=False, run_id="digits-2")])
    assert noted.new == 2
    assert store.run("digits-1").state is RunState.FAILED
    assert len(alerts_of(store, "digits-2", silence_seconds=HOUR)) == 1


def test_jobs_may_name_the_alerts_that_there_are() -> None:
    assert list(ALERTS_ON_RUNS) == [alert.name for alert in all_alerts(Knobs()) if alert.of_a_run]


def test_the_verdict_and_the_user_go_before_an_alert() -> None:
    spec, record = make_spec(epochs=5), make_record(epoch=2)
    stop = Action(deed="stop", observed=False, verdict=Verdict.OVERFITTING, epoch=2, message="It overfits.")
    rescue = Action(
        deed="rescue", observed=False, verdict=Verdict.DIVERGING, epoch=2, message="It goes back."
    )

    def outcome(control: Control, waited: str | None = None, action: Action | None = None) -> Outcome | None:
        ending = ending_after([record], spec, control, waited, action)
        return ending.outcome if ending else None

    assert outcome(Control.STOP_ON_ALERT) is Outcome.STOPPED
    assert outcome(Control.STOP_ON_ALERT, action=stop) is Outcome.SUCCEEDED
    assert outcome(Control.STOP_ON_ALERT, action=rescue) is None
    assert outcome(Control.STOP, action=rescue) is Outcome.STOPPED
    assert outcome(Control.STOP_ON_ALERT, waited="flat") is Outcome.SUCCEEDED
    end = ending_after([make_record(epoch=5)], spec, Control.STOP_ON_ALERT, None)
    assert end is not None
    assert end.outcome is Outcome.SUCCEEDED
    budget = make_spec(epochs=5, policy={"max_samples": 1})
    ending = ending_after([record], budget, Control.STOP_ON_ALERT, None)
    assert ending is not None
    assert ending.reason == "stopped on an alert after epoch 2"


def test_alertmanagers_token_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    chosen = Settings(data_dir=tmp_path / "data")
    token = provide_alerts_token(chosen)
    assert token.startswith("cwa_")
    assert chosen.alerts_token_path.stat().st_mode & 0o777 == 0o600
    assert provide_alerts_token(chosen) == token
    chosen.alerts_token_path.write_text("cwa_mine\n")
    assert provide_alerts_token(chosen) == "cwa_mine"
    chosen.alerts_token_path.write_text("\n")
    with pytest.raises(SettingsError, match="alerts-token, is empty"):
        provide_alerts_token(chosen)
    with pytest.raises(SettingsError, match="CURVEWATCH_ALERTS_TOKEN_PATH"):
        provide_alerts_token(Settings(data_dir=tmp_path, alerts_token_path=tmp_path))
