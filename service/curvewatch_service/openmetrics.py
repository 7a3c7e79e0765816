"""Samples with times as OpenMetrics text, the form that `promtool tsdb create-blocks-from openmetrics` reads."""

from __future__ import annotations

import math
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import IO, Final, Self

from prometheus_client.utils import floatToGoString

from curvewatch_workers.series import Series

END: Final = b"# EOF"
_LINES: Final = 1000
"""That are handed on at once."""
_IN_MEMORY: Final = 2**20
_HELP, _TYPE = b"# HELP ", b"# TYPE "


@dataclass(frozen=True)
class TimeSeries:
    """Values of one set of labels, in order of time, in 16 bytes each."""

    series: Series
    labels: Mapping[str, str]
    times: array[int] = field(default_factory=lambda: array("q"))
    """Milliseconds since 1970, each larger than the one before."""
    values: array[float] = field(default_factory=lambda: array("d"))


def document(found: Iterable[TimeSeries]) -> Iterator[bytes]:
    """Yield the text of time series; those of one name come one after the other.

    Args:
        found: Gauges, in the order of their names.
    """
    name = ""
    for one in found:
        if one.series.name != name:
            name = one.series.name
            yield f"# HELP {name} {_escaped(one.series.help)}\n# TYPE {name} {one.series.kind}\n".encode()
        labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in one.labels.items())
        lines = (
            f"{name}{{{labels}}} {_value_text(value)} {seconds_text(time)}\n"
            for time, value in zip(one.times, one.values, strict=True)
        )
        while some := "".join(islice(lines, _LINES)):
            yield some.encode()
    yield END + b"\n"


def seconds_text(milliseconds: int) -> str:
    """Return a time in seconds that Prometheus reads as this millisecond.

    It takes the whole part of 1000 times the number, which for the nearest number may be the millisecond before: so it
    is for some of the years 2038 and 2039.
    """
    seconds = milliseconds / 1000
    while int(seconds * 1000) < milliseconds:
        seconds = math.nextafter(seconds, math.inf)
    return repr(seconds)


def _value_text(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Joined:
    """Joins documents: in one document all of one name stand together, and there is one end.

    What does not fit into a little memory is kept in temporary files meanwhile.
    """

    def __init__(self) -> None:
        self._files = ExitStack()
        self._by_name: dict[bytes, tuple[bytes, IO[bytes]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.close()

    def add(self, lines: Iterable[bytes]) -> Iterator[int]:
        """Take a document that `document` made, by its lines without their ends.

        Yields:
            Samples that have been taken, now and then.

        Raises:
            ValueError: It has no end, or something that `document` does not write.
        """
        rest = iter(lines)
        samples, into, line = 0, None, b""
        for line in rest:
            if line.startswith(_HELP):
                into = self._family(line, next(rest, b""))
            elif line == END:
                break
            elif into is None or line.startswith(b"#") or not line:
                raise ValueError(f"no line of a history: {line[:80]!r}")
            else:
                into.write(line + b"\n")
                samples += 1
                if samples % _LINES == 0:
                    yield samples
        if line != END:
            raise ValueError("it ends in the middle")

    def _family(self, help_line: bytes, type_line: bytes) -> IO[bytes]:
        name = help_line.split(b" ")[2]
        if not type_line.startswith(_TYPE + name + b" "):
            raise ValueError(f"no type of {name!r}: {type_line[:80]!r}")
        if name not in self._by_name:
            kept = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed with the others
            self._files.callback(kept.close)
            self._by_name[name] = (help_line + b"\n" + type_line + b"\n", kept)
        return self._by_name[name][1]

    def write(self, to: IO[bytes]) -> None:
        """Write all of it."""
        for head, kept in self._by_name.values():
            to.write(head)
            kept.seek(0)
            shutil.copyfileobj(kept, to)
        to.write(END + b"\n")
