"""The batches of an epoch on one rank: global batches to train on, a shard to validate on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from curvewatch_workers.batches import BatchPlan, Indices, SamplesSeen, index_checksum, validation_shares
from curvewatch_workers.contract import SPLITS, TrainingSpec
from curvewatch_workers.data import Batch, ShareLoader, StreamLoader
from curvewatch_workers.errors import TaskError
from curvewatch_workers.group import Group
from curvewatch_workers.sources import Source

_CHUNK = 1 << 20


class GlobalBatch(NamedTuple):
    """The samples of one optimizer step, as one rank sees them."""

    samples: int
    """Samples over all ranks."""
    micro_batches: Sequence[Batch]
    """This rank's share of each part; a share may have zero rows."""
    last: bool
    """Whether it is the epoch's last one, or may be."""


class TrainFeed(Protocol):
    """Gives the global batches of an epoch."""

    def steps(self, epoch: int, *, after: int = 0) -> Iterator[GlobalBatch]:
        """Yield each of them, but the first `after`; every rank gets as many."""

    def steps_of(self, epoch: int) -> int | None:
        """Return how many there are; None when nobody knows, and none can be left out."""

    def expected(self, epoch: int) -> SamplesSeen:
        """Return what the samples of the epoch add up to over all ranks."""

    def sampled(self, epoch: int) -> Indices | None:
        """Return what the user's sampler draws in the epoch; None without one."""


class ValidationFeed(Protocol):
    """Gives this rank's validation batches; their number differs by rank."""

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield each of them."""

    def expected(self, epoch: int) -> SamplesSeen:
        """Return what the samples of the epoch add up to over all ranks."""

    def sampled(self, epoch: int) -> Indices | None:
        """Return what the user's sampler draws in the epoch; None without one."""


def train_feed(source: Source, training: TrainingSpec, group: Group) -> TrainFeed:
    """Return the feed of a train source."""
    return (
        StreamTrainFeed(source, training, group) if source.streams else MapTrainFeed(source, training, group)
    )


def validation_feed(source: Source, training: TrainingSpec, group: Group) -> ValidationFeed:
    """Return the feed of a validation source."""
    if source.streams:
        return StreamValidationFeed(source, training, group)
    return MapValidationFeed(source, training, group)


class _Drawn:
    """The order of the epoch, and what it adds up to."""

    def __init__(self, source: Source, seed: int) -> None:
        self._source, self._seed = source, seed
        self._epoch = 0
        self._order: Indices = np.empty(0, np.int64)
        self._expected: SamplesSeen | None = None

    def order(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            self._order, self._epoch = self._source.order(self._seed, epoch), epoch
            if self._source.sampler is not None:
                self._expected = None
        return self._order

    def expected(self, epoch: int) -> SamplesSeen:
        order = self.order(epoch)
        if self._expected is None:
            chunks = (order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK))
            self._expected = SamplesSeen(samples=len(order), checksum=sum(map(index_checksum, chunks)))
        return self._expected

    def sampled(self, epoch: int) -> Indices | None:
        return None if self._source.sampler is None else self.order(epoch)


class MapTrainFeed:
    """Shares of a map-style dataset."""

    def __init__(self, source: Source, training: TrainingSpec, group: Group) -> None:
        self._source, self._training, self._group = source, training, group
        self._drawn = _Drawn(source, training.seed)
        self._loader = _share_loader(source, training, group)

    def plan(self, samples: int) -> BatchPlan:
        """Return the plan of an epoch of so many samples."""
        return BatchPlan(
            samples=samples,
            global_batch_size=self._training.global_batch_size,
            micro_batches=self._training.micro_batches,
        )

    def trials(self, most: int) -> list[Batch]:
        """Return a batch of no sample, of the first, of the first two, and so on; loaded apart from the run's."""
        loader = _share_loader(self._source.for_a_look(), self._training, self._group)
        shares = [np.arange(min(samples, self._source.size)) for samples in range(most + 1)]
        return list(loader.batches(lambda: iter(shares), seed=(self._training.seed,)))

    def steps_of(self, epoch: int) -> int:
        """Return the number of global batches."""
        return self.plan(len(self._drawn.order(epoch))).steps

    def steps(self, epoch: int, *, after: int = 0) -> Iterator[GlobalBatch]:
        """Yield the global batches, but the first `after`."""
        order, group = self._drawn.order(epoch), self._group
        plan = self.plan(len(order))
        first = after * plan.micro_batches
        batches = self._loader.batches(
            lambda: itertools.islice(plan.shares(order, group.rank, group.world_size), first, None),
            seed=(self._training.seed, epoch, group.rank, SPLITS.index("train")),
            first=first,
        )
        for step in range(after, plan.steps):
            parts = [next(batches) for _ in range(plan.micro_batches)]
            yield GlobalBatch(plan.step_samples(step), parts, last=step == plan.steps - 1)
        # Exhausted, so that its processes are ready for the next epoch.
        next(batches, None)

    def expected(self, epoch: int) -> SamplesSeen:
        """Return each sample that was drawn, once."""
        return self._drawn.expected(epoch)

    def sampled(self, epoch: int) -> Indices | None:
        """Return what the user's sampler draws; None without one."""
        return self._drawn.sampled(epoch)


