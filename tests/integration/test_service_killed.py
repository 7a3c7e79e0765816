"""The service dies or ends in the middle of a run and starts again: nothing is lost, nothing is twice."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from curvewatch_service.schemas import EpochView, RunView
from curvewatch_workers.contract import RunLayout
from ray_support import RUN_SECONDS, ServiceProcess, until

EPOCHS = 60


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service of these tests' own: they kill it."""
    started = ServiceProcess(tmp_path_factory.mktemp("killed"))
    try:
        yield started
    finally:
        started.destroy()


def _begin_run(service: ServiceProcess, project_root: Path, *, workers: int) -> str:
    """Start the service unless it runs, submit digits, and wait until it is in the middle of its epochs."""
    if service.process is None or service.process.poll() is not None:
        service.start()
    run_id = service.submit(
        project_root / "examples" / "digits", training={"epochs": EPOCHS}, scaling={"workers": workers}
    )
    service.wait_for_epoch(run_id, 2)
    return run_id


def _spooled_epochs(service: ServiceProcess, run_id: str) -> int:
    spool = RunLayout(service.data_dir / "runs", run_id).spool
    return sum(path.read_text().count('"kind":"epoch"') for path in spool.glob("*.jsonl"))


def _finish(service: ServiceProcess, run_id: str) -> tuple[RunView, list[EpochView], str]:
    run = service.wait_for_end(run_id)
    with service.client() as client:
        assert run.state == "SUCCEEDED", f"{run.reason}\n{client.logs(run_id)[-4000:]}"
        return run, client.epochs(run_id), client.metrics_text()


def _require_every_epoch_once(run: RunView, epochs: list[EpochView], metrics: str) -> None:
    assert [epoch.epoch for epoch in epochs] == list(range(1, EPOCHS + 1))
    for epoch in epochs:
        assert epoch.train.receipt.exact
        assert epoch.validation.receipt.exact
        assert epoch.world_size == run.spec.scaling.workers
    samples = epochs[0].train.receipt.samples_expected
    assert f'curvewatch_samples_total{{run="digits",run_id="{run.run_id}"}} {EPOCHS * samples}.0' in metrics


def test_a_killed_service_finds_its_run_again(own_service: ServiceProcess, project_root: Path) -> None:
    run_id = _begin_run(own_service, project_root, workers=2)
    own_service.kill()
    told = _spooled_epochs(own_service, run_id)
    assert told < EPOCHS, "the run was over before the service was killed: this tests nothing"
    # Without a service the training goes on: these epochs reach it through the spool only.
    until(lambda: _spooled_epochs(own_service, run_id) >= told + 2, "the run goes on", seconds=60)
    own_service.start()
    run, epochs, metrics = _finish(own_service, run_id)
    _require_every_epoch_once(run, epochs, metrics)
    assert run.attempt == 1, "the run was not disturbed"
    assert run.submission_id == f"{run_id}-1"
    assert f'curvewatch_worker_restarts_total{{run="digits",run_id="{run_id}"}} 0.0' in metrics
    assert "Found the Ray head of an earlier start" in own_service.log()


@pytest.mark.long
def test_a_service_that_is_away_for_the_whole_run_takes_it_from_the_spool(
    own_service: ServiceProcess, project_root: Path
) -> None:
    if own_service.process is None or own_service.process.poll() is not None:
        own_service.start()
    run_id = own_service.submit(project_root / "examples" / "digits", scaling={"workers": 1})
    taken = f"Ray took job {run_id}-1"
    until(lambda: taken in own_service.log(), "the job is given to Ray", seconds=60, pause=0.02)
    own_service.kill()
    spool = RunLayout(own_service.data_dir / "runs", run_id).spool
    until(
        lambda: any('"kind":"finished"' in path.read_text() for path in spool.glob("driver-*.jsonl")),
        "the training ends",
        seconds=RUN_SECONDS,
    )
    own_service.start()
    run = own_service.wait_for_end(run_id)
    with own_service.client() as client:
        epochs = client.epochs(run_id)
    assert run.state == "SUCCEEDED", run.reason
    assert [epoch.epoch for epoch in epochs] == list(range(1, 16))
    assert run.attempt == 1
    assert run.checkpoint is not None


@pytest.mark.long
def test_an_orderly_stop_pauses_the_run_and_the_next_start_resumes_it(
    own_service: ServiceProcess, project_root: Path
) -> None:
    run_id = _begin_run(own_service, project_root, workers=1)
    assert own_service.terminate() == 0
    told = _spooled_epochs(own_service, run_id)
    assert told < EPOCHS, "the run was over before the service was stopped: this tests nothing"
    assert not (own_service.data_dir / "embedded.json").exists(), "its Ray has ended with it"
    own_service.start()
    run, epochs, metrics = _finish(own_service, run_id)
    _require_every_epoch_once(run, epochs, metrics)
    assert run.attempt == 2
    assert run.submission_id == f"{run_id}-2"
    assert f'curvewatch_worker_restarts_total{{run="digits",run_id="{run_id}"}} 1.0' in metrics
    with own_service.client() as client:
        reasons = [event.reason for event in client.events(run_id)]
    assert reasons.index("run_paused") < reasons.index("worker_restart")
    # It went on from the checkpoint of its pause: nothing was trained twice.
    assert [epoch.attempt for epoch in epochs] == [1] * told + [2] * (EPOCHS - told)


@pytest.mark.long
def test_a_run_outlives_the_death_of_its_ray(own_service: ServiceProcess, project_root: Path) -> None:
    run_id = _begin_run(own_service, project_root, workers=1)
    head = json.loads((own_service.data_dir / "embedded.json").read_text())["pid"]
    os.kill(head, signal.SIGKILL)
    run, epochs, metrics = _finish(own_service, run_id)
    _require_every_epoch_once(run, epochs, metrics)
    assert run.attempt == 2
    assert run.submission_id == f"{run_id}-2"
    with own_service.client() as client:
        assert "cluster_lost_job" in [event.reason for event in client.events(run_id)]
