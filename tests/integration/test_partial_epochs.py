"""A run that is interrupted in the middle of an epoch goes on there, on another number of ranks, to the same curve."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curvewatch_workers import preemption
from curvewatch_workers.checkpoint import FolderCheckpoints
from curvewatch_workers.contract import EpochRecord, JobSpec, WorkerEvent
from curvewatch_workers.group import Group
from curvewatch_workers.keeping import Progress
from curvewatch_workers.loop import Trainer
from curvewatch_workers.metrics import Accuracy, Precision
from curvewatch_workers.preemption import Notice
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import RecordingReporter
from engine_support import make_spec, make_task
from ranks_support import on_ranks

EPOCHS = 4
STEPS = 7
"""Of an epoch: 50 samples in global batches of 8."""


class LeavesAt:
    """Tells after so many looks that a node leaves at once."""

    def __init__(self, look: int) -> None:
        self._left = look

    def latest(self) -> Notice | None:
        self._left -= 1
        return Notice(0.0, (0,)) if self._left <= 0 else None


class GoneError(Exception):
    """The node has left."""


class Leaving(FolderCheckpoints):
    """The node is gone once a checkpoint has been taken in the middle of an epoch."""

    def save(self, at: Progress, *arguments: Any, **options: Any) -> str | None:
        problem = super().save(at, *arguments, **options)
        if at.step:
            raise GoneError(f"{at.epoch} {at.step}")
        return problem


def spec() -> JobSpec:
    return make_spec(
        epochs=EPOCHS,
        global_batch_size=8,
        micro_batches=2,
        gradient_clip_norm=0.5,
        checkpoints={"min_interval_seconds": 0},
        scaling={"workers": {"min": 1, "max": 4}},
    )


def task() -> TrainingTask:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    return make_task(
        model=model,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97),
        scheduler_step="step",
        loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5])),
        metrics={"accuracy": Accuracy(), "precision": Precision(3)},
    )


def attempt(
    group: Group, folder: Path, number: int, look: int | None
) -> tuple[list[EpochRecord], list[str], str]:
    """Train until the node leaves; return the epochs, the events, and where it ended."""
    preemption.LOOK_SECONDS = 0.0  # a look after each step
    checkpoints = Leaving(folder, rank=group.rank, keep=2)
    reporter = RecordingReporter()
    trainer = Trainer(
        run_id="toy",
        attempt=number,
        spec=spec(),
        task=task(),
        group=group,
        checkpoints=checkpoints,
        reporter=reporter,
        notices=None if look is None else LeavesAt(look),
    )
    trainer.require_agreement()
    trainer.probe()
    resumed = trainer.resume()
    ended = "the end"
    try:
        trainer.run(after_epoch=resumed.epoch)
    except GoneError as gone:
        ended = str(gone)
    events = [message.reason for message in reporter.messages if isinstance(message, WorkerEvent)]
    return reporter.records, events, f"{resumed.epoch} {resumed.step} to {ended}"


def interrupted(folder: Path, *attempts: tuple[int, int | None]) -> tuple[list[EpochRecord], list[str]]:
    """Run attempts of (ranks, look at which the node leaves); return the curve and the way of each attempt."""
    curve: dict[int, EpochRecord] = {}
    ways = []
    for number, (ranks, look) in enumerate(attempts, start=1):
        told = on_ranks(ranks, folder / f"attempt-{number}", partial(attempt), folder / "kept", number, look)
        records, events, way = told[0]
        curve |= {record.epoch: record for record in records}
        ways.append(way)
        assert ("preemption_notice" in events) is (look is not None)
    return [curve[epoch] for epoch in sorted(curve)], ways


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[EpochRecord]:
    curve, _ = interrupted(tmp_path_factory.mktemp("undisturbed"), (1, None))
    return curve


@pytest.mark.parametrize(
    ("attempts", "ways"),
    [
        (((2, 3), (2, None)), ["0 0 to 0 3", "0 3 to the end"]),
        (((3, STEPS + 4), (1, None)), ["0 0 to 1 4", "1 4 to the end"]),
        # Twice in the same epoch, then in the next, after its last step.
        (
            ((3, STEPS + 2), (4, 3), (2, STEPS - 5 + STEPS), (1, None)),
            ["0 0 to 1 2", "1 2 to 1 5", "1 5 to 2 7", "2 7 to the end"],
        ),
    ],
    ids=["2-2", "3-1", "3-4-2-1"],
)
def test_the_curve_is_that_of_an_undisturbed_run(
    undisturbed: list[EpochRecord],
    tmp_path: Path,
    attempts: tuple[tuple[int, int | None], ...],
    ways: list[str],
) -> None:
    curve, went = interrupted(tmp_path, *attempts)

    assert went == ways
    assert [record.epoch for record in curve] == list(range(1, EPOCHS + 1))
    for one, other in zip(curve, undisturbed, strict=True):
        assert one.learning_rate == pytest.approx(other.learning_rate, rel=1e-12)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
        for name in ("train", "validation"):
            mine, theirs = one.split(name), other.split(name)
            assert mine.exact
            assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)
            assert mine.weight_sum == pytest.approx(theirs.weight_sum, rel=1e-12)
            assert mine.metrics == theirs.metrics
            assert sum(rank.samples for rank in mine.ranks) == mine.samples_expected
            assert sum(rank.loss_sum for rank in mine.ranks) == pytest.approx(mine.loss_sum, rel=1e-12)
            assert sum(rank.weight_sum for rank in mine.ranks) == pytest.approx(mine.weight_sum, rel=1e-12)


def test_the_samples_of_ranks_that_are_gone_are_shared_out(tmp_path: Path) -> None:
    curve, _ = interrupted(tmp_path, (3, STEPS - 1), (2, None))

    # 48 of 50 samples were trained on by the three; the two others each fall to the second of two ranks.
    assert [rank.samples for rank in curve[0].train.ranks] == [24, 26]
    assert curve[0].train.rank_loss_spread < 1.0
