"""What the tests of alerts share: runs as Prometheus would have scraped them, and promtool."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

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
    patience: int = 5
    epoch_seconds: float = 30.0
    end_state: str = "SUCCEEDED"
    stopping_from: int | None = None
    """Epoch from which a person stops the run."""
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
            samples = self._samples(epoch)
            for name in columns.keys() | samples.keys():
                value = GONE if time >= self.leaves_at else samples.get(name, MISSING)
                columns.setdefault(name, [MISSING] * times.index(time)).append(value)
        return [{"series": name, "values": " ".join(values)} for name, values in sorted(columns.items())]

    def _samples(self, epoch: int) -> dict[str, str]:
        curve = Curve(train=tuple(self.train[:epoch]), validation=tuple(self.validation[:epoch]))
        summary = summarize(curve, window=self.patience)
        samples: dict[str, str] = {}

        def put(what: Series, value: float | None, **labels: str) -> None:
            if value is not None:
                samples[_name(what, self.labels | labels)] = (
                    "NaN" if math.isnan(value) else repr(float(value))
                )

        info = {"owner": self.owner, "task": "task:build"}
        put(series.RUN_INFO, 1, **info, **({} if self.cluster else {"cluster": "ray"}))
        put(series.EPOCH, epoch)
        put(series.EPOCHS_PLANNED, len(self.train))
        put(series.PATIENCE_EPOCHS, self.patience)
        for state in ("RUNNING", "STOPPING", "STOPPED", "SUCCEEDED"):
            put(series.RUN_STATE, float(state == self._state(epoch)), state=state)
        verdict = self.verdict if epoch >= self.verdict_from else Verdict.TOO_EARLY
        for member in Verdict:
            put(series.VERDICT, float(member == verdict), verdict=member.value)
        put(series.BEST_VALIDATION_LOSS, summary.best_validation_loss)
        put(series.BEST_EPOCH, summary.best_epoch)
        put(series.EPOCHS_SINCE_BEST, summary.epochs_since_best)
        put(series.LOSS_SLOPE, summary.train_slope, split="train")
        put(series.LOSS_SLOPE, summary.validation_slope, split="validation")
        if epoch:
            put(series.LOSS, self.train[epoch - 1], split="train")
            put(series.LOSS, self.validation[epoch - 1], split="validation")
        return samples

    def _state(self, epoch: int) -> str:
        if self.stopping_from is not None and epoch >= self.stopping_from:
            return "STOPPED" if epoch > self.stopping_from else "STOPPING"
        return self.end_state if epoch == len(self.train) else "RUNNING"


@dataclass(frozen=True, kw_only=True)
class Check:
    """At this time exactly these runs have this alert firing, and no run has another."""

    seconds: float
    firing: tuple[ScrapedRun, ...] = ()


def check_alerts(
    folder: Path, alert: str, runs: Sequence[ScrapedRun], checks: Sequence[Check], step: float
) -> None:
    """Evaluate the built rules over scraped runs with promtool, and fail where a check does not hold."""
    tests = [
        {
            "expr": 'ALERTS{alertstate="firing"}',
            "eval_time": _duration(check.seconds),
            "exp_samples": [{"labels": _alert_labels(alert, run), "value": 1} for run in check.firing],
        }
        for check in checks
    ]
    last = max(check.seconds for check in checks)
    run_promtool(folder, runs, last, step, promql_expr_test=tests)


def run_promtool(folder: Path, runs: Sequence[ScrapedRun], last: float, step: float, **tests: object) -> None:
    """Run `promtool test rules` over scraped runs, from time 0 to the last check."""
    times = [index * step for index in range(math.ceil(last / step) + 1)]
    case = {
        "interval": _duration(step),
        "input_series": [entry for run in runs for entry in run.input_series(times)],
        **tests,
    }
    (folder / "rules.yaml").write_text(RULES)
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


def _alert_labels(alert: str, run: ScrapedRun) -> str:
    labels = {"alertname": alert, "alertstate": "firing", "component": "learning", "severity": "warning"}
    return _labels({"__name__": "ALERTS", "owner": run.owner, **labels, **run.labels})


def _name(what: Series, labels: dict[str, str]) -> str:
    return f"{what.name}{_labels(labels)}"


def _labels(labels: dict[str, str]) -> str:
    inner = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()) if name != "__name__")
    return f"{labels.get('__name__', '')}{{{inner}}}"


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
