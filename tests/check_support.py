"""Jobs to be tried before they are submitted."""

from __future__ import annotations

import sys
from pathlib import Path

from curvewatch_workers.check import check
from curvewatch_workers.check_report import CheckReport
from curvewatch_workers.contract import read_job_spec

HEAD = """
import itertools
import sys
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler
from curvewatch_workers.metrics import Accuracy, ConfusionMatrix, MeanSquaredError
from curvewatch_workers.task import TrainingTask

def data(samples, seed, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(samples, 4, generator=generator), torch.arange(samples) % classes)

def task(**changes):
    model = changes.pop("model", None) or nn.Linear(4, 3)
    fields = dict(
        model=model, train=data(50, 1), validation=data(23, 2), loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=0.1),
    )
    return TrainingTask(**{**fields, **changes})

class Rows(Dataset):
    '''Given samples, and the length that it says.'''

    def __init__(self, rows, length=None):
        self.rows, self.length = rows, length or len(rows)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.rows[index]

class Endless:
    '''Rows of a stream that begin again.'''

    def __getitem__(self, cut):
        return itertools.cycle(list(data(48, 1))[cut])

class Stream(IterableDataset):
    '''Samples that shard themselves, or say so.'''

    def __init__(self, rows, length=None, sharded=True):
        self.rows, self.length, self.sharded = rows, length or len(rows), sharded

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(self.rows)

    def shard(self, shard, shards):
        return iter(self.rows[shard::shards]) if self.sharded else iter(self.rows)
"""


def write_job(folder: Path, body: str, training: str = "", workers: int | str = 3) -> None:
    """Write a job whose `build` does what the body says."""
    module = f"checked_{abs(hash((str(folder), body, training, workers)))}"
    (folder / f"{module}.py").write_text(f"{HEAD}\ndef build():\n    {body}\n")
    (folder / "job.yaml").write_text(
        f"name: checked\ncode: {{task: '{module}:build'}}\nscaling: {{workers: {workers}}}\n"
        f"training: {{epochs: 2, global_batch_size: 16{training}}}\n"
    )


def report_of(folder: Path, body: str, training: str = "", workers: int | str = 3) -> CheckReport:
    """Check a job whose `build` does what the body says."""
    write_job(folder, body, training, workers)
    sys.path.insert(0, str(folder))
    try:
        return check(read_job_spec(folder))
    finally:
        sys.path.remove(str(folder))


def told(report: CheckReport) -> list[tuple[str, str]]:
    """Return severity and message of all that was found."""
    return [(one.severity, one.message) for one in report.findings]
