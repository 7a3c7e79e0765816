"""The engine on a CUDA GPU: the same numbers as on the CPU, and no wait for the device inside the loop."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from curvewatch_workers.checkpoint import FolderCheckpoints, NoCheckpoints
from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.group import Group, SoloGroup, TorchGroup, leave
from curvewatch_workers.loop import Trainer
from curvewatch_workers.losses import Loss
from curvewatch_workers.metrics import (
    F1,
    Accuracy,
    CalibrationError,
    ConfusionMatrix,
    Perplexity,
    TopKAccuracy,
    as_sum_metric,
)
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import RecordingReporter, train_alone
from curvewatch_workers.totals import Totals
from engine_support import EVERY_CALL_OF_A_GROUP, make_spec, make_task
from ranks_support import on_ranks, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")


def train_on_gpu(task: TrainingTask, group: Group | None = None, **training: Any) -> list[EpochRecord]:
    return train(group or SoloGroup(torch.device("cuda")), make_spec(**training), task)


def test_the_gpu_gives_the_cpus_curve() -> None:
    alone = train_alone(make_spec(), make_task())
    for cpu, gpu in zip(alone, train_on_gpu(make_task()), strict=True):
        assert gpu.train.loss == pytest.approx(cpu.train.loss, rel=1e-4)
        assert gpu.validation.loss == pytest.approx(cpu.validation.loss, rel=1e-4)
        assert gpu.validation.metrics == cpu.validation.metrics
        assert gpu.validation.exact
        assert gpu.gpu_memory_peak_bytes is not None
        assert gpu.gpu_memory_peak_bytes[0] > 0


@pytest.mark.parametrize(
    "training", [{"precision": "bf16"}, {"precision": "fp16"}, {"tf32": True}, {"compile": True}]
)
def test_fast_formats_are_close(training: dict[str, Any]) -> None:
    exact, fast = train_on_gpu(make_task()), train_on_gpu(make_task(), **training)

    assert fast[-1].validation.loss == pytest.approx(exact[-1].validation.loss, rel=0.05)
    assert all(record.validation.exact for record in fast)


@pytest.mark.parametrize("weight", [None, torch.ones(10)])
def test_updating_the_totals_never_waits_for_the_device(weight: torch.Tensor | None) -> None:
    device = torch.device("cuda")
    chosen = (Accuracy(), TopKAccuracy(3), ConfusionMatrix(10), F1(10), CalibrationError(), Perplexity())
    metrics = tuple(as_sum_metric(metric) for metric in chosen)
    loss = Loss(nn.CrossEntropyLoss(weight=weight))
    loss.to(device)
    totals = Totals(loss, metrics, torch.zeros(Totals.slots(metrics), dtype=torch.float64, device=device))
    outputs = torch.randn(64, 10, device=device)
    targets = torch.randint(0, 10, (64,), device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            totals.add(loss(outputs, targets), outputs, targets)
        for _ in range(3):
            totals.measure(outputs, targets)
        totals.flush()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert totals.sums[Totals.WEIGHT_SUM] == 6 * 64


class NoWait(nn.Module):
    """Forbids waits for the device from the first train step on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # Copies from memory that is not pinned wait; the loader's are pinned.
        torch.cuda.set_sync_debug_mode("error" if self.training else "default")
        outputs: torch.Tensor = self.inner(inputs)
        return outputs


