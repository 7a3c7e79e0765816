"""What the benchmarks share: rounds that interleave, ranks under torchrun, and the lines above a result."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

ROOT = Path(__file__).parent.parent

Timed = Callable[[], float]
"""Runs what is measured once and returns its seconds."""


class Quartiles(NamedTuple):
    """Median and quartiles of a number over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def quartiles(values: list[float]) -> Quartiles:
    """Return median, lower and upper quartile; of one value all three are that value."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(median, low, high)


def interleaved(timed: Mapping[str, Timed], *, rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Return the seconds of each in each round.

    A round runs every one once, in an order that changes from round to round and is the same on each rank, so that what
    else the machine does meets all of them alike.

    Args:
        timed: What to measure, by name.
        rounds: Rounds that count.
        warm_up: Rounds before them that do not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    shuffle = random.Random(0)  # the same order on each rank
    for number in range(warm_up + rounds):
        names = list(timed)
        shuffle.shuffle(names)
        for name in names:
            taken = timed[name]()
            if number >= warm_up:
                seconds[name].append(taken)
    return seconds


def ratios(seconds: Mapping[str, list[float]], name: str, base: str) -> Quartiles:
    """Return the time of one by that of another of the same round, over the rounds."""
    return quartiles([a / b for a, b in zip(seconds[name], seconds[base], strict=True)])


def meet(device: torch.device) -> None:
    """Wait for the device and for the other ranks."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if dist.is_initialized():
        dist.barrier()


def seconds_of(run: Callable[[], object], device: torch.device, *, until_all: bool = True) -> float:
    """Return how long a call takes from a common start.

    Args:
        run: The call.
        device: Where it computes.
        until_all: Stop the clock when the last rank is done; else when this one is.
    """
    meet(device)
    clock = time.perf_counter()
    run()
    if until_all:
        meet(device)
    return time.perf_counter() - clock


def torchrun(ranks: int, *arguments: str, folder: Path | None = None) -> str:
    """Run something under torchrun with one thread a rank; return what it printed.

    Args:
        ranks: Processes.
        arguments: The script, or `-m` and the module, and its arguments.
        folder: Where it finds modules of its own.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin"}
    if folder is not None:
        environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(
        [*command, *arguments], check=False, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(
            f"{shlex.join(arguments)} on {ranks} ranks ended with {done.returncode}:\n{done.stderr[-4000:]}"
        )
    return done.stdout


def installed(package: str) -> bool:
    """Tell whether a package can be imported; a peer that is not installed is left out of a table."""
    return importlib.util.find_spec(package) is not None


def setting(*peers: str) -> str:
    """Return the lines that belong above a result: the command, the day, the machine and the versions.

    Args:
        peers: Packages beside torch whose version matters.
    """
    ranks = os.environ.get("WORLD_SIZE")
    start = "python" if ranks is None else f"torchrun --nproc-per-node {ranks}"
    command = f"{start} benchmarks/{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [f"{peer} {importlib.metadata.version(peer)}" for peer in peers if installed(peer)]
    missing = [peer for peer in peers if not installed(peer)]
    left_out = f"Not installed, so not measured: {', '.join(missing)}.\n" if missing else ""
    # The load tells whether the machine was quiet, this run's own ranks included.
    return (
        f"Command: `{command}`, {date.today()}, {_machine()}, load {os.getloadavg()[0]:.1f} at the end.\n"  # noqa: DTZ011
        f"{', '.join(versions)}.\n{left_out}"
    )


def _machine() -> str:
    """Name the processor and, if there is one, the GPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    parts = [f"{os.cpu_count()} cores", platform.machine(), *models[:1]]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)
