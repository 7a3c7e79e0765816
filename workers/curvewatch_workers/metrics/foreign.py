"""Metrics that bring their own state and their own collectives, such as those of torchmetrics."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from curvewatch_workers.contract import MetricTotals, Split, SplitRecord
from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics.protocol import Metric


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
        split: The split.
    """

    def __init__(self, metrics: Mapping[str, ForeignMetric], device: torch.device, split: Split) -> None:
        self._split = split
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
            TaskError: A metric is not one number, or cannot be gathered; on every rank.
        """
        if not self._metrics:
            return record
        self._require_samples(record)
        return record.model_copy(update={"metrics": {**record.metrics, **self._take()}})

    def _require_samples(self, record: SplitRecord) -> None:
        """Refuse to gather what a rank without samples has in no shape: gloo ends the process, NCCL waits."""
        empty = next((rank for rank, share in enumerate(record.ranks) if not share.samples), None)
        if empty is None or len(record.ranks) == 1:
            return
        for name, metric in self._metrics.items():
            states = getattr(metric, "metric_state", {}).values()
            if any(isinstance(state, list) for state in states):
                raise TaskError(
                    f"metric {name!r} ({type(metric).__name__}) keeps samples, and rank {empty} had none of the "
                    f"{self._split} split, so that they cannot be gathered; let it count instead (thresholds=100 for "
                    "curves), or take fewer workers"
                )

    def _take(self) -> dict[str, MetricTotals]:
        taken = {}
        for name, metric in self._metrics.items():
            computed = metric.compute()
            metric.reset()
            if isinstance(computed, Mapping | Sequence):
                raise TaskError(
                    f"metric {name!r} ({type(metric).__name__}) gave a {type(computed).__name__}; use one that gives a "
                    "single number"
                )
            value = torch.as_tensor(computed)
            if value.numel() != 1:
                raise TaskError(
                    f"metric {name!r} ({type(metric).__name__}) gave {value.numel()} numbers; use one that gives a "
                    "single number"
                )
            number = float(value)
            finite = math.isfinite(number)
            taken[name] = MetricTotals(total=number if finite else 0.0, count=1 if finite else 0)
        return taken
