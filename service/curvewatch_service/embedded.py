"""A Ray head of the service's own: a separate process that outlives a crash of the service."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from pydantic import ValidationError

from curvewatch_service import processes
from curvewatch_service.cluster import Endpoint, RayCluster
from curvewatch_service.errors import ClusterUnavailableError
from curvewatch_service.ray_head import MARK, HeadState, launch, write_private

logger = logging.getLogger(__name__)


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

    def stop(self, *, seconds: float = 10) -> bool:
        """End every process of the head, and of the jobs on it; return whether there was one.

        Args:
            seconds: How long it may take to end by itself before it is killed.
        """
        with self._turn:
            self._cancelled.clear()
            self._trouble = "the service's own Ray has been stopped"
            state, self._state = self._state or self._read_state(), None
            if state is None:
                return False
            self._end(state, seconds)
            self._state_path.unlink(missing_ok=True)
            return True

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
        attempts = 3
        while True:
            attempts -= 1
            self._child, state = launch(self._data_dir, self._log_path)
            # Before it is ready: a service that is killed meanwhile must not leave a head that nobody finds.
            write_private(self._state_path, state.model_dump_json(indent=2))
            begin = time.monotonic()
            try:
                self._wait_until_ready(state, self._start_seconds)
            except ClusterUnavailableError:
                died = not processes.is_running(state.pid, state.started)
                self._end(state, 0)
                # Another program may have taken a port between its choice and its use: choose again.
                if not (died and attempts):
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

    def _wait_until_ready(self, state: HeadState, seconds: float) -> None:
        """Wait until the head answers to our token and has a live node.

        Raises:
            ClusterUnavailableError: Its process has ended, or the time is over.
        """
        deadline = time.monotonic() + seconds
        with contextlib.closing(RayCluster(lambda: state.endpoint)) as cluster:
            while (trouble := _trouble_of(cluster)) is not None:
                self._reap()
                if not processes.is_running(state.pid, state.started):
                    trouble = "ended as it started"
                elif self._cancelled.is_set():
                    raise ClusterUnavailableError("the start of the service's own Ray was cancelled")
                elif time.monotonic() > deadline:
                    trouble = f"was not ready after {seconds:.0f} s: {trouble}"
                else:
                    self._cancelled.wait(0.1)
                    continue
                raise ClusterUnavailableError(f"the service's own Ray {trouble}; {self._log_tail()}")

    def _end(self, state: HeadState, seconds: float) -> None:
        """End the head's processes: asked first, killed when they have not gone in time."""
        mark = (MARK, state.mark)
        members = processes.family(state.pid, state.started, mark)
        if processes.is_running(state.pid, state.started) and seconds > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGTERM)
            deadline = time.monotonic() + seconds
            while processes.is_running(state.pid, state.started) and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.05)
        members += processes.family(state.pid, state.started, mark)
        left = processes.kill(members, seconds=5)
        self._reap()
        if not state.temp_dir.is_relative_to(self._data_dir):
            shutil.rmtree(state.temp_dir, ignore_errors=True)
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

    def _log_tail(self) -> str:
        try:
            lines = self._log_path.read_text(errors="replace").splitlines()[-15:]
        except OSError:
            lines = []
        return f"see {self._log_path}, which ends with:\n" + "\n".join(lines)


def _trouble_of(cluster: RayCluster) -> str | None:
    try:
        cluster.resources()
    except ClusterUnavailableError as error:
        return str(error)
    return None
