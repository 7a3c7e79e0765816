"""Learning curves in the files of other tools: CSV, JSON, JSON lines, TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from curvewatch_service.errors import CurveFileError
from curvewatch_workers.diagnosis import Curve

_TRAIN: Final = (
    "train_loss_epoch",
    "train_loss",
    "training_loss",
    "loss_train",
    "loss_epoch",
    "loss",
)
_VALIDATION: Final = (
    "val_loss_epoch",
    "val_loss",
    "valid_loss",
    "validation_loss",
    "eval_loss",
    "loss_val",
    "test_loss",
)
_ACCURACY: Final = (
    "accuracy",
    "acc",
    "balanced_accuracy",
    "categorical_accuracy",
    "sparse_categorical_accuracy",
)
_VALIDATION_OF: Final = ("val", "valid", "validation", "eval")
_EPOCH: Final = ("epoch", "epochs")
_RATE: Final = ("learning_rate", "lr")
_RATE_OF: Final = "lr_"
"""Before the name of an optimizer (Lightning) or of a group of parameters (Ultralytics)."""


@dataclass(frozen=True, kw_only=True)
class NamedCurve:
    """A curve of a file."""

    name: str
    curve: Curve
    left_out: int = 0
    """Epochs that lack one of both losses: epochs are counted without them."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns with both losses; None looks for those that tools write."""

    train: str | None = None
    validation: str | None = None


Row = Mapping[str, float]
"""What one row has, by normalised column: numbers alone, NaN and infinities included."""


def read_curves(path: Path, columns: Columns) -> list[NamedCurve]:
    """Read the curves of a file: one, or as many as a file of JSON lines has.

    Args:
        path: A CSV of Keras, Lightning, Ultralytics or with named columns; a history of Keras or `trainer_state.json`
            of Hugging Face; rows as JSON, as Weights & Biases and MLflow export them; JSON lines with a curve each; or
            an event file of TensorBoard, or a folder of them.
        columns: Columns to read.

    Raises:
        CurveFileError: It cannot be read, or has no curve.
    """
    if path.is_dir() or "tfevents" in path.name:
        return [_of_rows(path.name, _tensorboard_rows(path), columns)]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CurveFileError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CurveFileError(f"{path} cannot be read as text: {error}") from error
    if text.lstrip()[:1] not in ("{", "["):
        return [_of_rows(str(path), _csv_rows(str(path), text), columns)]
    try:
        return [_of_json(str(path), json.loads(text), columns)]
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise CurveFileError(f"{path} is no JSON: {error}") from error
    return [
        curve_of_line(line, f"{path}, line {number}") for number, line in numbered_lines(io.StringIO(text))
    ]


def numbered_lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def curve_of_line(line: str, place: str) -> NamedCurve:
    """Read a line with `id`, `train_loss`, `val_loss` and perhaps `val_acc` and `lr`.

    In a list, null stands for a loss that is not finite, and for a rate that is not known.

    Args:
        line: One JSON object.
        place: Where it stands, for errors.

    Raises:
        CurveFileError: It is no such object.
    """
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise CurveFileError(f"{place} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CurveFileError(
            f'{place} is no object such as {{"id": "a", "train_loss": [1.0], "val_loss": [1.2]}}'
        )
    return _of_fields(fields, place)


def _of_fields(fields: Mapping[str, Any], place: str) -> NamedCurve:
    train, validation = (_numbers(fields, name, place) for name in ("train_loss", "val_loss"))
    accuracy, rates = (
        None if fields.get(name) is None else _numbers(fields, name, place) for name in ("val_acc", "lr")
    )
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    curve = _curve(train, validation, metrics, rates or (), place)
    return NamedCurve(name=str(fields.get("id", place)), curve=curve)


def _numbers(fields: Mapping[str, Any], name: str, place: str) -> tuple[float, ...]:
    values = fields.get(name)
    if not isinstance(values, list):
        raise CurveFileError(f"{place}: {name} must be a list with one number an epoch, got {_short(values)}")
    return tuple(_number(value, f"{place}: {name}, epoch {epoch}") for epoch, value in enumerate(values, 1))


