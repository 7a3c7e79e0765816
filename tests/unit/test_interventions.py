"""What the policy does to a run that goes on: real training that comes apart, or comes to rest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import TensorDataset

from curvewatch_workers.checkpoint import FolderCheckpoints, Snapshot
from curvewatch_workers.contract import Control, EpochFinished, EpochRecord, JobSpec, Outcome, WorkerEvent
from curvewatch_workers.decisions import Ending
from curvewatch_workers.diagnosis import Verdict
from curvewatch_workers.group import SoloGroup
from curvewatch_workers.intervening import Interventions
from curvewatch_workers.keeping import MARKER, score_in
from curvewatch_workers.loop import Trainer
from curvewatch_workers.policy import Action
from curvewatch_workers.replay import replay
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import RecordingReporter
from engine_support import make_spec, make_task

SAMPLES = 64
BLOW_UP_AFTER = 6


def data(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SAMPLES, 4, generator=generator)
    noise = 0.1 * torch.randn(SAMPLES, 1, generator=generator)
    return TensorDataset(inputs, inputs @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]]) + noise)


def regression(after: int = BLOW_UP_AFTER, times: float = 40.0, **changes: Any) -> TrainingTask:
    """A straight line whose learning rate becomes far too high after some epochs."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fields: dict[str, Any] = {
        "model": model,
        "train": data(1),
        "validation": data(2),
        "loss": nn.MSELoss(),
        "optimizer": optimizer,
        "scheduler": LambdaLR(optimizer, lambda epoch: times if epoch >= after else 1.0),
    }
    return TrainingTask(**{**fields, **changes})


def spec(epochs: int = 20, *, batch: int = SAMPLES, keep: int = 2, **policy: Any) -> JobSpec:
    return make_spec(
        epochs=epochs,
        global_batch_size=batch,
        policy={"diverging": "rescue", "learning_rate_factor": 0.025, **policy},
        checkpoints={"min_interval_seconds": 0, "keep": keep},
    )


def trainer_of(
    job: JobSpec, task: TrainingTask, checkpoints: FolderCheckpoints, reporter: RecordingReporter
) -> Trainer:
    return Trainer(
        run_id="toy",
        attempt=1,
        spec=job,
        task=task,
        group=SoloGroup(),
        checkpoints=checkpoints,
        reporter=reporter,
    )


class Run:
    """A run in this process, and what it told."""

    def __init__(
        self, job: JobSpec, task: TrainingTask, folder: Path, *, pause_after: int | None = None
    ) -> None:
        class Pausing(RecordingReporter):
            def control(self) -> Control:
                return Control.PAUSE if len(self.records) + 1 == pause_after else Control.CONTINUE

        reporter = Pausing()
        self.trainer = trainer_of(
            job, task, FolderCheckpoints(folder, rank=0, keep=job.checkpoints.keep), reporter
        )
        self.ending: Ending = self.trainer.run(after_epoch=self.trainer.resume().epoch)
        self.records = [one.record for one in reporter.messages if isinstance(one, EpochFinished)]
        events = [one for one in reporter.messages if isinstance(one, WorkerEvent)]
        self.reasons = [event.reason for event in events]
        self.messages = {event.reason: event.message for event in events}


def losses(records: list[EpochRecord]) -> list[float]:
    return [record.validation.loss for record in records]


def test_a_run_that_comes_apart_is_rescued_and_ends_as_good_as_an_undisturbed_one(tmp_path: Path) -> None:
    run = Run(spec(), regression(), tmp_path / "a")
    calm = Run(spec(), regression(after=99), tmp_path / "b")
    unaided = Run(spec(diverging="observe"), regression(), tmp_path / "c")

    assert run.ending.outcome is Outcome.SUCCEEDED
    (rescued,) = (record for record in run.records if record.rolled_back_to is not None)
    assert rescued.rolled_back_to == BLOW_UP_AFTER
    assert run.reasons == ["policy_rescue", "rolled_back"]
    assert run.messages["rolled_back"] == (
        f"epoch {rescued.epoch} begins with the weights of epoch {BLOW_UP_AFTER}, at a learning rate of 0.1"
    )
    assert run.records[-1].learning_rate == pytest.approx(0.1)
    assert losses(unaided.records)[-1] > 1e6
    assert unaided.reasons == ["policy_observed"]
    # The epochs that were undone are lost; the others are those of a run without trouble.
    undone = rescued.epoch - 1 - BLOW_UP_AFTER
    standing = losses(run.records[:BLOW_UP_AFTER] + run.records[BLOW_UP_AFTER + undone :])
    assert standing == pytest.approx(losses(calm.records)[: len(standing)], rel=1e-5)
    assert [record.epoch for record in run.records] == list(range(1, 21))


