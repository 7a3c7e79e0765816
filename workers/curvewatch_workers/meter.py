"""Exact numbers for a training loop of one's own: sums of each batch, one reduction an epoch.

In a job whose `code.loop` names a function, that function makes an `EpochMeter`, hands it each batch, and ends each
epoch with it. The same script works alone, on one process or in the process group that it joins under torchrun: the
epochs then go nowhere.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvewatch_workers.batches import SamplesSeen
from curvewatch_workers.contract import SPLITS, Control, EpochFinished, EpochRecord, Split
from curvewatch_workers.cost import RankCost
from curvewatch_workers.epoch_buffer import EpochBuffer, LeaderNotes
from curvewatch_workers.errors import TaskError
from curvewatch_workers.given_metrics import split_metrics
from curvewatch_workers.group import Group, group_of_process
from curvewatch_workers.losses import BatchLoss, Loss
from curvewatch_workers.meter_run import RUN
from curvewatch_workers.metrics.foreign import AnyMetric, ForeignMetrics
from curvewatch_workers.reporter import NullReporter, Reporter
from curvewatch_workers.totals import Totals

_COPIED = 1 << 16
"""Numbers of an output that cost less to copy than to sum by themselves."""


@dataclass(kw_only=True)
class MeterRun:
    """The run that meters of this process belong to."""

    run_id: str = "alone"
    attempt: int = 1
    epochs: int | None = None
    """Epochs that the job asks for; None outside of a job."""
    reporter: Reporter = field(default_factory=NullReporter)
    group: Group | None = None
    tell_start: Callable[[int | None], None] = lambda _after_epoch: None
    """Called once, with the last epoch before the run's first; None when no meter was made that would know."""
    last_epoch: int = 0
    """The last epoch that was ended."""
    control: Control = Control.CONTINUE
    """What the service wanted then."""
    _started: bool = False

    def start(self, after_epoch: int | None) -> None:
        """Tell where the attempt goes on from; the first word counts."""
        if not self._started:
            self._started = True
            self.tell_start(after_epoch)


@contextlib.contextmanager
def metering(run: MeterRun) -> Iterator[MeterRun]:
    """Let the meters that are made inside belong to a run."""
    token = RUN.set(run)
    try:
        yield run
    finally:
        RUN.reset(token)


