"""Metrics that bring their own state and their own collectives, such as those of torchmetrics."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from curvewatch_workers.contract import MetricTotals, SplitRecord
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.labels import IGNORED_CLASS, ClassMetric
from curvewatch_workers.metrics.protocol import Metric, SumMetric, as_sum_metric


@runtime_checkable
class ForeignMetric(Protocol):
    """A metric of torchmetrics, or one that behaves like it: `compute` gathers its state over the ranks."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in a batch."""

    def compute(self) -> Tensor:
        """Return the metric over all ranks; a collective."""

    def reset(self) -> None:
        """Forget every batch."""


AnyMetric = Metric | ForeignMetric


class ForeignMetrics:
    """The foreign metrics of one split.

    Args:
        metrics: By name; they are copied, so that each split has its own.
        device: Where batches are.
    """

    def __init__(self, metrics: Mapping[str, ForeignMetric], device: torch.device) -> None:
        self._metrics = {name: copy.deepcopy(metric) for name, metric in metrics.items()}
        for metric in self._metrics.values():
            if hasattr(metric, "to"):
                metric.to(device)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._metrics)

    @torch.no_grad()
    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch; one of no rows says nothing."""
        if len(targets):
            for metric in self._metrics.values():
                metric.update(outputs, targets)

    def added_to(self, record: SplitRecord) -> SplitRecord:
        """Return the record with the numbers of these metrics over all ranks, and forget the batches. Collective.

        Raises:
            TaskError: A metric is not one number.
        """
        if not self._metrics:
            return record
        return record.model_copy(update={"metrics": {**record.metrics, **self._take()}})

    def _take(self) -> dict[str, MetricTotals]:
        taken = {}
        for name, metric in self._metrics.items():
            value = torch.as_tensor(metric.compute())
            metric.reset()
            if value.numel() != 1:
                raise TaskError(
                    f"metric {name!r} ({type(metric).__name__}) gave {value.numel()} numbers; use one that gives a "
                    "single number"
                )
            number = float(value)
            finite = math.isfinite(number)
            taken[name] = MetricTotals(total=number if finite else 0.0, count=1 if finite else 0)
        return taken


def split_metrics(
    metrics: Mapping[str, AnyMetric], ignored: int = IGNORED_CLASS
) -> tuple[dict[str, SumMetric], dict[str, ForeignMetric]]:
    """Return the metrics that are sums and those that are not, by name.

    Args:
        metrics: What the user gave.
        ignored: Target that the loss ignores; so do the metrics that were not told another.
    """
    foreign = {name: metric for name, metric in metrics.items() if isinstance(metric, ForeignMetric)}
    sums = {
        name: as_sum_metric(metric.following(ignored) if isinstance(metric, ClassMetric) else metric)
        for name, metric in metrics.items()
        if not isinstance(metric, ForeignMetric)
    }
    return sums, foreign
