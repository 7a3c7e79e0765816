"""A real Alertmanager for tests, on loopback and in a temporary folder."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import httpx
import pytest

from prometheus_support import free_port

ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
AMTOOL = shutil.which("amtool")
needs_alertmanager = pytest.mark.skipif(
    ALERTMANAGER is None or AMTOOL is None,
    reason="alertmanager is not installed (apt-get install prometheus-alertmanager)",
)
_POLL_SECONDS = 0.1
T = TypeVar("T")


class Alertmanager:
    """Tells and asks a running Alertmanager."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=10)
        self._log = log

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Tell whether it answers."""
        try:
            return self._http.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def tell(self, *alerts: Mapping[str, str], ended: bool = False) -> None:
        """Tell of firing alerts, or of ones that have ended, each by its labels."""
        end = {"endsAt": datetime.now(UTC).isoformat()} if ended else {}
        body = [{"labels": dict(labels), **end} for labels in alerts]
        self._http.post("/api/v2/alerts", json=body).raise_for_status()

    def alerts(self) -> list[dict[str, Any]]:
        """Return what it knows, each with its labels and its status."""
        found: list[dict[str, Any]] = self._http.get("/api/v2/alerts").raise_for_status().json()
        return found

    def wait(self, what: str, condition: Callable[[], T | None], *, seconds: float = 30) -> T:
        """Return the first true answer of a condition; fail with what was waited for when time is over."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                pytest.fail(
                    f"not within {seconds:.0f} s: {what}; {self.alerts()}; {self._log.read_text()[-2000:]}"
                )
            time.sleep(_POLL_SECONDS)
        return found


@contextmanager
def alerting(config: str, folder: Path) -> Iterator[Alertmanager]:
    """Start an Alertmanager with a configuration, then end it."""
    assert ALERTMANAGER is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alertmanager.yaml").write_text(config)
    address, log_path = f"127.0.0.1:{free_port()}", folder / "alertmanager.log"
    command = [
        ALERTMANAGER,
        f"--config.file={folder / 'alertmanager.yaml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address={address}",
        # A single one: by itself it would look for others and open a port to the world.
        "--cluster.listen-address=",
    ]
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    alertmanager = Alertmanager(f"http://{address}", log_path)
    try:
        deadline = time.monotonic() + 30
        while not alertmanager.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"Alertmanager did not start: {log_path.read_text()[-2000:]}")
            time.sleep(_POLL_SECONDS)
        yield alertmanager
    finally:
        alertmanager.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def receiving() -> Iterator[tuple[str, Sequence[tuple[str, bytes]]]]:
    """Listen for notifications; yields the address and a list that grows by the path and body of each."""
    told: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
