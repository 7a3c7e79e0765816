"""What the tests of alerts share: runs as Prometheus would have scraped them, and promtool."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import yaml

from curvewatch_dashboards.alerts import all_alerts
from curvewatch_dashboards.build import outputs
from curvewatch_dashboards.knobs import Knobs
from curvewatch_workers import series
from curvewatch_workers.diagnosis import Curve, Verdict, summarize
from curvewatch_workers.series import Series

RULES = outputs(Knobs())["dashboards/curvewatch_dashboards/built/rules.yaml"]
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed (apt-get install prometheus)"
)

ALERTS = all_alerts(Knobs())
STEP = 15.0
"""Seconds between two scrapes, and between two evaluations."""

GONE = "stale"
MISSING = "_"


@dataclass(frozen=True, kw_only=True)
class ScrapedRun:
    """A run whose epochs finish one after the other, from time 0."""

    train: Sequence[float]
    validation: Sequence[float]
    verdict: str
    """What the diagnosis says from epoch `verdict_from` on; before that, that it is too early."""
    verdict_from: int = 5
    verdict_until: int | None = None
    """Last epoch of it; after that the run is called a good fit."""
    patience: int = 5
    epoch_seconds: float = 30.0
    end_state: str = "SUCCEEDED"
    stopping_from: int | None = None
    """Epoch from which a person stops the run."""
    partly_nonfinite: Sequence[int] = ()
    """Epochs with some samples whose loss is not finite, which the mean leaves out."""
    wait_limit: float = 600.0
    restarts: Sequence[int] = ()
    """Restarts so far, by epoch, from 0; none where it is empty."""
    exact: Sequence[bool] = ()
    """Whether the train receipt is exact, by epoch from 1; always where it is empty."""
    differing: Sequence[int] = ()
    """Epochs so far that a replay trained to other numbers, by epoch, from 0; none where it is empty."""
    faithful: bool = True
    """Whether those are ones that may differ."""
    shards: Sequence[int] = (50, 50)
    """Train samples of each rank."""
    slowness: Sequence[float] = (1.0, 1.0)
    """Of each rank."""
    even_from: int | None = None
    """Epoch from which the ranks are alike in both."""
    leaves_at: float = math.inf
    """Seconds after which the run is no longer exported."""
    run_id: str = "r-1"
    owner: str = "ann"
    cluster: str | None = None
    """Label that a federation put on every series."""

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every series of this run."""
        where = {"job": "curvewatch", "instance": "service:8420"}
        known = {"run_id": self.run_id, "run": "digits", **where}
        return known if self.cluster is None else {**known, "cluster": self.cluster}

    def input_series(self, times: Sequence[float]) -> list[dict[str, str]]:
        """Return every series that the alerts read, one value for each time."""
        epochs = [min(int(time / self.epoch_seconds + 1e-9), len(self.train)) for time in times]
        columns: dict[str, list[str]] = {}
        for time, epoch in zip(times, epochs, strict=True):
            samples = self._samples(epoch, time)
            for name in columns.keys() | samples.keys():
                value = GONE if time >= self.leaves_at else samples.get(name, MISSING)
                columns.setdefault(name, [MISSING] * times.index(time)).append(value)
        return [{"series": name, "values": " ".join(values)} for name, values in sorted(columns.items())]

    def _samples(self, epoch: int, time: float) -> dict[str, str]:
        curve = Curve(train=tuple(self.train[:epoch]), validation=tuple(self.validation[:epoch]))
        summary = summarize(curve, window=self.patience)
        samples: dict[str, str] = {}

        def put(what: Series, value: float | None, **labels: str) -> None:
            if value is not None:
                samples[_name(what, self.labels | labels)] = _number(value)

        info = {"owner": self.owner, "task": "task:build", "page": f"http://watch/runs/{self.run_id}"}
        put(series.RUN_INFO, 1, **info, **({} if self.cluster else {"cluster": "ray"}))
        put(series.EPOCH, epoch)
        put(series.EPOCHS_PLANNED, len(self.train))
        put(series.PATIENCE_EPOCHS, self.patience)
        state = self._state(epoch)
        for one in ("RUNNING", "STOPPING", "STOPPED", "SUCCEEDED", "FAILED", "LOST"):
            put(series.RUN_STATE, float(one == state), state=one)
        if state in ("RUNNING", "STOPPING"):
            put(series.EPOCH_AWAITED_SINCE, min(epoch * self.epoch_seconds, time))
            put(series.EPOCH_WAIT_LIMIT, self.wait_limit)
        put(series.WORKER_RESTARTS, _at(self.restarts, epoch, 0))
        for reason in ("resume_not_faithful", "replay_differs"):
            told = self.faithful is (reason == "replay_differs")
            put(series.REPLAY_MISMATCHES, _at(self.differing, epoch, 0) if told else 0, reason=reason)
        verdict, stands = self._verdict(epoch)
        for member in Verdict:
            put(series.VERDICT, float(member == verdict), verdict=member.value)
        put(series.VERDICT_EPOCHS, stands)
        put(series.BEST_VALIDATION_LOSS, summary.best_validation_loss)
        put(series.BEST_EPOCH, summary.best_epoch)
        put(series.EPOCHS_SINCE_BEST, summary.epochs_since_best)
        put(series.LOSS_SLOPE, summary.train_slope, split="train")
        put(series.LOSS_SLOPE, summary.validation_slope, split="validation")
        if epoch:
            put(series.LOSS, self.train[epoch - 1], split="train")
            put(series.LOSS, self.validation[epoch - 1], split="validation")
            put(series.NONFINITE_EPOCHS, self._nonfinite_epochs(epoch))
            put(series.LEARNING_RATE, 0.1)
            put(series.RECEIPT_EXACT, float(_at(self.exact, epoch - 1, True)), split="train")
            put(series.RECEIPT_EXACT, 1, split="validation")
            put(series.WORLD_SIZE, len(self.shards))
            even = self.even_from is not None and epoch >= self.even_from
            for rank, (shard, slowness) in enumerate(zip(self.shards, self.slowness, strict=True)):
                put(series.SHARD_SAMPLES, self.shards[0] if even else shard, rank=str(rank))
                put(series.RANK_SLOWNESS, 1.0 if even else slowness, rank=str(rank))
        return samples

    def _verdict(self, epoch: int) -> tuple[str, int]:
        """Return what the diagnosis says, and for how many epochs in a row."""
        if epoch < self.verdict_from:
            return Verdict.TOO_EARLY, epoch
        if self.verdict_until is not None and epoch > self.verdict_until:
            return Verdict.GOOD_FIT, epoch - self.verdict_until
        return self.verdict, epoch - self.verdict_from + 1

    def _nonfinite_epochs(self, epoch: int) -> int:
        """Count them as the service does: an epoch counts with one sample, which its mean does not show."""
        bad = [
            number in self.partly_nonfinite or not (math.isfinite(train) and math.isfinite(validation))
            for number, (train, validation) in enumerate(
                zip(self.train[:epoch], self.validation[:epoch], strict=True), start=1
            )
        ]
        return next((count for count, one in enumerate(reversed(bad)) if not one), len(bad))

    def _state(self, epoch: int) -> str:
        if self.stopping_from is not None and epoch >= self.stopping_from:
            return "STOPPED" if epoch > self.stopping_from else "STOPPING"
        return self.end_state if epoch == len(self.train) else "RUNNING"


