"""What an epoch costs on one rank."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch


class RankCost(NamedTuple):
    """Time and memory of one rank in one epoch."""

    seconds: float
    """Of both passes."""
    validation_seconds: float
    """Of the validation pass; 0 where it is not known apart."""
    gpu_memory_peak: int
    """Bytes; 0 without a GPU."""


class DeviceStopwatch:
    """Times what a device works on between two moments, without waiting for it.

    On a GPU the host runs ahead of the work that it has asked for, so that its clock would time the asking. Events on
    the stream time the work.
    """

    def __init__(self, device: torch.device) -> None:
        """Start it."""
        self._events: tuple[torch.Event, torch.Event] | None = None
        if device.type == "cuda":
            self._events = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)
            self._events[0].record()
        self._started = self._stopped = time.perf_counter()

    def stop(self) -> None:
        """Stop it."""
        self._stopped = time.perf_counter()
        if self._events is not None:
            self._events[1].record()

    def seconds(self) -> float:
        """Return the time between the two moments; on a GPU the work in between must be done."""
        if self._events is None:
            return self._stopped - self._started
        started, stopped = self._events
        return started.elapsed_time(stopped) / 1000