def test_a_train_pass_never_waits_for_the_device() -> None:
    task = make_task(samples=160)
    model = NoWait(task.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        records = train_on_gpu(make_task(samples=160, model=model, optimizer=optimizer), epochs=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert records[0].train.exact


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[TorchGroup]:
    """A real NCCL group of one rank."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        yield TorchGroup(torch.device("cuda", 0))
    finally:
        leave()


def test_training_on_an_nccl_group(nccl: TorchGroup) -> None:
    alone = train_on_gpu(make_task())
    for one, other in zip(alone, train_on_gpu(make_task(), nccl), strict=True):
        assert other.train.loss == pytest.approx(one.train.loss, rel=1e-6)
        assert other.validation.metrics == one.validation.metrics


def batch_norm_on_one_gpu(group: Group) -> list[EpochRecord]:
    """Train with synchronised statistics; both gloo ranks on the same GPU."""
    gpu = TorchGroup(torch.device("cuda", 0)) if group.world_size > 1 else SoloGroup(torch.device("cuda", 0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    task = make_task(samples=48, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    return train_on_gpu(task, gpu, epochs=10, sync_batchnorm=True)


def test_synchronised_batch_norm_does_not_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    (alone,) = on_ranks(1, tmp_path / "1", batch_norm_on_one_gpu)
    together, _ = on_ranks(2, tmp_path / "2", batch_norm_on_one_gpu)

    for one, other in zip(alone, together, strict=True):
        assert other.train.loss == pytest.approx(one.train.loss, rel=1e-5)
        assert other.validation.loss == pytest.approx(one.validation.loss, rel=1e-5)


def test_a_resumed_run_draws_the_numbers_of_the_undisturbed(tmp_path: Path) -> None:
    def resumed(folder: Path, epochs: int) -> list[EpochRecord]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        reporter = RecordingReporter()
        trainer = Trainer(
            run_id="toy",
            attempt=1,
            spec=make_spec(epochs=epochs, checkpoints={"min_interval_seconds": 0}),
            task=make_task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)),
            group=SoloGroup(torch.device("cuda")),
            checkpoints=FolderCheckpoints(folder, rank=0, keep=1),
            reporter=reporter,
        )
        trainer.run(after_epoch=trainer.resume().epoch)
        return reporter.records

    undisturbed = resumed(tmp_path / "a", 4)
    resumed(tmp_path / "b", 2)

    # Dropout draws on the GPU: other numbers would make another loss by far.
    for one, other in zip(undisturbed, resumed(tmp_path / "b", 4), strict=True):
        assert other.train.loss == pytest.approx(one.train.loss, rel=1e-6)


def test_one_process_of_torchrun_trains_on_the_gpu(tmp_path: Path, project_root: Path) -> None:
    from curvewatch_workers.torchrun import main

    assert (
        main([str(project_root / "examples" / "digits"), "--output", str(tmp_path), "--device", "cuda"]) == 0
    )


def test_the_trainer_reports_gpu_memory_of_its_own_epoch() -> None:
    reporter = RecordingReporter()
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        spec=make_spec(),
        task=make_task(),
        group=SoloGroup(torch.device("cuda")),
        checkpoints=NoCheckpoints(),
        reporter=reporter,
    )
    large = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    del large
    trainer.run(after_epoch=0)

    assert reporter.records[-1].gpu_memory_peak_bytes is not None
    assert reporter.records[-1].gpu_memory_peak_bytes[0] < 1 << 28


def test_the_group_speaks_nccl(tmp_path: Path) -> None:
    """A group of one rank needs no collective in training; here each of its calls is one all the same."""
    script = tmp_path / "speak.py"
    script.write_text(EVERY_CALL_OF_A_GROUP)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]

    done = subprocess.run(
        [*launcher, str(script), "cuda"], capture_output=True, text=True, check=False, timeout=200
    )

    assert done.returncode == 0, done.stderr
    assert "rank 0 of 1 by nccl" in done.stdout


def test_a_resumed_adam_counts_its_steps_where_a_fresh_one_does(tmp_path: Path) -> None:
    def trainer() -> Trainer:
        task = make_task()
        optimizer = torch.optim.Adam(task.model.parameters())
        return Trainer(
            run_id="toy",
            attempt=1,
            spec=make_spec(checkpoints={"min_interval_seconds": 0}),
            task=make_task(model=task.model, optimizer=optimizer),
            group=SoloGroup(torch.device("cuda")),
            checkpoints=FolderCheckpoints(tmp_path, rank=0, keep=1),
            reporter=RecordingReporter(),
        )

    fresh, resumed = trainer(), trainer()
    fresh.run(after_epoch=0)
    assert resumed.resume().epoch == 2

    for state in (fresh._task.optimizer.state, resumed._task.optimizer.state):
        assert {one["step"].device.type for one in state.values()} == {"cpu"}
        assert {one["exp_avg"].device.type for one in state.values()} == {"cuda"}
