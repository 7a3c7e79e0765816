"""From a curve to a diagnosis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from curvewatch_workers.diagnosis.advice import ADVICE
from curvewatch_workers.diagnosis.curve import Curve
from curvewatch_workers.diagnosis.findings import Finding, evidence
from curvewatch_workers.diagnosis.reading import Reading
from curvewatch_workers.diagnosis.resting import flat_midway, good_fit, halted, high, too_early
from curvewatch_workers.diagnosis.rising import (
    diverging_train,
    diverging_validation,
    exploding_validation,
    left_behind,
    overfitting,
    unstable,
)
from curvewatch_workers.diagnosis.verdict import Diagnosis, Verdict

Rule = Callable[[Reading], Finding | None]

RULES: Final[tuple[Rule, ...]] = (
    diverging_train,
    exploding_validation,
    overfitting,
    unstable,
    diverging_validation,
    left_behind,
    halted,
    too_early,
    high,
    flat_midway,
    good_fit,
)
"""In the order in which they are asked: the first that finds something gives the verdict."""

MIN_EPOCHS = 5
"""Epochs below which nothing is said: a line through so few points says anything."""


def diagnose(curve: Curve) -> Diagnosis:
    """Tell the pattern of a curve so far, with evidence and advice.

    Reads only what is there, so that it may be called after every epoch.
    """
    bad = next((index for index in range(len(curve)) if not curve.is_finite_at(index)), None)
    if bad is not None:
        return _not_finite(curve, bad + 1)
    if len(curve) < MIN_EPOCHS:
        return _too_early(curve)
    reading = Reading.of(curve)
    finding = next(found for rule in RULES if (found := rule(reading)) is not None)
    return _diagnosis(finding, best=reading.best_epoch)


def _diagnosis(finding: Finding, **epochs: int) -> Diagnosis:
    return Diagnosis(
        verdict=finding.verdict,
        summary=finding.summary,
        advice=ADVICE[finding.verdict].format_map(epochs),
        evidence=finding.evidence,
    )


def _not_finite(curve: Curve, epoch: int) -> Diagnosis:
    train, validation = curve.train[epoch - 1], curve.validation[epoch - 1]
    message = (
        f"Epoch {epoch} has losses that are not finite (train {train:.4g}, validation {validation:.4g})."
    )
    finding = Finding(
        verdict=Verdict.NOT_FINITE,
        summary=f"The loss of some samples is NaN or infinite since epoch {epoch}.",
        evidence=(evidence("not_finite", message, (epoch,), curve.train),),
    )
    return _diagnosis(finding, bad=epoch)


def _too_early(curve: Curve) -> Diagnosis:
    epochs = len(curve)
    seen = f"{epochs} {'epoch has' if epochs == 1 else 'epochs have'} finished; a verdict needs {MIN_EPOCHS}."
    found = (evidence("few_epochs", seen, (epochs,), curve.validation),) if epochs else ()
    return _diagnosis(Finding(verdict=Verdict.TOO_EARLY, summary=seen, evidence=found))
