"""Learning curves of a known verdict, made for it: seeded, of any length, noise and scale."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from curvewatch_workers.diagnosis import Curve, Verdict

LENGTHS: Final = {
    Verdict.GOOD_FIT: (5, 8, 15, 40, 200, 1000),
    Verdict.OVERFITTING: (5, 8, 15, 40, 200, 1000),
    Verdict.OVERCONFIDENT: (8, 15, 40, 200, 1000),
    Verdict.UNDERFITTING: (8, 15, 40, 200, 1000),
    Verdict.PLATEAU: (20, 40, 200, 1000),
    Verdict.SLOW_CONVERGENCE: (8, 15, 40, 200, 1000),
    Verdict.UNSTABLE: (12, 20, 40, 200, 1000),
    Verdict.DIVERGING: (5, 8, 15, 40, 200, 1000),
    Verdict.NOT_FINITE: (5, 15, 40, 200, 1000),
    Verdict.TOO_EARLY: (1, 2, 3, 4),
}
"""Lengths at which an expert could tell each verdict."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Train and validation loss without noise, starting near 1; and accuracy, where the curve has one."""

    train: list[float]
    validation: list[float]
    accuracy: list[float] | None = None


def make_curve(verdict: Verdict, *, epochs: int, noise: float, seed: int) -> Curve:
    """Make a curve of a verdict.

    Args:
        verdict: What an expert would call it.
        epochs: Its length.
        noise: Standard deviation of the validation loss, relative to its value; train loss has a third of it.
        seed: Draws shape, scale and noise.
    """
    rng = random.Random(f"{verdict}/{epochs}/{noise}/{seed}")
    losses = _SHAPES[verdict](rng, epochs)
    return _noisy(rng, losses, noise)


def prefix(curve: Curve, epochs: int) -> Curve:
    """Return the first epochs of a curve."""
    return Curve(
        train=curve.train[:epochs],
        validation=curve.validation[:epochs],
        nonfinite=curve.nonfinite[:epochs],
        metrics={name: values[:epochs] for name, values in curve.metrics.items()},
        learning_rates=curve.learning_rates[:epochs],
    )


def scaled(curve: Curve, factor: float) -> Curve:
    """Return a curve with its losses in another unit."""
    return Curve(
        train=tuple(loss * factor for loss in curve.train),
        validation=tuple(loss * factor for loss in curve.validation),
        nonfinite=curve.nonfinite,
        metrics=curve.metrics,
        learning_rates=curve.learning_rates,
    )


def _decay(epochs: int, floor: float, pace: float) -> list[float]:
    """An exponential from 1 to a floor; at pace 1 it has come down to 37 % of the way at the last epoch."""
    return [floor + (1 - floor) * math.exp(-pace * i / epochs) for i in range(epochs)]


def _noisy(rng: random.Random, losses: Losses, noise: float) -> Curve:
    """Put losses into a unit of chance, with noise."""
    scale = 10 ** rng.uniform(-3, 3)
    return Curve(
        train=tuple(scale * loss * (1 + rng.gauss(0, noise / 3)) for loss in losses.train),
        validation=tuple(scale * loss * (1 + rng.gauss(0, noise)) for loss in losses.validation),
        metrics={} if losses.accuracy is None else {"accuracy": _accuracy(rng, losses.accuracy, noise)},
    )


def _accuracy(rng: random.Random, values: list[float], noise: float) -> tuple[float, ...]:
    return tuple(min(max(value + rng.gauss(0, noise / 5), 0.0), 1.0) for value in values)


