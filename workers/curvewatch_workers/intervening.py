"""What the policy does to a run that goes on: back to earlier weights, or on with a lower learning rate."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curvewatch_workers.checkpoint import Checkpoints, Snapshot
from curvewatch_workers.contract import Outcome, PolicySpec
from curvewatch_workers.decisions import Ending
from curvewatch_workers.errors import DamagedCheckpointError
from curvewatch_workers.group import Group
from curvewatch_workers.model import share_weights
from curvewatch_workers.policy import Action
from curvewatch_workers.resuming import read_latest, restore
from curvewatch_workers.task import TrainingTask

_OF_GROUPS: Final = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
"""Entries of a parameter group that are learning rates: the optimizer's, and those of torch's schedules."""
_SCHEDULED: Final = (*_OF_GROUPS, "momentum", "betas")
"""Entries of a parameter group that a schedule sets."""
_OF_SCHEDULES: Final = ("base_lrs", "max_lrs", "min_lrs", "eta_min", "_last_lr")
"""Attributes of torch's schedules that are learning rates."""


class Interventions:
    """Acts on model, optimizer and schedule, on every rank at once.

    Args:
        policy: The job's policy.
        task: What is trained, as it was built.
        model: Its model, on this rank's device, with its initial weights.
        scaler: The gradient scaler.
        group: The ranks.
        checkpoints: Where checkpoints are kept.
        tell: Takes a reason and a message for the run's events.
    """

    def __init__(
        self,
        *,
        policy: PolicySpec,
        task: TrainingTask,
        model: nn.Module,
        scaler: torch.amp.GradScaler,
        group: Group,
        checkpoints: Checkpoints,
        tell: Callable[[str, str], None],
    ) -> None:
        self._factor = policy.learning_rate_factor
        self._task, self._model, self._scaler = task, model, scaler
        self._group, self._checkpoints, self._tell = group, checkpoints, tell
        self._initial = self._state_now(model=group.rank == 0) if policy.diverging == "rescue" else None

    def act(self, action: Action | None, ending: Ending | None) -> int | None:
        """Tell of what the policy answers to the latest epoch, and do it; every rank makes this call.

        Args:
            action: The answer; None when there is none.
            ending: How the run ends with this epoch, None when it goes on. What would change its training is left out
                where another reason than the verdict ends it for good.

        Returns:
            The epoch whose weights are back, 0 for the initial ones; None when nothing was put back.

        Raises:
            CheckpointError: A checkpoint has another format, or holds what cannot be loaded.
        """
        if action is None or not (action.observed or _leaves_room(ending)):
            return None
        self._tell("policy_observed" if action.observed else f"policy_{action.deed}", action.message)
        if not action.observed and action.deed == "reduce_lr":
            self._lower_learning_rate()
        if action.observed or action.deed != "rescue":
            return None
        snapshot, damages = self._latest_good(action)
        for damage in damages:
            self._tell("checkpoint_unreadable", damage)
        self._put_back(snapshot)
        where = f"the weights of epoch {snapshot.weights_epoch}" if snapshot.epoch else "the initial weights"
        rate = float(self._groups[0]["lr"])
        self._tell(
            "rolled_back", f"epoch {action.epoch + 1} begins with {where}, at a learning rate of {rate:g}"
        )
        return snapshot.weights_epoch

    def _put_back(self, snapshot: Snapshot) -> None:
        """Put a state back with a lower learning rate; the schedule stays where it is in the run."""
        scheduled: list[dict[str, Any]] = [
            {name: group[name] for name in _SCHEDULED if name in group} for group in self._groups
        ]
        restore(replace(snapshot, scheduler=None), self._task, self._model, self._scaler)
        if not snapshot.epoch:
            # Rank 0's are everybody's.
            share_weights(self._model, self._group)
        for group, known in zip(self._groups, scheduled, strict=True):
            group.update(known)
        self._lower_learning_rate()

    def _lower_learning_rate(self) -> None:
        """Multiply the learning rate, and those that the schedule goes by, by the policy's factor."""
        for group in self._groups:
            _multiply(group, _OF_GROUPS, self._factor)
        for schedule in _schedules(self._task.scheduler):
            _multiply(vars(schedule), _OF_SCHEDULES, self._factor)

    def _latest_good(self, action: Action) -> tuple[Snapshot, tuple[str, ...]]:
        """Return the latest snapshot of before the trouble, the initial state where there is no other."""

        def is_good(snapshot: Snapshot) -> bool:
            return snapshot.partial is None and snapshot.weights_epoch in action.good_epochs

        found: Snapshot | None = None
        damages: tuple[str, ...] = ()
        if action.good_epochs:
            try:
                found, damages = read_latest(self._checkpoints, self._group, is_good)
            except DamagedCheckpointError as error:
                damages = (str(error),)
        if found is None:
            if self._initial is None:
                raise ValueError("the policy of this job has no rescue")
            own = self._initial.model or self._model.state_dict()
            # A copy: an optimizer may go on with the very tensors that it is given.
            found = replace(self._initial, model=own, optimizer=deepcopy(self._initial.optimizer))
        return found, damages

    def _state_now(self, *, model: bool) -> Snapshot:
        """Return the state of before the first step, in host memory; the model's where it is asked for."""
        loss = self._task.loss
        state = {
            "model": self._model.state_dict() if model else {},
            "optimizer": self._task.optimizer.state_dict(),
            "loss": loss.state_dict() if isinstance(loss, nn.Module) else None,
        }
        kept = pytree.tree_map_only(Tensor, lambda one: one.detach().cpu().clone(), state)
        scaler = self._scaler.state_dict() if self._scaler.is_enabled() else None
        return Snapshot(epoch=0, attempt=1, scheduler=None, scaler=scaler, best=None, records=(), **kept)

    @property
    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._task.optimizer.param_groups
        return groups


def _leaves_room(ending: Ending | None) -> bool:
    """Tell whether what the policy answers is done in an epoch that ends a run like this.

    A paused run goes on from its checkpoint, and takes what was decided before for done.
    """
    return ending is None or ending.by_verdict or ending.outcome is Outcome.PAUSED


def _multiply(entries: dict[str, Any], names: tuple[str, ...], factor: float) -> None:
    for name in names:
        rate = entries.get(name)
        if isinstance(rate, list | tuple):
            entries[name] = [one * factor for one in rate]
        elif rate is not None:
            entries[name] = rate * factor


def _schedules(scheduler: Any) -> list[Any]:
    """Return a schedule and those that it is made of."""
    if scheduler is None:
        return []
    return [scheduler, *(one for part in getattr(scheduler, "_schedulers", ()) for one in _schedules(part))]
