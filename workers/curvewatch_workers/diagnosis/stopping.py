"""When to stop: a question of its own, because a stop that comes too early costs more than one that comes late."""

from __future__ import annotations

from typing import Final

from curvewatch_workers.diagnosis.reading import Reading
from curvewatch_workers.diagnosis.verdict import Verdict

LEAST_WAIT: Final = 20
"""Epochs without a better validation loss below which nobody gives up a run that is not getting worse."""
AGE: Final = 1.0
"""Epochs without a better validation loss, by the age of the best: the longer it took to find, the longer until the
next."""
_WORSE: Final = frozenset({Verdict.OVERFITTING, Verdict.OVERCONFIDENT, Verdict.DIVERGING})


def should_stop(verdict: Verdict, reading: Reading) -> bool:
    """Tell whether to stop now and take the best epoch.

    Either the validation loss gets worse, or it has not become better for as long as it took to get there.
    """
    since = reading.epochs - reading.best_epoch
    if verdict in _WORSE:
        return since > 0
    return since >= max(LEAST_WAIT, AGE * reading.best_epoch)
