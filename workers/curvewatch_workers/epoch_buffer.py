"""The one flat float64 buffer that the ranks reduce at the end of an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curvewatch_workers.batches import SamplesSeen
from curvewatch_workers.contract import SPLITS, Control, MetricTotals, RankShare, Split, SplitRecord
from curvewatch_workers.cost import RankCost
from curvewatch_workers.errors import LayoutMismatchError, TaskError
from curvewatch_workers.group import Group
from curvewatch_workers.losses import require_weights
from curvewatch_workers.metrics import SumMetric
from curvewatch_workers.metrics.protocol import Sums
from curvewatch_workers.partial import PartialEpoch
from curvewatch_workers.totals import Totals

_CONTROLS = tuple(Control)
_LOSS_AND_WEIGHT = slice(Totals.LOSS_SUM, Totals.WEIGHT_SUM + 1, Totals.WEIGHT_SUM - Totals.LOSS_SUM)


@dataclass(frozen=True, kw_only=True)
class LeaderNotes:
    """What only rank 0 knows and every rank must hear before it decides."""

    control: Control
    """What the service wants."""
    checkpoint_allowed: bool
    """Whether the last checkpoint is long enough ago."""
    skipped_steps: int
    """Optimizer steps that were left out, on each rank the same."""
    gradient_norm: Tensor
    """Norm of the global gradient at the last step, a scalar on the device."""


@dataclass(frozen=True, kw_only=True)
class GlobalEpoch:
    """The buffer after the reduction: the same on each rank."""

    control: Control
    checkpoint_allowed: bool
    skipped_steps: int
    gradient_norm: float
    rank_seconds: tuple[float, ...]
    rank_validation_seconds: tuple[float, ...]
    gpu_memory_peak_bytes: tuple[int, ...]
    train: SplitRecord
    validation: SplitRecord


class EpochBuffer:
    """The numbers of one epoch: each rank adds its own, one SUM makes them those of all, and a record is read from it.

    What the host knows comes first: the leader's notes, samples and checksum of each split, and five slots for each
    rank. What the device knows follows: the gradient's norm, loss and weight of each rank, and the sums of each
    split. A rank fills the slots of its own and leaves those of the others 0, so that one SUM carries everything.

    Args:
        metrics: The metrics that are summed, by name.
        group: The ranks.
    """

    _NOTES = 3
    _HOST_OF_SPLITS = 4
    _HOST_OF_RANK = 5
    _DEVICE_OF_RANK = 4

    def __init__(self, metrics: Mapping[str, SumMetric], group: Group) -> None:
        self._metrics, self._group = metrics, group
        self._ranks_at = self._NOTES + self._HOST_OF_SPLITS
        self._host = self._ranks_at + self._HOST_OF_RANK * group.world_size
        self._shares_at = self._host + 1
        self._sums_at = self._shares_at + self._DEVICE_OF_RANK * group.world_size
        self._sums = Totals.slots(tuple(metrics.values()))
        self.values = torch.zeros(
            self._sums_at + len(SPLITS) * self._sums, dtype=torch.float64, device=group.device
        )
        """What travels, float64."""
        # Cut once: at the end of an epoch each cut would cost as much as what is written.
        self._of_host, self._norm = self.values[: self._host], self.values[self._host]
        sums = self.values[self._sums_at :].view(len(SPLITS), self._sums)
        self._of_split: dict[Split, Tensor] = dict(zip(SPLITS, sums, strict=True))
        shares = self.values[self._shares_at : self._sums_at].view(group.world_size, len(SPLITS), 2)
        self._own_shares, self._losses_and_weights = shares[group.rank], sums[:, _LOSS_AND_WEIGHT]

    def require_agreement(self, expected: object) -> None:
        """Check once that every rank has this layout: gloo would mix buffers of unequal size without a word.

        Args:
            expected: What else must be the same on each, such as the sizes of the datasets.

        Raises:
            LayoutMismatchError: On every rank, when any two differ.
        """
        group = self._group
        slots = {name: metric.slots for name, metric in self._metrics.items()}
        text = repr((slots, group.world_size, expected))
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        sums = torch.tensor([digest, digest**2 % 2**32], dtype=torch.float64, device=group.device)
        mine = sums * group.world_size
        group.all_reduce_sum(sums)
        told = group.first_problem(None if torch.equal(sums, mine) else f"rank {group.rank} has {text}")
        if told is not None:
            raise LayoutMismatchError(
                f"the workers disagree on metrics or dataset sizes ({told}); "
                "the task's callable must return the same metrics and datasets on each worker"
            )

    def clear(self) -> None:
        """Begin a new epoch."""
        self.values.zero_()

    def sums(self, split: Split) -> Tensor:
        """Return the part that a split's `Totals` add to; the same in every epoch."""
        return self._of_split[split]

    def fill(
        self,
        notes: LeaderNotes,
        seen: Mapping[Split, SamplesSeen],
        cost: RankCost,
        partial: PartialEpoch | None = None,
    ) -> None:
        """Write the rest of this rank's part beside its sums. Reads nothing from the device.

        Args:
            notes: What rank 0 says; the others' are not read.
            seen: What this rank counted on the host, by split.
            cost: What the epoch took on this rank.
            partial: What an earlier attempt trained of this epoch.
        """
        rank, world_size = self._group.rank, self._group.world_size
        host = [0.0] * self._host
        if rank == 0:
            host[: self._NOTES] = (
                _CONTROLS.index(notes.control),
                notes.checkpoint_allowed,
                notes.skipped_steps,
            )
            self._norm.copy_(notes.gradient_norm)
        train, validation = (seen[split] for split in SPLITS)
        answered = train.samples
        if partial is not None:
            answered += partial.samples_of(rank, world_size)
            train = train + partial.seen if rank == 0 else train
        splits = (train.samples, train.checksum, validation.samples, validation.checksum)
        host[self._NOTES : self._ranks_at] = splits
        start = self._ranks_at + self._HOST_OF_RANK * rank
        mine = (cost.seconds, cost.gpu_memory_peak, answered, validation.samples, cost.validation_seconds)
        host[start : start + self._HOST_OF_RANK] = mine
        self._of_host.copy_(torch.tensor(host, dtype=torch.float64), non_blocking=True)
        self._own_shares.copy_(self._losses_and_weights)
        if partial is not None:
            self._own_shares[0] += partial.sums[_LOSS_AND_WEIGHT] / world_size
            if rank == 0:
                self.sums("train").add_(partial.sums)

    def reduce(self) -> None:
        """Make the numbers of this rank those of all: the epoch's one collective."""
        self._group.all_reduce_sum(self.values)

    def reduce_train(self, seen: SamplesSeen) -> tuple[Tensor, SamplesSeen]:
        """Return what the ranks have trained of an epoch so far; the buffer stays as it is. A collective call.

        Args:
            seen: Train samples of this rank.

        Returns:
            The train split's sums over all ranks, float64 [slots], and their samples.
        """
        host = torch.tensor([seen.samples, seen.checksum], dtype=torch.float64, device=self._group.device)
        told = torch.cat([host, self.sums("train")])
        self._group.all_reduce_sum(told)
        samples, checksum = (int(number) for number in told[:2].tolist())
        return told[2:], SamplesSeen(samples=samples, checksum=checksum)

    def read(self, expected: Mapping[Split, SamplesSeen]) -> GlobalEpoch:
        """Read the reduced numbers: the epoch's one wait for the device.

        Args:
            expected: What each split must add up to.

        Raises:
            TaskError: The loss left out targets, so that it is no mean over all samples; a weight was negative; or
                labels were no class of a metric.
        """
        values: Sums = self.values.cpu().numpy()
        host, sums_at = values[: self._host], (self._sums_at, self._sums_at + self._sums)
        ranks = host[self._ranks_at :].reshape(self._group.world_size, self._HOST_OF_RANK)
        shares = values[self._shares_at : self._sums_at].reshape(self._group.world_size, 2, 2)
        for split, start in zip(SPLITS, sums_at, strict=True):
            _require_mean(split, values[start : start + Totals.FIXED])
        splits = [
            self._read_split(
                values[start : start + self._sums],
                SamplesSeen(samples=int(host[at]), checksum=int(host[at + 1])),
                expected[split],
                _shares(shares[:, number], ranks[:, 2 + number]),
            )
            for number, (split, start) in enumerate(zip(SPLITS, sums_at, strict=True))
            for at in [self._NOTES + 2 * number]
        ]
        return GlobalEpoch(
            control=_CONTROLS[int(host[0])],
            checkpoint_allowed=bool(host[1]),
            skipped_steps=int(host[2]),
            gradient_norm=float(values[self._host]),
            rank_seconds=tuple(ranks[:, 0].tolist()),
            rank_validation_seconds=tuple(ranks[:, 4].tolist()),
            gpu_memory_peak_bytes=tuple(int(peak) for peak in ranks[:, 1]),
            train=splits[0],
            validation=splits[1],
        )

    def _read_split(
        self, sums: Sums, seen: SamplesSeen, expected: SamplesSeen, ranks: tuple[RankShare, ...]
    ) -> SplitRecord:
        metrics: dict[str, MetricTotals] = {}
        matrices: dict[str, tuple[tuple[int, ...], ...]] = {}
        start = Totals.FIXED
        for name, metric in self._metrics.items():
            reading = metric.read(sums[start : start + metric.slots])
            start += metric.slots
            for suffix, totals in reading.values.items():
                metrics[full_name(name, suffix)] = totals
            if reading.matrix is not None:
                matrices[name] = reading.matrix
        return SplitRecord(
            loss_sum=float(sums[Totals.LOSS_SUM]),
            loss_square_sum=float(sums[Totals.LOSS_SQUARE_SUM]),
            weight_sum=float(sums[Totals.WEIGHT_SUM]),
            weight_square_sum=float(sums[Totals.WEIGHT_SQUARE_SUM]),
            samples_expected=expected.samples,
            samples_seen=seen.samples,
            checksum_expected=expected.checksum,
            checksum_seen=seen.checksum,
            nonfinite_samples=int(sums[Totals.NONFINITE]),
            metrics=metrics,
            matrices=matrices,
            ranks=ranks,
        )


