from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from curvewatch_workers.errors import TaskError, UserCodeError
from curvewatch_workers.meter import EpochMeter
from curvewatch_workers.metrics import F1, Accuracy, MeanAbsoluteError
from curvewatch_workers.task import check_task, load_task
from curvewatch_workers.testing import train_alone
from engine_support import make_spec, make_task

USERS_FILE = """
from engine_support import make_task

NOT_CALLABLE = 3

def build(width=3):
    return make_task()

def build_broken():
    values = []
    return values[7]

def build_nothing():
    return None
"""


@pytest.fixture
def users_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users_job.py").write_text(USERS_FILE)
    (tmp_path / "users_syntax.py").write_text("def build(:\n")
    (tmp_path / "users_import.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("users_job", "users_syntax", "users_import"):
        sys.modules.pop(name, None)
    return tmp_path


def load(task: str, **params: object) -> object:
    return load_task(make_spec(code={"task": task}, params=params))


@pytest.mark.usefixtures("users_code")
def test_the_callable_is_called_with_the_params() -> None:
    assert load("users_job:build", width=5)


@pytest.mark.usefixtures("users_code")
@pytest.mark.parametrize(
    ("task", "params", "message"),
    [
        ("users_jobs:build", {}, "module 'users_jobs', which is not in the code folder"),
        ("users_job:biuld", {}, "has no such callable; it has: build, build_broken, build_nothing"),
        ("users_job:NOT_CALLABLE", {}, "no such callable"),
        ("users_job:build", {"depth": 1}, r"build\(width=3\) does not take the job's params .*depth"),
        ("users_job:build_nothing", {}, "must return a TrainingTask, it returned NoneType"),
    ],
)
def test_mistakes_are_named(task: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load(task, **params)


@pytest.mark.usefixtures("users_code")
@pytest.mark.parametrize(
    ("task", "message", "line"),
    [
        ("users_job:build_broken", r"build_broken\(\) raised IndexError", "return values[7]"),
        ("users_syntax:build", "importing users_syntax raised SyntaxError", "def build(:"),
        (
            "users_import:build",
            "importing users_import raised ModuleNotFoundError.*no_such_library",
            "import no_such",
        ),
    ],
)
def test_what_the_users_code_raises_keeps_its_traceback_without_our_frames(
    task: str, message: str, line: str
) -> None:
    with pytest.raises(UserCodeError, match=message) as raised:
        load(task)

    assert line in raised.value.traceback_text
    assert "curvewatch_workers" not in raised.value.traceback_text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters())}, "parameters that are not the model's"),
        ({"optimizer": "sgd", "model": nn.Linear(4, 3)}, "must be a torch optimizer, got str"),
        ({"metrics": {"top 5": None}}, "metric name 'top 5'"),
        ({"loss": "mse"}, "must be callable, got str"),
        ({"loss": None}, r"TrainingTask.loss is None.*nn.CrossEntropyLoss\(\)"),
        ({"loss": [nn.MSELoss(), nn.L1Loss()]}, "must be callable, got list.*adds them up"),
        ({"loss": nn.MSELoss}, r"TrainingTask.loss is the class MSELoss.*write MSELoss\(...\)"),
    ],
)
def test_tasks_that_cannot_be_trained_exactly_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        check_task(make_task(**changes), "toy:build")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": MeanAbsoluteError()}, "named 'loss'.*another name"),
        ({"f1": F1(3, average=None), "f1_0": Accuracy()}, "two metrics give a number named 'f1_0'.*rename"),
        ({"accuracy": Accuracy}, r"'accuracy' is the class Accuracy.*write Accuracy\(...\)"),
        ({"accuracy": 3}, "'accuracy' must be a metric.*got int"),
        ([Accuracy()], "must be a dict of metrics by name, got list"),
        (nn.ModuleDict({"one": nn.Identity()}), r"got ModuleDict; write dict\(collection.items\(\)\)"),
    ],
)
def test_metrics_that_would_not_be_told_apart_are_refused(metrics: Any, message: str) -> None:
    for take in (
        lambda: check_task(make_task(metrics=metrics), "toy:build"),
        lambda: EpochMeter(train_samples=1, validation_samples=1, metrics=metrics),
        lambda: train_alone(make_spec(), make_task(metrics=metrics)),
    ):
        with pytest.raises(TaskError, match=message):
            take()


def test_a_task_that_is_right_passes() -> None:
    check_task(make_task(), "toy:build")


def test_schedules_that_would_not_do_what_they_say_are_refused() -> None:
    model = nn.Linear(4, 3)
    optimizer, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    for changes, message in (
        ({"scheduler_step": "batch"}, "must be 'epoch' or 'step', got 'batch'"),
        ({"scheduler": StepLR(other, 1)}, "moves another optimizer"),
        ({"scheduler": ReduceLROnPlateau(optimizer), "scheduler_step": "step"}, "known once an epoch"),
    ):
        with pytest.raises(TaskError, match=message):
            check_task(make_task(model=model, optimizer=optimizer, **changes), "toy:build")


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(TaskError, match="nothing to train"):
        check_task(make_task(model=model, optimizer=torch.optim.SGD(model.parameters())), "toy:build")


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()


@pytest.mark.parametrize("make", [torch.optim.LBFGS, NeedsClosure])
def test_optimizers_that_call_the_loss_themselves_are_refused(make: Any) -> None:
    model = nn.Linear(4, 3)
    optimizer = make(model.parameters(), lr=0.1)

    with pytest.raises(TaskError, match=rf"{make.__name__} needs a closure.*SGD"):
        check_task(make_task(model=model, optimizer=optimizer), "toy:build")


def test_a_plateau_of_what_should_rise_is_refused() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ReduceLROnPlateau(optimizer, mode="max")

    with pytest.raises(TaskError, match=r"mode='max'.*validation loss.*mode='min'"):
        check_task(make_task(model=model, optimizer=optimizer, scheduler=scheduler), "toy:build")


@pytest.mark.parametrize("scheduled", [False, True])
def test_rates_may_be_tensors_and_differ_by_group(scheduled: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    groups = [
        {"params": model[0].parameters(), "lr": torch.tensor(0.25)},
        {"params": model[2].parameters(), "lr": torch.tensor(0.5)},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scheduler = StepLR(optimizer, 1, gamma=0.5) if scheduled else None
    task = make_task(model=model, optimizer=optimizer, scheduler=scheduler)
    check_task(task, "toy:build")

    records = train_alone(make_spec(), task)

    assert [record.learning_rate for record in records] == ([0.25, 0.125] if scheduled else [0.25, 0.25])
