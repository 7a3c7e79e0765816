"""A metric of torchmetrics plugs in: AUROC over real ranks is scikit-learn's on the whole data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassAUROC

from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.errors import TaskError
from curvewatch_workers.group import Group
from curvewatch_workers.meter import EpochMeter
from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import check_task
from curvewatch_workers.testing import train_alone
from engine_support import datasets, make_spec, make_task
from ranks_support import on_ranks, train


def train_with_auroc(
    group: Group, validation_samples: int
) -> tuple[list[EpochRecord], dict[str, torch.Tensor]]:
    task = make_task(
        validation_samples=validation_samples,
        metrics={"auroc": MulticlassAUROC(3), "accuracy": Accuracy()},
    )
    records = train(
        group, make_spec(epochs=2, policy={"early_stopping": {"metric": "auroc", "mode": "max"}}), task
    )
    return records, task.model.state_dict()


@pytest.mark.parametrize(("ranks", "validation_samples"), [(1, 23), (3, 23)])
def test_auroc_over_ranks_is_scikit_learns(tmp_path: Path, ranks: int, validation_samples: int) -> None:
    (records, weights), *others = on_ranks(ranks, tmp_path, train_with_auroc, validation_samples)

    task = make_task(validation_samples=validation_samples)
    task.model.load_state_dict(weights)
    inputs, targets = datasets(task)[1].tensors
    with torch.no_grad():
        scores = task.model(inputs).softmax(1)
    truth = roc_auc_score(targets, scores, multi_class="ovr", average="macro")
    auroc = records[-1].validation.metrics["auroc"].value
    assert auroc == pytest.approx(truth, rel=1e-5)
    assert set(records[-1].train.metrics) == {"auroc", "accuracy"}
    assert all(other[-1].validation.metrics["auroc"].value == auroc for other, _ in others)


def test_each_epoch_and_split_has_its_own_state() -> None:
    metric = BinaryAUROC()
    task = make_task(loss=nn.BCEWithLogitsLoss())
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 4, generator=generator)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).float())
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    task = make_task(
        model=model,
        train=data,
        validation=data,
        loss=nn.BCEWithLogitsLoss(),
        optimizer=frozen,
        metrics={"auroc": metric},
    )

    records = train_alone(make_spec(epochs=2), task)

    with torch.no_grad():
        truth = roc_auc_score(data.tensors[1], model(inputs))
    for record in records:
        assert record.train.metrics["auroc"].value == pytest.approx(truth, rel=1e-6)
        assert record.validation.metrics["auroc"].value == pytest.approx(truth, rel=1e-6)
    assert not metric.update_called, "the user's own object is left alone"


class TwoNumbers(Metric):
    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Take nothing."""

    def compute(self) -> torch.Tensor:
        return torch.zeros(2)


def test_a_metric_of_several_numbers_is_refused() -> None:
    with pytest.raises(TaskError, match=r"'two' \(TwoNumbers\) gave 2 numbers"):
        train_alone(make_spec(epochs=1), make_task(metrics={"two": TwoNumbers()}))


class NamedNumbers(TwoNumbers):
    def compute(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"one": torch.zeros(()), "other": torch.ones(())}


def test_a_metric_of_named_numbers_is_refused() -> None:
    with pytest.raises(TaskError, match=r"'named' \(NamedNumbers\) gave a dict"):
        train_alone(make_spec(epochs=1), make_task(metrics={"named": NamedNumbers()}))


def refused_on_an_empty_rank(group: Group, metric: Metric) -> str:
    task = make_task(validation_samples=1, metrics={"auroc": metric})
    with pytest.raises(TaskError) as raised:
        train(group, make_spec(epochs=1), task)
    return str(raised.value)


def test_lists_of_samples_on_a_rank_without_any_are_refused_on_each(tmp_path: Path) -> None:
    """Alone, the rank that has none would take part in the gathering with another shape, which aborts every process."""
    told = on_ranks(2, tmp_path, refused_on_an_empty_rank, MulticlassAUROC(3))

    assert told[0] == told[1]
    assert "'auroc' (MulticlassAUROC) keeps samples, and rank 1 had none of the validation split" in told[0]
    assert "thresholds" in told[0]


def measured_on_an_empty_rank(group: Group) -> float:
    accuracy = MulticlassAccuracy(3, average="micro", dist_sync_on_step=True)
    records = train(
        group,
        make_spec(epochs=1),
        make_task(validation_samples=1, metrics={"ours": Accuracy(), "theirs": accuracy}),
    )
    ours, theirs = (records[0].validation.metrics[name].value for name in ("ours", "theirs"))
    assert ours == theirs
    assert records[0].train.metrics["ours"].value == pytest.approx(records[0].train.metrics["theirs"].value)
    return theirs


def test_sums_need_no_sample_on_each_rank(tmp_path: Path) -> None:
    one, other = on_ranks(2, tmp_path, measured_on_an_empty_rank)

    assert one == other


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (BinaryAUROC(sync_on_compute=False), "'theirs' has sync_on_compute=False.*one rank"),
        (MetricCollection([BinaryAUROC()]), r"'theirs' is a MetricCollection.*dict\(collection.items\(\)\)"),
        (BinaryAUROC, r"'theirs' is the class BinaryAUROC.*BinaryAUROC\(\.\.\.\)"),
    ],
)
def test_metrics_that_give_no_global_number_are_refused_at_the_start(metric: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        check_task(make_task(metrics={"theirs": metric}), "toy:build")
    with pytest.raises(TaskError, match=message):
        EpochMeter(train_samples=1, validation_samples=1, metrics={"theirs": metric})
