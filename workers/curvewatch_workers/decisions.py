"""What follows from an epoch: pure, and the same on all ranks because each is given the same global numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from curvewatch_workers.contract import BestSpec, Control, EarlyStoppingSpec, EpochRecord, JobSpec, Outcome
from curvewatch_workers.errors import TaskError
from curvewatch_workers.policy import Action, VerdictPolicy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a run ended."""

    outcome: Outcome
    reason: str
    keep: bool = True
    """Whether the weights are worth a checkpoint."""
    restore_best: bool = False
    """Whether the weights of the best epoch are put back first."""
    by_verdict: bool = False
    """Whether the policy's answer to the verdict is what ends it."""

    def without_its_checkpoint(self, lost: str | None) -> Ending:
        """Return the ending of a run whose weights were lost, with the reason; itself when there is none."""
        if lost is None:
            return self
        return replace(self, outcome=Outcome.FAILED, reason=f"{self.reason}, but {lost}")


class Stopper(Protocol):
    """Decides whether a curve has stopped improving. Its state survives a resume."""

    def should_stop(self, record: EpochRecord) -> str | None:
        """Take in an epoch; return why to stop, or None."""

    @property
    def best_epoch(self) -> int:
        """The best epoch so far; 0 when none is marked."""

    def is_best(self, record: EpochRecord) -> bool:
        """Tell whether an epoch that was taken in is the best so far."""