def test_the_epoch_after_a_rescue_is_one_step_from_the_weights_that_came_back(tmp_path: Path) -> None:
    run = Run(spec(keep=20), regression(), tmp_path)
    (rescued,) = (record for record in run.records if record.rolled_back_to is not None)
    before = Snapshot.read(tmp_path / f"epoch-{rescued.rolled_back_to:06d}")
    weight, bias = (before.model[name].double() for name in ("weight", "bias"))
    inputs, targets = (tensor.double() for tensor in data(1).tensors)

    residual = inputs @ weight.T + bias - targets
    weight = weight - rescued.learning_rate * 2 * (residual * inputs).mean(0)
    bias = bias - rescued.learning_rate * 2 * residual.mean()

    inputs, targets = (tensor.double() for tensor in data(2).tensors)
    expected = float((inputs @ weight.T + bias - targets).square().mean())
    assert rescued.train.loss == pytest.approx(float(residual.square().mean()), rel=1e-5)
    assert rescued.validation.loss == pytest.approx(expected, rel=1e-5)


def test_the_checkpoint_after_a_rescue_is_as_good_as_the_weights_that_it_holds(tmp_path: Path) -> None:
    job = spec(keep=20)
    run = Run(job, regression(), tmp_path)
    (rescued,) = (record for record in run.records if record.rolled_back_to is not None)
    back_to = rescued.rolled_back_to or 0
    folder = tmp_path / f"epoch-{rescued.epoch - 1:06d}"
    kept, good = Snapshot.read(folder), Snapshot.read(tmp_path / f"epoch-{back_to:06d}")

    assert kept.rolled_back_to == back_to
    assert kept.weights_epoch == back_to
    assert torch.equal(kept.model["weight"], good.model["weight"])
    assert score_in((folder / MARKER).read_text()) == run.records[back_to - 1].validation.loss


def test_an_interrupted_rescue_leads_to_the_same_curve(tmp_path: Path) -> None:
    undisturbed = Run(spec(), regression(), tmp_path / "whole")
    (rescued,) = (record for record in undisturbed.records if record.rolled_back_to is not None)
    for number, cut in enumerate((rescued.epoch - 2, rescued.epoch - 1, rescued.epoch)):
        folder = tmp_path / str(number)
        part = Interrupted(spec(), regression(), folder, after=cut)
        rest = Run(spec(), regression(), folder)

        assert part.epochs == cut
        assert losses(rest.records) == losses(undisturbed.records)
        assert [record.rolled_back_to for record in rest.records] == [
            record.rolled_back_to for record in undisturbed.records
        ]
        assert rest.reasons.count("rolled_back") == (1 if cut == rescued.epoch - 2 else 0)


class DiedError(Exception):
    """The worker has died."""


class Interrupted:
    """A run that dies once it has taken the checkpoint of an epoch."""

    def __init__(self, job: JobSpec, task: TrainingTask, folder: Path, *, after: int) -> None:
        class Dying(FolderCheckpoints):
            def save(self, at: Any, *arguments: Any, **options: Any) -> str | None:
                super().save(at, *arguments, **options)
                if at.epoch == after:
                    raise DiedError
                return None

        reporter = RecordingReporter()
        trainer = trainer_of(job, task, Dying(folder, rank=0, keep=job.checkpoints.keep), reporter)
        with pytest.raises(DiedError):
            trainer.run(after_epoch=0)
        self.epochs = len(reporter.records)


