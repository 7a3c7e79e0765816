"""Every Prometheus series, in one table: the exporter, the dashboards and the rules are built from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """Prometheus metric type."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, kw_only=True)
class Series:
    """One metric family."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    """Grafana unit of the values: `s`, `bytes`, `percentunit`, `short`; empty for a plain number."""
    path: str = "/metrics"
    """Address of the service that shows it."""


TABLE: dict[str, Series] = {}


CURVES_PATH: Final = "/metrics/curves"
HISTORY_PATH: Final = "/api/v1/runs/{run_id}/history"
"""Not for a scrape: each sample has the time at which its epoch ended."""


def _series(
    name: str, kind: Kind, help_text: str, *labels: str, unit: str = "", path: str = "/metrics"
) -> Series:
    series = Series(name=name, kind=kind, help=help_text, labels=labels, unit=unit, path=path)
    TABLE[name] = series
    return series


_RUN: Final = ("run_id", "run")
_GAUGE, _COUNTER, _HISTOGRAM = Kind.GAUGE, Kind.COUNTER, Kind.HISTOGRAM

RUN_INFO = _series(
    "curvewatch_run_info",
    _GAUGE,
    "Facts of a run that do not change, the address of its page, and its free labels as label_<key>; always 1.",
    *_RUN,
    "owner",
    "cluster",
    "task",
    "page",
)
RUN_STATE = _series(
    "curvewatch_run_state", _GAUGE, "1 for the state that the run is in, 0 for the others.", *_RUN, "state"
)
LOSS = _series(
    "curvewatch_loss",
    _GAUGE,
    "Global loss of the latest epoch: the mean over every sample of the split, each counted once.",
    *_RUN,
    "split",
)
METRIC = _series(
    "curvewatch_metric",
    _GAUGE,
    "Global metric of the latest epoch; accuracy and the like as ratios from 0 to 1.",
    *_RUN,
    "split",
    "metric",
)
EPOCH_LOSS = _series(
    "curvewatch_epoch_loss",
    _GAUGE,
    "Global loss of one epoch; of a long curve the first, the last, the best and evenly spaced epochs.",
    *_RUN,
    "split",
    "epoch",
    path=CURVES_PATH,
)
EPOCH_METRIC = _series(
    "curvewatch_epoch_metric",
    _GAUGE,
    "Global metric of one epoch; accuracy and the like as ratios from 0 to 1. The same epochs as for the loss.",
    *_RUN,
    "split",
    "epoch",
    "metric",
    path=CURVES_PATH,
)
HISTORY_INFO = _series(
    "curvewatch_history_info",
    _GAUGE,
    "Whose the run of the epoch is, and on which cluster; always 1.",
    *_RUN,
    "owner",
    "cluster",
    path=HISTORY_PATH,
)
HISTORY_LOSS = _series(
    "curvewatch_history_loss",
    _GAUGE,
    "Global loss of the epoch: the mean over every sample of the split, each counted once.",
    *_RUN,
    "split",
    path=HISTORY_PATH,
)
HISTORY_METRIC = _series(
    "curvewatch_history_metric",
    _GAUGE,
    "Global metric of the epoch; accuracy and the like as ratios from 0 to 1.",
    *_RUN,
    "split",
    "metric",
    path=HISTORY_PATH,
)
HISTORY_EPOCH = _series(
    "curvewatch_history_epoch", _GAUGE, "Number of the epoch, from 1.", *_RUN, path=HISTORY_PATH
)
HISTORY_LEARNING_RATE = _series(
    "curvewatch_history_learning_rate",
    _GAUGE,
    "Learning rate at the last step of the epoch.",
    *_RUN,
    path=HISTORY_PATH,
)
HISTORY_GRADIENT_NORM = _series(
    "curvewatch_history_gradient_norm",
    _GAUGE,
    "L2 norm of the global gradient at the last step of the epoch, before clipping.",
    *_RUN,
    path=HISTORY_PATH,
)
HISTORY_EPOCH_DURATION = _series(
    "curvewatch_history_epoch_duration_seconds",
    _GAUGE,
    "Time that the epoch took.",
    *_RUN,
    unit="s",
    path=HISTORY_PATH,
)
EPOCH = _series("curvewatch_epoch", _GAUGE, "Latest finished epoch, from 1; 0 before the first.", *_RUN)
EPOCHS_PLANNED = _series("curvewatch_epochs_planned", _GAUGE, "Epochs that the job asks for.", *_RUN)
BEST_VALIDATION_LOSS = _series(
    "curvewatch_best_validation_loss", _GAUGE, "Lowest validation loss of the run so far.", *_RUN
)
BEST_EPOCH = _series("curvewatch_best_epoch", _GAUGE, "Epoch of the lowest validation loss.", *_RUN)
EPOCHS_SINCE_BEST = _series(
    "curvewatch_epochs_since_best", _GAUGE, "Epochs since the lowest validation loss.", *_RUN
)
LOSS_SLOPE = _series(
    "curvewatch_loss_slope_per_epoch",
    _GAUGE,
    "Slope of the loss over the latest epochs (as many as the run's patience), per epoch.",
    *_RUN,
    "split",
)
GENERALIZATION_GAP = _series(
    "curvewatch_generalization_gap", _GAUGE, "Validation loss minus train loss at the latest epoch.", *_RUN
)
PATIENCE_EPOCHS = _series(
    "curvewatch_patience_epochs",
    _GAUGE,
    "Epochs without a new best validation loss that the run allows before an alert.",
    *_RUN,
)
VERDICT = _series(
    "curvewatch_verdict",
    _GAUGE,
    "1 for the diagnosis of the curve so far, 0 for the others.",
    *_RUN,
    "verdict",
)
VERDICT_EPOCHS = _series(
    "curvewatch_verdict_epochs",
    _GAUGE,
    "Epochs in a row that the diagnosis has said what it says now; 1 at the epoch at which it changed.",
    *_RUN,
)
LEARNING_RATE = _series(
    "curvewatch_learning_rate", _GAUGE, "Learning rate at the last step of the latest epoch.", *_RUN
)
GRADIENT_NORM = _series(
    "curvewatch_gradient_norm",
    _GAUGE,
    "L2 norm of the global gradient at the last step of the latest epoch, before clipping.",
    *_RUN,
)
EPOCH_DURATION = _series(
    "curvewatch_epoch_duration_seconds", _GAUGE, "Time that the latest epoch took.", *_RUN, unit="s"
)
SAMPLES = _series(
    "curvewatch_samples_total",
    _COUNTER,
    "Train samples over all epochs of the run; an epoch that is replayed counts once.",
    *_RUN,
    unit="short",
)
SAMPLES_PER_SECOND = _series(
    "curvewatch_samples_per_second",
    _GAUGE,
    "Samples of both splits in the latest epoch, by its duration.",
    *_RUN,
    unit="short",
)
WORKER_RESTARTS = _series(
    "curvewatch_worker_restarts_total", _COUNTER, "Starts of the worker group after the first.", *_RUN
)
REPLAY_MISMATCHES = _series(
    "curvewatch_replay_mismatches_total",
    _COUNTER,
    "Epochs that a restart trained again to other numbers: resume_not_faithful where that must not be (fp32 on CPUs), "
    "replay_differs where it may.",
    *_RUN,
    "reason",
    unit="short",
)
WORLD_SIZE = _series("curvewatch_world_size", _GAUGE, "Ranks of the latest attempt.", *_RUN)
NONFINITE_SAMPLES = _series(
    "curvewatch_nonfinite_samples_total",
    _COUNTER,
    "Samples whose loss was NaN or infinite, over all epochs of the run.",
    *_RUN,
    "split",
    unit="short",
)
NONFINITE_EPOCHS = _series(
    "curvewatch_nonfinite_epochs",
    _GAUGE,
    "Latest epochs in a row with a sample whose loss was NaN or infinite; 0 when the latest had none.",
    *_RUN,
)
RECEIPT_EXACT = _series(
    "curvewatch_receipt_exact",
    _GAUGE,
    "1 if each sample of the split was counted exactly once in the latest epoch, else 0; not there for the means of a "
    "framework, which counts none.",
    *_RUN,
    "split",
)
RANK_LOSS_SPREAD = _series(
    "curvewatch_rank_loss_spread",
    _GAUGE,
    "Largest minus smallest mean loss over the ranks in the latest epoch.",
    *_RUN,
    "split",
)
SHARD_SAMPLES = _series(
    "curvewatch_shard_samples", _GAUGE, "Train samples that the rank saw in the latest epoch.", *_RUN, "rank"
)
RANK_EPOCH_SECONDS = _series(
    "curvewatch_rank_epoch_seconds", _GAUGE, "Time of the rank in the latest epoch.", *_RUN, "rank", unit="s"
)
RANK_SLOWNESS = _series(
    "curvewatch_rank_slowness_ratio",
    _GAUGE,
    "Time a sample of the rank's validation passes over the latest epochs (ten at most), by that of the median rank. "
    "In the train pass every rank is as slow as the slowest.",
    *_RUN,
    "rank",
)
GPU_MEMORY_PEAK = _series(
    "curvewatch_gpu_memory_peak_bytes",
    _GAUGE,
    "Most memory that the rank had allocated on its GPU in the latest epoch.",
    *_RUN,
    "rank",
    unit="bytes",
)
GPU_SECONDS = _series(
    "curvewatch_gpu_seconds_total",
    _COUNTER,
    "GPU time of the run's finished epochs: duration times GPUs.",
    *_RUN,
    unit="s",
)
LAST_EPOCH_TIMESTAMP = _series(
    "curvewatch_last_epoch_timestamp_seconds",
    _GAUGE,
    "Unix time at which the latest epoch finished.",
    *_RUN,
    unit="s",
)
EPOCH_AWAITED_SINCE = _series(
    "curvewatch_epoch_awaited_since_timestamp_seconds",
    _GAUGE,
    "Unix time since which the next epoch is awaited: the end of the latest one, or a start of the job or of its "
    "workers after it; only of a run that is on the cluster.",
    *_RUN,
    unit="s",
)
EPOCH_WAIT_LIMIT = _series(
    "curvewatch_epoch_wait_limit_seconds",
    _GAUGE,
    "How long the next epoch may be awaited before an alert: what the job says, else ten times the longest epoch so "
    "far, at least ten minutes; an hour before the first.",
    *_RUN,
    unit="s",
)
RUNS_FINISHED = _series(
    "curvewatch_runs_finished_total", _COUNTER, "Runs that have ended, by how.", "outcome", unit="short"
)
RUNS = _series("curvewatch_runs", _GAUGE, "Runs in the store, by state.", "state", unit="short")
INGESTED_MESSAGES = _series(
    "curvewatch_ingested_messages_total",
    _COUNTER,
    "Messages taken from workers, by kind.",
    "kind",
    unit="short",
)
INGEST_ERRORS = _series(
    "curvewatch_ingest_errors_total", _COUNTER, "Ingest requests that were refused or failed.", unit="short"
)
COLLECTOR_ERRORS = _series(
    "curvewatch_collector_errors_total",
    _COUNTER,
    "Runs that could not be exported, counted once for each scrape.",
    unit="short",
)
COLLECTOR_DURATION = _series(
    "curvewatch_collector_duration_seconds", _GAUGE, "Time that the latest scrape took to build.", unit="s"
)
RECONCILE_ERRORS = _series(
    "curvewatch_reconcile_errors_total",
    _COUNTER,
    "Passes of the reconciler that failed for a run.",
    unit="short",
)
ALERTS_RECEIVED = _series(
    "curvewatch_alerts_received_total",
    _COUNTER,
    "Alerts on runs that Alertmanager told of, each start and each end once.",
    "status",
    unit="short",
)
REMOTE_WRITE_PENDING = _series(
    "curvewatch_remote_write_pending_epochs",
    _GAUGE,
    "Epochs that the remote-write receiver has not taken yet; 0 where nothing is written to one.",
    unit="short",
)
REMOTE_WRITE_EPOCHS = _series(
    "curvewatch_remote_write_epochs_total",
    _COUNTER,
    "Epochs that the remote-write receiver took (sent) or will never take (refused).",
    "outcome",
    unit="short",
)
REMOTE_WRITE_FAILURES = _series(
    "curvewatch_remote_write_failures_total",
    _COUNTER,
    "Remote writes that failed and are tried again.",
    unit="short",
)
HTTP_REQUESTS = _series(
    "curvewatch_http_requests_total",
    _COUNTER,
    "Answered HTTP requests, by method, route and status.",
    "method",
    "route",
    "status",
    unit="short",
)
HTTP_SECONDS = _series(
    "curvewatch_http_request_duration_seconds",
    _HISTOGRAM,
    "Time that the service took to answer, by method and route.",
    "method",
    "route",
    unit="s",
)
BUILD_INFO = _series("curvewatch_build_info", _GAUGE, "Version of the service; always 1.", "version")
