"""Alerts on the numbers themselves: whether each sample was counted once, and whether a resume was faithful."""

from __future__ import annotations

from functools import partial

from curvewatch_dashboards.alerts.alert import EPOCHS, Alert, alert_on_runs, latest
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.promql import select
from curvewatch_workers import series


def exactness_alerts(knobs: Knobs) -> tuple[Alert, ...]:
    """Return the alerts on the exactness of runs."""
    return (_receipt_not_exact(knobs), _resume_not_faithful(knobs), _shards_unbalanced(knobs))


_alert = partial(alert_on_runs, component="exactness")


def _receipt_not_exact(knobs: Knobs) -> Alert:
    return _alert(
        knobs,
        "ReceiptNotExact",
        "warning",
        f"  {select(series.RECEIPT_EXACT)} == 0",
        "An epoch did not count each sample exactly once.",
        f"did not count each {{{{ $labels.split }}}} sample exactly once at {EPOCHS}: its losses and metrics are not "
        "those of the whole split.",
    )


def _resume_not_faithful(knobs: Knobs) -> Alert:
    """Build the alert on a restart after which the same epoch gave other numbers. It stands while the run is shown."""
    mismatches = select(series.REPLAY_MISMATCHES, reason="resume_not_faithful")
    return _alert(
        knobs,
        "ResumeNotFaithful",
        "warning",
        f"  max without (reason) ({mismatches}) > 0",
        "Epochs that were trained again after a restart gave other numbers.",
        f"has {{{{ $value }}}} epochs that gave other numbers when they were trained again after a restart "
        f"({latest(series.WORKER_RESTARTS)} so far), at {EPOCHS}: not all that it depends on comes back with its "
        "checkpoint.",
    )


def _shards_unbalanced(knobs: Knobs) -> Alert:
    shards = select(series.SHARD_SAMPLES)
    apart = f"max without (rank) ({shards}) - min without (rank) ({shards})"
    return _alert(
        knobs,
        "ShardsUnbalanced",
        "info",
        f"  ({apart})\n  / avg without (rank) ({shards})\n  > {knobs.unbalanced_share}",
        "Some ranks train on many more samples than others.",
        f"has ranks whose train samples differ by {{{{ $value | humanizePercentage }}}} of their mean at {EPOCHS}; "
        f"world size {latest(series.WORLD_SIZE)}. The ranks with fewer samples wait for the others.",
    )