@dataclass(frozen=True, kw_only=True)
class Check:
    """At this time exactly these runs have the alert firing."""

    seconds: float
    firing: tuple[ScrapedRun, ...] = ()
    more: tuple[tuple[str, str], ...] = ()
    """Labels that the alert keeps of its series, such as the split or the rank."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the runs look like, and which of them have the alert firing when."""

    name: str
    alert: str
    kind: Literal["fires", "quiet", "resolves"]
    runs: tuple[ScrapedRun, ...]
    checks: tuple[Check, ...]
    step: float = STEP


def fires(
    alert: str,
    name: str,
    run: ScrapedRun,
    *,
    quiet: float,
    firing: float,
    step: float = STEP,
    **more: str,
) -> Case:
    """Make a case of a run that is quiet at one time and fires at a later one."""
    checks = (Check(seconds=quiet), Check(seconds=firing, firing=(run,), more=tuple(more.items())))
    return Case(name=name, alert=alert, kind="fires", runs=(run,), checks=checks, step=step)


def quiet(alert: str, name: str, run: ScrapedRun, *, until: float = 31 * 30.0) -> Case:
    """Make a case of a run that fires nothing at any of its epochs."""
    checks = tuple(Check(seconds=STEP * index) for index in range(int(until / STEP) + 1))
    return Case(name=name, alert=alert, kind="quiet", runs=(run,), checks=checks)


