from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from checkpoint_support import make_snapshot
from curvewatch_workers.checkpoint import FolderCheckpoints, NoCheckpoints
from curvewatch_workers.contract import JobSpec, WorkerEvent
from curvewatch_workers.errors import CheckpointError, DamagedCheckpointError
from curvewatch_workers.group import SoloGroup
from curvewatch_workers.keeping import Progress
from curvewatch_workers.loop import Trainer
from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.resuming import read_latest
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import FakeGroup, RecordingReporter, train_alone
from engine_support import make_spec, make_task


def checkpoints_of(root: Path, epochs: int) -> FolderCheckpoints:
    checkpoints = FolderCheckpoints(root, rank=0, keep=5)
    for epoch in range(1, epochs + 1):
        checkpoints.save(Progress(epoch), make_snapshot(epoch).write, score=1.0, last=False)
    return checkpoints


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    checkpoints = checkpoints_of(tmp_path, 3)
    cut(tmp_path / "epoch-000003" / "model.pt")
    (tmp_path / "epoch-000002" / "checkpoint.json").unlink()

    snapshot, damages = read_latest(checkpoints, SoloGroup())

    assert snapshot is not None
    assert snapshot.epoch == 1
    assert ["epoch-000003" in damages[0], "epoch-000002" in damages[1]] == [True, True]
    assert "model.pt is not what was written" in damages[0]


def test_what_else_lies_beside_the_checkpoints_is_left_alone(tmp_path: Path) -> None:
    checkpoints = checkpoints_of(tmp_path, 2)
    (tmp_path / "epoch-000009").write_text("a note")
    (tmp_path / "epoch-000001.backup").mkdir()
    (tmp_path / "epoch-000002" / "stray.txt").write_text("a note")

    snapshot, damages = read_latest(checkpoints, SoloGroup())
    checkpoints.save(Progress(3), make_snapshot(3).write, score=1.0, last=False)

    assert snapshot is not None
    assert (snapshot.epoch, damages) == (2, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-000001",
        "epoch-000001.backup",
        "epoch-000002",
        "epoch-000003",
        "epoch-000009",
    ]


def test_when_none_can_be_read_the_run_does_not_start_over(tmp_path: Path) -> None:
    checkpoints = checkpoints_of(tmp_path, 2)
    for folder in tmp_path.iterdir():
        cut(folder / "training.pt")

    with pytest.raises(DamagedCheckpointError, match="none of 2 checkpoints can be read"):
        read_latest(checkpoints, SoloGroup())


def test_a_checkpoint_is_read_into_host_memory_whatever_the_ranks_train_on(tmp_path: Path) -> None:
    """Adam keeps its count of steps there: on a GPU each step would wait for it."""
    checkpoints = FolderCheckpoints(tmp_path, rank=0, keep=1)
    state = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": []}
    snapshot = dataclasses.replace(make_snapshot(1), optimizer=state)
    checkpoints.save(Progress(1), snapshot.write, score=1.0, last=True)

    read, _ = read_latest(checkpoints, SoloGroup(torch.device("meta")))

    assert read is not None
    assert {value.device.type for value in read.optimizer["state"][0].values()} == {"cpu"}
    assert read.model["weight"].device.type == "cpu"


def changed_model() -> TrainingTask:
    return make_task(model=nn.Linear(4, 3))


def changed_optimizer() -> TrainingTask:
    task = make_task()
    groups = [{"params": [one]} for one in task.model.parameters()]
    return make_task(model=task.model, optimizer=torch.optim.SGD(groups, lr=0.1))


@pytest.mark.parametrize("changed", [changed_model, changed_optimizer])
def test_a_checkpoint_that_does_not_fit_the_task_is_named_with_the_remedy(
    tmp_path: Path, changed: Callable[[], TrainingTask]
) -> None:
    spec = make_spec(checkpoints={"min_interval_seconds": 0})
    train_alone(spec, make_task(), FolderCheckpoints(tmp_path, rank=0, keep=1))

    with pytest.raises(CheckpointError, match=r"of epoch 2 does not fit the job: .* as a run of its own$"):
        train_alone(spec, changed(), FolderCheckpoints(tmp_path, rank=0, keep=1))


def task_with(make: Callable[..., torch.optim.Optimizer]) -> TrainingTask:
    task = make_task()
    return make_task(model=task.model, optimizer=make(task.model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.optim.SGD, torch.optim.Adam),
        (torch.optim.Adam, torch.optim.SGD),
        (torch.optim.Adam, torch.optim.Adamax),
        (torch.optim.AdamW, torch.optim.Adam),
    ],
)
def test_the_state_of_another_optimizer_is_not_trained_on(
    tmp_path: Path, first: type[torch.optim.Optimizer], second: type[torch.optim.Optimizer]
) -> None:
    def train(optimizer: type[torch.optim.Optimizer], epochs: int) -> None:
        spec = make_spec(epochs=epochs, checkpoints={"min_interval_seconds": 0})
        train_alone(spec, task_with(optimizer), FolderCheckpoints(tmp_path, rank=0, keep=1))

    train(first, 1)

    with pytest.raises(
        CheckpointError, match=f"its optimizer is {first.__name__}, the task's is {second.__name__}"
    ):
        train(second, 2)
    train(first, 2)


BY_A_NEW_METRIC: list[tuple[str, dict[str, Any]]] = [
    ("checkpoints.best.metric", {"checkpoints": {"best": {"metric": "f", "mode": "max"}}}),
    ("policy.early_stopping.metric", {"policy": {"early_stopping": {"metric": "f", "patience": 3}}}),
]