class EpochMeter:
    """Adds up losses and metrics of one rank and makes the global numbers at the end of each epoch.

    Every rank makes one, updates it with its own batches (any number of them) and ends the same epochs.

    Args:
        train_samples: Samples of the train dataset, over all ranks: the receipt is checked against it.
        validation_samples: Samples of the validation dataset.
        metrics: Metrics by name, measured on both splits.
        first_epoch: The epoch that comes first, above 1 when the loop goes on from a checkpoint of its own.
        device: Where losses and outputs are; by default the GPU that torch uses if there is one.

    Raises:
        TaskError: A number makes no sense, something is no metric, or torchrun started several processes and this one
            joined no group.
        LayoutMismatchError: The ranks disagree on metrics or samples.
    """

    def __init__(
        self,
        *,
        train_samples: int,
        validation_samples: int,
        metrics: Mapping[str, AnyMetric] | None = None,
        first_epoch: int = 1,
        device: torch.device | None = None,
    ) -> None:
        if min(train_samples, validation_samples, first_epoch) < 1:
            raise TaskError(
                f"EpochMeter needs at least 1 train sample, 1 validation sample and epoch 1, got {train_samples}, "
                f"{validation_samples} and {first_epoch}"
            )
        self._run = RUN.get() or MeterRun()
        self._group = self._run.group or group_of_process(device or _device())
        sums, foreign = split_metrics(metrics or {})
        self._foreign: dict[Split, ForeignMetrics] = {
            split: ForeignMetrics(foreign, self._group.device, split) for split in SPLITS
        }
        self._buffer = EpochBuffer(sums, self._group)
        sizes = (train_samples, validation_samples)
        self._buffer.require_agreement(sizes)
        # The loop draws its samples itself: their number is known here, their indices are not.
        self._expected: dict[Split, SamplesSeen] = {
            split: SamplesSeen(samples=size, checksum=0) for split, size in zip(SPLITS, sizes, strict=True)
        }
        self._loss = Loss(_values)
        self._totals: dict[Split, Totals] = {
            split: Totals(self._loss, tuple(sums.values()), self._buffer.sums(split), self._foreign[split])
            for split in SPLITS
        }
        self._run.last_epoch = first_epoch - 1
        self._run.start(first_epoch - 1)
        self._begin()

    def epochs(self, number: int | None = None) -> Iterator[int]:
        """Yield the epochs that are left, until the last one, or until the service wants the run to end.

        Args:
            number: The last epoch; by default the `training.epochs` of the job.

        Raises:
            TaskError: There is no job and no number.
        """
        last = number or self._run.epochs
        if last is None:
            raise TaskError("outside of a job EpochMeter.epochs() does not know how many: write epochs(20)")
        while self._run.last_epoch < last and self._run.control is Control.CONTINUE:
            before = self._run.last_epoch
            yield before + 1
            if self._run.last_epoch == before:
                raise TaskError(f"epoch {before + 1} was not ended; call meter.end_epoch() in each epoch")

    def update(
        self, split: Split, loss: Tensor | tuple[Tensor, Tensor], outputs: Tensor, targets: Tensor
    ) -> None:
        """Take in a batch; reads nothing from the device.

        Args:
            split: `train` or `validation`.
            loss: Its mean over the batch, a scalar; or one loss for each sample, shape [batch]; or, where samples do
                not weigh the same, a pair (weighted sum, weight) of scalars or of tensors of shape [batch].
            outputs: What the model returned, shape [batch, ...]: small batches are joined along the first dimension
                before the metrics see them, unless it is not as long as that of the targets.
            targets: What it should have, shape [batch, ...].

        Raises:
            TaskError: There is no such split, or the shapes do not fit.
        """
        if split not in SPLITS:
            raise TaskError(f"EpochMeter.update: there is no split {split!r}; it is 'train' or 'validation'")
        if not len(targets):
            return
        made, totals = self._batch_loss(loss, outputs, targets), self._totals[split]
        # The tensors are the loop's, which may use their memory again: copies are kept, or nothing is.
        if isinstance(outputs, Tensor) and outputs.numel() <= _COPIED:
            weights = None if made.weights is None else made.weights.clone()
            totals.add(
                BatchLoss(made.sums.detach().clone(), weights), outputs.detach().clone(), targets.clone()
            )
        else:
            totals.add(made, outputs, targets)
            totals.flush()
        self._samples[split] += len(targets)

    def end_epoch(self, *, learning_rate: float, gradient_norm: Tensor | None = None) -> EpochRecord:
        """Make the global numbers of the epoch, report them, and begin the next. A collective call.

        Args:
            learning_rate: Learning rate at the epoch's last step.
            gradient_norm: Norm of the global gradient there, a scalar; None leaves it out.

        Returns:
            The epoch, the same on each rank.

        Raises:
            TaskError: A weight was negative, a label no class, or a metric gives no number.
        """
        for totals in self._totals.values():
            totals.flush()
        notes = LeaderNotes(
            control=self._run.reporter.control(),
            checkpoint_allowed=True,
            skipped_steps=0,
            gradient_norm=torch.zeros((), device=self._group.device)
            if gradient_norm is None
            else gradient_norm,
        )
        seen = {split: SamplesSeen(samples=self._samples[split], checksum=0) for split in SPLITS}
        seconds = time.perf_counter() - self._clock
        # Its two passes cannot be told apart.
        cost = RankCost(seconds, 0.0, _peak_memory(self._group.device))
        self._buffer.fill(notes, seen, cost)
        self._buffer.reduce()
        reduced = self._buffer.read(self._expected)
        splits = {split: self._foreign[split].added_to(getattr(reduced, split)) for split in SPLITS}
        record = EpochRecord(
            run_id=self._run.run_id,
            attempt=self._run.attempt,
            epoch=self._run.last_epoch + 1,
            world_size=self._group.world_size,
            started_at=self._started_at,
            finished_at=self._started_at + dt.timedelta(seconds=time.perf_counter() - self._clock),
            learning_rate=learning_rate,
            gradient_norm=None if gradient_norm is None else reduced.gradient_norm,
            rank_seconds=reduced.rank_seconds,
            gpu_memory_peak_bytes=reduced.gpu_memory_peak_bytes
            if self._group.device.type == "cuda"
            else None,
            **splits,
        )
        self._run.reporter.send(EpochFinished(record=record))
        self._run.last_epoch, self._run.control = record.epoch, reduced.control
        self._begin()
        return record

    @property
    def device(self) -> torch.device:
        """Where batches and model belong."""
        return self._group.device

    def _begin(self) -> None:
        self._started_at, self._clock = dt.datetime.now(dt.UTC), time.perf_counter()
        if self._group.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._group.device)
        self._buffer.clear()
        self._samples: dict[Split, int] = dict.fromkeys(SPLITS, 0)

    def _batch_loss(
        self, loss: Tensor | tuple[Tensor, Tensor], outputs: Tensor, targets: Tensor
    ) -> BatchLoss:
        if isinstance(loss, Tensor) and loss.dim() == 0:
            # The weight is known here, so the sum is told as what it is.
            samples = torch.full((), len(targets), dtype=torch.float64, device=loss.device)
            return BatchLoss(loss.double() * samples, samples)
        return self._loss.of(loss, outputs, targets)


def _values(outputs: Tensor, _targets: Tensor) -> Tensor:
    return outputs


def _device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def _peak_memory(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
