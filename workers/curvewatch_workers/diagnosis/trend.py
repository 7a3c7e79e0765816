"""One series of a curve, read robustly: its level, its best, its noise, and what it has learned."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import pairwise

FIRST_EPOCH_CAP = 10.0
"""A first epoch this many times the second is the random initial state, and no level to measure from."""

CALM = 4.0
"""Noise of a smoothed value that a gain must beat to be one."""
FLAT = 0.03
"""Share of all it learned that a flat loss gains at most."""

LEAST_FOR_NOISE = 20
"""Epochs from which noise is estimated, if there are so many: fewer make the estimate itself noise."""
FEW_DIFFERENCES = 3.0
HEIGHT_PER_LOOK = 2.6
"""Noise of a smoothed value that the height of a rise must beat, for each unit of the logarithm of the epochs:
the more epochs, the lower the best of them lies by chance, and the more often the question was asked."""
LINE_PER_LOOK = 1.0
"""The same for the slope of a straight line through the epochs since the best, in its standard errors."""
LEAST_FOR_LINE = 5
DOUBT_OF_LINE = 2.0
"""Standard errors by which a line may fall faster than it seems to."""


def window_for(epochs: int) -> int:
    """Return over how many epochs a curve of this length is smoothed: 1 below 10, 3 from 15, 5 % from 60."""
    return max(min(epochs // 5, 3), min(epochs // 20, 25), 1)


def middle_of(ordered: Sequence[float]) -> float:
    """Return the median of values in order of size."""
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def rolling_median(values: Sequence[float], width: int) -> list[float]:
    """Return the median of each `width` neighbours, in order: `len(values) - width + 1` of them."""
    ordered: list[float] = []
    medians: list[float] = []
    for index, value in enumerate(values):
        insort(ordered, value)
        if len(ordered) > width:
            del ordered[bisect_left(ordered, values[index - width])]
        if len(ordered) == width:
            medians.append(middle_of(ordered))
    return medians


class Trend:
    """A series of finite values, of size 1 at most, that grows epoch by epoch.

    What rules ask again after every epoch is kept up to date: an epoch costs the logarithm of the epochs so far, but
    for the few at which the window grows.
    """

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.values: list[float] = []
        self.lowest = 0
        """Index of the lowest value, the first one when several share it."""
        self.window = 1
        """Epochs that each smoothed value stands for."""
        self.smooth: list[float] = []
        """Medians over the window; entry k covers epochs k + 1 to k + window."""
        self.best = 0
        """Index of the lowest smoothed value, the first one when several share it."""
        self._latest: list[float] = []
        """The values of the latest window, in order of size."""
        self._thirds: list[float] = []
        """Sizes of the third differences."""
        self._noisy: list[float] = []
        """Those that noise is estimated of, in order of size."""
        self._noise_from = 0
        for value in values:
            self.append(value)

    def append(self, value: float) -> None:
        """Take in the next epoch."""
        self.values.append(value)
        if value < self.values[self.lowest]:
            self.lowest = len(self.values) - 1
        window = window_for(len(self.values))
        if window == self.window:
            self._smooth_next(value)
        else:
            self.window = window
            self._latest = sorted(self.values[-window:])
            self.smooth = rolling_median(self.values, window)
            self.best = min(range(len(self.smooth)), key=self.smooth.__getitem__)
        self._note_noise()

    def _smooth_next(self, value: float) -> None:
        insort(self._latest, value)
        if len(self._latest) > self.window:
            del self._latest[bisect_left(self._latest, self.values[-1 - self.window])]
        self.smooth.append(middle_of(self._latest))
        if self.smooth[-1] < self.smooth[self.best]:
            self.best = len(self.smooth) - 1

    def _note_noise(self) -> None:
        """Keep the third differences of the values without the first quarter of a run long enough to do without it."""
        epochs = len(self.values)
        if epochs >= 4:
            first, second, third, fourth = self.values[-4:]
            self._thirds.append(abs(first - 3 * second + 3 * third - fourth))
            insort(self._noisy, self._thirds[-1])
        while self._noise_from < epochs - max(epochs * 3 // 4, LEAST_FOR_NOISE):
            del self._noisy[bisect_left(self._noisy, self._thirds[self._noise_from])]
            self._noise_from += 1

    @property
    def noise(self) -> float:
        """Estimated standard deviation of the noise of one value around a smooth curve.

        Third differences lose trend and bend of a curve; their median size loses its spikes and sudden steps.
        0.6745 makes that median a standard deviation, and the weights 1, -3, 3, -1 give the difference of
        independent values the square root of 20 times the deviation of one. The median of a few is itself noise,
        and may well be too small: it is taken for more.
        """
        if not self._noisy:
            return 0.0
        doubt = 1 + FEW_DIFFERENCES / len(self._noisy)
        return doubt * middle_of(self._noisy) / 0.6745 / math.sqrt(20)

    @property
    def start(self) -> float:
        """Value that learning is measured from."""
        first, second = self.values[0], self.values[min(1, len(self.values) - 1)]
        return min(first, FIRST_EPOCH_CAP * second) if second > 0 else first

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

    @property
    def held_rise(self) -> float:
        """How far above its best the smoothed series has been for a whole window, at least two epochs."""
        return min(self.smooth[-max(self.window, 2) :]) - self.low

    @property
    def rise_beats_noise(self) -> bool:
        """Tell whether the rise since the best is more than noise: by its height, or by its trend."""
        return self.rise_by_noise > 1

    @property
    def rise_by_noise(self) -> float:
        """The rise since the best by the bar of noise, by its height or its trend, whichever is further over."""
        looks = math.log(len(self.values))
        height, line = self.noise_bar(HEIGHT_PER_LOOK * looks), LINE_PER_LOOK * looks * self.noise
        if height == 0:
            return math.inf if self.held_rise > 0 or self._rise_of_line() > 0 else 0.0
        return max(self.held_rise / height, self._rise_of_line() / line)

    @property
    def rises_in_a_row(self) -> int:
        """How many values after the lowest are each above the one before, if all are; else 0."""
        since = self.values[self.lowest :]
        return len(since) - 1 if all(later > earlier for earlier, later in pairwise(since)) else 0

    def falls_without_a_break(self, until: int) -> bool:
        """Tell whether each value up to an index is below the one before."""
        return all(later < earlier for earlier, later in pairwise(self.values[: until + 1]))

    def _rise_of_line(self) -> float:
        """Rise of a straight line through the epochs after the best, over its standard error at unit noise."""
        after = self.values[self.best + self.window :]
        return _rise_of_line(after) if len(after) >= LEAST_FOR_LINE else 0.0

    def possible_fall(self, epochs: int) -> float:
        """Return by how much the series may be falling in so many epochs.

        That is the fall of a straight line through so many latest ones, and twice its standard error.
        """
        return self._fall_of_line(epochs, DOUBT_OF_LINE)

    def sure_fall(self, epochs: int) -> float:
        """Return by how much the series falls at least in so many epochs, by the same line; below 0 if it may not."""
        return self._fall_of_line(epochs, -DOUBT_OF_LINE)

    def _fall_of_line(self, epochs: int, doubt: float) -> float:
        latest = self.values[-epochs:]
        count = len(latest)
        error = count / math.sqrt(count * (count * count - 1) / 12)
        return error * (doubt * self.noise - _rise_of_line(latest))

    def noise_bar(self, strength: float) -> float:
        """Return `strength` times the noise that is left in one smoothed value."""
        return strength * self.noise / math.sqrt(self.window)

    def gain_over(self, epochs: int) -> float:
        """Return how far the smoothed series is below its lowest before the latest epochs."""
        return min(self.smooth[: max(len(self.smooth) - epochs, 1)]) - self.level

    def rests(self, epochs: int, share: float = FLAT) -> bool:
        """Tell whether the latest epochs gained next to nothing of what was learned, or only noise."""
        return self.gain_over(epochs) <= max(share * self.learned, self.noise_bar(CALM))

    def hides(self, share: float) -> bool:
        """Tell whether a gain of a share of what was learned would be lost in the noise."""
        return self.noise_bar(CALM) > share * self.learned

    def is_recovering(self) -> bool:
        """Tell whether more than half of the rise since the best is gone again."""
        peak = max(self.smooth[self.best :])
        return self.level < (self.low + peak) / 2


def _rise_of_line(values: Sequence[float]) -> float:
    """Slope of a straight line through values, over its standard error at unit noise."""
    count = len(values)
    middle = (count - 1) / 2
    products = math.fsum((index - middle) * value for index, value in enumerate(values))
    # The slope is products / spread with a standard error of noise / sqrt(spread).
    return products / math.sqrt(count * (count * count - 1) / 12)
