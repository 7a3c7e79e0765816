"""Processes of the operating system, told apart from later ones that got the same number."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from types import ModuleType
from typing import Any


@functools.cache
def _psutil() -> ModuleType:
    """Return psutil, which Ray brings along and puts on the path when it is imported."""
    importlib.import_module("ray")
    return importlib.import_module("psutil")


def start_time(pid: int) -> float | None:
    """Return the Unix time at which a process started; None when it is not there or a zombie."""
    psutil = _psutil()
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.Error:
        return None


def is_running(pid: int, started: float) -> bool:
    """Tell whether the process that started at this time still runs under this number."""
    now = start_time(pid)
    return now is not None and abs(now - started) < 1.0


def family(leader: int, started: float, mark: tuple[str, str]) -> list[Any]:
    """Return every process that a session leader has brought into being, itself included.

    Those are its descendants, the members of its session (they stay when their parents die), and the
    processes that carry the mark in their environment (a job's driver has a session of its own).

    Args:
        leader: Number of the process that leads the session.
        started: Unix time at which it started.
        mark: Name and value of the environment variable that it handed down.
    """
    psutil = _psutil()
    found: dict[int, Any] = {}
    reused = start_time(leader) is not None and not is_running(leader, started)
    if not reused:
        try:
            process = psutil.Process(leader)
            found |= {child.pid: child for child in [process, *process.children(recursive=True)]}
        except psutil.Error:
            pass
    for process in psutil.process_iter():
        if process.pid in found or process.pid == os.getpid():
            continue
        if (not reused and _session(process.pid) == leader) or _carries(process, mark):
            found[process.pid] = process
    return list(found.values())


def kill(processes: list[Any], *, seconds: float) -> list[int]:
    """Kill processes and wait for their end; return the numbers of those that are still there."""
    psutil = _psutil()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _, left = psutil.wait_procs(processes, timeout=seconds)
    return [process.pid for process in left if start_time(process.pid) is not None]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _carries(process: Any, mark: tuple[str, str]) -> bool:
    psutil = _psutil()
    name, value = mark
    try:
        return bool(process.environ().get(name) == value)
    except (psutil.Error, OSError):
        return False
