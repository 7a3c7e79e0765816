"""Every alert, by what it is about."""

from curvewatch_dashboards.alerts.alert import Alert, runbook_anchor
from curvewatch_dashboards.alerts.exactness import exactness_alerts
from curvewatch_dashboards.alerts.learning import RANKING, learning_alerts
from curvewatch_dashboards.alerts.running import run_alerts
from curvewatch_dashboards.alerts.service import service_alerts
from curvewatch_dashboards.knobs import Knobs

__all__ = ["RANKING", "Alert", "all_alerts", "runbook_anchor"]


def all_alerts(knobs: Knobs) -> tuple[Alert, ...]:
    """Return all alerts, in the order in which groups of rules hold them."""
    return (
        *learning_alerts(knobs),
        *run_alerts(knobs),
        *exactness_alerts(knobs),
        *service_alerts(knobs),
    )
