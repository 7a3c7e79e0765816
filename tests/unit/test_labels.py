"""Which labels the metrics of classification take, and that none is taken for another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from curvewatch_workers.errors import TaskError
from curvewatch_workers.given_metrics import split_metrics
from curvewatch_workers.losses import ignored_target
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
from curvewatch_workers.testing import train_alone
from engine_support import datasets, make_spec, make_task

CLASSES = 40
EVERY: list[Metric] = [
    Accuracy(),
    TopKAccuracy(3),
    ConfusionMatrix(CLASSES),
    Precision(CLASSES),
    Recall(CLASSES),
    F1(CLASSES),
    CalibrationError(),
    Perplexity(),
]
every_metric = pytest.mark.parametrize("metric", EVERY, ids=lambda one: type(one).__name__)


def data() -> tuple[Tensor, Tensor]:
    """Logits that are right now and then, with labels below 128."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, CLASSES, (200,), generator=generator)
    outputs = torch.randn(200, CLASSES, generator=generator)
    outputs[torch.arange(200), targets] += 2.0
    return outputs, targets


def read(metric: Metric, outputs: Tensor, targets: Tensor) -> MetricReading:
    sums = as_sum_metric(metric)
    state = torch.zeros(sums.slots, dtype=torch.float64)
    for rows in torch.split(torch.arange(len(targets)), 64):
        sums.update(state, outputs[rows], targets[rows])
    return sums.read(state.numpy())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.float32])
@every_metric
def test_labels_may_be_of_any_type(metric: Metric, dtype: torch.dtype) -> None:
    outputs, targets = data()

    assert read(metric, outputs, targets.to(dtype)) == read(metric, outputs, targets)


def test_a_small_unsigned_label_is_not_taken_for_the_ignored_one() -> None:
    """156 is what -100 becomes in uint8."""
    outputs, targets = torch.eye(200), torch.arange(200, dtype=torch.uint8)

    assert read(Accuracy(), outputs, targets).values[""].count == 200


@pytest.mark.parametrize("label", [-1, CLASSES, 1000])
@every_metric
def test_labels_of_no_class_are_told_with_their_number(metric: Metric, label: int) -> None:
    outputs, targets = data()
    targets[[3, 70]] = label

    with pytest.raises(
        TaskError, match=rf"{type(metric).__name__}.* 2 labels that are no class.*ignore_index"
    ):
        read(metric, outputs, targets)


@every_metric
def test_half_a_class_is_none(metric: Metric) -> None:
    outputs, targets = data()
    targets = targets.float()
    targets[5] = 0.5

    with pytest.raises(TaskError, match="1 labels that are no class"):
        read(metric, outputs, targets)


def test_the_number_of_classes_is_told_where_it_is_known() -> None:
    outputs, targets = data()

    with pytest.raises(TaskError, match="from 0 to 39"):
        read(F1(CLASSES), outputs, targets + 1)


def test_an_epoch_with_labels_of_no_class_ends_the_run() -> None:
    task = make_task(loss=lambda outputs, _targets: outputs.square().sum(dim=1))
    datasets(task)[1].tensors[1][4] = 3

    with pytest.raises(TaskError, match="Accuracy got 1 labels that are no class"):
        train_alone(make_spec(), task)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(ignore_index=0), nn.NLLLoss(ignore_index=0)])
@every_metric
def test_a_metric_ignores_what_the_loss_ignores(metric: Metric, loss: nn.Module) -> None:
    outputs, targets = data()
    padded = torch.where(torch.arange(200) % 3 > 0, targets, 0)

    (taken,) = split_metrics({"taken": metric}, ignored_target(loss))[0].values()

    kept = padded != 0
    truth = read(metric, outputs[kept], padded[kept]).values[""]
    assert read(taken, outputs, padded).values[""].value == pytest.approx(truth.value, rel=1e-6)
    assert read(metric, outputs, padded).values[""].value != pytest.approx(truth.value, rel=1e-6)


def test_what_a_metric_ignores_by_its_own_word_stays() -> None:
    outputs, targets = data()
    targets[:50] = -1

    (taken,) = split_metrics({"taken": Accuracy(ignore_index=-1)}, 0)[0].values()

    assert read(taken, outputs, targets).values[""].count == 150


def test_a_run_and_its_metrics_ignore_the_same() -> None:
    task = make_task(loss=nn.CrossEntropyLoss(ignore_index=0))
    kept = int((datasets(task)[1].tensors[1] != 0).sum())

    records = train_alone(make_spec(epochs=1), task)

    assert records[0].validation.weight_sum == records[0].validation.metrics["accuracy"].count == kept
