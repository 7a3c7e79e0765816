"""The user's side: what a job's callable returns, and how it is called."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic import JsonValue
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from curvewatch_workers.contract import JobSpec
from curvewatch_workers.errors import TaskError, UserCodeError
from curvewatch_workers.given_metrics import split_metrics
from curvewatch_workers.losses import Loss, LossFunction, ignored_target
from curvewatch_workers.metrics.foreign import AnyMetric
from curvewatch_workers.metrics.labels import ClassMetric


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """All that a user must write: returned by the callable that the job names.

    Datasets are map-style (`__len__` and `__getitem__`) and give pairs (inputs, target), or triples with the
    sample's weight in the loss; an IterableDataset must shard itself (`sources.ShardedIterable`). The model is called
    with the batch of inputs on the right device, laid out as the collate function does. Targets and outputs are
    batch-first: metrics see small batches joined along the first dimension, unless outputs and targets differ in it.
    The callable runs once in each worker, after torch was seeded, and must return the same model on each.
    """

    model: nn.Module
    """The model, on the CPU."""
    train: Dataset[Any] | DataLoader[Any]
    """Train samples, the same on each worker: the engine shares them out, also those of a DataLoader."""
    validation: Dataset[Any] | DataLoader[Any]
    """Validation samples, the same on each worker."""
    loss: nn.Module | LossFunction
    """A loss of torch.nn, or a callable that gives one loss for each sample, shape [batch], or (sum, weight)."""
    optimizer: Optimizer
    """An optimizer over the model's parameters."""
    scheduler: LRScheduler | ReduceLROnPlateau | None = None
    """Learning-rate schedule; ReduceLROnPlateau is given the global validation loss."""
    scheduler_step: Literal["epoch", "step"] = "epoch"
    """Whether the schedule moves after each epoch or after each optimizer step."""
    metrics: Mapping[str, AnyMetric] = field(default_factory=dict)
    """Metrics by name, measured on both splits; those of torchmetrics too."""
    collate: Callable[[Sequence[Any]], Any] | None = None
    """Makes a batch (inputs, targets) of a list of samples; torch's default without it."""
    ignores_targets: bool = False
    """Whether targets that the loss ignores occur although each sample has one target; of more targets a sample,
    or an `ignore_index` other than torch's default, that is known."""


def load_entry(spec: JobSpec) -> Callable[..., Any]:
    """Import what the job's code names and check that it takes the job's params.

    Raises:
        TaskError: It is missing or does not take them.
        UserCodeError: Importing it raised.
    """
    entry = _import(spec.code.entry_field, spec.code.entry)
    _check_params(spec.code.entry, entry, spec.params)
    return entry


def load_task(spec: JobSpec) -> TrainingTask:
    """Import the job's callable, call it with the job's params and check what it returns.

    Raises:
        TaskError: The callable is missing or does not take the params, or its task cannot be trained.
        UserCodeError: The user's code raised.
    """
    build, target = load_entry(spec), spec.code.entry
    try:
        task = build(**spec.params)
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{target}()", error) from error
    try:
        check_task(task, target)
    except TaskError:
        raise
    except Exception as error:
        raise UserCodeError(f"looking at the task of {target}()", error) from error
    return cast("TrainingTask", task)


def _import(field: str, target: str) -> Callable[..., Any]:
    module_name, name = target.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise TaskError(
                f"{field} names the module {module_name!r}, which is not in the code folder; "
                "name a file of the folder, without .py"
            ) from error
        raise UserCodeError(f"importing {module_name}", error) from error
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"importing {module_name}", error) from error
    build = getattr(module, name, None)
    if not callable(build):
        known = ", ".join(
            n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module_name
        )
        raise TaskError(
            f"{field} names {name!r}, but the module {module_name!r} has no such callable; it has: {known or 'none'}"
        )
    return cast("Callable[..., Any]", build)


def _check_params(target: str, build: Callable[..., Any], params: Mapping[str, JsonValue]) -> None:
    try:
        signature = inspect.signature(build)
    except ValueError:
        return
    try:
        signature.bind(**params)
    except TypeError as error:
        raise TaskError(
            f"{target}{signature} does not take the job's params {dict(params)!r}: {error}"
        ) from error


def check_task(task: object, target: str) -> None:
    """Check that a task can be trained exactly.

    Raises:
        TaskError: With the thing, the rule and the remedy.
    """
    if not isinstance(task, TrainingTask):
        raise TaskError(f"{target} must return a TrainingTask, it returned {type(task).__name__}")
    if not isinstance(task.model, nn.Module):
        raise TaskError(f"TrainingTask.model must be a torch.nn.Module, got {type(task.model).__name__}")
    if not isinstance(task.optimizer, Optimizer):
        raise TaskError(
            f"TrainingTask.optimizer must be a torch optimizer, got {type(task.optimizer).__name__}"
        )
    Loss(task.loss)
    _check_optimizer(task)
    split_metrics(task.metrics, ignored_target(task.loss))
    _check_logits(task)


def _check_optimizer(task: TrainingTask) -> None:
    if not any(parameter.requires_grad for parameter in task.model.parameters()):
        raise TaskError(
            "TrainingTask.model has no parameter that requires a gradient; there is nothing to train"
        )
    owned = {id(parameter) for parameter in task.model.parameters()}
    if not all(id(p) in owned for group in task.optimizer.param_groups for p in group["params"]):
        raise TaskError(
            "TrainingTask.optimizer holds parameters that are not the model's; "
            "make it from model.parameters() of the same model"
        )
    closure = inspect.signature(type(task.optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TaskError(
            f"{type(task.optimizer).__name__} needs a closure that computes the loss again, which no global batch has; "
            "use an optimizer that takes one gradient a step, such as SGD or AdamW"
        )
    if task.scheduler_step not in ("epoch", "step"):
        raise TaskError(f"TrainingTask.scheduler_step must be 'epoch' or 'step', got {task.scheduler_step!r}")
    if task.scheduler is None:
        return
    if getattr(task.scheduler, "optimizer", task.optimizer) is not task.optimizer:
        raise TaskError("TrainingTask.scheduler moves another optimizer; make it from TrainingTask.optimizer")
    if isinstance(task.scheduler, ReduceLROnPlateau) and task.scheduler.mode != "min":
        raise TaskError(
            f"ReduceLROnPlateau(mode={task.scheduler.mode!r}) would lower the rate while the validation loss falls, "
            "which is what it is given; use mode='min'"
        )
    if isinstance(task.scheduler, ReduceLROnPlateau) and task.scheduler_step == "step":
        raise TaskError(
            "ReduceLROnPlateau needs the validation loss, which is known once an epoch; use scheduler_step='epoch'"
        )


def _check_logits(task: TrainingTask) -> None:
    if not isinstance(task.loss, nn.BCELoss):
        return
    for name, metric in task.metrics.items():
        if isinstance(metric, ClassMetric):
            raise TaskError(
                f"metric {name!r} takes logits, but BCELoss takes probabilities; leave the sigmoid out of the model "
                "and use BCEWithLogitsLoss, or give the metric as a function"
            )
