"""Alertmanager's webhook: who may tell, each alert once in any order, and a run that is to be stopped by one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from api_support import ServedApi, job_fields, serve_api
from curvewatch_service.api.alerts import MAX_BYTES
from curvewatch_service.notifications import MOST_ALERTS
from curvewatch_workers.contract import Control
from store_support import START, attempt_message, epoch_message

TOKEN = "cwa_alerts"
NAME = "CurvewatchOverfitting"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ServedApi]:
    with serve_api(tmp_path, alerts_token=TOKEN) as served:
        yield served


def alert(run_id: str | None, *, ended: datetime | None = None, **changes: Any) -> dict[str, Any]:
    """An alert as Alertmanager sends it."""
    labels = {"alertname": NAME, "severity": "warning", "component": "learning", "owner": "ada"}
    return {
        "status": "firing" if ended is None else "resolved",
        "labels": labels if run_id is None else {**labels, "run_id": run_id, "run": "digits"},
        "annotations": {
            "summary": "Validation loss rises.",
            "description": "Run digits has had no new best for 6 epochs.",
            "runbook_url": "https://example.org/runbook#curvewatchoverfitting",
        },
        "startsAt": START.isoformat().replace("+00:00", "Z"),
        "endsAt": "0001-01-01T00:00:00Z" if ended is None else ended.isoformat(),
        "generatorURL": "http://prometheus:9090/graph",
        "fingerprint": "8cd1e30b6d3d5e4a",
        **changes,
    }


def tell(api: ServedApi, *alerts: dict[str, Any], token: str = TOKEN, **changes: Any) -> Any:
    """Send a notification as Alertmanager does."""
    webhook = {
        "version": "4",
        "groupKey": '{}:{run_id="r"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "curvewatch-service",
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "alerts": list(alerts),
    }
    return api.request("POST", "/api/v1/alerts", token=token, json={**webhook, **changes})


def running(api: ServedApi, **policy: object) -> str:
    """Submit a job and let its workers begin."""
    run_id: str = api.submit(job_fields(policy=policy)).json()["run_id"]
    api.services.store.begin_submission(run_id)
    api.tell(run_id, attempt_message(1))
    return run_id


def shown(api: ServedApi, run_id: str) -> list[tuple[str, str | None]]:
    run = api.request("GET", f"/api/v1/runs/{run_id}").json()
    return [(one["name"], one["ended_at"]) for one in run["alerts"]]


def events(api: ServedApi, run_id: str) -> list[tuple[str, str, str]]:
    told = api.request("GET", f"/api/v1/runs/{run_id}/events").json()["events"]
    return [
        (one["reason"], one["message"], one["actor"]) for one in told if one["reason"].startswith("alert_")
    ]


def test_an_alert_is_on_its_run_until_it_is_resolved(api: ServedApi) -> None:
    run_id, ended = running(api), START + timedelta(minutes=5)
    assert tell(api, alert(run_id)).json() == {"new": 1, "known": 0, "without_run": 0}
    assert api.request("GET", f"/api/v1/runs/{run_id}").json()["alerts"] == [
        {
            "name": NAME,
            "severity": "warning",
            "summary": "Validation loss rises.",
            "description": "Run digits has had no new best for 6 epochs.",
            "runbook_url": "https://example.org/runbook#curvewatchoverfitting",
            "started_at": "2026-01-01T00:00:00Z",
            "ended_at": None,
        }
    ]
    assert tell(api, alert(run_id, ended=ended)).json()["new"] == 1
    assert shown(api, run_id) == [(NAME, "2026-01-01T00:05:00Z")]
    assert events(api, run_id) == [
        (
            "alert_firing",
            f"{NAME} (warning): Run digits has had no new best for 6 epochs.",
            "alertmanager",
        ),
        ("alert_resolved", f"{NAME} fires no longer", "alertmanager"),
    ]
    assert api.request("GET", f"/api/v1/runs/{run_id}").json()["state"] == "RUNNING"


def test_what_is_told_again_or_late_changes_nothing(api: ServedApi) -> None:
    run_id, ended = running(api), START + timedelta(minutes=5)
    for again in range(3):
        assert tell(api, alert(run_id)).json()["known"] == int(again > 0)
    for again in range(3):
        assert tell(api, alert(run_id, ended=ended)).json()["known"] == int(again > 0)
    assert tell(api, alert(run_id)).json() == {"new": 0, "known": 1, "without_run": 0}
    assert shown(api, run_id) == [(NAME, "2026-01-01T00:05:00Z")]
    assert len(events(api, run_id)) == 2
    counted = api.request("GET", "/metrics", token="").text
    assert 'curvewatch_alerts_received_total{status="firing"} 1.0' in counted
    assert 'curvewatch_alerts_received_total{status="resolved"} 1.0' in counted


def test_a_new_start_is_another_alert_and_ends_the_one_before(api: ServedApi) -> None:
    run_id, later = running(api), START + timedelta(hours=1)
    tell(api, alert(run_id), alert(run_id, startsAt=later.isoformat()))
    assert shown(api, run_id) == [(NAME, None), (NAME, "2026-01-01T01:00:00Z")]


def test_alerts_on_no_run_of_this_service_are_counted(api: ServedApi) -> None:
    run_id = running(api)
    answer = tell(api, alert(None), alert("somebody-elses"), alert(run_id))
    assert answer.json() == {"new": 1, "known": 0, "without_run": 2}


@pytest.mark.parametrize("token", ["", "cwa_other", "ä"])
def test_only_alertmanager_may_tell(api: ServedApi, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}".encode()} if token else {}
    answer = api.request("POST", "/api/v1/alerts", token="", headers=headers, json={})
    assert answer.status_code == 401
    assert "alerts-token" in answer.json()["detail"]


def test_neither_a_users_nor_a_runs_token_tells_of_alerts_and_that_one_is_good_for_nothing_else(
    api: ServedApi,
) -> None:
    run_id = running(api)
    for token in (api.token, api.ingest_token(run_id)):
        assert tell(api, alert(run_id), token=token).status_code == 401
    assert api.request("GET", "/api/v1/runs", token=TOKEN).status_code == 401
    assert api.tell(run_id, epoch_message(1, run_id=run_id), token=TOKEN).status_code == 401
    assert shown(api, run_id) == []


def test_a_service_without_a_token_takes_none(tmp_path: Path) -> None:
    with serve_api(tmp_path) as api:
        assert tell(api, token="").status_code == 401
        assert tell(api, token="x").status_code == 401


@pytest.mark.parametrize(
    ("changes", "of_alert", "told"),
    [
        ({"version": "3"}, {}, "version"),
        ({"alerts": {}}, {}, "alerts"),
        ({}, {"status": "pending"}, "status"),
        ({}, {"fingerprint": "../x"}, "fingerprint"),
        ({}, {"startsAt": "yesterday"}, "startsAt"),
        ({}, {"startsAt": "2026-01-01T00:00:00"}, "startsAt"),
        ({}, {"startsAt": "0001-01-01T00:00:00+14:00"}, "started_at"),
        ({}, {"labels": {"run_id": 3}}, "run_id"),
        ({}, {"labels": {f"l{n}": "" for n in range(65)}}, "labels"),
        ({}, {"annotations": {"description": "x" * 9000}}, "description"),
    ],
)
def test_what_is_no_notification_is_refused_by_name(
    api: ServedApi, changes: dict[str, Any], of_alert: dict[str, Any], told: str
) -> None:
    run_id = running(api)
    answer = tell(api, alert(run_id, **of_alert), **changes)
    assert answer.status_code == 422
    assert told in answer.text
    assert shown(api, run_id) == []


def test_a_notification_has_its_limits(api: ServedApi) -> None:
    run_id = running(api)
    assert tell(api, *[alert(run_id)] * (MOST_ALERTS + 1)).status_code == 422
    assert tell(api, more="x" * MAX_BYTES).status_code == 413
    assert api.request("POST", "/api/v1/alerts", token=TOKEN, content=b"{").status_code == 422


def test_what_an_alert_says_can_drive_no_terminal_and_no_page(api: ServedApi) -> None:
    run_id = running(api)
    annotations = {"description": "red \x1b[31m\nline\x00", "runbook_url": "javascript:alert(1)"}
    tell(api, alert(run_id, annotations=annotations))
    (one,) = api.request("GET", f"/api/v1/runs/{run_id}").json()["alerts"]
    assert (one["description"], one["runbook_url"]) == ("red [31m line", "")


def test_an_alert_stops_a_run_whose_job_says_so(api: ServedApi) -> None:
    run_id = running(api, on_alert={NAME: "stop"})
    woken = len(api.woken)
    tell(api, alert(run_id))
    run = api.request("GET", f"/api/v1/runs/{run_id}").json()
    assert run["state"] == "STOPPING"
    assert run["reason"] == f"{NAME} fires, and the job says to stop then"
    assert len(api.woken) == woken + 1
    answer = api.tell(run_id, epoch_message(1, run_id=run_id))
    assert answer.json()["control"] == Control.STOP_ON_ALERT


@pytest.mark.parametrize(
    "policy", [{}, {"on_alert": {NAME: "notify"}}, {"on_alert": {"CurvewatchPlateau": "stop"}}]
)
def test_an_alert_stops_no_other_run(api: ServedApi, policy: dict[str, object]) -> None:
    run_id = running(api, **policy)
    woken = [*api.woken]
    tell(api, alert(run_id))
    assert api.request("GET", f"/api/v1/runs/{run_id}").json()["state"] == "RUNNING"
    assert shown(api, run_id) == [(NAME, None)]
    # Alertmanager repeats itself: nothing is looked at anew because of it.
    assert api.woken == woken


def test_an_alert_that_is_over_stops_nothing(api: ServedApi) -> None:
    run_id = running(api, on_alert={NAME: "stop"})
    ended, later = START + timedelta(minutes=5), START + timedelta(hours=1)
    tell(api, alert(run_id, ended=ended))
    tell(api, alert(run_id))
    tell(api, alert(run_id, startsAt=later.isoformat(), ended=later))
    assert api.request("GET", f"/api/v1/runs/{run_id}").json()["state"] == "RUNNING"


def test_a_run_that_waits_for_its_place_is_stopped_once_it_trains(api: ServedApi) -> None:
    run_id: str = api.submit(job_fields(policy={"on_alert": {NAME: "stop"}})).json()["run_id"]
    tell(api, alert(run_id))
    assert api.request("GET", f"/api/v1/runs/{run_id}").json()["state"] == "QUEUED"
    api.services.store.begin_submission(run_id)
    # Alertmanager tells again of what still fires.
    tell(api, alert(run_id))
    assert api.request("GET", f"/api/v1/runs/{run_id}").json()["state"] == "STOPPING"


def test_the_users_word_takes_the_place_of_the_alerts(api: ServedApi) -> None:
    run_id = running(api, on_alert={NAME: "stop"})
    tell(api, alert(run_id))
    assert api.request("POST", f"/api/v1/runs/{run_id}/stop").json()["state"] == "STOPPING"
    assert api.services.store.run(run_id).control is Control.STOP
    tell(api, alert(run_id))
    assert api.services.store.run(run_id).control is Control.STOP


def test_an_alert_on_a_run_that_has_ended_is_noted_and_changes_nothing(api: ServedApi) -> None:
    run_id: str = api.submit(job_fields(policy={"on_alert": {NAME: "stop"}})).json()["run_id"]
    api.request("POST", f"/api/v1/runs/{run_id}/stop")
    tell(api, alert(run_id))
    assert api.request("GET", f"/api/v1/runs/{run_id}").json()["state"] == "STOPPED"
    assert shown(api, run_id) == [(NAME, None)]


def test_an_alert_that_does_not_exist_is_refused_in_the_job(api: ServedApi) -> None:
    answer = api.submit(job_fields(policy={"on_alert": {"CurvewatchOverfiting": "stop"}}))
    assert answer.status_code == 422
    assert "did you mean CurvewatchOverfitting?" in answer.text
    assert api.submit(job_fields(policy={"on_alert": {"OurOwnAlert": "stop"}})).is_success
    answer = api.submit(job_fields(policy={"on_alert": {NAME: "page"}}))
    assert answer.status_code == 422
    assert "stop" in answer.text


def test_the_page_shows_what_fires(api: ServedApi) -> None:
    run_id = running(api)
    tell(api, alert(run_id))
    text = api.request("GET", f"/runs/{run_id}", token="", headers={"Cookie": signed_in(api)}).text
    section = text[text.index('<div id="alerts"') : text.index('<dl id="numbers"')]
    assert NAME in section
    assert "Run digits has had no new best for 6 epochs." in section
    assert 'href="https://example.org/runbook#curvewatchoverfitting"' in section
    tell(api, alert(run_id, ended=START + timedelta(minutes=5)))
    text = api.request("GET", f"/runs/{run_id}", token="", headers={"Cookie": signed_in(api)}).text
    assert NAME not in text[text.index('<div id="alerts"') : text.index('<dl id="numbers"')]
    assert f"{NAME} fires no longer" in text


def signed_in(api: ServedApi) -> str:
    answer = api.request("POST", "/login", token="", data={"token": api.token, "next": "/"})
    return answer.headers["Set-Cookie"].partition(";")[0]
