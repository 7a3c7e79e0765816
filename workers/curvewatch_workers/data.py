"""Batches of a dataset for one rank, with the zero-row batch of an empty share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, get_worker_info

from curvewatch_workers.batches import Indices
from curvewatch_workers.errors import TaskError
from curvewatch_workers.seeds import seed_from, seed_of
from curvewatch_workers.sources import Collate, ShardedIterable, Source, StreamShard


class Batch(NamedTuple):
    """The samples of one step on one rank."""

    inputs: Any
    """What the model is called with: a tensor [batch, ...], or a structure of such."""
    targets: Tensor
    """Shape [batch, ...]."""
    indices: Indices
    """Which samples of the dataset these are; of a stream, which has no indices, as many zeros."""
    weights: Tensor | None = None
    """Weight of each sample in the loss, shape [batch]; None weighs them equally."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.targets)

    def none(self) -> Batch:
        """Return a batch of the same structure with zero rows."""
        return cast("Batch", pytree.tree_map(_no_rows, self))


class _Chunk(NamedTuple):
    samples: list[Any]
    indices: Indices


class _Request(NamedTuple):
    """A share to load, and what the random numbers of its loading start from."""

    indices: list[int]
    seed: tuple[int, ...]


class _Samples(Dataset[Any]):
    """Fetches the samples of a share at once; an empty share borrows sample 0 for its shapes."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset
        self._fetch_many = getattr(dataset, "__getitems__", None)

    def __getitems__(self, request: _Request) -> list[_Chunk]:
        # A loading process lives as long as the run: seeded for each share, a replayed epoch draws the same
        # numbers, whichever process loads it. Without such processes the epoch's own seeding does that.
        if get_worker_info() is not None:
            seed_from(*request.seed)
        indices = request.indices
        wanted = indices or [0]
        samples = self._fetch_many(wanted) if self._fetch_many else [self._dataset[i] for i in wanted]
        return [_Chunk(samples, torch.tensor(indices, dtype=torch.int64).numpy())]

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


def _no_rows(entry: Any) -> Any:
    return entry[:0] if isinstance(entry, Tensor | np.ndarray) else entry


def _between(one: Batch, two: Batch) -> Batch:
    """Return a batch of no sample, of those of one and of two: cut along the dimension that grew, whichever it is."""

    def cut(entry: Any, grown: Any) -> Any:
        if not isinstance(entry, Tensor | np.ndarray):
            return entry
        sizes = zip(entry.shape, grown.shape, strict=True)
        return next(
            (
                entry[(slice(None),) * at + (slice(0),)]
                for at, (size, more) in enumerate(sizes)
                if size != more
            ),
            entry,
        )

    try:
        return cast("Batch", pytree.tree_map(cut, one, two))
    except ValueError:
        # A list that grew, of texts for example: no tensor tells its dimension.
        return one.none()


@dataclass(frozen=True)
class _Collate:
    """Makes a batch of samples with the user's collate function."""

    collate: Collate

    def __call__(self, samples: list[Any]) -> Batch:
        made = self.collate(samples)
        parts = made if isinstance(made, tuple | list) else ()
        if not (len(parts) in (2, 3) and all(isinstance(part, Tensor) for part in parts[1:])):
            raise TaskError(
                "a batch must be a pair (inputs, targets) with a tensor of targets, or a triple with the samples' "
                f"weights too, got {type(made).__name__}; let the dataset give pairs, or set TrainingTask.collate"
            )
        inputs, targets, *weights = parts
        return Batch(inputs, targets, np.zeros(len(targets), np.int64), *weights)


@dataclass(frozen=True)
class _CollateShare:
    collate: _Collate

    def __call__(self, chunks: list[_Chunk]) -> Batch:
        (chunk,) = chunks
        batch = self.collate(chunk.samples)
        if len(batch.targets) != len(chunk.samples):
            raise TaskError(
                f"the collate function made {len(batch.targets)} targets of {len(chunk.samples)} samples; each sample "
                "must stay one row, or the receipt would be wrong: leave broken samples out of the dataset"
            )
        if len(chunk.indices):
            return batch._replace(indices=chunk.indices)
        return _between(batch, self.collate(chunk.samples * 2))


