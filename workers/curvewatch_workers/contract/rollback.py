"""The curve of the weights that a run has, where a rescue put earlier ones back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Epoch(Protocol):
    """An epoch that knows which weights it began with."""

    @property
    def epoch(self) -> int:
        """Its number, from 1."""

    @property
    def rolled_back_to(self) -> int | None:
        """The epoch whose weights it began with, when a rescue had put them back; 0 for the initial ones."""


_Epoch = TypeVar("_Epoch", bound=Epoch)


def standing(epochs: Sequence[_Epoch]) -> list[_Epoch]:
    """Return a curve without what rescues undid: in place of such an epoch stands the one whose weights came back.

    Places keep their meaning: entry i is what the run had to show for itself after epoch i + 1. Where the initial
    weights came back, whose loss nobody knows, it is the epoch that was trained from them.

    Args:
        epochs: Epochs 1, 2, 3, ... without a gap.
    """
    stands = list(epochs)
    for epoch in epochs:
        if epoch.rolled_back_to is None:
            continue
        back = min(epoch.rolled_back_to, len(stands))
        stand_in = stands[back - 1] if back else epoch
        stands[back : epoch.epoch - 1] = [stand_in] * (epoch.epoch - 1 - back)
    return stands
