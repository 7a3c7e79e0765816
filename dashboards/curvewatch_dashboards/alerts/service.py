"""Alerts on the service itself, and on Prometheus' view of it."""

from __future__ import annotations

from curvewatch_dashboards.alerts.alert import Alert, Severity
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.promql import select
from curvewatch_workers import series
from curvewatch_workers.series import CURVES_PATH, Series


def service_alerts(knobs: Knobs) -> tuple[Alert, ...]:
    """Return the alerts on the service."""
    return (
        _errors(
            knobs,
            "IngestErrors",
            series.INGEST_ERRORS,
            more_than=knobs.ingest_errors,
            summary="The service refuses or fails what workers tell.",
            what="ingest requests were refused or failed",
        ),
        _errors(
            knobs,
            "CollectorErrors",
            series.COLLECTOR_ERRORS,
            more_than=0,
            summary="Runs are missing from /metrics.",
            what="times a run could not be exported",
        ),
        _errors(
            knobs,
            "ReconcileErrors",
            series.RECONCILE_ERRORS,
            more_than=knobs.reconcile_errors,
            summary="The service cannot bring runs to where they should be.",
            what="looks at a run failed",
        ),
        _errors(
            knobs,
            "HistoryNotWritten",
            series.REMOTE_WRITE_FAILURES,
            more_than=knobs.remote_write_failures,
            summary="Epochs do not reach the remote-write receiver.",
            what="remote writes failed",
        ),
        _metrics_absent(knobs),
        _watchdog(),
    )


def _alert(name: str, severity: Severity, expr: str, hold: str, summary: str, description: str) -> Alert:
    return Alert(
        name=f"Curvewatch{name}",
        severity=severity,
        component="service",
        expr=expr,
        hold=hold,
        summary=summary,
        description=description,
    )


def _errors(knobs: Knobs, name: str, counted: Series, *, more_than: int, summary: str, what: str) -> Alert:
    return _alert(
        name,
        "warning",
        # Half an error more: between two scrapes Prometheus makes of five a little more than five.
        f"increase({select(counted)}[{knobs.errors_window}]) > {more_than} + 0.5\n",
        knobs.service_hold,
        summary,
        f'{{{{ $value | printf "%.0f" }}}} {what} in {knobs.errors_window} at {{{{ $labels.instance }}}}; '
        "its log tells which and why.",
    )


def _metrics_absent(knobs: Knobs) -> Alert:
    """Build the alert on a service that cannot be scraped.

    Both arms are needed: a target that is down is still a target, and one that is not configured any more has no `up`.
    """
    # Not the curves, which no alert reads; a ServiceMonitor tells their target by its path.
    down = f'up{{job=~"{knobs.scrape_jobs}",job!~"{knobs.curves_jobs}",metrics_path!="{CURVES_PATH}"}} == 0'
    return _alert(
        "MetricsAbsent",
        "critical",
        f"{down}\nor\nabsent({select(series.BUILD_INFO)})\n",
        knobs.service_hold,
        "Prometheus gets nothing from the service: no alert on a run can fire.",
        "Prometheus gets no metrics of Curvewatch"
        "{{ with $labels.instance }} from {{ . }}{{ end }}. Runs go on; what they tell is kept by their workers, but "
        "nobody is told when one overfits or diverges.",
    )


def _watchdog() -> Alert:
    """Build the alert that always fires: where it does not arrive, no other would."""
    return _alert(
        "Watchdog",
        "info",
        "vector(1)\n",
        "0s",
        "Alerts arrive.",
        "This alert always fires. A receiver that expects it notices when alerts stop arriving.",
    )