def _number(value: object, place: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise CurveFileError(f"{place} is {_short(value)}, not a number")
    try:
        return float(value)
    except ValueError:
        raise CurveFileError(f"{place} is {_short(value)}, not a number") from None
    except OverflowError:
        return math.inf


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _curve(
    train: tuple[float, ...],
    validation: tuple[float, ...],
    metrics: dict[str, tuple[float, ...]],
    rates: tuple[float, ...],
    place: str,
) -> Curve:
    try:
        return Curve(train=train, validation=validation, metrics=metrics, learning_rates=rates)
    except ValueError as error:
        raise CurveFileError(f"{place}: {error}") from error


def _of_json(place: str, document: Any, columns: Columns) -> NamedCurve:
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
        return _of_rows(place, [_row(row) for row in document], columns)
    if isinstance(document, dict) and isinstance(document.get("history"), dict):
        document = document["history"]
    if not isinstance(document, dict):
        raise CurveFileError(f"{place} is {_short(document)}, which holds no curve")
    # pandas writes a column as an object with a key for each row.
    columns_of = {k: list(v.values()) if isinstance(v, dict) else v for k, v in document.items()}
    lists = {name: values for name, values in columns_of.items() if isinstance(values, list)}
    if "train_loss" in lists and "val_loss" in lists and columns == Columns():
        return _of_fields({**document, **lists}, place)
    epochs = max(map(len, lists.values()), default=0)
    rows = [{name: values[i] for name, values in lists.items() if i < len(values)} for i in range(epochs)]
    return _of_rows(place, [_row(row) for row in rows], columns)


def _csv_rows(place: str, text: str) -> list[Row]:
    try:
        dialect: Any = csv.Sniffer().sniff(text[:8192], delimiters=",;\t")
    except csv.Error:
        dialect = csv.excel
    try:
        return [_row(row) for row in csv.DictReader(io.StringIO(text), dialect=dialect)]
    except csv.Error as error:
        raise CurveFileError(f"{place} is no CSV: {error}") from error


def _tensorboard_rows(path: Path) -> list[Row]:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise CurveFileError(
            f"{path} holds events of TensorBoard, which is not installed; pip install 'curvewatch[tensorboard]'"
        ) from None
    if not path.exists():
        raise CurveFileError(f"there is no file {path}")
    folders = [path] if path.is_file() else sorted({found.parent for found in path.rglob("*tfevents*")})
    if not folders:
        raise CurveFileError(
            f"{path} is a folder without event files of TensorBoard; name the file with the curve"
        )
    rows: dict[int, dict[str, float]] = {}
    for folder in folders:
        accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        accumulator.Reload()
        # Keras writes the splits into folders of their own, under the same tags.
        split = "val_" if folder.name in _VALIDATION_OF else ""
        for tag in accumulator.Tags()["scalars"]:
            for event in accumulator.Scalars(tag):
                rows.setdefault(event.step, {})[split + _normal(tag)] = event.value
    return [rows[step] for step in sorted(rows)]


def _row(cells: Mapping[Any, Any]) -> dict[str, float]:
    """Return the cells that are numbers."""
    row = {}
    for name, value in cells.items():
        try:
            row[_normal(str(name))] = float(value)
        except (TypeError, ValueError):
            continue
    return row


def _normal(name: str) -> str:
    """Return a column's name in one spelling: `Train/Box Loss` is train_box_loss."""
    # Weights & Biases puts the run's name before the metric's.
    name = name.rsplit(" - ", 1)[-1]
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_").removeprefix("epoch_")


def _of_rows(place: str, rows: Sequence[Row], columns: Columns) -> NamedCurve:
    """Make a curve of rows: those of one epoch are one, the mean of its train losses and its last validation loss."""
    known = list(dict.fromkeys(name for row in rows for name in row))
    train = _losses(known, columns.train, _TRAIN, ("train",), "--train", place)
    validation = _losses(known, columns.validation, _VALIDATION, _VALIDATION_OF, "--validation", place)
    accuracy = next(
        (f"{split}_{name}" for name in _ACCURACY for split in _VALIDATION_OF if f"{split}_{name}" in known),
        None,
    )
    rate = next((name for name in known if name in _RATE or name.startswith(_RATE_OF)), None)
    points = [
        (
            _merged(group, train, statistics.fmean),
            _merged(group, validation, _last),
            _merged(group, [accuracy or ""], _last),
            _merged(group, [rate or ""], _last),
        )
        for group in _epochs(rows, next((name for name in _EPOCH if name in known), None), validation)
    ]
    whole = [(t, v, a, r) for t, v, a, r in points if t is not None and v is not None]
    if not whole:
        raise CurveFileError(
            f"{place} has no epoch with both losses ({' + '.join(train)} and {' + '.join(validation)})"
        )
    trains, validations, accuracies, rates = zip(*whole, strict=True)
    metrics = {"accuracy": _known(accuracies)} if accuracy else {}
    curve = _curve(trains, validations, metrics, _known(rates) if rate else (), place)
    return NamedCurve(name=place, curve=curve, left_out=len(points) - len(whole))


def _known(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)


def _epochs(rows: Sequence[Row], column: str | None, validation: Sequence[str]) -> list[list[Row]]:
    """Part the rows by epoch, in order; without such a column an epoch ends with each validation loss."""
    if column is not None:
        groups: dict[int, list[Row]] = {}
        for row in rows:
            if column in row and math.isfinite(row[column]):
                # Within an epoch, Hugging Face counts fractions.
                groups.setdefault(math.ceil(row[column]), []).append(row)
        return [groups[epoch] for epoch in sorted(groups)]
    epochs: list[list[Row]] = [[]]
    for row in rows:
        epochs[-1].append(row)
        if any(name in row for name in validation):
            epochs.append([])
    return [epoch for epoch in epochs if epoch]


def _merged(
    rows: Sequence[Row], columns: Sequence[str], merge: Callable[[list[float]], float]
) -> float | None:
    """Return the sum of the columns, each merged over the rows that have it; None when one is in no row."""
    merged = []
    for column in columns:
        values = [row[column] for row in rows if column in row]
        if not values:
            return None
        merged.append(merge(values))
    return sum(merged)


def _last(values: list[float]) -> float:
    return values[-1]


def _losses(
    known: Sequence[str],
    asked: str | None,
    names: Sequence[str],
    splits: Sequence[str],
    option: str,
    place: str,
) -> list[str]:
    """Return the column of a loss, or the columns that add up to it, as Ultralytics writes them."""
    if asked is not None:
        if _normal(asked) not in known:
            raise CurveFileError(f"{place} has no column {asked!r}; it has {_listed(known)}")
        return [_normal(asked)]
    found = next((name for name in names if name in known), None)
    if found is not None:
        return [found]
    parts = [
        name
        for name in known
        if name.endswith("_loss") and name.startswith(tuple(f"{split}_" for split in splits))
    ]
    if not parts:
        raise CurveFileError(
            f"{place} has no column with a known name of a {splits[0]} loss, such as {names[0]}; name it with "
            f"{option}; there are {_listed(known)}"
        )
    return parts


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:30]) or "none with numbers"