def _require_mean(split: Split, sums: Sums) -> None:
    """Refuse sums that have no mean over the samples."""
    if sums[Totals.OVERLOOKED]:
        raise TaskError(
            f"the loss ignores {int(sums[Totals.OVERLOOKED])} targets (its ignore_index), so its mean is no mean "
            "over samples; set TrainingTask.ignores_targets=True, or leave those samples out of the dataset"
        )
    require_weights(split, sums[Totals.WEIGHT_SUM])


def full_name(name: str, suffix: str) -> str:
    """Return how a record calls one number of a metric."""
    return f"{name}_{suffix}" if suffix else name


def metric_names(metrics: Mapping[str, SumMetric]) -> tuple[str, ...]:
    """Return the names of all numbers that these metrics give."""
    return tuple(
        full_name(name, suffix)
        for name, metric in metrics.items()
        for suffix in metric.read(np.zeros(metric.slots)).values
    )


def _shares(shares: Sums, samples: Sums) -> tuple[RankShare, ...]:
    """Return what each rank saw of a split, of loss and weight [ranks, 2] and samples [ranks]."""
    return tuple(
        RankShare(loss_sum=float(loss), weight_sum=float(weight), samples=int(seen))
        for (loss, weight), seen in zip(shares, samples, strict=True)
    )
