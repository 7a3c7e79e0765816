"""Which checkpoint is the best: pure, the same for Ray's bookkeeping and for ours."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Literal, NamedTuple

from curvewatch_workers.contract import BestSpec, EpochRecord
from curvewatch_workers.decisions import require_measured, validation_value

Mode = Literal["min", "max"]


class Best(NamedTuple):
    """The best epoch so far, whether or not its checkpoint was taken."""

    score: float
    """The number that ranks, in its own unit."""
    epoch: int


def require_ranking(spec: BestSpec, metrics: tuple[str, ...]) -> None:
    """Check that the task measures what its checkpoints are ranked by.

    Raises:
        TaskError: The number is neither `loss` nor a metric of the task.
    """
    require_measured("checkpoints.best.metric", spec.metric, metrics)


def score_of(record: EpochRecord, spec: BestSpec) -> float:
    """Return the number of an epoch that ranks its checkpoint, in its own unit."""
    return float(validation_value(record, spec.metric))


def best_of(records: Iterable[EpochRecord], spec: BestSpec) -> Best | None:
    """Return the best epoch, the earliest of equals; None when no number is finite."""
    scores = (Best(score_of(record, spec), record.epoch) for record in records)
    finite = (best for best in scores if math.isfinite(best.score))
    return min(finite, key=lambda best: (badness(best.score, spec.mode), best.epoch), default=None)


def ranked(score: float, mode: Mode) -> float:
    """Return a score that orders among others: one that is not finite becomes the worst of its mode.

    Ray sorts by this number, and one that compares with nothing would make its ranking meaningless.
    """
    if math.isfinite(score):
        return float(score)
    return sys.float_info.max if mode == "min" else -sys.float_info.max


def badness(score: float, mode: Mode) -> float:
    """Return the score as a number of which less is better."""
    return ranked(score, mode) if mode == "min" else -ranked(score, mode)


def is_worst(score: float) -> bool:
    """Say whether a ranked score stands for a number that was not finite."""
    return abs(score) >= sys.float_info.max
