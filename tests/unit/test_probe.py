"""A model that cannot take the smallest share is refused before it trains, with a batch size that works."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, get_worker_info

from curvewatch_workers.batches import BatchPlan
from curvewatch_workers.checkpoint import NoCheckpoints
from curvewatch_workers.errors import TaskError
from curvewatch_workers.loop import Trainer
from curvewatch_workers.probe import _size_that_works
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import FakeGroup, RecordingReporter
from engine_support import make_spec, make_task


class Views(nn.Module):
    """Cannot take zero rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs.view(len(inputs), -1))
        return outputs


class TimeFirst(nn.Module):
    """Takes {"steps": [time, batch, 4], "scale": the same for all of them}."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        assert inputs["steps"].shape[::2] == (5, 4)
        outputs: Tensor = self.layer(inputs["steps"].mean(dim=0)) * inputs["scale"]
        return outputs


def time_first(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[dict[str, Any], Tensor]:
    steps = torch.stack([inputs.expand(5, 4) for inputs, _ in samples], dim=1)
    return {"steps": steps, "scale": torch.tensor([1.0, 2.0, 3.0])}, torch.stack([t for _, t in samples])


def with_texts(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[dict[str, Any], Tensor]:
    batch = {"rows": torch.stack([inputs for inputs, _ in samples]), "texts": ["a text"] * len(samples)}
    return batch, torch.stack([target for _, target in samples])


class OfRows(nn.Module):
    """Takes {"rows": [batch, 4], "texts": of the samples}."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        outputs: Tensor = self.layer(inputs["rows"])
        return outputs


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))


def task_of(model: nn.Module, samples: int) -> TrainingTask:
    return make_task(samples=samples, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def trainer_of(task: TrainingTask, *, world_size: int, **training: object) -> Trainer:
    return Trainer(
        run_id="toy",
        attempt=1,
        spec=make_spec(**training),
        task=task,
        group=FakeGroup(world_size=world_size),
        checkpoints=NoCheckpoints(),
        reporter=RecordingReporter(),
    )


def probe(task: TrainingTask, *, world_size: int, **training: object) -> None:
    trainer_of(task, world_size=world_size, **training).probe()


@pytest.mark.parametrize(
    ("model", "samples", "training", "rows", "works"),
    [
        # 50 = 3 * 16 + 2: on three workers somebody has none of the last two.
        (Views(), 50, {}, 0, 1),
        (batch_norm(), 50, {}, 1, 2),
        (batch_norm(), 51, {}, 1, 2),
        (batch_norm(), 50, {"micro_batches": 2}, 1, 2),
    ],
)
def test_the_message_names_a_batch_size_that_works(
    model: nn.Module, samples: int, training: dict[str, object], rows: int, works: int
) -> None:
    with pytest.raises(TaskError, match=f"cannot be trained on {rows} sample") as refused:
        probe(task_of(model, samples), world_size=3, **training)

    size = int(str(refused.value).split("training.global_batch_size ")[1].split()[0])
    assert f"leaves each worker {works} or more" in str(refused.value)
    plan = BatchPlan(
        samples=samples, global_batch_size=size, micro_batches=int(str(training.get("micro_batches", 1)))
    )
    assert min(plan.share_sizes(3)) >= works
    probe(task_of(model, samples), world_size=3, **{**training, "global_batch_size": size})


def test_too_few_samples_for_any_batch_size() -> None:
    with pytest.raises(TaskError, match="3 samples are too few for 2 workers"):
        probe(task_of(batch_norm(), 3), world_size=2)


def test_a_model_that_takes_any_share_passes_unchanged() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3))
    torch.manual_seed(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()

    probe(task_of(model, 50), world_size=3)

    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("model", "collate"), [(TimeFirst(), time_first), (OfRows(), with_texts)])
def test_batches_are_the_collate_functions_own(model: nn.Module, collate: Callable[..., Any]) -> None:
    task = dataclasses.replace(task_of(model, 50), collate=collate)

    probe(task, world_size=3)
    # On three workers rank 0 has none of the last two samples.
    trainer_of(task, world_size=3).run(after_epoch=0)


class Grows(nn.Module):
    """Makes a buffer at its first call, and a larger one at a larger batch."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        if not hasattr(self, "table") or len(self.table) < len(inputs):
            self.register_buffer("table", torch.ones(len(inputs), 1), persistent=False)
        outputs: Tensor = self.layer(inputs) * self.table[: len(inputs)]
        return outputs


def test_buffers_that_come_with_the_first_call_are_no_trouble() -> None:
    probe(task_of(Grows(), 50), world_size=3)


def test_the_probe_leaves_batch_norms_statistics_alone() -> None:
    model = batch_norm()

    probe(task_of(model, 52), world_size=2, global_batch_size=48)

    statistics = model.state_dict()["1.running_mean"]
    assert not statistics.any()
    assert int(model.state_dict()["1.num_batches_tracked"]) == 0


def test_what_fails_on_any_batch_is_left_to_the_first_step() -> None:
    probe(task_of(nn.Sequential(nn.Linear(5, 3)), 50), world_size=3)


def test_the_nearest_size_is_found_for_large_data_at_once() -> None:
    plan = BatchPlan(samples=100_000_001, global_batch_size=100)

    assert _size_that_works(plan, 8) is not None


class OpenedLate(Dataset[Any]):
    """Tells whether it was read in this process: a file that it opens then is shared by the processes forked later."""

    def __init__(self, samples: int) -> None:
        self.samples, self.read_here = samples, False

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read_here |= get_worker_info() is None
        return torch.full((4,), float(index)), index % 3


@pytest.mark.parametrize("data_workers", [0, 1])
def test_samples_are_read_where_the_job_reads_them(data_workers: int) -> None:
    dataset = OpenedLate(17)
    task = dataclasses.replace(task_of(Views(), 17), train=dataset)

    with pytest.raises(TaskError, match="cannot be trained on 0 samples"):
        probe(task, world_size=2, data_workers=data_workers)
    assert dataset.read_here is (data_workers == 0)
