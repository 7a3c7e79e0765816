"""What every alert is made of: its rule, and the templates that tell the run and its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.promql import ignoring, select
from curvewatch_workers import series
from curvewatch_workers.series import Series

Severity = Literal["critical", "warning", "info"]
Component = Literal["learning", "run", "exactness", "service"]

_RUN_KEYS = "job, instance, run_id"


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alerting rule."""

    name: str
    severity: Severity
    """critical: somebody is to look now; warning: somebody is to look today; info: worth knowing."""
    component: Component
    """What it is about. All but `service` are about one run, whose labels they carry."""
    expr: str
    hold: str
    """How long the condition must hold, as Prometheus writes it."""
    summary: str
    """The same words for every run, so that alerts can be grouped by it."""
    description: str
    """Template with the run and its numbers."""

    @property
    def of_a_run(self) -> bool:
        """Whether it is about one run."""
        return self.component != "service"

    def rule(self, runbook: str) -> dict[str, object]:
        """Return the rule as Prometheus reads it.

        Args:
            runbook: Where the runbook is published.
        """
        annotations = {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{runbook}#{runbook_anchor(self.name)}",
        }
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.hold,
            "labels": {"component": self.component, "severity": self.severity},
            "annotations": {**annotations, "page": _page()} if self.of_a_run else annotations,
        }


@dataclass(frozen=True, kw_only=True)
class Record:
    """One recording rule: what several alerts of a group would otherwise work out each for itself."""

    name: str
    expr: str

    def rule(self) -> dict[str, object]:
        """Return the rule as Prometheus reads it."""
        return {"record": self.name, "expr": self.expr}


def runbook_anchor(alert: str) -> str:
    """Return the anchor that Markdown renderers give to the heading of an alert."""
    return alert.lower()


INFO = f"topk by ({_RUN_KEYS}) (1, {select(series.RUN_INFO)})"
"""Facts of each run. topk keeps a join one-to-one: two info series of one run would fail a rule for all runs."""

STOPPED = f"max without (state) ({select(series.RUN_STATE, state='=~STOPPING|STOPPED')} == 1)"
"""Runs that somebody stops: a person has acted there, and nothing is left to tell."""


def with_owner(expr: str, *, info: str = INFO) -> str:
    """Return an expression on runs whose elements carry the run's owner.

    Args:
        expr: Expression on runs.
        info: The facts of each run, once.
    """
    body = expr.strip("\n")
    return f"(\n{body}\n)\n* on ({_RUN_KEYS}) group_left (owner)\n  {info}\n"


def alert_on_runs(
    knobs: Knobs,
    name: str,
    severity: Severity,
    expr: str,
    summary: str,
    description: str,
    *,
    component: Component,
    info: str = INFO,
) -> Alert:
    """Build an alert on runs; see `Alert` for most of its parts.

    Args:
        knobs: Those of the rules.
        name: Without `Curvewatch`.
        severity: Of it.
        expr: On runs, without their owner.
        summary: Of it.
        description: What goes on after the name of the run.
        component: What it is about.
        info: The facts of each run, once.
    """
    return Alert(
        name=f"Curvewatch{name}",
        severity=severity,
        component=component,
        expr=with_owner(expr, info=info),
        hold=knobs.hold,
        summary=summary,
        description=f"{RUN} {description}",
    )


def unless_stopped(left: Series, *, stopped: str = STOPPED) -> str:
    """Drop a run that somebody stops.

    Args:
        left: Whose labels the expression so far has.
        stopped: Those runs, with no label but a run's.
    """
    return f"unless {ignoring(left, series.EPOCH)}".rstrip() + f"\n  {stopped}"


def has_verdict(left: Series, verdict: str) -> str:
    """Keep a run whose diagnosis says this now."""
    return f"and {ignoring(left, series.VERDICT)}\n  ({select(series.VERDICT, verdict=verdict)} == 1)"


RUN = "Run {{ $labels.run }} ({{ $labels.run_id }}) of {{ $labels.owner }}"
"""Template that names the run."""


def latest(what: Series, **matchers: str) -> str:
    """Return the template of a run's current value, a dash when there is none.

    An alert without a label `cluster` asks for an empty one, which is how Prometheus says that there is none.
    """
    selector = select(what, **matchers).removesuffix("}").removeprefix(what.name).removeprefix("{")
    inner = ",".join(part for part in ("run_id=%q,cluster=%q", selector.replace('"', r"\"")) if part)
    return (
        f'{{{{ with printf "{what.name}{{{inner}}}" $labels.run_id $labels.cluster | query }}}}'
        '{{ . | first | value | printf "%.4g" }}{{ else }}-{{ end }}'
    )


EPOCHS = f"epoch {latest(series.EPOCH)} of {latest(series.EPOCHS_PLANNED)}"
"""Template that tells how far the run is."""


def _page() -> str:
    """Return the template of the address of the run's page."""
    # `cluster` is a label of the series itself, so that it cannot be asked for as the alert has it.
    labels = "run_id=%q,job=%q,instance=%q"
    info = f'printf "{series.RUN_INFO.name}{{{labels}}}" $labels.run_id $labels.job $labels.instance | query'
    return f'{{{{ with {info} }}}}{{{{ . | first | label "page" }}}}{{{{ end }}}}'
