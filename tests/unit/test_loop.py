from __future__ import annotations

import dataclasses
import datetime as dt
import gc
import math
import multiprocessing
import random
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import Dataset, TensorDataset

from curvewatch_workers.batches import BatchPlan, shuffled
from curvewatch_workers.checkpoint import FolderCheckpoints, NoCheckpoints, Snapshot
from curvewatch_workers.contract import Control, EpochRecord, JobSpec, Outcome, WorkerEvent
from curvewatch_workers.decisions import Ending
from curvewatch_workers.errors import CheckpointLostError, TaskError
from curvewatch_workers.group import Group, SoloGroup
from curvewatch_workers.keeping import MARKER, Progress, score_in
from curvewatch_workers.loop import Trainer
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import FakeGroup, RecordingReporter, train_alone
from engine_support import datasets, make_spec, make_task


def make_trainer(
    spec: JobSpec,
    task: TrainingTask,
    folder: Path,
    reporter: RecordingReporter | None = None,
    group: Group | None = None,
) -> Trainer:
    return Trainer(
        run_id="toy",
        attempt=1,
        spec=spec,
        task=task,
        group=group or SoloGroup(),
        checkpoints=FolderCheckpoints(folder, rank=0, keep=2),
        reporter=reporter or RecordingReporter(),
        now=lambda: dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    )


def train(
    spec: JobSpec, task: TrainingTask, folder: Path, control: Control = Control.CONTINUE
) -> tuple[Ending, list[EpochRecord]]:
    reporter = RecordingReporter(control)
    ending = make_trainer(spec, task, folder, reporter).run(after_epoch=0)
    return ending, reporter.records


def test_numbers_are_those_of_every_sample_once() -> None:
    """An independent loop in float64 over the same batches, each loss of each sample added up."""
    spec, task = make_spec(epochs=3), make_task()
    reference = make_task()
    model = reference.model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    records = train_alone(spec, task)

    plan = BatchPlan(samples=50, global_batch_size=16)
    train_inputs, train_targets = datasets(reference)[0].tensors
    validation_inputs, validation_targets = datasets(reference)[1].tensors
    for record in records:
        losses: list[float] = []
        order = shuffled(50, seed=0, epoch=record.epoch)
        for share in plan.shares(order, 0, 1):
            batch = nn.functional.cross_entropy(
                model(train_inputs[share].double()), train_targets[share], reduction="none"
            )
            losses += batch.tolist()
            optimizer.zero_grad()
            torch.autograd.backward(batch.mean())
            optimizer.step()
        with torch.no_grad():
            outputs = model(validation_inputs.double())
            truth = float(nn.functional.cross_entropy(outputs, validation_targets))
            right = int((outputs.argmax(1) == validation_targets).sum())
        assert record.train.loss == pytest.approx(math.fsum(losses) / 50, rel=1e-6)
        assert record.validation.loss == pytest.approx(truth, rel=1e-6)
        assert record.validation.metrics["accuracy"].total == right
        assert record.validation.metrics["accuracy"].count == 23
        assert record.train.samples_seen == 50
        assert record.train.exact
        assert record.validation.exact
        assert record.learning_rate == 0.5


def test_gradient_norm_is_that_of_the_last_step_before_clipping(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    task = make_task(samples=16, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    inputs, targets = datasets(task)[0].tensors

    _, (record,) = train(make_spec(epochs=1, gradient_clip_norm=1e-6), task, tmp_path)

    model.zero_grad()
    torch.autograd.backward(nn.functional.cross_entropy(model(inputs), targets))
    truth = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))
    assert record.gradient_norm == pytest.approx(truth, rel=1e-5)


