"""A few steps of a task on the CPU, to see what would go wrong: gradient, losses, metrics, the smallest batches."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from curvewatch_workers.batches import IndexCounter
from curvewatch_workers.check_report import CheckDraft
from curvewatch_workers.contract import JobSpec, Split
from curvewatch_workers.data import Batch
from curvewatch_workers.errors import TaskError
from curvewatch_workers.feeds import GlobalBatch, MapTrainFeed
from curvewatch_workers.forward import Forward
from curvewatch_workers.group import Group
from curvewatch_workers.losses import Loss, ignored_target, require_weights
from curvewatch_workers.metric_trial import values_on
from curvewatch_workers.model import place, wrap
from curvewatch_workers.probe import require_smallest_share
from curvewatch_workers.step import OptimizerStep
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.totals import Totals


class Trial:
    """Tries a task as one rank of a pretended group.

    Args:
        task: The task.
        spec: The job.
        group: The pretended group.
        draft: Takes what is found.
    """

    def __init__(self, task: TrainingTask, spec: JobSpec, group: Group, draft: CheckDraft) -> None:
        self._task, self._spec, self._group, self._draft = task, spec, group, draft
        self.model = place(task.model, spec.training, group)
        """The model, placed."""
        self._forms = wrap(self.model, spec.training, group)
        self._loss = Loss(task.loss, ignores_targets=task.ignores_targets)
        self._forward = Forward(self._loss, group, spec.training.precision)
        self._step = OptimizerStep(self.model, task.optimizer, self._forward, group, spec)
        self._classes: int | None = None
        self._broken: set[str] = set()

    def classes_of(self, batch: Batch) -> int:
        """Return how many classes the model's outputs have for a batch."""
        if self._classes is None:
            buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            # As in the first step of the run: what the model keeps from its first call, it keeps from this one.
            self._forms.begin_training()
            with torch.no_grad():
                self._classes = int(self._forward.outputs(self.model, batch).shape[1])
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(buffers.get(name, buffer))
        return self._classes

    def try_smallest_share(self, feed: MapTrainFeed) -> None:
        """Try a train step on the smallest share of an epoch.

        Raises:
            TaskError: The model cannot be trained on it.
        """
        self._draft.doing = "a train step on the smallest share"
        sizes = self._spec.scaling.possible_workers(self._group.world_size)
        require_smallest_share(self.model, self._forward, feed, sizes)

    def train(self, batch: GlobalBatch) -> None:
        """Take the first step."""
        self._draft.doing = "the first train step"
        totals = self._totals()
        self._forms.begin_training()
        clock = time.perf_counter()
        try:
            self._step.take(self._forms, batch, totals, IndexCounter())
        except RuntimeError as error:
            if "does not require grad" in str(error):
                raise TaskError(
                    "the loss has no gradient: it does not depend on the model's parameters, or was detached "
                    "(item(), detach(), no_grad) on its way"
                ) from error
            raise
        seconds = time.perf_counter() - clock
        state = [one for entry in self._task.optimizer.state.values() for one in entry.values()]
        self._draft.note(
            step_seconds=seconds,
            train_loss=_mean(totals),
            optimizer_bytes=_bytes([one for one in state if isinstance(one, Tensor)]),
        )
        self._judge_loss("train", totals)
        self._judge_gradient()

    def try_train_metrics(self, batch: Batch, *, empty: bool) -> None:
        """Try the metrics on what the model gives in training.

        Args:
            batch: A share.
            empty: Whether there are shares of no rows too.
        """
        self._forms.begin_training()
        for part, what in ((batch, "a train batch"), (batch.none(), "an empty train batch"))[: 1 + empty]:
            self._draft.doing = f"the model on {what}"
            with torch.no_grad():
                outputs = self._forward.outputs(self._forms.train, part)
            self._try_metrics(what, outputs, part.targets)

    def validate(self, batch: Batch) -> None:
        """Measure a validation batch."""
        self._draft.doing = "the first validation batch"
        self.model.eval()
        totals = self._totals()
        with torch.no_grad():
            outputs = self._forward.outputs(self._forms.validate, batch)
            totals.add(self._forward.loss(outputs, batch), outputs, batch.targets)
            self._judge_loss("validation", totals)
            values = self._try_metrics("a validation batch", outputs, batch.targets)
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._draft.note(validation_loss=_mean(totals), validation_metrics=finite)

    def try_last_batch(self, batch: Batch, workers: int) -> None:
        """Measure the smallest validation batch that some rank has, of so many ranks."""
        size = _some(batch.samples, "sample")
        self._draft.doing = f"the last validation batch ({size}, with {_some(workers, 'worker')})"
        self.model.eval()
        with torch.no_grad():
            outputs = self._forward.outputs(self._forms.validate, batch)
            try:
                loss = self._forward.loss(outputs, batch)
            except TaskError as error:
                raise TaskError(f"{self._draft.doing}: {error}") from error
            self._totals().add(loss, outputs, batch.targets)
            self._try_metrics("the last validation batch", outputs, batch.targets)

    def _try_metrics(self, what: str, outputs: Any, targets: Tensor) -> dict[str, float]:
        """Return the metrics of a batch; one that fails is told once."""
        values: dict[str, float] = {}
        for name, metric in self._task.metrics.items():
            if name in self._broken:
                continue
            self._draft.doing = f"metric {name!r} on {what}"
            try:
                values |= values_on(name, metric, ignored_target(self._task.loss), outputs, targets)
            except TaskError as error:
                self._draft.find("error", f"{self._draft.doing}: {error}")
                self._broken.add(name)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's metric
                self._draft.find_raised(error)
                self._broken.add(name)
        return values

    def _judge_gradient(self) -> None:
        trainable = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        unused = [name for name, one in trainable.items() if one.grad is None]
        what = f"the loss does not depend on {len(unused)} parameters ({', '.join(unused[:1])}, ...)"
        if len(unused) == len(trainable) or not any(
            bool(one.grad.to_dense().any()) for one in trainable.values() if one.grad is not None
        ):
            self._draft.find(
                "error", "no parameter has a gradient other than 0: the loss does not depend on the model"
            )
        elif not unused or self._spec.training.find_unused_parameters:
            return
        elif self._group.world_size > 1:
            self._draft.find(
                "error",
                f"{what}, for which several workers would wait for ever; set training.find_unused_parameters, or take "
                "them out of the model",
            )
        else:
            self._draft.find(
                "warning", f"{what}, which stay as they are; several workers would wait for them for ever"
            )

    def _judge_loss(self, split: Split, totals: Totals) -> None:
        totals.flush()
        require_weights(split, float(totals.sums[Totals.WEIGHT_SUM]))
        spoilt = int(totals.sums[Totals.NONFINITE])
        if spoilt:
            self._draft.find("error", f"the loss of {spoilt} {split} samples is NaN or infinite at the start")
        overlooked = int(totals.sums[Totals.OVERLOOKED])
        if overlooked:
            self._draft.find(
                "error",
                f"the loss ignores {overlooked} {split} targets; set TrainingTask.ignores_targets=True",
            )

    def _totals(self) -> Totals:
        return Totals(self._loss, (), torch.zeros(Totals.slots(()), dtype=torch.float64))


def describe_model(model: nn.Module, task: TrainingTask, draft: CheckDraft) -> None:
    """Note what a model holds, and which of it is not trained."""
    parameters = list(model.parameters())
    trainable = {name: one for name, one in model.named_parameters() if one.requires_grad}
    draft.note(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable_parameters=sum(parameter.numel() for parameter in trainable.values()),
        model_bytes=_bytes([*parameters, *model.buffers()]),
        gradient_bytes=_bytes(list(trainable.values())),
    )
    held = {id(one) for group in task.optimizer.param_groups for one in group["params"]}
    lacking = [name for name, one in trainable.items() if id(one) not in held]
    if lacking:
        draft.find(
            "warning",
            f"the optimizer lacks {len(lacking)} parameters that require a gradient ({lacking[0]}, ...): they stay "
            "as they are; give them to it, or set requires_grad=False",
        )


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _mean(totals: Totals) -> float | None:
    totals.flush()
    loss, weight = (float(totals.sums[slot]) for slot in (Totals.LOSS_SUM, Totals.WEIGHT_SUM))
    return loss / weight if weight and math.isfinite(loss) else None


def _bytes(tensors: list[Tensor] | list[nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
