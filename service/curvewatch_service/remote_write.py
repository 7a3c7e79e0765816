"""Prometheus' remote write, version 1: samples with times of their own, sent to a receiver.

A request is the protobuf message prometheus.WriteRequest, compressed as a raw block of snappy.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cramjam
import httpx
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from curvewatch_service.errors import SettingsError
from curvewatch_service.samples import Sample

TIMEOUT_SECONDS = 10.0
"""How long a receiver may take to answer."""
ABOUT_THE_SAMPLES = frozenset({400, 409, 413, 422})
"""Statuses that say what is wrong with what was sent; with any other it is worth another try later."""
LONGEST_REASON = 200
"""Most characters of a receiver's answer that are passed on."""


class RefusedError(Exception):
    """The receiver will never take what was sent. The message is the reason that it gave."""

    def __init__(self, why: str, *, passed: bool = False) -> None:
        super().__init__(why)
        self.passed = passed
        """Whether the reason is that the receiver has a later sample of the series."""


class UndeliveredError(Exception):
    """Nothing was taken, and may be later. The message says why."""

    def __init__(self, why: str, *, retry_after_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_seconds = retry_after_seconds
        """How long the receiver asks to be left alone."""


class Receiver:
    """A receiver of remote writes; used by one thread."""

    def __init__(self, url: str, *, token_path: Path | None = None) -> None:
        """Prepare to write.

        Args:
            url: Address of the receiver; one with a user and a password signs in with them.
            token_path: File of a bearer token, read again for each request, so that it may be replaced.

        Raises:
            SettingsError: The address is none. It is not repeated: it may hold a password.
        """
        self._token_path = token_path
        try:
            self._url = httpx.URL(url)
            if not self._url.host:
                raise httpx.InvalidURL("it names no host")
        except httpx.InvalidURL as error:
            raise SettingsError(
                f"CURVEWATCH_REMOTE_WRITE_URL is no URL ({error}); give one like "
                "http://prometheus:9090/api/v1/write"
            ) from error
        self._http = httpx.Client(timeout=TIMEOUT_SECONDS)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, body: bytes) -> None:
        """Send a request that `encode` made.

        Raises:
            RefusedError: The receiver will never take it as a whole; a part of it may be taken nonetheless.
            UndeliveredError: It may be taken later: no receiver is there, it is busy, or it does not let us in.
        """
        try:
            answer = self._http.post(self._url, content=body, headers=self._headers())
        except (httpx.HTTPError, OSError) as error:
            raise UndeliveredError(f"{type(error).__name__}: {error}") from error
        if answer.is_success:
            return
        why = f"HTTP {answer.status_code}: {_first_line(answer.text)}"
        if answer.status_code in ABOUT_THE_SAMPLES:
            raise RefusedError(why, passed=_says_passed(answer.text))
        raise UndeliveredError(why, retry_after_seconds=_retry_after(answer.headers))

    def _headers(self) -> dict[str, str]:
        headers = {
            "Content-Encoding": "snappy",
            "Content-Type": "application/x-protobuf",
            "User-Agent": f"curvewatch/{version('curvewatch')}",
            "X-Prometheus-Remote-Write-Version": "0.1.0",
        }
        if self._token_path is not None:
            token = self._token_path.read_bytes().strip()
            if not token.isascii():
                raise UndeliveredError(
                    f"the token in {self._token_path} has other characters than ASCII: write it there anew"
                )
            headers["Authorization"] = f"Bearer {token.decode()}"
        return headers


def encode(samples: Iterable[tuple[int, Sample]]) -> bytes:
    """Return the request of samples with their times, in milliseconds since 1970.

    Args:
        samples: Those of one series in order of time.
    """
    by_labels: dict[tuple[tuple[str, str], ...], list[tuple[int, float]]] = {}
    for millisecond, sample in samples:
        by_labels.setdefault(_labels(sample), []).append((millisecond, sample.value))
    request = _WriteRequest()
    for labels, points in by_labels.items():
        series = request.timeseries.add()
        for name, value in labels:
            series.labels.add(name=name, value=value)
        for millisecond, number in points:
            series.samples.add(value=number, timestamp=millisecond)
    return bytes(cramjam.snappy.compress_raw(request.SerializeToString()))


def _labels(sample: Sample) -> tuple[tuple[str, str], ...]:
    """Return the name and the labels of a series in order; an empty label is the same as none."""
    named = {"__name__": sample.series.name, **sample.labels}
    return tuple(sorted((name, value) for name, value in named.items() if value))


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0][:LONGEST_REASON]


def _says_passed(text: str) -> bool:
    # The words of Prometheus and Thanos; those of Mimir. Not "out of bounds" and "too old", nor a duplicate, which
    # is one time with two values.
    return "out of order" in text or "out-of-order" in text


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a `Retry-After` asks for: a number or a date; 0 for none that can be read."""
    asked = headers.get("Retry-After", "").strip()
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _write_request() -> Any:
    """Return the class of the message: the fields of it that we send, with the numbers of the specification."""
    file = FileDescriptorProto(name="remote.proto", package="prometheus", syntax="proto3")
    one, many = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
    string, double = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_DOUBLE
    integer, message = FieldDescriptorProto.TYPE_INT64, FieldDescriptorProto.TYPE_MESSAGE
    of_label = (("name", 1, one, string, ""), ("value", 2, one, string, ""))
    of_sample = (("value", 1, one, double, ""), ("timestamp", 2, one, integer, ""))
    of_series = (("labels", 1, many, message, "Label"), ("samples", 2, many, message, "Sample"))
    of_request = (("timeseries", 1, many, message, "TimeSeries"),)
    for name, fields in (
        ("Label", of_label),
        ("Sample", of_sample),
        ("TimeSeries", of_series),
        ("WriteRequest", of_request),
    ):
        described = file.message_type.add(name=name)
        for field, number, label, kind, of in fields:
            added = described.field.add(name=field, number=number, label=label, type=kind)
            if of:
                added.type_name = f".prometheus.{of}"
    # A pool of its own: the usual one may have the message already, from another library of this process.
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("prometheus.WriteRequest"))


_WriteRequest = _write_request()
