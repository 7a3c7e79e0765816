"""Small tasks and jobs for the engine's tests."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import TensorDataset

from curvewatch_workers.contract import JobSpec
from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import TrainingTask


def make_spec(**training: Any) -> JobSpec:
    """Return a job of two epochs in global batches of 16; training fields, or whole parts, may be replaced."""
    parts = {
        name: training.pop(name)
        for name in list(training)
        if name in JobSpec.model_fields and name != "training"
    }
    return JobSpec.model_validate(
        {
            "name": "toy",
            "code": {"task": "toy:build"},
            "training": {"epochs": 2, "global_batch_size": 16, **training},
            **parts,
        }
    )


def make_task(*, samples: int = 50, validation_samples: int = 23, **changes: Any) -> TrainingTask:
    """Return a three-class task on random data, the same at each call."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(0)
    model = changes.pop("model", None) or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def data(count: int) -> TensorDataset:
        inputs = torch.randn(count, 4, generator=generator)
        return TensorDataset(inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long())

    fields: dict[str, Any] = {
        "model": model,
        "train": data(samples),
        "validation": data(validation_samples),
        "loss": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.5),
        "metrics": {"accuracy": Accuracy()},
    }
    return TrainingTask(**{**fields, **changes})


def datasets(task: TrainingTask) -> tuple[TensorDataset, TensorDataset]:
    """Return the train and validation dataset of a task that `make_task` made."""
    return cast("TensorDataset", task.train), cast("TensorDataset", task.validation)


EVERY_CALL_OF_A_GROUP = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from curvewatch_workers import group as groups

device = torch.device(sys.argv[1], 0) if sys.argv[1] == "cuda" else torch.device(sys.argv[1])
if device.type == "cuda":
    torch.cuda.set_device(device)
dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
group = groups.TorchGroup(device)

values = torch.tensor([1.5, 2.0**40 + 0.25], dtype=torch.float64, device=device)
for collective in (group.all_reduce_sum, group.broadcast):
    reduced = values.clone()
    collective(reduced)
    assert torch.equal(reduced, values), reduced
assert group.first_problem("it broke") == "it broke"
assert group.first_problem(None) is None

torch.manual_seed(0)
alone = nn.Linear(3, 1).to(device)
together = nn.Linear(3, 1).to(device)
together.load_state_dict(alone.state_dict())
for model in (alone, group.wrap(together, find_unused_parameters=False)):
    model(torch.ones(4, 3, device=device)).square().mean().backward()
assert torch.equal(alone.weight.grad, together.weight.grad)
print(f"rank {group.rank} of {group.world_size} by {dist.get_backend()}", flush=True)
groups.leave()
"""
"""A script for torchrun: each method of `TorchGroup`, on the device that it is told, with one rank."""
