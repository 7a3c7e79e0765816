"""Start the service with a Prometheus and an Alertmanager of its own on this machine, and end them.

`up` starts what is not running, waits until each answers, and prints the addresses; `down` ends all of it. What they
write, their logs too, is in one folder, and stays there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from curvewatch_dashboards.alertmanager import alertmanager_file
from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.prometheus import prometheus_config
from curvewatch_dashboards.rules import rule_groups
from curvewatch_dashboards.yaml_text import yaml_file
from curvewatch_service.embedded import EmbeddedRay
from curvewatch_service.processes import is_running, start_time

ROOT = Path(__file__).parents[1]
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 90.0
_POLL_SECONDS: Final = 0.1
_LOG_LINES: Final = 15
_SERVICE_FOLDER: Final = "service"
_LARGEST_PORT: Final = 65535
_DEBIAN: Final = {"prometheus": "prometheus", "prometheus-alertmanager": "prometheus-alertmanager"}


class StackError(Exception):
    """The stack cannot be started or ended, and why."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the stack."""

    name: str
    url: str
    ready: str
    """Path that answers once it is ready."""
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """What differs from the caller's."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A process that was started."""

    name: str
    url: str
    pid: int
    started: float
    """Unix time of its start: its number may be given to another later."""

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return is_running(self.pid, self.started)