@pytest.mark.parametrize(("field", "parts"), BY_A_NEW_METRIC)
def test_a_run_cannot_go_on_by_a_number_that_its_epochs_have_not(
    tmp_path: Path, field: str, parts: dict[str, Any]
) -> None:
    checkpoints = FolderCheckpoints(tmp_path, rank=0, keep=1)
    train_alone(make_spec(), make_task(), checkpoints)
    task = make_task(metrics={"f": Accuracy()})

    with pytest.raises(CheckpointError, match=f"{field} is 'f', which epoch 1 did not measure"):
        train_alone(make_spec(epochs=3, **parts), task, checkpoints)

    assert [record.epoch for record in train_alone(make_spec(epochs=3), task, checkpoints)] == [1, 2, 3]


@pytest.mark.parametrize("before", [None, {"patience": 9, "restore_best": True}])
def test_weights_of_another_epoch_are_not_put_back_as_the_best(
    tmp_path: Path, before: dict[str, Any] | None
) -> None:
    def spec(epochs: int, stopping: dict[str, Any] | None) -> JobSpec:
        policy = {"early_stopping": stopping} if stopping else {}
        return make_spec(epochs=epochs, policy=policy, checkpoints={"min_interval_seconds": 0})

    checkpoints = FolderCheckpoints(tmp_path, rank=0, keep=1)
    train_alone(spec(3, before), make_task(), checkpoints)
    # The validation loss falls, so that by this the first epoch is the best.
    highest: dict[str, Any] = {"mode": "max", "patience": 3}

    with pytest.raises(CheckpointError, match=r"put back the weights of epoch 1, .*set restore_best: false"):
        train_alone(spec(9, {**highest, "restore_best": True}), make_task(), checkpoints)

    records = train_alone(spec(9, highest), make_task(), checkpoints)
    assert [record.epoch for record in records] == [1, 2, 3, 4]


@pytest.mark.parametrize("restore_best", [True, False])
def test_a_run_that_stopped_early_and_goes_on_says_from_which_weights(
    tmp_path: Path, restore_best: bool
) -> None:
    def told(patience: int) -> tuple[list[str], int]:
        # The validation loss falls, so that by this the first epoch is the best.
        stopping = {"mode": "max", "patience": patience, "restore_best": restore_best}
        reporter = RecordingReporter()
        trainer = Trainer(
            run_id="toy",
            attempt=1,
            spec=make_spec(
                epochs=9, policy={"early_stopping": stopping}, checkpoints={"min_interval_seconds": 0}
            ),
            task=make_task(),
            group=SoloGroup(),
            checkpoints=FolderCheckpoints(tmp_path, rank=0, keep=1),
            reporter=reporter,
        )
        trainer.run(after_epoch=trainer.resume().epoch)
        events = [one for one in reporter.messages if isinstance(one, WorkerEvent)]
        return [f"{one.reason}: {one.message}" for one in events], len(reporter.records)

    first, second = told(2), told(4)

    assert first == ([], 3)
    assert second[1] == 5
    weights = (
        "best_weights_trained_on: the checkpoint of epoch 3 has the weights of epoch 1, which early stopping put back; "
        "what is trained after it begins with these"
    )
    assert second[0] == ([weights] if restore_best else [])


def test_another_format_is_no_damage(tmp_path: Path) -> None:
    checkpoints = checkpoints_of(tmp_path, 2)
    (tmp_path / "epoch-000002" / "checkpoint.json").write_text('{"format": 1, "epoch": 2}')

    with pytest.raises(CheckpointError, match="has format 1, this version reads 3"):
        read_latest(checkpoints, SoloGroup())


def test_what_another_rank_cannot_read_this_one_does_not_use(tmp_path: Path) -> None:
    class OtherRankCannotReadTheThird(FakeGroup):
        def first_problem(self, problem: str | None) -> str | None:
            self.asked = getattr(self, "asked", 0) + 1
            return "rank 1: stale file handle" if self.asked == 2 else problem

    snapshot, damages = read_latest(checkpoints_of(tmp_path, 3), OtherRankCannotReadTheThird(0, 2))

    assert snapshot is not None
    assert snapshot.epoch == 2
    assert damages == ("rank 1: stale file handle",)


def test_without_checkpoints_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert read_latest(NoCheckpoints(), SoloGroup()) == (None, ())
    assert read_latest(FolderCheckpoints(tmp_path / "none", rank=0, keep=1), SoloGroup()) == (None, ())


def test_the_run_tells_what_it_could_not_read_and_replaces_it(tmp_path: Path) -> None:
    def trainer(epochs: int, reporter: RecordingReporter) -> Trainer:
        return Trainer(
            run_id="toy",
            attempt=1,
            spec=make_spec(epochs=epochs, checkpoints={"min_interval_seconds": 0, "keep": 5}),
            task=make_task(),
            group=SoloGroup(),
            checkpoints=FolderCheckpoints(tmp_path, rank=0, keep=5),
            reporter=reporter,
        )

    trainer(3, RecordingReporter()).run(after_epoch=0)
    cut(tmp_path / "epoch-000003" / "model.pt")
    reporter = RecordingReporter()
    again = trainer(4, reporter)
    after_epoch = again.resume().epoch
    again.run(after_epoch=after_epoch)

    assert after_epoch == 2
    events = [message for message in reporter.messages if isinstance(message, WorkerEvent)]
    assert [event.reason for event in events] == ["checkpoint_unreadable"]
    assert "epoch-000003 cannot be read" in events[0].message
    assert [record.epoch for record in reporter.records] == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"epoch-00000{n}" for n in (1, 2, 3, 4)]
    snapshot, damages = read_latest(FolderCheckpoints(tmp_path, rank=0, keep=5), SoloGroup())
    assert snapshot is not None
    assert (snapshot.epoch, snapshot.attempt, damages) == (4, 1, ())
