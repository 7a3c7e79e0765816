"""Alerts on how a run gets on: whether it moves, restarts, or has failed.

How long an epoch may take belongs to the run and comes as a series, so that the rule is right for epochs of 0.2 s
and of 6 h.
"""

from __future__ import annotations

from functools import partial

from curvewatch_dashboards.alerts.alert import (
    EPOCHS,
    Alert,
    alert_on_runs,
    latest,
    unless_stopped,
)
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.promql import ignoring, select
from curvewatch_workers import series


def run_alerts(knobs: Knobs) -> tuple[Alert, ...]:
    """Return the alerts on the progress of runs."""
    return (
        _stalled(knobs),
        _no_first_epoch(knobs),
        _worker_restarts(knobs),
        _failed(knobs),
        _straggler(knobs),
    )


_alert = partial(alert_on_runs, component="run")


def _overdue(epochs: str) -> str:
    since, limit = series.EPOCH_AWAITED_SINCE, series.EPOCH_WAIT_LIMIT
    return f"""\
  time() - {select(since)} > {select(limit)}
  and
  ({select(series.EPOCH)} {epochs})
  {unless_stopped(since)}
"""


def _stalled(knobs: Knobs) -> Alert:
    """Build the alert on a run whose epochs have ceased. Critical: it holds its GPUs and does nothing with them."""
    return _alert(
        knobs,
        "RunStalled",
        "critical",
        _overdue("> 0"),
        "A run that had epochs has none any more.",
        f"is at {EPOCHS} and has waited {{{{ $value | humanizeDuration }}}} for the next one; the limit is "
        f"{latest(series.EPOCH_WAIT_LIMIT)} s (monitoring.stalled_after_seconds, else ten times its longest epoch). "
        f"World size: {latest(series.WORLD_SIZE)}.",
    )


def _no_first_epoch(knobs: Knobs) -> Alert:
    return _alert(
        knobs,
        "NoFirstEpoch",
        "warning",
        _overdue("== 0"),
        "A run that was given to the cluster has no epoch yet.",
        "has waited {{ $value | humanizeDuration }} for its first epoch of "
        f"{latest(series.EPOCHS_PLANNED)}; the limit is {latest(series.EPOCH_WAIT_LIMIT)} s "
        "(monitoring.stalled_after_seconds).",
    )


def _worker_restarts(knobs: Knobs) -> Alert:
    """Build the alert on workers that die again and again. In wall time: so do the machines that they run on."""
    restarts = select(series.WORKER_RESTARTS)
    expr = f"""\
  increase({restarts}[{knobs.restarts_window}]) > {knobs.restarts} - 0.5
  {unless_stopped(series.WORKER_RESTARTS)}
"""
    return _alert(
        knobs,
        "WorkerRestarts",
        "warning",
        expr,
        "The workers of a run restart again and again.",
        f'has restarted its workers {{{{ $value | printf "%.0f" }}}} times in {knobs.restarts_window}, '
        f"{latest(series.WORKER_RESTARTS)} times in all, and is at {EPOCHS}.",
    )


def _failed(knobs: Knobs) -> Alert:
    """Build the alert on a run that has failed or was lost. It ends when the run leaves `/metrics`."""
    state = series.RUN_STATE
    expr = f"max without (state) ({select(state, state='=~FAILED|LOST')}) == 1"
    return _alert(
        knobs,
        "RunFailed",
        "warning",
        f"  {expr}",
        "A run has failed or was lost.",
        f"has ended without success at {EPOCHS}, after {latest(series.WORKER_RESTARTS)} restarts. Its page tells why.",
    )


def _straggler(knobs: Knobs) -> Alert:
    """Build the alert on a slow rank: in the train pass all the others wait for it."""
    slowness, epoch = series.RANK_SLOWNESS, series.EPOCH
    expr = f"""\
  {select(slowness)} > {knobs.straggler_ratio}
  and {ignoring(slowness, epoch)}
  ({select(epoch)} >= {knobs.straggler_epochs})
  {unless_stopped(slowness)}
"""
    return _alert(
        knobs,
        "Straggler",
        "warning",
        expr,
        "One rank is slower than the others, which wait for it.",
        f"has a slow rank {{{{ $labels.rank }}}}: it takes {{{{ $value | printf "
        f'"%.2f" }}}} times as long for a sample as the median of {latest(series.WORLD_SIZE)} ranks, at {EPOCHS}.',
    )
