"""One batch through the model: outputs, loss, sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from curvewatch_workers.contract import Precision
from curvewatch_workers.data import Batch
from curvewatch_workers.group import Group
from curvewatch_workers.losses import BatchLoss, Loss
from curvewatch_workers.totals import Totals

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Forward:
    """Runs batches of a task in the job's precision.

    Args:
        loss: The task's loss.
        group: The ranks.
        precision: Number format of the model's forward.
    """

    def __init__(self, loss: Loss, group: Group, precision: Precision) -> None:
        self._loss = loss
        self._group = group
        self._dtype = _AUTOCAST[precision]

    def __call__(self, model: Callable[[Any], Any], batch: Batch, totals: Totals) -> BatchLoss:
        """Return the loss of a batch, after adding it to the totals."""
        outputs = self.outputs(model, batch)
        loss = self.loss(outputs, batch)
        totals.add(loss, outputs, batch.targets)
        return loss

    def measure(self, model: Callable[[Any], Any], batch: Batch, totals: Totals) -> None:
        """Add a batch to the totals, whose loss nobody else asks for."""
        outputs = self.outputs(model, batch)
        if batch.weights is None:
            totals.measure(outputs, batch.targets)
        else:
            totals.add(self.loss(outputs, batch), outputs, batch.targets)

    def outputs(self, model: Callable[[Any], Any], batch: Batch) -> Any:
        """Return what the model makes of a batch."""
        try:
            with torch.autocast(self._group.device.type, dtype=self._dtype, enabled=self._dtype is not None):
                return model(batch.inputs)
        except Exception as error:
            _explain_small_share(error, batch.samples, self._group.world_size)
            raise

    def loss(self, outputs: Any, batch: Batch) -> BatchLoss:
        """Return the loss of a batch without adding it to anything."""
        return self._loss(outputs, batch.targets, batch.weights)


def _explain_small_share(error: Exception, samples: int, world_size: int) -> None:
    """Say why a model that runs on one worker may fail on several."""
    if samples <= 1 and world_size > 1:
        error.add_note(
            f"The model was called with a batch of {samples} samples: a global batch, split over {world_size} workers, "
            "leaves some with one sample or none. Use a global batch size that leaves a larger rest, x.flatten(1) for "
            "x.view(len(x), -1), and GroupNorm or LayerNorm for BatchNorm."
        )
