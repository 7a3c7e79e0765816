"""A JSON-lines file, `epochs.jsonl`: one object an epoch, NaN as the string `NaN`, as in the records."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from curvewatch_workers.trackers.files import append_line, rewrite_lines, write_settings
from curvewatch_workers.trackers.points import Point
from curvewatch_workers.trackers.tracker import TrackedRun


class JsonlTracker:
    """Writes `epochs.jsonl`, and `job.json` beside it."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._path = run.folder / "epochs.jsonl"

    def rewrite(self, curve: Sequence[Point]) -> None:
        """Write the file anew."""
        write_settings(self._run.folder, self._run.spec)
        rewrite_lines(self._path, (_line(point) for point in curve))

    def append(self, point: Point) -> None:
        """Append a line."""
        append_line(self._path, _line(point))

    def close(self) -> None:
        """Do nothing: each line is in the file already."""


def _line(point: Point) -> str:
    values = {key: _number(value) for key, value in point.values.items()}
    entry = {"epoch": point.epoch, "finished_at": point.time.isoformat(), **values}
    return json.dumps(entry, allow_nan=False) + "\n"


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
