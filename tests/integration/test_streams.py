"""Streams that shard themselves, on real gloo ranks: none waits for another, and each sample counts once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from curvewatch_workers.contract import SPLITS, EpochRecord
from curvewatch_workers.errors import TaskError
from curvewatch_workers.group import Group
from curvewatch_workers.task import TrainingTask
from engine_support import make_spec, make_task
from ranks_support import on_ranks, train

TRAIN, VALIDATION = 50, 23
BATCH = 12
"""Divides by 1, 2 and 3 ranks, and by two micro-batches of each."""

Cut = Callable[[Sequence[int], int, int], Sequence[int]]
Sample = tuple[Tensor, Tensor]


def in_turn(items: Sequence[int], shard: int, shards: int) -> Sequence[int]:
    """Cut shards whose lengths differ by one; the global batches are the same on any number of ranks."""
    return items[shard::shards]


def growing(items: Sequence[int], shard: int, shards: int) -> Sequence[int]:
    """Cut shards of which each is longer than the one before by far."""
    start, end = (len(items) * number**3 // shards**3 for number in (shard, shard + 1))
    return items[start:end]


def all_in_the_last(items: Sequence[int], shard: int, shards: int) -> Sequence[int]:
    """Cut shards of which only the last has samples."""
    return items if shard == shards - 1 else ()


class Stream(IterableDataset[Sample]):
    """Samples whose target is their number, from 0."""

    def __init__(self, samples: int, cut: Cut) -> None:
        self._samples, self._cut = samples, cut

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[Sample]:
        return self.shard(0, 1)

    def shard(self, shard: int, shards: int) -> Iterator[Sample]:
        for number in self._cut(range(self._samples), shard, shards):
            yield torch.tensor([number / 25 - 1, 1.0]), torch.tensor([float(number)])


class Unsharded(IterableDataset[Sample]):
    """A stream that each rank would read whole."""

    def __len__(self) -> int:
        return TRAIN

    def __iter__(self) -> Iterator[Sample]:
        return Stream(TRAIN, in_turn).shard(0, 1)


def power_of_number(outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001 - a metric's arguments
    """Give each sample a power of two of its own.

    As many of them as there are samples add up to one below the next power only if each was counted once.
    """
    return torch.exp2(targets.double())


def task_of(train_data: object, validation_data: object) -> TrainingTask:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    return make_task(
        model=model,
        train=train_data,
        validation=validation_data,
        loss=nn.MSELoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        metrics={"power": power_of_number},
    )


def train_streams(
    group: Group, train_cut: Cut, validation_cut: Cut, training: dict[str, Any]
) -> list[EpochRecord]:
    task = task_of(Stream(TRAIN, train_cut), Stream(VALIDATION, validation_cut))
    return train(group, make_spec(**{"epochs": 3, "global_batch_size": BATCH, **training}), task)


def refusal(group: Group, train_data: object, validation_data: object) -> str:
    """Return why a task cannot be trained."""
    try:
        train(group, make_spec(global_batch_size=BATCH), task_of(train_data, validation_data))
    except TaskError as error:
        return str(error)
    return "it was trained"


def require_each_sample_once(records: list[EpochRecord], epochs: int = 3) -> None:
    assert len(records) == epochs
    for record in records:
        for split, samples in zip(SPLITS, (TRAIN, VALIDATION), strict=True):
            told = record.split(split)
            assert told.exact
            assert (told.samples_seen, told.samples_expected, told.weight_sum) == (samples,) * 3
            assert (told.metrics["power"].total, told.metrics["power"].count) == (2**samples - 1, samples)


@pytest.mark.parametrize("training", [{}, {"micro_batches": 2}])
def test_the_curve_of_streams_does_not_depend_on_the_number_of_ranks(
    tmp_path: Path, training: dict[str, Any]
) -> None:
    (alone,) = on_ranks(1, tmp_path / "1", train_streams, in_turn, in_turn, training)
    require_each_sample_once(alone)
    for ranks in (2, 3):
        records, *others = on_ranks(ranks, tmp_path / str(ranks), train_streams, in_turn, in_turn, training)

        require_each_sample_once(records)
        for other in others:
            assert [one.train.loss_sum for one in other] == [one.train.loss_sum for one in records]
        for one, two in zip(alone, records, strict=True):
            for split in SPLITS:
                assert two.split(split).loss == pytest.approx(one.split(split).loss, rel=1e-5)


@pytest.mark.parametrize(("ranks", "lengths"), [(2, (6, 44)), (3, (1, 13, 36))])
def test_shards_of_very_unequal_length_neither_hang_nor_count_twice(
    tmp_path: Path, ranks: int, lengths: tuple[int, ...]
) -> None:
    for records in on_ranks(ranks, tmp_path, train_streams, growing, growing, {}):
        require_each_sample_once(records)
        assert all(tuple(share.samples for share in one.train.ranks) == lengths for one in records)
        assert records[-1].validation.loss < records[0].validation.loss


@pytest.mark.long
def test_loading_processes_share_a_ranks_shard(tmp_path: Path) -> None:
    once = {"data_workers": 2, "epochs": 1}
    for records in on_ranks(2, tmp_path, train_streams, growing, in_turn, once):
        require_each_sample_once(records, epochs=1)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_may_have_nothing_to_validate(tmp_path: Path, ranks: int) -> None:
    (alone,) = on_ranks(1, tmp_path / "1", train_streams, in_turn, all_in_the_last, {})
    for records in on_ranks(ranks, tmp_path / "2", train_streams, in_turn, all_in_the_last, {}):
        require_each_sample_once(records)
        shares = [share.samples for share in records[0].validation.ranks]
        assert shares == [0] * (ranks - 1) + [VALIDATION]
        for one, two in zip(alone, records, strict=True):
            assert two.validation.loss == pytest.approx(one.validation.loss, rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_without_train_samples_is_told_on_every_rank(tmp_path: Path, ranks: int) -> None:
    told = on_ranks(ranks, tmp_path, refusal, Stream(TRAIN, all_in_the_last), Stream(VALIDATION, in_turn))

    assert len(set(told)) == 1
    assert f"the shards of {ranks - 1} of {ranks} workers are empty in epoch 1" in told[0]


@pytest.mark.parametrize("split", SPLITS)
def test_a_stream_that_does_not_shard_itself_is_refused_on_every_rank(tmp_path: Path, split: str) -> None:
    datasets = {
        "train": Stream(TRAIN, in_turn),
        "validation": Stream(VALIDATION, in_turn),
        split: Unsharded(),
    }

    told = on_ranks(2, tmp_path, refusal, datasets["train"], datasets["validation"])

    assert len(told) == 2
    assert all(f"TrainingTask.{split} (Unsharded) is an IterableDataset" in one for one in told)
