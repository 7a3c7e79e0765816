"""Alerts on learning curves.

Every condition compares gauges that are computed once an epoch. Nothing here takes a rate or a derivative
over wall time: `deriv(x[10m])` spans thousands of epochs of a toy and a fraction of one of a large model,
while `epochs since best > patience` means the same for epochs of 0.2 s and of 6 h.

A comparison with NaN is false, so a loss that is not a number fires nothing here but the alert on it.

All but that one need the verdict of the diagnosis AND plain comparisons of the numbers. The verdict knows the
noise of the whole curve, which no instant query can see, and it alone is too quick: it may change from epoch
to epoch. The comparisons hold what the run's owner asked for (its patience) and what makes the alert's
sentence true at this moment. A person is disturbed only when both agree.
"""

from __future__ import annotations

from functools import partial

from curvewatch_dashboards.alerts.alert import (
    EPOCHS,
    INFO,
    STOPPED,
    Alert,
    Record,
    Severity,
    alert_on_runs,
    has_verdict,
    latest,
    unless_stopped,
)
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.promql import ignoring, select
from curvewatch_workers import series
from curvewatch_workers.series import Series

RANKING = (
    ("CurvewatchLossNotFinite",),
    ("CurvewatchValidationLossDiverging",),
    ("CurvewatchTrainLossDiverging",),
    ("CurvewatchOverfitting", "CurvewatchOverconfident"),
    ("CurvewatchPlateau", "CurvewatchUnderfitting", "CurvewatchSlowConvergence", "CurvewatchUnstable"),
)
"""What hides what, for the same run: an alert is not notified while one further up fires."""

_OWNED = Record(name="run:curvewatch_run_info:topk", expr=INFO)
_STOPPED = Record(name="run:curvewatch_run_state:stopped", expr=STOPPED)

LEARNING_RECORDS = (_OWNED, _STOPPED)
"""What each of these alerts reads of every run; worked out for each, it was a third of what they cost."""

_LOSSES = (
    f"Train loss {latest(series.LOSS, split='train')}, validation {latest(series.LOSS, split='validation')}"
)
_BEST = f"best {latest(series.BEST_VALIDATION_LOSS)} at epoch {latest(series.BEST_EPOCH)}"


def learning_alerts(knobs: Knobs) -> tuple[Alert, ...]:
    """Return the alerts on curves, in order of concern."""
    return (
        _loss_not_finite(knobs),
        _validation_loss_diverging(knobs),
        _train_loss_diverging(knobs),
        _overfitting(knobs),
        _overconfident(knobs),
        *_standing(knobs),
    )


_alert = partial(alert_on_runs, component="learning", info=_OWNED.name)


def _unless_stopped(left: Series) -> str:
    return unless_stopped(left, stopped=_STOPPED.name)


def _loss_not_finite(knobs: Knobs) -> Alert:
    """Build the alert on a loss that is NaN or infinite.

    Critical at once where no sample of a split has a finite loss any more: the weights are lost. Where only some
    samples are concerned it waits for a second such epoch, because a run may leave a bad batch out and go on.
    """
    loss, since, epoch = series.LOSS, series.NONFINITE_EPOCHS, series.EPOCH
    # `max` keeps an element whose value is NaN: what counts is that it is there.
    lost = f"max without (split) ({select(loss)} != {select(loss)} or abs({select(loss)}) == Inf)"
    expr = f"""\
  (
    {select(epoch)} and ({lost})
    or
    {select(epoch)} and ({select(since)} >= {knobs.nonfinite_epochs})
  )
  {_unless_stopped(epoch)}
"""
    return _alert(
        knobs,
        "LossNotFinite",
        "critical",
        expr,
        "The loss is NaN or infinite.",
        f"has losses that are not finite at {EPOCHS}, for {latest(since)} epochs in a row. {_LOSSES}; {_BEST}. "
        f"Samples without a finite loss so far: train {latest(series.NONFINITE_SAMPLES, split='train')}, "
        f"validation {latest(series.NONFINITE_SAMPLES, split='validation')}.",
    )