class _Mover:
    """Brings batches to a device; copies from pinned memory do not wait."""

    def __init__(self, device: torch.device, *, channels_last: bool) -> None:
        self._device = device
        self._channels_last = channels_last

    def __call__(self, batch: Batch) -> Batch:
        weights = batch.weights if batch.weights is None else self._move(batch.weights)
        return Batch(self._inputs(batch.inputs), self._move(batch.targets), batch.indices, weights)

    def _inputs(self, inputs: Any) -> Any:
        if not isinstance(inputs, Tensor):
            return pytree.tree_map_only(Tensor, self._input, inputs)
        return self._input(inputs)

    def _input(self, tensor: Tensor) -> Tensor:
        if self._channels_last and tensor.dim() == 4:
            return tensor.to(self._device, non_blocking=True, memory_format=torch.channels_last)
        return self._move(tensor)

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


class ShareLoader:
    """Loads the shares of one split: the same dataset object and processes for all epochs.

    Args:
        source: What is loaded; no stream.
        device: Where the batches go; host memory is pinned for a GPU, and copies do not wait.
        channels_last: Lay inputs of four dimensions out with the channels last.
    """

    def __init__(self, source: Source, device: torch.device, *, channels_last: bool = False) -> None:
        self._move = _Mover(device, channels_last=channels_last)
        self._shares = _Shares()
        self._samples, self._collate = _Samples(source.dataset), _CollateShare(_Collate(source.collate))
        self._loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_sampler=cast("Any", self._shares),
            collate_fn=self._collate,
            pin_memory=device.type == "cuda",
            # Else it would draw from the global generator, but only when its processes start.
            generator=torch.Generator(),
            **source.loader_options,
        )

    def trial(self, indices: Indices) -> Batch:
        """Return a batch of these samples, loaded in this process."""
        return self._move(self._collate(self._samples.__getitems__(_Request(indices.tolist(), ()))))

    def batches(
        self, shares: Callable[[], Iterator[Indices]], *, seed: tuple[int, ...], first: int = 0
    ) -> Iterator[Batch]:
        """Yield one batch on the device for each share, in order.

        Args:
            shares: Gives this pass's shares.
            seed: What random augmentation in a loading process starts from, beside the number of the share.
            first: Number of the first share in the epoch.
        """
        self._shares.source, self._shares.seed, self._shares.first = shares, seed, first
        try:
            for batch in self._loader:
                yield self._move(batch)
        finally:
            # What `shares` holds on to may hold this loader: in a cycle, its processes end late and by force.
            self._shares.source = _no_shares


class StreamLoader:
    """Loads one rank's shard of a stream, in batches of one size and what is left.

    Args:
        source: What is loaded, a stream.
        batch_size: Samples of a batch.
        rank: This rank.
        world_size: Number of ranks.
        device: Where the batches go.
        channels_last: Lay inputs of four dimensions out with the channels last.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        rank: int,
        world_size: int,
        device: torch.device,
        *,
        channels_last: bool = False,
    ) -> None:
        self._move = _Mover(device, channels_last=channels_last)
        self._generator = torch.Generator()
        # Its processes start anew with each epoch: only then do they take a seed.
        options = {**source.loader_options, "persistent_workers": False}
        self._loader: DataLoader[Any] = DataLoader(
            StreamShard(cast("ShardedIterable", source.dataset), rank, world_size),
            batch_size=batch_size,
            collate_fn=_Collate(source.collate),
            pin_memory=device.type == "cuda",
            generator=self._generator,
            **options,
        )

    def batches(self, *, seed: tuple[int, ...]) -> Iterator[Batch]:
        """Yield the shard's batches on the device.

        Args:
            seed: What random numbers in loading processes start from.
        """
        self._generator.manual_seed(seed_of(*seed))
        for batch in self._loader:
            yield self._move(batch)


def _no_shares() -> Iterator[Indices]:
    return iter(())


class _Shares:
    """The batch sampler whose shares change with each epoch."""

    def __init__(self) -> None:
        self.source: Callable[[], Iterator[Indices]] = _no_shares
        self.seed: tuple[int, ...] = ()
        self.first = 0

    def __iter__(self) -> Iterator[_Request]:
        for number, share in enumerate(self.source(), start=self.first):
            yield _Request(share.tolist(), (*self.seed, number))
