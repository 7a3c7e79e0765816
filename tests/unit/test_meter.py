"""The meter of an own loop: the numbers of every sample once, from whatever form the loss has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from curvewatch_workers.contract import Control, EpochRecord
from curvewatch_workers.errors import TaskError
from curvewatch_workers.meter import EpochMeter, MeterRun, metering
from curvewatch_workers.metrics import F1, Accuracy
from curvewatch_workers.testing import FakeGroup, RecordingReporter

WEIGHTS = torch.tensor([0.1, 1.0, 5.0])


def data(samples: int = 37) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(samples, 3, generator=generator), torch.randint(0, 3, (samples,), generator=generator)


def fed(meter: EpochMeter, form: str, split: str = "train") -> None:
    outputs, targets = data()
    for rows in torch.split(torch.arange(37), 8):
        z, y = outputs[rows], targets[rows]
        loss: Tensor | tuple[Tensor, Tensor]
        if form == "mean":
            loss = functional.cross_entropy(z, y)
        elif form == "rows":
            loss = functional.cross_entropy(z, y, reduction="none")
        else:
            loss = functional.cross_entropy(z, y, weight=WEIGHTS, reduction="sum"), WEIGHTS[y].sum()
        meter.update(split, loss, z, y)  # type: ignore[arg-type]


def meter() -> EpochMeter:
    return EpochMeter(
        train_samples=37, validation_samples=37, metrics={"accuracy": Accuracy(), "f1": F1(3, average=None)}
    )


@pytest.mark.parametrize("form", ["mean", "rows", "pair"])
def test_the_global_loss_is_that_of_the_whole_data(form: str) -> None:
    outputs, targets = data()
    one = meter()
    fed(one, form, "train")
    fed(one, form, "validation")

    record = one.end_epoch(learning_rate=0.5)

    truth = functional.cross_entropy(
        outputs.double(), targets, weight=WEIGHTS.double() if form == "pair" else None
    )
    for split in (record.train, record.validation):
        assert split.loss == pytest.approx(float(truth), rel=1e-6)
        assert split.exact
        assert split.metrics["accuracy"].total == int((outputs.argmax(1) == targets).sum())
        assert set(split.metrics) == {"accuracy", "f1_0", "f1_1", "f1_2"}
    assert (record.epoch, record.learning_rate, record.gradient_norm) == (1, 0.5, None)


@pytest.mark.parametrize("width", [3, 20_000])
def test_a_loop_may_use_its_tensors_again(width: int) -> None:
    generator = torch.Generator().manual_seed(6)
    outputs, targets = torch.randn(6, 4, width, generator=generator), torch.arange(24).reshape(6, 4) % 3
    one = EpochMeter(train_samples=24, validation_samples=1, metrics={"accuracy": Accuracy()})
    kept = torch.empty(4, width), torch.empty(4), torch.empty(4, dtype=torch.int64)
    for z, y in zip(outputs, targets, strict=True):
        for tensor, now in zip(kept, (z, functional.cross_entropy(z, y, reduction="none"), y), strict=True):
            tensor.copy_(now)
        one.update("train", kept[1], kept[0], kept[2])

    train = one.end_epoch(learning_rate=0.1).train

    truth = functional.cross_entropy(outputs.flatten(0, 1).double(), targets.flatten())
    assert train.loss == pytest.approx(float(truth), rel=1e-6)
    assert train.metrics["accuracy"].total == int((outputs.argmax(2) == targets).sum())


def test_outputs_with_the_time_in_front_are_measured_batch_by_batch() -> None:
    generator = torch.Generator().manual_seed(6)
    outputs, targets = torch.randn(6, 5, 4, 3, generator=generator), torch.arange(24).reshape(6, 4) % 3
    right = {"right": lambda steps, truth: (steps[-1].argmax(1) == truth).double()}
    one = EpochMeter(train_samples=24, validation_samples=1, metrics=right)
    for z, y in zip(outputs, targets, strict=True):
        one.update("train", functional.cross_entropy(z[-1], y, reduction="none"), z, y)

    train = one.end_epoch(learning_rate=0.1).train

    assert train.metrics["right"].total == int((outputs[:, -1].argmax(2) == targets).sum())
    assert train.metrics["right"].count == 24


def test_the_sums_begin_anew_with_each_epoch() -> None:
    one = meter()
    fed(one, "rows")
    first = one.end_epoch(learning_rate=0.1)
    fed(one, "rows")
    second = one.end_epoch(learning_rate=0.1, gradient_norm=torch.tensor(2.0))

    assert second.train == first.train
    assert (second.epoch, second.gradient_norm) == (2, 2.0)
    assert math.isnan(second.validation.loss)
    assert not second.validation.exact


def test_padding_shows_in_the_receipt() -> None:
    one = meter()
    fed(one, "mean")
    outputs, targets = data(3)
    one.update("train", functional.cross_entropy(outputs, targets), outputs, targets)

    record = one.end_epoch(learning_rate=0.1)

    assert (record.train.samples_expected, record.train.samples_seen) == (37, 40)
    assert not record.train.exact


def run_of(reporter: RecordingReporter, epochs: int = 5) -> MeterRun:
    return MeterRun(run_id="r1", attempt=2, epochs=epochs, reporter=reporter, group=FakeGroup(world_size=2))


def test_a_job_is_told_each_epoch_and_one_reduction_carries_it() -> None:
    reporter = RecordingReporter()
    run = run_of(reporter)
    told: list[EpochRecord] = []
    with metering(run):
        one = meter()
        assert isinstance(run.group, FakeGroup)
        agreed = len(run.group.reduced)
        for _ in one.epochs():
            fed(one, "mean")
            told.append(one.end_epoch(learning_rate=0.1))

    assert reporter.records == told
    assert [record.epoch for record in told] == [1, 2, 3, 4, 5]
    assert {(record.run_id, record.attempt, record.world_size) for record in told} == {("r1", 2, 2)}
    assert len(run.group.reduced) - agreed == 5


def test_the_services_word_ends_the_loop() -> None:
    class Leader(FakeGroup):
        """The other rank's notes are zeros, as in a real reduction."""

        def all_reduce_sum(self, tensor: Tensor) -> None:
            notes = tensor[:3].clone()
            super().all_reduce_sum(tensor)
            if len(tensor) > 3:
                tensor[:3] = notes

    run = MeterRun(epochs=5, reporter=RecordingReporter(Control.STOP), group=Leader(world_size=2))
    with metering(run):
        one = meter()
        epochs = []
        for epoch in one.epochs():
            epochs.append(epoch)
            one.end_epoch(learning_rate=0.1)

    assert epochs == [1]
    assert run.control is Control.STOP


