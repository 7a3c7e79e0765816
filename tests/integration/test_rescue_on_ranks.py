"""A rescue on real gloo ranks: all go back at once, to the curve of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from curvewatch_workers.checkpoint import FolderCheckpoints
from curvewatch_workers.contract import EpochRecord, JobSpec, WorkerEvent
from curvewatch_workers.group import Group
from curvewatch_workers.loop import Trainer
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import RecordingReporter
from engine_support import make_spec, make_task
from ranks_support import on_ranks


def spec(factor: float) -> JobSpec:
    return make_spec(
        epochs=14,
        global_batch_size=16,
        policy={"diverging": "rescue", "learning_rate_factor": factor},
        checkpoints={"min_interval_seconds": 0},
    )


def steep(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss that overflows where weights are very large."""
    return nn.functional.cross_entropy(outputs + outputs.pow(3), targets, reduction="none")


def task(rate: float, times: float) -> TrainingTask:
    torch.manual_seed(1)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    scheduler = LambdaLR(optimizer, lambda epoch: times if epoch >= 6 else 1.0)
    return make_task(model=model, optimizer=optimizer, scheduler=scheduler, loss=steep)


def attempt(
    group: Group, folder: Path, rate: float, times: float, factor: float
) -> tuple[list[EpochRecord], list[str], Any]:
    """Train; return the epochs, the reasons of the events, and the weights at the end."""
    reporter = RecordingReporter()
    built = task(rate, times)
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        spec=spec(factor),
        task=built,
        group=group,
        checkpoints=FolderCheckpoints(folder, rank=group.rank, keep=2),
        reporter=reporter,
    )
    trainer.probe()
    trainer.require_agreement()
    trainer.run(after_epoch=trainer.resume().epoch)
    reasons = [one.reason for one in reporter.messages if isinstance(one, WorkerEvent)]
    return reporter.records, reasons, [parameter.detach().clone() for parameter in built.model.parameters()]


@pytest.mark.parametrize(
    ("rate", "times", "factor", "to_the_start"),
    [(0.02, 1e5, 1e-5, False), (1e30, 1.0, 1e-31, True)],
    ids=["in mid-run", "from the start"],
)
def test_all_ranks_go_back_at_once(
    tmp_path: Path, rate: float, times: float, factor: float, to_the_start: bool
) -> None:
    together = on_ranks(2, tmp_path / "two", attempt, tmp_path / "two" / "kept", rate, times, factor)
    ((alone, reasons, _),) = on_ranks(
        1, tmp_path / "one", attempt, tmp_path / "one" / "kept", rate, times, factor
    )
    records, _, weights = together[0]

    back_to = next(one.rolled_back_to for one in alone if one.rolled_back_to is not None)
    assert (back_to == 0) is to_the_start
    assert "rolled_back" in reasons
    for other, other_reasons, others in together:
        assert [record.rolled_back_to for record in other] == [record.rolled_back_to for record in alone]
        assert other_reasons == reasons
        # Bit by bit: a rank that stayed behind would train on from other weights.
        assert all(torch.equal(one, two) for one, two in zip(weights, others, strict=True))
    after = 1 + max(index for index, record in enumerate(alone) if record.rolled_back_to is not None)
    for one, two in zip(records[after:], alone[after:], strict=True):
        assert one.validation.loss == pytest.approx(two.validation.loss, rel=1e-5)
        assert one.validation.exact