class MapValidationFeed:
    """Every world-size-th sample of a map-style dataset."""

    def __init__(self, source: Source, training: TrainingSpec, group: Group) -> None:
        self._training, self._group = training, group
        self._drawn = _Drawn(source, training.seed)
        self._loader = _share_loader(source, training, group)
        self._batch_size = _validation_batch_size(source, training, group)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield this rank's batches."""
        order, group = self._drawn.order(epoch), self._group
        yield from self._loader.batches(
            lambda: validation_shares(order, group.rank, group.world_size, self._batch_size),
            seed=(self._training.seed, epoch, group.rank, SPLITS.index("validation")),
        )

    def expected(self, epoch: int) -> SamplesSeen:
        """Return each sample that was drawn, once."""
        return self._drawn.expected(epoch)

    def sampled(self, epoch: int) -> Indices | None:
        """Return what the user's sampler draws; None without one."""
        return self._drawn.sampled(epoch)


class StreamTrainFeed:
    """Batches of a stream that shards itself: the ranks agree at each step on who has data left.

    One small reduction a step tells them, and is read: a stream's end is known to nobody before it is there.
    """

    def __init__(self, source: Source, training: TrainingSpec, group: Group) -> None:
        self._training, self._group, self._samples = training, group, source.size
        parts = group.world_size * training.micro_batches
        self._loader = _stream_loader(source, training.global_batch_size // parts, training, group)

    def steps_of(self, epoch: int) -> int | None:
        """Return None: a stream's end is known when it is there."""

    def steps(self, epoch: int, *, after: int = 0) -> Iterator[GlobalBatch]:
        """Yield global batches until every shard is at its end.

        Raises:
            TaskError: On every rank, when a shard has no sample while others have some.
        """
        if after:
            raise ValueError(f"a stream begins at its beginning, not after step {after}")
        seed = (self._training.seed, epoch, self._group.rank, SPLITS.index("train"))
        batches, empty = self._loader.batches(seed=seed), None
        while True:
            parts = list(itertools.islice(batches, self._training.micro_batches))
            if parts and empty is None:
                empty = parts[0].none()
            own = sum(batch.samples for batch in parts)
            told = torch.tensor([own, empty is None], dtype=torch.float64, device=self._group.device)
            self._group.all_reduce_sum(told)
            samples, without = (int(number) for number in told.tolist())
            if not samples:
                return
            if empty is None or without:
                raise TaskError(
                    f"TrainingTask.train: the shards of {without} of {self._group.world_size} workers are empty in "
                    f"epoch {epoch}, others are not; shard() must give each worker at least one sample"
                )
            parts += [empty] * (self._training.micro_batches - len(parts))
            yield GlobalBatch(samples, parts, last=True)

    def expected(self, epoch: int) -> SamplesSeen:  # noqa: ARG002 - the protocol's
        """Return the length of the stream; its samples have no indices to tell apart."""
        return _expected_of_stream(self._samples)

    def sampled(self, epoch: int) -> Indices | None:
        """Return None: a stream has no indices to draw."""


class StreamValidationFeed:
    """This rank's shard of a stream."""

    def __init__(self, source: Source, training: TrainingSpec, group: Group) -> None:
        self._training, self._group, self._samples = training, group, source.size
        batch_size = _validation_batch_size(source, training, group)
        self._loader = _stream_loader(source, batch_size, training, group)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the shard's batches."""
        seed = (self._training.seed, epoch, self._group.rank, SPLITS.index("validation"))
        return self._loader.batches(seed=seed)

    def expected(self, epoch: int) -> SamplesSeen:  # noqa: ARG002 - the protocol's
        """Return the length of the stream; its samples have no indices to tell apart."""
        return _expected_of_stream(self._samples)

    def sampled(self, epoch: int) -> Indices | None:
        """Return None: a stream has no indices to draw."""


def _expected_of_stream(samples: int) -> SamplesSeen:
    return SamplesSeen(samples=samples, checksum=samples * index_checksum(np.zeros(1, np.int64)))


def _share_loader(source: Source, training: TrainingSpec, group: Group) -> ShareLoader:
    return ShareLoader(source, group.device, channels_last=training.channels_last)


def _stream_loader(source: Source, batch_size: int, training: TrainingSpec, group: Group) -> StreamLoader:
    return StreamLoader(
        source, batch_size, group.rank, group.world_size, group.device, channels_last=training.channels_last
    )


def _validation_batch_size(source: Source, training: TrainingSpec, group: Group) -> int:
    parts = group.world_size * training.micro_batches
    return source.batch_size or -(-training.global_batch_size // parts)
