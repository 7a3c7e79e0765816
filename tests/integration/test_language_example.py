"""The example of a language model on two gloo ranks: each token weighs the same, whichever rank it is on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.group import Group
from curvewatch_workers.testing import train_alone
from language_support import SMALL, language_task, require_numbers_of_one_process, small_job
from ranks_support import on_ranks, train

Trained = tuple[list[EpochRecord], dict[str, Tensor]]


def train_the_example(group: Group, project_root: Path) -> Trained:
    task = language_task(project_root, **SMALL)
    records = train(group, small_job(), task)
    return records, task.model.state_dict()


def test_two_ranks_give_the_numbers_of_one_process(tmp_path: Path, project_root: Path) -> None:
    (records, weights), (others, _) = on_ranks(2, tmp_path, train_the_example, project_root)
    task = language_task(project_root, **SMALL)
    alone = train_alone(small_job(), language_task(project_root, **SMALL))

    assert [one.validation for one in others] == [one.validation for one in records]
    for one, two in zip(alone, records, strict=True):
        assert two.train.loss == pytest.approx(one.train.loss, rel=1e-5)
        assert two.train.weight_sum == one.train.weight_sum
        assert {share.samples for share in two.train.ranks} != {two.train.samples_seen}
    task.model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
    require_numbers_of_one_process(records[-1].validation, task.model, task.validation)
