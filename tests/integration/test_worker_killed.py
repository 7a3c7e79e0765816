"""A training worker dies: the group starts again from the checkpoint, and no epoch is lost or counted twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from curvewatch_workers.contract import RunLayout
from ray_support import ServiceProcess, until
from tracker_support import read_tracking

CODE = """
import os, time
from pathlib import Path
from digits import build as build_digits
from curvewatch_workers.task import TrainingTask
from torch.utils.data import Dataset

class Slow(Dataset):
    \"\"\"Says which process loads, and gives the test time to kill it.\"\"\"
    def __init__(self, inner, folder):
        self.inner, self.folder = inner, Path(folder)
    def __len__(self):
        return len(self.inner)
    def __getitem__(self, index):
        (self.folder / str(os.getpid())).touch()
        time.sleep(0.0005)
        return self.inner[index]

def build(folder):
    task = build_digits()
    return TrainingTask(
        model=task.model, train=Slow(task.train, folder), validation=task.validation, loss=task.loss,
        optimizer=task.optimizer, scheduler=task.scheduler, metrics=task.metrics,
    )
"""


@pytest.fixture
def make_job(project_root: Path, tmp_path: Path) -> Callable[[], tuple[Path, Path]]:
    """Return a maker of (job folder, folder in which its workers leave their process numbers)."""

    def make() -> tuple[Path, Path]:
        job, pids = tmp_path / "job", tmp_path / "pids"
        job.mkdir()
        pids.mkdir()
        (job / "digits.py").write_text((project_root / "examples" / "digits" / "digits.py").read_text())
        (job / "slow.py").write_text(CODE)
        (job / "job.yaml").write_text(
            f"name: slow\ncode: {{task: 'slow:build'}}\nparams: {{folder: {pids}}}\n"
            "training: {epochs: 15, global_batch_size: 64}\nscaling: {workers: 2}\n"
            "checkpoints: {min_interval_seconds: 0.5}\ntrack: [tensorboard, wandb, csv]\n"
        )
        return job, pids

    return make


def test_a_killed_worker_costs_no_epoch_and_counts_none_twice(
    service: ServiceProcess, make_job: Callable[[], tuple[Path, Path]]
) -> None:
    job, pids = make_job()
    run_id = service.submit(job)
    service.wait_for_epoch(run_id, 5)
    victim = until(lambda: next((int(path.name) for path in pids.iterdir()), None), "a worker", seconds=10)

    os.kill(victim, signal.SIGKILL)

    run = service.wait_for_end(run_id)
    with service.client() as client:
        epochs = client.epochs(run_id)
        events = [event.reason for event in client.events(run_id)]
        metrics = client.metrics_text()
    assert run.state == "SUCCEEDED", run.reason
    assert run.attempt == 2
    assert events.count("worker_restart") == 1
    assert [epoch.epoch for epoch in epochs] == list(range(1, 16))
    assert {epoch.attempt for epoch in epochs} == {1, 2}
    assert all(epoch.train.receipt.exact and epoch.validation.receipt.exact for epoch in epochs)
    tracking = RunLayout(service.data_dir / "runs", run_id).tracking
    for tracker in ("tensorboard", "wandb", "csv"):
        shown = [(epoch, values["attempt"]) for epoch, values in read_tracking(tracker, tracking)]
        assert shown == [(epoch.epoch, epoch.attempt) for epoch in epochs], tracker
    assert "tracker_failed" not in events
    labels = f'{{run="slow",run_id="{run_id}"}}'
    assert f"curvewatch_samples_total{labels} {1436.0 * 15}" in metrics
    assert f"curvewatch_worker_restarts_total{labels} 1.0" in metrics
