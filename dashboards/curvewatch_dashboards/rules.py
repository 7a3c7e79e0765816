"""Prometheus alerts on learning curves.

Every condition compares gauges that are computed once an epoch. Nothing here takes a rate or a derivative
over wall time: `deriv(x[10m])` spans thousands of epochs of a toy and a fraction of one of a large model,
while `epochs since best > patience` means the same for epochs of 0.2 s and of 6 h.

A comparison with NaN is false, so a loss that is not a number fires nothing here.

Both alerts need the verdict of the diagnosis AND plain comparisons of the numbers. The verdict knows the
noise of the whole curve, which no instant query can see, and it alone is too quick: it may change from epoch
to epoch. The comparisons hold what the run's owner asked for (its patience) and what makes the alert's
sentence true at this moment. A person is disturbed only when both agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.promql import ignoring, select
from curvewatch_workers import series
from curvewatch_workers.series import Series

COMPONENT = "learning"
"""Label of every alert on a curve; inhibition between alerts of one run is restricted to it."""

_OWNER_KEYS = "job, instance, run_id"
# topk keeps the join one-to-one: two info series of one run would otherwise fail the rule for all runs.
_OWNER = f"* on ({_OWNER_KEYS}) group_left (owner)\n  topk by ({_OWNER_KEYS}) (1, {select(series.RUN_INFO)})"


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alerting rule."""

    name: str
    severity: str
    """critical, warning or info."""
    expr: str
    summary: str
    """The same words for every run, so that alerts can be grouped by it."""
    description: str
    """Template with the run and its numbers."""


def alerts(knobs: Knobs) -> tuple[Alert, ...]:
    """Return all alerts."""
    return (_overfitting(knobs), _validation_loss_diverging(knobs))


def rule_groups(knobs: Knobs) -> dict[str, object]:
    """Return the body of a Prometheus rule file, which is also the `spec` of a PrometheusRule."""
    return {
        "groups": [{"name": f"curvewatch-{COMPONENT}", "rules": [_rule(a, knobs) for a in alerts(knobs)]}]
    }


def runbook_anchor(alert: str) -> str:
    """Return the anchor that Markdown renderers give to the heading of an alert."""
    return alert.lower()


def _rule(alert: Alert, knobs: Knobs) -> dict[str, object]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": knobs.hold,
        "labels": {"component": COMPONENT, "severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{knobs.runbook}#{runbook_anchor(alert.name)}",
        },
    }


def _overfitting(knobs: Knobs) -> Alert:
    """Build the alert on overfitting.

    The patience must be exceeded, not met: early stopping with the same patience ends a run in the very
    epoch that meets it, with its best weights kept, and then there is nothing to tell. Train loss must not
    have risen along with validation loss, for then it is divergence; both rises are differences of losses,
    so a loss may be negative. A run that keeps its accuracy while its loss rises is overconfident, which is
    another verdict. A warning: the best checkpoint that was taken is kept, what is lost is the time of the cluster.
    """
    since_best, patience = series.EPOCHS_SINCE_BEST, series.PATIENCE_EPOCHS
    loss, best, slope = series.LOSS, series.BEST_VALIDATION_LOSS, series.LOSS_SLOPE
    train_rise = f"{select(slope, split='train')} * {ignoring(slope, patience)} {select(patience)}"
    rise = f"({select(loss, split='validation')} - {ignoring(loss, best)} {select(best)})"
    expr = f"""\
(
  {select(since_best)} > {select(patience)}
  and
  ({rise} > 0)
  and
  ({train_rise} < {knobs.tolerated_train_rise} * {rise})
  and {ignoring(since_best, series.VERDICT)}
  ({select(series.VERDICT, verdict="overfitting")} == 1)
  {_unless_stopped(since_best)}
)
{_OWNER}
"""
    return Alert(
        name="CurvewatchOverfitting",
        severity="warning",
        expr=expr,
        summary="Validation loss rises above its best while train loss does not.",
        description=(
            f"{_run()} has had no new best validation loss for {{{{ $value }}}} epochs, and allows "
            f"{_latest(patience)}. Best: {_latest(best)} at epoch {_latest(series.BEST_EPOCH)}. "
            f"At epoch {_latest(series.EPOCH)} of {_latest(series.EPOCHS_PLANNED)}: validation "
            f"{_latest(loss, split='validation')}, train {_latest(loss, split='train')}."
        ),
    )


def _validation_loss_diverging(knobs: Knobs) -> Alert:
    """Build the alert on a validation loss that runs away.

    It does not wait for the patience: what diverges seldom comes back, and each further epoch is wasted. No
    ratio to the best loss is taken, because a loss may be zero or negative. A warning: nobody needs to be
    woken for it, and a sweep over learning rates makes many.
    """
    loss, best = series.LOSS, series.BEST_VALIDATION_LOSS
    since_best, slope = series.EPOCHS_SINCE_BEST, series.LOSS_SLOPE
    expr = f"""\
(
  {select(loss, split="validation")} > {ignoring(loss, best)} {select(best)}
  and
  ({select(since_best)} >= {knobs.diverging_epochs})
  and {ignoring(since_best, slope)}
  ({select(slope, split="validation")} > 0)
  and {ignoring(since_best, series.VERDICT)}
  ({select(series.VERDICT, verdict="diverging")} == 1)
  {_unless_stopped(since_best)}
)
{_OWNER}
"""
    return Alert(
        name="CurvewatchValidationLossDiverging",
        severity="warning",
        expr=expr,
        summary="Validation loss runs away from its best.",
        description=(
            f'{_run()} has a validation loss of {{{{ $value | printf "%.4g" }}}} '
            f"at epoch {_latest(series.EPOCH)} of {_latest(series.EPOCHS_PLANNED)}. "
            f"Best: {_latest(best)}, {_latest(since_best)} epochs ago. "
            f"It rises by {_latest(slope, split='validation')} an epoch; train loss is "
            f"{_latest(loss, split='train')}."
        ),
    )


def _unless_stopped(left: Series) -> str:
    """Drop a run that somebody stops: a person has acted, and nothing is left to tell."""
    return (
        f"unless {ignoring(left, series.RUN_STATE)}\n"
        f"  ({select(series.RUN_STATE, state='=~STOPPING|STOPPED')} == 1)"
    )


def _run() -> str:
    return "Run {{ $labels.run }} ({{ $labels.run_id }}) of {{ $labels.owner }}"


def _latest(what: Series, **matchers: str) -> str:
    """Return the template of a run's current value, a dash when there is none.

    An alert without a label `cluster` asks for an empty one, which is how Prometheus says that there is none.
    """
    selector = select(what, **matchers).removesuffix("}").removeprefix(what.name).removeprefix("{")
    inner = ",".join(part for part in ("run_id=%q,cluster=%q", selector.replace('"', r"\"")) if part)
    return (
        f'{{{{ with printf "{what.name}{{{inner}}}" $labels.run_id $labels.cluster | query }}}}'
        '{{ . | first | value | printf "%.4g" }}{{ else }}-{{ end }}'
    )
