"""Fakes and helpers, public: users test their own task with them, and we test the engine.

>>> from curvewatch_workers.testing import train_alone
>>> records = train_alone(spec, build())  # doctest: +SKIP
>>> assert records[-1].validation.exact  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from curvewatch_workers.checkpoint import Checkpoints, NoCheckpoints
from curvewatch_workers.contract import Control, EpochFinished, EpochRecord, IngestMessage, JobSpec
from curvewatch_workers.group import SoloGroup
from curvewatch_workers.loop import Trainer
from curvewatch_workers.task import TrainingTask

_MESSAGE: TypeAdapter[IngestMessage] = TypeAdapter(IngestMessage)


class FakeGroup:
    """A rank of a group whose other ranks all hold the same tensors: a sum is the tensor times the world size.

    Args:
        rank: This rank.
        world_size: Ranks that are pretended.
    """

    def __init__(self, rank: int = 0, world_size: int = 2) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device("cpu")
        self.reduced: list[tuple[int, ...]] = []
        """Shapes of the tensors that were reduced, in order."""

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """Multiply the tensor by the world size, in place."""
        self.reduced.append(tuple(tensor.shape))
        tensor *= self.world_size

    def broadcast(self, tensor: Tensor) -> None:
        """Leave the tensor: the other ranks hold the same."""

    def first_problem(self, problem: str | None) -> str | None:
        """Return the problem: the other ranks have the same."""
        return problem

    def wrap(self, model: nn.Module, *, find_unused_parameters: bool) -> nn.Module:  # noqa: ARG002 - the protocol's
        """Return the model: equal gradients average to themselves."""
        return model


class RecordingReporter:
    """Keeps every message, and answers with the control word that the test sets."""

    def __init__(self, control: Control = Control.CONTINUE) -> None:
        self.messages: list[IngestMessage] = []
        self.next_control = control
        self.closed = False

    def send(self, message: IngestMessage) -> None:
        """Keep the message."""
        self.messages.append(message)

    def control(self) -> Control:
        """Return the control word."""
        return self.next_control

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    @property
    def records(self) -> list[EpochRecord]:
        """Epochs that were reported, in order."""
        return [message.record for message in self.messages if isinstance(message, EpochFinished)]


def train_alone(
    spec: JobSpec, task: TrainingTask, checkpoints: Checkpoints | None = None
) -> list[EpochRecord]:
    """Train a task in this process and return its epochs.

    Raises:
        TaskError: The task cannot be trained.
    """
    reporter = RecordingReporter()
    trainer = Trainer(
        run_id="alone",
        attempt=1,
        spec=spec,
        task=task,
        group=SoloGroup(),
        checkpoints=checkpoints or NoCheckpoints(),
        reporter=reporter,
    )
    trainer.run(after_epoch=trainer.resume().epoch)
    return reporter.records


def read_epochs(spool: Path) -> list[EpochRecord]:
    """Return the epochs of a spool file, in the order in which they were told.

    Raises:
        pydantic.ValidationError: A line is no message.
    """
    messages = (_MESSAGE.validate_json(line) for line in spool.read_bytes().splitlines() if line)
    return [message.record for message in messages if isinstance(message, EpochFinished)]
