"""Counts of what this process did; like every Prometheus counter they start at 0 with it."""

from __future__ import annotations

import threading
from collections import Counter

from curvewatch_workers.series import Series


class Counters:
    """Counts by series and label; threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, series: Series, label: str = "", *, amount: int = 1) -> None:
        """Count something under a series and, if the series has one, its label."""
        with self._lock:
            self._counts[series.name, label] += amount

    def value(self, series: Series, label: str = "") -> int:
        """Return the count so far, 0 when nothing was counted."""
        with self._lock:
            return self._counts[series.name, label]
