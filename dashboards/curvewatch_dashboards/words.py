"""What numbers stand for on panels that show words, and what lines are called and colored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from curvewatch_dashboards.promql import select
from curvewatch_workers.series import Series


@dataclass(frozen=True, kw_only=True)
class Word:
    """How something is called and colored."""

    text: str
    color: str


VERDICTS: dict[str, Word] = {
    "too_early": Word(text="too early", color="text"),
    "good_fit": Word(text="good fit", color="green"),
    "slow_convergence": Word(text="slow convergence", color="light-blue"),
    "plateau": Word(text="plateau", color="blue"),
    "underfitting": Word(text="underfitting", color="purple"),
    "unstable": Word(text="unstable", color="yellow"),
    "overconfident": Word(text="overconfident", color="light-orange"),
    "overfitting": Word(text="overfitting", color="orange"),
    "diverging": Word(text="diverging", color="red"),
    "not_finite": Word(text="not finite", color="dark-red"),
}
"""Every verdict of the diagnosis, in order of concern."""

STATES: dict[str, Word] = {
    "QUEUED": Word(text="queued", color="text"),
    "STARTING": Word(text="starting", color="light-blue"),
    "RUNNING": Word(text="running", color="blue"),
    "RESTARTING": Word(text="restarting", color="yellow"),
    "STOPPING": Word(text="stopping", color="light-orange"),
    "STOPPED": Word(text="stopped", color="orange"),
    "SUCCEEDED": Word(text="succeeded", color="green"),
    "FAILED": Word(text="failed", color="red"),
    "LOST": Word(text="lost", color="dark-red"),
}
"""Every state of a run."""

OUTCOMES: dict[str, Word] = {
    state.lower(): STATES[state] for state in ("SUCCEEDED", "STOPPED", "FAILED", "LOST")
}
"""Every state in which a run may end, as it is counted."""

SPLITS: dict[str, Word] = {
    "train": Word(text="train", color="blue"),
    "validation": Word(text="validation", color="orange"),
    "best validation": Word(text="best validation", color="text"),
}
"""The lines of losses: each has its color on every panel."""

SLOPES: dict[str, Word] = {
    f"{split} per epoch": Word(text=f"{split} per epoch", color=SPLITS[split].color)
    for split in ("train", "validation")
}
"""The lines of slopes."""

EXACT: dict[int, Word] = {1: Word(text="exact", color="green"), 0: Word(text="NOT exact", color="red")}
FIRING: dict[int, Word] = {1: Word(text="firing", color="red")}
UP: dict[int, Word] = {1: Word(text="up", color="green"), 0: Word(text="DOWN", color="red")}


def numbered(words: Mapping[str, Word]) -> dict[int, Word]:
    """Return words by the number that `word_of` gives for them."""
    return dict(enumerate(words.values()))


def word_of(
    what: Series,
    label: str,
    words: Mapping[str, Word],
    matchers: Mapping[str, str],
    *,
    seen: Callable[[str], str] = str,
) -> str:
    """Return the query whose value, for each run, is the place of the word whose series is 1.

    Args:
        what: The series.
        label: Its label with the word.
        words: All of them, in order.
        matchers: Which elements of the series count.
        seen: What is made of each selector, such as `lately`.
    """
    terms = (
        f"{index} * ({seen(select(what, **matchers, **{label: word}))} == 1)"
        for index, word in enumerate(words)
    )
    return "max by (run_id) (\n  " + "\n  or ".join(terms) + "\n)"
