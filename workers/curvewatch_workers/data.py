"""Batches of a dataset for one rank, with the zero-row batch of an empty share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from curvewatch_workers.batches import Indices
from curvewatch_workers.errors import TaskError
from curvewatch_workers.seeds import seed_from


class Batch(NamedTuple):
    """The samples of one step on one rank."""

    inputs: Any
    """What the model is called with: a tensor [batch, ...], or a structure of such."""
    targets: Tensor
    """Shape [batch, ...]."""
    indices: Indices
    """Which samples of the dataset these are."""


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


@dataclass(frozen=True)
class _Collate:
    collate: Callable[[Sequence[Any]], Any]

    def __call__(self, chunks: list[_Chunk]) -> Batch:
        (chunk,) = chunks
        made = self.collate(chunk.samples)
        if not (isinstance(made, tuple | list) and len(made) == 2 and isinstance(made[1], Tensor)):
            raise TaskError(
                "a batch must be a pair (inputs, targets) with a tensor of targets, got "
                f"{type(made).__name__}; let the dataset give pairs, or set TrainingTask.collate"
            )
        inputs, targets = made
        if len(chunk.indices) == 0:
            inputs, targets = pytree.tree_map_only(Tensor, lambda t: t[:0], (inputs, targets))
        return Batch(inputs, targets, chunk.indices)


class ShareLoader:
    """Loads the shares of one split: the same dataset object and processes for all epochs.

    Args:
        dataset: Map-style dataset.
        collate: Makes a batch of a list of samples; torch's default when None.
        workers: Processes that load; 0 loads in this one.
        device: Where the batches go; host memory is pinned for a GPU, and copies do not wait.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        collate: Callable[[Sequence[Any]], Any] | None,
        workers: int,
        device: torch.device,
    ) -> None:
        self._device = device
        self._shares = _Shares()
        self._loader: DataLoader[Any] = DataLoader(
            _Samples(dataset),
            batch_sampler=cast("Any", self._shares),
            collate_fn=_Collate(collate or cast("Callable[[Sequence[Any]], Any]", default_collate)),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # Else it would draw from the global generator, but only when its processes start.
            generator=torch.Generator(),
        )

    def batches(self, shares: Callable[[], Iterator[Indices]], *, seed: tuple[int, ...]) -> Iterator[Batch]:
        """Yield one batch on the device for each share, in order.

        Args:
            shares: Gives this pass's shares.
            seed: What random augmentation in a loading process starts from, beside the number of the share.
        """
        self._shares.source, self._shares.seed = shares, seed
        try:
            for inputs, targets, indices in self._loader:
                yield Batch(pytree.tree_map_only(Tensor, self._move, inputs), self._move(targets), indices)
        finally:
            # What `shares` holds on to may hold this loader: in a cycle, its processes end late and by force.
            self._shares.source = _no_shares

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


def _no_shares() -> Iterator[Indices]:
    return iter(())


class _Shares:
    """The batch sampler whose shares change with each epoch."""

    def __init__(self) -> None:
        self.source: Callable[[], Iterator[Indices]] = _no_shares
        self.seed: tuple[int, ...] = ()

    def __iter__(self) -> Iterator[_Request]:
        for number, share in enumerate(self.source()):
            yield _Request(share.tolist(), (*self.seed, number))
