"""What can be seen of a task's data by reading samples: labels of no class, wrong lengths, samples counted twice."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from curvewatch_workers.batches import Indices
from curvewatch_workers.data import Batch, ShareLoader
from curvewatch_workers.errors import TaskError
from curvewatch_workers.seeds import seeded
from curvewatch_workers.sources import ShardedIterable, Source

MOST_SAMPLES = 20_000
"""Of each split, or of what its sampler draws in an epoch; in large data, samples at equal distances."""
MOST_SECONDS = 30.0
"""Of each look through a split; what is read by then are samples from everywhere in it."""
_BATCH = 64
_FIRST = 16
"""Samples of a stream's shards that are compared."""


def first_samples(source: Source, number: int) -> Batch:
    """Return a batch of the first so many samples of a map-style dataset."""
    return ShareLoader(_in_this_process(source), torch.device("cpu")).trial(np.arange(number))


def require_length(source: Source) -> None:
    """Check that a map-style dataset gives its last sample.

    Raises:
        TaskError: It does not.
    """
    last = source.size - 1
    try:
        source.dataset[last]
    except IndexError as error:
        raise TaskError(
            f"TrainingTask.{source.split} has a length of {source.size}, but its sample {last} raises IndexError: "
            f"{error}; make __len__ the number of samples that __getitem__ gives, from 0"
        ) from error


def labels_outside(source: Source, ignored: int, classes_of: Callable[[Batch], int]) -> str | None:
    """Return what is wrong with the class labels of a split, None when nothing is.

    Args:
        source: The split.
        ignored: Label that the loss leaves out.
        classes_of: Tells how many classes the model knows.
    """
    classes: int | None = None
    wrong: set[int] = set()
    for batch in _batches(source):
        if batch.targets.is_floating_point():
            return None
        if classes is None:
            # Two, because a model that squeezes its outputs need never be given one.
            classes = classes_of(first_samples(source, min(2, source.size)))
        targets = batch.targets[batch.targets != ignored]
        wrong |= set(targets[(targets < 0) | (targets >= classes)].tolist())
    if not wrong or classes is None:
        return None
    some = ", ".join(str(label) for label in sorted(wrong)[:5])
    return (
        f"TrainingTask.{source.split} has labels that are no class of the model ({some}): it gives {classes} logits, "
        f"so labels go from 0 to {classes - 1}; count from 0, or give the model more classes"
    )


def shared_samples(train: Source, validation: Source) -> str | None:
    """Return a sentence about samples that are in both splits, None when none was seen.

    A sample of which nothing is known but its address in memory is left out.
    """
    known = set(_digests(train))
    digests = [digest for digest in _digests(validation) if digest is not None]
    shared = sum(digest in known for digest in digests)
    if not shared:
        return None
    return (
        f"{shared} of {len(digests)} validation samples that were read are train samples too: the validation loss is "
        "too good; split the data so that no sample is in both"
    )


def require_disjoint_shards(source: Source) -> None:
    """Check that two shards of a stream are two.

    Raises:
        TaskError: They begin with the same samples.
    """
    one, other = (
        [digest_of(sample) for sample in itertools.islice(_shard(source, shard, 2), _FIRST)]
        for shard in (0, 1)
    )
    varies = len(set(one)) > 1 and None not in one
    if varies and one == other:
        raise TaskError(
            f"TrainingTask.{source.split}: shard(0, 2) and shard(1, 2) begin with the same samples, so that each would "
            "be counted once on every worker; shard(shard, shards) must return every shards-th sample, or another of "
            "so many disjoint parts"
        )


def shard_lengths(source: Source, shards: int) -> list[int] | None:
    """Return the samples in each of so many shards of a stream; None when the stream is too long to be read."""
    if source.size > MOST_SAMPLES:
        return None
    return [
        sum(1 for _ in itertools.islice(_shard(source, shard, shards), source.size + 1))
        for shard in range(shards)
    ]


def digest_of(sample: object) -> bytes | None:
    """Return a hash of a sample's content, None when some of it cannot be told."""
    digest = hashlib.blake2b(digest_size=16)
    return digest.digest() if all(_told(digest, sample)) else None


def _told(digest: hashlib.blake2b, value: object) -> Iterator[bool]:
    """Hash a value and what is in it; yield for each part whether it could be told."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        flat = value.detach().cpu().to_dense().contiguous().reshape(-1)
        # As bytes: NumPy has no bfloat16.
        digest.update(flat.view(torch.uint8).numpy().tobytes())
        yield True
    elif isinstance(value, np.ndarray | np.generic):
        yield not value.dtype.hasobject
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif value is None or type(value) in (str, bytes, bool, int, float, complex):
        digest.update(repr(value).encode())
        yield True
    elif isinstance(value, Mapping):
        yield from _told(digest, list(value.items()))
    elif type(value) in (list, tuple):
        digest.update(f"[{len(cast('list[Any]', value))}]".encode())
        for entry in cast("list[Any]", value):
            yield from _told(digest, entry)
    elif hasattr(value, "__array_interface__"):  # an image of Pillow
        yield from _told(digest, np.asarray(value))
    else:
        yield False


def _digests(source: Source) -> Iterator[bytes | None]:
    for index in _until_late(_looked_at(source)):
        yield digest_of(source.dataset[int(index)])


def _batches(source: Source) -> Iterator[Batch]:
    loader = ShareLoader(_in_this_process(source), torch.device("cpu"))
    indices = _looked_at(source)
    for start in _until_late(range(0, len(indices), _BATCH)):
        yield loader.trial(indices[start : start + _BATCH])


def _looked_at(source: Source) -> Indices:
    with seeded(0):
        drawn = np.arange(source.size) if source.sampler is None else np.unique(source.order(0, 1))
    return np.random.default_rng(0).permutation(drawn[:: -(-len(drawn) // MOST_SAMPLES)])


def _until_late(parts: Iterable[int]) -> Iterator[int]:
    late = monotonic() + MOST_SECONDS
    for part in parts:
        yield part
        if monotonic() > late:
            return


def _in_this_process(source: Source) -> Source:
    return Source(split=source.split, dataset=source.dataset, collate=source.collate)


def _shard(source: Source, shard: int, shards: int) -> Iterator[Any]:
    return iter(cast("ShardedIterable", source.dataset).shard(shard, shards))
