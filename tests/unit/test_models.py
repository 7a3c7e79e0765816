"""What a model may do: keep tensors between calls, return more than a tensor, have layers that stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from curvewatch_workers.testing import train_alone
from engine_support import datasets, make_spec, make_task


class Cached(nn.Module):
    """Keeps a table that it makes for the largest batch so far, as rotary embeddings do for the longest sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.table = torch.empty(0)

    def forward(self, inputs: Tensor) -> Tensor:
        if len(self.table) < len(inputs):
            self.table = torch.ones(len(inputs), 1)
        outputs: Tensor = self.inner(inputs) * self.table[: len(inputs)]
        return outputs


def test_what_a_model_keeps_from_validation_serves_the_next_train_step() -> None:
    task = make_task(model=Cached())
    whole = DataLoader(datasets(task)[1], batch_size=23)

    kept = train_alone(make_spec(), make_task(model=Cached(), validation=whole))

    assert [record.epoch for record in kept] == [1, 2]
    assert kept[1].train.loss < kept[0].train.loss
