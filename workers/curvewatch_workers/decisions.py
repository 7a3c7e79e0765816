"""What follows from an epoch: pure, and the same on all ranks because each is given the same global numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from curvewatch_workers.contract import Control, EarlyStoppingSpec, EpochRecord, JobSpec, Outcome
from curvewatch_workers.errors import TaskError


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a run ended."""

    outcome: Outcome
    reason: str


class Stopper(Protocol):
    """Decides whether a curve has stopped improving. Its state survives a resume."""

    def should_stop(self, record: EpochRecord) -> str | None:
        """Take in an epoch; return why to stop, or None."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""


class NeverStops:
    """The stopper of a job without early stopping."""

    def should_stop(self, record: EpochRecord) -> str | None:  # noqa: ARG002 - the protocol's signature
        """Never stop."""
        return None

    def state(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore nothing."""


class EarlyStopper:
    """Stops when a validation number has not improved for `patience` epochs."""

    def __init__(self, spec: EarlyStoppingSpec) -> None:
        self._spec = spec
        self._best = math.inf
        self._best_epoch = 0

    def should_stop(self, record: EpochRecord) -> str | None:
        """Take in an epoch; return why to stop, or None. A number that is not finite is no improvement."""
        spec = self._spec
        value = self._value(record)
        comparable = value if spec.mode == "min" else -value
        if comparable < self._best - spec.min_delta:
            self._best, self._best_epoch = comparable, record.epoch
        if record.epoch - self._best_epoch < spec.patience:
            return None
        best = self._best if spec.mode == "min" else -self._best
        return (
            f"validation {spec.metric} has not improved for {record.epoch - self._best_epoch} epochs "
            f"(best {best:.6g} at epoch {self._best_epoch}, now {value:.6g}, patience {spec.patience})"
        )

    def state(self) -> dict[str, Any]:
        """Return the best value and its epoch."""
        return {"best": self._best, "best_epoch": self._best_epoch}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._best, self._best_epoch = state["best"], state["best_epoch"]

    def _value(self, record: EpochRecord) -> float:
        if self._spec.metric == "loss":
            return record.validation.loss
        return record.validation.metrics[self._spec.metric].value


def make_stopper(spec: JobSpec, metrics: tuple[str, ...]) -> Stopper:
    """Return the stopper that the job asks for.

    Raises:
        TaskError: The number to watch is neither `loss` nor a metric of the task.
    """
    if spec.early_stopping is None:
        return NeverStops()
    known = ("loss", *metrics)
    if spec.early_stopping.metric not in known:
        raise TaskError(
            f"early_stopping.metric is {spec.early_stopping.metric!r}, but the task measures: {', '.join(known)}"
        )
    return EarlyStopper(spec.early_stopping)


def ending_after(record: EpochRecord, spec: JobSpec, control: Control, plateau: str | None) -> Ending | None:
    """Return how the run ends after this epoch, None when it goes on. The user's word goes first."""
    if control is Control.STOP:
        return Ending(outcome=Outcome.STOPPED, reason=f"stopped on request after epoch {record.epoch}")
    if record.epoch >= spec.training.epochs:
        return Ending(outcome=Outcome.SUCCEEDED, reason=f"all {record.epoch} epochs are done")
    if plateau is not None:
        return Ending(outcome=Outcome.SUCCEEDED, reason=f"stopped early: {plateau}")
    if control is Control.PAUSE:
        return Ending(
            outcome=Outcome.PAUSED, reason=f"paused after epoch {record.epoch}, to go on from its checkpoint"
        )
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
