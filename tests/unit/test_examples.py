"""The example of a regression: its verdict, and its numbers computed another way."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error
from torch.utils.data import TensorDataset

from curvewatch_workers.contract import EpochRecord, read_job_spec
from curvewatch_workers.diagnosis import Curve, Verdict, diagnose
from curvewatch_workers.task import TrainingTask
from curvewatch_workers.testing import train_alone

Trained = tuple[TrainingTask, list[EpochRecord]]


@pytest.fixture(scope="module")
def diabetes(project_root: Path) -> Trained:
    """The task with its final weights, and its epochs."""
    folder = project_root / "examples" / "diabetes"
    spec = read_job_spec(folder)
    torch.manual_seed(spec.training.seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        task: TrainingTask = importlib.import_module("diabetes").build(**spec.params)
        sys.modules.pop("diabetes")  # else later tests would take it for an installed module
    return task, train_alone(spec, task)


def test_the_diabetes_are_a_good_fit(diabetes: Trained) -> None:
    _, records = diabetes
    curve = Curve(
        train=tuple(record.train.loss for record in records),
        validation=tuple(record.validation.loss for record in records),
        metrics={"mae": tuple(record.validation.metric_values["mae"] for record in records)},
    )

    assert len(records) == 30
    assert all(record.train.exact and record.validation.exact for record in records)
    assert diagnose(curve).verdict is Verdict.GOOD_FIT


def test_loss_and_mae_are_those_of_scikit_learn_on_the_final_weights(diabetes: Trained) -> None:
    task, records = diabetes
    last = records[-1].validation
    inputs, targets = cast("TensorDataset", task.validation).tensors
    with torch.inference_mode():
        predicted = task.model.eval()(inputs)

    assert last.samples_seen == 111
    assert last.loss == pytest.approx(mean_squared_error(targets.numpy(), predicted.numpy()), rel=1e-6)
    assert last.metric_values["mae"] == pytest.approx(
        mean_absolute_error(targets.numpy(), predicted.numpy()), rel=1e-6
    )
    assert 0 < last.loss < last.metric_values["mae"]  # MSE below MAE: errors are below 1, in hundreds
