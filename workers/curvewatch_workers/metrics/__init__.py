"""Metrics as sums over samples: what is added up in each batch and divided once, when the epoch's sums are global."""

from curvewatch_workers.metrics.calibration import CalibrationError
from curvewatch_workers.metrics.classes import F1, ConfusionMatrix, Precision, Recall
from curvewatch_workers.metrics.means import (
    Accuracy,
    MeanAbsoluteError,
    MeanSquaredError,
    Perplexity,
    TopKAccuracy,
)
from curvewatch_workers.metrics.protocol import (
    MeanOfSamples,
    Metric,
    SampleMetric,
    SumMetric,
    as_sum_metric,
    metric_name,
)
from curvewatch_workers.metrics.regression import R2, RootMeanSquaredError

__all__ = [
    "F1",
    "R2",
    "Accuracy",
    "CalibrationError",
    "ConfusionMatrix",
    "MeanAbsoluteError",
    "MeanOfSamples",
    "MeanSquaredError",
    "Metric",
    "Perplexity",
    "Precision",
    "Recall",
    "RootMeanSquaredError",
    "SampleMetric",
    "SumMetric",
    "TopKAccuracy",
    "as_sum_metric",
    "metric_name",
]
