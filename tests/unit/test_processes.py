"""Processes are told apart from later ones of the same number, and found wherever they hide."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from curvewatch_service import processes
from ray_support import until

MARK = "CURVEWATCH_TEST_MARK"
# A leader with a child in its session, and a grandchild that left the session.
LEADER = """
import subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
print(*(child.pid for child in children), flush=True)
sys.stdin.read()
"""


@contextmanager
def family_of_three() -> Iterator[tuple[subprocess.Popen[str], float, tuple[str, str], set[int]]]:
    mark = (MARK, secrets.token_hex(8))
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, mark[0]: mark[1]},
    )
    assert leader.stdout is not None
    children = {int(pid) for pid in leader.stdout.readline().split()}
    started = processes.start_time(leader.pid)
    assert started is not None
    try:
        yield leader, started, mark, {leader.pid, *children}
    finally:
        processes.kill(processes.family(leader.pid, started, mark), seconds=5)
        leader.communicate(timeout=5)


def _pids(leader: int, started: float, mark: tuple[str, str]) -> set[int]:
    return {process.pid for process in processes.family(leader, started, mark)}


def test_a_family_is_found_with_its_leader_and_without() -> None:
    with family_of_three() as (leader, started, mark, pids):
        assert _pids(leader.pid, started, mark) == pids
        leader.kill()
        leader.wait(5)
        assert not processes.is_running(leader.pid, started)
        assert _pids(leader.pid, started, mark) == pids - {leader.pid}
        assert processes.kill(processes.family(leader.pid, started, mark), seconds=5) == []
        until(lambda: not _pids(leader.pid, started, mark), "all are gone", seconds=5)


def test_a_later_process_of_the_same_number_is_left_alone() -> None:
    """The state file says an hour ago: whoever has the number now is somebody else, with his own children."""
    with family_of_three() as (leader, started, _, _):
        an_hour_ago = started - 3600
        assert not processes.is_running(leader.pid, an_hour_ago)
        assert _pids(leader.pid, an_hour_ago, (MARK, "another")) == set()


def test_a_process_that_ended_but_was_not_waited_for_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = processes.start_time(child.pid)
    assert started is not None
    assert abs(started - time.time()) < 60
    assert processes.is_running(child.pid, started)
    child.kill()
    until(lambda: not processes.is_running(child.pid, started), "it is seen to have ended", seconds=5)
    assert child.stdin is not None
    child.stdin.close()
    child.wait(5)