def test_one_reduction_of_one_buffer_an_epoch(tmp_path: Path) -> None:
    group = FakeGroup(0, world_size=2)
    trainer = make_trainer(make_spec(epochs=3), make_task(), tmp_path, group=group)
    agreed = len(group.reduced)

    trainer.run(after_epoch=0)

    assert len(group.reduced) - agreed == 3
    assert len(set(group.reduced[agreed:])) == 1


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    spec = make_spec(epochs=6, checkpoints={"min_interval_seconds": 0})

    def task() -> TrainingTask:
        made = make_task(model=nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
        optimizer = torch.optim.AdamW(made.model.parameters(), lr=0.05)
        return make_task(model=made.model, optimizer=optimizer, scheduler=StepLR(optimizer, 2))

    torch.manual_seed(1)
    first = task()
    initial = {name: value.clone() for name, value in first.model.state_dict().items()}
    _, undisturbed = train(spec, first, tmp_path / "a")

    second = task()
    second.model.load_state_dict(initial)
    reporter = RecordingReporter()
    trainer = make_trainer(
        make_spec(epochs=3, checkpoints={"min_interval_seconds": 0}), second, tmp_path / "b", reporter
    )
    trainer.run(after_epoch=0)
    resumed_reporter = RecordingReporter()
    resumed = make_trainer(spec, task(), tmp_path / "b", resumed_reporter)
    after_epoch = resumed.resume().epoch
    resumed.run(after_epoch=after_epoch)

    assert after_epoch == 3
    # The checkpoint's epochs are told again, then the new ones.
    assert [record.epoch for record in resumed_reporter.records] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(undisturbed, resumed_reporter.records, strict=True):
        clocks = {
            "rank_seconds": other.rank_seconds,
            "rank_validation_seconds": other.rank_validation_seconds,
            "finished_at": other.finished_at,
        }
        assert one.model_copy(update=clocks) == other


def test_the_validation_pass_is_timed_by_itself() -> None:
    slow = 0.01

    class Slow(Dataset[Any]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> Any:
            time.sleep(slow)
            return torch.zeros(4), torch.tensor(index % 3)

    (epoch,) = train_alone(make_spec(epochs=1), make_task(validation=Slow()))
    (as_train,) = train_alone(make_spec(epochs=1), make_task(train=Slow()))

    assert epoch.rank_validation_seconds is not None
    assert as_train.rank_validation_seconds is not None
    assert 10 * slow <= epoch.rank_validation_seconds[0] <= epoch.rank_seconds[0]
    assert as_train.rank_seconds[0] - as_train.rank_validation_seconds[0] >= 10 * slow


def test_stop_and_pause_end_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    for control, outcome in ((Control.STOP, Outcome.STOPPED), (Control.PAUSE, Outcome.PAUSED)):
        folder = tmp_path / control
        ending, records = train(make_spec(epochs=5), make_task(), folder, control)

        assert ending.outcome is outcome
        assert len(records) == 1
        assert Snapshot.read(folder / "epoch-000001").epoch == 1


def test_the_last_epoch_wins_over_a_pause(tmp_path: Path) -> None:
    ending, _ = train(make_spec(epochs=1), make_task(), tmp_path, Control.PAUSE)

    assert ending.outcome is Outcome.SUCCEEDED


def test_early_stopping_ends_the_run(tmp_path: Path) -> None:
    task = make_task()
    frozen = make_task(model=task.model, optimizer=torch.optim.SGD(task.model.parameters(), lr=0.0))
    spec = make_spec(epochs=50, policy={"early_stopping": {"patience": 3}})

    ending, records = train(spec, frozen, tmp_path)

    assert ending.outcome is Outcome.SUCCEEDED
    assert "has not improved for 3 epochs" in ending.reason
    assert len(records) == 4


def test_checkpoints_are_spaced_and_the_last_is_always_taken(tmp_path: Path) -> None:
    spec = make_spec(epochs=4, checkpoints={"every_epochs": 1, "min_interval_seconds": 3600})

    train(spec, make_task(), tmp_path)

    assert [path.name for path in sorted(tmp_path.iterdir())] == ["epoch-000001", "epoch-000004"]


def test_schedules_move_per_epoch_and_per_step(tmp_path: Path) -> None:
    for when, rates in (("epoch", [1.0, 0.1]), ("step", [1e-3, 1e-7])):
        task = make_task()
        optimizer = torch.optim.SGD(task.model.parameters(), lr=1.0)
        task = make_task(
            model=task.model, optimizer=optimizer, scheduler=StepLR(optimizer, 1), scheduler_step=when
        )

        _, records = train(make_spec(), task, tmp_path / when)

        # Four steps an epoch; the rate is that of the last one.
        assert [record.learning_rate for record in records] == pytest.approx(rates)


def test_plateau_schedule_sees_the_global_validation_loss(tmp_path: Path) -> None:
    task = make_task()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)
    scheduler = ReduceLROnPlateau(optimizer, patience=0)
    task = make_task(model=task.model, optimizer=optimizer, scheduler=scheduler)

    _, records = train(make_spec(epochs=3), task, tmp_path)

    assert scheduler.best == records[0].validation.loss
    assert scheduler.num_bad_epochs == 0  # twice reduced, and reset each time
    assert scheduler.last_epoch == 3


def test_batch_norm_and_few_samples_train(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    task = make_task(samples=18, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

    _, records = train(make_spec(epochs=2, global_batch_size=9), task, tmp_path)

    assert all(record.validation.exact for record in records)


def test_nonfinite_losses_are_counted(tmp_path: Path) -> None:
    task = make_task()
    datasets(task)[1].tensors[0][2, 0] = math.nan

    _, records = train(make_spec(epochs=1, global_batch_size=50), task, tmp_path)

    assert records[0].validation.nonfinite_samples == 1
    assert records[0].validation.weight_sum == 22
    assert math.isfinite(records[0].validation.loss)
    assert records[0].validation.exact


def test_bf16_is_close_and_sums_stay_float64(tmp_path: Path) -> None:
    _, exact = train(make_spec(), make_task(), tmp_path / "fp32")
    _, half = train(make_spec(precision="bf16"), make_task(), tmp_path / "bf16")

    assert half[-1].validation.loss == pytest.approx(exact[-1].validation.loss, rel=0.05)
    assert half[-1].validation.loss != exact[-1].validation.loss


def test_data_workers_change_nothing(tmp_path: Path) -> None:
    _, alone = train(make_spec(), make_task(), tmp_path / "a")
    _, helped = train(make_spec(data_workers=2), make_task(), tmp_path / "b")

    assert [r.validation for r in alone] == [r.validation for r in helped]


def test_unknown_early_stopping_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"'acuracy'.*loss, accuracy"):
        make_trainer(make_spec(policy={"early_stopping": {"metric": "acuracy"}}), make_task(), tmp_path)


def test_unknown_metric_to_rank_checkpoints_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"checkpoints.best.metric is 'acuracy'.*loss, accuracy"):
        make_trainer(make_spec(checkpoints={"best": {"metric": "acuracy"}}), make_task(), tmp_path)


class Augmented(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Adds random noise to each sample, from all three generators that people use."""

    def __init__(self, inner: TensorDataset) -> None:
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, target = self._inner[index]
        noise = torch.randn(4) + float(np.random.standard_normal()) + random.gauss(0, 1)
        return inputs + 0.1 * noise, target


@pytest.mark.parametrize("data_workers", [0, 2])
def test_a_replayed_epoch_draws_the_same_random_numbers(tmp_path: Path, data_workers: int) -> None:
    def task() -> TrainingTask:
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        made = make_task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        return dataclasses.replace(made, train=Augmented(cast("TensorDataset", made.train)))

    def spec(epochs: int) -> JobSpec:
        return make_spec(epochs=epochs, data_workers=data_workers, checkpoints={"min_interval_seconds": 0})

    torch.manual_seed(1)
    _, undisturbed = train(spec(3), task(), tmp_path / "a")
    torch.manual_seed(1)
    train(spec(1), task(), tmp_path / "b")
    reporter = RecordingReporter()
    trainer = make_trainer(spec(3), task(), tmp_path / "b", reporter)
    trainer.run(after_epoch=trainer.resume().epoch)

    assert [record.train for record in reporter.records] == [record.train for record in undisturbed]


def test_each_rank_draws_random_numbers_of_its_own_and_the_same_again(tmp_path: Path) -> None:
    class Drawing(Dataset[tuple[torch.Tensor, torch.Tensor]]):
        """Gives noise, and keeps it."""

        def __init__(self) -> None:
            self.drawn: list[float] = []

        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            noise = torch.rand(4) + float(np.random.random()) + random.random()
            self.drawn.append(float(noise.sum()))
            return noise, torch.tensor(0)

    def drawn(rank: int) -> list[float]:
        data = Drawing()
        trainer = make_trainer(make_spec(), make_task(train=data), tmp_path / "x", group=FakeGroup(rank, 2))
        data.drawn.clear()
        trainer.run(after_epoch=0)
        return data.drawn

    first, second = drawn(0), drawn(1)

    assert len(first) == len(second) == 32  # half of each of two epochs
    assert not set(first) & set(second)
    assert len(set(first)) == 32
    assert drawn(1) == second


def test_a_resumed_fp16_run_goes_on_with_its_scale(tmp_path: Path) -> None:
    """From torch's first scale it would leave steps out again."""

    def records(folder: Path, epochs: int) -> list[EpochRecord]:
        task = make_task()
        inputs, targets = datasets(task)[0].tensors
        optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
        steep = make_task(model=task.model, optimizer=optimizer, train=TensorDataset(inputs * 100, targets))
        spec = make_spec(epochs=epochs, precision="fp16", checkpoints={"min_interval_seconds": 0})
        return train_alone(spec, steep, FolderCheckpoints(folder, rank=0, keep=1))

    undisturbed = records(tmp_path / "a", 4)
    records(tmp_path / "b", 3)
    resumed = records(tmp_path / "b", 4)

    assert undisturbed[0].skipped_steps > 0
    assert undisturbed[3].skipped_steps == 0
    assert [one.skipped_steps for one in resumed] == [one.skipped_steps for one in undisturbed]
    assert resumed[3].train == undisturbed[3].train


def test_parameters_that_the_optimizer_leaves_alone_do_not_pile_up_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    task = make_task(samples=16, model=model, optimizer=torch.optim.SGD(model[1].parameters(), lr=0.0))

    _, records = train(make_spec(epochs=3), task, tmp_path)

    norms = [record.gradient_norm for record in records]
    assert norms == pytest.approx([norms[0]] * 3)


def test_sparse_gradients_have_a_norm(tmp_path: Path) -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 3, sparse=True)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return cast("torch.Tensor", self.table((inputs[:, 0] > 0).long()))

    model = Bag()
    task = make_task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

    _, records = train(make_spec(epochs=1), task, tmp_path)

    assert records[0].gradient_norm is not None
    assert records[0].gradient_norm > 0


def test_an_epoch_lasts_as_long_as_it_did_whatever_the_time_of_day_does(tmp_path: Path) -> None:
    """A clock that is set back by an hour at each look."""
    times = iter(dt.datetime(2026, 1, 1, 23 - hour, tzinfo=dt.UTC) for hour in range(20))
    reporter = RecordingReporter()
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        spec=make_spec(epochs=3),
        task=make_task(),
        group=SoloGroup(),
        checkpoints=FolderCheckpoints(tmp_path, rank=0, keep=2),
        reporter=reporter,
        now=lambda: next(times),
    )
    trainer.run(after_epoch=0)

    assert all(0 < record.duration_seconds < 60 for record in reporter.records)