class Stack:
    """The processes of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._notes = folder / "stack.json"

    def running(self) -> list[Running]:
        """Return what is running, in the order in which it was started.

        Raises:
            StackError: What was noted cannot be read.
        """
        if not self._notes.exists():
            return []
        try:
            noted = [Running(**entry) for entry in json.loads(self._notes.read_text())]
        except (OSError, ValueError, TypeError) as error:
            raise StackError(
                f"{self._notes}, which says what runs, cannot be read ({error}); end what still runs by hand, "
                f"`pgrep -f {self._folder}` lists it, and remove that file"
            ) from error
        return [one for one in noted if one.alive]

    def require(self, urls: Mapping[str, str]) -> None:
        """Do nothing unless something runs at another address than it is wanted at.

        Raises:
            StackError: It does.
        """
        for one in self.running():
            if one.url != urls.get(one.name, one.url):
                raise StackError(
                    f"{one.name} runs already, at {one.url} and not at {urls[one.name]}; end it with `make down` "
                    "first, or leave the ports as they are"
                )

    def up(self, parts: Sequence[Part]) -> list[Running]:
        """Start what is not running, each once the one before it answers.

        Raises:
            StackError: One ended or did not answer in time; those before it stay.
        """
        running = {one.name: one for one in self.running()}
        for part in parts:
            if part.name not in running:
                _require_free(part)
                running[part.name] = self._start(part)
                self._note(running.values())
            self._wait(part, running[part.name])
        return [running[part.name] for part in parts]

    def down(self) -> list[str]:
        """End everything, the last one first; return the names of what was running.

        Raises:
            StackError: One does not end.
        """
        ended = self.running()[::-1]
        for one in ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while one.alive:
                if time.monotonic() > deadline:
                    raise StackError(
                        f"{one.name} (process {one.pid}) has not ended in {STOP_SECONDS:.0f} s; `kill -9 {one.pid}` "
                        "ends it, `make down` then the others"
                    )
                time.sleep(_POLL_SECONDS)
        # The service ends its Ray itself, unless it was killed.
        left = EmbeddedRay(self._folder / _SERVICE_FOLDER).stop()
        self._notes.unlink(missing_ok=True)
        return [*(one.name for one in ended), *(["ray"] if left else [])]

    def _start(self, part: Part) -> Running:
        with (self._folder / f"{part.name}.log").open("ab") as log:
            process = subprocess.Popen(
                part.command,
                cwd=self._folder,
                env={**os.environ, **part.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = start_time(process.pid)
        return Running(name=part.name, url=part.url, pid=process.pid, started=started or 0.0)

    def _wait(self, part: Part, running: Running) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(running.url + part.ready):
            if not running.alive:
                raise StackError(f"{part.name} has ended\n{self._log_tail(part)}")
            if time.monotonic() > deadline:
                raise StackError(
                    f"{part.name} did not answer in {START_SECONDS:.0f} s\n{self._log_tail(part)}"
                )
            time.sleep(_POLL_SECONDS)

    def _note(self, running: Iterable[Running]) -> None:
        # At once: killed in between, it would have lost what runs.
        new = self._notes.with_suffix(".new")
        new.write_text(json.dumps([asdict(one) for one in running], indent=2))
        new.replace(self._notes)

    def _log_tail(self, part: Part) -> str:
        path = self._folder / f"{part.name}.log"
        lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join([f"the end of {path}:", *lines])


def parts_of(folder: Path, ports: Sequence[int], interval: str) -> list[Part]:
    """Write the configuration of each part and return how it is started.

    Args:
        folder: Where all of it lies.
        ports: Of the service, of Prometheus and of Alertmanager, on loopback.
        interval: How often Prometheus scrapes and evaluates.

    Raises:
        StackError: A program is not installed.
    """
    service, prometheus, alertmanager = (f"127.0.0.1:{port}" for port in ports)
    token = str(folder / _SERVICE_FOLDER / "alerts-token")
    knobs = replace(
        Knobs(),
        scrape_interval=interval,
        curves_interval=interval,
        service_url=f"http://{service}",
        alertmanager_address=alertmanager,
        alerts_token_file=token,
        service_group_wait="1s",
        service_group_interval=interval,
        runbook=str(ROOT / "docs" / "runbook.md"),
    )
    files = {
        "rules.yaml": yaml_file(rule_groups(knobs)),
        "prometheus.yaml": yaml_file(prometheus_config(knobs)),
        "alertmanager.yaml": alertmanager_file(knobs),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    serve = (sys.executable, "-m", "curvewatch_service.cli", "serve", "--port", str(ports[0]))
    return [
        Part(
            name="curvewatch",
            url=f"http://{service}",
            ready="/healthz",
            command=(*serve, "--data-dir", str(folder / _SERVICE_FOLDER)),
            # Where Alertmanager reads it, whatever the caller has chosen for a service of its own.
            environment={"CURVEWATCH_ALERTS_TOKEN_PATH": token},
        ),
        Part(
            name="alertmanager",
            url=f"http://{alertmanager}",
            ready="/-/ready",
            command=(
                _program("prometheus-alertmanager", "alertmanager"),
                f"--config.file={folder / 'alertmanager.yaml'}",
                f"--storage.path={folder / 'alertmanager'}",
                f"--web.listen-address={alertmanager}",
                # A single one: by itself it would look for others and open a port to the world.
                "--cluster.listen-address=",
            ),
        ),
        Part(
            name="prometheus",
            url=f"http://{prometheus}",
            ready="/-/ready",
            command=(
                _program("prometheus"),
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'prometheus'}",
                f"--web.listen-address={prometheus}",
            ),
        ),
    ]


def _program(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    raise StackError(
        f"{names[0]} is not installed; apt-get install {_DEBIAN[names[0]]}, or put it on the PATH"
    )


def _require_free(part: Part) -> None:
    host, _, port = part.url.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise StackError(
                f"port {port}, of {part.name}, cannot be had ({error.strerror}); end what listens there, or choose "
                "others: make up PORTS='8421 9091 9094'"
            ) from error


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _LARGEST_PORT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no port; give a whole number from 1 to {_LARGEST_PORT}"
        )
    return int(text)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - an address of loopback
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="stack.py", description=__doc__)
    parser.add_argument("what", choices=("up", "down"))
    parser.add_argument("--folder", type=Path, default=ROOT / ".curvewatch", help="where all of it lies")
    parser.add_argument(
        "--ports",
        type=_port,
        nargs=3,
        default=(8420, 9090, 9093),
        metavar=("SERVICE", "PROMETHEUS", "ALERTMANAGER"),
        help="on loopback",
    )
    parser.add_argument("--interval", default="5s", help="how often Prometheus scrapes and evaluates")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    if len(set(options.ports)) < len(options.ports):
        parser.error(f"--ports: {' '.join(map(str, options.ports))} has one twice; each part needs its own")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stack = Stack(folder)
    try:
        if options.what == "down":
            ended = stack.down()
            print(
                f"Ended {', '.join(ended)}. Its data stays in {folder}." if ended else "Nothing was running."
            )
            return 0
        urls = [f"http://127.0.0.1:{port}" for port in options.ports]
        # Before the files of what runs are written anew.
        stack.require(dict(zip(("curvewatch", "prometheus", "alertmanager"), urls, strict=True)))
        running = stack.up(parts_of(folder, options.ports, options.interval))
    except StackError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for one in running:
        print(f"{one.name:<13} {one.url}")
    print(f"Logs and data are in {folder}. Submit with `curvewatch submit`; `make down` ends it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
