"""A service of the demo's own: a separate process in a folder of its own, ended with all it started."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from curvewatch_service.client import Client, ClientError
from curvewatch_service.embedded import EmbeddedRay
from curvewatch_service.errors import ServiceError
from curvewatch_service.settings import PREFIX
from curvewatch_workers.contract import PROFILE_VARIABLE, ProfileError, read_profile

START_SECONDS = 120.0
STOP_SECONDS = 90.0
LONGEST_TEMP_DIR = 16
_POLL_SECONDS = 0.1
_LOG_LINES = 20


class DemoError(ServiceError):
    """The demo cannot go on, and why."""


class DemoService:
    """Start a service on a free port with its own data folder, profile and local Ray."""

    def __init__(self) -> None:
        # Ray's sockets lie below it, and the path of a socket is limited to 107 bytes.
        short = len(tempfile.gettempdir()) <= LONGEST_TEMP_DIR
        self.folder = Path(tempfile.mkdtemp(prefix="cw-", dir=None if short else "/tmp"))  # noqa: S108
        self.server = f"http://127.0.0.1:{_free_port()}"
        self.profile_path = self.folder / "profile.json"
        self.log_path = self.folder / "service.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process of the service; None before its start."""
        return self._process.pid if self._process else None

    def start(self) -> Client:
        """Start the service, wait until it is ready to take runs, and return a client for it.

        Raises:
            DemoError: It ended or was not ready in time; with the end of its log.
        """
        port = self.server.rpartition(":")[2]
        command = [sys.executable, "-m", "curvewatch_service.cli", "serve", "--host", "127.0.0.1"]
        # Settings of this shell are for the user's own service, not for this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        # What Ray's processes leave in the temporary folder when they are killed goes with our folder.
        environment |= {PROFILE_VARIABLE: str(self.profile_path), "TMPDIR": str(self.folder)}
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--port", port, "--data-dir", str(self.folder / "data")],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the demo, which then ends the service in order.
                start_new_session=True,
            )
        return self._wait_until_ready(self._process)

    def stop(self) -> None:
        """End the service and its Ray within bounded time, and remove the folder."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            # Nothing is left of Ray after an orderly end; after a kill this ends it.
            EmbeddedRay(self.folder / "data").stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> Client:
        deadline = time.monotonic() + START_SECONDS
        while True:
            client, reason = self._ask()
            if client is not None:
                return client
            if process.poll() is not None:
                raise DemoError(
                    f"the service ended with code {process.returncode} as it started\n{self.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise DemoError(
                    f"the service was not ready after {START_SECONDS:.0f} s: {reason}\n{self.log_tail()}"
                )
            time.sleep(_POLL_SECONDS)

    def _ask(self) -> tuple[Client | None, str]:
        """Return a client once the service and its cluster answer, else why they do not."""
        try:
            profile = read_profile(self.profile_path)
            client = Client(profile.server, profile.token)
        except ProfileError as error:
            return None, str(error)
        try:
            cluster = client.health().cluster
        except ClientError as error:
            cluster = str(error)
        if cluster == "ok":
            return client, ""
        client.close()
        return None, f"its cluster is {cluster}"

    def log_tail(self) -> str:
        """Return the last lines of what the service has written."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_LOG_LINES:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
