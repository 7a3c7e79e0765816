"""Kills parts of a running job at drawn moments, and compares what comes out with an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from curvewatch_service.schemas import EpochView, EventView, RunView, SplitView
from curvewatch_workers.contract import RunLayout
from curvewatch_workers.testing import read_epochs
from ray_support import ServiceProcess, until

EPOCHS = 6
SAMPLES = 1436
"""Of the digits' train split."""
CODE = """
import os, time
from pathlib import Path
from digits import build as build_digits
from curvewatch_workers.task import TrainingTask
from torch.utils.data import Dataset

class Counted(Dataset):
    \"\"\"Takes its time, and leaves one byte for each sample that this process loads.\"\"\"
    def __init__(self, inner, folder):
        self.inner, self.path, self.file = inner, Path(folder) / "progress" / str(os.getpid()), None
        self.seconds = Path(folder) / "seconds"
    def __len__(self):
        return len(self.inner)
    def __getitem__(self, index):
        self.file = self.file or os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(self.file, b".")
        time.sleep(float(self.seconds.read_text()))
        return self.inner[index]

def build(folder):
    task = build_digits()
    return TrainingTask(
        model=task.model, train=Counted(task.train, folder), validation=task.validation, loss=task.loss,
        optimizer=task.optimizer, scheduler=task.scheduler, metrics=task.metrics,
    )
"""


class Part(StrEnum):
    """What is killed."""

    WORKER = "worker"
    CONTROLLER = "controller"
    DRIVER = "driver"

    @property
    def told_as(self) -> str:
        """Reason of the event by which a run tells that this part died."""
        return {"worker": "worker_restart", "controller": "controller_died", "driver": "driver_died"}[self]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When something is killed: a place in the run's progress, drawn from a seed."""

    part: Part
    seed: int

    @property
    def samples(self) -> int:
        """Train samples that the ranks have loaded together, out of all of the run's."""
        return random.Random(f"{self.part} {self.seed}").randrange(EPOCHS * SAMPLES)

    def victim(self, processes: list[int]) -> int:
        """Return the process that is killed."""
        return random.Random(f"{self.part} {self.seed} victim").choice(sorted(processes))


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that has ended, as the service shows it."""

    run: RunView
    epochs: list[EpochView]
    events: list[EventView]
    metrics: str
    """The service's `/metrics` just after its end."""
    kept: set[tuple[int, int]]
    """Epoch and attempt of each record in the store, replaced ones too."""
    spooled: set[tuple[int, int]]
    """The same of each record that an attempt spooled, those that it took from a checkpoint left out."""

    def value(self, series: str, **labels: str) -> float:
        """Return the value of one of the run's series."""
        (value,) = [
            sample.value
            for family in text_string_to_metric_families(self.metrics)
            for sample in family.samples
            if sample.name == series
            and labels.items() <= sample.labels.items()
            and sample.labels.get("run_id") == self.run.run_id
        ]
        return value

    def count(self, reason: str) -> int:
        """Return the number of events of this reason."""
        return sum(event.reason == reason for event in self.events)


