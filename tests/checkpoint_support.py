"""Small checkpoints."""

from __future__ import annotations

import torch

from curvewatch_workers.checkpoint import Snapshot
from curvewatch_workers.ranking import Best
from record_support import make_record


def make_snapshot(epoch: int = 3) -> Snapshot:
    """Return a run of so many epochs."""
    return Snapshot(
        epoch=epoch,
        attempt=2,
        model={"weight": torch.arange(3.0)},
        optimizer={"state": {}, "param_groups": [{"lr": 0.1}]},
        scheduler=None,
        scaler={"scale": 65536.0},
        best=Best(0.25, 1),
        records=tuple(make_record(epoch=number) for number in range(1, epoch + 1)),
    )