def test_a_run_that_never_was_good_begins_anew_with_its_initial_weights(tmp_path: Path) -> None:
    job = spec(learning_rate_factor=0.01)
    task = regression(scheduler=None)
    task.optimizer.param_groups[0]["lr"] = 1e28

    run = Run(job, task, tmp_path)
    assert run.ending.outcome is Outcome.FAILED
    assert "rescued 3 times" in run.ending.reason
    assert not any(math.isfinite(loss) for loss in losses(run.records))
    assert [record.rolled_back_to for record in run.records] == [None, 0, 0, 0]
    assert [record.learning_rate for record in run.records] == pytest.approx([1e28, 1e26, 1e24, 1e22])
    # Each time the train pass begins with the same weights: one step an epoch, whose loss is that of before it.
    assert len({record.train.loss for record in run.records}) == 1


def test_too_high_a_learning_rate_is_lowered_until_the_run_trains(tmp_path: Path) -> None:
    task = regression(scheduler=None)
    task.optimizer.param_groups[0]["lr"] = 30.0
    run = Run(spec(epochs=60, learning_rate_factor=0.1), task, tmp_path)

    assert run.ending.outcome is Outcome.SUCCEEDED
    assert any(record.rolled_back_to is not None for record in run.records)
    assert losses(run.records)[-1] < 0.05


def test_rescue_needs_no_checkpoint_of_the_very_epoch(tmp_path: Path) -> None:
    job = spec().model_copy(update={"checkpoints": spec().checkpoints.model_copy(update={"every_epochs": 4})})
    run = Run(job, regression(), tmp_path)
    (rescued,) = (record for record in run.records if record.rolled_back_to is not None)

    assert rescued.rolled_back_to == 4
    assert losses(run.records)[-1] < 0.1


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(tmp_path: Path) -> None:
    class Damaging(FolderCheckpoints):
        def save(self, at: Any, *arguments: Any, **options: Any) -> str | None:
            super().save(at, *arguments, **options)
            if at.epoch == BLOW_UP_AFTER:
                (tmp_path / f"epoch-{at.epoch:06d}" / "model.pt").write_bytes(b"")
            return None

    reporter = RecordingReporter()
    trainer = trainer_of(spec(keep=20), regression(), Damaging(tmp_path, rank=0, keep=20), reporter)
    trainer.run(after_epoch=0)

    events = {one.reason for one in reporter.messages if isinstance(one, WorkerEvent)}
    assert "checkpoint_unreadable" in events
    assert BLOW_UP_AFTER - 1 in [record.rolled_back_to for record in reporter.records]


@pytest.mark.parametrize(
    ("policy", "times"),
    [
        ({}, 40.0),
        ({}, 1e30),
        ({"max_interventions": 1, "learning_rate_factor": 0.9}, 40.0),
        ({"diverging": "observe"}, 40.0),
        ({"diverging": "observe", "on_nonfinite": "stop"}, 1e30),
        ({"diverging": "observe", "early_stopping": {"patience": 3}}, 40.0),
        ({"early_stopping": {"patience": 1}}, 40.0),
        ({"diverging": "observe", "max_samples": 9 * SAMPLES}, 40.0),
    ],
)
def test_a_replay_says_what_training_did_first(policy: dict[str, Any], times: float, tmp_path: Path) -> None:
    job = spec(**policy)
    run = Run(job, regression(times=times), tmp_path)

    found = replay(run.records, job, job.policy)

    if "policy_rescue" in run.messages:
        first = run.messages["policy_rescue"] if run.reasons.count("policy_rescue") == 1 else None
        assert found is not None
        assert found.deed == "rescue"
        assert first in (None, found.why)
        (rolled, *_) = (record.epoch for record in run.records if record.rolled_back_to is not None)
        assert found.epoch == rolled - 1
    elif run.records[-1].epoch < job.training.epochs:
        assert found is not None
        assert (found.epoch, found.why) == (run.records[-1].epoch, run.ending.reason)
        assert (found.deed == "fail") is (run.ending.outcome is Outcome.FAILED)
    else:
        assert found is None


def test_on_nonfinite_stop_goes_before_a_rescue(tmp_path: Path) -> None:
    run = Run(spec(epochs=80, on_nonfinite="stop", max_interventions=1), regression(times=1e30), tmp_path)

    assert run.ending.outcome is Outcome.FAILED
    assert "policy.on_nonfinite: stop" in run.ending.reason
    assert run.reasons == []


def overfit(epochs: int, **policy: Any) -> tuple[JobSpec, TrainingTask]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    job = make_spec(epochs=epochs, policy=policy, checkpoints={"min_interval_seconds": 0})
    return job, make_task(samples=12, model=model, optimizer=optimizer)