class Range:
    """Runs the same job again and again on one service.

    Args:
        service: A service with a Ray of its own.
        digits: Folder of the digits example.
        folder: An empty folder for jobs.
    """

    def __init__(self, service: ServiceProcess, digits: Path, folder: Path) -> None:
        self._service = service
        self._digits = digits
        self._folder = folder

    def undisturbed(self) -> Finished:
        """Train the job with nothing in its way."""
        return self.finish(self.start("undisturbed"))

    def disturbed(self, moment: Moment) -> Finished:
        """Train the job, and kill a part of it when the moment has come."""
        name = f"{moment.part}-{moment.seed}"
        run_id = self.start(name)
        self.wait_for_samples(name, 0)
        victim = moment.victim(self._processes(f"{run_id}-1", moment.part))
        self.wait_for_samples(name, moment.samples)
        os.kill(victim, signal.SIGKILL)
        return self.finish(run_id)

    def start(self, name: str, *, seconds: float = 0.0005, **changes: object) -> str:
        """Submit the job under a name; return the run's id.

        Args:
            name: A name of its own.
            seconds: What each train sample takes at first.
            changes: Top-level sections of the job that differ.
        """
        job = self._job(name)
        self.set_pace(name, seconds)
        return self._service.submit(job, **changes)

    def set_pace(self, name: str, seconds: float) -> None:
        """Change what each train sample of a job takes."""
        told = self._folder / name / "seconds"
        draft = told.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(told)

    def wait_for_samples(self, name: str, samples: int) -> None:
        """Wait until the ranks of a job have loaded more train samples than that."""
        what = f"{name}: more than {samples} samples"
        until(lambda: self._loaded(name) > samples, what, seconds=240, pause=0.005)

    def wait_for_more_samples(self, name: str, samples: int) -> None:
        """Wait until the ranks of a job have loaded so many more train samples."""
        self.wait_for_samples(name, self._loaded(name) + samples)

    def _loaded(self, name: str) -> int:
        """Return the train samples that the ranks of a job have loaded so far, those of all attempts."""
        return sum(path.stat().st_size for path in (self._folder / name / "progress").iterdir())

    def wait_for_event(self, run_id: str, text: str, *, seconds: float) -> None:
        """Wait until a run tells something."""
        with self._service.client() as client:
            until(
                lambda: any(text in event.message for event in client.events(run_id)),
                f"{run_id} tells: {text}",
                seconds=seconds,
            )

    def _job(self, name: str) -> Path:
        folder = self._folder / name
        job, progress = folder / "job", folder / "progress"
        job.mkdir(parents=True)
        progress.mkdir()
        (job / "digits.py").write_text((self._digits / "digits.py").read_text())
        (job / "counted.py").write_text(CODE)
        (job / "job.yaml").write_text(
            f"name: {name}\ncode: {{task: 'counted:build'}}\nparams: {{folder: {folder}}}\n"
            f"training: {{epochs: {EPOCHS}, global_batch_size: 64}}\nscaling: {{workers: 2}}\n"
            "checkpoints: {every_epochs: 2, min_interval_seconds: 0}\ntrack: [tensorboard, csv]\n"
        )
        return job

    def _processes(self, submission_id: str, part: Part) -> list[int]:
        """Return the numbers of the processes that are this part of a job, as Ray knows them."""
        with self._ray() as ray:
            driver = ray.get(f"/api/jobs/{submission_id}").raise_for_status().json()["driver_info"]
            if part is Part.DRIVER:
                return [int(driver["pid"])]
            names = {Part.WORKER: "RayTrainWorker", Part.CONTROLLER: "TrainController"}
            wanted = {"job_id": driver["id"], "class_name": names[part], "state": "ALIVE"}
            filters: list[tuple[str, Any]] = [("detail", "1"), ("limit", "1000")]
            for key, value in wanted.items():
                filters += [("filter_keys", key), ("filter_predicates", "="), ("filter_values", value)]
            answer = ray.get("/api/v0/actors", params=filters).raise_for_status().json()
        return [int(actor["pid"]) for actor in answer["data"]["result"]["result"]]

    @contextmanager
    def _ray(self) -> Iterator[httpx.Client]:
        endpoint = self._service.head().endpoint
        with httpx.Client(base_url=endpoint.url, headers=endpoint.headers(), trust_env=False) as client:
            yield client

    def finish(self, run_id: str) -> Finished:
        """Wait for a run's end; return all that the service shows of it."""
        run = self._service.wait_for_end(run_id)
        with self._service.client() as client:
            epochs, events, metrics = client.epochs(run_id), client.events(run_id), client.metrics_text()
        spool = RunLayout(self._service.data_dir / "runs", run_id).spool
        records = [record for path in spool.glob("attempt-*.jsonl") for record in read_epochs(path)]
        return Finished(
            run=run,
            epochs=epochs,
            events=events,
            metrics=metrics,
            kept=self._kept(run_id),
            spooled={(record.epoch, record.attempt) for record in records},
        )

    def _kept(self, run_id: str) -> set[tuple[int, int]]:
        address = f"file:{self._service.data_dir / 'curvewatch.db'}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as database:
            query = "SELECT epoch, attempt FROM epochs WHERE run_id = ?"
            return set(database.execute(query, [run_id]))


def require_same_curve(undisturbed: Finished, disturbed: Finished) -> float:
    """Check that a run has the curve of another, up to its own last epoch, each epoch once.

    Returns:
        The largest relative difference of a loss.
    """
    run = disturbed.run
    assert run.state == "SUCCEEDED", f"{run.reason}\n{run.traceback}"
    epochs = run.spec.training.epochs
    assert [epoch.epoch for epoch in disturbed.epochs] == list(range(1, epochs + 1))
    differences = [0.0]
    for one, other in zip(undisturbed.epochs[:epochs], disturbed.epochs, strict=True):
        differences += [
            _require_same(one.train, other.train),
            _require_same(one.validation, other.validation),
        ]
    visible = {(epoch.epoch, epoch.attempt) for epoch in disturbed.epochs}
    assert disturbed.spooled == disturbed.kept, "what an attempt has told is kept, replaced or not"
    for epoch, attempt in visible:
        assert attempt == max(other for number, other in disturbed.kept if number == epoch)
    assert disturbed.count("resume_not_faithful") == 0
    return max(differences)


def _require_same(one: SplitView, other: SplitView) -> float:
    assert one.loss is not None
    assert other.loss is not None
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    # Right answers over samples: equal ratios of equal counts are equal whole numbers.
    assert other.metrics == one.metrics
    assert other.receipt.model_copy(update={"ranks": one.receipt.ranks}) == one.receipt
    assert other.receipt.exact
    return abs(other.loss - one.loss) / abs(one.loss)
