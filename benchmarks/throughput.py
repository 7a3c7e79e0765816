"""Samples per second of a job beside a plain torchrun DDP script: ``python benchmarks/throughput.py``.

The plain script is what one writes by hand: DataLoader, DistributedSampler, DDP, a loss and nothing else, no metric and
no validation. The job is the whole engine with a reporter, receipts and accuracy. Both train the same convnet on the
same random images under torchrun on two ranks; their runs are interleaved, and each round gives one ratio.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from curvewatch_workers.testing import read_epochs

MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(SAMPLES, 3, 32, 32, generator=generator), torch.randint(0, 10, (SAMPLES,), generator=generator)
    )
    return model, data
"""
JOB = """
from torch import nn, optim
from shared import make
from torch.utils.data import Subset
from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import TrainingTask

def build():
    model, data = make()
    return TrainingTask(
        model=model, train=data, validation=Subset(data, range(2)), loss=nn.CrossEntropyLoss(),
        optimizer=optim.SGD(model.parameters(), lr=1e-3), metrics={"accuracy": Accuracy()},
    )
"""
PLAIN = """
import time
import torch
import torch.distributed as dist
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from shared import make

dist.init_process_group("gloo")
model, data = make()
model = DistributedDataParallel(model)
sampler = DistributedSampler(data)
loader = DataLoader(data, BATCH, sampler=sampler)
optimizer, loss_function = optim.SGD(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
for epoch in range(EPOCHS):
    sampler.set_epoch(epoch)
    clock = time.perf_counter()
    for inputs, targets in loader:
        loss = loss_function(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if dist.get_rank() == 0:
        print("seconds", time.perf_counter() - clock)
dist.destroy_process_group()
"""


def run(folder: Path, *arguments: str) -> str:
    """Run something under torchrun on two ranks; return what it printed."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *arguments,
    ]
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin", "PYTHONPATH": str(folder)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout


def plain_seconds(folder: Path) -> list[float]:
    """Return the seconds of each epoch of the plain script."""
    return [float(found) for found in re.findall(r"seconds (\S+)", run(folder, str(folder / "plain.py")))]


def job_seconds(folder: Path) -> list[float]:
    """Return the seconds of each epoch of the job, its validation pass of two samples included."""
    with tempfile.TemporaryDirectory() as output:
        run(folder, "-m", "curvewatch_workers.torchrun", str(folder), "--output", output, "--device", "cpu")
        (spool,) = Path(output).glob("*/spool/attempt-*.jsonl")
        return [record.duration_seconds for record in read_epochs(spool)]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--samples", type=int, default=2048)
    options = parser.parse_args()
    batch = 32
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "shared.py").write_text(MODEL.replace("SAMPLES", str(options.samples)))
        (folder / "job_code.py").write_text(JOB)
        (folder / "plain.py").write_text(
            PLAIN.replace("EPOCHS", str(options.epochs)).replace("BATCH", str(batch))
        )
        (folder / "job.yaml").write_text(
            f"name: throughput\ncode: {{task: 'job_code:build'}}\n"
            f"training: {{epochs: {options.epochs}, global_batch_size: {2 * batch}}}\n"
            "checkpoints: {every_epochs: 1000}\n"
        )
        ratios, noise = [], []
        for _ in range(options.rounds):
            # The first epoch warms up.
            first, job, second = (
                statistics.median(seconds[1:])
                for seconds in (plain_seconds(folder), job_seconds(folder), plain_seconds(folder))
            )
            plain = (first + second) / 2
            ratios.append(plain / job)
            noise.append(first / second)
    rate = options.samples / plain
    print(f"convnet, {options.samples} images of 32x32, 2 gloo ranks, batches of {batch} on each\n")
    print("| samples per second, by the plain script's | median | lowest | highest |\n|---|---|---|---|")
    for title, values in (("plain script again", noise), ("job", ratios)):
        print(f"| {title} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |")
    print(f"\nThe plain script trained {rate:.0f} samples a second.")


if __name__ == "__main__":
    main()
