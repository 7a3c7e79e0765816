"""The models that ``metric_cost.py`` trains, and the loop over them that measures nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from curvewatch_workers.group import Group
from measuring import seconds_of

Batches = list[tuple[Tensor, Tensor]]
Stage = Literal["train", "validate"]

LEARNING_RATE = 1e-3


@dataclass
class Work:
    """One model, its data and its optimizer, the same for all variants."""

    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    train: Batches
    validation: Batches
    device: torch.device

    def step(self, loss: Tensor, gradient: Tensor | None = None) -> None:
        """Take an optimizer step.

        Args:
            loss: What is differentiated.
            gradient: Its factors, where it is more than one number.
        """
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, gradient)
        self.optimizer.step()


class Variant:
    """A way to get the epoch's loss and accuracy; this one gets none."""

    def seconds(self, work: Work, stage: Stage) -> float:
        """Return the seconds of one pass, until the last rank has its numbers."""
        return seconds_of(partial(getattr(self, stage), work), work.device)

    def train(self, work: Work) -> None:
        """Train on every batch."""
        for inputs, targets in work.train:
            work.step(functional.cross_entropy(work.wrapped(inputs), targets))

    @torch.no_grad()
    def validate(self, work: Work) -> None:
        """Run every validation batch."""
        for inputs, targets in work.validation:
            functional.cross_entropy(work.model(inputs), targets)


def mlp(group: Group, *, steps: int, batch: int) -> Work:
    """Return a small MLP on random numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(group.device)
    return _work(group, model, (64,), steps=steps, batch=batch)


def convnet(group: Group, *, steps: int, batch: int) -> Work:
    """Return a convnet on random images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).to(group.device)
    return _work(group, model, (3, 32, 32), steps=steps, batch=batch)


def _work(group: Group, model: nn.Module, shape: tuple[int, ...], *, steps: int, batch: int) -> Work:
    generator = torch.Generator().manual_seed(1)

    def batches(count: int) -> Batches:
        return [
            (
                torch.randn(batch, *shape, generator=generator).to(group.device),
                torch.randint(0, 10, (batch,), generator=generator).to(group.device),
            )
            for _ in range(count)
        ]

    wrapped = group.wrap(model, find_unused_parameters=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return Work(model, wrapped, optimizer, batches(steps), batches(steps), group.device)
