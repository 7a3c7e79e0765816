"""A text file of one line an epoch: rewritten whole or not at all, then appended to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from curvewatch_workers.contract import JobSpec
from curvewatch_workers.trackers.points import settings_of
from curvewatch_workers.trackers.tracker import write_whole


def rewrite_lines(path: Path, lines: Iterable[str]) -> None:
    """Make the file hold these lines, each ending in a newline."""
    write_whole(path, "".join(lines))


def append_line(path: Path, line: str) -> None:
    """Append a line, which ends in a newline, in one write.

    Raises:
        FileNotFoundError: Somebody has removed the file: one without its first epochs must not take its place.
    """
    with path.open("r+b", buffering=0) as file:
        file.seek(0, 2)
        file.write(line.encode())


def write_settings(folder: Path, spec: JobSpec) -> None:
    """Write what the job was given to `job.json`."""
    write_whole(folder / "job.json", json.dumps(settings_of(spec), indent=2) + "\n")
