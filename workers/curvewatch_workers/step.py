"""One optimizer step: the gradient of the loss over a global batch, and what is done with it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from curvewatch_workers.agreement import WEIGHTS_AT_TIMES, require_same_weighting
from curvewatch_workers.batches import IndexCounter
from curvewatch_workers.contract import JobSpec
from curvewatch_workers.errors import TaskError
from curvewatch_workers.feeds import GlobalBatch
from curvewatch_workers.forward import Forward
from curvewatch_workers.group import Group, without_sync
from curvewatch_workers.model import PreparedModel
from curvewatch_workers.totals import Totals


class OptimizerStep:
    """Takes the optimizer steps of a run on one rank.

    DDP averages the gradients of the ranks, so each rank's backward runs on the sum of its losses times world size
    / samples of the global batch: the average is then the gradient of the sum over the global batch by its samples.
    Where the samples have weights, one small reduction a step tells the weight of the global batch, by which the
    gradient is put right.

    Args:
        model: The model, placed and unwrapped.
        optimizer: The task's optimizer.
        forward: Runs a batch.
        group: The ranks.
        spec: The job.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, forward: Forward, group: Group, spec: JobSpec
    ) -> None:
        self._model, self._optimizer, self._forward, self._group = model, optimizer, forward, group
        self._clip_norm = spec.training.gradient_clip_norm
        self.scaler = torch.amp.GradScaler(group.device.type, enabled=spec.training.precision == "fp16")
        """Keeps small fp16 gradients from vanishing; does nothing in other precisions."""
        self._looks = spec.policy.on_nonfinite == "skip_step" or self.scaler.is_enabled()
        self._kind: object = None
        self._last_factors = torch.empty(0)
        self._weighted: bool | None = None
        self.begin_epoch()

    def begin_epoch(self, last_step: Mapping[str, Any] | None = None) -> None:
        """Forget the epoch before.

        Args:
            last_step: What `last_step` returned in an attempt that took some steps of this epoch.
        """
        self.skipped = 0
        """Steps left out since the epoch began."""
        self.gradient_norm = torch.zeros((), device=self._group.device)
        """Norm of the global gradient before clipping, over the optimizer's parameters, at the last step."""
        self.learning_rate = 0.0
        """Learning rate of the first parameter group at the last step."""
        if last_step is not None:
            self.skipped, self.learning_rate = last_step["skipped"], last_step["learning_rate"]
            self.gradient_norm = last_step["gradient_norm"].to(self._group.device)

    def last_step(self) -> dict[str, Any]:
        """Return what is told of the last step, to be saved."""
        return {
            "skipped": self.skipped,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
        }

    def take(self, model: PreparedModel, batch: GlobalBatch, totals: Totals, counter: IndexCounter) -> None:
        """Take one step on a global batch.

        Args:
            model: The model's forms.
            batch: This rank's shares of it.
            totals: Take in losses and metrics.
            counter: Takes in the samples.

        Raises:
            TaskError: The loss gives weights, and gave none before or on another rank, or the other way round.
        """
        # The model's, not the optimizer's: a parameter that the optimizer leaves alone has a gradient too.
        self._model.zero_grad(set_to_none=True)
        factor, first = self._group.world_size / batch.samples, self._weighted is None
        weight: Tensor | None = None
        for number, micro in enumerate(batch.micro_batches, start=1):
            last = number == len(batch.micro_batches)
            with contextlib.nullcontext() if last else without_sync(model.wrapped):
                loss = self._forward(model.train, micro, totals)
                self._require_as_before(weighted=loss.weights is not None)
                # As of their sum times the factor, which would cost a sum and a product, forwards and backwards.
                torch.autograd.backward(loss.sums, self.scaler.scale(self._factors(loss.sums, factor)))
            if loss.weights is not None:
                own = loss.weights.sum(dtype=torch.float64)
                weight = own if weight is None else weight + own
            counter.add(micro.indices)
        if first:
            require_same_weighting(self._group, weighted=weight is not None)
        if weight is not None:
            self._divide_by(weight, batch.samples)
        self.learning_rate = float(self._optimizer.param_groups[0]["lr"])
        self._apply(measure=batch.last)

    def _factors(self, losses: Tensor, factor: float) -> Tensor:
        """Return the factor for each loss, the same tensor as long as they are alike."""
        kind = (losses.shape, losses.dtype, losses.device, factor)
        if kind != self._kind:
            self._kind, self._last_factors = kind, torch.full_like(losses, factor, requires_grad=False)
        return self._last_factors

    def _require_as_before(self, *, weighted: bool) -> None:
        """Refuse a loss that gives weights at times: only some ranks would take part in the reduction of a step."""
        if self._weighted not in (None, weighted):
            raise TaskError(WEIGHTS_AT_TIMES)
        self._weighted = weighted

    def _divide_by(self, weight: Tensor, samples: int) -> None:
        """Divide the gradient by the global batch's weight instead of its samples; 0 where nothing weighs."""
        self._group.all_reduce_sum(weight)
        ratio = torch.where(weight > 0, samples / weight, 0.0)
        for gradient in self._gradients():
            gradient.mul_(ratio.to(gradient.dtype))

    def _apply(self, *, measure: bool) -> None:
        if self.scaler.is_enabled():
            self.scaler.unscale_(self._optimizer)
        if measure or self._looks or self._clip_norm is not None:
            self.gradient_norm = self._norm()
        # The one value that is read in a step, and only where the job asks for it. Every rank has the same gradient.
        if self._looks and not bool(self.gradient_norm.isfinite()):
            self.skipped += 1
        else:
            if self._clip_norm is not None:
                nn.utils.clip_grads_with_norm_(self._parameters(), self._clip_norm, self.gradient_norm)
            self._optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()

    def _parameters(self) -> list[Tensor]:
        """Return what the optimizer moves: others may have gradients too, which the scaler does not unscale."""
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters() if parameter.grad is not None]

    def _norm(self) -> Tensor:
        gradients = self._gradients()
        dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
        return torch.nn.utils.get_total_norm(dense)
