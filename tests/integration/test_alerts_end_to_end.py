"""The whole line, for real: jobs on Ray, the service, Prometheus, Alertmanager, and back to the runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alertmanager_support import needs_alertmanager
from curvewatch_service.code import zip_folder
from curvewatch_service.schemas import AlertView, RunView
from curvewatch_workers.contract import Control
from prometheus_support import needs_prometheus
from ray_support import RUN_SECONDS, until
from stack_support import RunningStack, stack_up

pytestmark = [needs_prometheus, needs_alertmanager]
LINGER_SECONDS = 40
LOOK_SECONDS = 0.5
"""Between two looks at a run: each is a connection of its own."""
LEARNT = '{component="learning",severity=~"warning|critical"}'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One stack for all: starting Ray costs seconds. A run leaves it soon after its end."""
    folder = tmp_path_factory.mktemp("stack")
    with stack_up(folder, linger_seconds=str(LINGER_SECONDS)) as running:
        with running.client() as client:
            until(lambda: client.health().cluster == "ok", "its Ray answers", seconds=120)
        yield running


@pytest.fixture(scope="module")
def examples(project_root: Path) -> Path:
    return project_root / "examples"


def submit(stack: RunningStack, folder: Path, **changes: Any) -> str:
    """Submit an example, some of its sections changed."""
    spec = yaml.safe_load((folder / "job.yaml").read_text())
    for section, change in changes.items():
        spec[section] = {**spec.get(section, {}), **change}
    code = folder / spec["code"].get("working_dir", ".")
    with stack.client() as client:
        return client.submit(yaml.safe_dump(spec), zip_folder(code.resolve())).run_id


def run_of(stack: RunningStack, run_id: str) -> RunView:
    with stack.client() as client:
        return client.run(run_id)


def wait_for(stack: RunningStack, run_id: str, what: str, **wanted: Any) -> RunView:
    """Wait for a run in one of some states."""
    states = wanted["states"]

    def look() -> RunView | None:
        run = run_of(stack, run_id)
        return run if run.state in states else None

    return until(look, f"{run_id}: {what}", seconds=RUN_SECONDS, pause=LOOK_SECONDS)


def alerts_on(stack: RunningStack, run_id: str, *names: str) -> list[AlertView]:
    return [alert for alert in run_of(stack, run_id).alerts if alert.name in names]


def test_overfitting_fires_is_on_the_run_and_resolves_and_a_good_fit_fires_nothing(
    stack: RunningStack, examples: Path
) -> None:
    good, bad = submit(stack, examples / "digits"), submit(stack, examples / "digits_overfit")
    name = "CurvewatchOverfitting"
    (alert,) = until(
        lambda: alerts_on(stack, bad, name),
        "the alert is on the run",
        seconds=RUN_SECONDS,
        pause=LOOK_SECONDS,
    )
    fires = stack.prometheus.alert(name, bad)
    run = wait_for(stack, bad, "its end", states=("SUCCEEDED", "FAILED"))

    assert run.state == "SUCCEEDED", run.reason
    assert run.diagnosis is not None
    assert run.diagnosis.verdict == "overfitting"
    assert alert.ended_at is None
    assert alert.severity == "warning"
    assert alert.description.startswith(f"Run digits-overfit ({bad}) of {run.owner} has had no new best")
    assert f"Best: {run.diagnosis.best_validation_loss:.4g} at epoch" in alert.description
    assert fires is not None
    assert fires["annotations"]["page"] == f"{stack.service_url}/runs/{bad}"
    with stack.client() as client:
        told = [event for event in client.events(bad) if event.actor == "alertmanager"]
    assert [event.reason for event in told if name in event.message][:1] == ["alert_firing"]

    # It leaves /metrics, and what is not there fires no more.
    until(
        lambda: all(one.ended_at for one in run_of(stack, bad).alerts),
        "every alert on it is resolved",
        seconds=LINGER_SECONDS + 120,
        pause=LOOK_SECONDS,
    )
    with stack.client() as client:
        told = [event for event in client.events(bad) if event.actor == "alertmanager"]
    of_alert = [event.reason for event in told if name in event.message]
    assert of_alert == ["alert_firing", "alert_resolved"]
    assert stack.prometheus.alert(name, bad) is None

    healthy = wait_for(stack, good, "its end", states=("SUCCEEDED", "FAILED"))
    assert healthy.state == "SUCCEEDED", healthy.reason
    assert healthy.diagnosis is not None
    assert healthy.diagnosis.verdict == "good_fit"
    assert [one for one in healthy.alerts if one.severity != "info"] == []
    fired = stack.prometheus.query(
        f'max_over_time(ALERTS{{severity=~"warning|critical",run_id="{good}"}}[1h])'
    )
    assert fired == []
    assert stack.prometheus.rule_errors() == []


def test_a_learning_rate_that_is_far_too_high_pages_and_ends_the_run_where_its_job_says_so(
    stack: RunningStack, examples: Path
) -> None:
    names = ("CurvewatchLossNotFinite", "CurvewatchValidationLossDiverging")
    changes = {"training": {"epochs": 100_000}, "policy": {"on_alert": dict.fromkeys(names, "stop")}}
    run_id = submit(stack, examples / "digits_diverging", **changes)
    run = wait_for(stack, run_id, "its end", states=("STOPPED", "FAILED", "SUCCEEDED"))
    assert run.state == "STOPPED", run.reason
    assert run.reason == f"stopped on an alert after epoch {run.epoch}"
    assert run.epoch < 100_000
    assert run.checkpoint is not None
    alerts = alerts_on(stack, run_id, *names)
    assert {alert.severity for alert in alerts} == {"critical"}
    with stack.client() as client:
        told = {event.reason: event.message for event in client.events(run_id)}
    ends = {f"{alert.name} fires, and the job says to stop then" for alert in alerts}
    assert told["state_stopping"] in ends
    assert Control.STOP_ON_ALERT.stops


def test_what_is_up_stays_up_and_a_taken_port_is_told(stack: RunningStack, tmp_path: Path) -> None:
    again = stack.call("up")
    assert again.returncode == 0, again.stderr
    for url in (stack.service_url, stack.alertmanager_url, f"http://127.0.0.1:{stack.ports[1]}"):
        assert url in again.stdout
    moved = replace(stack, ports=(stack.ports[0], stack.ports[2], stack.ports[1])).call("up")
    assert moved.returncode == 1
    assert moved.stderr.startswith(
        f"error: alertmanager runs already, at {stack.alertmanager_url} and not at"
    )
    assert str(stack.ports[2]) in (stack.folder / "prometheus.yaml").read_text(), "nothing was written anew"
    other = stack.__class__(tmp_path, stack.ports, stack.environment, stack.prometheus)
    taken = other.call("up")
    assert taken.returncode == 1
    assert taken.stderr.startswith(f"error: port {stack.ports[0]}, of curvewatch, cannot be had")
    assert other.call("down").stdout == "Nothing was running.\n"