def test_a_trainer_that_is_let_go_lets_its_loading_processes_go(tmp_path: Path) -> None:
    """In a cycle of references they would live until the garbage collector comes by, and end by force."""
    trainer = make_trainer(make_spec(data_workers=1), make_task(), tmp_path)
    gc.disable()
    try:
        trainer.run(after_epoch=0)
        alive = weakref.ref(trainer)
        assert multiprocessing.active_children()
        del trainer

        assert alive() is None
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


def overfit_task() -> TrainingTask:
    """A model that is soon at its best and then learns its few samples by heart."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    return make_task(samples=12, model=model, optimizer=optimizer)


@pytest.mark.parametrize("interrupted_after", [None, 3, 9])
def test_the_weights_of_the_best_epoch_are_put_back(tmp_path: Path, interrupted_after: int | None) -> None:
    def spec(epochs: int) -> JobSpec:
        policy = {"early_stopping": {"patience": 5, "restore_best": True}}
        return make_spec(epochs=epochs, policy=policy, checkpoints={"min_interval_seconds": 0})

    if interrupted_after is not None:
        make_trainer(spec(interrupted_after), overfit_task(), tmp_path).run(after_epoch=0)
    task, reporter = overfit_task(), RecordingReporter()
    trainer = make_trainer(spec(60), task, tmp_path, reporter)

    ending = trainer.run(after_epoch=trainer.resume().epoch)

    losses = [record.validation.loss for record in reporter.records]
    best = min(losses)
    assert ending.restore_best
    assert losses[-1] > 1.05 * best
    assert len(losses) == losses.index(best) + 1 + 5
    inputs, targets = datasets(task)[1].tensors
    kept = Snapshot.read(tmp_path / f"epoch-{len(losses):06d}")
    marker = (tmp_path / f"epoch-{len(losses):06d}" / MARKER).read_text()
    assert score_in(marker) == pytest.approx(best, rel=1e-6)
    for state in (task.model.state_dict(), kept.model):
        again = overfit_task().model
        again.load_state_dict(state)
        with torch.inference_mode():
            assert float(nn.functional.cross_entropy(again(inputs), targets)) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("policy", [{"early_stopping": {"patience": 5}}, {"max_samples": 60}])
def test_a_run_that_had_ended_but_could_not_tell_ends_the_same_way(
    tmp_path: Path, policy: dict[str, Any]
) -> None:
    spec = make_spec(epochs=60, policy=policy, checkpoints={"min_interval_seconds": 0})
    first = make_trainer(spec, overfit_task(), tmp_path).run(after_epoch=0)
    reporter = RecordingReporter()
    again = make_trainer(spec, overfit_task(), tmp_path, reporter)
    told = again.resume().epoch

    assert again.run(after_epoch=told) == first
    assert [record.epoch for record in reporter.records] == list(range(1, told + 1))


def test_without_it_the_last_weights_stay(tmp_path: Path) -> None:
    task = overfit_task()

    ending, records = train(make_spec(epochs=60, policy={"early_stopping": {"patience": 5}}), task, tmp_path)

    inputs, targets = datasets(task)[1].tensors
    with torch.inference_mode():
        final = float(nn.functional.cross_entropy(task.model(inputs), targets))
    assert not ending.restore_best
    assert final == pytest.approx(records[-1].validation.loss, rel=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_has_the_same_curve_and_checkpoints(tmp_path: Path) -> None:
    _, plain = train(make_spec(), make_task(), tmp_path / "plain")
    _, compiled = train(make_spec(compile=True), make_task(), tmp_path / "compiled")

    for one, other in zip(plain, compiled, strict=True):
        assert other.train.loss == pytest.approx(one.train.loss, rel=1e-5)
        assert other.validation.metrics == one.validation.metrics
    names = set(make_task().model.state_dict())
    assert set(Snapshot.read(tmp_path / "compiled" / "epoch-000002").model) == names


class LosesTheLast(NoCheckpoints):
    """A storage that takes no more when the run ends."""

    def save(self, at: Progress, write: Callable[[Path], None], *, score: float, last: bool) -> str | None:  # noqa: ARG002
        if last:
            raise CheckpointLostError("epoch-000002 could not be kept in bucket/x: no space")
        return "epoch-000001 could not be kept in bucket/x, training goes on: no space"


@pytest.mark.parametrize("control", [Control.CONTINUE, Control.STOP])
def test_a_run_whose_last_checkpoint_is_lost_has_failed(control: Control) -> None:
    reporter = RecordingReporter(control)
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        spec=make_spec(epochs=2, checkpoints={"min_interval_seconds": 0}),
        task=make_task(),
        group=SoloGroup(),
        checkpoints=LosesTheLast(),
        reporter=reporter,
    )

    ending = trainer.run(after_epoch=0)

    assert ending.outcome is Outcome.FAILED
    end = "stopped on request after epoch 1" if control is Control.STOP else "all 2 epochs are done"
    assert ending.reason == f"{end}, but epoch-000002 could not be kept in bucket/x: no space"
    told = [message for message in reporter.messages if isinstance(message, WorkerEvent)]
    assert {event.reason for event in told} == {"checkpoint_not_kept"}
    assert len(told) == (1 if control is Control.STOP else 2)


class Drifting(nn.Module):
    """A loss that follows what it has seen: a running mean of the outputs pulls them."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.mean.mul_(0.9).add_(0.1 * outputs.detach().mean(0))
        return nn.functional.cross_entropy(outputs - self.mean, targets, reduction="none")


