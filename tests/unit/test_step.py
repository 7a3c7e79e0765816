"""One optimizer step: micro-batches, weights, clipping, fp16 and steps that are left out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from curvewatch_workers.checkpoint import NoCheckpoints
from curvewatch_workers.contract import EpochRecord, Outcome, WorkerEvent
from curvewatch_workers.decisions import Ending
from curvewatch_workers.errors import TaskError
from curvewatch_workers.group import SoloGroup
from curvewatch_workers.loop import Trainer
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import FakeGroup, RecordingReporter, train_alone
from engine_support import datasets, make_spec, make_task

WEIGHTS = torch.tensor([0.1, 1.0, 5.0])


def run(task: TrainingTask, **training: Any) -> tuple[Ending, RecordingReporter]:
    reporter = RecordingReporter()
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        spec=make_spec(**training),
        task=task,
        group=SoloGroup(),
        checkpoints=NoCheckpoints(),
        reporter=reporter,
    )
    return trainer.run(after_epoch=0), reporter


def one_step(task: TrainingTask, **training: Any) -> dict[str, Tensor]:
    """Train one epoch of one step with rate 1 and return how the parameters moved: minus the gradient."""
    before = {name: value.detach().clone() for name, value in task.model.named_parameters()}
    train_alone(make_spec(epochs=1, global_batch_size=50, **training), task)
    return {name: before[name] - value.detach() for name, value in task.model.named_parameters()}


def step_task(loss: object, model: nn.Module | None = None) -> TrainingTask:
    task = make_task(loss=loss) if model is None else make_task(loss=loss, model=model)
    return make_task(loss=loss, model=task.model, optimizer=torch.optim.SGD(task.model.parameters(), lr=1.0))


@pytest.mark.parametrize("micro_batches", [1, 3, 60])
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=WEIGHTS),
        nn.CrossEntropyLoss(ignore_index=0),
        nn.CrossEntropyLoss(label_smoothing=0.2),
    ],
)
def test_the_gradient_is_that_of_torchs_loss_over_the_whole_batch(
    loss: nn.CrossEntropyLoss, micro_batches: int
) -> None:
    task = step_task(loss)
    inputs, targets = datasets(task)[0].tensors
    reference = make_task().model.double()
    truth = nn.CrossEntropyLoss(
        weight=None if loss.weight is None else loss.weight.double(),
        ignore_index=loss.ignore_index,
        label_smoothing=loss.label_smoothing,
    )
    torch.autograd.backward(truth(reference(inputs.double()), targets))

    moved = one_step(task, micro_batches=micro_batches)

    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(moved[name].double(), parameter.grad, rtol=1e-4, atol=1e-7)


def test_a_batch_of_ignored_targets_moves_nothing() -> None:
    task = step_task(nn.CrossEntropyLoss(ignore_index=7))
    datasets(task)[0].tensors[1].fill_(7)

    moved = one_step(task)

    assert all(torch.equal(value, torch.zeros_like(value)) for value in moved.values())


def test_weights_cost_one_small_reduction_a_step_and_plain_losses_none() -> None:
    def reductions(loss: object) -> list[tuple[int, ...]]:
        group = FakeGroup(world_size=2)
        trainer = Trainer(
            run_id="toy",
            attempt=1,
            spec=make_spec(epochs=2, micro_batches=2),
            task=make_task(loss=loss),
            group=group,
            checkpoints=NoCheckpoints(),
            reporter=RecordingReporter(),
        )
        trainer.run(after_epoch=0)
        return group.reduced

    steps = 4  # of 16 in 50 samples
    plain, weighted = reductions(nn.CrossEntropyLoss()), reductions(nn.CrossEntropyLoss(weight=WEIGHTS))
    assert len(plain) == 2
    assert len(weighted) == 2 * (steps + 1)
    assert weighted.count(()) == 2 * steps


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_loss_must_give_weights_always_or_never(micro_batches: int) -> None:
    # Who gives them takes part in a reduction that the ranks of others do not know of.
    calls = []

    def moody(outputs: Tensor, targets: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        calls.append(len(targets))
        losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return losses if len(calls) % 2 else (losses, torch.ones_like(losses))

    with pytest.raises(TaskError, match="gives weights with some batches and none with others"):
        run(make_task(loss=moody), micro_batches=micro_batches)
    assert len(calls) == 2


def test_clipping_scales_the_gradient_to_the_norm() -> None:
    free, clipped = (
        one_step(step_task(nn.CrossEntropyLoss())),
        one_step(step_task(nn.CrossEntropyLoss()), gradient_clip_norm=0.01),
    )

    norm = math.sqrt(sum(float(value.double().square().sum()) for value in free.values()))
    for name, value in free.items():
        assert torch.allclose(clipped[name], value * (0.01 / norm), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("weighted", [False, True])
def test_parameters_that_the_optimizer_leaves_alone_have_no_part_in_the_norm(
    precision: str, weighted: bool
) -> None:
    """A part of the model that is kept as it is, though it requires a gradient, and has a large one."""

    def trained(*, kept_requires_grad: bool) -> tuple[dict[str, Tensor], list[EpochRecord]]:
        model = make_task().model
        kept, moved = model.get_submodule("0"), model.get_submodule("2")
        kept.requires_grad_(kept_requires_grad)
        with torch.no_grad():
            moved.get_parameter("weight").mul_(100.0)
        optimizer = torch.optim.SGD(moved.parameters(), lr=1.0)
        loss = nn.CrossEntropyLoss(weight=WEIGHTS if weighted else None)
        task = make_task(model=model, loss=loss, optimizer=optimizer)
        spec = make_spec(epochs=1, global_batch_size=50, precision=precision, gradient_clip_norm=0.1)
        records = train_alone(spec, task)
        return dict(model.state_dict()), records

    (frozen, expected), (left, found) = trained(kept_requires_grad=False), trained(kept_requires_grad=True)

    assert found[0].gradient_norm == pytest.approx(expected[0].gradient_norm, rel=1e-6)
    for name, value in frozen.items():
        assert torch.allclose(left[name], value, rtol=1e-6)


def broken(task: TrainingTask) -> TrainingTask:
    inputs, _ = datasets(task)[0].tensors
    inputs[7, 0] = math.nan
    return task


def finite(task: TrainingTask) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in task.model.parameters())


def test_a_step_with_a_broken_sample_is_left_out_when_asked() -> None:
    skipping, going_on = broken(make_task()), broken(make_task())

    _, skipped = run(skipping, policy={"on_nonfinite": "skip_step"})
    _, spoilt = run(going_on)

    assert [record.skipped_steps for record in skipped.records] == [1, 1]
    assert [record.train.nonfinite_samples for record in skipped.records] == [1, 1]
    assert math.isfinite(skipped.records[-1].validation.loss)
    assert finite(skipping)
    assert not finite(going_on)
    assert spoilt.records[-1].validation.nonfinite_samples == 23


def test_a_run_with_a_broken_sample_ends_when_asked() -> None:
    ending, reporter = run(broken(make_task()), epochs=5, policy={"on_nonfinite": "stop"})

    assert ending.outcome is Outcome.FAILED
    assert "policy.on_nonfinite: stop" in ending.reason
    assert len(reporter.records) == 1


def test_fp16_is_close() -> None:
    exact, half = train_alone(make_spec(), make_task()), train_alone(make_spec(precision="fp16"), make_task())

    assert half[-1].validation.loss == pytest.approx(exact[-1].validation.loss, rel=0.05)
    assert half[-1].validation.loss != exact[-1].validation.loss
    assert half[-1].gradient_norm == pytest.approx(exact[-1].gradient_norm, rel=0.1)


def test_fp16_leaves_out_steps_that_overflow() -> None:
    task = make_task()
    inputs, targets = datasets(task)[0].tensors
    huge = TensorDataset(inputs * 1e8, targets)

    records = train_alone(make_spec(epochs=1, precision="fp16"), make_task(train=huge, model=task.model))

    assert records[0].skipped_steps > 0
    assert finite(task)


def test_parameters_that_the_loss_does_not_use_stay() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3)})

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.parts["used"](inputs)
            return outputs

    moved = one_step(step_task(nn.CrossEntropyLoss(), Half()))

    assert not moved["parts.unused.weight"].any()
    assert moved["parts.used.weight"].any()


def test_batch_norm_on_several_workers_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task = make_task(samples=48, model=model, optimizer=optimizer)
    reporter = RecordingReporter()
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        spec=make_spec(epochs=1),
        task=task,
        group=FakeGroup(world_size=2),
        checkpoints=NoCheckpoints(),
        reporter=reporter,
    )
    trainer.run(after_epoch=0)

    events = [message for message in reporter.messages if isinstance(message, WorkerEvent)]
    assert [event.reason for event in events] == ["batch_statistics_per_rank"]
    assert "1 BatchNorm or InstanceNorm layers (1, ...)" in events[0].message


def curve(records: list[EpochRecord]) -> list[float]:
    return [record.validation.loss for record in records]


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    def task() -> TrainingTask:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        data = TensorDataset(torch.randn(20, 3, 4, 4), torch.randint(0, 3, (20,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return make_task(model=model, train=data, validation=data, optimizer=optimizer)

    plain, laid_out = task(), task()
    assert curve(train_alone(make_spec(channels_last=True), laid_out)) == pytest.approx(
        curve(train_alone(make_spec(), plain)), rel=1e-5
    )
    weight = laid_out.model.get_parameter("0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
