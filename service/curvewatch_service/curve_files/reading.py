"""From a path to its curves: which kind of file it is, and what is in it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from curvewatch_service.curve_files import mlflow_files, wandb_files
from curvewatch_service.curve_files.table import (
    Columns,
    NamedCurve,
    Point,
    Row,
    curve_of_points,
    curve_of_rows,
    make_curve,
    normal,
    number,
    row_of,
)
from curvewatch_service.curve_files.tensorboard_files import tensorboard_points
from curvewatch_service.curve_files.text import csv_rows, decode, read_bytes
from curvewatch_service.errors import CurveFileError


class HalfCurveError(CurveFileError):
    """No run of an exported chart or history has both losses; another file may have the other one."""

    def __init__(self, message: str, *, place: str, runs: Mapping[str, Sequence[Point]]) -> None:
        super().__init__(message)
        self.place = place
        self.runs = runs


def _silent(_: str) -> None:
    pass


def read_curves(path: Path, columns: Columns, *, tell: Callable[[str], None] = _silent) -> list[NamedCurve]:
    """Read the curves of a file or a folder: one, or as many as it has runs or lines.

    Args:
        path: A CSV of Keras, Lightning, Ultralytics or with named columns; a history of Keras or `trainer_state.json`
            of Hugging Face; rows as JSON or JSON lines, or JSON lines with a curve each; a chart's CSV, the history or
            the offline file of Weights & Biases; a folder `mlruns`, a database, a chart's CSV or a history as JSON of
            MLflow; an event file of TensorBoard. Folders are searched for runs of the last three. Text may be gzipped.
        columns: Columns to read.
        tell: Takes a sentence for each run among several that has no curve.

    Raises:
        HalfCurveError: It is a chart or a history of which no run has both losses.
        CurveFileError: It cannot be read, or has no curve.
    """
    try:
        if path.is_dir():
            return _of_runs(path, _folder_runs(path), columns, tell)
        if "tfevents" in path.name and path.is_file():
            return _of_runs(path, tensorboard_points(path, [path]), columns, tell)
        data = read_bytes(path)
        if data.startswith(wandb_files.MAGIC):
            return _of_runs(path, dict([wandb_files.wandb_run(path, data)]), columns, tell)
        if data.startswith(mlflow_files.MAGIC):
            entries = mlflow_files.database_entries(path)
            return _of_runs(path, mlflow_files.by_run(entries), columns, tell)
        text = decode(path, data)
    except FileNotFoundError:
        raise CurveFileError(f"there is no file {path}") from None
    except OSError as error:
        raise CurveFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CurveFileError(f"{path} has a file that is no text: {error}") from error
    return _of_text(path, text, columns, tell)


def join_charts(
    charts: Sequence[HalfCurveError], columns: Columns, *, tell: Callable[[str], None] = _silent
) -> list[NamedCurve]:
    """Make curves of charts and histories that have one loss each: runs of one name are one run.

    Args:
        charts: What `read_curves` raised for each.
        columns: Columns to read.
        tell: Takes a sentence for each run among several that has no curve.

    Raises:
        CurveFileError: No run has both losses.
    """
    if len(charts) == 1:
        raise charts[0]
    runs: dict[str, list[Point]] = {}
    for chart in charts:
        for name, points in chart.runs.items():
            runs.setdefault(name, []).extend(points)
    return _of_runs(" + ".join(chart.place for chart in charts), runs, columns, tell)


Runs = Mapping[str, Sequence[Row] | Sequence[Point]]
"""What an export has of each run, by its name."""


def _of_runs(path: Path | str, runs: Runs, columns: Columns, tell: Callable[[str], None]) -> list[NamedCurve]:
    """Make a curve of each run; those without one are told, unless none has one."""
    curves, problems = [], []
    for name, found in runs.items():
        place = f"{path}, {name}" if name else str(path)
        try:
            curves.append(_of_run(place, found, columns))
        except CurveFileError as error:
            problems.append(str(error))
    if not curves:
        more = f"; nor has any of its other {len(problems) - 1} runs a curve" if len(problems) > 1 else ""
        raise CurveFileError(f"{problems[0]}{more}" if problems else f"{path} has no run with metrics")
    for problem in problems:
        tell(f"left out: {problem}")
    return curves


def _of_run(place: str, found: Sequence[Row] | Sequence[Point], columns: Columns) -> NamedCurve:
    points = [one for one in found if isinstance(one, Point)]
    if points:
        return curve_of_points(place, points, columns)
    return curve_of_rows(place, [one for one in found if not isinstance(one, Point)], columns)


def _folder_runs(path: Path) -> Runs:
    runs: dict[str, Sequence[Row] | Sequence[Point]] = {}
    for file in sorted(path.rglob("*.wandb")):
        name, rows = wandb_files.wandb_run(file, read_bytes(file))
        _add(runs, name, rows, file.parent.name)
    metas = [path.parent / "meta.yaml"] if path.name == "metrics" else sorted(path.rglob("meta.yaml"))
    entries = list(
        mlflow_files.folder_entries(meta.parent for meta in metas if (meta.parent / "metrics").is_dir())
    )
    for database in sorted(path.rglob("mlflow.db")):
        entries += mlflow_files.database_entries(database)
    for name, points in mlflow_files.by_run(entries).items():
        _add(runs, name, points, "MLflow")
    if events := sorted(path.rglob("*tfevents*")):
        for name, points in tensorboard_points(path, events).items():
            _add(runs, name, points, "TensorBoard")
    if not runs:
        raise CurveFileError(
            f"{path} is a folder without event files of TensorBoard or runs of Weights & Biases or MLflow; "
            "name the file with the curve"
        )
    return runs


def _add(runs: dict[str, Any], name: str, found: Sequence[Row] | Sequence[Point], of: str) -> None:
    runs[f"{name} ({of})" if name in runs else name] = found


def _of_text(path: Path, text: str, columns: Columns, tell: Callable[[str], None]) -> list[NamedCurve]:
    is_json, broken, document = text.lstrip()[:1] in ("{", "["), None, None
    try:
        document = _parsed(text, str(path)) if is_json else None
    except CurveFileError as error:
        broken = error
    if document is not None:
        return _of_document(path, document, columns, tell)
    # A broken line, be it the first, makes no other kind of file of the curves beside it.
    if not any(map(_holds_curve, text.split("\n"))):
        if not is_json:
            return _of_csv(path, text, columns, tell)
        if broken is not None:
            raise broken
    return _of_lines(path, text, columns, tell)


def _holds_curve(line: str) -> bool:
    """Tell whether a line of several is one with a curve, and no row."""
    if not line.startswith("{") or '_loss"' not in line:
        return False
    try:
        return _has_both_lists(_parsed(line, ""))
    except CurveFileError:
        return False


def _of_csv(path: Path, text: str, columns: Columns, tell: Callable[[str], None]) -> list[NamedCurve]:
    header, rows = csv_rows(str(path), text)
    entries = mlflow_files.table_entries(header, rows)
    runs: dict[str, list[Point]] = {}
    if entries is not None:
        runs = mlflow_files.by_run(entries)
    elif any(" - " in name for name in header):
        runs = wandb_files.chart_runs(header, rows)
    if runs:
        return _of_export(path, runs, columns, tell)
    names = [normal(name) for name in header]
    table = [
        {name: value for name, cell in zip(names, cells, strict=False) if (value := number(cell)) is not None}
        for cells in rows
    ]
    return [curve_of_rows(str(path), table, columns)]


def _of_export(
    path: Path, runs: Mapping[str, Sequence[Point]], columns: Columns, tell: Callable[[str], None]
) -> list[NamedCurve]:
    try:
        return _of_runs(path, runs, columns, tell)
    except CurveFileError as error:
        hint = "where another file has the other loss, name it as well"
        raise HalfCurveError(f"{error}; {hint}", place=str(path), runs=runs) from error


def _parsed(text: str, place: str) -> Any:
    """Parse JSON; None where it is JSON lines."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise CurveFileError(f"{place} is no JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CurveFileError(f"{place} is no JSON that can be read: {error}") from error


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers from 1."""
    return ((count, line) for count, line in enumerate(lines, 1) if line.strip())


def _of_lines(path: Path, text: str, columns: Columns, tell: Callable[[str], None]) -> list[NamedCurve]:
    """Read JSON lines: a curve each, or a row each, as histories are dumped."""
    lines = [(f"{path}, line {count}", line) for count, line in _numbered(text.split("\n"))]
    objects = _each(lines, _object, tell)
    if any(
        isinstance(fields.get(name), list) for _, fields in objects for name in ("train_loss", "val_loss")
    ):
        return [curve for _, curve in _each(objects, _of_fields, tell)]
    return _of_document(path, [fields for _, fields in objects], columns, tell)


def curves_of_lines(lines: Iterable[str], *, tell: Callable[[str], None] = _silent) -> list[NamedCurve]:
    """Read lines with `id`, `train_loss`, `val_loss` and perhaps `val_acc` and `lr`.

    In a list, null stands for a loss that is not finite, and for a rate that is not known.

    Args:
        lines: A JSON object each; empty ones are passed by.
        tell: Takes a sentence for each line among several that has no curve.

    Raises:
        CurveFileError: None has a curve.
    """
    found = [(f"line {count}", line) for count, line in _numbered(lines)]
    return [curve for _, curve in _each(_each(found, _object, tell), _of_fields, tell)]


_Line = TypeVar("_Line")
_Read = TypeVar("_Read")


def _each(
    lines: Sequence[tuple[str, _Line]], read: Callable[[_Line, str], _Read], tell: Callable[[str], None]
) -> list[tuple[str, _Read]]:
    """Read what stands at each place; what cannot be read is told, and costs the others nothing.

    Raises:
        CurveFileError: Nothing of it can be read.
    """
    good: list[tuple[str, _Read]] = []
    problems: list[str] = []
    for place, line in lines:
        try:
            good.append((place, read(line, place)))
        except CurveFileError as error:
            problems.append(str(error))
    if problems and not good:
        raise CurveFileError(problems[0])
    for problem in problems:
        tell(f"left out: {problem}")
    return good


def _object(line: str, place: str) -> Mapping[str, Any]:
    fields = _parsed(line, place)
    if not isinstance(fields, dict):
        raise CurveFileError(
            f'{place} is no object such as {{"id": "a", "train_loss": [1.0], "val_loss": [1.2]}}'
        )
    return fields


def _of_fields(fields: Mapping[str, Any], place: str) -> NamedCurve:
    given = fields.get("id")
    if given is not None:
        place = f"{place} (id {_short(given)})"
    train, validation = (_numbers(fields, name, place) for name in ("train_loss", "val_loss"))
    epochs = min(len(train), len(validation))
    # A single rate is a setting of the run, which its schedule may have left at once.
    has_rates, has_accuracy = isinstance(fields.get("lr"), list), fields.get("val_acc") is not None
    rates = _of_length(epochs, _numbers(fields, "lr", place)) if has_rates else ()
    metrics = {"accuracy": _of_length(epochs, _numbers(fields, "val_acc", place))} if has_accuracy else {}
    return NamedCurve(
        name=place if given is None else str(given),
        curve=make_curve(train[:epochs], validation[:epochs], metrics, rates, place),
        left_out=max(len(train), len(validation)) - epochs,
        given_id=given,
    )


def _of_length(epochs: int, numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Return the numbers of so many epochs; those that are not there are not known."""
    return (*numbers, *[math.nan] * (epochs - len(numbers)))[:epochs]


