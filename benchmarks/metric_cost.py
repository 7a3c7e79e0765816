"""What metrics cost in training and validation: ``torchrun --nproc-per-node 2 benchmarks/metric_cost.py``.

A small MLP that exaggerates the cost, and a convnet. Every variant is the same DDP loop over the same tensors, with the
variant's own loss and accuracy in it; their epochs are interleaved in one run, in an order that changes from round to
round, and each round gives one ratio to the loop with no metrics of the same round. The table has the median ratio; the
row "nothing again" is the loop against itself, and shows the noise.

Peers that are not installed are left out, and said so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import random
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from curvewatch_workers.batches import SamplesSeen
from curvewatch_workers.contract import Control
from curvewatch_workers.group import Group, join_torchrun, leave
from curvewatch_workers.layout import EpochLayout, LeaderNotes
from curvewatch_workers.losses import Loss
from curvewatch_workers.metrics import Accuracy, as_sum_metric
from curvewatch_workers.totals import Totals

Batches = list[tuple[Tensor, Tensor]]


@dataclass
class Work:
    """One model, its data and its optimizer, the same for all variants."""

    model: nn.Module
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    train: Batches
    validation: Batches
    device: torch.device

    def step(self, loss: Tensor) -> None:
        """Take an optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()


class Variant:
    """A way to get the epoch's loss and accuracy; this one gets none."""

    def train(self, work: Work) -> None:
        """Train on every batch."""
        for inputs, targets in work.train:
            work.step(functional.cross_entropy(work.wrapped(inputs), targets))

    @torch.inference_mode()
    def validate(self, work: Work) -> None:
        """Run every validation batch."""
        for inputs, targets in work.validation:
            functional.cross_entropy(work.model(inputs), targets)


