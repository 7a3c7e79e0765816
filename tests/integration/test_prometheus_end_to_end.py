"""The whole line: a job that overfits, on Ray, through the service and Prometheus to a firing alert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_support import Prometheus, needs_prometheus, scraping
from ray_support import RUN_SECONDS, ServiceProcess

pytestmark = needs_prometheus


def _overfitting(prometheus: Prometheus, run_id: str) -> dict[str, Any] | None:
    alert = prometheus.alert("CurvewatchOverfitting", run_id)
    return alert if alert is not None and alert["state"] == "firing" else None


def test_a_job_that_overfits_ends_in_a_firing_alert(
    service: ServiceProcess, project_root: Path, tmp_path: Path
) -> None:
    with scraping(service.url.removeprefix("http://"), tmp_path / "prometheus") as prometheus:
        run_id = service.submit(project_root / "examples" / "digits_overfit")
        alert = prometheus.wait(
            "overfitting fires", lambda: _overfitting(prometheus, run_id), seconds=RUN_SECONDS
        )
        run = service.wait_for_end(run_id)
        assert run.state == "SUCCEEDED", run.reason
        assert run.diagnosis is not None
        assert run.diagnosis.verdict == "overfitting"
        assert run.diagnosis.epochs_since_best is not None
        assert run.diagnosis.epochs_since_best > run.spec.patience_epochs

        labels = {"run": run.name, "owner": run.owner, "severity": "warning", "component": "learning"}
        assert labels.items() <= alert["labels"].items()
        assert f"Run {run.name} ({run_id}) of {run.owner}" in alert["annotations"]["description"]
        assert f"Best: {run.diagnosis.best_validation_loss:.4g} " in alert["annotations"]["description"]
        assert _overfitting(prometheus, run_id), "a run that has ended still counts while it lingers"
        assert prometheus.alert("CurvewatchValidationLossDiverging", run_id) is None
        assert prometheus.rule_errors() == []
        losses = prometheus.query(f'max_over_time(curvewatch_loss{{run_id="{run_id}"}}[10m])')
        assert {sample.labels["split"] for sample in losses} == {"train", "validation"}
