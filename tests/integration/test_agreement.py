"""Ranks that built different data, or draw different samples, are told so instead of training on them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from curvewatch_workers.agreement import require_same_targets
from curvewatch_workers.errors import WorkersError
from curvewatch_workers.group import Group
from curvewatch_workers.sources import source_of
from engine_support import datasets, make_spec, make_task
from ranks_support import on_ranks, train

Sample = tuple[Tensor, Tensor]


class NoisyLabels(Dataset[Sample]):
    """Targets that are drawn anew at each look: by torch, or by a generator that only this process has."""

    def __init__(self, inner: TensorDataset, *, own: bool) -> None:
        self._inner = inner
        self._generator = np.random.default_rng() if own else None

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> Sample:
        inputs = self._inner[index][0]
        if self._generator is None:
            return inputs, torch.randint(0, 3, ())
        return inputs, torch.tensor(int(self._generator.integers(3)))


class OpenedLate(Dataset[Sample]):
    """Opens its file at the first look, which must not be in a process from which loading processes are forked."""

    def __init__(self, inner: TensorDataset) -> None:
        self._inner = inner
        self.opened = False

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> Sample:
        self.opened = True
        inputs, target = self._inner[index]
        return inputs, target


class ByRank(Sampler[int]):
    """Draws what its rank was told."""

    def __init__(self, indices: list[int]) -> None:
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)


def outcome(group: Group, **changes: Any) -> str:
    """Train; return the error, or a word for none."""
    try:
        train(group, make_spec(), make_task(**changes))
    except WorkersError as error:
        return str(error)
    return "trained"


def shuffled_by_rank(group: Group, split: str) -> str:
    task = make_task()
    inner = datasets(task)[split == "validation"]
    order = torch.randperm(len(inner), generator=torch.Generator().manual_seed(group.rank))
    return outcome(group, **{split: TensorDataset(*(tensor[order] for tensor in inner.tensors))})


@pytest.mark.parametrize("split", ["train", "validation"])
def test_data_in_another_order_on_each_rank_is_refused(split: str, tmp_path: Path) -> None:
    told = on_ranks(2, tmp_path, shuffled_by_rank, split)

    assert told[0] == told[1]
    assert f"TrainingTask.{split} is not the same on each worker" in told[0]
    assert "on rank 1 and" in told[0]


def slightly_other(group: Group) -> str:
    """Round as another processor would: regression targets of all but the last digits."""
    task = make_task()
    inputs, _ = datasets(task)[0].tensors
    up_and_down = torch.tensor([1.0, -1.0]) + group.rank * 1e-6  # of mean 0
    data = TensorDataset(inputs, inputs.sum(dim=1, keepdim=True) * up_and_down)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    changes = {"model": model, "optimizer": optimizer, "loss": torch.nn.MSELoss(), "metrics": {}}
    return outcome(group, train=data, validation=data, **changes)


def test_targets_that_differ_by_rounding_are_the_same(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, slightly_other) == ["trained"] * 2


def with_noisy_labels(group: Group, own: bool) -> str:
    torch.manual_seed(group.rank)
    return outcome(group, train=NoisyLabels(datasets(make_task())[0], own=own))


@pytest.mark.parametrize("own", [False, True])
def test_random_targets_are_not_mistaken_for_other_data(own: bool, tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, with_noisy_labels, own) == ["trained"] * 2


def broken_on_one_rank(group: Group) -> str:
    """Give rank 1 a dataset whose first look fails, as a file system may."""

    class Flaky(TensorDataset):
        looks = 0

        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            self.looks += 1
            if group.rank == 1 and self.looks == 1:
                raise OSError("try again")
            return tuple(tensor[index] for tensor in self.tensors)

    return outcome(group, train=Flaky(*datasets(make_task())[0].tensors))


def test_a_look_that_fails_is_left_to_the_first_step(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, broken_on_one_rank) == ["trained"] * 2


def looked_at(group: Group) -> tuple[bool, list[bool]]:
    """Return whether the dataset was opened in this process, and whether each generator stands where it stood."""
    task = make_task()
    data = OpenedLate(datasets(task)[0])
    source = source_of("train", data, collate=None, data_workers=1, global_batch_size=16, parts=[2])
    again = source_of(
        "train", datasets(task)[0], collate=None, data_workers=0, global_batch_size=16, parts=[2]
    )
    states = (
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        torch.get_rng_state(),
    )
    require_same_targets(group, (source, again), seed=1)
    kept = [
        states[0] == random.getstate(),
        states[1] == np.random.get_state(legacy=False)["state"]["key"].tolist(),
        torch.equal(states[2], torch.get_rng_state()),
    ]
    return data.opened, kept


def test_looking_leaves_no_trace(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, looked_at) == [(False, [True] * 3)] * 2


def with_samplers(group: Group, split: str, by_rank: list[list[int]]) -> str:
    inner = datasets(make_task())[split == "validation"]
    loader = DataLoader(inner, batch_size=8, sampler=ByRank(by_rank[group.rank]))
    return outcome(group, **{split: loader})


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("by_rank", "message"),
    [
        ([[1, 2, 3] * 16, [1, 2, 3] * 5], "draws 15 samples in epoch 1 on rank 1 and 48 on rank 0"),
        ([[1, 2, 3], [3, 2, 1]], "draws other samples in epoch 1 on rank 1 than on rank 0"),
    ],
)
def test_samplers_that_draw_differently_end_the_run(
    split: str, by_rank: list[list[int]], message: str, tmp_path: Path
) -> None:
    told = on_ranks(2, tmp_path, with_samplers, split, by_rank)

    assert told[0] == told[1]
    assert f"the ByRank of TrainingTask.{split} {message}" in told[0]


def with_a_sampler_on_one_rank(group: Group) -> str:
    inner, _ = datasets(make_task())
    return outcome(
        group, train=DataLoader(inner, batch_size=8, sampler=ByRank([1, 2])) if group.rank else inner
    )


def test_a_sampler_on_one_rank_alone_is_refused(tmp_path: Path) -> None:
    told = on_ranks(2, tmp_path, with_a_sampler_on_one_rank)

    assert all("disagree" in one for one in told)


def test_samplers_that_agree_train(tmp_path: Path) -> None:
    assert on_ranks(2, tmp_path, with_samplers, "train", [[5, 1, 7, 7]] * 2) == ["trained"] * 2


def weighted_on_one_rank(group: Group, others: int) -> str:
    """Give weights on rank 1: from the first step, or from the one after so many that have none."""
    calls = 0

    def moody(outputs: Tensor, targets: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        nonlocal calls
        calls += bool(torch.is_grad_enabled() and len(targets))
        losses = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
        return (losses, torch.ones_like(losses)) if group.rank == 1 and calls > others else losses

    return outcome(group, loss=moody)


def test_a_loss_that_gives_weights_on_one_rank_alone_is_refused_on_each(tmp_path: Path) -> None:
    told = on_ranks(2, tmp_path, weighted_on_one_rank, 1)  # the probe's

    assert told[0] == told[1]
    assert "the loss gives weights with some batches and none with others" in told[0]
