"""What a diagnosis says: a verdict, what it rests on, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The pattern of a learning curve. docs/diagnosis.md defines each."""

    GOOD_FIT = "good_fit"
    OVERFITTING = "overfitting"
    OVERCONFIDENT = "overconfident"
    UNDERFITTING = "underfitting"
    PLATEAU = "plateau"
    SLOW_CONVERGENCE = "slow_convergence"
    UNSTABLE = "unstable"
    DIVERGING = "diverging"
    NOT_FINITE = "not_finite"
    TOO_EARLY = "too_early"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One observation behind a verdict."""

    rule: str
    """Stable name of the rule that made it, such as `validation_rises`."""
    message: str
    """The observation in one sentence, with its numbers."""
    epochs: tuple[int, ...]
    """Epochs that it is about, from 1, in order."""
    values: tuple[float, ...]
    """Loss (or metric, or learning rate) at those epochs, in the unit of the curve."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a curve says so far."""

    verdict: Verdict
    confidence: float
    """From 0.5, where what was seen just reaches the rule's bar, towards 1; each time the bar over halves the doubt."""
    stop: bool
    """Whether to stop now and take the best epoch."""
    best_epoch: int | None
    """Epoch of the lowest finite validation loss, the first one when several share it; None without one."""
    summary: str
    """One sentence for a person: what is seen."""
    advice: str
    """What an expert would change, or that nothing needs to change; it says to stop now only where `stop` does."""
    evidence: tuple[Evidence, ...]
    """At least one observation, the weightiest first; empty only for a curve without epochs."""