def test_a_loop_may_go_on_from_its_own_checkpoint() -> None:
    one = EpochMeter(train_samples=1, validation_samples=1, first_epoch=4)

    assert next(one.epochs(4)) == 4
    assert one.end_epoch(learning_rate=0.1).epoch == 4


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: EpochMeter(train_samples=0, validation_samples=1), "at least 1 train sample"),
        (lambda: next(meter().epochs()), r"write epochs\(20\)"),
        (lambda: meter().update("test", torch.zeros(()), *data()), "no split 'test'"),  # type: ignore[arg-type]
        (lambda: meter().update("train", torch.zeros(5), *data()), "one value for each sample"),
        (lambda: meter().update("train", 0.5, *data()), "must give a tensor, .* got float"),  # type: ignore[arg-type]
        (lambda: list(meter().epochs(2)), "epoch 1 was not ended"),
    ],
)
def test_mistakes_are_named(mistake: object, message: str) -> None:
    assert callable(mistake)
    with pytest.raises(TaskError, match=message):
        mistake()


def test_a_process_of_torchrun_that_joined_no_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(TaskError, match=r"WORLD_SIZE is 2, .* call torch.distributed.init_process_group"):
        meter()


def test_torchrun_with_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    one = meter()
    fed(one, "mean")

    assert one.end_epoch(learning_rate=0.1).train.exact