def _good_fit(rng: random.Random, epochs: int) -> Losses:
    train = _decay(epochs, rng.uniform(0.03, 0.15), rng.uniform(4, 8))
    gap = rng.uniform(0.0, 0.06)
    validation = [loss + gap * (1 - loss) for loss in train]
    shape = rng.choice(("plain", "regularised", "lower_rate", "warm_up", "accurate", "train_goes_on"))
    if shape == "regularised":
        train = [0.3 + 0.7 * loss for loss in train]
    elif shape == "lower_rate":
        drop = epochs // 2
        train = [loss + (0.15 if i < drop else 0.0) for i, loss in enumerate(train)]
        validation = [loss + (0.15 if i < drop else 0.0) for i, loss in enumerate(validation)]
    elif shape == "warm_up":
        late = max(epochs // 12, 1)
        bump = [1 + 0.2 * math.sin(math.pi * i / late) for i in range(late)]
        train = (bump + train)[:epochs]
        validation = (bump + validation)[:epochs]
    elif shape == "accurate":
        return Losses(train=train, validation=validation, accuracy=[1 - 0.8 * loss for loss in validation])
    elif shape == "train_goes_on":
        validation = [max(loss, 0.12 + gap) + 0.05 * loss for loss in train]
    return Losses(train=train, validation=validation)


def _rising_validation(rng: random.Random, epochs: int) -> tuple[Losses, int]:
    """Validation loss turns upwards after a quarter to a half of the run, while train loss falls."""
    turn = max(round(epochs * rng.uniform(0.25, 0.5)), 1)
    floor = rng.uniform(0.25, 0.5)
    train = _decay(epochs, rng.uniform(0.005, 0.05), rng.uniform(4, 7))
    rise = floor * rng.uniform(0.4, 1.2)
    power = rng.uniform(0.7, 1.5)
    validation = []
    for i in range(epochs):
        if i <= turn:
            validation.append(floor + (1 - floor) * (1 - i / turn) ** 2)
        else:
            validation.append(floor + rise * ((i - turn) / (epochs - 1 - turn)) ** power)
    return Losses(train=train, validation=validation), turn


def _overfitting(rng: random.Random, epochs: int) -> Losses:
    losses, turn = _rising_validation(rng, epochs)
    if rng.random() < 0.5:
        return losses
    top, end = rng.uniform(0.7, 0.9), rng.uniform(0.1, 0.2)
    falling = [top * (1 - end * max(i - turn, 0) / (epochs - 1 - turn)) for i in range(epochs)]
    return Losses(
        train=losses.train,
        validation=losses.validation,
        accuracy=[value * min((i + 1) / (turn + 1), 1) for i, value in enumerate(falling)],
    )


def _overconfident(rng: random.Random, epochs: int) -> Losses:
    losses, turn = _rising_validation(rng, epochs)
    top = rng.uniform(0.6, 0.88)
    return Losses(
        train=losses.train,
        validation=losses.validation,
        accuracy=[top * (1 - 0.6 * math.exp(-4 * i / turn)) for i in range(epochs)],
    )


def _underfitting(rng: random.Random, epochs: int) -> Losses:
    train = _decay(epochs, rng.uniform(0.7, 0.95), rng.uniform(6, 12))
    return Losses(train=train, validation=[loss + rng.uniform(0, 0.005) for loss in train])


def _plateau(rng: random.Random, epochs: int) -> Losses:
    if rng.random() < 0.5:
        train = _decay(epochs, rng.uniform(0.37, 0.53), rng.uniform(12, 20))
    else:
        halt, level = round(epochs * rng.uniform(0.3, 0.6)), rng.uniform(0.35, 0.55)
        halt = min(halt, 8)
        train = [1 - (1 - level) * min(i / halt, 1) for i in range(epochs)]
    gap = rng.uniform(0.0, 0.03)
    return Losses(train=train, validation=[loss + gap for loss in train])


def _slow(rng: random.Random, epochs: int) -> Losses:
    gain = rng.uniform(0.1, 0.3)
    bend = rng.uniform(0.8, 1.3)
    train = [1 - gain * (i / (epochs - 1)) ** bend for i in range(epochs)]
    return Losses(train=train, validation=[loss + 0.01 for loss in train])


def _unstable(rng: random.Random, epochs: int) -> Losses:
    train = _decay(epochs, rng.uniform(0.2, 0.3), 5)
    size = rng.uniform(0.5, 1.0)
    every = 2 if epochs < 30 else 3
    jumpy = [loss * (1 + size) if i % every == 1 else loss for i, loss in enumerate(train)]
    return Losses(train=jumpy, validation=[loss * 1.05 for loss in jumpy])


def _diverging(rng: random.Random, epochs: int) -> Losses:
    turn = round(epochs * rng.uniform(0.0, 0.5))
    top = rng.uniform(1.5, 6)
    falling = _decay(max(turn, 1), rng.uniform(0.2, 0.5), 3)
    rising = epochs - len(falling)
    train = falling + [falling[-1] + top * ((i + 1) / rising) ** rng.uniform(0.9, 1.1) for i in range(rising)]
    return Losses(train=train, validation=[loss * 1.1 for loss in train])


def _not_finite(rng: random.Random, epochs: int) -> Losses:
    losses = _good_fit(rng, epochs)
    series = rng.choice((losses.train, losses.validation))
    first = rng.randrange(epochs)
    series[first:] = [rng.choice((math.nan, math.inf))] * (epochs - first)
    return losses


_SHAPES: dict[Verdict, Callable[[random.Random, int], Losses]] = {
    Verdict.GOOD_FIT: _good_fit,
    Verdict.OVERFITTING: _overfitting,
    Verdict.OVERCONFIDENT: _overconfident,
    Verdict.UNDERFITTING: _underfitting,
    Verdict.PLATEAU: _plateau,
    Verdict.SLOW_CONVERGENCE: _slow,
    Verdict.UNSTABLE: _unstable,
    Verdict.DIVERGING: _diverging,
    Verdict.NOT_FINITE: _not_finite,
    Verdict.TOO_EARLY: _good_fit,
}


SCHEDULES: Final = (
    "drops",
    "warm_up",
    "one_cycle",
    "restarts",
    "doubling_restarts",
    "restarting_drops",
    "restarts_with_warm_up",
)
"""Learning-rate schedules that leave their marks on a loss which nothing is wrong with."""


def make_scheduled(
    schedule: str, *, epochs: int, noise: float, seed: int, rates: bool, overfits: bool = False
) -> Curve:
    """Make a curve under a schedule of the learning rate.

    Args:
        schedule: One of `SCHEDULES`.
        epochs: Its length, at least 20.
        noise: As of `make_curve`.
        seed: Draws shape, scale and noise.
        rates: Whether the curve tells its learning rates.
        overfits: Whether the validation loss turns upwards after a third of the run, whatever the rate.
    """
    rng = random.Random(f"{schedule}/{epochs}/{noise}/{seed}")
    rate = _SCHEDULES[schedule](rng, epochs)
    highest = rng.choice((0.1, 0.01, 3e-4))
    # A higher rate keeps the loss further up, and what was learned meanwhile is not lost.
    height = rng.uniform(0.1, 0.4)
    floor, gap = rng.uniform(0.03, 0.15), rng.uniform(0.0, 0.06)
    learned = _decay(epochs, floor, rng.uniform(4, 8))
    if schedule == "warm_up":
        height = 0.0
        late = sum(later > sooner for sooner, later in pairwise(rate))
        bump = [1 + 0.3 * math.sin(math.pi * i / late) for i in range(late)]
        learned = (bump + learned)[:epochs]
    train = [max(loss, loss * (1 - height) + height * up) for loss, up in zip(learned, rate, strict=True)]
    validation = [loss + gap * (1 - loss) for loss in train]
    if overfits:
        turn = epochs // 3
        validation = [loss + 0.4 * max(i - turn, 0) / (epochs - turn) for i, loss in enumerate(validation)]
    curve = _noisy(rng, Losses(train=train, validation=validation), noise)
    return replace(curve, learning_rates=tuple(highest * up for up in rate)) if rates else curve


def make_double_descent(*, epochs: int, noise: float, seed: int) -> Curve:
    """Make a curve whose validation loss rises in the middle of the run, and then falls below its former best."""
    rng = random.Random(f"double descent/{epochs}/{noise}/{seed}")
    train = _decay(epochs, rng.uniform(0.005, 0.05), rng.uniform(4, 7))
    peak, width = epochs * rng.uniform(0.4, 0.5), epochs / 9
    height, low = rng.uniform(0.2, 0.5), rng.uniform(0.15, 0.3)
    validation = [
        low + (1 - low) * math.exp(-5 * i / epochs) + height * math.exp(-(((i - peak) / width) ** 2))
        for i in range(epochs)
    ]
    return _noisy(rng, Losses(train=train, validation=validation), noise)


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def _drops(rng: random.Random, epochs: int) -> list[float]:
    first = rng.uniform(0.3, 0.5)
    return [0.1 ** ((i >= first * epochs) + (i >= (first + 1) / 2 * epochs)) for i in range(epochs)]


def _warm_up(_rng: random.Random, epochs: int) -> list[float]:
    late = min(max(epochs // 12, 2), 10)
    return [(i + 1) / late if i < late else _cosine((i - late) / (epochs - late)) for i in range(epochs)]


def _one_cycle(_rng: random.Random, epochs: int) -> list[float]:
    top = round(0.3 * epochs)
    return [
        0.04 + 0.96 * _cosine(1 - i / top) if i < top else _cosine((i - top) / (epochs - top))
        for i in range(epochs)
    ]


def _restarts(rng: random.Random, epochs: int, growth: int = 1) -> list[float]:
    """Cosine cycles, as of Loshchilov and Hutter: SGDR, 2017."""
    length = max(epochs // rng.choice((3, 4, 6, 10) if growth == 1 else (7, 15)), 5 if growth == 1 else 3)
    rate: list[float] = []
    while len(rate) < epochs:
        rate += [_cosine(i / length) for i in range(length)]
        length *= growth
    return rate[:epochs]


def _doubling_restarts(rng: random.Random, epochs: int) -> list[float]:
    return _restarts(rng, epochs, growth=2)


def _restarting_drops(rng: random.Random, epochs: int) -> list[float]:
    length = max(epochs // rng.choice((3, 5)), 6)
    return [0.1 ** (3 * (i % length) // length) for i in range(epochs)]


def _restarts_with_warm_up(rng: random.Random, epochs: int) -> list[float]:
    length = max(epochs // rng.choice((3, 5)), 8)
    late = max(length // 6, 1)
    cycle = [(i + 1) / late if i < late else _cosine((i - late) / (length - late)) for i in range(length)]
    return [cycle[i % length] for i in range(epochs)]


_SCHEDULES: Final[dict[str, Callable[[random.Random, int], list[float]]]] = {
    "drops": _drops,
    "warm_up": _warm_up,
    "one_cycle": _one_cycle,
    "restarts": _restarts,
    "doubling_restarts": _doubling_restarts,
    "restarting_drops": _restarting_drops,
    "restarts_with_warm_up": _restarts_with_warm_up,
}
