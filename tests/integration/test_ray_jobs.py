"""Ray's real Jobs API, as the service uses it."""

from __future__ import annotations

import contextlib
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from curvewatch_service.cluster import JobState, JobStatus, RayCluster
from curvewatch_service.errors import ClusterUnavailableError
from curvewatch_service.planning import WORKERS_PACKAGE, JobRequest
from curvewatch_service.ray_head import HeadState
from ray_support import ServiceProcess, until

PROGRAM = """
import os, pathlib
import curvewatch_workers
print("data:", pathlib.Path("data.txt").read_text())
print("shipped:", "runtime_resources" in curvewatch_workers.__file__)
print("environment:", dict(os.environ))
print("started once")
"""
INTERRUPTED = """
import time
print("ready", flush=True)
try:
    time.sleep(300)
except KeyboardInterrupt:
    print("wrote a checkpoint", flush=True)
"""


@pytest.fixture
def head(service: ServiceProcess) -> HeadState:
    return HeadState.model_validate_json((service.data_dir / "embedded.json").read_bytes())


@pytest.fixture
def cluster(head: HeadState) -> Iterator[RayCluster]:
    with contextlib.closing(RayCluster(lambda: head.endpoint)) as opened:
        yield opened


def _request(name: str, program: str, folder: Path) -> JobRequest:
    """A job of one file beside data that the folder's .gitignore names."""
    bundle = folder / f"{name}.zip"
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr("program.py", program)
        archive.writestr("data.txt", "42")
        archive.writestr(".gitignore", "data.txt\n")
    return JobRequest(
        submission_id=f"{name}-{time.time_ns()}",
        entrypoint=f"{sys.executable} program.py",
        runtime_env={"working_dir": str(bundle), "py_modules": [str(WORKERS_PACKAGE)]},
    )


def _end_of(cluster: RayCluster, request: JobRequest) -> JobState:
    def ended() -> JobState | None:
        job = cluster.status(request.submission_id)
        return job if job is not None and job.state.ended else None

    return until(ended, f"the end of {request.submission_id}", seconds=90)


def test_a_job_runs_once_with_all_its_code_and_no_secret(
    cluster: RayCluster, head: HeadState, tmp_path: Path
) -> None:
    request = _request("once", PROGRAM, tmp_path)
    assert cluster.status(request.submission_id) is None
    cluster.submit(request)
    cluster.submit(request)
    assert _end_of(cluster, request).state is JobStatus.SUCCEEDED
    log = cluster.logs(request.submission_id)
    assert log.count("started once") == 1
    assert "data: 42" in log, "files that a .gitignore names travel too"
    assert "shipped: True" in log
    environment = log.partition("environment:")[2]
    assert head.token_path.read_text() not in environment
    assert "CURVEWATCH_PROFILE" not in environment


def test_a_stop_is_an_interrupt_that_the_job_can_answer(cluster: RayCluster, tmp_path: Path) -> None:
    request = _request("stops", INTERRUPTED, tmp_path)
    cluster.submit(request)
    until(lambda: "ready" in cluster.logs(request.submission_id), "the job is ready", seconds=90)
    cluster.stop(request.submission_id)
    assert _end_of(cluster, request).state is JobStatus.STOPPED
    assert "wrote a checkpoint" in cluster.logs(request.submission_id)
    cluster.stop(request.submission_id)  # ended already: nothing happens


def test_a_failed_job_brings_its_exit_code_and_last_words(cluster: RayCluster, tmp_path: Path) -> None:
    request = _request("fails", "raise SystemExit('out of luck')", tmp_path)
    cluster.submit(request)
    job = _end_of(cluster, request)
    assert job.state is JobStatus.FAILED
    assert "exit code 1" in job.message
    assert "out of luck" in job.message


def test_another_token_is_refused_with_the_remedy(head: HeadState, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    endpoint = head.model_copy(update={"token_path": wrong}).endpoint
    with (
        contextlib.closing(RayCluster(lambda: endpoint)) as stranger,
        pytest.raises(ClusterUnavailableError, match="CURVEWATCH_RAY_TOKEN_PATH"),
    ):
        stranger.resources()
