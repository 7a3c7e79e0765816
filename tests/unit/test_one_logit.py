"""A model of two classes may have one logit, as BCEWithLogitsLoss takes it: above 0 is class 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from curvewatch_workers.errors import TaskError
from curvewatch_workers.metrics import (
    F1,
    Accuracy,
    CalibrationError,
    ConfusionMatrix,
    Metric,
    Perplexity,
    Precision,
    Recall,
    TopKAccuracy,
    as_sum_metric,
)
from curvewatch_workers.metrics.protocol import MetricReading
from curvewatch_workers.task import check_task
from curvewatch_workers.testing import train_alone
from engine_support import make_spec, make_task

SHAPES = [
    ((120,), (120,)),
    ((120, 1), (120,)),
    ((120, 1), (120, 1)),
    ((30, 1, 2, 2), (30, 2, 2)),
    ((30, 1, 4), (30, 1, 4)),
]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    targets = (torch.rand(120, generator=generator) < 0.3).float()
    return targets - 0.4 + 0.8 * torch.randn(120, generator=generator), targets


def read(metric: Metric, outputs: Tensor, targets: Tensor) -> MetricReading:
    sums = as_sum_metric(metric)
    state = torch.zeros(sums.slots, dtype=torch.float64)
    for rows in torch.split(torch.arange(len(targets)), 13):
        sums.update(state, outputs[rows], targets[rows])
    return sums.read(state.numpy())


@pytest.mark.parametrize(("outputs_shape", "targets_shape"), SHAPES)
@pytest.mark.parametrize(
    ("metric", "suffix", "truth"),
    [
        (Accuracy(), "", lambda t, p: sk.accuracy_score(t, p > 0.5)),
        (TopKAccuracy(1), "", lambda t, p: sk.accuracy_score(t, p > 0.5)),
        (ConfusionMatrix(2), "", lambda t, p: sk.accuracy_score(t, p > 0.5)),
        (Precision(2, average=None), "1", lambda t, p: sk.precision_score(t, p > 0.5)),
        (Recall(2, average=None), "1", lambda t, p: sk.recall_score(t, p > 0.5)),
        (F1(2, average=None), "1", lambda t, p: sk.f1_score(t, p > 0.5)),
        (F1(2), "", lambda t, p: sk.f1_score(t, p > 0.5, average="macro")),
        (Perplexity(), "", lambda t, p: np.exp(sk.log_loss(t, p))),
    ],
    ids=lambda one: type(one).__name__ if not isinstance(one, str) else one,
)
def test_one_logit_is_scikit_learns(
    metric: Metric,
    suffix: str,
    truth: Callable[[Any, Any], float],
    outputs_shape: tuple[int, ...],
    targets_shape: tuple[int, ...],
) -> None:
    outputs, targets = data()

    reading = read(metric, outputs.reshape(outputs_shape), targets.reshape(targets_shape))

    expected = truth(targets.numpy(), outputs.double().sigmoid().numpy())
    assert reading.values[suffix].value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("outputs_shape", "targets_shape"), SHAPES)
def test_the_confidence_of_one_logit_is_that_of_two(
    outputs_shape: tuple[int, ...], targets_shape: tuple[int, ...]
) -> None:
    outputs, targets = data()
    two = torch.stack([torch.zeros_like(outputs), outputs], dim=1)

    found = read(CalibrationError(), outputs.reshape(outputs_shape), targets.reshape(targets_shape))

    assert found.values[""].value == pytest.approx(
        read(CalibrationError(), two, targets.long()).values[""].value
    )


@pytest.mark.parametrize(
    "metric",
    [Accuracy(), TopKAccuracy(1), ConfusionMatrix(2), F1(2), CalibrationError(), Perplexity()],
    ids=lambda one: type(one).__name__,
)
def test_one_logit_is_not_read_and_compiles_as_one_graph(metric: Metric) -> None:
    sums = as_sum_metric(metric)
    outputs, targets = data()
    compiled = torch.compile(sums.update, fullgraph=True, backend="eager")
    one, other = (torch.zeros(sums.slots, dtype=torch.float64) for _ in range(2))

    sums.update(one.to("meta"), outputs.unsqueeze(1).to("meta"), targets.to("meta"))
    compiled(one, outputs.unsqueeze(1), targets)
    sums.update(other, outputs.unsqueeze(1), targets)

    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [((8, 3), (8, 3)), ((8,), (8, 3)), ((8, 1), (8, 3)), ((8, 3), (8, 1)), ((), (8,))],
)
def test_shapes_of_which_one_logit_cannot_be_told_are_refused(
    outputs: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    metric = as_sum_metric(Accuracy())

    with pytest.raises(TaskError, match="Accuracy takes logits"):
        metric.update(torch.zeros(metric.slots), torch.zeros(outputs), torch.zeros(targets))


def binary(loss: nn.Module, *last: nn.Module) -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(4, 1), *last)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 4, generator=generator)
    samples = TensorDataset(inputs, (inputs[:, :1] > 0.3).float())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    metrics = {"accuracy": Accuracy()}
    return {
        "model": model,
        "train": samples,
        "validation": samples,
        "loss": loss,
        "optimizer": optimizer,
        "metrics": metrics,
    }


def test_a_run_with_one_logit_has_its_accuracy() -> None:
    task = make_task(**binary(nn.BCEWithLogitsLoss()))

    records = train_alone(make_spec(epochs=1), task)

    inputs, targets = task.train.tensors  # type: ignore[union-attr]
    with torch.no_grad():
        truth = sk.accuracy_score(targets, task.model(inputs) > 0)
    assert records[0].validation.metrics["accuracy"].value == truth


def test_probabilities_where_logits_are_needed_are_refused() -> None:
    task = make_task(**binary(nn.BCELoss(), nn.Sigmoid()))

    with pytest.raises(TaskError, match=r"'accuracy' takes logits.*BCELoss.*BCEWithLogitsLoss"):
        check_task(task, "toy:build")