class NeverStops:
    """The stopper of a job that never ends before its last epoch."""

    best_epoch = 0

    def should_stop(self, record: EpochRecord) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Never stop."""
        return None

    def is_best(self, record: EpochRecord) -> bool:  # noqa: ARG002 - the protocol's signature
        """No epoch is marked."""
        return False


class EarlyStopper:
    """Stops when a validation number has not improved for `patience` epochs."""

    def __init__(self, spec: EarlyStoppingSpec) -> None:
        self._spec = spec
        self._best = math.inf
        self._best_epoch = self._rescued_at = 0

    def should_stop(self, record: EpochRecord) -> str | None:
        """Take in an epoch; return why to stop, or None. A number that is not finite is no improvement."""
        spec = self._spec
        value = validation_value(record, spec.metric)
        comparable = value if spec.mode == "min" else -value
        if comparable < self._best - spec.min_delta:
            self._best, self._best_epoch = comparable, record.epoch
        if record.rolled_back_to is not None:
            # What was undone did not wait for anything.
            self._rescued_at = record.epoch - 1
        waited = record.epoch - max(self._best_epoch, spec.warmup_epochs, self._rescued_at)
        if waited < spec.patience:
            return None
        best = self._best if spec.mode == "min" else -self._best
        return (
            f"validation {spec.metric} has not improved for {record.epoch - self._best_epoch} epochs "
            f"(best {best:.6g} at epoch {self._best_epoch}, now {value:.6g}, patience {spec.patience})"
        )

    @property
    def best_epoch(self) -> int:
        """The best epoch so far."""
        return self._best_epoch

    def is_best(self, record: EpochRecord) -> bool:
        """Tell whether an epoch that was taken in is the best so far."""
        return record.epoch == self._best_epoch


class BestMarker(EarlyStopper):
    """Marks the best epoch by what ranks the checkpoints, for a verdict that ends the run; never stops by itself."""

    def __init__(self, spec: BestSpec) -> None:
        super().__init__(EarlyStoppingSpec(metric=spec.metric, mode=spec.mode))

    def should_stop(self, record: EpochRecord) -> str | None:
        """Take in an epoch."""
        super().should_stop(record)
        return None


def make_stopper(spec: JobSpec, metrics: tuple[str, ...]) -> Stopper:
    """Return the stopper that the job asks for.

    Raises:
        TaskError: The number to watch is neither `loss` nor a metric of the task.
    """
    early_stopping = spec.policy.early_stopping
    if early_stopping is None:
        return BestMarker(spec.checkpoints.best) if spec.policy.acts_at_end else NeverStops()
    require_measured("policy.early_stopping.metric", early_stopping.metric, metrics)
    return EarlyStopper(early_stopping)


def require_measured(field: str, metric: str, metrics: tuple[str, ...]) -> None:
    """Check that a number which a field of the job names is one that the task measures.

    Raises:
        TaskError: It is neither `loss` nor a metric of the task.
    """
    known = ("loss", *metrics)
    if metric not in known:
        raise TaskError(f"{field} is {metric!r}, but the task measures: {', '.join(known)}")


def validation_value(record: EpochRecord, metric: str) -> float:
    """Return the validation number that a job names, to decide by: `loss`, or a metric.

    NaN for the loss of an epoch with samples whose loss is not finite: a mean over the others compares with no other
    epoch, and one in which all but the easiest overflow would be the best.
    """
    if metric != "loss":
        return record.validation.metrics[metric].value
    return math.nan if record.validation.nonfinite_samples else record.validation.loss


class Decisions:
    """What follows from each epoch of a run: early stopping, the policy's answer to the verdict, and the ending.

    Args:
        spec: The job.
        metrics: Names of the metrics that the task measures.

    Raises:
        TaskError: The job decides by a number that the task does not measure.
    """

    def __init__(self, spec: JobSpec, metrics: tuple[str, ...]) -> None:
        self._spec = spec
        self._policy = VerdictPolicy(spec)
        self.stopper = make_stopper(spec, metrics)
        """Marks the best epoch."""
        self.records: tuple[EpochRecord, ...] = ()
        """Every epoch so far."""
        self.action: Action | None = None
        """What the policy answers to the latest epoch."""
        self._waited: str | None = None

    def take(self, record: EpochRecord) -> None:
        """Take in the next epoch."""
        self.records += (record,)
        self._waited = self.stopper.should_stop(record)
        try:
            self.action = self._policy.take(record)
        except Exception:  # a curve that cannot be read costs no training; every rank reads the same one
            self.action = None
            logger.exception(
                "The curve up to epoch %d could not be read; the policy does nothing about it",
                record.epoch,
                extra={"action": "policy_failed"},
            )

    def ending(self, control: Control) -> Ending | None:
        """Return how the run ends after its latest epoch, None when it goes on.

        Args:
            control: What the service wants.
        """
        return ending_after(self.records, self._spec, control, self._waited, self.action)


def ending_after(
    records: Sequence[EpochRecord],
    spec: JobSpec,
    control: Control,
    waited: str | None,
    action: Action | None = None,
) -> Ending | None:
    """Return how the run ends after its latest epoch, None when it goes on.

    What cannot be used goes first, then the user's word, then the end, then what the curve says (the verdict before
    early stopping), then an alert, then budgets.

    Args:
        records: Every epoch so far.
        spec: The job.
        control: What the service wants.
        waited: Why early stopping would stop, if it would.
        action: What the policy answers to the verdict, if anything.
    """
    record = records[-1]
    spoilt = record.train.nonfinite_samples + record.validation.nonfinite_samples
    if spoilt and spec.policy.on_nonfinite == "stop":
        return Ending(
            outcome=Outcome.FAILED,
            reason=f"the loss of {spoilt} samples was NaN or infinite in epoch {record.epoch} (policy.on_nonfinite: "
            "stop); lower the learning rate, clip the gradient, or look for broken samples",
            keep=False,
        )
    if control is Control.STOP:
        return Ending(outcome=Outcome.STOPPED, reason=f"stopped on request after epoch {record.epoch}")
    if record.epoch >= spec.training.epochs:
        return Ending(outcome=Outcome.SUCCEEDED, reason=f"all {record.epoch} epochs are done")
    of_verdict = _ending_by(action)
    if of_verdict is not None:
        return of_verdict
    if waited is not None and not _goes_back(action):
        early_stopping = spec.policy.early_stopping
        return Ending(
            outcome=Outcome.SUCCEEDED,
            reason=f"stopped early: {waited}",
            restore_best=early_stopping is not None and early_stopping.restore_best,
        )
    if control is Control.STOP_ON_ALERT and not _goes_back(action):
        return Ending(outcome=Outcome.STOPPED, reason=f"stopped on an alert after epoch {record.epoch}")
    spent = _spent_budget(records, spec)
    if spent is not None:
        return Ending(outcome=Outcome.SUCCEEDED, reason=f"stopped after epoch {record.epoch}: {spent}")
    if control is Control.PAUSE:
        return Ending(
            outcome=Outcome.PAUSED, reason=f"paused after epoch {record.epoch}, to go on from its checkpoint"
        )
    return None


def _ending_by(action: Action | None) -> Ending | None:
    """Return how the run ends by its verdict, None when it goes on."""
    if action is None or action.observed or action.deed not in ("stop", "give_up"):
        return None
    stops = action.deed == "stop"
    how = "stopped by its verdict" if stops else "given up"
    return Ending(
        outcome=Outcome.SUCCEEDED if stops else Outcome.FAILED,
        reason=f"{how}, {action.verdict}: {action.message}",
        restore_best=True,
        by_verdict=True,
    )


def _goes_back(action: Action | None) -> bool:
    """Tell whether a rescue undoes what early stopping has waited through."""
    return action is not None and action.deed == "rescue" and not action.observed


def _spent_budget(records: Sequence[EpochRecord], spec: JobSpec) -> str | None:
    """Return which budget is spent; by numbers that every rank has, never by a clock of its own."""
    policy = spec.policy
    if policy.max_seconds is not None:
        seconds = sum(max(record.rank_seconds) for record in records)
        if seconds >= policy.max_seconds:
            return f"it has trained for {seconds:.1f} s, policy.max_seconds is {policy.max_seconds:g}"
    if policy.max_samples is not None:
        samples = sum(record.train.samples_seen for record in records)
        if samples >= policy.max_samples:
            return f"it has trained on {samples} samples, policy.max_samples is {policy.max_samples}"
    return None


def restarts_left(max_restarts: int, *, attempts: int, deaths: int) -> int:
    """Return how often the group may restart under the next controller; below 0 when there may be none.

    The next group is itself a restart. Ray Train counts the restarts under one controller only, so they are counted
    here by the attempts: however a job's restarts are spread over controllers, they are `max_restarts` in all.

    Args:
        max_restarts: What the job allows.
        attempts: Starts of the group so far, under all controllers of this job.
        deaths: Controllers that died, this one included; one may die before its group has started.
    """
    return max_restarts - max(attempts, deaths)
