"""The reduction alone: given per-sample losses, any split over ranks and batches gives the float64 sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvewatch_workers.batches import IndexCounter, SamplesSeen, index_checksum, validation_shares
from curvewatch_workers.contract import Control, Split
from curvewatch_workers.cost import RankCost
from curvewatch_workers.epoch_buffer import EpochBuffer, GlobalEpoch, LeaderNotes, metric_names
from curvewatch_workers.errors import LayoutMismatchError, TaskError
from curvewatch_workers.losses import BatchLoss, Loss
from curvewatch_workers.metrics import F1, Accuracy, ConfusionMatrix, SumMetric, as_sum_metric
from curvewatch_workers.testing import FakeGroup
from curvewatch_workers.totals import Totals

SAMPLES = 361
METRICS: dict[str, SumMetric] = {"accuracy": as_sum_metric(Accuracy()), "confusion": ConfusionMatrix(10)}


def expected(samples: int = SAMPLES) -> dict[Split, SamplesSeen]:
    seen = SamplesSeen(samples=samples, checksum=index_checksum(np.arange(samples)))
    return {"train": seen, "validation": seen}


def notes(control: Control = Control.CONTINUE) -> LeaderNotes:
    return LeaderNotes(
        control=control, checkpoint_allowed=True, skipped_steps=4, gradient_norm=torch.tensor(2.5)
    )


def reduce(losses: Tensor, outputs: Tensor, targets: Tensor, world_size: int, batch_size: int) -> GlobalEpoch:
    """Sum the buffers of all ranks, as one SUM all-reduce does; each rank has the data as both splits."""
    buffers = []
    for rank in range(world_size):
        buffer, counter = EpochBuffer(METRICS, FakeGroup(rank, world_size)), IndexCounter()
        totals = Totals(Loss(nn.MSELoss()), tuple(METRICS.values()), buffer.sums("validation"))
        for share in validation_shares(np.arange(len(losses)), rank, world_size, batch_size):
            rows = torch.from_numpy(share)
            totals.add(BatchLoss(losses[rows], None), outputs[rows], targets[rows])
            counter.add(share)
        totals.flush()
        buffer.sums("train").copy_(buffer.sums("validation"))
        both: dict[Split, SamplesSeen] = {"train": counter.seen, "validation": counter.seen}
        buffer.fill(notes(Control.PAUSE), both, RankCost(rank + 1.0, rank + 0.5, rank))
        buffers.append(buffer)
    for other in buffers[1:]:
        buffers[0].values += other.values
    return buffers[0].read(expected())


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    losses = torch.rand(SAMPLES, generator=generator) * 10 ** torch.randint(
        -6, 7, (SAMPLES,), generator=generator
    )
    outputs = torch.randn(SAMPLES, 10, generator=generator)
    targets = torch.randint(0, 10, (SAMPLES,), generator=generator)
    return losses, outputs, targets


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 32, 1000])
def test_global_loss_is_the_float64_mean(
    data: tuple[Tensor, Tensor, Tensor], world_size: int, batch_size: int
) -> None:
    losses, outputs, targets = data

    split = reduce(losses, outputs, targets, world_size, batch_size).validation

    truth = math.fsum(losses.double().tolist()) / SAMPLES
    assert split.loss == pytest.approx(truth, rel=1e-12)
    right = sum(int(row.argmax()) == int(target) for row, target in zip(outputs, targets, strict=True))
    assert split.metrics["accuracy"].total == right
    assert split.metrics["accuracy"].count == SAMPLES
    assert split.samples_seen == SAMPLES
    assert split.exact


def test_standard_error_is_that_of_the_samples(data: tuple[Tensor, Tensor, Tensor]) -> None:
    split = reduce(*data, world_size=3, batch_size=16).train

    truth = float(data[0].double().std(correction=1)) / math.sqrt(SAMPLES)
    assert split.standard_error == pytest.approx(truth, rel=1e-9)


def test_each_rank_is_told_apart_and_the_leader_is_heard(data: tuple[Tensor, Tensor, Tensor]) -> None:
    epoch = reduce(*data, world_size=3, batch_size=16)

    assert epoch.control is Control.PAUSE
    assert epoch.checkpoint_allowed
    assert epoch.gradient_norm == 2.5
    assert epoch.skipped_steps == 4
    assert epoch.rank_seconds == (1.0, 2.0, 3.0)
    assert epoch.rank_validation_seconds == (0.5, 1.5, 2.5)
    assert epoch.gpu_memory_peak_bytes == (0, 1, 2)
    assert [rank.samples for rank in epoch.validation.ranks] == [121, 120, 120]
    for number, rank in enumerate(epoch.validation.ranks):
        assert rank.loss == pytest.approx(float(data[0][number::3].double().mean()), rel=1e-12)


def test_one_nan_leaves_the_other_losses(data: tuple[Tensor, Tensor, Tensor]) -> None:
    losses = data[0].clone()
    losses[4], losses[200] = math.nan, math.inf

    split = reduce(losses, data[1], data[2], world_size=2, batch_size=16).validation

    kept = [value for value in losses.double().tolist() if math.isfinite(value)]
    assert split.nonfinite_samples == 2
    assert split.weight_sum == SAMPLES - 2
    assert split.loss == pytest.approx(math.fsum(kept) / len(kept), rel=1e-12)
    assert split.samples_seen == SAMPLES
    assert split.exact


def test_ignored_targets_are_refused() -> None:
    buffer = EpochBuffer({}, FakeGroup(0, 1))
    buffer.sums("train")[Totals.OVERLOOKED] = 2

    with pytest.raises(TaskError, match=r"ignores 2 targets.*ignores_targets=True"):
        buffer.read(expected())


def test_a_matrix_travels_as_counts(data: tuple[Tensor, Tensor, Tensor]) -> None:
    split = reduce(*data, world_size=3, batch_size=16).validation

    truth = torch.zeros(10, 10, dtype=torch.int64)
    truth.index_put_((data[2], data[1].argmax(1)), torch.tensor(1), accumulate=True)
    assert split.matrices["confusion"] == tuple(map(tuple, truth.tolist()))
    assert split.metrics["confusion"] == split.metrics["accuracy"]


def test_names_are_those_of_the_record() -> None:
    metrics: dict[str, SumMetric] = {"accuracy": as_sum_metric(Accuracy()), "f1": F1(3, average=None)}

    assert metric_names(metrics) == ("accuracy", "f1_0", "f1_1", "f1_2")


@pytest.mark.parametrize(
    ("metrics", "samples"),
    [
        ({"mae": as_sum_metric(Accuracy())}, 361),
        ({"accuracy": as_sum_metric(Accuracy()), "f1": F1(3)}, 361),
        ({"accuracy": F1(3)}, 361),
        ({"accuracy": as_sum_metric(Accuracy())}, 360),
    ],
)
def test_ranks_that_disagree_are_refused(metrics: dict[str, SumMetric], samples: int) -> None:
    """Both ranks' own contributions are added, as the all-reduce does."""
    sent: list[Tensor] = []

    class Listening(FakeGroup):
        def all_reduce_sum(self, tensor: Tensor) -> None:
            sent.append(tensor.clone())
            super().all_reduce_sum(tensor)

    class Adding(FakeGroup):
        def all_reduce_sum(self, tensor: Tensor) -> None:
            tensor += sent.pop()

    own: dict[str, SumMetric] = {"accuracy": as_sum_metric(Accuracy())}
    EpochBuffer(metrics, Listening(1, 2)).require_agreement(samples)
    with pytest.raises(LayoutMismatchError, match="same metrics and datasets"):
        EpochBuffer(own, Adding(0, 2)).require_agreement(361)
    EpochBuffer(own, Listening(1, 2)).require_agreement(361)
    EpochBuffer(own, Adding(0, 2)).require_agreement(361)
