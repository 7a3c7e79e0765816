"""A CSV file, `epochs.csv`: one row an epoch, floats with all their digits, NaN as `nan`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from curvewatch_workers.trackers.files import append_line, rewrite_lines, write_settings
from curvewatch_workers.trackers.points import Point
from curvewatch_workers.trackers.tracker import TrackedRun


class CsvTracker:
    """Writes `epochs.csv`, and `job.json` beside it."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._path = run.folder / "epochs.csv"
        self._curve: list[Point] = []
        self._columns: list[str] = []

    def rewrite(self, curve: Sequence[Point]) -> None:
        """Write the file anew."""
        self._curve = list(curve)
        # A task that was changed between two starts may measure something else: a cell of a metric it lacks is empty.
        self._columns = ["epoch", "finished_at", *dict.fromkeys(key for one in curve for key in one.values)]
        header = [_line(self._columns)] if curve else []
        write_settings(self._run.folder, self._run.spec)
        rewrite_lines(self._path, [*header, *(self._row(point) for point in curve)])

    def append(self, point: Point) -> None:
        """Append a row; with a column that is new, write the file anew."""
        self._curve.append(point)
        if set(point.values) <= set(self._columns):
            append_line(self._path, self._row(point))
        else:
            self.rewrite(self._curve)

    def close(self) -> None:
        """Do nothing: each row is in the file already."""

    def _row(self, point: Point) -> str:
        cells = {"epoch": point.epoch, "finished_at": point.time.isoformat(), **point.values}
        return _line(cells.get(column, "") for column in self._columns)


def _line(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