def _validation_loss_diverging(knobs: Knobs) -> Alert:
    """Build the alert on a validation loss that runs away.

    It does not wait for the patience: what diverges seldom comes back, and each further epoch is wasted. No
    ratio to the best loss is taken, because a loss may be zero or negative. Critical: this is what the people who
    watch a run want to be woken for. A sweep over learning rates makes many; Alertmanager groups them by owner.
    """
    loss, best = series.LOSS, series.BEST_VALIDATION_LOSS
    since_best, slope = series.EPOCHS_SINCE_BEST, series.LOSS_SLOPE
    expr = f"""\
  {select(loss, split="validation")} > {ignoring(loss, best)} {select(best)}
  and
  ({select(since_best)} >= {knobs.diverging_epochs})
  and {ignoring(since_best, slope)}
  ({select(slope, split="validation")} > 0)
  {has_verdict(since_best, "diverging")}
  {_unless_stopped(since_best)}
"""
    return _alert(
        knobs,
        "ValidationLossDiverging",
        "critical",
        expr,
        "Validation loss runs away from its best.",
        'has a validation loss of {{ $value | printf "%.4g" }} '
        f"at {EPOCHS}. Best: {latest(best)}, {latest(since_best)} epochs ago. "
        f"It rises by {latest(slope, split='validation')} an epoch; train loss is "
        f"{latest(loss, split='train')}.",
    )


def _train_loss_diverging(knobs: Knobs) -> Alert:
    """Build the alert on a train loss that rises: the optimizer walks away from what it has learnt."""
    slope, counted = series.LOSS_SLOPE, series.VERDICT_EPOCHS
    expr = f"""\
  ({select(counted)} >= {knobs.diverging_epochs})
  and {ignoring(counted, slope)}
  ({select(slope, split="train")} > 0)
  {has_verdict(counted, "diverging")}
  {_unless_stopped(counted)}
"""
    return _alert(
        knobs,
        "TrainLossDiverging",
        "warning",
        expr,
        "Train loss rises.",
        f"has a train loss that rises by {latest(slope, split='train')} an epoch at {EPOCHS}; it has been called "
        f"diverging for {{{{ $value }}}} epochs. {_LOSSES}; {_BEST}.",
    )


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
  {select(since_best)} > {select(patience)}
  and
  ({rise} > 0)
  and
  ({train_rise} < {knobs.tolerated_train_rise} * {rise})
  {has_verdict(since_best, "overfitting")}
  {_unless_stopped(since_best)}
"""
    return _alert(
        knobs,
        "Overfitting",
        "warning",
        expr,
        "Validation loss rises above its best while train loss does not.",
        f"has had no new best validation loss for {{{{ $value }}}} epochs, and allows "
        f"{latest(patience)}. Best: {latest(best)} at epoch {latest(series.BEST_EPOCH)}. "
        f"At {EPOCHS}: validation {latest(loss, split='validation')}, train {latest(loss, split='train')}.",
    )


def _overconfident(knobs: Knobs) -> Alert:
    """Build the alert on overconfidence: for information, because what the user looks at has not become worse."""
    since_best, patience = series.EPOCHS_SINCE_BEST, series.PATIENCE_EPOCHS
    expr = f"""\
  {select(since_best)} > {select(patience)}
  {has_verdict(since_best, "overconfident")}
  {_unless_stopped(since_best)}
"""
    return _alert(
        knobs,
        "Overconfident",
        "info",
        expr,
        "Validation loss rises while the metric holds: the model grows sure of its mistakes.",
        f"has had no new best validation loss for {{{{ $value }}}} epochs, and allows {latest(patience)}, "
        f"while its metric holds. At {EPOCHS}. {_LOSSES}; {_BEST}.",
    )


def _standing(knobs: Knobs) -> tuple[Alert, ...]:
    """Build the alerts on a verdict that has stood for the run's patience."""
    told: tuple[tuple[str, Severity, str, str], ...] = (
        ("Plateau", "warning", "plateau", "Both losses have come to rest."),
        ("Underfitting", "warning", "underfitting", "Both losses are at rest and high."),
        (
            "SlowConvergence",
            "info",
            "slow_convergence",
            "The losses fall, too slowly for the epochs planned.",
        ),
        ("Unstable", "warning", "unstable", "The losses jump from epoch to epoch."),
    )
    return tuple(_verdict_stands(knobs, *one) for one in told)


def _verdict_stands(knobs: Knobs, name: str, severity: Severity, verdict: str, summary: str) -> Alert:
    counted, patience = series.VERDICT_EPOCHS, series.PATIENCE_EPOCHS
    expr = f"""\
  {select(counted)} >= {select(patience)}
  {has_verdict(counted, verdict)}
  {_unless_stopped(counted)}
"""
    return _alert(
        knobs,
        name,
        severity,
        expr,
        summary,
        f"has been called {verdict.replace('_', ' ')} for {{{{ $value }}}} epochs in a row, at {EPOCHS}. {_LOSSES}; "
        f"{_BEST}. Learning rate: {latest(series.LEARNING_RATE)}.",
    )
