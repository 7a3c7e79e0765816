"""A real Prometheus for tests: the built rules, one target, all on loopback and in a temporary folder."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

RULES = Path(__file__).parents[1] / "dashboards" / "curvewatch_dashboards" / "built" / "rules.yaml"
PROMETHEUS = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="prometheus is not installed (apt-get install prometheus)"
)
JOB = "curvewatch"
_POLL_SECONDS = 0.2
T = TypeVar("T")
Point = tuple[int, float]
"""Milliseconds since 1970, and the value."""


@dataclass(frozen=True)
class Sample:
    """One element of the answer to an instant query."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """Asks a running Prometheus."""

    def __init__(self, url: str, log: Path) -> None:
        self._http = httpx.Client(base_url=url, timeout=10)
        self._log = log

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Tell whether it answers queries."""
        try:
            return self._http.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def query(self, expr: str, *, at: float | None = None) -> list[Sample]:
        """Return the value of an expression now, or at a Unix time."""
        moment = {} if at is None else {"time": str(at)}
        result = self._get("query", query=expr, **moment)["result"]
        return [Sample(labels=one["metric"], value=float(one["value"][1])) for one in result]

    def points(self, selector: str) -> dict[frozenset[tuple[str, str]], list[tuple[int, float]]]:
        """Return what a range selector finds now: by labels, the time in milliseconds and the value of each sample."""
        return _points(self._get("query", query=selector)["result"])

    def drawn(
        self, expr: str, *, start: float, end: float, step: float
    ) -> dict[frozenset[tuple[str, str]], list[tuple[int, float]]]:
        """Return what a panel over time draws of an expression, times and step in seconds."""
        answer = self._get("query_range", query=expr, start=str(start), end=str(end), step=str(step))
        return _points(answer["result"])

    def alerts(self) -> list[dict[str, Any]]:
        """Return the active alerts, pending ones too."""
        found: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return found

    def alert(self, name: str, run_id: str) -> dict[str, Any] | None:
        """Return an alert of a run, None when it is not active."""
        mine = (
            a
            for a in self.alerts()
            if (a["labels"]["alertname"], a["labels"].get("run_id")) == (name, run_id)
        )
        return next(mine, None)

    def rule_errors(self) -> list[str]:
        """Return what went wrong in the latest evaluation of the rules."""
        groups = self._get("rules")["groups"]
        return [rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")]

    def wait(self, what: str, condition: Callable[[], T | None], *, seconds: float) -> T:
        """Return the first true answer of a condition; fail with what was waited for when time is over."""
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline:
                pytest.fail(
                    f"not within {seconds:.0f} s: {what}; active alerts: {self.alerts()}; "
                    f"rule errors: {self.rule_errors()}; log: {self._log.read_text()[-2000:]}"
                )
            time.sleep(_POLL_SECONDS)

    def _get(self, path: str, **parameters: str) -> Any:
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        assert answer.is_success, answer.text
        return answer.json()["data"]


def _points(result: list[dict[str, Any]]) -> dict[frozenset[tuple[str, str]], list[tuple[int, float]]]:
    return {
        frozenset(one["metric"].items()): [
            (round(float(time) * 1000), float(value)) for time, value in one["values"]
        ]
        for one in result
    }


@contextmanager
def scraping(target: str, folder: Path) -> Iterator[Prometheus]:
    """Start a Prometheus that scrapes `host:port` and evaluates the built rules every second, then end it."""
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": [target]}]}],
    }
    with prometheus_of(configuration, folder) as prometheus:
        yield prometheus


@contextmanager
def receiving(folder: Path, *, port: int, out_of_order: str = "0s") -> Iterator[Prometheus]:
    """Start a Prometheus that scrapes nothing and takes remote writes at a port of loopback, then end it.

    Args:
        folder: Where its data is.
        port: Where it listens.
        out_of_order: How much older than its newest sample one may be; by default an hour, in order.
    """
    configuration = {"storage": {"tsdb": {"out_of_order_time_window": out_of_order}}}
    with prometheus_of(configuration, folder, "--web.enable-remote-write-receiver", port=port) as prometheus:
        yield prometheus


def write_url(port: int) -> str:
    """The address for remote writes of a Prometheus on loopback."""
    return f"http://127.0.0.1:{port}/api/v1/write"


@contextmanager
def prometheus_of(
    configuration: Mapping[str, object], folder: Path, *flags: str, port: int | None = None
) -> Iterator[Prometheus]:
    """Start a Prometheus whose data are in `data` of a folder, then end it."""
    assert PROMETHEUS is not None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(dict(configuration)))
    address = f"127.0.0.1:{port or free_port()}"
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        *flags,
    ]
    log_path = folder / "prometheus.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    prometheus = Prometheus(f"http://{address}", log_path)
    try:
        _wait_until_ready(prometheus, process, log_path)
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(prometheus: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while not prometheus.ready():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"Prometheus did not start: {log.read_text()[-2000:]}")
        time.sleep(_POLL_SECONDS)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
