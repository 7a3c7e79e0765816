"""From a curve to a diagnosis."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from curvewatch_workers.diagnosis.advice import Case, advise
from curvewatch_workers.diagnosis.curve import Curve
from curvewatch_workers.diagnosis.findings import Finding, about_restart, evidence
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
from curvewatch_workers.diagnosis.stopping import should_stop
from curvewatch_workers.diagnosis.verdict import Diagnosis, Evidence, Verdict

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

NOT_EXCUSED: Final[tuple[Rule, ...]] = (
    diverging_train,
    exploding_validation,
    unstable,
)
"""What is asked while the learning rate is above what it was at the best epoch."""

MIN_EPOCHS = 5
"""Epochs below which nothing is said: a line through so few points says anything."""


class OnlineDiagnosis:
    """Reads a curve as it grows; after each epoch it says what `diagnose` says of the curve so far."""

    def __init__(self) -> None:
        self._reading = Reading()
        self._not_finite: Diagnosis | None = None
        self._before: Diagnosis | None = None
        """What was said before the learning rate was raised above what it was at the best epoch."""
        self._epochs = 0
        self._best_epoch: int | None = None
        self._lowest = math.inf

    def add(
        self,
        train: float,
        validation: float,
        *,
        validation_error: float = math.nan,
        nonfinite: bool = False,
        metrics: Mapping[str, float] | None = None,
        learning_rate: float = math.nan,
    ) -> None:
        """Take in the next epoch.

        Args:
            train: Mean train loss.
            validation: Mean validation loss.
            validation_error: Its standard error; NaN where it is not known.
            nonfinite: Whether a sample's loss was NaN or infinite.
            metrics: Validation metrics by name, such as `accuracy` as a ratio from 0 to 1.
            learning_rate: NaN where it is not known.
        """
        self._epochs += 1
        if math.isfinite(validation) and validation < self._lowest:
            self._lowest, self._best_epoch = validation, self._epochs
        if self._not_finite is not None:
            return
        if nonfinite or not (math.isfinite(train) and math.isfinite(validation)):
            self._not_finite = self._diagnosis(_not_finite(train, validation, self._epochs))
        else:
            if learning_rate > self._reading.rates.latest and not self._reading.restarted_after:
                self._before = self.diagnosis()
            self._reading.append(train, validation, validation_error, metrics or {}, learning_rate)

    def diagnosis(self) -> Diagnosis:
        """Return what the curve says so far."""
        reading = self._reading
        if self._not_finite is not None:
            return self._after(self._not_finite)
        if reading.epochs < MIN_EPOCHS:
            return self._diagnosis(_few_epochs(reading))
        if self._before is None or not reading.restarted_after:
            return self._diagnosis(next(_found(RULES, reading)))
        # The rate is raised: what was said before stands, unless the losses do what no rate excuses.
        finding = next(_found(NOT_EXCUSED, reading), None)
        if finding is not None:
            return self._diagnosis(finding)
        return replace(self._before, evidence=(*self._before.evidence, about_restart(reading)))

    def _after(self, said: Diagnosis) -> Diagnosis:
        """Return what was said of the first epoch that is not finite, with the best epoch of all."""
        best, (bad,) = self._best_epoch, said.evidence[0].epochs
        if best is None or best <= bad:
            return replace(said, best_epoch=best)
        message = f"Validation loss was lower at epoch {best}, after that: the run has recovered, and that is its best."
        recovered = Evidence(rule="recovered", message=message, epochs=(best,), values=(self._lowest,))
        return replace(said, best_epoch=best, evidence=(*said.evidence, recovered))

    def _diagnosis(self, finding: Finding) -> Diagnosis:
        stop = finding.verdict is Verdict.NOT_FINITE or should_stop(finding.verdict, self._reading)
        return Diagnosis(
            verdict=finding.verdict,
            # Rounded, so that a unit that rounds otherwise gives the same number.
            confidence=round(1 - 2 ** -max(finding.strength, 1.0), 3),
            stop=stop,
            best_epoch=self._best_epoch,
            summary=finding.summary,
            advice=advise(Case(finding=finding, reading=self._reading, stop=stop)),
            evidence=finding.evidence,
        )


def _found(rules: Iterable[Rule], reading: Reading) -> Iterator[Finding]:
    return (found for rule in rules if (found := rule(reading)) is not None)


def diagnose(curve: Curve) -> Diagnosis:
    """Tell the pattern of a curve so far, with evidence and advice.

    Reads only what is there, so that it may be called after every epoch.
    """
    online = OnlineDiagnosis()
    for index in range(len(curve)):
        _take(online, curve, index)
    return online.diagnosis()


def diagnoses(curve: Curve, *, after: int = 0) -> Iterator[Diagnosis]:
    """Tell after each epoch, from the first beyond `after` on, what `diagnose` says of the curve so far."""
    online = OnlineDiagnosis()
    for index in range(len(curve)):
        _take(online, curve, index)
        if index >= after:
            yield online.diagnosis()


def _take(online: OnlineDiagnosis, curve: Curve, index: int) -> None:
    online.add(
        curve.train[index],
        curve.validation[index],
        validation_error=curve.validation_errors[index] if curve.validation_errors else math.nan,
        nonfinite=bool(curve.nonfinite) and curve.nonfinite[index],
        metrics={name: values[index] for name, values in curve.metrics.items()},
        learning_rate=curve.learning_rates[index] if curve.learning_rates else math.nan,
    )


def _not_finite(train: float, validation: float, epoch: int) -> Finding:
    message = (
        f"Epoch {epoch} has losses that are not finite (train {train:.4g}, validation {validation:.4g})."
    )
    return Finding(
        verdict=Verdict.NOT_FINITE,
        summary=f"The loss of some samples is NaN or infinite since epoch {epoch}.",
        evidence=(Evidence(rule="not_finite", message=message, epochs=(epoch,), values=(train,)),),
        strength=math.inf,
    )


def _few_epochs(reading: Reading) -> Finding:
    epochs = reading.epochs
    seen = f"{epochs} {'epoch has' if epochs == 1 else 'epochs have'} finished; a verdict needs {MIN_EPOCHS}."
    found = (evidence("few_epochs", seen, (epochs,), reading.validation_losses),) if epochs else ()
    return Finding(verdict=Verdict.TOO_EARLY, summary=seen, evidence=found, strength=math.inf)
