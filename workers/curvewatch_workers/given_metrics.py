"""What the user gave as metrics: checked, and parted into those that are sums and those that are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import nn

from curvewatch_workers.epoch_buffer import metric_names
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics import SumMetric, as_sum_metric
from curvewatch_workers.metrics.foreign import AnyMetric, ForeignMetric
from curvewatch_workers.metrics.labels import IGNORED_CLASS, ClassMetric


def split_metrics(
    metrics: Mapping[str, AnyMetric], ignored: int = IGNORED_CLASS
) -> tuple[dict[str, SumMetric], dict[str, ForeignMetric]]:
    """Return the metrics that are sums and those that are not, by name.

    Args:
        metrics: What the user gave.
        ignored: Target that the loss ignores; so do the metrics that were not told another.

    Raises:
        TaskError: Something in it is no metric, or two of their numbers have the same name.
    """
    if not isinstance(metrics, Mapping):
        raise TaskError(
            f"metrics must be a dict of metrics by name, got {type(metrics).__name__}; write "
            + (
                "dict(collection.items())"
                if isinstance(metrics, nn.ModuleDict)
                else '{"accuracy": Accuracy()}'
            )
        )
    for name, metric in metrics.items():
        _require_metric(name, metric)
    foreign = {name: metric for name, metric in metrics.items() if isinstance(metric, ForeignMetric)}
    sums = {
        name: as_sum_metric(metric.following(ignored) if isinstance(metric, ClassMetric) else metric)
        for name, metric in metrics.items()
        if not isinstance(metric, ForeignMetric)
    }
    _require_distinct_names(sums, foreign)
    return sums, foreign


def _require_metric(name: object, metric: object) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise TaskError(f"metric name {name!r} must be letters, digits and `_`, as in 'top_5'")
    if isinstance(metric, type):
        raise TaskError(
            f"metric {name!r} is the class {metric.__name__}, not a metric; write {metric.__name__}(...)"
        )
    if isinstance(metric, nn.ModuleDict):
        raise TaskError(
            f"metric {name!r} is a {type(metric).__name__}, of several metrics; give each its own name: "
            "metrics=dict(collection.items())"
        )
    if getattr(metric, "sync_on_compute", True) is False:
        raise TaskError(
            f"metric {name!r} has sync_on_compute=False, which gives one rank's number for that of all; leave it out"
        )
    if not (callable(metric) or isinstance(metric, SumMetric | ForeignMetric)):
        raise TaskError(
            f"metric {name!r} must be a metric, or a callable that gives one value for each sample, got "
            f"{type(metric).__name__}"
        )


def _require_distinct_names(sums: Mapping[str, SumMetric], foreign: Mapping[str, ForeignMetric]) -> None:
    names = (*metric_names(sums), *foreign)
    if "loss" in names:
        raise TaskError("a metric is named 'loss', as the loss is in every record; give it another name")
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise TaskError(
            f"two metrics give a number named {twice[0]!r}: one that gives each class its own number names them "
            "<metric>_<class>; rename one of them"
        )
