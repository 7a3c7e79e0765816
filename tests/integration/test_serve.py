"""The service as a process: alone in its folder, orderly in its end, a guest on a foreign cluster."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from curvewatch_service import processes
from curvewatch_service.auth import TokenStore
from curvewatch_service.ray_head import MARK, HeadState
from curvewatch_service.runs import RunState
from curvewatch_service.store import Store
from ray_support import ServiceProcess, free_port, until

SLOW_TASK = """
import time
import torch
from curvewatch_workers.task import TrainingTask

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 100000
    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.zeros(2), torch.zeros(1)

def build():
    model = torch.nn.Linear(2, 1)
    return TrainingTask(
        model=model, train=Slow(), validation=Slow(), loss=torch.nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )
"""
SLOW_JOB = """
name: slow
code: {task: "slow:build"}
training: {epochs: 3, global_batch_size: 10}
"""


@pytest.fixture
def hasty_service(tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service that does not wait long for its runs."""
    started = ServiceProcess(tmp_path, shutdown_grace_seconds="1")
    try:
        yield started
    finally:
        started.destroy()


@pytest.fixture
def guest(service: ServiceProcess, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A second service, on the cluster of the session's."""
    head = HeadState.model_validate_json((service.data_dir / "embedded.json").read_bytes())
    started = ServiceProcess(
        tmp_path, ray_address=head.endpoint.url, ray_token_path=str(head.token_path), cluster_name="lent"
    )
    try:
        yield started
    finally:
        started.destroy()


def _serve(port: int, data_dir: Path, profile: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "curvewatch_service.cli", "serve"]
    return subprocess.run(
        [*command, "--port", str(port), "--data-dir", str(data_dir)],
        env={**os.environ, "CURVEWATCH_PROFILE": str(profile)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_service_in_the_same_folder_is_refused(service: ServiceProcess, tmp_path: Path) -> None:
    second = _serve(free_port(), service.data_dir, tmp_path / "profile.json")
    assert second.returncode == 2
    assert str(service.data_dir) in second.stderr
    assert "--data-dir" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_port_is_refused_before_anything_is_started(service: ServiceProcess, tmp_path: Path) -> None:
    second = _serve(service.port, tmp_path / "data", tmp_path / "profile.json")
    assert second.returncode == 2
    assert f"port {service.port}" in second.stderr
    assert "--port" in second.stderr
    assert "Traceback" not in second.stderr
    assert not (tmp_path / "data" / "embedded.json").exists()
    assert not (tmp_path / "profile.json").exists()


def test_the_first_start_writes_a_profile_and_later_ones_leave_it(hasty_service: ServiceProcess) -> None:
    hasty_service.profile_path.write_text('{"server": "http://elsewhere:1", "token": "cw_precious"}')
    hasty_service.start()
    assert stat.S_IMODE(hasty_service.profile_path.stat().st_mode) == 0o600
    token = hasty_service.token
    assert token != "cw_precious"
    assert "cw_precious" in hasty_service.profile_path.with_name("profile.json.previous").read_text()
    # Ray is still starting: the end must not wait for it, and leave nothing of it.
    state = until(lambda: _head(hasty_service), "Ray is being started", seconds=30)
    begin = time.monotonic()
    assert hasty_service.terminate() == 0
    assert time.monotonic() - begin < 20
    assert processes.family(state.pid, state.started, (MARK, state.mark)) == []
    hasty_service.start()
    assert hasty_service.token == token
    assert hasty_service.terminate() == 0
    database = (hasty_service.data_dir / "curvewatch.db").read_bytes()
    assert token.encode() not in database
    assert token not in hasty_service.log()


def test_a_profile_that_cannot_be_written_costs_no_token(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused = _serve(free_port(), tmp_path / "data", tmp_path / "file" / "profile.json")
    assert refused.returncode == 2
    assert "profile.json" in refused.stderr
    assert "Traceback" not in refused.stderr
    with closing(Store(f"sqlite:///{tmp_path / 'data' / 'curvewatch.db'}")) as store:
        assert TokenStore(store).empty


def _head(service: ServiceProcess) -> HeadState | None:
    path = service.data_dir / "embedded.json"
    return HeadState.model_validate_json(path.read_bytes()) if path.exists() else None


def test_a_run_that_cannot_pause_does_not_hold_up_the_end(
    hasty_service: ServiceProcess, tmp_path: Path
) -> None:
    """Its epoch takes a quarter of an hour; the service waits its grace, then ends the job."""
    job = tmp_path / "job"
    job.mkdir()
    (job / "slow.py").write_text(SLOW_TASK)
    (job / "job.yaml").write_text(SLOW_JOB)
    hasty_service.start()
    run_id = hasty_service.submit(job)
    with hasty_service.client() as client:
        until(lambda: client.run(run_id).state == "RUNNING", "the run trains", seconds=240)
    assert hasty_service.terminate() == 0
    with closing(Store(f"sqlite:///{hasty_service.data_dir / 'curvewatch.db'}")) as store:
        assert store.run(run_id).state is RunState.QUEUED
        reasons = [event.reason for event in store.events(run_id)]
        assert reasons[-3:] == ["job_stop_requested", "state_queued", "run_paused"]
    assert not (hasty_service.data_dir / "embedded.json").exists()


@pytest.mark.long
def test_a_guest_leaves_the_cluster_and_its_run_alone(
    guest: ServiceProcess, service: ServiceProcess, project_root: Path
) -> None:
    guest.start_with_ray()
    assert not (guest.data_dir / "embedded.json").exists()
    run_id = guest.submit(
        project_root / "examples" / "digits", training={"epochs": 40}, scaling={"workers": 1}
    )
    guest.wait_for_epoch(run_id, 1)
    assert guest.terminate() == 0
    guest.start()
    run = guest.wait_for_end(run_id)
    assert (run.state, run.attempt) == ("SUCCEEDED", 1)
    with guest.client() as client:
        assert [epoch.epoch for epoch in client.epochs(run_id)] == list(range(1, 41))
        assert 'cluster="lent"' in client.metrics_text()
    with service.client() as client:
        assert client.health().cluster == "ok"
