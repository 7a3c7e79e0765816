"""`curvewatch replay` against the real API: what a policy would have done on runs that the service has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_support import ServedApi, job_fields, serve_api
from cli_support import Shell
from curvewatch_service.planning import Resources
from curvewatch_service.profile import write_profile
from curvewatch_workers.contract import EpochFinished, EpochRecord, Profile
from record_support import make_record
from store_support import attempt_message

EPOCHS = 30
BEST = 8
OVERFITS = [(0.9 * 0.75**n, 0.55 + 0.4 * 0.6**n + max(0, n - 7) * 0.05) for n in range(EPOCHS)]
GOOD = [(0.1 + 0.9 * 0.8**n, 0.12 + 0.9 * 0.8**n) for n in range(EPOCHS)]
COMES_APART = [(0.3 + 0.7 * 0.7**n if n < 10 else 2.0 ** (n - 8),) * 2 for n in range(EPOCHS)]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ServedApi]:
    with serve_api(tmp_path / "data") as served:
        served.cluster.total = Resources(cpus=4, gpus=2)
        yield served


def told(
    api: ServedApi, name: str, losses: list[tuple[float, float]], *, gpus: int = 1
) -> tuple[str, list[EpochRecord]]:
    """Submit a run and tell its epochs of ten seconds on two workers; return its id and records."""
    fields = job_fields(
        name=name,
        training={"epochs": EPOCHS, "global_batch_size": 32},
        scaling={"workers": 2, "gpus_per_worker": gpus},
    )
    run_id = str(api.submit(fields).json()["run_id"])
    records = [
        make_record(
            run_id=run_id,
            epoch=epoch,
            train_loss=train,
            validation_loss=validation,
            accuracy=0.9 - 0.02 * max(0, epoch - BEST),
            world_size=2,
            seconds=10.0,
        )
        for epoch, (train, validation) in enumerate(losses, 1)
    ]
    answer = api.tell(run_id, attempt_message(1), *(EpochFinished(record=record) for record in records))
    assert answer.status_code == 200, answer.text
    return run_id, records


def policy_file(folder: Path, text: str) -> Path:
    path = folder / "p.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def shell(
    api: ServedApi, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    monkeypatch.setenv("CURVEWATCH_PROFILE", str(tmp_path / "profile.json"))
    monkeypatch.setenv("COLUMNS", "200")
    write_profile(Profile(server=api.url, token=api.token))
    return Shell(capsys, monkeypatch)


def answers(shell: Shell, *arguments: str | Path) -> dict[str, dict[str, Any]]:
    result = shell("replay", *arguments, "--json")
    assert result.code == 0, result.err
    return {answer["name"]: answer for answer in map(json.loads, result.out.splitlines())}


def test_what_a_stop_would_have_saved_and_cost(api: ServedApi, shell: Shell, tmp_path: Path) -> None:
    _, records = told(api, "overfits", OVERFITS)
    told(api, "good", GOOD)
    policy = policy_file(tmp_path, "policy: {overfitting: stop, diverging: rescue, plateau: stop}\n")

    found = answers(shell, "--policy", policy)

    assert found["good"]["deed"] is None
    one = found["overfits"]
    assert one["deed"] == "stop"
    assert BEST < one["epoch"] < EPOCHS
    assert one["savings"] == {
        "epochs": EPOCHS - one["epoch"],
        "seconds": pytest.approx(10.0 * (EPOCHS - one["epoch"])),
        "gpu_hours": pytest.approx(2 * 10.0 * (EPOCHS - one["epoch"]) / 3600),
        "loss": 0.0,
    }
    assert min(record.validation.loss for record in records) == records[BEST - 1].validation.loss


def test_what_a_person_reads(api: ServedApi, shell: Shell, tmp_path: Path) -> None:
    told(api, "overfits", OVERFITS)
    told(api, "comes-apart", COMES_APART, gpus=0)
    told(api, "good", GOOD)
    policy = policy_file(tmp_path, "{overfitting: stop, diverging: rescue}\n")

    result = shell("replay", "--policy", policy)

    assert result.code == 0, result.err
    lines = result.out.splitlines()
    rows = {name: next(line for line in lines if line.startswith(name)) for name in ("overfits", "good")}
    assert "stop" in rows["overfits"]
    assert "GPU-hours" in rows["overfits"]
    assert "nothing" in rows["good"]
    assert "rescue" in next(line for line in lines if line.startswith("comes-apart"))
    assert "Of 3 runs it would have ended 1 early" in lines[-1]
    assert "What would have come of 1 intervention nobody knows." in lines[-1]


def test_early_stopping_and_budgets_are_replayed_too(api: ServedApi, shell: Shell, tmp_path: Path) -> None:
    told(api, "overfits", OVERFITS)
    patient = policy_file(tmp_path, "early_stopping: {patience: 3}\n")
    assert answers(shell, "--policy", patient)["overfits"]["epoch"] == BEST + 3

    short = policy_file(tmp_path, "max_seconds: 45\n")
    one = answers(shell, "--policy", short)["overfits"]
    assert one["epoch"] == 5
    validation = [loss for _, loss in OVERFITS]
    assert one["savings"]["loss"] == pytest.approx(min(validation[:5]) - min(validation))


def test_a_run_that_ends_before_its_first_finite_loss_is_told_to_a_person_too(
    api: ServedApi, shell: Shell, tmp_path: Path
) -> None:
    told(api, "bad-start", [(float("nan"), float("nan")), *GOOD[1:]])
    policy = policy_file(tmp_path, "on_nonfinite: stop\n")

    result = shell("replay", "--policy", policy)

    assert result.code == 0, result.err
    assert "no finite loss" in result.out
    one = answers(shell, "--policy", policy)["bad-start"]
    assert (one["deed"], one["epoch"], one["savings"]["loss"]) == ("fail", 1, None)


def test_a_run_without_an_epoch_gives_nothing_to_do(api: ServedApi, shell: Shell, tmp_path: Path) -> None:
    told(api, "waits", [])

    one = answers(shell, "--policy", policy_file(tmp_path, "early_stopping: {metric: accuracy}\n"))["waits"]

    assert (one["deed"], one["problem"], one["epochs"]) == (None, None, 0)


def test_the_default_policy_does_nothing(api: ServedApi, shell: Shell, tmp_path: Path) -> None:
    told(api, "overfits", OVERFITS)

    assert answers(shell, "--policy", policy_file(tmp_path, "policy: {}\n"))["overfits"]["deed"] is None


def test_runs_may_be_named_and_a_whole_job_file_holds_a_policy(
    api: ServedApi, shell: Shell, tmp_path: Path
) -> None:
    run_id, _ = told(api, "overfits", OVERFITS)
    told(api, "good", GOOD)
    job = policy_file(tmp_path, json.dumps(job_fields(policy={"overfitting": "stop"})))

    assert list(answers(shell, run_id, "--policy", job)) == ["overfits"]
    assert answers(shell, run_id, "--policy", job)["overfits"]["deed"] == "stop"
    assert shell("replay", "no-such-run", "--policy", job).code == 2


def test_a_run_that_did_not_measure_what_a_policy_asks_for_is_told(
    api: ServedApi, shell: Shell, tmp_path: Path
) -> None:
    told(api, "good", GOOD)
    policy = policy_file(tmp_path, "early_stopping: {metric: f1, patience: 3}\n")

    problem = answers(shell, "--policy", policy)["good"]["problem"]

    assert problem == "policy.early_stopping.metric is 'f1', but the task measures: loss, accuracy"
    assert "but the task measures" in shell("replay", "--policy", policy).out


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("policy: {overfiting: stop}", "policy.overfiting: unknown field; did you mean `overfitting`?"),
        (
            "{plateau: rescue}",
            "policy.plateau: input should be 'observe', 'reduce_lr' or 'stop', got 'rescue'",
        ),
        ("policy: {}\noverfitting: stop\n", "overfitting: unknown field; known here: "),
        ("name: a\ncode: {}\npolcy: {overfitting: stop}\n", "polcy: unknown field; did you mean `policy`?"),
        ("[stop]", "must hold the policy block of a job, as in `policy: {overfitting: stop}`, but is a list"),
        ("", "must hold the policy block of a job, as in `policy: {overfitting: stop}`, but is empty"),
        ("policy: [", "p.yaml"),
        (None, "there is no such file; name a file with the policy block of a job"),
    ],
)
def test_a_bad_policy_file_is_told_in_a_sentence(
    shell: Shell, tmp_path: Path, text: str | None, problem: str
) -> None:
    path = tmp_path / "p.yaml" if text is None else policy_file(tmp_path, text)

    result = shell("replay", "--policy", path)

    assert result.code == 2
    assert problem in result.err
    assert "Traceback" not in result.err


def test_a_service_without_runs_says_so(shell: Shell, tmp_path: Path) -> None:
    result = shell("replay", "--policy", policy_file(tmp_path, "{}"))

    assert (result.code, result.out.startswith("No runs yet")) == (0, True)


def test_the_records_of_a_run_are_the_workers_own(api: ServedApi) -> None:
    run_id, records = told(api, "not-finite", [*GOOD[:2], (float("nan"), float("nan"))])

    answer = api.request("GET", f"/api/v1/runs/{run_id}/records")

    assert answer.status_code == 200
    assert [EpochRecord.model_validate(one) for one in answer.json()["records"]] == records
