"""What a model may do: keep tensors between calls, return more than a tensor, have layers that stay as they are."""

from __future__ import annotations

from typing import Self

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from curvewatch_workers.checkpoint import NoCheckpoints
from curvewatch_workers.contract import WorkerEvent
from curvewatch_workers.loop import Trainer
from curvewatch_workers.model import batch_statistics
from curvewatch_workers.testing import FakeGroup, RecordingReporter, train_alone
from engine_support import datasets, make_spec, make_task


class Cached(nn.Module):
    """Keeps a table that it makes for the largest batch so far, as rotary embeddings do for the longest sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.table = torch.empty(0)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(self.table) < len(inputs):
            self.table = torch.ones(len(inputs), 1)
        outputs: Tensor = self.inner(inputs) * self.table[: len(inputs)]
        return outputs


def test_what_a_model_keeps_from_validation_serves_the_next_train_step() -> None:
    task = make_task(model=Cached())
    whole = DataLoader(datasets(task)[1], batch_size=23)

    kept = train_alone(make_spec(), make_task(model=Cached(), validation=whole))

    assert [record.epoch for record in kept] == [1, 2]
    assert kept[1].train.loss < kept[0].train.loss


class OnFrozen(nn.Module):
    """A head on a backbone with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.backbone(inputs))
        return outputs


def run(model: nn.Module, world_size: int = 2) -> list[WorkerEvent]:
    """Probe and train a model; return the events."""
    reporter = RecordingReporter()
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        # 51 samples leave somebody one or none: the probe looks.
        spec=make_spec(global_batch_size=17),
        task=make_task(samples=51, model=model),
        group=FakeGroup(world_size=world_size),
        checkpoints=NoCheckpoints(),
        reporter=reporter,
    )
    trainer.probe()
    trainer.run(after_epoch=0)
    return [message for message in reporter.messages if isinstance(message, WorkerEvent)]


def test_layers_that_the_task_put_in_eval_mode_stay_so() -> None:
    model = OnFrozen()
    model.backbone.eval().requires_grad_(requires_grad=False)

    events = run(model)

    assert [event.reason for event in events] == ["layers_in_eval_mode"]
    assert "4 layers (backbone, ...)" in events[0].message
    assert not model.backbone.state_dict()["1.running_mean"].any()


def test_a_model_that_comes_in_eval_mode_as_a_whole_trains() -> None:
    model = OnFrozen().eval()

    events = run(model)

    assert [event.reason for event in events] == ["batch_statistics_per_rank"]
    assert model.backbone.state_dict()["1.running_mean"].any()


@pytest.mark.parametrize(
    ("layer", "depends"),
    [
        (nn.BatchNorm1d(3), True),
        (nn.BatchNorm1d(3).eval(), False),
        (nn.BatchNorm1d(3, track_running_stats=False).eval(), True),
        (nn.InstanceNorm1d(3, track_running_stats=True), True),
        (nn.InstanceNorm1d(3, track_running_stats=True).eval(), False),
        (nn.InstanceNorm1d(3), False),
        (nn.SyncBatchNorm(3), False),
        (nn.GroupNorm(1, 3), False),
    ],
)
def test_layers_whose_statistics_depend_on_the_share_are_known(layer: nn.Module, depends: bool) -> None:
    assert batch_statistics(nn.Sequential(layer)) == ["0"] * depends


class Frozen(nn.Module):
    """Keeps its statistics in train mode too, by its own word."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.norm.eval()
        return self


def test_a_model_may_keep_its_layers_in_eval_mode_itself() -> None:
    model = Frozen()

    assert batch_statistics(model) == []
    assert (model.training, model.norm.training) == (True, True)
