"""What one launch of torchrun may go on with, and what it refuses in a sentence."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from torchrun_support import free_port

pytestmark = pytest.mark.long

USERS_FILE = """
from pathlib import Path
from engine_support import make_task
from torch import nn
from torch.utils.data import Dataset
import torch

class Fails(Dataset):
    def __init__(self, inner, counter):
        self.inner, self.counter = inner, Path(counter)
    def __len__(self):
        return len(self.inner)
    def __getitem__(self, index):
        left = int(self.counter.read_text())
        if index == 7 and left:
            self.counter.write_text(str(left - 1))
            raise OSError("sample 7 cannot be read")
        return self.inner[index]

def build(counter, width=8):
    task = make_task(model=nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3)))
    return make_task(model=task.model, optimizer=task.optimizer, train=Fails(task.train, counter))
"""


class Job:
    """A job of some epochs that fails so often."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output, self.counter = folder, folder / "out", folder / "left"
        (folder / "failing.py").write_text(USERS_FILE)

    def write(self, *, failures: int = 0, epochs: int = 2, width: int = 8, more: str = "") -> None:
        self.counter.write_text(str(failures))
        (self.folder / "job.yaml").write_text(
            f"name: toy\ncode: {{task: 'failing:build'}}\nparams: {{counter: {self.counter}, width: {width}}}\n"
            f"training: {{epochs: {epochs}, global_batch_size: 16}}\ncheckpoints: {{min_interval_seconds: 0{more}}}\n"
        )

    def command(self, *options: str, ranks: int = 1, restarts: int | None = None) -> list[str]:
        launcher = ["-m"]
        if ranks > 1 or restarts is not None:
            launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            launcher += ["--max-restarts", str(restarts or 0), "-m"]
        job = ["curvewatch_workers.torchrun", str(self.folder), "--output", str(self.output)]
        return [sys.executable, *launcher, *job, "--device", "cpu", *options]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin",
            "PYTHONPATH": f"{Path(__file__).parent.parent}:{self.folder}",
        }

    def run(
        self, *options: str, ranks: int = 1, restarts: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*options, ranks=ranks, restarts=restarts),
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            env=self.environment,
        )

    def told(self) -> dict[int, list[tuple[int, int]]]:
        """Return submission, and resumed epoch, that each attempt began with."""
        found: dict[int, list[tuple[int, int]]] = {}
        for path in sorted((self.output / "toy" / "spool").glob("attempt-*.jsonl")):
            messages = [json.loads(line) for line in path.read_text().splitlines()]
            found[int(path.stem.split("-")[1])] = [
                (one["submission"], one["resumed_after_epoch"])
                for one in messages
                if one["kind"] == "attempt_started"
            ]
        return found


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_restart_within_a_launch_goes_on_with_its_own_run(job: Job) -> None:
    job.write(failures=1)

    done = job.run(restarts=1)

    assert done.returncode == 0, done.stderr
    assert job.told() == {1: [(1, 0)], 2: [(1, 0)]}


def test_what_fails_twice_in_one_launch_is_not_tried_again(job: Job) -> None:
    job.write(failures=9)

    done = job.run(restarts=3)

    assert done.returncode != 0
    assert "failed: failed twice at epoch 1, train step" in done.stdout
    assert job.counter.read_text() == "7"


def test_a_restart_does_not_go_on_with_what_the_launch_was_refused(job: Job) -> None:
    job.write(epochs=1)
    assert job.run().returncode == 0
    job.write(epochs=3)

    done = job.run(restarts=1)

    assert done.returncode != 0
    assert "holds an earlier run; go on with it by --resume" in done.stderr
    assert list(job.told()) == [1]


def test_a_checkpoint_that_does_not_fit_the_job_is_told_in_a_sentence(job: Job) -> None:
    job.write(epochs=1)
    assert job.run().returncode == 0
    job.write(epochs=2, width=5)

    done = job.run("--resume")

    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "the checkpoint of epoch 1 does not fit the job" in told
    assert "size mismatch for 0.weight" in told
    assert "Traceback" not in told


