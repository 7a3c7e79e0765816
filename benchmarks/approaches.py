"""What each approach reports as global validation loss and accuracy; ``correctness.py`` runs it under torchrun.

Every approach gets the same model and dataset and is used as its documentation says, with batches of 32 on each rank.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

from curvewatch_workers.checkpoint import NoCheckpoints
from curvewatch_workers.contract import JobSpec, read_job_spec
from curvewatch_workers.group import Group, join_torchrun, leave
from curvewatch_workers.loop import Trainer
from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import TrainingTask, load_task
from curvewatch_workers.testing import RecordingReporter
from measuring import ROOT, installed

BATCH = 32
CLASSES = 10
MODEL, REPORTS = "model.pt", "reports.json"

Samples = Dataset[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Report:
    """What an approach says of the validation set."""

    loss: float
    accuracy: float
    samples: int
    """Samples that went into it."""


def digits() -> tuple[nn.Module, TensorDataset, TensorDataset]:
    """Return model, train and validation samples of the example."""
    folder = ROOT / "examples" / "digits"
    sys.path.insert(0, str(folder))
    torch.manual_seed(0)
    task = load_task(read_job_spec(folder))
    return task.model, cast("TensorDataset", task.train), cast("TensorDataset", task.validation)


def curvewatch(group: Group, model: nn.Module, samples: TensorDataset) -> Report:
    """Let the whole engine do an epoch, whose learning rate of 0 leaves the model as it is."""
    task = TrainingTask(
        model=model,
        train=samples,
        validation=samples,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        metrics={"accuracy": Accuracy()},
    )
    training = {"epochs": 1, "global_batch_size": BATCH * group.world_size}
    spec = JobSpec.model_validate({"name": "digits", "code": {"task": "digits:build"}, "training": training})
    reporter = RecordingReporter()
    Trainer(
        run_id="digits",
        attempt=1,
        spec=spec,
        task=task,
        group=group,
        checkpoints=NoCheckpoints(),
        reporter=reporter,
    ).run(after_epoch=0)
    validation = reporter.records[-1].validation
    return Report(validation.loss, validation.metric_values["accuracy"], validation.samples_seen)


@torch.inference_mode()
def tutorial(group: Group, model: nn.Module, samples: TensorDataset) -> Report:
    """Average batch means on each rank, then the ranks."""
    losses, right, seen = [], 0, 0
    for inputs, targets in _sampled(group, samples):
        outputs = model(inputs)
        losses.append(functional.cross_entropy(outputs, targets).item())
        right += int((outputs.argmax(1) == targets).sum())
        seen += len(targets)
    mean = torch.tensor([sum(losses) / len(losses), right / seen], dtype=torch.float64)
    group.all_reduce_sum(mean)
    loss, accuracy = (mean / group.world_size).tolist()
    return Report(loss, accuracy, _total(group, seen))


def torchmetrics(group: Group, model: nn.Module, samples: TensorDataset) -> Report:
    """Update metrics with each batch, weighted by its size, and compute them at the end."""
    from torchmetrics import MeanMetric
    from torchmetrics.classification import MulticlassAccuracy

    mean, right, seen = MeanMetric(), MulticlassAccuracy(CLASSES, average="micro"), 0
    with torch.no_grad():
        for inputs, targets in _sampled(group, samples):
            outputs = model(inputs)
            mean.update(functional.cross_entropy(outputs, targets), weight=len(targets))
            right.update(outputs, targets)
            seen += len(targets)
    return Report(float(mean.compute()), float(right.compute()), _total(group, seen))


def lightning(group: Group, model: nn.Module, samples: TensorDataset) -> Report:
    """Log loss and accuracy in `validation_step`; Lightning puts its distributed sampler into the loader."""
    from lightning_peer import CountingClassifier, quiet_trainer

    trainer = quiet_trainer(group.device, group.world_size)
    (logged,) = trainer.validate(CountingClassifier(model), DataLoader(samples, BATCH), verbose=False)
    return Report(logged["loss"], logged["accuracy"], round(logged["samples"]))


def accelerate_repeating(_: Group, model: nn.Module, samples: TensorDataset) -> Report:
    """Gather the mean of each batch as often as the batch size says, as the examples for Accelerate do."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, loader = accelerator.prepare(model, DataLoader(samples, BATCH))
    losses, right, seen = [], 0, 0
    with torch.no_grad():
        for inputs, targets in loader:
            outputs = model(inputs)
            loss = functional.cross_entropy(outputs, targets)
            losses.append(accelerator.gather_for_metrics(loss.repeat(BATCH)))
            predicted, truth = accelerator.gather_for_metrics((outputs.argmax(1), targets))
            right += int((predicted == truth).sum())
            seen += len(truth)
    return Report(float(torch.cat(losses).mean()), right / seen, seen)


def accelerate_gathering(_: Group, model: nn.Module, samples: TensorDataset) -> Report:
    """Gather the outputs of each batch and take loss and accuracy from them, on each rank for all samples."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, loader = accelerator.prepare(model, DataLoader(samples, BATCH))
    total, right, seen = 0.0, 0, 0
    with torch.no_grad():
        for inputs, targets in loader:
            outputs, truth = accelerator.gather_for_metrics((model(inputs), targets))
            total += float(functional.cross_entropy(outputs, truth, reduction="sum"))
            right += int((outputs.argmax(1) == truth).sum())
            seen += len(truth)
    return Report(total / seen, right / seen, seen)


APPROACHES: dict[str, tuple[str, Callable[[Group, nn.Module, TensorDataset], Report]]] = {
    "Curvewatch": ("torch", curvewatch),
    "by hand: DistributedSampler, mean of batch means": ("torch", tutorial),
    "torchmetrics with DistributedSampler": ("torchmetrics", torchmetrics),
    "Lightning, self.log(sync_dist=True)": ("lightning", lightning),
    "Accelerate, gather_for_metrics(loss.repeat(batch))": ("accelerate", accelerate_repeating),
    "Accelerate, gather_for_metrics(outputs)": ("accelerate", accelerate_gathering),
}
"""Of each approach, the package that it needs and what it does."""


def _sampled(group: Group, samples: TensorDataset) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return the loader of the tutorials."""
    sampler: DistributedSampler[int] = DistributedSampler(
        samples, num_replicas=group.world_size, rank=group.rank, shuffle=False
    )
    return DataLoader(cast("Samples", samples), BATCH, sampler=sampler)


def _total(group: Group, number: int) -> int:
    total = torch.tensor(number, dtype=torch.float64)
    group.all_reduce_sum(total)
    return int(total)


def main() -> None:
    """Let each approach report; rank 0 writes the reports into the folder that holds the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    group = join_torchrun(gpu=False)
    reports = {}
    for name, (package, report) in APPROACHES.items():
        if installed(package):
            model, _, validation = digits()
            model.load_state_dict(torch.load(folder / MODEL))
            reports[name] = asdict(report(group, model.eval(), validation))
    if group.rank == 0:
        (folder / REPORTS).write_text(json.dumps(reports), encoding="utf-8")
    if dist.is_initialized():  # by us, or by Accelerate for one rank
        leave()


if __name__ == "__main__":
    main()
