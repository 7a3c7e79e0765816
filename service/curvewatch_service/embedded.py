"""A Ray head of the service's own: a separate process that outlives a crash of the service."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

from curvewatch_service import processes
from curvewatch_service.cluster import Endpoint, RayCluster
from curvewatch_service.errors import ClusterUnavailableError

logger = logging.getLogger(__name__)

MARK = "CURVEWATCH_EMBEDDED_RAY"
"""Environment variable by which the processes of one head are found again."""
OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Training moves its data outside of Ray's object store: a small one does."""
LEAST_CPUS = 4
"""Ray reserves CPUs by number only; fewer would keep three workers waiting on a small machine."""
JOB_STOP_SECONDS = 15
"""Between the interrupt that ends a job and its kill."""
SOCKET_PATH_LIMIT = 107
"""Most bytes of the path of a Unix socket (104 on macOS less what Ray adds is shorter still)."""
_LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead"
_FOREIGN_PREFIXES = ("CURVEWATCH_",)
_FOREIGN = frozenset(
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
"""Variables that would lead the head to another cluster, or show it what is the service's alone."""


class HeadState(BaseModel):
    """What the next start must know to find the head again."""

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


class EmbeddedRay:
    """A Ray head on the loopback interface, with its own ports, temporary folder and token.

    `start` and `stop` take turns; `endpoint` and `alive` may be called from any thread.
    """

    def __init__(self, data_dir: Path, *, start_seconds: float = 120) -> None:
        """Remember where the head is kept; nothing is started yet.

        Args:
            data_dir: Folder of the service; the head's state file, token, log and sessions are below it.
            start_seconds: How long a head may take until it answers.
        """
        self._data_dir = data_dir
        self._state_path = data_dir / "embedded.json"
        self._log_path = data_dir / "embedded-ray.log"
        self._start_seconds = start_seconds
        self._turn = threading.Lock()
        self._cancelled = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._state: HeadState | None = None
        self._trouble = "the service's own Ray is starting; try again in a few seconds"

    def endpoint(self) -> Endpoint:
        """Return where the head answers.

        Raises:
            ClusterUnavailableError: It does not yet, or could not be started.
        """
        state = self._state
        if state is None:
            raise ClusterUnavailableError(self._trouble)
        return state.endpoint

    def alive(self) -> bool:
        """Tell whether the head's process runs."""
        state = self._state
        self._reap()
        return state is not None and processes.is_running(state.pid, state.started)

    def start(self) -> Endpoint:
        """Find the head of an earlier service, or start one; return where it answers.

        Raises:
            ClusterUnavailableError: It could not be started; the message has the end of its log.
        """
        with self._turn:
            try:
                self._state = self._find() or self._start_fresh()
            except ClusterUnavailableError as error:
                self._state, self._trouble = None, str(error)
                raise
            return self._state.endpoint

    def cancel_start(self) -> None:
        """Let a `start` fail that is under way or still to come, until `stop`; any thread may call."""
        self._cancelled.set()

    def stop(self, *, seconds: float = 10) -> None:
        """End every process of the head, and of the jobs on it.

        Args:
            seconds: How long it may take to end by itself before it is killed.
        """
        with self._turn:
            self._cancelled.clear()
            self._trouble = "the service's own Ray has been stopped"
            state, self._state = self._state or self._read_state(), None
            if state is None:
                return
            self._end(state, seconds)
            self._state_path.unlink(missing_ok=True)
            if not state.temp_dir.is_relative_to(self._data_dir):
                shutil.rmtree(state.temp_dir, ignore_errors=True)

    def _find(self) -> HeadState | None:
        """Return the state of a head that still answers; end what is left of one that does not."""
        state = self._read_state()
        if state is None:
            return None
        if processes.is_running(state.pid, state.started):
            try:
                self._wait_until_ready(state, self._start_seconds / 4)
            except ClusterUnavailableError:
                if self._cancelled.is_set():
                    raise
                logger.warning(
                    "The Ray head of an earlier start, process %d, does not answer; it is replaced.",
                    state.pid,
                    extra={"action": "embedded_replaced", "pid": state.pid},
                )
            else:
                logger.info(
                    "Found the Ray head of an earlier start, process %d.",
                    state.pid,
                    extra={"action": "embedded_found", "pid": state.pid},
                )
                return state
        self._end(state, 0)
        return None

    def _start_fresh(self) -> HeadState:
        for attempt in (1, 2, 3):
            state = self._launch()
            begin = time.monotonic()
            try:
                self._wait_until_ready(state, self._start_seconds)
            except ClusterUnavailableError:
                # Another program may have taken a port between its choice and its use: choose again.
                died = not processes.is_running(state.pid, state.started)
                self._end(state, 0)
                if attempt == 3 or not died:
                    raise
            else:
                seconds = time.monotonic() - begin
                logger.info(
                    "Started a Ray head, process %d, in %.1f s.",
                    state.pid,
                    seconds,
                    extra={"action": "embedded_started", "pid": state.pid, "seconds": seconds},
                )
                return state
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _launch(self) -> HeadState:
        token_path = self._token_path()
        temp_dir = self._temp_dir()
        gcs_port, dashboard_port, client_port = _free_ports(3)
        mark = secrets.token_hex(8)
        command = [
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
        with self._log_path.open("wb") as log:
            self._child = subprocess.Popen(
                command,
                env=_environment(mark, token_path),
                cwd=self._data_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own: no signal to the service's terminal or group reaches it.
                start_new_session=True,
            )
        state = HeadState(
            pid=self._child.pid,
            started=processes.start_time(self._child.pid) or time.time(),
            mark=mark,
            dashboard_port=dashboard_port,
            temp_dir=temp_dir,
            token_path=token_path,
        )
        # Before it is ready: a service that is killed meanwhile must not leave a head that nobody finds.
        _write_private(self._state_path, state.model_dump_json(indent=2))
        return state

    def _wait_until_ready(self, state: HeadState, seconds: float) -> None:
        """Wait until the head answers to our token and has a live node.

        Raises:
            ClusterUnavailableError: Its process has ended, or the time is over.
        """
        cluster = RayCluster(lambda: state.endpoint)
        deadline = time.monotonic() + seconds
        while True:
            try:
                cluster.resources()
            except ClusterUnavailableError as error:
                trouble = str(error)
            else:
                return
            self._reap()
            if not processes.is_running(state.pid, state.started):
                raise ClusterUnavailableError(
                    f"the service's own Ray ended as it started; {self._log_tail()}"
                )
            if self._cancelled.is_set():
                raise ClusterUnavailableError("the start of the service's own Ray was cancelled")
            if time.monotonic() > deadline:
                raise ClusterUnavailableError(
                    f"the service's own Ray was not ready after {seconds:.0f} s: {trouble}; "
                    f"{self._log_tail()}"
                )
            self._cancelled.wait(0.1)

    def _end(self, state: HeadState, seconds: float) -> None:
        """End the head's processes: asked first, killed when they have not gone in time."""
        mark = (MARK, state.mark)
        members = processes.family(state.pid, state.started, mark)
        if processes.is_running(state.pid, state.started) and seconds > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, 15)
            deadline = time.monotonic() + seconds
            while processes.is_running(state.pid, state.started) and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.05)
        members += processes.family(state.pid, state.started, mark)
        left = processes.kill(members, seconds=5)
        self._reap()
        if left:
            logger.error(
                "Processes %s of the service's own Ray could not be ended.",
                left,
                extra={"action": "embedded_left", "pids": left},
            )

    def _reap(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            self._child = None

    def _read_state(self) -> HeadState | None:
        try:
            return HeadState.model_validate_json(self._state_path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            logger.warning(
                "%s cannot be read; a Ray head that it names is not found again.",
                self._state_path,
                extra={"action": "embedded_state_unreadable"},
            )
            return None

    def _token_path(self) -> Path:
        path = self._data_dir / "ray-token"
        if not path.exists():
            _write_private(path, secrets.token_hex(32))
        return path

    def _temp_dir(self) -> Path:
        """Return an empty folder for Ray's sessions, whose sockets need a short path."""
        folder = self._data_dir / "ray"
        if len(os.fsencode(f"{folder}{_LONGEST_SOCKET}")) > SOCKET_PATH_LIMIT:
            return Path(tempfile.mkdtemp(prefix="curvewatch-"))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    def _log_tail(self) -> str:
        try:
            lines = self._log_path.read_text(errors="replace").splitlines()[-15:]
        except OSError:
            lines = []
        return f"see {self._log_path}, which ends with:\n" + "\n".join(lines)


def _environment(mark: str, token_path: Path) -> dict[str, str]:
    """Return the environment of the head: this process's own, less what must not reach it."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES)
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


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)
