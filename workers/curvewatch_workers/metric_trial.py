"""Tries a metric on one batch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from curvewatch_workers.contract import SplitRecord
from curvewatch_workers.epoch_buffer import full_name
from curvewatch_workers.given_metrics import split_metrics
from curvewatch_workers.metrics.foreign import AnyMetric, ForeignMetrics


def values_on(
    name: str, metric: AnyMetric, ignored: int, outputs: Tensor, targets: Tensor
) -> dict[str, float]:
    """Return the numbers of a metric on one batch by their full names; NaN where nothing counted.

    Args:
        name: How the task calls it.
        metric: The metric.
        ignored: Target that the loss ignores.
        outputs: What the model returned for the batch.
        targets: What it should have.

    Raises:
        TaskError: It cannot work with these shapes, or is not one number.
    """
    sums, foreign = split_metrics({name: metric}, ignored)
    with torch.no_grad():
        if name in sums:
            vector = torch.zeros(sums[name].slots, dtype=torch.float64)
            sums[name].update(vector, outputs, targets)
            readings = sums[name].read(vector.numpy()).values
            return {full_name(name, suffix): reading.value for suffix, reading in readings.items()}
        alone = ForeignMetrics(foreign, torch.device("cpu"), "train")
        alone.add(outputs, targets)
    if not len(targets):
        return {}
    nothing: SplitRecord = cast("Any", SplitRecord).model_construct(metrics={}, ranks=())
    return {full: reading.value for full, reading in alone.added_to(nothing).metrics.items()}
