"""All trackers on a small job under torchrun, with a failure after its checkpoint: each shows what the records say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from curvewatch_workers.contract import EpochRecord, RunLayout, WorkerJob, read_job_spec
from curvewatch_workers.testing import read_epochs
from tracker_support import OTHERS_WARNINGS, TRACKERS, plain_environment, read_curve, same

pytestmark = [OTHERS_WARNINGS, pytest.mark.long]

JOB = """
name: tracked
code: {task: tracked:build}
params: {lr: 0.2}
training: {epochs: 5, global_batch_size: 16}
checkpoints: {every_epochs: 2, min_interval_seconds: 0}
track: [tensorboard, wandb, mlflow, csv, jsonl]
"""
USERS_FILE = """
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import TensorDataset
from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import TrainingTask

class FailsInTheFourthEpoch(TensorDataset):
    passes = 0
    def __getitem__(self, index):
        self.passes += index == 0
        marker = Path(__file__).with_name("failed")
        if self.passes == 4 and not marker.exists():
            marker.touch()
            raise OSError("the disk went away")
        return super().__getitem__(index)

def build(lr):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(40, 4, generator=generator)
    data = inputs, (inputs[:, 0] > 0).long()
    model = nn.Linear(4, 2)
    return TrainingTask(
        model=model, train=FailsInTheFourthEpoch(*data), validation=TensorDataset(*data),
        loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        metrics={"accuracy": Accuracy()},
    )
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> WorkerJob:
    """Train on one rank until the failure, then on two to the end, from the checkpoint of epoch 2."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "tracked.py").write_text(USERS_FILE)
    (folder / "job.yaml").write_text(JOB)
    output = folder / "out"
    arguments = ["curvewatch_workers.torchrun", str(folder), "--output", str(output), "--device", "cpu"]
    two_ranks = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    first, second = (
        subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
            cwd=folder,
            env=plain_environment(tmp_path_factory.getbasetemp()),
        )
        for command in (arguments, [*two_ranks, *arguments, "--resume"])
    )
    assert "the disk went away" in first.stderr
    assert (second.returncode, second.stdout.count("epoch ")) == (0, 3), second.stdout + second.stderr
    return WorkerJob(
        run_id="tracked",
        submission=2,
        spec=read_job_spec(folder),
        storage_path=str(output),
        service_url=None,
    )


def latest(job: WorkerJob) -> dict[int, EpochRecord]:
    """Return the record of the highest attempt of each epoch, from the spool."""
    spools = sorted(RunLayout(job.storage_path, job.run_id).spool.glob("attempt-*.jsonl"))
    assert len(spools) == 2
    records = [record for spool in spools for record in read_epochs(spool)]
    return {record.epoch: record for record in sorted(records, key=lambda record: record.attempt)}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_each_tracker_shows_what_the_records_say(tracker: str, job: WorkerJob) -> None:
    records = latest(job)

    curve = read_curve(tracker, job)

    assert [epoch for epoch, _ in curve] == [1, 2, 3, 4, 5]
    assert [values["attempt"] for _, values in curve] == [1, 1, 2, 2, 2]
    assert [values["world_size"] for _, values in curve] == [1, 1, 2, 2, 2]
    for epoch, values in curve:
        record = records[epoch]
        assert same(values["train/loss"], record.train.loss)
        assert same(values["validation/loss"], record.validation.loss)
        assert same(values["validation/accuracy"], record.validation.metrics["accuracy"].value)
        assert same(values["seconds"], record.duration_seconds)


def test_no_tracker_failed_and_none_left_files_elsewhere(job: WorkerJob) -> None:
    root = RunLayout(job.storage_path, job.run_id)

    assert not any("tracker_failed" in spool.read_text() for spool in root.spool.iterdir())
    assert {path.name for path in root.tracking.iterdir()} == {
        "key",
        "job.json",
        "epochs.csv",
        "epochs.jsonl",
        "tensorboard",
        "wandb",
        "mlflow",
    }
    working_folder = Path(job.storage_path).parent
    assert {path.name for path in working_folder.iterdir()} - {"__pycache__"} == {
        "tracked.py",
        "job.yaml",
        "failed",
        "out",
    }
