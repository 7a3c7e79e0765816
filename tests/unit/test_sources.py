"""What a dataset or a DataLoader becomes: its settings are respected, or refused with the reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from curvewatch_workers.checkpoint import NoCheckpoints
from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.errors import TaskError
from curvewatch_workers.group import SoloGroup
from curvewatch_workers.loop import Trainer
from curvewatch_workers.sources import Source, source_of
from curvewatch_workers.testing import RecordingReporter, train_alone
from engine_support import datasets, make_spec, make_task


def source(given: object, *, parts: int = 1, split: str = "train", **options: Any) -> Source:
    settings = {"collate": None, "data_workers": 0, "global_batch_size": 16, **options}
    return source_of(split, given, parts=[parts], **settings)  # type: ignore[arg-type]


def dataset(samples: int = 50) -> TensorDataset:
    return TensorDataset(torch.arange(samples, dtype=torch.float32).unsqueeze(1), torch.arange(samples) % 3)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Every `shards`-th sample of a dataset."""

    def __init__(self, inner: Dataset[Any], length: int) -> None:
        self._inner, self._length = inner, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.shard(0, 1)

    def shard(self, shard: int, shards: int) -> Iterator[tuple[Tensor, Tensor]]:
        return (self._inner[index] for index in range(shard, self._length, shards))


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return itertools.count()


class Unsharded(Endless):
    def __len__(self) -> int:
        return 9


def test_a_dataset_is_shuffled_for_training_and_not_for_validation() -> None:
    train, validation = source(dataset()), source(dataset(), split="validation")

    assert sorted(train.order(0, 1)) == list(range(50))
    assert train.order(0, 1).tolist() != train.order(0, 2).tolist()
    assert validation.order(0, 1).tolist() == list(range(50))


def test_a_loader_brings_its_settings() -> None:
    def collate(samples: list[Any]) -> Any:
        return samples

    def start(_process: int) -> None:
        pass

    loader = DataLoader(
        dataset(),
        batch_size=4,
        shuffle=True,
        collate_fn=collate,
        num_workers=2,
        prefetch_factor=5,
        timeout=7,
        worker_init_fn=start,
        multiprocessing_context="spawn",
    )

    made = source(loader, parts=4)

    assert made.collate is collate
    assert made.batch_size == 4
    options = made.loader_options
    assert (options["num_workers"], options["prefetch_factor"], options["timeout"]) == (2, 5, 7)
    assert options["worker_init_fn"] is start
    assert options["multiprocessing_context"] is loader.multiprocessing_context
    assert sorted(made.order(0, 1)) == list(range(50))


