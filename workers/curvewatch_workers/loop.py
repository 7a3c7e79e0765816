"""The training loop: train pass, validation pass, one reduction, then the same decisions on all ranks."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from curvewatch_workers.agreement import require_same_draws, require_same_targets
from curvewatch_workers.batches import IndexCounter, SamplesSeen
from curvewatch_workers.best import BestWeights, NoBestWeights
from curvewatch_workers.checkpoint import Checkpoints
from curvewatch_workers.contract import (
    SPLITS,
    Control,
    EpochFinished,
    EpochRecord,
    JobSpec,
    Outcome,
    Split,
    WorkerEvent,
)
from curvewatch_workers.cost import DeviceStopwatch, RankCost
from curvewatch_workers.decisions import Decisions, Ending, validation_value
from curvewatch_workers.epoch_buffer import EpochBuffer, GlobalEpoch, LeaderNotes, metric_names
from curvewatch_workers.errors import shortened
from curvewatch_workers.feeds import MapTrainFeed, train_feed, validation_feed
from curvewatch_workers.forward import Forward
from curvewatch_workers.given_metrics import split_metrics
from curvewatch_workers.group import Group
from curvewatch_workers.intervening import Interventions
from curvewatch_workers.keeping import Progress
from curvewatch_workers.losses import Loss, ignored_target
from curvewatch_workers.metrics.foreign import ForeignMetrics
from curvewatch_workers.model import PreparedModel, place, remarks, share_buffers, wrap
from curvewatch_workers.partial import PartialEpoch
from curvewatch_workers.preemption import LOOK_SECONDS, Lookout, Notices
from curvewatch_workers.probe import require_smallest_share
from curvewatch_workers.ranking import require_ranking
from curvewatch_workers.reporter import Reporter
from curvewatch_workers.resuming import (
    read_latest,
    require_best_weights,
    require_measured_before,
    restore,
    weights_put_back,
)
from curvewatch_workers.saving import Saving
from curvewatch_workers.seeds import seed_from
from curvewatch_workers.sources import source_of_task
from curvewatch_workers.step import OptimizerStep
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.totals import Totals


def utc_now() -> dt.datetime:
    """Return the time, aware of its zone."""
    return dt.datetime.now(dt.UTC)


def _tell(
    reporter: Reporter, attempt: int, now: Callable[[], dt.datetime], reason: str, message: str
) -> None:
    reporter.send(WorkerEvent(attempt=attempt, time=now(), reason=reason, message=shortened(message)))


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
        notices: Where it is told that a node will leave; None when nobody tells.
        now: The clock of the records.

    Raises:
        TaskError: The task cannot be trained as the job asks.
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
        notices: Notices | None = None,
        now: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        self._run_id, self._attempt, self._spec, self._task = run_id, attempt, spec, task
        self._group, self._checkpoints, self._reporter, self._now = group, checkpoints, reporter, now
        # No method: what tells events must not keep the trainer alive.
        self._tell = partial(_tell, reporter, attempt, now)
        sums, foreign = split_metrics(task.metrics, ignored_target(task.loss))
        self._foreign: dict[Split, ForeignMetrics] = {
            split: ForeignMetrics(foreign, group.device, split) for split in SPLITS
        }
        names = (*metric_names(sums), *foreign)
        self._decisions = Decisions(spec, names)
        require_ranking(spec.checkpoints.best, names)
        self._best = BestWeights() if spec.policy.restores_best and group.rank == 0 else NoBestWeights()
        self._loss = Loss(task.loss, ignores_targets=task.ignores_targets)
        self._loss.to(group.device)
        self._forward = Forward(self._loss, group, spec.training.precision)
        self._model = place(task.model, spec.training, group)
        train, validation = (source_of_task(split, task, spec, group.world_size) for split in SPLITS)
        self._sources = (train, validation)
        self._train_feed = train_feed(train, spec.training, group)
        self._validation_feed = validation_feed(validation, spec.training, group)
        self._buffer = EpochBuffer(sums, group)
        self._totals: dict[Split, Totals] = {
            split: Totals(self._loss, tuple(sums.values()), self._buffer.sums(split), self._foreign[split])
            for split in SPLITS
        }
        self._step = OptimizerStep(self._model, task.optimizer, self._forward, group, spec)
        self._lookout = Lookout(notices, group)
        self._saving = Saving(
            spec=spec,
            attempt=attempt,
            task=task,
            model=self._model,
            step=self._step,
            best=self._best,
            group=group,
            checkpoints=checkpoints,
            lookout=self._lookout,
            tell=self._tell,
        )
        self._interventions = Interventions(
            policy=spec.policy,
            task=task,
            model=self._model,
            scaler=self._step.scaler,
            group=group,
            checkpoints=checkpoints,
            tell=self._tell,
        )
        self._partial: PartialEpoch | None = None
        self._rolled_back_to: int | None = None
        self.position = Position(0, "train", 0)
        """What is being done, for the report of an error."""

    def probe(self) -> None:
        """Try the model on the smallest share that this run will meet, and whether a checkpoint could hold its state.

        Raises:
            TaskError: It cannot be trained on that, with a global batch size that works; or be read back.
        """
        if isinstance(self._train_feed, MapTrainFeed):
            sizes = self._spec.scaling.possible_workers(self._group.world_size)
            require_smallest_share(self._model, self._forward, self._train_feed, sizes)

        self._saving.require_readable()

    def require_agreement(self) -> None:
        """Check that every rank trains the same metrics on the same data, as far as a few samples tell.

        Raises:
            LayoutMismatchError: On every rank, when metrics, sizes or the use of samplers differ.
            TaskError: On every rank, when samples differ.
        """
        self._buffer.require_agreement(
            [(source.size, source.streams, source.sampler is None) for source in self._sources]
        )
        require_same_targets(self._group, self._sources, seed=self._spec.training.seed)

    def resume(self) -> Progress:
        """Go on from the latest checkpoint that can be read; return how far it had come.

        Raises:
            CheckpointError: On every rank: none can be read, or the latest does not fit the task.
        """
        snapshot, damages = read_latest(self._checkpoints, self._group)
        for damage in damages:
            self._tell("checkpoint_unreadable", damage)
        if snapshot is None:
            return Progress(0)
        require_measured_before(snapshot, self._spec)
        restore(snapshot, self._task, self._model, self._step.scaler)
        put_back = weights_put_back(snapshot)
        if put_back is not None:
            self._tell("best_weights_trained_on", put_back)
        for record in snapshot.records:
            self._decisions.take(record)
        best_epoch = self._decisions.stopper.best_epoch
        if self._spec.policy.restores_best:
            require_best_weights(snapshot, best_epoch)
        self._best.load(snapshot.best_model, best_epoch)
        self._rolled_back_to = snapshot.rolled_back_to
        self._partial = snapshot.partial.on(self._group.device) if snapshot.partial else None
        # The service may have been away, or be a new one: it takes what it lacks and knows the rest.
        for record in snapshot.records:
            self._reporter.send(EpochFinished(record=record))
        return Progress(snapshot.epoch, snapshot.partial.steps if snapshot.partial else 0)

    def run(self, *, after_epoch: int) -> Ending:
        """Train every epoch after the given one; return how the run ended. What rank 0 returns counts.

        Raises:
            UnsavableStateError: On every rank, at the first checkpoint: it could not be read back.
        """
        model = wrap(self._model, self._spec.training, self._group)
        for reason, message in remarks(self._model, self._group.world_size):
            self._tell(reason, message)
        ended = self._ended_before()
        if ended is not None:
            return ended
        for epoch in range(after_epoch + 1, self._spec.training.epochs + 1):
            record, reduced = self._epoch(model, epoch)
            self._partial = None
            self._reporter.send(EpochFinished(record=record))
            self._step_schedule(record)
            self._decisions.take(record)
            if self._decisions.stopper.is_best(record):
                self._best.keep(self._model, record.epoch)
            ending = self._decisions.ending(reduced.control)
            self._rolled_back_to = self._interventions.act(self._decisions.action, ending)
            if max(record.rank_seconds) > LOOK_SECONDS:
                self._lookout.look_at_boundary()
                self._tell_of_notice()
            lost = self._saving.after_epoch(
                self._decisions.records,
                allowed=reduced.checkpoint_allowed,
                ending=ending,
                best_epoch=self._decisions.stopper.best_epoch,
                rolled_back_to=self._rolled_back_to,
            )
            if ending is not None:
                # Rank 0 alone knows: the others need not wait until a last, long upload is through.
                return ending.without_its_checkpoint(lost)
        return Ending(
            outcome=Outcome.SUCCEEDED, reason=f"all {after_epoch} epochs were done before this attempt"
        )

    def _ended_before(self) -> Ending | None:
        """Return how an earlier attempt ended that had no time to tell; None when there is more to train."""
        records = self._decisions.records
        if not records or records[-1].epoch >= self._spec.training.epochs:
            return None
        return self._decisions.ending(Control.CONTINUE)

    def _epoch(self, model: PreparedModel, epoch: int) -> tuple[EpochRecord, GlobalEpoch]:
        # The time of an attempt that was interrupted in this epoch counts as if it had been just now.
        before = self._partial.seconds if self._partial else 0.0
        started_at, clock = self._now() - dt.timedelta(seconds=before), time.perf_counter() - before
        if self._group.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._group.device)
        self._buffer.clear()
        # Before the seeding: a sampler draws the same on every rank, dropout does not.
        expected: dict[Split, SamplesSeen] = {
            "train": self._train_feed.expected(epoch),
            "validation": self._validation_feed.expected(epoch),
        }
        sampled = (self._train_feed.sampled(epoch), self._validation_feed.sampled(epoch))
        require_same_draws(self._group, epoch, zip(self._sources, sampled, strict=True))
        # A replayed epoch draws the same numbers as the first time; the rest of one draws others than its beginning.
        rest = (self._partial.steps,) if self._partial else ()
        seed_from(self._spec.training.seed, epoch, self._group.rank, *rest)
        train = self._train_pass(model, epoch, clock)
        # One model is measured.
        share_buffers(self._model, self._group)
        watch = DeviceStopwatch(self._group.device)
        validation = self._validation_pass(model, epoch)
        watch.stop()
        notes = LeaderNotes(
            control=self._reporter.control(),
            checkpoint_allowed=self._saving.allowed,
            skipped_steps=self._step.skipped,
            gradient_norm=self._step.gradient_norm,
        )
        cost = self._cost_since(clock, watch)
        seen: dict[Split, SamplesSeen] = {"train": train, "validation": validation}
        self._buffer.fill(notes, seen, cost, self._partial)
        self._buffer.reduce()
        reduced = self._buffer.read(expected)
        record = EpochRecord(
            run_id=self._run_id,
            attempt=self._attempt,
            epoch=epoch,
            rolled_back_to=self._rolled_back_to,
            world_size=self._group.world_size,
            started_at=started_at,
            # By the steady clock: the time of day may be set back in the middle of an epoch.
            finished_at=started_at + dt.timedelta(seconds=time.perf_counter() - clock),
            learning_rate=self._step.learning_rate,
            gradient_norm=reduced.gradient_norm,
            skipped_steps=reduced.skipped_steps,
            rank_seconds=reduced.rank_seconds,
            rank_validation_seconds=reduced.rank_validation_seconds,
            gpu_memory_peak_bytes=reduced.gpu_memory_peak_bytes
            if self._group.device.type == "cuda"
            else None,
            train=self._foreign["train"].added_to(reduced.train),
            validation=self._foreign["validation"].added_to(reduced.validation),
        )
        return record, reduced

    def _train_pass(self, model: PreparedModel, epoch: int, clock: float) -> SamplesSeen:
        """Train on this rank's share of every global batch that no earlier attempt has trained on."""
        model.begin_training()
        totals, counter = self._totals["train"], IndexCounter()
        done, to_boundary = self._partial.steps if self._partial else 0, self._steps_to_boundary(epoch)
        self._step.begin_epoch(self._partial.last_step if self._partial else None)
        self.position = Position(epoch, "train", done)
        for number, batch in enumerate(self._train_feed.steps(epoch, after=done), start=done + 1):
            self._step.take(model, batch, totals, counter)
            self._step_schedule(None)
            self.position = Position(epoch, "train", number)
            must_save = self._lookout.must_save(None if to_boundary is None else to_boundary - number)
            self._tell_of_notice()
            if must_save:
                totals.flush()
                self._checkpoint_within(counter.seen, time.perf_counter() - clock)
        totals.flush()
        return counter.seen

    @torch.no_grad()
    def _validation_pass(self, model: PreparedModel, epoch: int) -> SamplesSeen:
        """Measure this rank's shard on the unwrapped model: a DDP forward is a collective, and shards are uneven."""
        model.module.eval()
        totals, counter = self._totals["validation"], IndexCounter()
        self.position = Position(epoch, "validation", 0)
        for number, batch in enumerate(self._validation_feed.batches(epoch), start=1):
            self._forward.measure(model.validate, batch, totals)
            counter.add(batch.indices)
            self.position = Position(epoch, "validation", number)
        totals.flush()
        return counter.seen

    def _step_schedule(self, record: EpochRecord | None) -> None:
        """Move the schedule after a step (no record) or after an epoch, as the task asks."""
        scheduler = self._task.scheduler
        if scheduler is None or (self._task.scheduler_step == "step") is not (record is None):
            return
        if isinstance(scheduler, ReduceLROnPlateau) and record is not None:
            scheduler.step(validation_value(record, "loss"))
        else:
            scheduler.step()

    def _checkpoint_within(self, seen: SamplesSeen, seconds: float) -> None:
        """Take a checkpoint in the middle of the train pass: what it has come to is kept with the weights."""
        sums, seen = self._buffer.reduce_train(seen)
        if self._partial is not None:
            sums, seen = sums + self._partial.sums, seen + self._partial.seen
        partial = PartialEpoch(
            steps=self.position.step,
            sums=sums,
            seen=seen,
            seconds=seconds,
            last_step=self._step.last_step(),
        )
        self._saving.within_epoch(self._decisions.records, partial, rolled_back_to=self._rolled_back_to)

    def _steps_to_boundary(self, epoch: int) -> int | None:
        """Return the steps from the beginning of an epoch until a checkpoint can be taken after it.

        Validation counts as if its samples took as long. None where no checkpoint can be taken before: nobody can go
        on in the middle of a stream, nor with a metric that is no sum.
        """
        steps = self._train_feed.steps_of(epoch)
        if steps is None or self._foreign["train"]:
            return None
        return steps - (
            -self._validation_feed.expected(epoch).samples // self._spec.training.global_batch_size
        )

    def _tell_of_notice(self) -> None:
        seconds = self._lookout.seconds_left()
        if self._lookout.is_new and self._lookout.notice is not None and seconds is not None:
            ranks = ", ".join(map(str, self._lookout.notice.ranks))
            self._tell(
                "preemption_notice",
                f"the node of rank {ranks} leaves the cluster in {max(seconds, 0):.0f} s; a checkpoint is taken "
                "after this epoch, or at once if that would be too late",
            )

    def _cost_since(self, clock: float, validation: DeviceStopwatch) -> RankCost:
        """Return what this epoch took on this rank; waits for the device, once an epoch."""
        device, peak = self._group.device, 0
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            peak = torch.cuda.max_memory_allocated(device)
        return RankCost(
            seconds=time.perf_counter() - clock,
            validation_seconds=validation.seconds(),
            gpu_memory_peak=peak,
        )
