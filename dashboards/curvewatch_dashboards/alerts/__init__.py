"""Every alert, by what it is about."""

from curvewatch_dashboards.alerts.alert import Alert, Component, Record, runbook_anchor
from curvewatch_dashboards.alerts.exactness import exactness_alerts
from curvewatch_dashboards.alerts.learning import LEARNING_RECORDS, RANKING, learning_alerts
from curvewatch_dashboards.alerts.running import run_alerts
from curvewatch_dashboards.alerts.service import service_alerts
from curvewatch_dashboards.knobs import Knobs

__all__ = ["RANKING", "Alert", "Record", "all_alerts", "records", "runbook_anchor"]


def records(component: Component) -> tuple[Record, ...]:
    """Return what the alerts of a component's group read, to be worked out before them."""
    return LEARNING_RECORDS if component == "learning" else ()


def all_alerts(knobs: Knobs) -> tuple[Alert, ...]:
    """Return all alerts, in the order in which groups of rules hold them."""
    return (
        *learning_alerts(knobs),
        *run_alerts(knobs),
        *exactness_alerts(knobs),
        *service_alerts(knobs),
    )
