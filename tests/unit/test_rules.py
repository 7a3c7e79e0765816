"""Each alert on its case, on the innocent cases next to it, and at its end; evaluated by promtool itself."""

from __future__ import annotations

import math
import re
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import yaml

from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.promql import select
from curvewatch_dashboards.rules import alerts, rule_groups, runbook_anchor
from curvewatch_workers import series
from rule_support import PROMTOOL, RULES, Check, ScrapedRun, check_alerts, needs_promtool, run_promtool

OVERFITTING, DIVERGING = "CurvewatchOverfitting", "CurvewatchValidationLossDiverging"
RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"
STEP = 15.0

FALLING = tuple(1.0 / epoch for epoch in range(1, 31))
U_SHAPED = tuple(1.0 + 0.02 * abs(epoch - 10) for epoch in range(1, 31))
"""Lowest at epoch 10, then it rises by 0.02 an epoch."""
OVERFIT = ScrapedRun(train=FALLING, validation=U_SHAPED, verdict="overfitting", verdict_from=13)
EXPLODING = tuple(1.0 / epoch if epoch <= 10 else 0.1 * 2.0 ** (epoch - 10) for epoch in range(1, 21))
DIVERGED = ScrapedRun(
    train=EXPLODING, validation=EXPLODING, verdict="diverging", verdict_from=11, patience=10
)
END = 31 * 30.0
"""A moment after the last epoch of these runs."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the runs look like, and which of them have the alert firing when."""

    name: str
    alert: str
    kind: Literal["fires", "quiet", "resolves"]
    runs: tuple[ScrapedRun, ...]
    checks: tuple[Check, ...]
    step: float = field(default=STEP)


def fires(alert: str, name: str, run: ScrapedRun, *, quiet: float, firing: float, step: float = STEP) -> Case:
    """Make a case of a run that is quiet at one time and fires at a later one."""
    checks = (Check(seconds=quiet), Check(seconds=firing, firing=(run,)))
    return Case(name=name, alert=alert, kind="fires", runs=(run,), checks=checks, step=step)


def quiet(alert: str, name: str, run: ScrapedRun) -> Case:
    """Make a case of a run that fires nothing at any of its epochs."""
    checks = tuple(Check(seconds=STEP * index) for index in range(int(END / STEP) + 1))
    return Case(name=name, alert=alert, kind="quiet", runs=(run,), checks=checks)


def resolves(alert: str, name: str, run: ScrapedRun, *, firing: float, over: float) -> Case:
    """Make a case of a run that fires at one time and no longer at a later one."""
    checks = (Check(seconds=firing, firing=(run,)), Check(seconds=over))
    return Case(name=name, alert=alert, kind="resolves", runs=(run,), checks=checks)


def changed(values: tuple[float, ...], *, epoch: int, to: float) -> tuple[float, ...]:
    """Return the losses with another one from an epoch on."""
    return values[: epoch - 1] + (to,) * (len(values) - epoch + 1)


NOT_A_NUMBER = changed(U_SHAPED, epoch=14, to=math.nan)
RECOVERS = changed(U_SHAPED, epoch=22, to=0.5)
FALLS_BACK = (0.1, *(9.0 / epoch for epoch in range(1, 20)))
COMES_BACK = changed(EXPLODING, epoch=18, to=0.05)
IN_EUROPE = replace(OVERFIT, cluster="eu")
IN_AMERICA = replace(OVERFIT, cluster="us", run_id="r-2", owner="bob")
NOT_OVERFIT = (
    replace(OVERFIT, cluster="us", verdict="good_fit"),
    replace(OVERFIT, cluster="ap", validation=FALLING),
    replace(OVERFIT, cluster="af", stopping_from=12),
)
"""The same ids too, as after a database was copied; each lacks another part of the condition."""
DIVERGED_IN_EUROPE = replace(DIVERGED, cluster="eu")
NOT_DIVERGED = (
    replace(DIVERGED, cluster="us", verdict="good_fit"),
    replace(DIVERGED, cluster="ap", validation=FALLING[:20]),
    replace(DIVERGED, cluster="af", patience=4, validation=FALLS_BACK, verdict_from=14),
)

