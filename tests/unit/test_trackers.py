"""Each tracker, read back with its own library: what it shows of a run, and of a run that started again."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import mlflow.tracking
import pytest
import wandb
from mlflow.entities import ViewType

from curvewatch_workers.contract import EpochRecord, RunLayout, WorkerJob
from curvewatch_workers.trackers.tracker import claim_key
from curvewatch_workers.trackers.wandb_tracker import has_credentials
from record_support import make_record
from tracker_support import (
    OTHERS_WARNINGS,
    TRACKERS,
    Curve,
    events,
    make_job,
    mlflow_client,
    mlflow_run,
    plain_environment,
    read_curve,
    run_attempt,
    same,
    tensorboard_settings,
    wandb_records,
)

pytestmark = OTHERS_WARNINGS


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """No tracker is configured, neither for us nor for its library."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    plain = plain_environment(tmp_path)
    for name in ("HOME", "MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, plain[name])
    return plain


def epoch(number: int, attempt: int, **changes: float) -> EpochRecord:
    """Return an epoch whose losses tell its number and its attempt."""
    loss = number + attempt / 8
    fields = {"train_loss": loss, "validation_loss": 2 * loss, "accuracy": 0.25, **changes}
    return make_record(epoch=number, attempt=attempt, seconds=3.0, **fields)  # type: ignore[arg-type]


def losses(curve: Curve) -> list[tuple[int, float]]:
    return [(number, round(values["train/loss"], 3)) for number, values in curve]


def folder_of(job: WorkerJob) -> Path:
    return RunLayout(job.storage_path, job.run_id).tracking


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_number_of_an_epoch_is_shown(tracker: str, tmp_path: Path, environment: dict[str, str]) -> None:
    job, record = make_job(tmp_path, tracker), epoch(1, 1)

    reporter = run_attempt(job, 1, environment, trained=[record])

    assert events(reporter) == []
    ((number, values),) = read_curve(tracker, job)
    assert number == 1
    expected = {
        "train/loss": 1.125,
        "train/loss_standard_error": record.train.standard_error,
        "train/nonfinite_samples": 0,
        "train/accuracy": 0.25,
        "validation/loss": 2.25,
        "validation/loss_standard_error": record.validation.standard_error,
        "validation/nonfinite_samples": 0,
        "validation/accuracy": 0.25,
        "learning_rate": 0.1,
        "gradient_norm": 1.0,
        "seconds": 3.0,
        "samples_per_second": 100.0,
        "world_size": 1,
        "attempt": 1,
    }
    assert set(values) == set(expected)
    assert all(same(values[name], value) for name, value in expected.items())


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_replayed_epoch_is_shown_once_with_the_later_attempts_value(
    tracker: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    job = make_job(tmp_path, tracker)
    first = [epoch(number, 1) for number in range(1, 6)]
    run_attempt(job, 1, environment, trained=first)
    assert losses(read_curve(tracker, job)) == [(number, number + 0.125) for number in range(1, 6)]

    second = run_attempt(
        job, 2, environment, checkpoint=first[:3], trained=[epoch(number, 2) for number in (4, 5, 6)]
    )

    curve = read_curve(tracker, job)
    assert events(second) == []
    assert losses(curve) == [(1, 1.125), (2, 2.125), (3, 3.125), (4, 4.25), (5, 5.25), (6, 6.25)]
    assert [values["attempt"] for _, values in curve] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_epochs_beyond_the_end_of_the_last_attempt_are_gone(
    tracker: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    """They went into no weights that were kept."""
    job = make_job(tmp_path, tracker)
    first = [epoch(number, 1) for number in range(1, 6)]
    run_attempt(job, 1, environment, trained=first)

    run_attempt(job, 2, environment, checkpoint=first[:2])

    assert losses(read_curve(tracker, job)) == [(1, 1.125), (2, 2.125)]


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_loss_that_is_not_finite_is_shown(
    tracker: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    job = make_job(tmp_path, tracker)

    reporter = run_attempt(
        job, 1, environment, trained=[epoch(1, 1), epoch(2, 1, train_loss=math.nan), epoch(3, 1)]
    )

    assert events(reporter) == []
    curve = read_curve(tracker, job)
    assert [math.isnan(values["train/loss"]) for _, values in curve] == [False, True, False]
    assert [values["train/nonfinite_samples"] for _, values in curve] == [0, 200, 0]


def test_params_labels_and_training_are_there_to_compare_runs_by(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    job = make_job(tmp_path, *TRACKERS)

    run_attempt(job, 1, environment, trained=[epoch(1, 1)])

    folder = folder_of(job)
    shown = tensorboard_settings(folder)
    assert (shown["params.lr"], shown["params.layers"], shown["params.nested.name"]) == (0.5, "[8, 4]", "a")
    assert (shown["labels.team"], shown["training.epochs"]) == ("vision", 2)
    assert "params.nested.dropout" not in shown  # null
    run = mlflow_run(folder)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "toy-1"
    assert run.data.params["params.lr"] == "0.5"
    assert run.data.params["training.global_batch_size"] == "16"
    assert run.data.tags["team"] == "vision"
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    (started,) = (record.run for record in wandb_records(path) if record.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert (started.project, started.display_name) == ("toy", "toy-1")
    assert config["params"] == {"lr": 0.5, "layers": [8, 4], "nested": {"dropout": None, "name": "a"}}
    assert config["labels"] == {"team": "vision"}
    kept = json.loads((folder / "job.json").read_text())
    assert kept["params"] == config["params"]
    assert kept["training"]["epochs"] == 2


def test_mlflow_keeps_the_earlier_attempt_among_what_was_deleted(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    job = make_job(tmp_path, "mlflow")
    for attempt in (1, 2):
        run_attempt(job, attempt, environment, trained=[epoch(1, attempt)])

    client, run = mlflow_client(folder_of(job)), mlflow_run(folder_of(job))

    (deleted,) = client.search_runs([run.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert deleted.data.metrics["train/loss"] == 1.125
    assert run.data.metrics["train/loss"] == 1.25


def test_runs_of_one_name_do_not_take_each_others_place(tmp_path: Path, environment: dict[str, str]) -> None:
    """Under torchrun a run is named as its job, in whatever folder; a tracking server may be one for all."""
    uri = f"sqlite:///{tmp_path / 'server.db'}"
    jobs = [make_job(tmp_path / name, "mlflow") for name in ("a", "b")]
    for job in jobs:
        run_attempt(job, 1, {**environment, "MLFLOW_TRACKING_URI": uri}, trained=[epoch(1, 1)])

    (experiment,) = (one for one in mlflow_client_of(uri).search_experiments() if one.name == "toy")

    assert len(mlflow_client_of(uri).search_runs([experiment.experiment_id])) == 2
    assert not (folder_of(jobs[0]) / "mlflow").exists()
    keys = {claim_key(folder_of(job), job.run_id) for job in jobs}
    assert len(keys) == 2
    assert len(claim_key(tmp_path, "x" * 200)) == 64


def mlflow_client_of(uri: str) -> mlflow.tracking.MlflowClient:
    return mlflow.tracking.MlflowClient(tracking_uri=uri)


def test_the_users_own_wandb_run_is_left_alone(tmp_path: Path, environment: dict[str, str]) -> None:
    users = wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True, console="off"))
    try:
        run_attempt(make_job(tmp_path, "wandb"), 1, environment, trained=[epoch(1, 1)])

        assert wandb.run is users
    finally:
        users.finish()


def test_a_table_takes_a_number_that_only_later_epochs_have(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """A task that measures more since the last start."""
    job = make_job(tmp_path, "csv")
    old = epoch(1, 1)
    plain = old.model_copy(
        update={"gradient_norm": None, "validation": old.validation.model_copy(update={"metrics": {}})}
    )

    run_attempt(job, 2, environment, checkpoint=[plain], trained=[epoch(2, 2), epoch(3, 2)])

    curve = read_curve("csv", job)
    assert [number for number, _ in curve] == [1, 2, 3]
    assert ["validation/accuracy" in values for _, values in curve] == [False, True, True]
    assert ["gradient_norm" in values for _, values in curve] == [False, True, True]


def test_odd_params_are_shown_too(tmp_path: Path, environment: dict[str, str]) -> None:
    params = {"sizes": {"a@b": 1, "c d": "caf\udce9"}, "flag": True, "empty": {}, "long": "x" * 9000}
    job = make_job(tmp_path, *TRACKERS, params=params)

    reporter = run_attempt(job, 1, environment, trained=[epoch(1, 1)])

    assert events(reporter) == []
    shown = mlflow_run(folder_of(job)).data.params
    assert (shown["params.sizes.a_b"], shown["params.flag"]) == ("1", "True")
    assert shown["params.sizes.c d"] == "caf\\udce9"
    assert shown["params.long"] == "x" * 6000


def test_a_metric_named_as_a_number_of_ours_keeps_its_place(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    job, record = make_job(tmp_path, "jsonl"), epoch(1, 1)
    metrics = {"loss": record.train.metrics["accuracy"]}
    named_loss = record.model_copy(update={"train": record.train.model_copy(update={"metrics": metrics})})

    run_attempt(job, 1, environment, trained=[named_loss])

    ((_, values),) = read_curve("jsonl", job)
    assert (values["train/loss"], values["train/metric_loss"]) == (1.125, 0.25)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, False),
        ({"WANDB_API_KEY": ""}, False),
        ({"WANDB_API_KEY": "k"}, True),
        ({"NETRC": "machine api.wandb.ai login user password k"}, True),
        ({"NETRC": "machine example.org login user password k"}, False),
        ({"NETRC": "machine w.example login user password k", "WANDB_BASE_URL": "https://w.example"}, True),
    ],
)
def test_wandb_is_online_only_where_it_finds_a_key(
    variables: dict[str, str], found: bool, tmp_path: Path, environment: dict[str, str]
) -> None:
    if "NETRC" in variables:
        (tmp_path / "netrc").write_text(variables["NETRC"])
        variables = {**variables, "NETRC": str(tmp_path / "netrc")}

    assert has_credentials({**environment, **variables}) is found