def test_a_run_that_overfits_ends_with_the_weights_of_its_best_epoch(tmp_path: Path) -> None:
    job, task = overfit(60, overfitting="stop")
    run = Run(job, task, tmp_path)
    values = losses(run.records)
    best = values.index(min(values)) + 1

    assert run.ending.outcome is Outcome.SUCCEEDED
    assert run.ending.by_verdict
    assert run.reasons == ["policy_stop"]
    assert best < len(values) < 60
    again, measured = overfit(1)[1].model, task.validation
    again.load_state_dict(Snapshot.read(tmp_path / f"epoch-{len(values):06d}").model)
    assert isinstance(measured, TensorDataset)
    inputs, targets = measured.tensors
    with torch.inference_mode():
        assert float(nn.functional.cross_entropy(again(inputs), targets)) == pytest.approx(
            min(values), rel=1e-6
        )


def test_it_is_only_told_where_the_policy_observes(tmp_path: Path) -> None:
    job, task = overfit(60)
    run = Run(job, task, tmp_path)

    assert len(run.records) == 60
    assert run.reasons == ["policy_observed"]
    assert "`policy.overfitting: stop` would act here" in run.messages["policy_observed"]


def test_the_users_stop_in_the_same_epoch_is_the_users(tmp_path: Path) -> None:
    job, task = overfit(60, overfitting="stop")
    stopped_at = len(Run(job, task, tmp_path / "a").records)

    class StopsThen(RecordingReporter):
        def control(self) -> Control:
            return Control.STOP if len(self.records) == stopped_at - 1 else Control.CONTINUE

    job, task = overfit(60, overfitting="stop")
    reporter = StopsThen()
    ending = trainer_of(job, task, FolderCheckpoints(tmp_path / "b", rank=0, keep=2), reporter).run(
        after_epoch=0
    )

    assert ending.outcome is Outcome.STOPPED
    assert not [one for one in reporter.messages if isinstance(one, WorkerEvent)]


def resting() -> tuple[JobSpec, TrainingTask]:
    # Nothing is to be learned but the mean, so that the losses rest from the start, at a level that is not low.
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    generator = torch.Generator().manual_seed(1)
    inputs, targets = (
        torch.randn(64, 4, generator=generator),
        torch.randn(64, 1, generator=generator) + 0.7,
    )
    both = TensorDataset(inputs, targets)
    task = TrainingTask(
        model=model,
        train=both,
        validation=both,
        loss=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.2),
    )
    job = make_spec(
        epochs=40,
        global_batch_size=64,
        policy={"plateau": "reduce_lr", "max_interventions": 1},
        checkpoints={"min_interval_seconds": 0},
        monitoring={"patience_epochs": 5},
    )
    return job, task


def test_a_plateau_lowers_the_learning_rate_and_a_resume_knows_it(tmp_path: Path) -> None:
    run = Run(*resting(), tmp_path / "whole")
    rates = [record.learning_rate for record in run.records]
    reduced_at = sum(rate > 0.1 for rate in rates)

    assert run.reasons == ["policy_reduce_lr"]
    assert rates == pytest.approx([0.2] * reduced_at + [0.02] * (40 - reduced_at))

    part = Interrupted(*resting(), tmp_path / "part", after=reduced_at)
    rest = Run(*resting(), tmp_path / "part")
    assert part.epochs == reduced_at
    assert [record.learning_rate for record in rest.records] == rates
    assert rest.reasons == []


@pytest.mark.parametrize("of", ["plateau", "diverging"])
def test_a_pause_in_the_same_epoch_loses_nothing_of_what_the_policy_did(of: str, tmp_path: Path) -> None:
    def run(folder: str, *, pause_after: int | None = None) -> Run:
        job, task = resting() if of == "plateau" else (spec(), regression())
        return Run(job, task, tmp_path / folder, pause_after=pause_after)

    whole = run("whole")
    rates = [record.learning_rate for record in whole.records]
    acted_at = next(
        record.epoch - 1
        for record in whole.records
        if (record.learning_rate < rates[0] if of == "plateau" else record.rolled_back_to is not None)
    )
    first = run("part", pause_after=acted_at)
    rest = run("part")

    assert first.ending.outcome is Outcome.PAUSED
    assert first.reasons == whole.reasons
    assert rest.reasons == []
    assert losses(rest.records) == losses(whole.records)
    assert [record.learning_rate for record in rest.records] == rates