class Ours(Variant):
    """Curvewatch: per-sample losses and accuracy, summed on the device, one reduction at the end."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._metrics = {"accuracy": as_sum_metric(Accuracy())}
        self._loss = Loss(nn.CrossEntropyLoss())
        self._layout = EpochLayout(self._metrics, group.world_size)

    def train(self, work: Work) -> None:
        """Train and sum."""
        buffer = self._layout.empty(work.device)
        totals = self._totals(buffer)
        for inputs, targets in work.train:
            outputs = work.wrapped(inputs)
            loss = self._loss(outputs, targets)
            totals.add(loss, outputs, targets)
            work.step(loss.sums.sum() * (1 / len(targets)))
        totals.flush()
        self._end(buffer)

    @torch.inference_mode()
    def validate(self, work: Work) -> None:
        """Validate and sum."""
        buffer = self._layout.empty(work.device)
        totals = self._totals(buffer)
        for inputs, targets in work.validation:
            outputs = work.model(inputs)
            totals.add(self._loss(outputs, targets), outputs, targets)
        totals.flush()
        self._end(buffer)

    def _totals(self, buffer: Tensor) -> Totals:
        return Totals(self._loss, tuple(self._metrics.values()), self._layout.sums(buffer, "train"))

    def _end(self, buffer: Tensor) -> None:
        end_epoch(self._layout, buffer, self._group)


def end_epoch(layout: EpochLayout, buffer: Tensor, group: Group) -> None:
    """Reduce and read a buffer as the loop does."""
    notes = LeaderNotes(
        control=Control.CONTINUE,
        checkpoint_allowed=True,
        skipped_steps=0,
        gradient_norm=torch.zeros((), device=buffer.device),
    )
    seen = SamplesSeen(samples=1, checksum=1)
    layout.fill(buffer, group, notes, {"train": seen, "validation": seen}, 1.0, 0)
    group.all_reduce_sum(buffer)
    layout.read(buffer, {"train": seen, "validation": seen})


class ByHand(Variant):
    """The usual loop: `.item()` at each step, means of means, one reduction at the end."""

    def train(self, work: Work) -> None:
        """Train and read at each step."""
        total = right = count = 0.0
        for inputs, targets in work.train:
            outputs = work.wrapped(inputs)
            loss = functional.cross_entropy(outputs, targets)
            work.step(loss)
            total += loss.item()
            right += (outputs.argmax(1) == targets).sum().item()
            count += len(targets)
        self._reduce([total, right, count], work.device)

    @torch.inference_mode()
    def validate(self, work: Work) -> None:
        """Validate and read at each step."""
        total = right = count = 0.0
        for inputs, targets in work.validation:
            outputs = work.model(inputs)
            total += functional.cross_entropy(outputs, targets).item()
            right += (outputs.argmax(1) == targets).sum().item()
            count += len(targets)
        self._reduce([total, right, count], work.device)

    @staticmethod
    def _reduce(numbers: list[float], device: torch.device) -> None:
        sums = torch.tensor(numbers, dtype=torch.float64, device=device)
        if dist.is_initialized():
            dist.all_reduce(sums)
        sums.tolist()


class TorchMetrics(Variant):
    """torchmetrics: MeanMetric and MulticlassAccuracy, updated at each step, computed at the end."""

    def __init__(self, device: torch.device, classes: int) -> None:
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy

        self._loss = MeanMetric().to(device)
        self._accuracy = MulticlassAccuracy(classes, average="micro").to(device)

    def train(self, work: Work) -> None:
        """Train and update."""
        for inputs, targets in work.train:
            outputs = work.wrapped(inputs)
            loss = functional.cross_entropy(outputs, targets)
            work.step(loss)
            self._update(loss.detach(), outputs.detach(), targets)
        self._end()

    @torch.inference_mode()
    def validate(self, work: Work) -> None:
        """Validate and update."""
        for inputs, targets in work.validation:
            outputs = work.model(inputs)
            self._update(functional.cross_entropy(outputs, targets), outputs, targets)
        self._end()

    def _update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        self._loss.update(loss, weight=len(targets))
        self._accuracy.update(outputs, targets)

    def _end(self) -> None:
        for metric in (self._loss, self._accuracy):
            float(metric.compute())
            metric.reset()


class Accelerate(Variant):
    """Accelerate: `gather_for_metrics` of losses and predictions at each step."""

    def __init__(self) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=not torch.cuda.is_available())

    def train(self, work: Work) -> None:
        """Train and gather."""
        total, right, count = 0.0, 0, 0
        for inputs, targets in work.train:
            outputs = work.wrapped(inputs)
            loss = functional.cross_entropy(outputs, targets)
            work.step(loss)
            total, right, count = self._gather(loss.detach(), outputs.detach(), targets, total, right, count)

    @torch.inference_mode()
    def validate(self, work: Work) -> None:
        """Validate and gather."""
        total, right, count = 0.0, 0, 0
        for inputs, targets in work.validation:
            outputs = work.model(inputs)
            loss = functional.cross_entropy(outputs, targets)
            total, right, count = self._gather(loss, outputs, targets, total, right, count)

    def _gather(
        self, loss: Tensor, outputs: Tensor, targets: Tensor, total: float, right: int, count: int
    ) -> tuple[float, int, int]:
        losses = self._accelerator.gather_for_metrics(loss.repeat(len(targets)))
        predicted, truth = self._accelerator.gather_for_metrics((outputs.argmax(1), targets))
        return total + losses.sum().item(), right + int((predicted == truth).sum()), count + len(truth)


def variants(group: Group, classes: int) -> tuple[dict[str, Variant], list[str]]:
    """Return the variants by name, and the peers that are not installed."""
    made: dict[str, Variant] = {
        "nothing": Variant(),
        "nothing again": Variant(),
        "Curvewatch": Ours(group),
        "by hand, .item()": ByHand(),
    }
    peers: dict[str, tuple[str, Callable[[], Variant]]] = {
        "torchmetrics": ("torchmetrics", lambda: TorchMetrics(group.device, classes)),
        "Accelerate, gather_for_metrics": ("accelerate", Accelerate),
    }
    missing = []
    for name, (package, make) in peers.items():
        if importlib.util.find_spec(package):
            made[f"{name} {importlib.metadata.version(package)}"] = make()
        else:
            missing.append(package)
    return made, missing


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
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return Work(model, wrapped, optimizer, batches(steps), batches(steps), group.device)


def measure(
    run: Callable[[Variant], None], made: dict[str, Variant], device: torch.device, rounds: int
) -> dict[str, tuple[float, float, float]]:
    """Return, for each variant, median, lower and upper quartile of its time by that of "nothing" of the round."""
    ratios: dict[str, list[float]] = {name: [] for name in made}
    shuffle = random.Random(0)  # noqa: S311 - the same order on each rank
    for number in range(rounds + 2):
        seconds: dict[str, float] = {}
        names = list(made)
        shuffle.shuffle(names)
        for name in names:
            _meet(device)
            clock = time.perf_counter()
            run(made[name])
            _meet(device)
            seconds[name] = time.perf_counter() - clock
        if number >= 2:  # the first two warm up
            for name in made:
                ratios[name].append(seconds[name] / seconds["nothing"])
    return {name: _quartiles(values) for name, values in ratios.items()}


def _train(work: Work, variant: Variant) -> None:
    variant.train(work)


def _validate(work: Work, variant: Variant) -> None:
    variant.validate(work)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high


def _meet(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if dist.is_initialized():
        dist.barrier()


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    group = join_torchrun(gpu=options.device == "cuda")
    made, missing = variants(group, classes=10)
    works: dict[str, Work] = {
        "MLP of 9,610 parameters, batches of 64": mlp(group, steps=100, batch=64),
        "convnet of 56,714 parameters, batches of 32": convnet(group, steps=8, batch=32),
    }
    tables: list[Any] = []
    for title, work in works.items():
        train = measure(partial(_train, work), made, group.device, options.rounds)
        validate = measure(partial(_validate, work), made, group.device, options.rounds)
        tables.append((title, train, validate))
    if group.rank == 0:
        _print(tables, missing, group, options.rounds)
    leave()


def _print(tables: list[Any], missing: list[str], group: Group, rounds: int) -> None:
    print(f"{group.world_size} ranks on {group.device}, torch {torch.__version__}, {rounds} rounds\n")
    for title, train, validate in tables:
        print(f"### {title}\n\n| variant | training epoch | validation pass |\n|---|---|---|")
        for name in train:
            if name != "nothing":
                cells = (
                    f"{m:.3f} ({low:.3f} to {high:.3f})" for m, low, high in (train[name], validate[name])
                )
                print(f"| {name} | {' | '.join(cells)} |")
        print()
    if missing:
        print(f"Not installed, so not measured: {', '.join(missing)}.")


if __name__ == "__main__":
    main()
