"""The beginning of an epoch, kept in a checkpoint so that another attempt can go on with the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from curvewatch_workers.batches import SamplesSeen


@dataclass(frozen=True, kw_only=True)
class PartialEpoch:
    """What some optimizer steps of an epoch came to, over all ranks that took them."""

    steps: int
    """Optimizer steps that were taken."""
    sums: Tensor
    """The train split's sums over all ranks, float64 [slots]."""
    seen: SamplesSeen
    """Train samples over all ranks."""
    seconds: float
    """Time that they took, of rank 0."""
    last_step: dict[str, Any]
    """What is told of the last step."""

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values, to be saved."""
        return {
            "steps": self.steps,
            "sums": self.sums,
            "samples": self.seen.samples,
            "checksum": self.seen.checksum,
            "seconds": self.seconds,
            "last_step": self.last_step,
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> PartialEpoch:
        """Return what `state` was made of."""
        return cls(
            steps=state["steps"],
            sums=state["sums"],
            seen=SamplesSeen(samples=state["samples"], checksum=state["checksum"]),
            seconds=state["seconds"],
            last_step=state["last_step"],
        )

    def on(self, device: torch.device) -> PartialEpoch:
        """Return it with its sums on a device."""
        return replace(self, sums=self.sums.to(device))

    def samples_of(self, rank: int, world_size: int) -> int:
        """Return the samples that a rank answers for: they are shared out, for the ranks that saw them are gone."""
        return self.seen.samples * (rank + 1) // world_size - self.seen.samples * rank // world_size
