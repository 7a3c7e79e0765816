"""What a policy would have done on a run that is over: the decisions of training, asked again of its records. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curvewatch_workers.contract import (
    ContractError,
    Control,
    EpochRecord,
    JobSpec,
    Outcome,
    PolicySpec,
)
from curvewatch_workers.decisions import Decisions, require_measured, validation_value
from curvewatch_workers.diagnosis import Curve, Savings, savings
from curvewatch_workers.errors import TaskError


class PolicyMismatchError(ContractError):
    """A policy decides by a number that a run did not measure."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The first thing that a policy would have done; what would have come of it nobody knows."""

    deed: str
    """`stop`, `fail`, `rescue` or `reduce_lr`."""
    epoch: int
    """The epoch after which it would have been done."""
    why: str
    """One sentence for a person."""
    savings: Savings | None
    """Of a run that would have ended: what that would have saved, and cost in validation loss."""


def replay(records: Sequence[EpochRecord], spec: JobSpec, policy: PolicySpec) -> Replay | None:
    """Ask a policy at each epoch of a run, as training would have; None when it would have done nothing.

    Args:
        records: Epochs of a run, in order; they are asked up to the first that is missing, which may be on its way.
        spec: Its job.
        policy: What stands in place of the job's own policy.

    Raises:
        PolicyMismatchError: The policy decides by a number that the run did not measure.
    """
    records = [record for place, record in enumerate(records, 1) if record.epoch == place]
    if not records:
        return None
    spec = spec.model_copy(update={"policy": policy})
    # A trainer of one's own may leave a metric out of some epochs.
    metrics = tuple(
        name
        for name in records[0].validation.metrics
        if all(name in one.validation.metrics for one in records)
    )
    try:
        if policy.acts_at_end and policy.early_stopping is None:
            require_measured("checkpoints.best.metric", spec.checkpoints.best.metric, metrics)
        decisions = Decisions(spec, metrics)
    except TaskError as error:
        raise PolicyMismatchError(str(error)) from error
    for record in records:
        decisions.take(record)
        ending, action = decisions.ending(Control.CONTINUE), decisions.action
        if record.epoch >= spec.training.epochs and (ending is None or ending.outcome is Outcome.SUCCEEDED):
            return None
        if ending is not None:
            return Replay(
                deed="stop" if ending.outcome is Outcome.SUCCEEDED else "fail",
                epoch=record.epoch,
                why=ending.reason,
                savings=savings_of_run(records, spec, record.epoch),
            )
        if action is not None and not action.observed:
            return Replay(deed=action.deed, epoch=record.epoch, why=action.message, savings=None)
    return None


def savings_of_run(records: Sequence[EpochRecord], spec: JobSpec, stop: int) -> Savings:
    """Compare a run with the same run stopped after an epoch.

    An epoch took as long as its slowest rank; GPU-hours are None for a job without GPUs.

    Args:
        records: Consecutive epochs of a run, the first no later than the stop.
        spec: Its job.
        stop: The last epoch that would have been trained.
    """
    curve = Curve(
        train=tuple(record.train.loss for record in records),
        validation=tuple(validation_value(record, "loss") for record in records),
    )
    gpus = [spec.scaling.gpus(record.world_size) for record in records]
    return savings(
        curve,
        stop - records[0].epoch + 1,
        seconds=[max(record.rank_seconds) for record in records],
        gpus=gpus if any(gpus) else (),
    )
