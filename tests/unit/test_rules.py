"""Each alert on its case, on the innocent cases next to it, and at its end; evaluated by promtool itself."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from curvewatch_dashboards.alerts import RANKING, Alert, all_alerts, runbook_anchor
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.promql import select
from curvewatch_dashboards.rules import rule_groups
from curvewatch_workers import series
from rule_cases_learning import DIVERGED, DIVERGING, LEARNING_CASES, OVERFIT, OVERFITTING
from rule_cases_runs import END, EXACTNESS_CASES, HANGS, HEALTHY, RUN_CASES, SLOW_RANK, STALLED, STRAGGLER
from rule_cases_service import ABSENT, SERVICE_CASES, TOLERATED, WATCHDOG, ServiceCase
from rule_support import (
    ALERTS,
    PROMTOOL,
    RULES,
    STEP,
    Case,
    ScrapedRun,
    alert_labels,
    check_alerts,
    evaluate,
    needs_promtool,
    rules_for,
    run_promtool,
)

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"
CASES = (*LEARNING_CASES, *RUN_CASES, *EXACTNESS_CASES)
by_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert} {case.kind}: {case.name}")
def test_alert_on_a_run(case: Case, tmp_path: Path) -> None:
    check_alerts(tmp_path, case)


@needs_promtool
@pytest.mark.parametrize("case", SERVICE_CASES, ids=lambda case: f"{case.alert} {case.kind}: {case.name}")
def test_alert_on_the_service(case: ServiceCase, tmp_path: Path) -> None:
    (alert,) = (one for one in ALERTS if one.name == case.alert)
    told = {"alertname": alert.name, "alertstate": "firing", "component": "service"}
    tests = [
        {
            "expr": f'ALERTS{{alertname="{alert.name}",alertstate="firing"}}',
            "eval_time": f"{seconds}s",
            "exp_samples": [
                {
                    "labels": f"ALERTS{{{_matchers({**told, 'severity': alert.severity, **labels})}}}",
                    "value": 1,
                }
                for labels in firing
            ],
        }
        for seconds, firing in case.checks
    ]
    series_of_case = [{"series": name, "values": values} for name, values in case.series.items()]
    evaluate(tmp_path, series_of_case, STEP, rules=rules_for(alert.name), promql_expr_test=tests)


@needs_promtool
@pytest.mark.parametrize(
    "case", [case for case in SERVICE_CASES if case.name == TOLERATED], ids=lambda case: case.alert
)
def test_as_few_errors_as_are_nothing_are_so_between_two_scrapes_too(
    case: ServiceCase, tmp_path: Path
) -> None:
    """Prometheus extrapolates there: of five errors it makes a little more."""
    (alert,) = (one for one in ALERTS if one.name == case.alert)
    series_of_case = [{"series": name, "values": values} for name, values in case.series.items()]
    tests = [
        {"expr": alert.expr, "eval_time": f"{seconds}s", "exp_samples": []} for seconds in range(605, 995, 13)
    ]
    evaluate(tmp_path, series_of_case, STEP, promql_expr_test=tests)


@needs_promtool
def test_a_run_that_goes_well_fires_nothing(tmp_path: Path) -> None:
    check = {
        "expr": f'ALERTS{{alertstate=~"pending|firing",alertname!~"{WATCHDOG}|{ABSENT}"}}',
        "exp_samples": [],
    }
    times = range(0, int(END) + 600, 30)
    tests = [{**check, "eval_time": f"{seconds}s"} for seconds in times]
    run_promtool(tmp_path, (HEALTHY,), END + 600, STEP, promql_expr_test=tests)


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "run", "seconds", "description"),
    [
        (
            OVERFITTING,
            replace(OVERFIT, cluster="eu"),
            16 * 30 + 15,
            "Run digits (r-1) of ann has had no new best validation loss for 6 epochs, and allows 5. "
            "Best: 1 at epoch 10. At epoch 16 of 30: validation 1.12, train 0.0625.",
        ),
        (
            DIVERGING,
            DIVERGED,
            13 * 30 + 15,
            "Run digits (r-1) of ann has a validation loss of 0.8 at epoch 13 of 20. "
            "Best: 0.1, 3 epochs ago. It rises by 0.03863 an epoch; train loss is 0.8.",
        ),
        (
            STALLED,
            HANGS,
            120 + 630,
            "Run digits (r-1) of ann is at epoch 4 of 4 and has waited 10m 30s for the next one; the limit is 600 s "
            "(monitoring.stalled_after_seconds, else ten times its longest epoch). World size: 2.",
        ),
        (
            STRAGGLER,
            SLOW_RANK,
            105,
            "Run digits (r-1) of ann has a slow rank 1: it takes 1.70 times as long for a sample as the median of 2 "
            "ranks, at epoch 3 of 30.",
        ),
    ],
)
def test_annotations_tell_the_run_and_its_numbers(
    alert: str, run: ScrapedRun, seconds: float, description: str, tmp_path: Path
) -> None:
    (rule,) = (one for one in ALERTS if one.name == alert)
    annotations = {
        "summary": rule.summary,
        "description": description,
        "runbook_url": f"docs/runbook.md#{runbook_anchor(alert)}",
        "page": "http://watch/runs/r-1",
    }
    labels = alert_labels(alert, run, {"rank": "1"} if alert == STRAGGLER else {})
    expected = {
        "eval_time": f"{int(seconds)}s",
        "alertname": alert,
        "exp_alerts": [
            {
                "exp_labels": {k: v for k, v in labels.items() if k not in ("alertname", "alertstate")},
                "exp_annotations": annotations,
            }
        ],
    }
    run_promtool(tmp_path, (run,), seconds, STEP, rules=rules_for(alert), alert_rule_test=[expected])


@by_alert
def test_every_alert_has_its_tests_and_its_runbook_entry(alert: Alert) -> None:
    every: tuple[Case | ServiceCase, ...] = (*CASES, *SERVICE_CASES)
    kinds = {case.kind for case in every if case.alert == alert.name}
    # What always fires neither stays quiet nor ends.
    assert kinds == ({"fires"} if alert.name == WATCHDOG else {"fires", "quiet", "resolves"})
    entries = re.split(r"^## ", RUNBOOK.read_text(), flags=re.MULTILINE)
    (entry,) = (text for text in entries if text.startswith(f"{alert.name}\n"))
    assert f"Severity: {alert.severity}." in entry
    assert re.findall(r"^### (.+)$", entry, flags=re.MULTILINE) == [
        "Meaning",
        "Impact",
        "What to look at",
        "What to do",
    ]


def test_the_runbook_has_no_entry_without_an_alert() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    assert headings == [alert.name for alert in ALERTS]


@by_alert
def test_an_alert_keeps_the_conventions(alert: Alert) -> None:
    assert re.fullmatch(r"Curvewatch([A-Z][a-z]+)+", alert.name)
    assert alert.severity in ("critical", "warning", "info")
    assert "{{" not in alert.summary, "the summary is the same for every run"
    assert alert.summary.endswith(".")
    labels = ("run", "run_id", "owner") if alert.of_a_run else ()
    assert all(f"$labels.{label} " in alert.description for label in labels)
    assert alert.name == WATCHDOG or "{{" in alert.description


def test_alerts_have_names_of_their_own() -> None:
    names = [alert.name for alert in ALERTS]
    assert len(set(names)) == len(names)


def test_the_ranking_has_every_alert_on_a_curve() -> None:
    ranked = [name for rank in RANKING for name in rank]
    assert sorted(ranked) == sorted(alert.name for alert in ALERTS if alert.component == "learning")


@needs_promtool
def test_promtool_finds_nothing_to_object_to(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    assert PROMTOOL is not None
    command = [PROMTOOL, "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_rule_measures_a_curve_in_wall_time() -> None:
    learning = [alert.expr for alert in ALERTS if alert.component in ("learning", "exactness")]
    assert not re.search(r"\[|rate|deriv|increase|delta|time\(\)", "".join(learning))


def test_rules_name_only_series_of_the_table() -> None:
    of_table = {*series.TABLE, *(f"curvewatch_{alert.component}" for alert in ALERTS)}
    texts = [alert.expr + alert.description for alert in ALERTS]
    names = {name for text in texts for name in re.findall(r"curvewatch_\w+", text)}
    assert names <= of_table


def test_a_selector_refuses_a_label_that_the_series_lacks() -> None:
    with pytest.raises(ValueError, match=r"curvewatch_epoch has no label 'split'; it has run_id, run"):
        select(series.EPOCH, split="train")


def test_a_knob_reaches_its_rules() -> None:
    changed = all_alerts(Knobs(hold="7s", service_hold="8m"))
    holds = {alert.component: alert.hold for alert in changed if alert.name != WATCHDOG}
    assert holds == {"learning": "7s", "run": "7s", "exactness": "7s", "service": "8m"}
    text = yaml.safe_dump(rule_groups(Knobs(runbook="https://example.org/runbook")), width=1_000_000)
    assert text.count("runbook_url: https://example.org/runbook#") == len(ALERTS)


def _matchers(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items())