def resolves(alert: str, name: str, run: ScrapedRun, *, firing: float, over: float, **more: str) -> Case:
    """Make a case of a run that fires at one time and no longer at a later one."""
    checks = (Check(seconds=firing, firing=(run,), more=tuple(more.items())), Check(seconds=over))
    return Case(name=name, alert=alert, kind="resolves", runs=(run,), checks=checks)


def check_alerts(folder: Path, case: Case) -> None:
    """Evaluate the built rules over scraped runs with promtool, and fail where a check does not hold."""
    tests = [
        {
            "expr": f'ALERTS{{alertstate="firing",alertname="{case.alert}"}}',
            "eval_time": _duration(check.seconds),
            "exp_samples": [
                {"labels": _labels(alert_labels(case.alert, run, dict(check.more)), "ALERTS"), "value": 1}
                for run in check.firing
            ],
        }
        for check in case.checks
    ]
    last = max(check.seconds for check in case.checks)
    run_promtool(folder, case.runs, last, case.step, rules=rules_for(case.alert), promql_expr_test=tests)


@cache
def rules_for(alert: str) -> str:
    """Return the built rules without the other alerts, which promtool would evaluate at each step as well."""
    groups = yaml.safe_load(RULES)["groups"]
    for group in groups:
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert", alert) == alert]
    return yaml.safe_dump({"groups": groups}, width=1_000_000)


def alert_labels(alert: str, run: ScrapedRun, more: dict[str, str]) -> dict[str, str]:
    """Return the labels of a firing alert of a run."""
    (rule,) = (one for one in ALERTS if one.name == alert)
    told = {
        "alertname": alert,
        "alertstate": "firing",
        "component": rule.component,
        "severity": rule.severity,
    }
    return {**told, "owner": run.owner, **run.labels, **more}


def run_promtool(
    folder: Path,
    runs: Sequence[ScrapedRun],
    last: float,
    step: float,
    *,
    rules: str = RULES,
    **tests: object,
) -> None:
    """Run `promtool test rules` over scraped runs, from time 0 to the last check."""
    times = [index * step for index in range(math.ceil(last / step) + 1)]
    evaluate(folder, [entry for run in runs for entry in run.input_series(times)], step, rules=rules, **tests)


def evaluate(
    folder: Path,
    input_series: Sequence[dict[str, str]],
    step: float,
    *,
    rules: str = RULES,
    **tests: object,
) -> None:
    """Run `promtool test rules` over series, a value for each step."""
    case = {"interval": _duration(step), "input_series": list(input_series), **tests}
    (folder / "rules.yaml").write_text(rules)
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": _duration(step), "tests": [case]}
    (folder / "test.yaml").write_text(yaml.safe_dump(document, width=1_000_000))
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "test.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _at(values: Sequence[int] | Sequence[bool], index: int, otherwise: int) -> int:
    return values[min(index, len(values) - 1)] if values else otherwise


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return repr(float(value)) if math.isfinite(value) else f"{'+' if value > 0 else '-'}Inf"


def _name(what: Series, labels: dict[str, str]) -> str:
    return _labels(labels, what.name)


def _labels(labels: dict[str, str], name: str) -> str:
    return f"{name}{{{','.join(f'{label}={json.dumps(value)}' for label, value in sorted(labels.items()))}}}"


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
