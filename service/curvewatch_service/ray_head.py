"""How a Ray head of the service's own is launched: its ports, folders, token and environment."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydantic import BaseModel

from curvewatch_service import processes
from curvewatch_service.cluster import Endpoint

MARK = "CURVEWATCH_EMBEDDED_RAY"
"""Environment variable by which the processes of one head are found again."""
OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Training moves its data outside of Ray's object store: a small one does."""
LEAST_CPUS = 4
"""Ray reserves CPUs by number only; fewer would keep three workers waiting on a small machine."""
JOB_STOP_SECONDS = 15
"""Between the interrupt that ends a job and its kill."""
SOCKET_PATH_LIMIT = 107 if sys.platform == "linux" else 103
"""Most bytes of the path of a Unix socket."""
_LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead"
_SERVICES_OWN = "CURVEWATCH_"
_MISLEADING = frozenset(
    {
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_TOKEN",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        "RAY_NAMESPACE",
        "RAY_REDIS_ADDRESS",
        "RAY_TMPDIR",
    }
)
"""Variables that would lead the head to another cluster."""


class HeadState(BaseModel):
    """What the next start of the service must know to find the head again."""

    pid: int
    started: float
    """Unix time at which the process started: the number alone may be another's by now."""
    mark: str
    dashboard_port: int
    temp_dir: Path
    token_path: Path

    @property
    def endpoint(self) -> Endpoint:
        """Where the head answers."""
        return Endpoint(url=f"http://127.0.0.1:{self.dashboard_port}", token_path=self.token_path)


def launch(data_dir: Path, log_path: Path) -> tuple[subprocess.Popen[bytes], HeadState]:
    """Start the processes of a head; they need seconds until they answer.

    Everything listens on the loopback interface, on ports that were free a moment ago.
    """
    # The first call takes a second, which must not lie between the start and the state that tells of it.
    processes.start_time(os.getpid())
    token_path = _token_path(data_dir)
    temp_dir = _temp_dir(data_dir)
    mark = secrets.token_hex(8)
    gcs_port, dashboard_port, client_port = _free_ports(3)
    command = [
        # Without -P the working directory would come first on the path of Ray's own programs.
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        "--node-ip-address=127.0.0.1",
        f"--port={gcs_port}",
        f"--dashboard-port={dashboard_port}",
        "--dashboard-host=127.0.0.1",
        "--dashboard-agent-listen-port=0",
        f"--ray-client-server-port={client_port}",
        *("--min-worker-port=0", "--max-worker-port=0"),
        f"--num-cpus={max(LEAST_CPUS, os.cpu_count() or 1)}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={temp_dir}",
        "--include-dashboard=true",
        "--disable-usage-stats",
    ]
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            command,
            env=_environment(mark, token_path),
            cwd=data_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A session of its own: no signal to the service's terminal or group reaches it.
            start_new_session=True,
        )
    return child, HeadState(
        pid=child.pid,
        started=processes.start_time(child.pid) or time.time(),
        mark=mark,
        dashboard_port=dashboard_port,
        temp_dir=temp_dir,
        token_path=token_path,
    )


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)


def _environment(mark: str, token_path: Path) -> dict[str, str]:
    """Return the environment of the head: this process's own, less what must not reach users' code there."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _MISLEADING and not name.startswith(_SERVICES_OWN)
    }
    return inherited | {
        MARK: mark,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        # Without it Ray replaces 127.0.0.1 by the machine's address and listens on every interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Fixed ports otherwise, which two heads on one machine would fight for.
        "DASHBOARD_METRIC_PORT": "0",
        "AUTOSCALER_METRIC_PORT": "0",
        # Ray Train takes an interrupt as the wish to end orderly.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_SECONDS),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }


def _token_path(data_dir: Path) -> Path:
    path = data_dir / "ray-token"
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return path


def _temp_dir(data_dir: Path) -> Path:
    """Return an empty folder for Ray's sessions, whose sockets need a short path."""
    folder = data_dir / "ray"
    if len(os.fsencode(f"{folder}{_LONGEST_SOCKET}")) > SOCKET_PATH_LIMIT:
        # Not the system's own choice, which may be as long: every POSIX system has /tmp.
        return Path(tempfile.mkdtemp(prefix="curvewatch-", dir="/tmp"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
