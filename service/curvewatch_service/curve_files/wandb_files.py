"""Curves in what Weights & Biases leaves behind: the file of an offline run, and the CSV of a chart."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from curvewatch_service.curve_files.table import Point, Row, normal, number
from curvewatch_service.errors import CurveFileError

MAGIC: Final = b":W&B"
_BLOCK, _HEAD = 32768, 7
_WHOLE, _LAST = 1, 4
_HISTORY, _RUN = 2, 17
"""Fields of `Record` in wandb_internal.proto."""


def wandb_run(path: Path, data: bytes) -> tuple[str, list[Row]]:
    """Read a file `run-*.wandb`: the run's name, or else its id, and a row for each step.

    Without the library, which reads such files in its Go program only. What a run that died left half written is
    left out.

    Raises:
        CurveFileError: It is damaged.
    """
    name, rows = path.stem, []
    try:
        for record in _records(data):
            fields = dict(_fields(record))
            if _RUN in fields:
                run = dict(_fields(fields[_RUN]))
                name = (run.get(8) or run.get(1) or name.encode()).decode()
            if _HISTORY in fields:
                rows.append(_history(fields[_HISTORY]))
    except (ValueError, IndexError, struct.error) as error:
        raise CurveFileError(f"{path} is a damaged file of Weights & Biases: {error}") from error
    return name, rows


def _records(data: bytes) -> Iterator[bytes]:
    """Read the blocks of a LevelDB log, after seven bytes of W&B's."""
    position, record = _HEAD, b""
    while position + _HEAD <= len(data):
        if (left := _BLOCK - position % _BLOCK) < _HEAD:
            position += left
            continue
        _checksum, length, part = struct.unpack_from("<IHB", data, position)
        position += _HEAD
        if position + length > len(data):
            return
        record += data[position : position + length]
        position += length
        if part in (_WHOLE, _LAST):
            yield record
            record = b""


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Read the fields of a protobuf message that have a length: texts and messages."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 2:
            length, position = _varint(message, position)
            yield tag >> 3, message[position : position + length]
            position += length
        elif kind == 0:
            _, position = _varint(message, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has the unknown type {kind}")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _history(message: bytes) -> Row:
    row = {}
    for field, item in _fields(message):
        if field != 1:
            continue
        entries = list(_fields(item))
        name = "/".join(text.decode() for number, text in entries if number == 2)
        texts = dict(entries)
        value = number(json.loads(texts.get(16, b"null")))
        if value is not None:
            row[normal(name or texts.get(1, b"").decode())] = value
    return row


def chart_runs(header: Sequence[str], rows: Iterator[list[str]]) -> dict[str, list[Point]]:
    """Part the CSV of a chart by run: its columns are named `run - metric`, with `__MIN` and `__MAX` beside each.

    The first column that names no run is the chart's axis.
    """
    runs: dict[str, dict[int, str]] = {}
    shared = {i: name for i, name in enumerate(header) if " - " not in name}
    for i, name in enumerate(header):
        run, between, metric = name.rpartition(" - ")
        if between and not metric.endswith(("__MIN", "__MAX")):
            runs.setdefault(run, {})[i] = metric
    found: dict[str, list[Point]] = {run: [] for run in runs}
    for count, cells in enumerate(rows):
        axes = _cells(cells, shared)
        step = next(iter(axes.values()), float(count))
        for run, columns in runs.items():
            if own := _cells(cells, columns):
                found[run] += [Point(name, step, math.nan, value) for name, value in (axes | own).items()]
    return found


def _cells(cells: Sequence[str], columns: dict[int, str]) -> dict[str, float]:
    return {
        name: value
        for i, name in columns.items()
        if i < len(cells) and (value := number(cells[i])) is not None
    }
