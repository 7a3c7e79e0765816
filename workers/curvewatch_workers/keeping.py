"""Which checkpoints of a storage are kept, from their names and scores: pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping

from curvewatch_workers.ranking import Mode, badness

MARKER = "complete.json"
"""File that is written into a checkpoint last, with its score."""

_PREFIX = "epoch-"


def name_of(epoch: int) -> str:
    """Return the name of an epoch's checkpoint."""
    return f"{_PREFIX}{epoch:06d}"


def epoch_of(name: str) -> int | None:
    """Return the epoch of a checkpoint's name; None when it is no such name."""
    digits = name.removeprefix(_PREFIX)
    return int(digits) if name.startswith(_PREFIX) and digits.isascii() and digits.isdigit() else None


def newest_first(names: Iterable[str]) -> tuple[str, ...]:
    """Return those names that are checkpoints', the latest epoch first."""
    epochs = {name: epoch for name in names if (epoch := epoch_of(name)) is not None}
    return tuple(sorted(epochs, key=lambda name: -epochs[name]))


def mark(epoch: int, score: float) -> str:
    """Return the content of the marker; a score that is not finite is null."""
    return json.dumps({"epoch": epoch, "score": score if math.isfinite(score) else None})


def score_in(marker: str) -> float:
    """Return the score that a marker holds; NaN, the worst, when it holds none."""
    try:
        score = json.loads(marker)["score"]
    except (ValueError, TypeError, KeyError):
        return math.nan
    return float(score) if isinstance(score, int | float) else math.nan


def surplus(scores: Mapping[str, float], *, latest: int, keep: int, mode: Mode) -> list[str]:
    """Return the checkpoints to remove, once that of epoch `latest` is kept.

    Those of later epochs go too: the run went back behind them, because they could not be read, and comes
    there again.

    Args:
        scores: Score of each checkpoint, by name.
        latest: The epoch that was just finished.
        keep: So many of the best stay, and the latest besides; of equals the later one.
        mode: Whether lower or higher is better.
    """
    epochs = {name: epoch for name in scores if (epoch := epoch_of(name)) is not None}
    past = [name for name, epoch in epochs.items() if epoch <= latest]
    best = sorted(past, key=lambda name: (badness(scores[name], mode), -epochs[name]))[:keep]
    return [name for name in epochs if name not in (*best, name_of(latest))]