CASES = (
    # The best is epoch 10 and patience is 5: epoch 15 meets it, epoch 16 exceeds it.
    fires(OVERFITTING, "epochs of 30 s", OVERFIT, quiet=15 * 30 + 15, firing=16 * 30 + 15),
    fires(
        OVERFITTING,
        "epochs of 6 h",
        replace(OVERFIT, epoch_seconds=6 * 3600),
        quiet=15 * 6 * 3600 + 3600,
        firing=16 * 6 * 3600 + 3600,
        step=3600,
    ),
    fires(
        OVERFITTING,
        "epochs of 0.2 s, over between two scrapes",
        replace(OVERFIT, epoch_seconds=0.2, leaves_at=606),
        quiet=0,
        firing=30,
    ),
    fires(
        OVERFITTING,
        "memorised train set whose slope is a little above zero",
        replace(OVERFIT, train=tuple(1e-6 + 1e-9 * epoch for epoch in range(30))),
        quiet=15 * 30 + 15,
        firing=16 * 30 + 15,
    ),
    fires(
        OVERFITTING,
        "losses below zero",
        replace(OVERFIT, train=tuple(x - 9 for x in FALLING), validation=tuple(x - 9 for x in U_SHAPED)),
        quiet=15 * 30 + 15,
        firing=16 * 30 + 15,
    ),
    quiet(OVERFITTING, "patience not reached", replace(OVERFIT, patience=25)),
    quiet(
        OVERFITTING,
        "early stopping ends the run as patience is met",
        replace(OVERFIT, train=FALLING[:15], validation=U_SHAPED[:15]),
    ),
    quiet(OVERFITTING, "good fit on a noisy floor", replace(OVERFIT, verdict="good_fit")),
    quiet(OVERFITTING, "accuracy is kept: overconfident", replace(OVERFIT, verdict="overconfident")),
    quiet(OVERFITTING, "train loss rises as well", replace(OVERFIT, train=U_SHAPED)),
    quiet(OVERFITTING, "early noisy rise", replace(OVERFIT, verdict_from=31)),
    quiet(OVERFITTING, "validation loss is NaN", replace(OVERFIT, validation=NOT_A_NUMBER)),
    quiet(OVERFITTING, "train slope is not known", replace(OVERFIT, train=(math.nan,) * 30)),
    quiet(OVERFITTING, "a person stops the run", replace(OVERFIT, stopping_from=15)),
    resolves(
        OVERFITTING, "new best", replace(OVERFIT, validation=RECOVERS), firing=21 * 30, over=22 * 30 + 15
    ),
    resolves(
        OVERFITTING, "run leaves after its linger", replace(OVERFIT, leaves_at=END), firing=END - 30, over=END
    ),
    Case(
        name="two clusters with the same run, one overfits",
        alert=OVERFITTING,
        kind="fires",
        runs=(IN_EUROPE, *NOT_OVERFIT),
        checks=(Check(seconds=END, firing=(IN_EUROPE,)),),
    ),
    Case(
        name="two clusters with the same run, both overfit",
        alert=OVERFITTING,
        kind="fires",
        runs=(IN_EUROPE, IN_AMERICA),
        checks=(Check(seconds=END, firing=(IN_EUROPE, IN_AMERICA)),),
    ),
    # The best is epoch 10: the third epoch without a new best is epoch 13, long before the patience of 10.
    fires(DIVERGING, "both losses explode", DIVERGED, quiet=12 * 30 + 15, firing=13 * 30 + 15),
    fires(
        DIVERGING,
        "epochs of 6 h",
        replace(DIVERGED, epoch_seconds=6 * 3600),
        quiet=12 * 6 * 3600 + 3600,
        firing=13 * 6 * 3600 + 3600,
        step=3600,
    ),
    fires(
        DIVERGING,
        "epochs of 0.2 s, over between two scrapes",
        replace(DIVERGED, epoch_seconds=0.2, leaves_at=604),
        quiet=0,
        firing=30,
    ),
    fires(
        DIVERGING,
        "losses below zero",
        replace(
            DIVERGED, train=tuple(x - 200 for x in EXPLODING), validation=tuple(x - 200 for x in EXPLODING)
        ),
        quiet=12 * 30 + 15,
        firing=13 * 30 + 15,
    ),
    quiet(DIVERGING, "good fit on a noisy floor", replace(DIVERGED, verdict="good_fit")),
    quiet(DIVERGING, "early noisy rise", replace(DIVERGED, verdict_from=31)),
    quiet(
        DIVERGING,
        "one bad epoch, then a new best",
        replace(DIVERGED, validation=changed(changed(EXPLODING, epoch=12, to=9.0), epoch=13, to=0.09)),
    ),
    quiet(
        DIVERGING,
        "falls back towards its best",
        replace(
            DIVERGED, patience=4, verdict_from=14, validation=(0.1, *(9.0 / epoch for epoch in range(1, 20)))
        ),
    ),
    quiet(
        DIVERGING,
        "validation loss is NaN",
        replace(DIVERGED, validation=changed(EXPLODING, epoch=11, to=math.nan)),
    ),
    quiet(DIVERGING, "a person stops the run", replace(DIVERGED, stopping_from=12)),
    resolves(
        DIVERGING, "new best", replace(DIVERGED, validation=COMES_BACK), firing=17 * 30, over=18 * 30 + 15
    ),
    resolves(
        DIVERGING, "run leaves after its linger", replace(DIVERGED, leaves_at=END), firing=END - 30, over=END
    ),
    Case(
        name="two clusters with the same run, one diverges",
        alert=DIVERGING,
        kind="fires",
        runs=(DIVERGED_IN_EUROPE, *NOT_DIVERGED),
        checks=(Check(seconds=END, firing=(DIVERGED_IN_EUROPE,)),),
    ),
)


