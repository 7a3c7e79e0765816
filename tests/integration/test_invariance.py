"""The whole curve is the same on 1, 2, 3 and 4 real gloo ranks, and when their number changes in mid-run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from curvewatch_workers.contract import SPLITS, EpochRecord, JobSpec
from curvewatch_workers.group import Group
from curvewatch_workers.metrics import F1, Accuracy, CalibrationError, ConfusionMatrix, Perplexity
from curvewatch_workers.task import TrainingTask
from engine_support import make_spec, make_task
from ranks_support import on_ranks, train

EPOCHS = 10
BATCH = 12


class Unused(nn.Module):
    """A model with a layer that no sample goes through, and one that only some do: on some ranks none of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.sometimes, self.never = (nn.Linear(4, 3) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = cast("Tensor", self.used(inputs))
        rows = (inputs[:, 0] > 1).nonzero().squeeze(1)
        return outputs.index_add(0, rows, self.sometimes(inputs[rows])) if len(rows) else outputs


class OneNaN(Dataset[tuple[Tensor, Tensor]]):
    """A dataset with one broken sample."""

    def __init__(self, inner: TensorDataset) -> None:
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, target = self._inner[index]
        return (inputs * float("nan") if index == 5 else inputs), target


def tokens(samples: int, *, seed: int) -> TensorDataset:
    """Sequences of 6 tokens of 5 kinds, some of them padding."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 5, (samples, 6), generator=generator)
    padding = torch.rand(samples, 6, generator=generator) < 0.3
    return TensorDataset(inputs, torch.where(padding, -100, inputs.roll(-1, 1)))


class TokenModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return cast("Tensor", self.head(self.table(inputs))).movedim(-1, 1)


def sum_and_weight(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    weights = 1.0 + targets
    each = nn.functional.cross_entropy(outputs, targets, reduction="none")
    return (each * weights).sum(), weights.sum()


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def sized(samples: int, validation_samples: int = 23) -> tuple[JobSpec, TrainingTask]:
    return spec(), make_task(samples=samples, validation_samples=validation_samples)


def spec(**training: Any) -> JobSpec:
    return make_spec(**{"epochs": EPOCHS, "global_batch_size": BATCH, **training})


def weighted(loss: object, **training: Any) -> tuple[JobSpec, TrainingTask]:
    return spec(**training), make_task(loss=loss)


def unused() -> tuple[JobSpec, TrainingTask]:
    torch.manual_seed(0)
    model = Unused()
    return spec(find_unused_parameters=True), make_task(model=model, optimizer=momentum(model))


def language() -> tuple[JobSpec, TrainingTask]:
    torch.manual_seed(0)
    model = TokenModel()
    task = make_task(
        model=model,
        train=tokens(41, seed=1),
        validation=tokens(19, seed=2),
        optimizer=momentum(model),
        metrics={"perplexity": Perplexity(), "accuracy": Accuracy()},
    )
    return spec(), task


def skipping() -> tuple[JobSpec, TrainingTask]:
    task = make_task()
    broken = OneNaN(cast("TensorDataset", task.train))
    return spec(policy={"on_nonfinite": "skip_step"}), make_task(train=broken, model=task.model)


def rich() -> tuple[JobSpec, TrainingTask]:
    metrics = {"f1": F1(3), "confusion": ConfusionMatrix(3), "calibration": CalibrationError()}
    return spec(), make_task(metrics=metrics)


CASES: dict[str, Callable[[], tuple[JobSpec, TrainingTask]]] = {
    "one less than whole batches": lambda: sized(4 * BATCH - 1),
    "whole batches": lambda: sized(4 * BATCH),
    "one more, fewer than ranks in the last batch": lambda: sized(4 * BATCH + 1),
    "fewer samples than ranks": lambda: sized(3, validation_samples=2),
    "uneven validation shards": lambda: sized(30, validation_samples=5),
    "gradient accumulation": lambda: (spec(micro_batches=3), make_task()),
    "clipping": lambda: (spec(gradient_clip_norm=0.05), make_task()),
    "class weights": lambda: weighted(nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 5.0]))),
    "class weights in micro-batches": lambda: weighted(
        nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 5.0])), micro_batches=2
    ),
    "ignored class": lambda: weighted(nn.CrossEntropyLoss(ignore_index=1)),
    "sum and weight": lambda: weighted(sum_and_weight),
    "unused parameters": unused,
    "tokens with padding": language,
    "a broken sample whose step is skipped": skipping,
    "many metrics": rich,
}


# On 3 ranks, which divide neither batches nor shards, all of them; on 2 and 4 those in which the split matters most.
ON_ANY_NUMBER = (
    "one less than whole batches",
    "one more, fewer than ranks in the last batch",
    "fewer samples than ranks",
    "gradient accumulation",
    "class weights in micro-batches",
    "tokens with padding",
    "many metrics",
)


def train_all(group: Group) -> dict[str, list[EpochRecord]]:
    names = ON_ANY_NUMBER if group.world_size in (2, 4) else tuple(CASES)
    return {name: train(group, *CASES[name]()) for name in names}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[EpochRecord]]]:
    """What was trained on 2, 3 and 4 ranks."""
    trained = {}
    for ranks in (2, 3, 4):
        first, *others = on_ranks(ranks, tmp_path_factory.mktemp(f"ranks{ranks}"), train_all)
        for other in others:  # every rank has the same global numbers
            for name, records in first.items():
                assert [one.train.loss_sum for one in other[name]] == [one.train.loss_sum for one in records]
        trained[ranks] = first
    return trained


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[EpochRecord]]:
    (records,) = on_ranks(1, tmp_path_factory.mktemp("alone"), train_all)
    return records


def require_same_curve(one: list[EpochRecord], other: list[EpochRecord]) -> None:
    assert (
        [record.epoch for record in one] == [record.epoch for record in other] == list(range(1, EPOCHS + 1))
    )
    for a, b in zip(one, other, strict=True):
        assert a.skipped_steps == b.skipped_steps
        for x, y in ((a.split(split), b.split(split)) for split in SPLITS):
            assert y.loss == pytest.approx(x.loss, rel=1e-5, nan_ok=True)
            assert y.weight_sum == pytest.approx(x.weight_sum, rel=1e-6)
            assert (y.samples_seen, y.nonfinite_samples) == (x.samples_seen, x.nonfinite_samples)
            assert y.matrices == x.matrices
            assert x.exact
            assert y.exact
            for name, totals in x.metrics.items():
                whole = float(totals.total).is_integer() and float(totals.count).is_integer()
                tolerance = 0 if whole else 1e-5
                assert y.metrics[name].value == pytest.approx(totals.value, rel=tolerance, nan_ok=True)
                assert y.metrics[name].count == totals.count


@pytest.mark.parametrize("name", CASES)
def test_the_curve_does_not_depend_on_the_number_of_ranks(
    name: str, alone: dict[str, list[EpochRecord]], together: dict[int, dict[str, list[EpochRecord]]]
) -> None:
    trained = {ranks: curves[name] for ranks, curves in together.items() if name in curves}

    assert 3 in trained
    assert len(trained) == 3 or name not in ON_ANY_NUMBER
    for ranks, curve in trained.items():
        assert {record.world_size for record in curve} == {ranks}
        require_same_curve(alone[name], curve)


def test_a_skipped_step_is_told(alone: dict[str, list[EpochRecord]]) -> None:
    records = alone["a broken sample whose step is skipped"]

    assert [record.skipped_steps for record in records] == [1] * EPOCHS
    assert [record.train.nonfinite_samples for record in records] == [1] * EPOCHS
    assert records[-1].train.loss < records[0].train.loss


def some_epochs(group: Group, folder: Path, epochs: int) -> list[EpochRecord]:
    return train(
        group, spec(epochs=epochs, checkpoints={"min_interval_seconds": 0}), make_task(samples=49), folder
    )


def test_the_number_of_ranks_may_change_in_mid_run(tmp_path: Path) -> None:
    (undisturbed,) = on_ranks(1, tmp_path / "a", some_epochs, tmp_path / "undisturbed", EPOCHS)
    on_ranks(3, tmp_path / "b", some_epochs, tmp_path / "changing", 3)
    on_ranks(2, tmp_path / "c", some_epochs, tmp_path / "changing", 6)
    changed = on_ranks(4, tmp_path / "d", some_epochs, tmp_path / "changing", EPOCHS)[0]

    assert [record.world_size for record in changed] == [3, 3, 3, 2, 2, 2, 4, 4, 4, 4]
    require_same_curve(undisturbed, changed)
