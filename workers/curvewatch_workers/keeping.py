"""Which checkpoints of a storage are kept, from their names and scores: pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from curvewatch_workers.ranking import Mode, badness

MARKER = "complete.json"
"""File that is written into a checkpoint last, with its score."""

_NAME = re.compile(r"epoch-([0-9]+)(?:-step-([0-9]+))?")


class Progress(NamedTuple):
    """How far a run has come."""

    epoch: int
    """Epochs that are finished."""
    step: int = 0
    """Optimizer steps of the next epoch."""


def name_of(progress: Progress) -> str:
    """Return the name of a checkpoint that was taken there."""
    step = f"-step-{progress.step:09d}" if progress.step else ""
    return f"epoch-{progress.epoch:06d}{step}"


def progress_of(name: str) -> Progress | None:
    """Return where a checkpoint was taken, from its name; None when it is no such name."""
    found = _NAME.fullmatch(name)
    return Progress(int(found[1]), int(found[2] or 0)) if found else None


def newest_first(names: Iterable[str]) -> tuple[str, ...]:
    """Return those names that are checkpoints', the latest first."""
    places = {name: place for name in names if (place := progress_of(name)) is not None}
    return tuple(sorted(places, key=lambda name: places[name], reverse=True))


def mark(progress: Progress, score: float) -> str:
    """Return the content of the marker; a score that is not finite is null."""
    return json.dumps({**progress._asdict(), "score": score if math.isfinite(score) else None})


def score_in(marker: str) -> float:
    """Return the score that a marker holds; NaN, the worst, when it holds none."""
    try:
        score = json.loads(marker)["score"]
    except (ValueError, TypeError, KeyError):
        return math.nan
    return float(score) if isinstance(score, int | float) else math.nan


def surplus(scores: Mapping[str, float], *, latest: Progress, keep: int, mode: Mode) -> list[str]:
    """Return the checkpoints to remove, once the one at `latest` is kept.

    Those from later in the run go too: the run went back behind them, because they could not be read, and comes
    there again.

    Args:
        scores: Score of each checkpoint, by name.
        latest: How far the run has come.
        keep: So many of the best stay, and the latest besides; of equals the later one.
        mode: Whether lower or higher is better.
    """
    places = {name: place for name in scores if (place := progress_of(name)) is not None}
    # One from the middle of an epoch has no score: it only serves to go on from.
    past = [name for name, place in places.items() if place <= latest and not place.step]
    later_first = sorted(past, key=lambda name: places[name], reverse=True)
    best = sorted(later_first, key=lambda name: badness(scores[name], mode))[:keep]
    return [name for name in places if name not in (*best, name_of(latest))]
