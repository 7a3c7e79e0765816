"""When to stop, and what it saves.

A question of its own, because a stop that comes too early costs more than one that comes late.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from curvewatch_workers.diagnosis.curve import Curve
from curvewatch_workers.diagnosis.reading import Reading
from curvewatch_workers.diagnosis.verdict import Verdict

WORSE_AGE: Final = 0.25
"""Epochs for which a run gets worse before it is given up, by the age of the best: what took long to find is not lost
in a moment."""
LEAST_WAIT: Final = 25
"""Epochs without a better validation loss below which nobody gives up a run that does not get worse."""
AGE: Final = 1.0
"""Epochs without a better validation loss, by the age of the best: the longer it took to find, the longer until the
next."""
HOPE: Final = 0.1
"""Share of all it learned by which the validation loss may still be falling, in half of the run, in a hopeless one."""
_WORSE: Final = frozenset({Verdict.OVERFITTING, Verdict.OVERCONFIDENT, Verdict.DIVERGING})
_HOPELESS: Final = frozenset({Verdict.PLATEAU, Verdict.UNDERFITTING, Verdict.UNSTABLE})


def should_stop(verdict: Verdict, reading: Reading) -> bool:
    """Tell whether to stop now and take the best epoch.

    Either the validation loss gets worse; or it rests high up or jumps about, has not become better for as long as it
    took to get there, and its noise leaves no room for a fall that would matter.
    """
    since = reading.epochs - reading.best_epoch
    if verdict in _WORSE:
        return since >= max(WORSE_AGE * reading.best_epoch, 1)
    if verdict not in _HOPELESS or since < max(LEAST_WAIT, AGE * reading.best_epoch):
        return False
    if reading.rates.may_come_down:
        return False
    validation = reading.validation
    return validation.possible_fall(max(reading.epochs // 2, LEAST_WAIT)) <= HOPE * validation.learned


@dataclass(frozen=True, kw_only=True)
class Savings:
    """A finished run beside the same run stopped after some epoch, each with its best checkpoint."""

    epochs: int
    """Epochs after the stop."""
    seconds: float | None
    """How long they took; None where that is not known."""
    gpu_hours: float | None
    """GPUs times hours of them; None where that is not known."""
    loss: float
    """By how much the best validation loss came down after the stop: 0 when the best epoch was before it."""


def savings(curve: Curve, stop: int, *, seconds: Sequence[float] = (), gpus: Sequence[int] = ()) -> Savings:
    """Compare a run with the same run stopped after an epoch.

    Args:
        curve: The whole run.
        stop: The last epoch that would have been trained, from 1.
        seconds: How long each epoch took; empty where that is not known.
        gpus: GPUs in each epoch; empty where that is not known.

    Raises:
        ValueError: There is no such epoch, or a series has not one number an epoch.
    """
    if not 1 <= stop <= len(curve):
        raise ValueError(f"the run has epochs 1 to {len(curve)}, but was to stop after epoch {stop}")
    for name, series in (("seconds", seconds), ("gpus", gpus)):
        if series and len(series) != len(curve):
            raise ValueError(
                f"{name} has {len(series)} numbers for {len(curve)} epochs; give one an epoch, or none"
            )
    finite = [loss if math.isfinite(loss) else math.inf for loss in curve.validation]
    before, best = min(finite[:stop]), min(finite)
    both = zip(seconds[stop:], gpus[stop:], strict=True) if seconds and gpus else None
    return Savings(
        epochs=len(curve) - stop,
        seconds=math.fsum(seconds[stop:]) if seconds else None,
        gpu_hours=None if both is None else math.fsum(took * used for took, used in both) / 3600,
        loss=before - best if math.isfinite(best) else 0.0,
    )