def test_an_output_that_is_a_file_is_told_in_a_sentence(job: Job) -> None:
    job.write()
    job.output.write_text("not a folder")

    done = job.run()

    assert done.returncode == 2
    assert f"--output is {job.output}, where no folder can be made" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_storage_of_one_process_is_refused_for_several(job: Job) -> None:
    job.write(more=", path: 'memory://bucket/x'")

    alone, together = job.run(), job.run(ranks=2)

    assert alone.returncode == 0, alone.stderr
    assert "checkpoints.path is 'memory://bucket/x', which each process has for itself" in together.stderr
    assert "toy holds" not in together.stderr


def test_ctrl_c_ends_a_run_in_a_sentence(job: Job) -> None:
    job.write(epochs=100_000)
    process = subprocess.Popen(
        job.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=job.environment
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1,")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=100)

    assert process.returncode == 130
    assert "Traceback" not in told
    assert "interrupted; go on from the latest checkpoint with --resume" in told


FULL_STORAGE = """
import fsspec
from fsspec.implementations.local import LocalFileSystem

class Full(LocalFileSystem):
    protocol = "full"
    def open(self, path, mode="rb", **options):
        if "w" in mode and "epoch-000002" in path:
            raise OSError("the bucket is full")
        return super().open(path, mode, **options)

fsspec.register_implementation("full", Full)
"""


def test_a_run_whose_last_checkpoint_is_lost_has_failed_and_can_be_gone_on_with(job: Job) -> None:
    # Python imports sitecustomize before anything else: the storage is there when the job is read.
    (job.folder / "sitecustomize.py").write_text(FULL_STORAGE)
    job.write(epochs=2, more=f", path: 'full://{job.folder}/kept'")

    lost = job.run(ranks=2)
    job.write(epochs=3, more=f", path: 'full://{job.folder}/kept'")
    again = job.run("--resume", ranks=2)

    assert lost.returncode != 0
    assert lost.stdout.splitlines()[-1] == (
        f"failed: all 2 epochs are done, but checkpoint epoch-000002 could not be kept in {job.folder}/kept/toy: "
        "the bucket is full"
    )
    assert again.returncode == 0, again.stderr
    assert job.told() == {1: [(1, 0)], 2: [(2, 1)]}


OWN_LOOP = """
from pathlib import Path
import torch
from curvewatch_workers.meter import EpochMeter

def main(folder):
    rank = torch.distributed.get_rank()
    done = Path(folder) / "done"
    after = int(done.read_text()) if done.exists() else 0
    meter = EpochMeter(train_samples=4, validation_samples=4, first_epoch=after + 1)
    for epoch in meter.epochs():
        if epoch == 3 and after == 0 and rank == 0:
            raise OSError("the power is gone")
        for split in ("train", "validation"):
            meter.update(split, torch.tensor(1.0 / epoch), torch.zeros(2, 1), torch.zeros(2))
        meter.end_epoch(learning_rate=0.1)
        if rank == 0:
            done.write_text(str(epoch))
"""


def test_a_loop_of_ones_own_that_torchrun_restarts_keeps_its_curve(job: Job) -> None:
    (job.folder / "own.py").write_text(OWN_LOOP)
    (job.folder / "job.yaml").write_text(
        f"name: toy\ncode: {{loop: 'own:main'}}\nparams: {{folder: {job.folder}}}\ntrack: [jsonl]\n"
        "training: {epochs: 4, global_batch_size: 4}\n"
    )

    done = job.run(ranks=2, restarts=1)

    assert done.returncode == 0, done.stderr
    assert job.told() == {1: [(1, 0)], 2: [(1, 2)]}
    shown = [
        json.loads(line)
        for line in (job.output / "toy" / "tracking" / "epochs.jsonl").read_text().splitlines()
    ]
    assert [(one["epoch"], one["attempt"]) for one in shown] == [(1, 1), (2, 1), (3, 2), (4, 2)]


def test_ranks_whose_nodes_have_counted_other_restarts_find_each_other(job: Job) -> None:
    """A node whose workers lived when another's died restarts them without counting it."""
    job.write(epochs=1)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            job.command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=job.environment | place | {"RANK": rank, "TORCHELASTIC_RESTART_COUNT": restarts},
        )
        for rank, restarts in (("0", "1"), ("1", "0"))
    ]
    try:
        told = [one.communicate(timeout=100)[0] for one in ranks]
    finally:
        for one in ranks:
            one.kill()

    assert [one.returncode for one in ranks] == [0, 0], told
    assert "succeeded: all 1 epochs are done" in told[0]
