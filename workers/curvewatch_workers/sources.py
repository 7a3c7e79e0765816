"""What a task's `train` and `validation` are: which samples an epoch draws, in which order, and how they are loaded.

Settings of a DataLoader are respected or refused with the reason, and never silently replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
    get_worker_info,
)
from torch.utils.data.distributed import DistributedSampler

from curvewatch_workers.batches import Indices, shuffled
from curvewatch_workers.contract import SPLITS, JobSpec, Split
from curvewatch_workers.errors import TaskError, UserCodeError
from curvewatch_workers.seeds import seed_from, seed_of
from curvewatch_workers.task import TrainingTask

Collate = Callable[[list[Any]], Any]
_SAMPLER_SEED = 3
"""Sets a sampler's random numbers apart from those of the ranks."""


@runtime_checkable
class ShardedIterable(Protocol):
    """An `IterableDataset` that shards itself."""

    def __len__(self) -> int:
        """Return the samples of one epoch over all shards."""

    def shard(self, shard: int, shards: int) -> Iterable[Any]:
        """Return the samples of one of `shards` disjoint parts; all parts together are the dataset."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The samples of one split."""

    split: Split
    dataset: Dataset[Any]
    collate: Collate = default_collate
    """Makes a batch of a list of samples."""
    loader_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the DataLoader that loads them."""
    batch_size: int | None = None
    """Batch size of one rank that the user's own DataLoader asks for; None takes the job's."""
    sampler: Sampler[int] | None = None
    """Draws the samples of an epoch; None draws each once."""
    shuffle: bool = True
    """Without a sampler: whether the order changes with the epoch."""

    @property
    def streams(self) -> bool:
        """Whether the samples come as a stream without indices."""
        return isinstance(self.dataset, IterableDataset)

    @property
    def size(self) -> int:
        """Samples of the dataset."""
        return len(cast("Sized", self.dataset))

    def for_a_look(self) -> Source:
        """Return it for a few samples: loaded in one process where the job has such, and else in this one.

        A file that is opened late must not be open already in the process that those of the run are forked from:
        they would share its position.
        """
        options = {**self.loader_options, "num_workers": min(self.loader_options.get("num_workers", 0), 1)}
        return replace(self, loader_options=options)

    def order(self, seed: int, epoch: int) -> Indices:
        """Return the indices that an epoch draws, in order, the same on each rank. Not for streams."""
        if self.sampler is not None:
            return self._draw(self.sampler, seed, epoch)
        return shuffled(self.size, seed=seed, epoch=epoch) if self.shuffle else np.arange(self.size)

    def _draw(self, sampler: Sampler[int], seed: int, epoch: int) -> Indices:
        place = (seed, epoch, SPLITS.index(self.split), _SAMPLER_SEED)
        seed_from(*place)
        generator = getattr(sampler, "generator", None)
        if generator is not None:
            generator.manual_seed(seed_of(*place))
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        drawn = np.fromiter((int(index) for index in sampler), dtype=np.int64)
        if len(drawn) == 0 or drawn.min() < 0 or drawn.max() >= self.size:
            raise TaskError(
                f"TrainingTask.{self.split}: its {type(sampler).__name__} drew {len(drawn)} indices for a dataset of "
                f"{self.size} samples; it must draw at least one, each from 0 to {self.size - 1}"
            )
        return drawn


def source_of(
    split: Split,
    given: object,
    *,
    collate: Collate | None,
    data_workers: int,
    global_batch_size: int,
    parts: Collection[int],
) -> Source:
    """Return the source behind a task's `train` or `validation`.

    Args:
        split: Which of the two.
        given: A dataset or a DataLoader.
        collate: The task's own collate function.
        data_workers: Loading processes that the job asks for.
        global_batch_size: Samples of one optimizer step.
        parts: World size times micro-batches: the parts that a global batch is cut into; of each world size that the
            run may have.

    Raises:
        TaskError: It cannot be used as it is; the message says why and what to do.
    """
    if isinstance(given, DataLoader):
        if collate is not None:
            raise TaskError(
                f"TrainingTask.collate is set, and TrainingTask.{split} is a DataLoader, which has a collate_fn of "
                "its own; set one of them"
            )
        source = _of_loader(split, given)
        if split == "train":
            _check_batch_size(source.batch_size or 0, global_batch_size, parts)
    else:
        options = {"num_workers": data_workers, "persistent_workers": data_workers > 0}
        source = Source(
            split=split,
            dataset=cast("Dataset[Any]", given),
            collate=collate or default_collate,
            loader_options=options,
            shuffle=split == "train",
        )
    _check_dataset(source)
    if source.streams:
        return _of_stream(source, global_batch_size, parts)
    return source


def source_of_task(split: Split, task: TrainingTask, spec: JobSpec, world_size: int) -> Source:
    """Return the source of one split of a task.

    Raises:
        TaskError: It cannot be used as it is; the message says why and what to do.
        UserCodeError: Looking at it raised an error.
    """
    training = spec.training
    try:
        return source_of(
            split,
            task.train if split == "train" else task.validation,
            collate=task.collate,
            data_workers=training.data_workers,
            global_batch_size=training.global_batch_size,
            parts=[n * training.micro_batches for n in spec.scaling.possible_workers(world_size)],
        )
    except TaskError:
        raise
    except Exception as error:
        raise UserCodeError(f"looking at TrainingTask.{split}", error) from error


def _check_batch_size(batch_size: int, global_batch_size: int, parts: Collection[int]) -> None:
    for number in parts:
        asked = batch_size * number
        if asked != global_batch_size:
            remedy = (
                "make them equal"
                if len(parts) == 1
                else "give the dataset instead of a DataLoader, whose batch_size belongs to one number of workers"
            )
            raise TaskError(
                f"the batch_size {batch_size} of TrainingTask.train's DataLoader makes {asked} samples a step over "
                f"{number} workers or micro-batches, and training.global_batch_size is {global_batch_size}; {remedy}"
            )


def _of_loader(split: Split, loader: DataLoader[Any]) -> Source:
    where = f"TrainingTask.{split}"
    # Looked up as the interpreter does, on the class.
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise TaskError(
            f"{where} is a {type(loader).__name__}, which has an __iter__ of its own, but the engine loads the samples "
            "itself to share them out and would pass it by; give a plain DataLoader, and change samples in the "
            "dataset or in collate_fn"
        )
    if loader.batch_size is None:
        what = (
            "has a batch_sampler of its own"
            if loader.batch_sampler is not None
            else "does not batch (batch_size=None)"
        )
        raise TaskError(
            f"{where} is a DataLoader that {what}, and its batches cannot be split over workers; give it a "
            "batch_size and a sampler, or pass the dataset alone"
        )
    if loader.drop_last:
        raise TaskError(
            f"{where} is a DataLoader with drop_last=True, which leaves out samples; set drop_last=False (the last "
            "global batch may be smaller: its loss still weighs each sample the same)"
        )
    if isinstance(loader.sampler, DistributedSampler):
        raise TaskError(
            f"{where} is a DataLoader with a DistributedSampler, which pads each shard and counts samples twice; "
            "leave the sampler out: the engine shares out the samples"
        )
    streams = isinstance(loader.dataset, IterableDataset)
    if not streams and type(loader.batch_sampler) is not BatchSampler:
        raise TaskError(
            f"{where} is a DataLoader with a {type(loader.batch_sampler).__name__}, whose batches cannot be split "
            "over workers; use a sampler, or pass the dataset alone"
        )
    sampler, shuffle = (None, False) if streams else _sampler(loader.sampler)
    options = {
        name: getattr(loader, name)
        for name in ("num_workers", "timeout", "worker_init_fn", "prefetch_factor", "multiprocessing_context")
    }
    if loader.num_workers == 0:
        del options["prefetch_factor"]
    return Source(
        split=split,
        dataset=loader.dataset,
        collate=loader.collate_fn,
        loader_options={**options, "persistent_workers": loader.num_workers > 0},
        batch_size=loader.batch_size,
        sampler=sampler,
        shuffle=shuffle,
    )


def _sampler(sampler: object) -> tuple[Sampler[int] | None, bool]:
    """Return the sampler that draws an epoch (None: each sample once) and whether the order changes with it."""
    if type(sampler) is SequentialSampler:
        return None, False
    if type(sampler) is RandomSampler and not sampler.replacement:
        # Drawing each once in a random order is what the engine does, in an order that it can repeat.
        whole = sampler._num_samples is None or sampler.num_samples == len(sampler.data_source)
        if whole:
            return None, True
    return cast("Sampler[int]", sampler), False


def _check_dataset(source: Source) -> None:
    where, dataset = f"TrainingTask.{source.split}", source.dataset
    name = type(dataset).__name__
    if not source.streams and not hasattr(dataset, "__getitem__"):
        raise TaskError(
            f"{where} must be a map-style dataset with __len__ and __getitem__, an IterableDataset that shards "
            f"itself, or a DataLoader of one; got {name}"
        )
    if not hasattr(dataset, "__len__"):
        raise TaskError(
            f"{where} ({name}) must have a length, the samples of one epoch over all workers: the receipt is checked "
            "against it; define __len__"
        )
    if source.size == 0:
        raise TaskError(f"{where} has zero samples; there is nothing to compute a loss from")


def _of_stream(source: Source, global_batch_size: int, parts: Collection[int]) -> Source:
    where, dataset = f"TrainingTask.{source.split}", source.dataset
    if not isinstance(dataset, ShardedIterable):
        raise TaskError(
            f"{where} ({type(dataset).__name__}) is an IterableDataset, which each worker would read whole; define "
            "shard(self, shard, shards), returning the samples of one of so many disjoint parts, and __len__"
        )
    odd = [number for number in parts if global_batch_size % number]
    if source.split == "train" and odd:
        raise TaskError(
            f"{where} is an IterableDataset, whose batches are the same size on each worker, but "
            f"training.global_batch_size {global_batch_size} is no multiple of {odd[0]} (workers times micro-batches)"
        )
    return source


class StreamShard(IterableDataset[Any]):
    """One rank's part of a stream, shared out once more over its loading processes."""

    def __init__(self, dataset: ShardedIterable, rank: int, world_size: int) -> None:
        self._dataset, self._rank, self._world_size = dataset, rank, world_size

    def __iter__(self) -> Iterator[Any]:
        process = get_worker_info()
        number, processes = (process.id, process.num_workers) if process is not None else (0, 1)
        return iter(self._dataset.shard(self._rank * processes + number, self._world_size * processes))
