"""What a metric is: values of samples, or sums of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from curvewatch_workers.contract import MetricTotals
from curvewatch_workers.errors import TaskError
from curvewatch_workers.shapes import require_one_tensor, require_tensor, require_unstretched

Sums = npt.NDArray[np.float64]
LARGEST_VALUE = 1e290
"""From there on a value counts as infinite: the sum of so many would leave the range of a float64."""


class SampleMetric(Protocol):
    """A mean over samples (or over tokens, pixels, columns): gives the values before their mean."""

    def __call__(self, outputs: Tensor, targets: Tensor, /) -> Tensor:
        """Return the values of a batch, shape [batch] or [batch, ...], without reading any of them.

        A value that is NaN or infinite, or so large that sums would be, is not counted.
        """


class MetricReading(NamedTuple):
    """What a metric's global sums come to."""

    values: Mapping[str, MetricTotals]
    """Numbers by suffix; the suffix of a metric's only number is empty."""
    matrix: tuple[tuple[int, ...], ...] | None = None
    """Confusion counts, row the true class, column the predicted one; None for other metrics."""


@runtime_checkable
class SumMetric(Protocol):
    """A metric whose state is a vector of sums over samples: it merges over steps and ranks by addition alone."""

    @property
    def slots(self) -> int:
        """Length of the vector."""

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch to the vector in place, float64 [slots], without reading any value."""

    def read(self, sums: Sums) -> MetricReading:
        """Return the metric's numbers, given the sums over every sample. All 0 when nothing was counted."""


Metric = SampleMetric | SumMetric


class MeanOfSamples:
    """The mean of a `SampleMetric`: a total and a count.

    Args:
        metric: Gives the values.
    """

    slots = 2

    def __init__(self, metric: SampleMetric) -> None:
        self._metric = metric

    def update(self, sums: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Raises:
            TaskError: The metric does not give one value, or one row of values, for each sample.
        """
        values = self._metric(outputs, targets)
        require_tensor(f"metric {metric_name(self._metric)}", values)
        if values.dim() == 0 or len(values) != len(targets):
            raise TaskError(
                f"metric {metric_name(self._metric)} must give one value for each sample: for a batch of "
                f"{len(targets)} it gave shape {tuple(values.shape)}; return the values before their mean"
            )
        require_unstretched(f"metric {metric_name(self._metric)}", values, outputs, targets)
        values = values.double().flatten()
        sound = values.abs() < LARGEST_VALUE  # false for NaN too
        sums += torch.stack([torch.where(sound, values, 0.0), sound.double()]).sum(dim=1)

    def read(self, sums: Sums) -> MetricReading:
        """Return the mean."""
        return single(MetricTotals(total=float(sums[0]), count=int(sums[1])))


def as_sum_metric(metric: Metric) -> SumMetric:
    """Return the metric as sums."""
    return metric if isinstance(metric, SumMetric) else MeanOfSamples(metric)


def single(totals: MetricTotals) -> MetricReading:
    """Return the reading of a metric that is one number."""
    return MetricReading(values={"": totals})


def metric_name(metric: object) -> str:
    """Return how a message calls a metric."""
    return getattr(metric, "__name__", type(metric).__name__)


def require_same_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Refuse shapes that torch would stretch to each other.

    Raises:
        TaskError: They differ, or the outputs are no tensor.
    """
    require_one_tensor(name, outputs)
    if outputs.shape != targets.shape:
        raise TaskError(
            f"{name} compares outputs of shape {tuple(outputs.shape)} with targets of shape "
            f"{tuple(targets.shape)}; make the shapes equal"
        )
