"""What the service tells Prometheus, before it has the form of a scrape, a file or a remote write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from curvewatch_workers.series import Series


class Sample(NamedTuple):
    """One value of a series."""

    series: Series
    value: float
    labels: Mapping[str, str]
