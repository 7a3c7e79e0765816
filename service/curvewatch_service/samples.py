"""What the service tells Prometheus, before it has the form of a scrape, a file or a remote write."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.series import Series

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Sample(NamedTuple):
    """One value of a series."""

    series: Series
    value: float
    labels: Mapping[str, str]


def end_millisecond(record: EpochRecord) -> int:
    """Return the Unix time in whole milliseconds at which an epoch ended: what Prometheus keeps of a time."""
    return (record.finished_at - _UNIX_EPOCH) // _MILLISECOND
