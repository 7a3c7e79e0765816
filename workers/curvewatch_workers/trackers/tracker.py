"""What a tracker is, and what it is told of its run."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from curvewatch_workers.contract import JobSpec
from curvewatch_workers.trackers.points import Point

FLUSH_SECONDS = 30.0
"""Longest wait for a tracker at the end of an attempt."""
_LONGEST_ID = 64


class Tracker(Protocol):
    """Shows the curve of one run. Called from one thread; may raise anything, and may take its time."""

    def rewrite(self, curve: Sequence[Point]) -> None:
        """Show exactly these epochs, in order, whatever an earlier attempt or an earlier call has written."""

    def append(self, point: Point) -> None:
        """Show one more epoch, later than all before."""

    def close(self) -> None:
        """End in order."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """The run that a tracker shows."""

    run_id: str
    """Its name for people."""
    key: str
    """Its name in a tracker's own store, the same over all attempts and no other run's: letters, digits, `.`, `_`
    and `-`, at most 64 characters."""
    spec: JobSpec
    """The job."""
    folder: Path
    """Existing folder for what is written to files."""
    environment: Mapping[str, str]
    """The process's environment variables, for the settings of the trackers' own libraries."""


def claim_key(folder: Path, run_id: str) -> str:
    """Return the run's key, made by its first attempt and kept in the folder.

    A run's name alone would not do: two runs of one job under torchrun have the same.
    """
    path = folder / "key"
    if not path.exists():
        random = secrets.token_hex(4)
        write_whole(path, f"{run_id[: _LONGEST_ID - len(random) - 1]}-{random}")
    return path.read_text(encoding="utf-8")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that whoever reads it meanwhile sees the old text or the new."""
    draft = path.with_name(f".{path.name}-{threading.get_native_id()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
