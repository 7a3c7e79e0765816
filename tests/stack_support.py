"""`scripts/stack.py` as a person starts it: the service with a Prometheus and an Alertmanager of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from curvewatch_service.client import Client
from curvewatch_service.embedded import EmbeddedRay
from curvewatch_workers.contract import PROFILE_VARIABLE, read_profile
from prometheus_support import Prometheus, free_port

SCRIPT = Path(__file__).parents[1] / "scripts" / "stack.py"


@dataclass(frozen=True)
class RunningStack:
    """A stack that is up."""

    folder: Path
    ports: tuple[int, int, int]
    environment: dict[str, str]
    prometheus: Prometheus

    @property
    def service_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def alertmanager_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[2]}"

    def client(self) -> Client:
        """Return a client with the token that the service's first start has written."""
        profile = read_profile(Path(self.environment[PROFILE_VARIABLE]))
        return Client(profile.server, profile.token)

    def call(self, what: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Call the script on this stack."""
        return call(self.folder, self.ports, self.environment, what, *more)


def call(
    folder: Path, ports: tuple[int, int, int], environment: dict[str, str], what: str, *more: str
) -> subprocess.CompletedProcess[str]:
    """Call the script."""
    command = [sys.executable, str(SCRIPT), what, "--folder", str(folder), "--interval", "1s"]
    return subprocess.run(
        [*command, "--ports", *map(str, ports), *more],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@contextmanager
def stack_up(folder: Path, **settings: str) -> Iterator[RunningStack]:
    """Start a stack in a folder, then end it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CURVEWATCH_")}
    environment |= {f"CURVEWATCH_{name.upper()}": value for name, value in settings.items()}
    environment[PROFILE_VARIABLE] = str(folder / "profile.json")
    ports = (free_port(), free_port(), free_port())
    try:
        done = call(folder, ports, environment, "up")
        assert done.returncode == 0, done.stdout + done.stderr
        prometheus = Prometheus(f"http://127.0.0.1:{ports[1]}", folder / "prometheus.log")
        yield RunningStack(folder, ports, environment, prometheus)
        prometheus.close()
    finally:
        call(folder, ports, environment, "down")
        EmbeddedRay(folder / "service").stop(seconds=2)
