"""A metric of torchmetrics plugs in: AUROC over real ranks is scikit-learn's on the whole data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, MulticlassAUROC

from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.errors import TaskError
from curvewatch_workers.group import Group
from curvewatch_workers.metrics import Accuracy
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
