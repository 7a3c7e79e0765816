"""The training loop: a train pass, a validation pass, one reduction, then the same decisions on all ranks."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from curvewatch_workers.batches import BatchPlan, index_checksum, validation_shares
from curvewatch_workers.checkpoint import Checkpoints, Snapshot
from curvewatch_workers.contract import (
    SPLITS,
    EpochFinished,
    EpochRecord,
    JobSpec,
    Outcome,
    Split,
    WorkerEvent,
)
from curvewatch_workers.data import Batch, ShareLoader
from curvewatch_workers.decisions import Ending, ending_after, make_stopper
from curvewatch_workers.group import Group
from curvewatch_workers.layout import EpochLayout, ExpectedSplit, GlobalEpoch, LeaderNotes, PassTotals
from curvewatch_workers.metrics import SampleLoss, Totals
from curvewatch_workers.ranking import best_of, require_ranking, score_of
from curvewatch_workers.reporter import Reporter
from curvewatch_workers.resuming import read_latest
from curvewatch_workers.seeds import seed_from
from curvewatch_workers.task import TrainingTask


def utc_now() -> dt.datetime:
    """Return the time, aware of its zone."""
    return dt.datetime.now(dt.UTC)


class Position(NamedTuple):
    """Where in a run a worker is."""

    epoch: int
    split: Split
    step: int
    """Batch of the pass, from 0; its data is being loaded or used."""


class Trainer:
    """Trains one task on one rank of a group.

    Args:
        run_id: The run.
        attempt: Start of the worker group, from 1.
        spec: The job.
        task: What the user's callable returned.
        group: The ranks.
        checkpoints: Where checkpoints are kept.
        reporter: Takes the epochs; on every rank but 0 it drops them.
        now: The clock of the records.
    """

    def __init__(
        self,
        *,
        run_id: str,
        attempt: int,
        spec: JobSpec,
        task: TrainingTask,
        group: Group,
        checkpoints: Checkpoints,
        reporter: Reporter,
        now: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self._run_id, self._attempt, self._spec, self._task = run_id, attempt, spec, task
        self._group, self._checkpoints, self._reporter, self._now = group, checkpoints, reporter, now
        metrics = tuple(task.metrics)
        self._metrics = tuple(task.metrics.values())
        self._stopper = make_stopper(spec, metrics)
        require_ranking(spec.checkpoints.best, metrics)
        self._loss = SampleLoss(task.loss)
        self._model = task.model.to(group.device)
        self._samples = (_length(task.train), _length(task.validation))
        self._plan = BatchPlan(
            samples=self._samples[0],
            global_batch_size=spec.training.global_batch_size,
            seed=spec.training.seed,
        )
        self._layout = EpochLayout(metrics, group.world_size, *(_expected(n) for n in self._samples))
        self._train_loader = self._loader(task.train)
        self._validation_loader = self._loader(task.validation)
        self._records: tuple[EpochRecord, ...] = ()
        self._checkpointed_at = -sys.float_info.max
        self.position = Position(0, "train", 0)
        """What is being done, for the report of an error."""

    def require_agreement(self) -> None:
        """Check that every rank trains the same metrics on datasets of the same size.

        Raises:
            LayoutMismatchError: On every rank, when any two differ.
        """
        self._layout.require_agreement(self._group)

    def resume(self) -> int:
        """Go on from the latest checkpoint that can be read; return the last finished epoch, 0 without one."""
        snapshot, damages = read_latest(self._checkpoints, self._group)
        for damage in damages:
            self._tell("checkpoint_unreadable", damage)
        if snapshot is None:
            return 0
        self._model.load_state_dict(snapshot.model)
        self._task.optimizer.load_state_dict(snapshot.optimizer)
        if self._task.scheduler is not None and snapshot.scheduler is not None:
            self._task.scheduler.load_state_dict(snapshot.scheduler)
        self._stopper.restore(snapshot.stopper)
        self._records = snapshot.records
        # The service may have been away, or be a new one: it takes what it lacks and knows the rest.
        for record in snapshot.records:
            self._reporter.send(EpochFinished(record=record))
        return snapshot.epoch

    def run(self, *, after_epoch: int) -> Ending:
        """Train every epoch after the given one; return how the run ended."""
        unused = self._spec.training.find_unused_parameters
        model = self._group.wrap(self._model, find_unused_parameters=unused)
        for epoch in range(after_epoch + 1, self._spec.training.epochs + 1):
            # A replayed epoch draws the same numbers as the first time.
            seed_from(self._spec.training.seed, epoch, self._group.rank)
            record, reduced = self._epoch(model, epoch)
            self._records += (record,)
            self._reporter.send(EpochFinished(record=record))
            self._step_schedule(record)
            plateau = self._stopper.should_stop(record)
            ending = ending_after(record, self._spec, reduced.control, plateau)
            self._maybe_checkpoint(record, reduced, last=ending is not None)
            if ending is not None:
                return ending
        return Ending(
            outcome=Outcome.SUCCEEDED, reason=f"all {after_epoch} epochs were done before this attempt"
        )

    def _epoch(self, model: nn.Module, epoch: int) -> tuple[EpochRecord, GlobalEpoch]:
        started_at, clock = self._now(), time.perf_counter()
        if self._group.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._group.device)
        train, learning_rate, gradient_norm = self._train_pass(model, epoch)
        self._agree_on_buffers()
        validation = self._validation_pass(epoch)
        notes = LeaderNotes(
            control=self._reporter.control(),
            checkpoint_allowed=time.monotonic() - self._checkpointed_at
            >= self._spec.checkpoints.min_interval_seconds,
            gradient_norm=gradient_norm,
        )
        seconds, gpu_memory = self._cost_since(clock)
        buffer = self._layout.fill(self._group, notes, (train, validation), seconds, gpu_memory)
        self._group.all_reduce_sum(buffer)
        reduced = self._layout.read(buffer)
        record = EpochRecord(
            run_id=self._run_id,
            attempt=self._attempt,
            epoch=epoch,
            world_size=self._group.world_size,
            started_at=started_at,
            # By the steady clock: the time of day may be set back in the middle of an epoch.
            finished_at=started_at + dt.timedelta(seconds=time.perf_counter() - clock),
            learning_rate=learning_rate,
            gradient_norm=reduced.gradient_norm,
            rank_seconds=reduced.rank_seconds,
            gpu_memory_peak_bytes=reduced.gpu_memory_peak_bytes
            if self._group.device.type == "cuda"
            else None,
            train=reduced.train,
            validation=reduced.validation,
        )
        return record, reduced

    def _train_pass(self, model: nn.Module, epoch: int) -> tuple[PassTotals, float, Tensor]:
        """Train on this rank's share of every global batch.

        DDP averages the gradients of the ranks, so each rank's loss is the sum over its share times
        world size / samples of the global batch: the average is then the gradient of the mean over that batch.
        """
        model.train()
        optimizer, group = self._task.optimizer, self._group
        totals, samples, checksum = self._new_totals(), 0, 0
        learning_rate, gradient_norm = 0.0, torch.zeros((), device=group.device)
        shares = lambda: self._plan.shares(epoch, group.rank, group.world_size)  # noqa: E731
        batches = self._train_loader.batches(shares, seed=self._loader_seed(epoch, "train"))
        self.position = Position(epoch, "train", 0)
        for step, batch in enumerate(batches):
            losses = self._forward(model, batch, totals)
            # The model's, not the optimizer's: a parameter that the optimizer leaves alone has a gradient too.
            self._model.zero_grad(set_to_none=True)
            scaled = losses.sum() * (group.world_size / self._plan.step_samples(step))
            torch.autograd.backward(scaled)
            if step == self._plan.steps - 1:
                gradient_norm = _gradient_norm(self._model)
                learning_rate = float(optimizer.param_groups[0]["lr"])
            if self._spec.training.gradient_clip_norm is not None:
                nn.utils.clip_grad_norm_(self._model.parameters(), self._spec.training.gradient_clip_norm)
            optimizer.step()
            self._step_schedule(None)
            samples += len(batch.indices)
            checksum += index_checksum(batch.indices)
            self.position = Position(epoch, "train", step + 1)
        return PassTotals(totals=totals, samples=samples, checksum=checksum), learning_rate, gradient_norm

    @torch.inference_mode()
    def _validation_pass(self, epoch: int) -> PassTotals:
        """Measure this rank's shard on the unwrapped model: a DDP forward is a collective, and shards are uneven."""
        self._model.eval()
        group = self._group
        totals, samples, checksum = self._new_totals(), 0, 0
        batch_size = -(-self._spec.training.global_batch_size // group.world_size)
        shares = lambda: validation_shares(self._samples[1], group.rank, group.world_size, batch_size)  # noqa: E731
        batches = self._validation_loader.batches(shares, seed=self._loader_seed(epoch, "validation"))
        self.position = Position(epoch, "validation", 0)
        for step, batch in enumerate(batches):
            self._forward(self._model, batch, totals)
            samples += len(batch.indices)
            checksum += index_checksum(batch.indices)
            self.position = Position(epoch, "validation", step + 1)
        return PassTotals(totals=totals, samples=samples, checksum=checksum)

    def _forward(self, model: nn.Module, batch: Batch, totals: Totals) -> Tensor:
        """Return the losses of a batch, shape [batch], after adding them to the totals."""
        half = self._spec.training.precision == "bf16"
        try:
            with torch.autocast(self._group.device.type, dtype=torch.bfloat16, enabled=half):
                outputs = model(batch.inputs)
        except Exception as error:
            _explain_small_share(error, len(batch.indices), self._group.world_size)
            raise
        losses = self._loss(outputs, batch.targets)
        totals.update(losses, self._loss.ignored(batch.targets), outputs, batch.targets)
        return losses

    def _agree_on_buffers(self) -> None:
        """Give every rank rank 0's buffers: BatchNorm's statistics differ by rank, and one model is measured."""
        if self._group.world_size == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in self._model.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        for buffers in by_type.values():
            flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
            self._group.broadcast(flat)
            parts = torch.split(flat, [one.numel() for one in buffers])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view_as(buffer))

    def _step_schedule(self, record: EpochRecord | None) -> None:
        """Move the schedule after a step (no record) or after an epoch, as the task asks."""
        scheduler = self._task.scheduler
        if scheduler is None or (self._task.scheduler_step == "step") is not (record is None):
            return
        if isinstance(scheduler, ReduceLROnPlateau) and record is not None:
            scheduler.step(record.validation.loss)
        else:
            scheduler.step()

    def _maybe_checkpoint(self, record: EpochRecord, reduced: GlobalEpoch, *, last: bool) -> None:
        due = record.epoch % self._spec.checkpoints.every_epochs == 0 and reduced.checkpoint_allowed
        if not (due or last):
            return
        scheduler = self._task.scheduler
        best = self._spec.checkpoints.best
        snapshot = Snapshot(
            epoch=record.epoch,
            attempt=self._attempt,
            model=self._model.state_dict(),
            optimizer=self._task.optimizer.state_dict(),
            scheduler=scheduler.state_dict() if scheduler is not None else None,
            stopper=self._stopper.state(),
            best=best_of(self._records, best),
            records=self._records,
        )
        score = score_of(record, best)
        problem = self._checkpoints.save(record.epoch, snapshot.write, score=score, last=last)
        if problem is not None:
            self._tell("checkpoint_not_kept", problem)
        self._checkpointed_at = time.monotonic()

    def _tell(self, reason: str, message: str) -> None:
        event = WorkerEvent(attempt=self._attempt, time=self._now(), reason=reason, message=message)
        self._reporter.send(event)

    def _cost_since(self, clock: float) -> tuple[float, int]:
        """Return seconds and peak GPU memory of this epoch; waits for the device, once an epoch."""
        device = self._group.device
        if device.type != "cuda":
            return time.perf_counter() - clock, 0
        torch.cuda.synchronize(device)
        return time.perf_counter() - clock, torch.cuda.max_memory_allocated(device)

    def _loader(self, dataset: torch.utils.data.Dataset[object]) -> ShareLoader:
        return ShareLoader(
            dataset,
            collate=self._task.collate,
            workers=self._spec.training.data_workers,
            device=self._group.device,
        )

    def _loader_seed(self, epoch: int, split: Split) -> tuple[int, ...]:
        return (self._spec.training.seed, epoch, self._group.rank, SPLITS.index(split))

    def _new_totals(self) -> Totals:
        return Totals(self._metrics, self._group.device)


def _length(dataset: object) -> int:
    return len(dataset)  # type: ignore[arg-type]  # checked when the task was loaded


def _expected(samples: int) -> ExpectedSplit:
    chunk = 1_000_000
    starts = range(0, samples, chunk)
    checksum = sum(index_checksum(np.arange(start, min(start + chunk, samples))) for start in starts)
    return ExpectedSplit(samples=samples, checksum=checksum)


def _explain_small_share(error: Exception, samples: int, world_size: int) -> None:
    """Say why a model that runs on one worker may fail on several."""
    if samples <= 1 and world_size > 1:
        error.add_note(
            f"The model was called with a batch of {samples} samples: the last global batch of an epoch, split over "
            f"{world_size} workers, leaves some with one sample or none. Use a global batch size that leaves a "
            "larger rest, x.flatten(1) for x.view(len(x), -1), and GroupNorm or LayerNorm for BatchNorm."
        )


def _gradient_norm(model: nn.Module) -> Tensor:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    return torch.nn.utils.get_total_norm(dense)
