"""The examples of a regression and of a language model: their numbers computed another way."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import TensorDataset

from curvewatch_workers.contract import EpochRecord, read_job_spec
from curvewatch_workers.diagnosis import Curve, Verdict, diagnose
from curvewatch_workers.task import TrainingTask, load_entry
from curvewatch_workers.testing import train_alone
from language_support import BATCH, EPOCHS, SMALL, language_task, require_numbers_of_one_process, small_job

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


def test_the_language_model_is_weighed_by_token(project_root: Path) -> None:
    task = language_task(project_root, **SMALL)
    untrained = copy.deepcopy(task.model)
    records = train_alone(small_job(), task)

    require_numbers_of_one_process(records[-1].validation, task.model, task.validation)
    assert records[-1].validation.loss < records[0].validation.loss < 5
    # In one step, the train loss is that of the weights before it.
    whole = small_job().model_copy(
        update={"training": small_job().training.model_copy(update={"global_batch_size": 1000, "epochs": 1})}
    )
    task = language_task(project_root, **SMALL)
    (only,) = train_alone(whole, task)
    require_numbers_of_one_process(only.train, untrained, task.train)


def test_the_language_models_rate_warms_up_and_falls_until_the_last_step(project_root: Path) -> None:
    task = language_task(project_root, **SMALL)
    peak = 3e-3
    rates = []
    for _ in range(EPOCHS * math.ceil(len(cast("TensorDataset", task.train)) / BATCH)):
        rates.append(task.optimizer.param_groups[0]["lr"])
        task.optimizer.step()
        cast("LRScheduler", task.scheduler).step()

    assert rates[:5] == pytest.approx([peak / 4, peak / 2, 3 * peak / 4, peak, peak])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] > task.optimizer.param_groups[0]["lr"] == pytest.approx(peak / 10)


@pytest.mark.parametrize("job", ["job.yaml", "gpu.yaml"])
def test_the_language_models_schedule_is_that_of_its_jobs(project_root: Path, job: str) -> None:
    spec = read_job_spec(project_root / "examples" / "char_lm" / job)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(project_root / "examples" / "char_lm"))
        defaults = inspect.signature(load_entry(spec)).parameters
        sys.modules.pop("char_lm")

    for name in ("epochs", "global_batch_size"):
        assert spec.params.get(name, defaults[name].default) == getattr(spec.training, name)
