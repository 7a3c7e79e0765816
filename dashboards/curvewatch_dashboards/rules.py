"""The Prometheus rule file."""

from __future__ import annotations

from itertools import groupby

from curvewatch_dashboards.alerts import all_alerts, records
from curvewatch_dashboards.knobs import Knobs


def rule_groups(knobs: Knobs) -> dict[str, object]:
    """Return the body of a Prometheus rule file, which is also the `spec` of a PrometheusRule."""
    by_component = groupby(all_alerts(knobs), key=lambda alert: alert.component)
    return {
        "groups": [
            {
                "name": f"curvewatch-{component}",
                "rules": [
                    *(record.rule() for record in records(component)),
                    *(alert.rule(knobs.runbook) for alert in alerts),
                ],
            }
            for component, alerts in by_component
        ]
    }
