"""The learning rates of a run: whether a restart lifted the rate, and whether the schedule has come to its end."""

from __future__ import annotations

import math
from typing import Final

RAISED: Final = 2.0
"""Times a learning rate from which another is clearly higher."""
SPENT: Final = 0.01
"""Share of the highest learning rate below which nothing moves any more."""
EXCUSED: Final = 3.0
"""Times the epochs before a rise of the rate for which a loss above its best says nothing: cycles that grow threefold
have come down again by then."""
LEAST_EXCUSED: Final = 10
"""Epochs for which it is excused at least: a warm-up begins with the first epoch."""


class Rates:
    """Learning rates, read as they grow epoch by epoch; one that is not known is that of the epoch before."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.highest = 0.0
        """Highest of the known ones."""
        self.lowest = math.inf
        """Lowest of the known ones."""

    def append(self, rate: float) -> None:
        """Take in the next epoch; a rate that is NaN, infinite or negative is not known."""
        known = math.isfinite(rate) and rate >= 0
        self.values.append(rate if known else self.latest)
        if known:
            self.highest, self.lowest = max(self.highest, rate), min(self.lowest, rate)

    @property
    def latest(self) -> float:
        """Learning rate of the latest epoch; NaN as long as none is known."""
        return self.values[-1] if self.values else math.nan

    @property
    def are_known(self) -> bool:
        """Tell whether the learning rate is known by now."""
        return not math.isnan(self.latest)

    @property
    def schedule_ended(self) -> bool:
        """Tell whether a schedule has brought the rate so far down that nothing moves any more."""
        return self.varies and self.latest <= SPENT * self.highest

    @property
    def varies(self) -> bool:
        """Tell whether there has been a schedule."""
        return self.highest > RAISED * self.lowest

    @property
    def rises_now(self) -> bool:
        """Tell whether the rate is higher than an epoch ago."""
        return len(self.values) > 1 and self.is_above(1)

    @property
    def may_come_down(self) -> bool:
        """Tell whether a schedule that was seen to move is in its upper half: the loss may come down with it."""
        return self.varies and self.latest * RAISED > self.highest

    def is_above(self, epochs: int) -> bool:
        """Tell whether the rate is higher than so many epochs ago: then a loss may rest for that."""
        return self.latest > self.values[-1 - epochs]

    def rises_at(self, index: int) -> bool:
        """Tell whether the rate of an epoch is above that of the epoch before."""
        return index > 0 and self.values[index] > self.values[index - 1]

    def raised_after(self, first: int, end: int) -> int:
        """Return the latest epoch before the rate rose clearly above the lowest of some epochs.

        The loss follows the rate: it is expected above what it was at the lower one, until the rate is back there.

        Args:
            first: Index of the first of these epochs.
            end: Index of the one after the last.

        Returns:
            Its number, from 1; 0 if the rate has not risen, or so long ago that it excuses nothing.
        """
        bar = self._bar(min(self.values[first:end]))
        if not self.latest > bar:
            return 0
        last = len(self.values) - 1
        before = next((place for place in range(last, first, -1) if not self.values[place] > bar), first) + 1
        return before if len(self.values) - before <= max(EXCUSED * before, LEAST_EXCUSED) else 0

    def _bar(self, rate: float) -> float:
        return max(RAISED * rate, SPENT * self.highest) if math.isfinite(rate) else math.nan
