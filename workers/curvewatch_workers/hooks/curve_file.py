"""The file that a hook keeps: a row for each epoch, in a form that `curvewatch diagnose` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from curvewatch_workers.durable import sync
from curvewatch_workers.errors import HookError

Unit = Literal["epoch", "step"]
"""What the rows are counted in: epochs from 1, or optimizer steps where the trainer validates by them."""
_HEADER: Final = ["epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate"]
"""Columns; the first is the unit."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The numbers of an epoch, as the framework gave them; None for one that it did not give."""

    at: int
    """Number of the epoch from 1, or of the step."""
    train: float | None
    validation: float | None
    accuracy: float | None = None
    learning_rate: float | None = None


def read_rows(path: Path) -> tuple[Row, ...]:
    """Return the rows of a file that `write_rows` wrote; none when there is no file.

    Raises:
        HookError: It cannot be read, or is something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise HookError(f"{path} cannot be read: {error}; name another file") from error
    try:
        lines = csv.DictReader(io.StringIO(text))
        if list(lines.fieldnames or _HEADER)[1:] != _HEADER[1:]:
            raise ValueError(lines.fieldnames)
        return tuple(_row(cells) for cells in lines)
    except (KeyError, TypeError, ValueError) as error:
        raise HookError(
            f"{path} is no curve of CurvewatchCallback, which would write over it; name another file"
        ) from error


def _row(cells: dict[str, str]) -> Row:
    at = cells["epoch"] if "epoch" in cells else cells["step"]
    train, validation, accuracy, rate = (float(cells[name]) if cells[name] else None for name in _HEADER[1:])
    return Row(at=int(at), train=train, validation=validation, accuracy=accuracy, learning_rate=rate)


def write_rows(path: Path, rows: Iterable[Row], unit: Unit) -> None:
    """Write the file whole and put it in the place of the one before: a crash leaves one or the other.

    Raises:
        OSError: It cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((unit, *_HEADER[1:]))
    for row in rows:
        numbers = (row.train, row.validation, row.accuracy, row.learning_rate)
        writer.writerow((row.at, *("" if number is None else repr(number) for number in numbers)))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.part")
    draft.write_text(text.getvalue(), encoding="utf-8")
    sync(draft)
    draft.replace(path)
    sync(path.parent)
