"""Ray Train's checkpoints on a storage of its own that is slow: ranked by a metric, and damaged between two starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from curvewatch_workers.checkpoint import Snapshot
from curvewatch_workers.contract import (
    AttemptStarted,
    EpochFinished,
    IngestMessage,
    JobSpec,
    Outcome,
    RunFinished,
    WorkerEvent,
    WorkerJob,
)
from curvewatch_workers.ranking import Best

pytestmark = pytest.mark.long

MESSAGE: TypeAdapter[IngestMessage] = TypeAdapter(IngestMessage)
UPLOAD_SECONDS = 3.0

JOB = """
import time
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import TrainingTask

class Slow(Dataset):
    def __init__(self, inner, seconds):
        self.inner, self.seconds = inner, seconds
    def __len__(self):
        return len(self.inner)
    def __getitem__(self, index):
        time.sleep(self.seconds)
        return self.inner[index]

def build(seconds, blow_up_after=10**6):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(40, 4, generator=generator)
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    schedule = lambda epoch: 1e5 if epoch >= blow_up_after else 1.0
    return TrainingTask(
        model=model, train=Slow(data, seconds), validation=data, loss=nn.CrossEntropyLoss(),
        optimizer=optimizer, scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, schedule),
        metrics={"accuracy": Accuracy()},
    )
"""

# A storage of its own scheme, which is no mounted disk to Ray, and whose every model takes seconds to write.
STORAGE = f"""
import time
from fsspec.implementations.local import LocalFileSystem

class SlowDisk(LocalFileSystem):
    protocol = "slow"
    def open(self, path, mode="rb", **options):
        if "w" in mode and path.endswith("model.pt"):
            time.sleep({UPLOAD_SECONDS})
        return super().open(path, mode, **options)
"""

PROGRAM = """
import os, sys
import fsspec, ray
from curvewatch_workers.contract import WorkerJob
from curvewatch_workers.entrypoint import fit

fsspec.register_implementation("slow", "slow_disk.SlowDisk")
ray.init(num_cpus=4, include_dashboard=False, _temp_dir=os.environ["RAY_FOLDER"])
for line in sys.stdin:
    print("FINISHED", fit(WorkerJob.model_validate_json(line)).model_dump_json(), flush=True)
