"""The built configuration in a real Alertmanager: who is told of what, and what keeps what quiet."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from alertmanager_support import AMTOOL, Alertmanager, alerting, needs_alertmanager, receiving
from curvewatch_dashboards.alertmanager import EXAMPLE, TO_SERVICE, receivers
from curvewatch_dashboards.alerts import RANKING, Alert, all_alerts
from curvewatch_dashboards.build import outputs
from curvewatch_dashboards.knobs import Knobs

pytestmark = needs_alertmanager
CONFIG = outputs(Knobs())["dashboards/curvewatch_dashboards/built/alertmanager.yaml"]
OF_RUN = {"run_id": "r-1", "run": "digits", "owner": "ann", "instance": "service:8420"}
RANKED = [name for rank in RANKING for name in rank]


def amtool(folder: Path, *arguments: str, config: str = CONFIG) -> str:
    assert AMTOOL is not None
    (folder / "alertmanager.yaml").write_text(config)
    command = [AMTOOL, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_amtool_finds_nothing_to_object_to(tmp_path: Path) -> None:
    assert "SUCCESS" in amtool(tmp_path, "check-config", "alertmanager.yaml")


def test_amtool_takes_every_example_of_a_receiver(tmp_path: Path) -> None:
    filled_in = CONFIG.replace(f"\n{EXAMPLE}  ", "\n  ")
    known = {one["name"]: one for one in yaml.safe_load(filled_in)["receivers"]}
    for receiver in receivers():
        assert known[receiver.name] == {"name": receiver.name, **receiver.example}
    assert "SUCCESS" in amtool(tmp_path, "check-config", "alertmanager.yaml", config=filled_in)


@pytest.mark.parametrize("alert", all_alerts(Knobs()), ids=lambda alert: alert.name)
def test_an_alert_on_a_run_goes_to_its_owner_and_one_on_the_service_to_its_operators(
    alert: Alert, tmp_path: Path
) -> None:
    labels = {"alertname": alert.name, "severity": alert.severity, "component": alert.component}
    if alert.of_a_run:
        labels |= OF_RUN
        expected = f"{TO_SERVICE},owner-{alert.severity}"
    elif alert.name == "CurvewatchWatchdog":
        expected = "watchdog"
    else:
        expected = f"operators-{alert.severity}"
    given = [f"{name}={value}" for name, value in labels.items()]
    assert (
        amtool(tmp_path, "config", "routes", "test", "--config.file=alertmanager.yaml", *given).strip()
        == expected
    )


def states(alertmanager: Alertmanager) -> dict[tuple[str, str, str], str]:
    found = alertmanager.alerts()
    return {
        (one["labels"]["alertname"], one["labels"].get("run_id", ""), one["labels"].get("cluster", "")): (
            one["status"]["state"]
        )
        for one in found
    }


def learning(name: str, **more: str) -> dict[str, str]:
    return {"alertname": name, "component": "learning", "severity": "warning", **OF_RUN, **more}


def test_what_is_worse_keeps_the_rest_of_the_run_quiet_and_no_other(tmp_path: Path) -> None:
    worst, *others = RANKED
    elsewhere = [learning("CurvewatchPlateau", run_id="r-2"), learning("CurvewatchPlateau", cluster="eu")]
    no_curve = {**learning("CurvewatchRunStalled"), "component": "run"}
    of_service = {"alertname": "CurvewatchIngestErrors", "component": "service", "severity": "warning"}
    with alerting(CONFIG, tmp_path) as alertmanager:
        alertmanager.tell(*map(learning, RANKED), *elsewhere, no_curve, of_service)
        expected = {
            (worst, "r-1", ""): "active",
            **{(name, "r-1", ""): "suppressed" for name in others},
            ("CurvewatchPlateau", "r-2", ""): "active",
            ("CurvewatchPlateau", "r-1", "eu"): "active",
            ("CurvewatchRunStalled", "r-1", ""): "active",
            ("CurvewatchIngestErrors", "", ""): "active",
        }
        alertmanager.wait("each is active or quiet", lambda: states(alertmanager) == expected)


def test_each_rank_keeps_those_below_quiet_and_none_beside_or_above_it(tmp_path: Path) -> None:
    pairs = [
        (place, name, other, lower)
        for place, rank in enumerate(RANKING)
        for name in rank
        for lower, below in enumerate(RANKING)
        for other in below
        if name != other
    ]
    expected = {}
    with alerting(CONFIG, tmp_path) as alertmanager:
        for number, (place, name, other, lower) in enumerate(pairs):
            run_id = f"pair-{number}"
            alertmanager.tell(learning(name, run_id=run_id), learning(other, run_id=run_id))
            expected[name, run_id, ""] = "suppressed" if lower < place else "active"
            expected[other, run_id, ""] = "suppressed" if place < lower else "active"
        alertmanager.wait("each pair is as ranked", lambda: states(alertmanager) == expected)


def test_the_service_is_told_again_of_what_fires_and_of_what_is_kept_quiet_no_more(tmp_path: Path) -> None:
    """So that it can tell what is over: of what ends while it is kept quiet, nobody is told the end."""
    knobs = replace(
        Knobs(), service_group_wait="0s", service_group_interval="1s", service_repeat_interval="1s"
    )
    config = yaml.safe_load(outputs(knobs)["dashboards/curvewatch_dashboards/built/alertmanager.yaml"])
    quiet, worse = "CurvewatchOverfitting", "CurvewatchLossNotFinite"
    with receiving() as (url, told):

        def heard() -> list[list[tuple[str, str]]]:
            bodies = [json.loads(body)["alerts"] for _, body in told]
            return [[(one["labels"]["alertname"], one["status"]) for one in alerts] for alerts in bodies]

        (receiver,) = (one for one in config["receivers"] if one["name"] == TO_SERVICE)
        receiver["webhook_configs"] = [{"url": url}]
        with alerting(yaml.safe_dump(config), tmp_path) as alertmanager:
            alertmanager.tell(learning(quiet))
            alertmanager.wait("it is told twice", lambda: heard()[:2] == [[(quiet, "firing")]] * 2)
            alertmanager.tell(learning(worse))
            alertmanager.wait("the worse is told", lambda: [(worse, "firing")] in heard())
            alertmanager.tell(learning(quiet), ended=True)
            before = len(heard())
            alertmanager.wait("two more notifications", lambda: len(heard()) >= before + 2)
        assert all((quiet, "resolved") not in alerts for alerts in heard())
        assert heard()[-1] == [(worse, "firing")]


def test_every_alert_on_a_run_reaches_its_owner_and_the_service(tmp_path: Path) -> None:
    with receiving() as (url, told):
        config = yaml.safe_load(CONFIG)
        for receiver in config["receivers"]:
            receiver["webhook_configs"] = [{"url": f"{url}/{receiver['name']}"}]
        for route in (config["route"], *config["route"]["routes"]):
            route["group_wait"] = "1s"
        with alerting(yaml.safe_dump(config), tmp_path) as alertmanager:
            bobs = learning("CurvewatchOverfitting", owner="bob", run_id="r-2")
            alertmanager.tell(
                learning("CurvewatchOverfitting"),
                bobs,
                learning("CurvewatchLossNotFinite", severity="critical"),
            )
            alertmanager.wait("four notifications", lambda: len(told) >= 4)
        heard = Counter(
            (path, one["labels"]["owner"], one["labels"]["alertname"])
            for path, body in told
            for one in json.loads(body)["alerts"]
        )
    # What ann's lost weights keep quiet is not told.
    assert heard == {
        ("/curvewatch-service", "ann", "CurvewatchLossNotFinite"): 1,
        ("/curvewatch-service", "bob", "CurvewatchOverfitting"): 1,
        ("/owner-critical", "ann", "CurvewatchLossNotFinite"): 1,
        ("/owner-warning", "bob", "CurvewatchOverfitting"): 1,
    }
