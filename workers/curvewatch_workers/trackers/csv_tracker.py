"""A CSV file, `epochs.csv`: one row an epoch, floats with all their digits, NaN as `nan`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from curvewatch_workers.trackers.files import append_line, rewrite_lines, write_settings
from curvewatch_workers.trackers.points import Point
from curvewatch_workers.trackers.tracker import TrackedRun


class CsvTracker:
    """Writes `epochs.csv`, and `job.json` beside it."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run
        self._path = run.folder / "epochs.csv"
        self._columns: list[str] = []

    def rewrite(self, curve: Sequence[Point]) -> None:
        """Write the file anew."""
        write_settings(self._run.folder, self._run.spec)
        self._write([_cells(point) for point in curve])

    def append(self, point: Point) -> None:
        """Append a row; with a number that has no column yet, write the file anew."""
        cells = _cells(point)
        if cells.keys() <= set(self._columns):
            append_line(self._path, self._line(cells))
            return
        with self._path.open(encoding="utf-8", newline="") as file:
            before = list(csv.DictReader(file))
        self._write([*before, cells])

    def close(self) -> None:
        """Do nothing: each row is in the file already."""

    def _write(self, rows: Sequence[Mapping[str, object]]) -> None:
        # A task that was changed between two starts may measure something else: the cells of what it lacks are empty.
        self._columns = list(dict.fromkeys(column for row in rows for column in row))
        header = [self._line({column: column for column in self._columns})] if rows else []
        rewrite_lines(self._path, [*header, *(self._line(row) for row in rows)])

    def _line(self, row: Mapping[str, object]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerow(row)
        return text.getvalue()


def _cells(point: Point) -> dict[str, object]:
    return {"epoch": point.epoch, "finished_at": point.time.isoformat(), **point.values}