@needs_promtool
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert} {case.kind}: {case.name}")
def test_alert(case: Case, tmp_path: Path) -> None:
    check_alerts(tmp_path, case.alert, case.runs, case.checks, case.step)


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
    ],
)
def test_annotations_tell_the_run_and_its_numbers(
    alert: str, run: ScrapedRun, seconds: float, description: str, tmp_path: Path
) -> None:
    (rule,) = (a for a in alerts(Knobs()) if a.name == alert)
    annotations = {
        "summary": rule.summary,
        "description": description,
        "runbook_url": f"docs/runbook.md#{runbook_anchor(alert)}",
    }
    labels = {"owner": "ann", "component": "learning", "severity": "warning", **run.labels}
    expected = {
        "eval_time": f"{int(seconds)}s",
        "alertname": alert,
        "exp_alerts": [{"exp_labels": labels, "exp_annotations": annotations}],
    }
    run_promtool(tmp_path, (run,), seconds, STEP, alert_rule_test=[expected])


@pytest.mark.parametrize("alert", [alert.name for alert in alerts(Knobs())])
def test_every_alert_has_its_tests_and_its_runbook_entry(alert: str) -> None:
    kinds = {case.kind for case in CASES if case.alert == alert}
    assert kinds == {"fires", "quiet", "resolves"}
    entries = re.split(r"^## ", RUNBOOK.read_text(), flags=re.MULTILINE)
    (entry,) = (text for text in entries if text.startswith(f"{alert}\n"))
    assert re.findall(r"^### (.+)$", entry, flags=re.MULTILINE) == [
        "Meaning",
        "Impact",
        "What to look at",
        "What to do",
    ]


def test_the_runbook_has_no_entry_without_an_alert() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    assert headings == [alert.name for alert in alerts(Knobs())]


@needs_promtool
def test_promtool_finds_nothing_to_object_to(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    assert PROMTOOL is not None
    command = [PROMTOOL, "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_rule_measures_a_curve_in_wall_time() -> None:
    assert not re.search(
        r"\[|rate|deriv|increase|delta|time\(\)", "".join(alert.expr for alert in alerts(Knobs()))
    )


def test_rules_name_only_series_of_the_table() -> None:
    names = {
        name
        for alert in alerts(Knobs())
        for name in re.findall(r"curvewatch_\w+", alert.expr + alert.description)
    }
    assert names <= series.TABLE.keys()


def test_a_selector_refuses_a_label_that_the_series_lacks() -> None:
    with pytest.raises(ValueError, match=r"curvewatch_epoch has no label 'split'; it has run_id, run"):
        select(series.EPOCH, split="train")


def test_a_knob_reaches_every_rule() -> None:
    knobs = Knobs(hold="7s", runbook="https://example.org/runbook")
    text = yaml.safe_dump(rule_groups(knobs), width=1_000_000)
    assert text.count("for: 7s") == len(alerts(knobs))
    assert text.count("runbook_url: https://example.org/runbook#") == len(alerts(knobs))
