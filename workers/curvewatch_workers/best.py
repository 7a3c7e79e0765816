"""The weights of the best epoch so far, for a run that puts them back when it stops early."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


class NoBestWeights:
    """Keeps nothing: of a job that does not ask for it, and of every rank but 0, which writes the checkpoints."""

    epoch = 0

    def keep(self, model: nn.Module, epoch: int) -> None:
        """Keep nothing."""

    def put_back(self, model: nn.Module) -> None:
        """Leave the model as it is."""

    def state(self) -> dict[str, Any] | None:
        """Return nothing."""
        return None

    def load(self, state: dict[str, Any] | None, epoch: int) -> None:
        """Load nothing."""


class BestWeights(NoBestWeights):
    """Keeps a copy in host memory."""

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None
        self.epoch = 0
        """The epoch that they are from; 0 when there are none."""

    def keep(self, model: nn.Module, epoch: int) -> None:
        """Copy the model's state after an epoch."""
        self.epoch = epoch
        self._state = pytree.tree_map_only(Tensor, lambda one: one.detach().cpu().clone(), model.state_dict())

    def put_back(self, model: nn.Module) -> None:
        """Give the model the best state, if there is one."""
        if self._state is not None:
            model.load_state_dict(self._state)

    def state(self) -> dict[str, Any] | None:
        """Return what a checkpoint must keep."""
        return self._state

    def load(self, state: dict[str, Any] | None, epoch: int) -> None:
        """Go on from a checkpoint."""
        self._state, self.epoch = state, epoch
