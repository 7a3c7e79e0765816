"""Two ranks that stop and start again, under torchrun: the run is the one that never stopped, on either storage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from curvewatch_workers.checkpoint import Snapshot
from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.testing import read_epochs

pytestmark = pytest.mark.long

USERS_FILE = """
import random
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from curvewatch_workers.task import TrainingTask

class Augmented(Dataset):
    def __init__(self, inner):
        self.inner = inner
    def __len__(self):
        return len(self.inner)
    def __getitem__(self, index):
        inputs, target = self.inner[index]
        noise = torch.randn(4) + float(np.random.standard_normal()) + random.gauss(0, 1)
        return inputs + 0.1 * noise, target

def build():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(48, 4, generator=generator)
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return TrainingTask(
        model=model, train=Augmented(data), validation=data, loss=nn.CrossEntropyLoss(), optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 2),
    )
"""


def run(
    folder: Path,
    output: Path,
    *more: str,
    epochs: int,
    checkpoints: str = "",
    data_workers: int = 0,
    ranks: int = 2,
) -> subprocess.CompletedProcess[str]:
    (folder / "noisy.py").write_text(USERS_FILE)
    (folder / "job.yaml").write_text(
        f"name: noisy\ncode: {{task: 'noisy:build'}}\ncheckpoints: {{min_interval_seconds: 0{checkpoints}}}\n"
        f"training: {{epochs: {epochs}, global_batch_size: 16, data_workers: {data_workers}}}\n"
    )
    launcher = (
        ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    )
    return subprocess.run(
        [
            sys.executable,
            "-m",
            *launcher,
            "curvewatch_workers.torchrun",
            str(folder),
            "--output",
            str(output),
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin", "TMPDIR": str(folder)},
    )


def records(output: Path, attempt: int) -> list[EpochRecord]:
    return read_epochs(output / "noisy" / "spool" / f"attempt-{attempt:06d}.jsonl")


@pytest.mark.parametrize(("storage", "data_workers"), [("folder", 0), ("remote", 2)])
def test_two_ranks_that_resume_draw_what_the_undisturbed_draw(
    tmp_path: Path, storage: str, data_workers: int
) -> None:
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    # `local` is fsspec's: a storage that is reached by its interface only, as a bucket is.
    kept = tmp_path / "kept" if storage == "remote" else stopped
    checkpoints = f", path: 'local://{kept}'" if storage == "remote" else ""

    for output, more, epochs, path in (
        (undisturbed, [], 4, ""),
        (stopped, [], 2, checkpoints),
        (stopped, ["--resume"], 4, checkpoints),
    ):
        done = run(tmp_path, output, *more, epochs=epochs, checkpoints=path, data_workers=data_workers)
        assert done.returncode == 0, done.stdout + done.stderr

    one = Snapshot.read(undisturbed / "noisy" / "epoch-000004")
    other = Snapshot.read(kept / "noisy" / "epoch-000004")
    assert (one.attempt, other.attempt) == (1, 2)
    assert one.best == other.best
    assert all(torch.equal(value, other.model[name]) for name, value in one.model.items())
    told = records(stopped, 2)
    assert [record.attempt for record in told] == [1, 1, 2, 2]
    assert [record.train for record in told] == [record.train for record in records(undisturbed, 1)]
    assert not list(tmp_path.glob("curvewatch-*"))


def test_checkpoints_of_an_earlier_run_elsewhere_are_gone_on_with_only_when_asked(tmp_path: Path) -> None:
    place = f", path: 'local://{tmp_path}/kept'"

    first, second, third = (
        run(tmp_path, tmp_path / output, *more, epochs=epochs, checkpoints=place, ranks=1)
        for output, more, epochs in (("a", [], 1), ("b", [], 2), ("b", ["--resume"], 2))
    )

    assert first.returncode == 0, first.stderr
    assert second.returncode == 2
    assert f"local://{tmp_path}/kept/noisy holds an earlier run" in second.stderr
    assert "checkpoints.path" in second.stderr
    assert third.returncode == 0, third.stderr
    assert records(tmp_path / "b", 1)[0] == records(tmp_path / "a", 1)[0]
    assert [record.epoch for record in records(tmp_path / "b", 1)] == [1, 2]


@pytest.mark.parametrize(
    ("path", "reason"),
    [("s4://bucket/x", "Protocol not known: s4"), ("local:///proc/no/such", "where no folder can be made")],
)
def test_a_storage_that_cannot_be_opened_is_a_usage_error(tmp_path: Path, path: str, reason: str) -> None:
    done = run(tmp_path, tmp_path / "out", epochs=1, checkpoints=f", path: '{path}'", ranks=1)

    assert done.returncode == 2
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
