"""The reduction alone: given per-sample losses, any split over ranks and batches gives the float64 sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from curvewatch_workers.batches import index_checksum, validation_shares
from curvewatch_workers.contract import Control
from curvewatch_workers.errors import LayoutMismatchError, TaskError
from curvewatch_workers.layout import EpochLayout, ExpectedSplit, GlobalEpoch, LeaderNotes, PassTotals
from curvewatch_workers.metrics import Accuracy, Totals
from curvewatch_workers.testing import FakeGroup

SAMPLES = 361


def expected(samples: int = SAMPLES) -> ExpectedSplit:
    return ExpectedSplit(samples=samples, checksum=index_checksum(np.arange(samples)))


def reduce(losses: Tensor, outputs: Tensor, targets: Tensor, world_size: int, batch_size: int) -> GlobalEpoch:
    """Sum the buffers of all ranks, as one SUM all-reduce does."""
    layout = EpochLayout(("accuracy",), world_size, expected(), expected())
    total = torch.zeros(layout.size, dtype=torch.float64)
    for rank in range(world_size):
        totals, samples, checksum = Totals((Accuracy(),), torch.device("cpu")), 0, 0
        for share in validation_shares(len(losses), rank, world_size, batch_size):
            rows = torch.from_numpy(share)
            totals.update(losses[rows], torch.zeros(()), outputs[rows], targets[rows])
            samples, checksum = samples + len(share), checksum + index_checksum(share)
        one = PassTotals(totals=totals, samples=samples, checksum=checksum)
        notes = LeaderNotes(control=Control.PAUSE, checkpoint_allowed=True, gradient_norm=torch.tensor(2.5))
        total += layout.fill(
            FakeGroup(rank, world_size), notes, (one, one), seconds=rank + 1.0, gpu_memory_peak=rank
        )
    return layout.read(total)


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
    assert epoch.rank_seconds == (1.0, 2.0, 3.0)
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
    layout = EpochLayout((), 1, expected(), expected())
    totals = Totals((), torch.device("cpu"))
    totals.update(torch.ones(3), torch.tensor(2), torch.zeros(3, 2), torch.zeros(3))
    one = PassTotals(totals=totals, samples=3, checksum=0)
    notes = LeaderNotes(control=Control.CONTINUE, checkpoint_allowed=False, gradient_norm=torch.zeros(()))

    with pytest.raises(TaskError, match="ignores 2 targets"):
        layout.read(layout.fill(FakeGroup(0, 1), notes, (one, one), 0.0, 0))


@pytest.mark.parametrize(
    "other",
    [
        EpochLayout(("mae",), 2, expected(), expected()),
        EpochLayout(("accuracy", "mae"), 2, expected(), expected()),
        EpochLayout(("accuracy",), 2, expected(360), expected()),
        EpochLayout(("accuracy",), 2, expected(), expected(360)),
    ],
)
def test_ranks_that_disagree_are_refused(other: EpochLayout) -> None:
    """Both ranks' own contributions are added, as the all-reduce does."""
    sent: list[Tensor] = []

    class Listening(FakeGroup):
        def all_reduce_sum(self, tensor: Tensor) -> None:
            sent.append(tensor.clone())
            super().all_reduce_sum(tensor)

    class Adding(FakeGroup):
        def all_reduce_sum(self, tensor: Tensor) -> None:
            tensor += sent.pop()

    layout = EpochLayout(("accuracy",), 2, expected(), expected())
    other.require_agreement(Listening(1, 2))
    with pytest.raises(LayoutMismatchError, match="same metrics and datasets"):
        layout.require_agreement(Adding(0, 2))
    layout.require_agreement(Listening(1, 2))
    layout.require_agreement(Adding(0, 2))