def _has_both_lists(document: Any) -> bool:
    """Tell whether this is a line of its own with a curve, whatever else it holds."""
    return isinstance(document, dict) and all(
        isinstance(document.get(name), list) for name in ("train_loss", "val_loss")
    )


def _numbers(fields: Mapping[str, Any], name: str, place: str) -> tuple[float, ...]:
    values = fields.get(name)
    if not isinstance(values, list):
        raise CurveFileError(f"{place}: {name} must be a list with one number an epoch, got {_short(values)}")
    return tuple(_entry(value, f"{place}: {name}, epoch {epoch}") for epoch, value in enumerate(values, 1))


def _entry(value: object, place: str) -> float:
    known = math.nan if value is None else number(value)
    if known is None:
        raise CurveFileError(f"{place} is {_short(value)}, not a number")
    return known


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _of_document(
    path: Path, document: Any, columns: Columns, tell: Callable[[str], None]
) -> list[NamedCurve]:
    place = str(path)
    if columns == Columns() and _has_both_lists(document):
        return [_of_fields(document, place)]
    entries = list(mlflow_files.document_entries(document))
    if entries:
        return _of_export(path, mlflow_files.by_run(entries), columns, tell)
    if isinstance(document, dict) and isinstance(document.get("log_history"), list):
        # The last row sums the whole run up.
        document = [
            row for row in document["log_history"] if not isinstance(row, dict) or "train_runtime" not in row
        ]
    if isinstance(document, list):
        if not all(isinstance(row, dict) for row in document):
            raise CurveFileError(
                f"{place} is a list, but not one of rows such as {{'epoch': 1, 'loss': 0.5}}"
            )
        return [curve_of_rows(place, [row_of(row) for row in document], columns)]
    return [_of_columns(place, document, columns)]


def _of_columns(place: str, document: Any, columns: Columns) -> NamedCurve:
    """Read an object with a list for each column."""
    if isinstance(document, dict) and isinstance(document.get("history"), dict):
        document = document["history"]
    if not isinstance(document, dict):
        raise CurveFileError(f"{place} is {_short(document)}, which holds no curve")
    if columns == Columns() and _has_both_lists(document):
        return _of_fields(document, place)
    # pandas writes a column as an object with a key for each row.
    parts = {k: list(v.values()) if isinstance(v, dict) else v for k, v in document.items()}
    lists = {name: values for name, values in parts.items() if isinstance(values, list)}
    single = [name for name, value in parts.items() if number(value) is not None]
    epochs = max(map(len, lists.values()), default=0)
    if single and epochs < 2:
        raise CurveFileError(
            f"{place} holds one value each of {', '.join(single[:30])}, as a summary does; a curve needs one an epoch"
        )
    rows = [{name: values[i] for name, values in lists.items() if i < len(values)} for i in range(epochs)]
    return curve_of_rows(place, [row_of(row) for row in rows], columns)
