"""A real service in a process of its own, with a real Ray of its own, for tests of the whole line.

Starting Ray costs seconds: tests that do no harm to the service share the session's (fixture `service`
in `tests/integration/conftest.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml

from curvewatch_service.client import Client, ClientError
from curvewatch_service.code import zip_folder
from curvewatch_service.embedded import EmbeddedRay
from curvewatch_service.ray_head import HeadState
from curvewatch_service.runs import RunState
from curvewatch_service.schemas import RunView
from curvewatch_workers.contract import PROFILE_VARIABLE, ProfileError, read_profile

T = TypeVar("T")

START_SECONDS = 60.0
RUN_SECONDS = 240.0
"""From submission to end: a machine whose cores are all busy takes a minute to start two workers."""


def until(condition: Callable[[], T | None], what: str, *, seconds: float, pause: float = 0.1) -> T:
    """Return the first value that is true; fail with what was waited for when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServiceProcess:
    """`curvewatch serve` on a data folder, which it can be started on again and again."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.profile_path = folder / "profile.json"
        self.log_path = folder / "service.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def token(self) -> str:
        return read_profile(self.profile_path).token

    def head(self) -> HeadState:
        """Return what the service has noted of its Ray head."""
        return HeadState.model_validate_json((self.data_dir / "embedded.json").read_bytes())

    def client(self) -> Client:
        return Client(self.url, self.token)

    def start(self) -> None:
        """Start the process and wait until it answers; Ray may still be starting."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("CURVEWATCH_")
        }
        environment |= {f"CURVEWATCH_{name.upper()}": value for name, value in self._settings.items()}
        environment[PROFILE_VARIABLE] = str(self.profile_path)
        command = [sys.executable, "-m", "curvewatch_service.cli", "serve"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--data-dir", str(self.data_dir)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(self._answers, "the service answers", seconds=START_SECONDS)

    def start_with_ray(self) -> None:
        """Start the process and wait until its Ray answers too."""
        self.start()
        with self.client() as client:
            until(lambda: client.health().cluster == "ok", "its Ray answers", seconds=120)

    def kill(self) -> None:
        """End the process as a crash does: nothing of its own code runs."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def terminate(self, *, seconds: float = 90) -> int:
        """Ask for an orderly end, wait for it and return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def destroy(self) -> None:
        """End the process and its Ray, whatever state they are in."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.terminate()
            self.process.kill()
            self.process.wait(10)
        EmbeddedRay(self.data_dir).stop(seconds=2)

    def submit(self, folder: Path, **changes: object) -> str:
        """Submit a folder with a `job.yaml`, some of its top-level sections changed; return the run's id."""
        spec = yaml.safe_load((folder / "job.yaml").read_text())
        for section, change in changes.items():
            spec[section] = {**spec.get(section, {}), **change} if isinstance(change, dict) else change
        with self.client() as client:
            return client.submit(yaml.safe_dump(spec), zip_folder(folder)).run_id

    def wait_for_epoch(self, run_id: str, epoch: int, *, seconds: float = RUN_SECONDS) -> RunView:
        """Wait until an epoch has been told."""
        return self._wait(run_id, lambda run: run.epoch >= epoch, f"epoch {epoch}", seconds)

    def wait_for_end(self, run_id: str, *, seconds: float = RUN_SECONDS) -> RunView:
        """Wait until a run has ended, however."""
        return self._wait(run_id, lambda run: RunState.parse(run.state).terminal, "the end", seconds)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _wait(self, run_id: str, reached: Callable[[RunView], bool], what: str, seconds: float) -> RunView:
        with self.client() as client:

            def look() -> RunView | None:
                run = client.run(run_id)
                ended = RunState.parse(run.state).terminal
                if not reached(run) and ended:
                    raise AssertionError(
                        f"{run_id} is {run.state} before {what}: {run.reason}\n{run.traceback}\n"
                        f"{client.logs(run_id)[-4000:]}"
                    )
                return run if reached(run) else None

            return until(look, f"{run_id}: {what}", seconds=seconds)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the service ended with {self.process.returncode}:\n{self.log()[-4000:]}")
        try:
            with self.client() as client:
                client.health()
        except (ClientError, ProfileError):
            return False
        return True
