"""The engine on a CUDA GPU: the same numbers as on the CPU, and no wait for the device inside the loop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from curvewatch_workers.checkpoint import NoCheckpoints
from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.group import SoloGroup
from curvewatch_workers.loop import Trainer
from curvewatch_workers.metrics import Accuracy, SampleLoss, Totals
from curvewatch_workers.testing import RecordingReporter, train_alone
from engine_support import EVERY_CALL_OF_A_GROUP, make_spec, make_task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")


def train_on_gpu(**training: object) -> list[EpochRecord]:
    reporter = RecordingReporter()
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        spec=make_spec(**training),
        task=make_task(),
        group=SoloGroup(torch.device("cuda")),
        checkpoints=NoCheckpoints(),
        reporter=reporter,
    )
    trainer.run(after_epoch=0)
    return reporter.records


def test_the_gpu_gives_the_cpus_curve() -> None:
    for cpu, gpu in zip(train_alone(make_spec(), make_task()), train_on_gpu(), strict=True):
        assert gpu.train.loss == pytest.approx(cpu.train.loss, rel=1e-4)
        assert gpu.validation.loss == pytest.approx(cpu.validation.loss, rel=1e-4)
        assert gpu.validation.metrics == cpu.validation.metrics
        assert gpu.validation.exact
        assert gpu.gpu_memory_peak_bytes is not None
        assert gpu.gpu_memory_peak_bytes[0] > 0


def test_updating_the_totals_never_waits_for_the_device() -> None:
    device = torch.device("cuda")
    totals, loss = Totals((Accuracy(),), device), SampleLoss(nn.CrossEntropyLoss())
    outputs = torch.randn(64, 10, device=device)
    targets = torch.randint(0, 10, (64,), device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        totals.update(loss(outputs, targets), loss.ignored(targets), outputs, targets)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert totals.values[Totals.FINITE] == 64


def test_one_process_of_torchrun_trains_on_the_gpu(tmp_path: Path, project_root: Path) -> None:
    from curvewatch_workers.torchrun import main

    assert (
        main([str(project_root / "examples" / "digits"), "--output", str(tmp_path), "--device", "cuda"]) == 0
    )


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
