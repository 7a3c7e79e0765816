"""What the job's policy makes of the diagnosis: pure, the same on all ranks and when a run is looked at again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from curvewatch_workers.contract import EpochRecord, JobSpec, standing
from curvewatch_workers.diagnosis import Diagnosis, OnlineDiagnosis, Verdict
from curvewatch_workers.diagnosis.rising import BLOW_UP

Trouble = Literal["overfitting", "diverging", "plateau"]
Deed = Literal["stop", "rescue", "reduce_lr", "give_up"]

TROUBLES: Final[Mapping[Verdict, Trouble]] = {
    Verdict.OVERFITTING: "overfitting",
    Verdict.OVERCONFIDENT: "overfitting",
    Verdict.DIVERGING: "diverging",
    Verdict.NOT_FINITE: "diverging",
    Verdict.PLATEAU: "plateau",
    Verdict.UNDERFITTING: "plateau",
    Verdict.UNSTABLE: "plateau",
}
"""Which field of the policy answers a verdict."""


@dataclass(frozen=True, kw_only=True)
class Action:
    """What the policy answers to the latest epoch."""

    deed: Deed
    """What is done: `give_up` ends a run whose rescues are spent."""
    observed: bool
    """Whether it is only told: the policy says `observe`."""
    verdict: Verdict
    epoch: int
    """The latest epoch."""
    message: str
    """One sentence for a person."""
    good_epochs: frozenset[int] = frozenset()
    """Of a rescue: the epochs of before the trouble."""


class VerdictPolicy:
    """Answers each epoch by the verdict on the curve so far. It follows from the records alone.

    Args:
        spec: The job.
    """

    def __init__(self, spec: JobSpec) -> None:
        self._policy, self._patience = spec.policy, spec.patience_epochs
        self._by_loss = spec.checkpoints.best.metric == "loss"
        self._records: list[EpochRecord] = []
        self._online = OnlineDiagnosis()
        self._told: set[Trouble] = set()
        self._rescues = self._reductions = 0
        self._waits_from = 0
        """The epoch of the latest intervention."""

    def take(self, record: EpochRecord) -> Action | None:
        """Take in the next epoch; return what follows from it, None when nothing does."""
        self._records.append(record)
        if record.rolled_back_to is None:
            _add(self._online, record)
        else:
            self._rescues += 1
            self._waits_from = record.epoch - 1
            self._online = OnlineDiagnosis()
            for stands in standing(self._records):
                _add(self._online, stands)
        return self._answer(self._online.diagnosis(), record)

    def _answer(self, diagnosis: Diagnosis, record: EpochRecord) -> Action | None:
        trouble = TROUBLES.get(diagnosis.verdict)
        if trouble is None or (diagnosis.verdict is Verdict.OVERCONFIDENT and not self._by_loss):
            return None
        if trouble == "diverging":
            return self._of_diverging(diagnosis, record)
        if trouble == "plateau" and self._policy.plateau == "reduce_lr":
            return self._of_rest(diagnosis, record)
        return self._of_advised_stop(trouble, diagnosis, record) if diagnosis.stop else None

    def _of_advised_stop(self, trouble: Trouble, diagnosis: Diagnosis, record: EpochRecord) -> Action | None:
        setting = self._policy.overfitting if trouble == "overfitting" else self._policy.plateau
        return self._action(
            "stop",
            trouble,
            diagnosis,
            record,
            observed=setting == "observe",
            message=f"{diagnosis.summary} It ends here with the weights of its best epoch.",
        )

    def _of_diverging(self, diagnosis: Diagnosis, record: EpochRecord) -> Action | None:
        observed = self._policy.diverging == "observe"
        if not observed and self._rescues >= self._policy.max_interventions:
            message = (
                f"{diagnosis.summary} It has been rescued {self._rescues} times (policy.max_interventions: "
                f"{self._policy.max_interventions}); lower the learning rate, clip the gradient, or look for broken "
                "samples."
            )
            return self._action("give_up", "diverging", diagnosis, record, observed=False, message=message)
        seen = diagnosis.evidence[0].epochs[0]
        back = seen - 1 if diagnosis.verdict is Verdict.NOT_FINITE else seen
        # Without those that an earlier rescue undid.
        good = [record.epoch for record in _without_rise(standing(self._records)[:back])]
        where = f"the last checkpoint up to epoch {good[-1]}" if good else "the initial weights"
        message = (
            f"{diagnosis.summary} It goes back to {where}, with {self._policy.learning_rate_factor:g} of its "
            "learning rate."
        )
        return self._action(
            "rescue",
            "diverging",
            diagnosis,
            record,
            observed=observed,
            message=message,
            good_epochs=frozenset(good),
        )

    def _of_rest(self, diagnosis: Diagnosis, record: EpochRecord) -> Action | None:
        if diagnosis.verdict is not Verdict.PLATEAU or self._reductions >= self._policy.max_interventions:
            return None
        if record.epoch - self._waits_from < self._patience:
            return None
        self._reductions += 1
        self._waits_from = record.epoch
        message = (
            f"{diagnosis.summary} The learning rate is multiplied by {self._policy.learning_rate_factor:g}; what comes "
            f"of it is waited for over {self._patience} epochs."
        )
        return self._action("reduce_lr", "plateau", diagnosis, record, observed=False, message=message)

    def _action(
        self,
        deed: Deed,
        trouble: Trouble,
        diagnosis: Diagnosis,
        record: EpochRecord,
        *,
        observed: bool,
        message: str,
        good_epochs: frozenset[int] = frozenset(),
    ) -> Action | None:
        if observed:
            # Once for each kind of trouble: the verdict itself stands on the run's page.
            if trouble in self._told:
                return None
            self._told.add(trouble)
            message = f"{diagnosis.summary} `policy.{trouble}: {deed}` would act here; it says `observe`."
        return Action(
            deed=deed,
            observed=observed,
            verdict=diagnosis.verdict,
            epoch=record.epoch,
            message=f"Epoch {record.epoch}: {message}",
            good_epochs=good_epochs,
        )


def _without_rise(records: list[EpochRecord]) -> list[EpochRecord]:
    """Return epochs up to the last one whose validation loss had not risen yet as far as that of a run that diverges.

    A loss that becomes NaN has often blown up for some epochs before that: from their weights nobody can go on.
    """
    losses = [record.validation.loss for record in records]
    finite = [loss for loss in losses if math.isfinite(loss)]
    bar = min(finite) + BLOW_UP * (finite[0] - min(finite)) if finite else -math.inf
    return records[: max((place for place, loss in enumerate(losses, 1) if loss <= bar), default=0)]


def _add(online: OnlineDiagnosis, record: EpochRecord) -> None:
    """Show an epoch to a diagnosis.

    Not that some samples had no finite loss, which may be the fault of these samples: weights that are not finite
    give no sample one, and then the mean is NaN.
    """
    online.add(
        record.train.loss,
        record.validation.loss,
        validation_error=record.validation.standard_error,
        metrics=record.validation.metric_values,
        learning_rate=record.learning_rate,
    )
