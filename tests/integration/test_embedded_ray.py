"""The Ray head of the service's own: found again, replaced when dead, several side by side, gone when stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curvewatch_service import processes, ray_head
from curvewatch_service.cluster import JobStatus, RayCluster
from curvewatch_service.embedded import EmbeddedRay
from curvewatch_service.errors import ClusterUnavailableError
from curvewatch_service.planning import JobRequest
from ray_support import until
from stack_support import call


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    folder.mkdir()
    yield folder
    EmbeddedRay(folder).stop(seconds=2)


def _state(data_dir: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((data_dir / "embedded.json").read_text())
    return state


def _family(state: dict[str, Any]) -> list[Any]:
    return processes.family(state["pid"], state["started"], (ray_head.MARK, state["mark"]))


def _state_of(cluster: RayCluster, submission_id: str) -> JobStatus | None:
    job = cluster.status(submission_id)
    return job.state if job else None


def _listening_addresses(pids: set[int]) -> set[str]:
    """Return the addresses on which processes listen, from what Linux tells of their sockets."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(descriptor.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                raw = bytes.fromhex(fields[1].split(":")[0])
                words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                family = socket.AF_INET if len(words) == 4 else socket.AF_INET6
                addresses.add(socket.inet_ntop(family, words))
    return addresses


@pytest.fixture
def closing() -> Iterator[Callable[[RayCluster], RayCluster]]:
    """Takes clusters whose connections are given back when the test is over."""
    with contextlib.ExitStack() as stack:

        def close_later(cluster: RayCluster) -> RayCluster:
            stack.callback(cluster.close)
            return cluster

        yield close_later


def test_a_head_is_found_again_replaced_when_it_died_and_gone_when_stopped(
    data_dir: Path, closing: Callable[[RayCluster], RayCluster]
) -> None:
    first = EmbeddedRay(data_dir)
    endpoint = first.start()
    state = _state(data_dir)
    assert stat.S_IMODE((data_dir / "embedded.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((data_dir / "ray-token").stat().st_mode) == 0o600
    # pytest's folders are too deep for Ray's sockets.
    assert not Path(state["temp_dir"]).is_relative_to(data_dir)
    cluster = closing(RayCluster(first.endpoint))
    assert cluster.resources().cpus == max(4, os.cpu_count() or 1)
    if sys.platform == "linux":
        pids = {process.pid for process in _family(state)}
        assert _listening_addresses(pids) <= {"127.0.0.1", "::ffff:127.0.0.1"}

    # A job's driver has a session of its own, and must be found nevertheless.
    cluster.submit(JobRequest(submission_id="sleeps", entrypoint="sleep 300"))
    until(lambda: _state_of(cluster, "sleeps") is JobStatus.RUNNING, "the job runs", seconds=60)

    # What a service does that was killed and started again: it knows nothing but the folder.
    second = EmbeddedRay(data_dir)
    assert second.start() == endpoint
    assert _state(data_dir)["pid"] == state["pid"]
    assert second.alive()

    members = _family(state)
    os.kill(state["pid"], signal.SIGKILL)
    until(lambda: not second.alive(), "the head is seen to have died", seconds=10)
    assert second.start() != endpoint
    assert not [process for process in members if process.is_running()], "nothing is left of the dead one"
    assert not first.alive()
    assert closing(RayCluster(second.endpoint)).status("sleeps") is None
    assert not Path(state["temp_dir"]).exists()

    state = _state(data_dir)
    members = _family(state)
    assert len(members) > 5
    second.stop()
    assert not [process for process in members if process.is_running()]
    assert not Path(state["temp_dir"]).exists()
    assert not (data_dir / "embedded.json").exists()
    with pytest.raises(ClusterUnavailableError, match="has been stopped"):
        second.endpoint()


def test_a_head_that_cannot_start_says_why_with_the_end_of_its_log(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no room in /dev/shm' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    ray = EmbeddedRay(data_dir)
    with pytest.raises(ClusterUnavailableError, match=r"embedded-ray\.log[\s\S]*no room in /dev/shm"):
        ray.start()
    with pytest.raises(ClusterUnavailableError, match="no room in /dev/shm"):
        ray.endpoint()
    assert not ray.alive()


def test_a_head_that_takes_too_long_is_given_up_and_ended(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nsleep 300\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    ray = EmbeddedRay(data_dir, start_seconds=0.5)
    with pytest.raises(ClusterUnavailableError, match="not ready after"):
        ray.start()
    assert _family(_state(data_dir)) == []


def test_a_start_that_is_cancelled_leaves_nothing(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nsleep 300\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    ray = EmbeddedRay(data_dir)
    ray.cancel_start()
    with pytest.raises(ClusterUnavailableError, match="cancelled"):
        ray.start()
    assert _family(_state(data_dir)) == []


def test_what_is_the_services_own_does_not_reach_the_head(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURVEWATCH_DATABASE_URL", "postgresql://user:hunter2@db/curvewatch")
    monkeypatch.setenv("RAY_ADDRESS", "http://another-cluster:8265")
    tells = tmp_path / "python"
    tells.write_text("#!/bin/sh\nenv >&2\nexit 3\n")
    tells.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tells))
    with pytest.raises(ClusterUnavailableError):
        EmbeddedRay(data_dir).start()
    environment = (data_dir / "embedded-ray.log").read_text()
    assert "RAY_AUTH_MODE=token" in environment
    assert "hunter2" not in environment
    assert "another-cluster" not in environment
    assert (data_dir / "ray-token").read_text() not in environment


def test_a_short_folder_holds_rays_sessions_itself() -> None:
    short = Path("/tmp") / f"cw{os.getpid()}"
    short.mkdir()
    try:
        folder = ray_head._temp_dir(short)
        assert folder == short / "ray"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        folder.rmdir()
    finally:
        short.rmdir()


def test_an_unreadable_state_file_does_not_keep_the_service_from_starting(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data_dir / "embedded.json").write_text("{torn")
    ray = EmbeddedRay(data_dir)
    ray.stop()
    assert "cannot be read" in caplog.text


def test_what_a_killed_service_has_left_ends_with_its_stack(tmp_path: Path) -> None:
    left = tmp_path / "service"
    left.mkdir()
    try:
        begin = (
            "from curvewatch_service.embedded import EmbeddedRay, Path; import sys; "
            "EmbeddedRay(Path(sys.argv[1])).start()"
        )
        subprocess.run([sys.executable, "-c", begin, str(left)], check=True, timeout=240)
        state = _state(left)
        assert _family(state)
        done = call(tmp_path, (1, 2, 3), dict(os.environ), "down")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"Ended ray. Its data stays in {tmp_path}.\n"
        assert _family(state) == []
        assert call(tmp_path, (1, 2, 3), dict(os.environ), "down").stdout == "Nothing was running.\n"
    finally:
        EmbeddedRay(left).stop(seconds=2)
