"""One series of a curve, read robustly: its level, its best, its noise, and what it has learned."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

FIRST_EPOCH_CAP = 10.0
"""A first epoch this many times the second is the random initial state, and no level to measure from."""

CALM = 3.0
"""Noise of a smoothed value that a gain must beat to be one."""
FLAT = 0.03
"""Share of all it learned that a flat loss gains at most."""


def window_for(epochs: int) -> int:
    """Return over how many epochs a curve of this length is smoothed: 1 below 10, 3 from 15, 5 % from 60."""
    return max(min(epochs // 5, 3), min(epochs // 20, 25), 1)


def rolling_median(values: Sequence[float], width: int) -> list[float]:
    """Return the median of each `width` neighbours, in order: `len(values) - width + 1` of them."""
    ordered: list[float] = []
    medians: list[float] = []
    for index, value in enumerate(values):
        insort(ordered, value)
        if len(ordered) > width:
            del ordered[bisect_left(ordered, values[index - width])]
        if len(ordered) == width:
            medians.append((ordered[(width - 1) // 2] + ordered[width // 2]) / 2)
    return medians


def noise_of(values: Sequence[float]) -> float:
    """Estimate the standard deviation of the noise around a smooth curve.

    Second differences lose any straight trend; their median size loses spikes and the bend of the first
    epochs. 0.6745 makes that median a standard deviation, and the difference of three independent values
    (1, -2, 1) has the square root of 6 times the deviation of one.
    """
    if len(values) < 3:
        return 0.0
    bends = [abs(values[i - 1] - 2 * values[i] + values[i + 1]) for i in range(1, len(values) - 1)]
    return statistics.median(bends) / 0.6745 / math.sqrt(6)


@dataclass(frozen=True)
class Trend:
    """A series of finite values, at least one, of size 1 at most."""

    values: tuple[float, ...]

    @cached_property
    def window(self) -> int:
        """Epochs that each smoothed value stands for."""
        return window_for(len(self.values))

    @cached_property
    def smooth(self) -> list[float]:
        """Medians over the window; entry k covers epochs k + 1 to k + window."""
        return rolling_median(self.values, self.window)

    @cached_property
    def start(self) -> float:
        """Value that learning is measured from."""
        first, second = self.values[0], self.values[min(1, len(self.values) - 1)]
        return min(first, FIRST_EPOCH_CAP * second) if second > 0 else first

    @cached_property
    def best(self) -> int:
        """Index of the lowest smoothed value, the first one when several share it."""
        return min(range(len(self.smooth)), key=self.smooth.__getitem__)

    @property
    def low(self) -> float:
        """Lowest smoothed value."""
        return self.smooth[self.best]

    @property
    def level(self) -> float:
        """Smoothed value now."""
        return self.smooth[-1]

    @property
    def learned(self) -> float:
        """How far the smoothed series has come down from its start, at its best; never negative."""
        return max(self.start - self.low, 0.0)

    @cached_property
    def held_rise(self) -> float:
        """How far above its best the smoothed series has been for a whole window, at least two epochs."""
        return min(self.smooth[-max(self.window, 2) :]) - self.low

    @cached_property
    def noise(self) -> float:
        """Standard deviation of one value, from the epochs that a rise above the best is judged on.

        As many epochs before the best as after it, so that the large steps of the first epochs do not count
        when the best came late.
        """
        since_best = len(self.values) - self.best
        return noise_of(self.values[-max(2 * since_best, 10) :])

    def noise_bar(self, strength: float) -> float:
        """Return `strength` times the noise that is left in one smoothed value."""
        return strength * self.noise / math.sqrt(self.window)

    def gain_over(self, epochs: int) -> float:
        """Return how far the smoothed series has come down over the latest epochs."""
        return self.smooth[max(len(self.smooth) - 1 - epochs, 0)] - self.level

    def rests(self, epochs: int, share: float = FLAT) -> bool:
        """Tell whether the latest epochs gained at most a share of all that was learned, or only noise."""
        return self.gain_over(epochs) <= max(share * self.learned, self.noise_bar(CALM))

    def is_recovering(self) -> bool:
        """Tell whether more than half of the rise since the best is gone again."""
        peak = max(self.smooth[self.best :])
        return self.level < (self.low + peak) / 2
