"""From a curve to a diagnosis."""

from __future__ import annotations

import statistics

from curvewatch_workers.diagnosis.curve import Curve
from curvewatch_workers.diagnosis.verdict import Diagnosis, Evidence, Verdict

MIN_EPOCHS = 5
"""Epochs below which nothing is said: a line through so few points says anything."""


def diagnose(curve: Curve) -> Diagnosis:
    """Tell the pattern of a curve, with evidence and advice.

    Reads only what is there: called after every epoch, it never needs the epochs to come.
    """
    bad = next((index for index in range(len(curve)) if not curve.is_finite_at(index)), None)
    if bad is not None:
        values = (curve.train[bad], curve.validation[bad])
        message = (
            f"Epoch {bad + 1} has a loss that is not finite: train {values[0]:g}, validation {values[1]:g}."
        )
        return Diagnosis(
            verdict=Verdict.NOT_FINITE,
            summary=message,
            advice="Go back to a checkpoint from before this epoch and lower the learning rate.",
            evidence=(Evidence(rule="not_finite", message=message, epochs=(bad + 1,), values=(values[1],)),),
        )
    if len(curve) < MIN_EPOCHS:
        return Diagnosis(
            verdict=Verdict.TOO_EARLY,
            summary=f"{len(curve)} of the {MIN_EPOCHS} epochs that a verdict needs.",
            advice="Wait.",
            evidence=(),
        )
    best = min(range(len(curve)), key=lambda index: curve.validation[index])
    now = min(statistics.median(curve.validation[-3:]), curve.validation[-1])
    rises = now > curve.validation[best] + 0.05 * abs(curve.validation[best])
    if rises and curve.train[-1] < curve.train[best]:
        message = (
            f"Validation loss rose from {curve.validation[best]:.4g} at epoch {best + 1} to "
            f"{curve.validation[-1]:.4g} at epoch {len(curve)}, while train loss fell."
        )
        return Diagnosis(
            verdict=Verdict.OVERFITTING,
            summary=message,
            advice=f"Take the checkpoint of epoch {best + 1}, and regularise.",
            evidence=(
                Evidence(
                    rule="validation_rises",
                    message=message,
                    epochs=(best + 1, len(curve)),
                    values=(curve.validation[best], curve.validation[-1]),
                ),
            ),
        )
    message = f"Validation loss is {curve.validation[-1]:.4g}, its best {curve.validation[best]:.4g}."
    return Diagnosis(
        verdict=Verdict.GOOD_FIT,
        summary=message,
        advice="Nothing needs to change.",
        evidence=(
            Evidence(
                rule="validation_near_best",
                message=message,
                epochs=(best + 1,),
                values=(curve.validation[best],),
            ),
        ),
    )
