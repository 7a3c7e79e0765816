"""A second Ray node on this machine, which joins a service's own Ray and leaves it as a spot instance does."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from curvewatch_service import processes
from ray_support import ServiceProcess, until

MARK = "CURVEWATCH_TESTS_NODE"
"""Environment variable by which the processes of one node are found again."""
START = """
import signal, sys
import ray
from ray._private.node import Node
from ray._private.parameter import RayParams
address, cpus = sys.argv[1:]
Node(
    RayParams(
        gcs_address=address, node_ip_address="127.0.0.1", num_cpus=int(cpus), object_store_memory=100_000_000,
        min_worker_port=0, max_worker_port=0, node_manager_port=0, include_log_monitor=False,
    ),
    head=False, shutdown_at_exit=False, spawn_reaper=False,
)
signal.pause()
"""
"""`ray start` would have the head elsewhere than on the loopback interface; Ray's own tests add nodes like this."""


class Node:
    """A node beside the head.

    Args:
        service: A service with a Ray of its own.
        cpus: What the node offers.
        folder: An empty folder for its log.
    """

    def __init__(self, service: ServiceProcess, cpus: int, folder: Path) -> None:
        head = service.head()
        self._endpoint = head.endpoint
        # The head's own environment: its token, its ports, and the mark by which a service ends all of its Ray.
        command, inherited = (_words(head.pid, file) for file in ("cmdline", "environ"))
        self._mark = (MARK, secrets.token_hex(8))
        self._environment = dict(word.split("=", 1) for word in inherited) | dict([self._mark])
        (port,) = [word.partition("=")[2] for word in command if word.startswith("--port=")]
        self._address = f"127.0.0.1:{port}"
        before = self._alive()
        with (folder / "node.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, self._address, str(cpus)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started = processes.start_time(self._process.pid) or time.time()
        try:
            (self.node_id,) = until(lambda: self._alive() - before, "the second node joins", seconds=60)
        except AssertionError as error:
            self.kill()
            raise AssertionError((folder / "node.log").read_text()) from error

    def drain(self, *, seconds: int) -> None:
        """Give notice that the node will leave in so many seconds."""
        command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "drain-node"]
        command += [f"--address={self._address}", f"--node-id={self.node_id}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot instance"]
        subprocess.run(
            [*command, f"--deadline-remaining-seconds={seconds}"],
            env=self._environment,
            check=True,
            capture_output=True,
            timeout=120,
        )

    def kill(self) -> None:
        """Take the node away, with all that runs on it."""
        processes.kill(processes.family(self._process.pid, self._started, self._mark), seconds=10)
        self._process.wait(10)

    def _alive(self) -> set[str]:
        """Return the ids of the nodes that the head counts."""
        answer = httpx.get(
            f"{self._endpoint.url}/api/v0/nodes", headers=self._endpoint.headers(), trust_env=False
        )
        nodes = answer.raise_for_status().json()["data"]["result"]["result"]
        return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}


def _words(pid: int, file: str) -> list[str]:
    """Return the words of a process's command line or environment."""
    return Path(f"/proc/{pid}/{file}").read_text().split("\0")[:-1]


@contextmanager
def second_node(service: ServiceProcess, cpus: int, folder: Path) -> Iterator[Node]:
    """Have a second node for a while."""
    node = Node(service, cpus, folder)
    try:
        yield node
    finally:
        node.kill()