def test_what_a_loss_has_learnt_survives_a_resume(tmp_path: Path) -> None:
    def records(folder: Path, epochs: int) -> list[EpochRecord]:
        spec = make_spec(epochs=epochs, checkpoints={"min_interval_seconds": 0})
        return train_alone(spec, make_task(loss=Drifting()), FolderCheckpoints(folder, rank=0, keep=1))

    undisturbed = records(tmp_path / "a", 4)
    records(tmp_path / "b", 2)

    assert [one.train for one in records(tmp_path / "b", 4)] == [one.train for one in undisturbed]


def test_a_checkpoint_without_the_losss_state_is_gone_on_with(tmp_path: Path) -> None:
    """Earlier versions kept none."""
    spec = make_spec(checkpoints={"min_interval_seconds": 0})
    train_alone(spec, make_task(), FolderCheckpoints(tmp_path, rank=0, keep=1))

    again = make_trainer(make_spec(epochs=3), make_task(loss=Drifting()), tmp_path)

    assert again.resume().epoch == 2


def test_an_event_that_is_too_long_is_cut_where_one_sees_it(tmp_path: Path) -> None:
    class Talkative(NoCheckpoints):
        def save(self, *_arguments: object, **_options: object) -> str | None:
            return "bad caf\udce9.pt " * 1000

    reporter = RecordingReporter()
    trainer = make_trainer(make_spec(epochs=1), make_task(), tmp_path, reporter)
    trainer._saving._checkpoints = Talkative()

    trainer.run(after_epoch=0)

    (event,) = (message for message in reporter.messages if isinstance(message, WorkerEvent))
    assert 4000 < len(event.message) <= 4096
    assert event.message.startswith("bad caf\\udce9.pt bad")
    kept, _, cut = event.message.partition("... [")
    assert cut == f"{17_000 - len(kept)} more characters]"
    assert WorkerEvent.model_validate_json(event.model_dump_json()) == event
