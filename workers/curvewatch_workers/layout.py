"""The one flat float64 buffer that the ranks reduce at the end of an epoch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from curvewatch_workers.contract import Control, MetricTotals, RankShare, SplitRecord
from curvewatch_workers.errors import LayoutMismatchError, TaskError
from curvewatch_workers.group import Group
from curvewatch_workers.metrics import Totals

_CONTROLS = tuple(Control)


@dataclass(frozen=True, kw_only=True)
class PassTotals:
    """What one rank has from one pass over its share of a split."""

    totals: Totals
    """Sums on the device."""
    samples: int
    """Samples that went through the model."""
    checksum: int
    """Sum of the hashes of their indices."""


@dataclass(frozen=True, kw_only=True)
class LeaderNotes:
    """What only rank 0 knows and every rank must hear before it decides."""

    control: Control
    """What the service wants."""
    checkpoint_allowed: bool
    """Whether the last checkpoint is long enough ago."""
    gradient_norm: Tensor
    """Norm of the global gradient at the last step, a scalar on the device."""


@dataclass(frozen=True, kw_only=True)
class GlobalEpoch:
    """The buffer after the reduction: the same on each rank."""

    control: Control
    checkpoint_allowed: bool
    gradient_norm: float
    rank_seconds: tuple[float, ...]
    gpu_memory_peak_bytes: tuple[int, ...]
    train: SplitRecord
    validation: SplitRecord


@dataclass(frozen=True, kw_only=True)
class ExpectedSplit:
    """What a split must add up to."""

    samples: int
    checksum: int


class EpochLayout:
    """Which slot of the buffer holds what, for given metrics and world size.

    The leader's notes come first, then both splits (sums over all ranks, then three slots for each rank), then
    seconds and GPU memory of each rank. A rank fills the slots of its own and leaves those of the others 0,
    so that one SUM carries everything.
    """

    _NOTES = 3
    _RANK_SLOTS = 3

    def __init__(
        self, metrics: tuple[str, ...], world_size: int, train: ExpectedSplit, validation: ExpectedSplit
    ):
        self._metrics = metrics
        self._world_size = world_size
        self._expected = (train, validation)
        self._totals = Totals.width(len(metrics))
        self._split = self._totals + 2 + self._RANK_SLOTS * world_size
        self.size = self._NOTES + 2 * self._split + 2 * world_size

    def require_agreement(self, group: Group) -> None:
        """Check once that every rank has this layout: gloo would mix buffers of unequal size without a word.

        Raises:
            LayoutMismatchError: On every rank, when any two differ.
        """
        text = repr((self._metrics, self._world_size, self._expected))
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

    def fill(
        self,
        group: Group,
        notes: LeaderNotes,
        splits: tuple[PassTotals, PassTotals],
        seconds: float,
        gpu_memory_peak: int,
    ) -> Tensor:
        """Return this rank's buffer, shape [size], float64, on its device. Reads nothing from the device."""
        host = [0.0] * self.size
        if group.rank == 0:
            host[0] = _CONTROLS.index(notes.control)
            host[1] = notes.checkpoint_allowed
        for split, start in zip(splits, self._starts(), strict=True):
            host[start + self._totals] = split.samples
            host[start + self._totals + 1] = split.checksum
            host[self._rank_slot(start, group.rank) + 2] = split.samples
        per_rank = self.size - 2 * self._world_size
        host[per_rank + group.rank] = seconds
        host[per_rank + self._world_size + group.rank] = gpu_memory_peak
        buffer = torch.tensor(host, dtype=torch.float64).to(group.device, non_blocking=True)
        if group.rank == 0:
            buffer[2] = notes.gradient_norm
        for split, start in zip(splits, self._starts(), strict=True):
            values = split.totals.values
            buffer[start : start + self._totals] = values
            slot = self._rank_slot(start, group.rank)
            buffer[slot] = values[Totals.LOSS_SUM]
            buffer[slot + 1] = values[Totals.FINITE]
        return buffer

    def read(self, buffer: Tensor) -> GlobalEpoch:
        """Read the reduced buffer: the epoch's one wait for the device.

        Raises:
            TaskError: The loss left out targets, so that it is no mean over all samples.
        """
        values: list[float] = buffer.tolist()
        per_rank = self.size - 2 * self._world_size
        train_start, validation_start = self._starts()
        return GlobalEpoch(
            control=_CONTROLS[int(values[0])],
            checkpoint_allowed=bool(values[1]),
            gradient_norm=values[2],
            rank_seconds=tuple(values[per_rank : per_rank + self._world_size]),
            gpu_memory_peak_bytes=tuple(int(peak) for peak in values[per_rank + self._world_size :]),
            train=self._read_split(values, train_start, self._expected[0]),
            validation=self._read_split(values, validation_start, self._expected[1]),
        )

    def _starts(self) -> tuple[int, int]:
        return self._NOTES, self._NOTES + self._split

    def _rank_slot(self, start: int, rank: int) -> int:
        return start + self._totals + 2 + self._RANK_SLOTS * rank

    def _read_split(self, values: list[float], start: int, expected: ExpectedSplit) -> SplitRecord:
        totals = values[start : start + self._totals]
        if totals[Totals.IGNORED]:
            raise TaskError(
                f"the loss ignores {int(totals[Totals.IGNORED])} targets (its ignore_index), so its mean is no mean "
                "over samples; leave those samples out of the dataset"
            )
        pairs = zip(totals[Totals.FIXED :: 2], totals[Totals.FIXED + 1 :: 2], strict=True)
        ranks = (self._rank_slot(start, rank) for rank in range(self._world_size))
        return SplitRecord(
            loss_sum=totals[Totals.LOSS_SUM],
            loss_square_sum=totals[Totals.LOSS_SQUARE_SUM],
            weight_sum=totals[Totals.FINITE],
            samples_expected=expected.samples,
            samples_seen=int(values[start + self._totals]),
            checksum_expected=expected.checksum,
            checksum_seen=int(values[start + self._totals + 1]),
            nonfinite_samples=int(totals[Totals.NONFINITE]),
            metrics={
                name: MetricTotals(total=total, count=int(count))
                for name, (total, count) in zip(self._metrics, pairs, strict=True)
            },
            ranks=tuple(
                RankShare(loss_sum=values[slot], weight_sum=values[slot + 1], samples=int(values[slot + 2]))
                for slot in ranks
            ),
        )
