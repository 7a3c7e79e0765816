"""Which rank sees which sample: pure functions of (order, rank, world size).

The train epoch is cut into global batches first and each of them is split over the ranks second, so that
the samples behind each optimizer step, and with them the curve, do not depend on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_CHECKSUM_BITS = 20


def shuffled(samples: int, *, seed: int, epoch: int) -> Indices:
    """Return the order of all samples in an epoch, the same on each rank."""
    return np.random.default_rng((seed, epoch)).permutation(samples)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The train batches of an epoch: each sample that is drawn is used once, no padding, none left out."""

    samples: int
    """Samples of one epoch."""
    global_batch_size: int
    """Samples of one optimizer step, over all ranks; the last step takes what is left."""
    micro_batches: int = 1
    """Parts of a global batch whose gradients are added up before the step."""

    @property
    def steps(self) -> int:
        """Optimizer steps of one epoch, the same on each rank."""
        return -(-self.samples // self.global_batch_size)

    def step_samples(self, step: int) -> int:
        """Return the samples of one step (from 0) over all ranks."""
        return min(self.global_batch_size, self.samples - step * self.global_batch_size)

    def shares(self, order: Indices, rank: int, world_size: int) -> Iterator[Indices]:
        """Yield this rank's share of each micro-batch of each step; sizes over the ranks differ by one at most.

        A share may be empty.

        Args:
            order: The samples in the order in which they are drawn, shape [samples].
            rank: This rank.
            world_size: Number of ranks.
        """
        for step in range(self.steps):
            batch = order[step * self.global_batch_size :][: self.step_samples(step)]
            for part in range(self.micro_batches):
                micro = _part(batch, part, self.micro_batches)
                yield _part(micro, rank, world_size)

    def share_sizes(self, world_size: int) -> set[int]:
        """Return every number of samples that a share has in an epoch on any rank."""
        steps = {self.step_samples(0), self.step_samples(self.steps - 1)}
        micro = set().union(*(_part_sizes(samples, self.micro_batches) for samples in steps))
        return set().union(*(_part_sizes(samples, world_size) for samples in micro))


def _part(indices: Indices, number: int, parts: int) -> Indices:
    return indices[len(indices) * number // parts : len(indices) * (number + 1) // parts]


def _part_sizes(samples: int, parts: int) -> set[int]:
    return {samples // parts, -(-samples // parts)}


def validation_shares(order: Indices, rank: int, world_size: int, batch_size: int) -> Iterator[Indices]:
    """Yield this rank's validation batches: every world-size-th sample, unpadded; none for an empty shard."""
    shard = order[rank::world_size]
    for start in range(0, len(shard), batch_size):
        yield shard[start : start + batch_size]


def index_checksum(indices: Indices) -> int:
    """Return the sum of a 20-bit hash of each index.

    A float64 holds the sum exactly up to 2**33 indices, so it may travel in the reduced buffer. Two sets of
    equal size but different members have different sums, but for one chance in about a million.
    The hash is the finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators).
    """
    mixed = indices.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int(((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(64 - _CHECKSUM_BITS)).sum())


@dataclass(frozen=True, kw_only=True)
class SamplesSeen:
    """What was counted of a split on the host, or what a split must add up to over all ranks."""

    samples: int
    """Samples."""
    checksum: int
    """Sum of the hashes of their indices."""

    def __add__(self, other: SamplesSeen) -> SamplesSeen:
        """Return both together."""
        return SamplesSeen(samples=self.samples + other.samples, checksum=self.checksum + other.checksum)


class IndexCounter:
    """Counts the samples of a pass, and the checksum of their indices, many batches at a time."""

    _KEPT = 256

    def __init__(self) -> None:
        self._kept: list[Indices] = []
        self._samples = 0
        self._checksum = 0

    def add(self, indices: Indices) -> None:
        """Count a batch."""
        self._kept.append(indices)
        if len(self._kept) == self._KEPT:
            self._fold()

    def _fold(self) -> None:
        if self._kept:
            joined = np.concatenate(self._kept)
            self._samples += len(joined)
            self._checksum += index_checksum(joined)
            self._kept = []

    @property
    def seen(self) -> SamplesSeen:
        """Samples so far, and the sum of the hashes of their indices."""
        self._fold()
        return SamplesSeen(samples=self._samples, checksum=self._checksum)
