"""Which rank sees which sample: pure functions of (samples, seed, epoch, rank, world size).

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


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The train batches of a dataset: each sample once an epoch, no padding, none left out."""

    samples: int
    """Samples of the dataset."""
    global_batch_size: int
    """Samples of one optimizer step, over all ranks; the last step takes what is left."""
    seed: int
    """Seed of the order."""

    @property
    def steps(self) -> int:
        """Optimizer steps of one epoch, the same on each rank."""
        return -(-self.samples // self.global_batch_size)

    def step_samples(self, step: int) -> int:
        """Return the samples of one step (from 0) over all ranks."""
        return min(self.global_batch_size, self.samples - step * self.global_batch_size)

    def order(self, epoch: int) -> Indices:
        """Return the order of all samples in an epoch, the same on each rank."""
        return np.random.default_rng((self.seed, epoch)).permutation(self.samples)

    def shares(self, epoch: int, rank: int, world_size: int) -> Iterator[Indices]:
        """Yield this rank's share of each step; a share may be empty, sizes differ by one at most."""
        order = self.order(epoch)
        for step in range(self.steps):
            batch = order[step * self.global_batch_size :][: self.step_samples(step)]
            yield batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


def validation_shares(samples: int, rank: int, world_size: int, batch_size: int) -> Iterator[Indices]:
    """Yield this rank's validation batches: every world-size-th sample, unpadded; none for an empty shard."""
    shard = np.arange(rank, samples, world_size, dtype=np.int64)
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
