"""What a range of workers asks of the data: it must do for every number of workers that the run may have."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from curvewatch_workers.contract import JobSpec
from curvewatch_workers.errors import TaskError
from curvewatch_workers.sources import source_of_task
from engine_support import make_spec, make_task

TRAIN = make_task().train


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream that shards itself."""

    def __len__(self) -> int:
        return 50

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(())

    def shard(self, shard: int, shards: int) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: ARG002 - the protocol's
        return iter(())


def elastic(fewest: int, most: int, **training: int) -> JobSpec:
    return make_spec(scaling={"workers": {"min": fewest, "max": most}}, **training)


def loader(batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    assert isinstance(TRAIN, Dataset)
    return DataLoader(TRAIN, batch_size=batch_size, shuffle=True)


@pytest.mark.parametrize("batch_size", [8, 16, 5])
def test_a_loader_is_refused_whose_batches_fit_one_number_of_workers(batch_size: int) -> None:
    task = make_task(train=loader(batch_size))

    with pytest.raises(TaskError, match=r"give the dataset instead of a DataLoader") as refused:
        source_of_task("train", task, elastic(1, 2), 2)

    assert f"the batch_size {batch_size} of TrainingTask.train's DataLoader" in str(refused.value)
    assert re.search(
        r"over [12] workers or micro-batches, and training.global_batch_size is 16", str(refused.value)
    )


def test_the_same_loader_is_taken_with_a_number_of_workers() -> None:
    task = make_task(train=loader(8))

    assert source_of_task("train", task, make_spec(scaling={"workers": 2}), 2).batch_size == 8
    # A range of one number is that number.
    assert source_of_task("train", task, elastic(2, 2), 2).batch_size == 8


def test_a_loader_to_validate_with_is_taken_with_a_range() -> None:
    """Its batches are those of one rank, and no step depends on them."""
    task = make_task(validation=loader(5))

    assert source_of_task("validation", task, elastic(1, 2), 2).batch_size == 5


@pytest.mark.parametrize(("most", "refused"), [(2, None), (3, 3), (4, 3)])
def test_a_stream_must_divide_on_every_number_of_workers(most: int, refused: int | None) -> None:
    task = make_task(train=Stream())
    if refused is None:
        assert source_of_task("train", task, elastic(1, most), most).streams
        return
    with pytest.raises(TaskError, match=f"global_batch_size 16 is no multiple of {refused} "):
        source_of_task("train", task, elastic(1, most), most)