ray.shutdown()
"""


class Fitting:
    """The program on a Ray of its own: it fits the jobs that it is sent, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        (folder / "slow_job.py").write_text(JOB)
        (folder / "slow_disk.py").write_text(STORAGE)
        # A socket's path may have 107 characters: Ray's own folder must lie near the root.
        self._ray_folder = Path(tempfile.mkdtemp(prefix="cw-", dir="/tmp"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(folder),
            "RAY_FOLDER": str(self._ray_folder),
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
            "TMPDIR": str(self.temporary),
        }
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def fit(
        self,
        submission: int,
        *,
        run_id: str = "one",
        epochs: int = 4,
        params: dict[str, Any] | None = None,
        policy: dict[str, Any] | None = None,
        **checkpoints: Any,
    ) -> RunFinished:
        spec = {
            "name": "toy",
            "code": {"task": "slow_job:build"},
            "params": params or {"seconds": 0.01},
            "policy": policy or {},
            "training": {"epochs": epochs, "global_batch_size": 8},
            "scaling": {"workers": 2},
            "checkpoints": {"best": {"metric": "accuracy", "mode": "max"}, **checkpoints},
            "fault_tolerance": {"max_restarts": 0},
        }
        job = WorkerJob(
            run_id=run_id,
            submission=submission,
            spec=JobSpec.model_validate(spec),
            storage_path=str(self.folder / "runs"),
            service_url=None,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(job.model_dump_json() + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("FINISHED "):
                return RunFinished.model_validate_json(line.removeprefix("FINISHED "))
        raise AssertionError((self.folder / "log").read_text()[-6000:])

    def close(self) -> None:
        with self.process, self._log:
            assert self.process.stdin is not None
            self.process.stdin.close()
            assert self.process.wait(60) == 0
        shutil.rmtree(self._ray_folder)

    def messages(self, attempt: int, run_id: str = "one") -> list[IngestMessage]:
        (spool,) = (self.folder / "runs" / run_id / "spool").glob(f"attempt-{attempt:06d}.jsonl")
        return [MESSAGE.validate_json(line) for line in spool.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fitting]:
    program = Fitting(tmp_path_factory.mktemp("fitting"))
    yield program
    program.close()


@pytest.fixture(scope="module")
def place(fitting: Fitting) -> str:
    return f"slow://{fitting.folder}/kept"


@pytest.fixture(scope="module")
def first(fitting: Fitting, place: str) -> RunFinished:
    return fitting.fit(1, epochs=24, path=place, keep=2, min_interval_seconds=1)


@pytest.fixture(scope="module")
def second(fitting: Fitting, place: str, first: RunFinished) -> RunFinished:
    """Go on for two epochs more, after the latest checkpoint was cut."""
    model = local(first.checkpoint) / "model.pt"
    model.write_bytes(model.read_bytes()[:100])
    return fitting.fit(2, epochs=26, path=place, keep=2, min_interval_seconds=1)


def local(address: str | None) -> Path:
    assert address is not None
    return Path(address.removeprefix("slow://"))


def test_no_epoch_waits_for_an_upload(fitting: Fitting, first: RunFinished) -> None:
    records = [message.record for message in fitting.messages(1) if isinstance(message, EpochFinished)]
    spans = [(before.finished_at, after.started_at) for before, after in pairwise(records)]
    longest = max((start - end).total_seconds() for end, start in spans)
    lasted = (records[-1].finished_at - records[0].started_at).total_seconds()

    assert first.outcome is Outcome.SUCCEEDED, first.reason
    assert len(records) == 24
    # Three uploads or more, of which all but the last lie in between.
    assert lasted > UPLOAD_SECONDS
    assert longest < UPLOAD_SECONDS / 3, spans


def test_the_best_is_that_of_the_metric_and_has_an_address(place: str, first: RunFinished) -> None:
    latest, best = (Snapshot.read(local(one)) for one in (first.checkpoint, first.best_checkpoint))

    assert str(first.checkpoint).startswith(f"{place}/one/checkpoint_")
    assert latest.epoch == 24
    accuracies = [record.validation.metrics["accuracy"].value for record in latest.records]
    assert latest.best == Best(max(accuracies), 1 + accuracies.index(max(accuracies)))
    assert accuracies[best.epoch - 1] == max(accuracies)
    assert accuracies[0] < max(accuracies)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(fitting: Fitting, second: RunFinished) -> None:
    messages = fitting.messages(2)
    events = [message for message in messages if isinstance(message, WorkerEvent)]
    (start,) = (message for message in messages if isinstance(message, AttemptStarted))

    assert second.outcome is Outcome.SUCCEEDED, second.reason
    assert [event.reason for event in events] == ["checkpoint_unreadable"]
    assert "model.pt is not what was written" in events[0].message
    assert 0 < start.resumed_after_epoch < 24
    final = Snapshot.read(local(second.checkpoint))
    assert (final.epoch, final.attempt) == (26, 2)
    assert [record.epoch for record in final.records] == list(range(1, 27))


def test_no_draft_is_left(fitting: Fitting, second: RunFinished) -> None:
    assert second.outcome is Outcome.SUCCEEDED
    assert not list(fitting.temporary.glob("curvewatch-*"))


def test_a_rescue_goes_back_to_what_ray_has_kept(fitting: Fitting, place: str) -> None:
    finished = fitting.fit(
        1,
        run_id="rescued",
        epochs=14,
        # Long enough for uploads: what is not there yet cannot be gone back to.
        params={"seconds": 0.02, "blow_up_after": 6},
        policy={"diverging": "rescue", "learning_rate_factor": 1e-5},
        path=place,
        best={"metric": "loss", "mode": "min"},
        min_interval_seconds=0,
    )
    messages = fitting.messages(1, "rescued")
    records = [message.record for message in messages if isinstance(message, EpochFinished)]
    events = [message.reason for message in messages if isinstance(message, WorkerEvent)]
    back_to = [record.rolled_back_to for record in records if record.rolled_back_to is not None]

    assert finished.outcome is Outcome.SUCCEEDED, finished.reason
    assert events == ["policy_rescue", "rolled_back"]
    assert len(back_to) == 1
    assert 0 < back_to[0] <= 6
    losses = [record.validation.loss for record in records]
    assert max(losses) > 10 * losses[0]
    assert losses[-1] < losses[5]
    assert len(records) == 14


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (
            "s4://bucket/x",
            "checkpoints.path is 's4://bucket/x', which cannot be opened: Protocol not known: s4",
        ),
        ("/proc/no/such", "checkpoints.path is '/proc/no/such', where no folder can be made"),
        ("local:///proc/no/such", "checkpoints.path is 'local:///proc/no/such', where no folder can be made"),
    ],
)
def test_a_storage_that_cannot_be_used_is_told_in_a_sentence(
    fitting: Fitting, path: str, reason: str
) -> None:
    finished = fitting.fit(1, run_id="two", path=path)

    assert finished.outcome is Outcome.FAILED
    assert "\n" not in finished.reason
    assert reason in finished.reason
    assert finished.traceback is None
