"""How others get an epoch's loss and accuracy, in the loop of ``workload.Variant``; Lightning has its own module."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from curvewatch_workers.group import Group
from measuring import installed
from workload import Variant, Work

PACKAGES = ("torchmetrics", "accelerate", "lightning")

LIGHTNING = "Lightning, nothing logged"
LIGHTNING_LOGS = "Lightning, self.log(sync_dist=True)"


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

    @torch.no_grad()
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

    def validate(self, work: Work) -> None:
        """Validate and update."""
        with torch.no_grad():
            for inputs, targets in work.validation:
                outputs = work.model(inputs)
                self._update(functional.cross_entropy(outputs, targets), outputs, targets)
        self._end()  # outside: a metric that is reset in inference mode can only be updated there

    def _update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        self._loss.update(loss, weight=len(targets))
        self._accuracy.update(outputs, targets)

    def _end(self) -> None:
        for metric in (self._loss, self._accuracy):
            float(metric.compute())
            metric.reset()


class Accelerate(Variant):
    """Accelerate: `gather_for_metrics` of losses and predictions at each step."""

    def __init__(self, device: torch.device) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=device.type == "cpu")

    def train(self, work: Work) -> None:
        """Train and gather."""
        total, right, count = 0.0, 0, 0
        for inputs, targets in work.train:
            outputs = work.wrapped(inputs)
            loss = functional.cross_entropy(outputs, targets)
            work.step(loss)
            total, right, count = self._gather(loss.detach(), outputs.detach(), targets, total, right, count)

    @torch.no_grad()
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


def peers(group: Group, classes: int) -> dict[str, Variant]:
    """Return the peers that are installed."""
    made: dict[str, Variant] = {"by hand, .item()": ByHand()}
    if installed("torchmetrics"):
        made["torchmetrics"] = TorchMetrics(group.device, classes)
    if installed("accelerate"):
        made["Accelerate, gather_for_metrics"] = Accelerate(group.device)
    if installed("lightning"):
        from lightning_peer import Classifier, Lightning, LoggingClassifier

        made[LIGHTNING] = Lightning(Classifier, group.world_size)
        made[LIGHTNING_LOGS] = Lightning(LoggingClassifier, group.world_size)
    return made
