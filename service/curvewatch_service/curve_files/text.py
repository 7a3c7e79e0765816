"""The text of a file, whatever wrote it, and the cells of a CSV."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from curvewatch_service.errors import CurveFileError

LARGEST_FILE: Final = 2**30
"""Bytes that are read of one file; a curve needs a few."""
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DECIMAL_COMMA: Final = re.compile(r"\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*")


def read_bytes(path: Path) -> bytes:
    """Read a file, unpacked where it is gzip.

    Raises:
        CurveFileError: It is too large, or damaged.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(LARGEST_FILE + 1)
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(data)) as unpacked:
                data = unpacked.read(LARGEST_FILE + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise CurveFileError(f"{path} is a damaged gzip file: {error}") from error
    if len(data) > LARGEST_FILE:
        raise CurveFileError(f"{path} has more than {LARGEST_FILE >> 20} MiB; give the losses by epoch alone")
    return data


def decode(path: Path, data: bytes) -> str:
    """Return the text of a file: UTF-8, or UTF-16 as Excel writes it.

    Raises:
        CurveFileError: It is no text, or empty.
    """
    try:
        text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise CurveFileError(f"{path} cannot be read as text: {error}; is it UTF-8?") from error
    if not text.strip():
        raise CurveFileError(f"{path} is empty")
    if "\0" in text:
        raise CurveFileError(f"{path} cannot be read as text: it is a binary file of an unknown kind")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def csv_rows(place: str, text: str) -> tuple[list[str], Iterator[list[str]]]:
    """Return the header of a CSV, and its rows; the separator is a comma, a semicolon or a tab.

    Raises:
        CurveFileError: It is no CSV.
    """
    # Excel names the separator in a line of its own.
    text = re.sub(r"\Asep=.\n", "", text.lstrip("\n"))
    # Not csv.Sniffer, which takes decimal commas for separators.
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=lambda one: len(next(csv.reader([first], delimiter=one), [])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = _cells(place, reader, comma=delimiter != ",")
    return next(rows, []), rows


def _cells(place: str, reader: Iterator[list[str]], *, comma: bool) -> Iterator[list[str]]:
    try:
        for row in reader:
            yield [
                cell.replace(",", ".") if comma and _DECIMAL_COMMA.fullmatch(cell) else cell for cell in row
            ]
    except csv.Error as error:
        raise CurveFileError(f"{place} is no CSV: {error}") from error
