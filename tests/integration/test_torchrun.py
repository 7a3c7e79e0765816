"""The loop under plain torchrun, with real gloo process groups: the curve does not depend on the number of ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from curvewatch_workers.checkpoint import Snapshot
from curvewatch_workers.contract import EpochRecord
from engine_support import EVERY_CALL_OF_A_GROUP
from torchrun_support import train

JOB = """
name: sizes
code: {{task: sizes:build}}
params: {{samples: {samples}, validation_samples: {validation_samples}}}
training: {{epochs: 3, global_batch_size: 16}}
"""
USERS_FILE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import TrainingTask

def build(samples, validation_samples):
    generator = torch.Generator().manual_seed(3)
    def data(count):
        inputs = torch.randn(count, 4, generator=generator)
        return TensorDataset(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    return TrainingTask(
        model=model, train=data(samples), validation=data(validation_samples), loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), metrics={"accuracy": Accuracy()},
    )
"""

THREADS = """
import os
from pathlib import Path
import torch
from torch import nn
from curvewatch_workers import group

def tell(when):
    names = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    threads = "gloo threads" if any("gloo" in name for name in names) else "none"
    os.write(1, f"{when}: {threads}\\n".encode())

def train(ranks):
    model = ranks.wrap(nn.Linear(2, 1), find_unused_parameters=False)
    model(torch.ones(3, 2)).sum().backward()

train(group.join_torchrun(gpu=False))
tell("joined")
group.leave()
tell("left")
"""


def require_equal(one: list[EpochRecord], other: list[EpochRecord]) -> None:
    assert [record.epoch for record in one] == [record.epoch for record in other]
    for a, b in zip(one, other, strict=True):
        for x, y in ((a.train, b.train), (a.validation, b.validation)):
            assert y.loss == pytest.approx(x.loss, rel=1e-5)
            assert y.metrics == x.metrics  # whole numbers: equal, not close
            assert (y.samples_seen, y.weight_sum) == (x.samples_seen, x.weight_sum)
            assert x.exact
            assert y.exact


def test_the_digits_have_one_curve_on_one_and_four_ranks(tmp_path: Path, project_root: Path) -> None:
    job = project_root / "examples" / "digits"

    alone, together = train(job, tmp_path / "1", ranks=1), train(job, tmp_path / "4", ranks=4)

    require_equal(alone, together)
    assert alone[-1].validation.samples_expected == 361
    final = Snapshot.read(tmp_path / "4" / "digits" / "epoch-000015")
    assert final.records[-1].validation.loss == pytest.approx(alone[-1].validation.loss, rel=1e-5)


def test_leaving_the_group_ends_its_threads(tmp_path: Path) -> None:
    # A thread of gloo's that releases a tensor while the interpreter ends aborts the process, but only sometimes.
    (tmp_path / "threads.py").write_text(THREADS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

    done = subprocess.run(
        [*launcher, str(tmp_path / "threads.py")], capture_output=True, text=True, check=False, timeout=200
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("joined: gloo threads") == 2
    assert done.stdout.count("left: none") == 2


def test_a_wrong_job_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x\n")

    done = subprocess.run(
        [sys.executable, "-m", "curvewatch_workers.torchrun", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "training: is required but missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_earlier_run_is_gone_on_with_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text(USERS_FILE)
    (tmp_path / "job.yaml").write_text(JOB.format(samples=8, validation_samples=4))
    command = [
        sys.executable,
        "-m",
        "curvewatch_workers.torchrun",
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
    ]

    first, second, third = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        for more in ([], [], ["--resume"])
    )

    assert first.stdout.count("epoch ") == 3
    assert second.returncode == 2
    assert "--resume" in second.stderr
    assert third.returncode == 0
    assert "epoch 1," not in third.stdout


def test_the_group_speaks_gloo(tmp_path: Path) -> None:
    """The same script speaks NCCL in tests/gpu."""
    (tmp_path / "speak.py").write_text(EVERY_CALL_OF_A_GROUP)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]

    done = subprocess.run(
        [*launcher, str(tmp_path / "speak.py"), "cpu"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )

    assert done.returncode == 0, done.stderr
    assert "rank 0 of 1 by gloo" in done.stdout