SCHEDULES: dict[str, Any] = {
    "none": lambda _optimizer: None,
    "step": lambda optimizer: StepLR(optimizer, 3, 0.5),
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 20, eta_min=0.01),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.4, total_steps=20),
    "warm-up, then cosine": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, 16)], [4]
    ),
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("lowered_at", [1, 7])
def test_a_schedule_goes_on_as_it_would_with_lower_rates(name: str, lowered_at: int, tmp_path: Path) -> None:
    def rates(factor: float | None) -> list[float]:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        scheduler: LRScheduler | None = SCHEDULES[name](optimizer)
        task = regression(model=model, optimizer=optimizer, scheduler=scheduler)
        job = spec(learning_rate_factor=factor or 0.5, plateau="reduce_lr")
        interventions = Interventions(
            policy=job.policy,
            task=task,
            model=model,
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            group=SoloGroup(),
            checkpoints=FolderCheckpoints(tmp_path, rank=0, keep=1),
            tell=lambda _reason, _message: None,
        )
        told = []
        for step in range(20):
            if step == lowered_at and factor is not None:
                interventions._lower_learning_rate()
            told.append(float(optimizer.param_groups[0]["lr"]))
            if scheduler is not None and step < 19:
                scheduler.step()
        return told

    plain, lowered = rates(None), rates(0.25)

    assert lowered[:lowered_at] == plain[:lowered_at]
    assert lowered[lowered_at:] == pytest.approx([0.25 * rate for rate in plain[lowered_at:]], rel=1e-6)


def answering(task: TrainingTask, folder: Path) -> Interventions:
    return Interventions(
        policy=spec().policy,
        task=task,
        model=task.model,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        group=SoloGroup(),
        checkpoints=FolderCheckpoints(folder, rank=0, keep=1),
        tell=lambda _reason, _message: None,
    )


def take_steps(task: TrainingTask, number: int) -> None:
    for _ in range(number):
        task.optimizer.zero_grad()
        task.model(torch.ones(2, 4)).sum().backward()
        task.optimizer.step()
        if task.scheduler is not None:
            task.scheduler.step()


TO_THE_START = Action(deed="rescue", observed=False, verdict=Verdict.NOT_FINITE, epoch=1, message="It fails.")


def test_every_rescue_to_the_start_finds_the_optimizer_as_it_was(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    # It has its state from the beginning, and adds to it in place.
    task = regression(model=model, optimizer=torch.optim.Adagrad(model.parameters(), lr=0.1), scheduler=None)
    interventions = answering(task, tmp_path)

    for _ in range(2):
        take_steps(task, 2)
        assert interventions.act(TO_THE_START, None) == 0
        for state in task.optimizer.state.values():
            assert float(state["step"]) == 0
            assert torch.equal(state["sum"], torch.zeros_like(state["sum"]))


def test_a_rescue_leaves_a_momentum_where_the_schedule_has_it(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    task = regression(model=model, optimizer=optimizer, scheduler=OneCycleLR(optimizer, 0.1, total_steps=20))
    interventions = answering(task, tmp_path)
    take_steps(task, 5)
    momentum = optimizer.param_groups[0]["momentum"]

    interventions.act(TO_THE_START, None)

    assert optimizer.param_groups[0]["momentum"] == momentum < 0.95


def test_a_schedule_that_waits_for_a_plateau_may_go_below_its_floor(tmp_path: Path) -> None:
    task = regression(scheduler=None)
    scheduler = ReduceLROnPlateau(task.optimizer, factor=0.5, patience=0, min_lr=0.05)
    interventions = Interventions(
        policy=spec(learning_rate_factor=0.1).policy,
        task=regression(optimizer=task.optimizer, model=task.model, scheduler=scheduler),
        model=task.model,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        group=SoloGroup(),
        checkpoints=FolderCheckpoints(tmp_path, rank=0, keep=1),
        tell=lambda _reason, _message: None,
    )
    interventions._lower_learning_rate()
    for loss in (1.0, 1.0, 1.0, 1.0, 1.0):
        scheduler.step(loss)

    assert task.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
