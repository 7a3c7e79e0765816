"""Curves in what MLflow leaves behind: a folder `mlruns`, a database, and histories as JSON or CSV."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from curvewatch_service.curve_files.table import Point, normal, number
from curvewatch_service.errors import CurveFileError

MAGIC: Final = b"SQLite format 3\0"
_LARGEST: Final = 1.797e308
"""MLflow keeps infinity as the largest float64."""
_KEYS: Final = ("key", "metric")
_RUN_NAMES: Final = ("run", "group", "run_name")
_RUN_IDS: Final = ("run_id", "run_uuid")
_QUERY: Final = """
SELECT runs.run_uuid, runs.name, metrics.key, metrics.step, metrics.timestamp, metrics.value, metrics.is_nan
FROM metrics JOIN runs ON runs.run_uuid = metrics.run_uuid
WHERE runs.lifecycle_stage = 'active' ORDER BY runs.start_time, metrics.timestamp
"""


class Entry(NamedTuple):
    """One number of one run."""

    run_id: str
    run_name: str
    point: Point


def by_run(entries: Iterable[Entry]) -> dict[str, list[Point]]:
    """Part entries by run, under its name; with its id where several have that name."""
    runs: dict[tuple[str, str], list[Point]] = {}
    for entry in entries:
        runs.setdefault((entry.run_id, entry.run_name), []).append(entry.point)
    names = [name or run_id for run_id, name in runs]
    return {
        name if names.count(name) == 1 else f"{name} ({run_id})": points
        for name, ((run_id, _), points) in zip(names, runs.items(), strict=True)
    }


def folder_entries(folders: Iterable[Path]) -> Iterator[Entry]:
    """Read the runs of a file store, each in its folder with `meta.yaml` and `metrics`; not the deleted ones.

    Raises:
        CurveFileError: A file is none of MLflow's.
    """
    metas = [(_meta(folder / "meta.yaml"), folder) for folder in folders]
    for meta, folder in sorted(metas, key=lambda one: number(one[0].get("start_time")) or 0.0):
        run_id = meta.get("run_id") or meta.get("run_uuid")
        # Experiments and models have such a file, too.
        if run_id is None or str(meta.get("lifecycle_stage")) == "deleted":
            continue
        for file in sorted(path for path in (folder / "metrics").rglob("*") if path.is_file()):
            key = file.relative_to(folder / "metrics").as_posix()
            for count, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                point = _line_point(key, line.split(), f"{file}, line {count}")
                yield Entry(str(run_id), str(meta.get("run_name") or ""), point)


def _meta(path: Path) -> Mapping[str, Any]:
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, ValueError) as error:
        raise CurveFileError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    return meta if isinstance(meta, dict) else {}


def _line_point(key: str, words: Sequence[str], place: str) -> Point:
    """Read `timestamp value step`, without the step in old files."""
    numbers = [number(word) for word in words[:3]]
    if len(numbers) < 2 or None in numbers:
        raise CurveFileError(f"{place} is no metric of MLflow: it needs a timestamp, a value and a step")
    time, value, step = (*numbers, 0.0)[:3]
    return Point(key, step or 0.0, (time or 0.0) / 1000, _unbounded(value or 0.0))


def database_entries(path: Path) -> Iterator[Entry]:
    """Read the runs of an SQLite database of MLflow; not the deleted ones.

    Raises:
        CurveFileError: It is another database, or damaged.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            for run_id, name, key, step, time, value, is_nan in database.execute(_QUERY):
                fields = {"key": key, "step": step, "timestamp": time, "value": math.nan if is_nan else value}
                if (entry := _entry({**fields, "run_id": run_id, "run_name": name}, "")) is not None:
                    yield entry
    except sqlite3.Error as error:
        raise CurveFileError(f"{path} is no database of MLflow that can be read: {error}") from error


def table_entries(header: Sequence[str], rows: Iterator[list[str]]) -> Iterator[Entry] | None:
    """Read a CSV with a row for each number, as MLflow's page downloads them; None when it is no such table."""
    names = [normal(name) for name in header]
    if "value" not in names or "step" not in names or not any(name in names for name in _KEYS):
        return None
    return (
        entry for cells in rows if (entry := _entry(dict(zip(names, cells, strict=False)), "")) is not None
    )


def document_entries(document: Any, key: str = "") -> Iterator[Entry]:
    """Read what JSON holds of metrics: the lists of `get_metric_history`, and the answers of `metrics/get-history`."""
    if isinstance(document, list):
        for part in document:
            yield from document_entries(part, key)
    elif isinstance(document, dict):
        entry = _entry(document, key)
        if entry is not None:
            yield entry
            return
        for name, part in document.items():
            if isinstance(part, dict | list):
                yield from document_entries(part, key if name == "metrics" else name)


def _entry(fields: Mapping[str, Any], key: str) -> Entry | None:
    value, step = _value(fields.get("value")), number(fields.get("step"))
    known = next((fields[name] for name in _KEYS if isinstance(fields.get(name), str)), key)
    if value is None or step is None or not known:
        return None
    time = number(fields.get("timestamp"))
    run_id = next((str(fields[name]) for name in _RUN_IDS if fields.get(name)), "")
    run_name = next((str(fields[name]) for name in _RUN_NAMES if fields.get(name)), "")
    clock = math.nan if time is None else time / 1000
    return Entry(run_id, run_name, Point(known, step, clock, value))


def _value(value: object) -> float | None:
    # The page guards a minus against spreadsheets, which would take it for a formula.
    known = number(value.removeprefix("'") if isinstance(value, str) else value)
    return None if known is None else _unbounded(known)


def _unbounded(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _LARGEST else value