def test_a_loader_that_does_not_shuffle_is_not_shuffled() -> None:
    made = source(DataLoader(dataset(), batch_size=16))

    assert made.order(0, 1).tolist() == made.order(0, 2).tolist() == list(range(50))


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_a_sampler_draws_the_same_on_every_rank_and_something_else_in_every_epoch(
    generator: torch.Generator | None,
) -> None:
    def draw(epoch: int) -> list[int]:
        sampler = WeightedRandomSampler([1.0] * 10 + [0.0] * 40, 64, generator=generator)
        torch.randn(7)  # whatever a rank drew before
        return [int(index) for index in source(DataLoader(dataset(), 16, sampler=sampler)).order(0, epoch)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert len(draw(1)) == 64
    assert max(draw(1)) < 10


def test_each_draw_of_a_sampler_is_used_once() -> None:
    task = make_task()
    inner, _ = datasets(task)
    sampler = WeightedRandomSampler([1.0, 2.0] * 25, 70)
    loader = DataLoader(inner, batch_size=16, sampler=sampler)

    records = train_alone(make_spec(), make_task(train=loader, model=task.model))

    assert [record.train.samples_expected for record in records] == [70, 70]
    assert all(record.train.exact for record in records)


@pytest.mark.parametrize("data_workers", [0, 2])
def test_a_loader_gives_the_curve_of_its_dataset(data_workers: int) -> None:
    def curve(**changes: Any) -> list[EpochRecord]:
        return train_alone(make_spec(), make_task(**changes))

    plain = datasets(make_task())
    train = DataLoader(plain[0], batch_size=16, shuffle=True, num_workers=data_workers)
    validation = DataLoader(plain[1], batch_size=5)

    for one, other in zip(curve(), curve(train=train, validation=validation), strict=True):
        assert one.train == other.train
        assert one.validation.loss == pytest.approx(other.validation.loss, rel=1e-6)
        assert one.validation.metrics == other.validation.metrics


@pytest.mark.parametrize("data_workers", [0, 2])
def test_a_stream_is_trained_and_its_receipt_is_checked(data_workers: int) -> None:
    train, validation = datasets(make_task())
    stream = Stream(train, 50)

    records = train_alone(
        make_spec(data_workers=data_workers), make_task(train=stream, validation=Stream(validation, 23))
    )

    assert all(record.train.exact and record.validation.exact for record in records)
    assert records[0].train.samples_seen == 50


def test_a_stream_that_is_shorter_than_it_says_is_not_exact() -> None:
    train, _ = datasets(make_task())

    class Short(Stream):
        def shard(self, shard: int, shards: int) -> Iterator[tuple[Tensor, Tensor]]:
            return itertools.islice(super().shard(shard, shards), 40)

    (record,) = train_alone(make_spec(epochs=1), make_task(train=Short(train, 50)))

    assert (record.train.samples_expected, record.train.samples_seen) == (50, 40)
    assert not record.train.exact


def test_samples_may_have_weights() -> None:
    task = make_task()
    inputs, targets = datasets(task)[0].tensors
    weights = torch.arange(50) / 10
    frozen = torch.optim.SGD(task.model.parameters(), lr=0.0)

    (record,) = train_alone(
        make_spec(epochs=1),
        make_task(train=TensorDataset(inputs, targets, weights), model=task.model, optimizer=frozen),
    )

    with torch.no_grad():
        each = torch.nn.functional.cross_entropy(task.model(inputs), targets, reduction="none").double()
    assert record.train.loss == pytest.approx(float((each * weights).sum() / weights.sum()), rel=1e-6)
    assert record.train.weight_sum == pytest.approx(float(weights.sum()))


class Doubling(DataLoader[Any]):
    """Changes each batch on its way."""

    def __iter__(self) -> Any:
        for inputs, targets in super().__iter__():
            yield inputs * 2, targets


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Doubling(dataset(), batch_size=16), "Doubling, which has an __iter__ of its own"),
        (TensorDataset(torch.zeros(0, 4), torch.zeros(0)), "train has zero samples"),
        ([], "train has zero samples"),
        (7, "map-style dataset with __len__ and __getitem__.*int"),
        (Endless(), "Endless. must have a length"),
        (Unsharded(), r"each worker would read whole; define shard\(self, shard, shards\)"),
        (DataLoader(dataset(), batch_size=4), "makes 4 samples a step over 1 .* is 16; make them equal"),
        (DataLoader(dataset(), batch_size=None), "does not batch"),
        (DataLoader(dataset(), batch_size=16, drop_last=True), "drop_last=True, which leaves out samples"),
        (
            DataLoader(
                dataset(), batch_sampler=BatchSampler(SequentialSampler(range(50)), 16, drop_last=False)
            ),
            "has a batch_sampler of its own|BatchSampler",
        ),
        (
            DataLoader(dataset(), 16, sampler=DistributedSampler(dataset(), num_replicas=2, rank=0)),
            "DistributedSampler, which pads",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(given: object, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        source(given)


def test_a_stream_whose_batches_do_not_divide_is_refused() -> None:
    with pytest.raises(TaskError, match="global_batch_size 16 is no multiple of 3"):
        source(Stream(dataset(), 50), parts=3)


def test_two_collate_functions_are_one_too_many() -> None:
    with pytest.raises(TaskError, match="set one of them"):
        source(DataLoader(dataset(), batch_size=16), collate=list)


def test_a_sampler_that_draws_what_is_not_there_is_refused() -> None:
    loader = DataLoader(dataset(), 16, sampler=[1, 2, 50])

    with pytest.raises(TaskError, match="drew 3 indices for a dataset of 50 samples"):
        source(loader).order(0, 1)


def test_a_random_sampler_with_replacement_is_respected() -> None:
    made = source(
        DataLoader(dataset(), 16, sampler=RandomSampler(dataset(), replacement=True, num_samples=80))
    )

    order = made.order(0, 1)
    assert len(order) == 80
    assert len(set(order.tolist())) < 80


def test_a_batch_that_is_no_pair_is_refused() -> None:
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        spec=make_spec(),
        task=make_task(collate=lambda samples: [samples]),
        group=SoloGroup(),
        checkpoints=NoCheckpoints(),
        reporter=RecordingReporter(),
    )

    with pytest.raises(TaskError, match="a batch must be a pair"):
        trainer.run(after_epoch=0)


@pytest.mark.parametrize("factor", [0, 2])
def test_a_collate_function_that_leaves_samples_out_or_doubles_them_is_refused(factor: int) -> None:
    trainer = Trainer(
        run_id="toy",
        attempt=1,
        spec=make_spec(),
        task=make_task(collate=lambda samples: default_collate([samples[0], *samples[1:] * factor])),
        group=SoloGroup(),
        checkpoints=NoCheckpoints(),
        reporter=RecordingReporter(),
    )

    with pytest.raises(TaskError, match=rf"made {1 + 15 * factor} targets of 16 samples"):
        trainer.run(after_epoch=0)
