"""When a checkpoint is taken and what it holds; where it is kept is the business of `checkpoint.Checkpoints`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence

from torch import nn

from curvewatch_workers.best import NoBestWeights
from curvewatch_workers.checkpoint import Checkpoints, Snapshot
from curvewatch_workers.contract import EpochRecord, JobSpec
from curvewatch_workers.decisions import Ending
from curvewatch_workers.errors import CheckpointLostError, StorageError, UnsavableStateError
from curvewatch_workers.group import Group
from curvewatch_workers.keeping import Progress
from curvewatch_workers.partial import PartialEpoch
from curvewatch_workers.preemption import Lookout
from curvewatch_workers.ranking import best_of, score_of
from curvewatch_workers.step import OptimizerStep
from curvewatch_workers.task import TrainingTask

Records = Sequence[EpochRecord]


class Saving:
    """Takes the checkpoints of a run. Every rank makes the same calls.

    Args:
        spec: The job.
        attempt: Start of the worker group, from 1.
        task: What is trained.
        model: Its model, on this rank's device.
        step: Its optimizer step.
        best: The weights of the best epoch, where the job wants them back.
        group: The ranks.
        checkpoints: Where checkpoints are kept.
        lookout: Knows whether a node is about to leave.
        tell: Takes a reason and a message for the run's events.
    """

    def __init__(
        self,
        *,
        spec: JobSpec,
        attempt: int,
        task: TrainingTask,
        model: nn.Module,
        step: OptimizerStep,
        best: NoBestWeights,
        group: Group,
        checkpoints: Checkpoints,
        lookout: Lookout,
        tell: Callable[[str, str], None],
    ) -> None:
        self._spec, self._attempt, self._task, self._model = spec, attempt, task, model
        self._scaler, self._best, self._group = step.scaler, best, group
        self._checkpoints, self._lookout, self._tell = checkpoints, lookout, tell
        self._last = -sys.float_info.max
        self._readable = False

    @property
    def allowed(self) -> bool:
        """Whether the last checkpoint is long enough ago, by the clock of this rank."""
        return time.monotonic() - self._last >= self._spec.checkpoints.min_interval_seconds

    def require_readable(self) -> None:
        """Check before the first step that what a checkpoint would hold could be read back.

        Raises:
            UnsavableStateError: It could not.
        """
        _raise_unsavable(self._snapshot((), None, None).unreadable())

    def after_epoch(
        self,
        records: Records,
        *,
        allowed: bool,
        ending: Ending | None,
        best_epoch: int,
        rolled_back_to: int | None = None,
    ) -> str | None:
        """Take a checkpoint after the latest epoch, if one is due.

        Args:
            records: The epochs so far.
            allowed: What rank 0 said of `allowed`.
            ending: How the run ends with this epoch; None when it goes on.
            best_epoch: The epoch whose weights an ending may put back, 0 without one.
            rolled_back_to: The epoch whose weights a rescue has just put back, 0 for the initial ones; a checkpoint
                is then taken in any case, so that what was undone is not gone through again.

        Returns:
            Why a checkpoint that no other follows could not be kept; None when all is well.

        Raises:
            UnsavableStateError: On every rank, at the first checkpoint: it could not be read back.
            StorageError: It could not be written.
        """
        record = records[-1]
        noticed = self._lookout.notice is not None
        urgent = noticed and not self._lookout.answered
        in_turn = noticed or record.epoch % self._spec.checkpoints.every_epochs == 0
        rescued = rolled_back_to is not None
        due = urgent or rescued or (in_turn and allowed)
        if not (due if ending is None else ending.keep):
            return None
        if ending is not None and ending.restore_best:
            self._best.put_back(self._model)
            # The checkpoint is as good as the weights that it holds.
            record = records[max(best_epoch, 1) - 1]
        score = score_of(record, self._spec.checkpoints.best)
        if rolled_back_to is not None:
            score = (
                score_of(records[rolled_back_to - 1], self._spec.checkpoints.best)
                if rolled_back_to
                else math.nan
            )
        snapshot = self._snapshot(records, None, rolled_back_to)
        return self._save(snapshot, score, last=urgent or rescued or ending is not None)

    def within_epoch(
        self, records: Records, partial: PartialEpoch, *, rolled_back_to: int | None = None
    ) -> None:
        """Take a checkpoint in the middle of a train pass: what it has come to is kept with the weights.

        Args:
            records: The epochs so far.
            partial: The pass so far.
            rolled_back_to: The epoch whose weights it began with, after a rescue.

        Raises:
            UnsavableStateError: On every rank, at the first checkpoint: it could not be read back.
            StorageError: It could not be written.
        """
        self._save(self._snapshot(records, partial, rolled_back_to), math.nan, last=True)
        where = f"step {partial.steps} of epoch {len(records) + 1}"
        self._tell("checkpoint_within_epoch", f"a checkpoint was taken after {where}")

    def _save(self, snapshot: Snapshot, score: float, *, last: bool) -> str | None:
        if not self._readable:
            # Optimizers have most of their state from their first step on only.
            _raise_unsavable(self._group.first_problem(snapshot.unreadable()))
            self._readable = True
        at = Progress(snapshot.epoch, snapshot.partial.steps if snapshot.partial else 0)
        lost: str | None = None
        try:
            problem = self._checkpoints.save(at, snapshot.write, score=score, last=last)
        except CheckpointLostError as error:
            problem = lost = str(error)
        except (OSError, RuntimeError) as error:
            raise StorageError(
                f"a checkpoint could not be kept: {error}; make room, or mend the storage"
            ) from error
        self._lookout.saved()
        if problem is not None:
            self._tell("checkpoint_not_kept", problem)
        self._last = time.monotonic()
        return lost

    def _snapshot(
        self, records: Records, partial: PartialEpoch | None, rolled_back_to: int | None
    ) -> Snapshot:
        scheduler, loss = self._task.scheduler, self._task.loss
        return Snapshot(
            epoch=len(records),
            partial=partial,
            rolled_back_to=rolled_back_to,
            attempt=self._attempt,
            model=self._model.state_dict(),
            optimizer=self._task.optimizer.state_dict(),
            optimizer_class=type(self._task.optimizer).__name__,
            scheduler=scheduler.state_dict() if scheduler is not None else None,
            scaler=self._scaler.state_dict() if self._scaler.is_enabled() else None,
            loss=(loss.state_dict() or None) if isinstance(loss, nn.Module) else None,
            best_model=self._best.state(),
            best_model_epoch=self._best.epoch,
            best=best_of(records, self._spec.checkpoints.best),
            records=tuple(records),
        )


def _raise_unsavable(problem: str | None) -> None:
    if problem is not None:
        raise UnsavableStateError(problem)
