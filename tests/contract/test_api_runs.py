"""The API of runs: submit, list, show, stop; and what it says to bad input."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api_support import ServedApi, job_fields, serve_api, zipped
from curvewatch_service.runs import RunState
from curvewatch_service.schemas import EpochList, EventList, LogView, Problem, RunList, RunView
from curvewatch_workers.contract import EpochFinished, RunLayout
from store_support import attempt_message, epoch_message, record, split


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ServedApi]:
    with serve_api(tmp_path, max_code_bytes=20_000, max_code_files=5) as served:
        yield served


def _submitted(api: ServedApi, **changes: object) -> RunView:
    answer = api.submit(job_fields(**changes))
    assert answer.status_code == 201, answer.text
    return RunView.model_validate_json(answer.content)


def _problem(answer: httpx.Response, status: int) -> Problem:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "Traceback" not in answer.text
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == status
    return problem


def test_a_submitted_job_waits_in_the_queue_with_its_code_and_its_ingest_token(api: ServedApi) -> None:
    run = _submitted(api, name="My.Digits_1", labels={"team": "vision"})
    assert (run.state, run.owner, run.labels) == ("QUEUED", "ada", {"team": "vision"})
    assert run.run_id.startswith("my-digits-1-")
    assert len(run.run_id) == len("my-digits-1-") + 8
    assert (api.services.settings.data_dir / "code" / f"{run.code_hash}.zip").read_bytes() == zipped()
    token = RunLayout(api.services.settings.storage_path, run.run_id).ingest_token
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert len(api.woken) == 1


def test_a_job_may_be_yaml_text_in_a_plain_field(api: ServedApi) -> None:
    text = "name: plain\ncode: {task: 'digits:build'}\ntraining: {epochs: 1, global_batch_size: 8}\n"
    files = {"spec": (None, text), "code": ("code.zip", zipped())}
    answer = api.request("POST", "/api/v1/runs", files=files)
    assert answer.status_code == 201, answer.text
    assert answer.json()["name"] == "plain"


def test_runs_are_listed_newest_first_by_page_and_by_state(api: ServedApi) -> None:
    ids = [_submitted(api, name=f"run-{number}").run_id for number in range(3)]
    api.services.store.begin_submission(ids[0])
    listed = RunList.model_validate_json(api.request("GET", "/api/v1/runs").content)
    assert ([run.run_id for run in listed.runs], listed.total) == (ids[::-1], 3)
    page = RunList.model_validate_json(api.request("GET", "/api/v1/runs?limit=1&offset=1").content)
    assert ([run.run_id for run in page.runs], page.total) == ([ids[1]], 3)
    queued = RunList.model_validate_json(api.request("GET", "/api/v1/runs?state=queued&state=FAILED").content)
    assert ([run.run_id for run in queued.runs], queued.total) == (ids[:0:-1], 2)


def test_a_run_shows_its_epochs_events_and_diagnosis(api: ServedApi) -> None:
    run_id = _submitted(api).run_id
    api.services.store.begin_submission(run_id)
    api.tell(run_id, attempt_message(1), *(epoch_message(epoch, run_id=run_id) for epoch in (1, 2)))
    run = RunView.model_validate_json(api.request("GET", f"/api/v1/runs/{run_id}").content)
    assert (run.state, run.epoch, run.world_size, run.submission_id) == ("RUNNING", 2, 2, f"{run_id}-1")
    assert run.train_loss == pytest.approx(0.501, rel=1e-12)
    assert run.diagnosis is not None
    assert (run.diagnosis.best_epoch, run.verdict) == (2, run.diagnosis.verdict)
    epochs = EpochList.model_validate_json(api.request("GET", f"/api/v1/runs/{run_id}/epochs").content).epochs
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert run.latest == epochs[-1]
    assert epochs[0].validation.metrics == {"accuracy": 0.75}
    assert epochs[0].train.receipt.model_dump() == {
        "samples_expected": 100,
        "samples_seen": 100,
        "nonfinite_samples": 0,
        "ranks": 2,
        "exact": True,
        "reported_by": None,
    }
    events = EventList.model_validate_json(api.request("GET", f"/api/v1/runs/{run_id}/events").content).events
    assert {event.reason for event in events} == {"state_queued", "state_starting", "state_running"}


def test_numbers_that_are_not_finite_are_null(api: ServedApi) -> None:
    run_id = _submitted(api).run_id
    lost = record(1, run_id=run_id, train=split(loss=0.0, nonfinite=100))
    assert api.tell(run_id, EpochFinished(record=lost)).status_code == 200
    shown = api.request("GET", f"/api/v1/runs/{run_id}").json()
    assert shown["train_loss"] is None
    assert shown["latest"]["train"]["loss"] is None
    assert shown["verdict"] == "not_finite"


def test_logs_come_from_the_cluster_once_the_run_was_given_to_it(api: ServedApi) -> None:
    run_id = _submitted(api).run_id
    path = f"/api/v1/runs/{run_id}/logs"
    assert LogView.model_validate_json(api.request("GET", path).content).text == ""
    api.services.store.begin_submission(run_id)
    api.cluster.texts[f"{run_id}-1"] = "epoch 1 of 10\n"
    assert LogView.model_validate_json(api.request("GET", path).content).text == "epoch 1 of 10\n"
    api.cluster.available = False
    assert _problem(api.request("GET", path), 503).title == "ClusterUnavailableError"


def test_stop_ends_a_queued_run_at_once_and_a_running_one_through_its_workers(api: ServedApi) -> None:
    queued, running = _submitted(api).run_id, _submitted(api).run_id
    assert api.request("POST", f"/api/v1/runs/{queued}/stop").json()["state"] == "STOPPED"
    api.services.store.begin_submission(running)
    api.tell(running, attempt_message(1))
    for _ in range(2):
        assert api.request("POST", f"/api/v1/runs/{running}/stop").json()["state"] == "STOPPING"
    assert api.tell(running, epoch_message(1, run_id=running)).json() == {"control": "stop"}
    stops = [event.reason for event in api.services.store.events(running)]
    assert stops.count("state_stopping") == 1


def test_a_run_that_has_succeeded_cannot_be_stopped(api: ServedApi) -> None:
    run_id = _submitted(api).run_id
    api.services.store.begin_submission(run_id)
    api.services.store.transition(
        run_id, RunState.SUCCEEDED, expected={RunState.STARTING}, reason="done", message="done"
    )
    detail = _problem(api.request("POST", f"/api/v1/runs/{run_id}/stop"), 409).detail
    assert detail == f"{run_id} has ended already, SUCCEEDED: done; there is nothing to stop"


def test_every_problem_of_a_job_file_is_told_at_once(api: ServedApi) -> None:
    spec = job_fields(name="bad\x07name", scaling={"worker": 2}, training={"epochs": 0})
    problem = _problem(api.submit(spec), 422)
    assert problem.title == "SpecError"
    assert problem.detail.startswith("job.yaml: 4 problems")
    told = "\n".join(problem.problems)
    for part in (
        "name: ",
        "control characters",
        "did you mean `workers`?",
        "training.epochs",
        "global_batch_size",
    ):
        assert part in told


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("", "but is empty"),
        ("[1, 2]", "but is a list"),
        ("name: [", "neither YAML nor JSON"),
        ("name: \udcff", "not UTF-8 text"),
        ("? [a, b]\n: 1", "a key must be plain text"),
        ("name: !!bool foo", "`foo` is no bool"),
        ("name: !!int ''", "`` is no int"),
        ("name: !!timestamp x", "`x` is no timestamp"),
        (f"training: {{epochs: 0x{'f' * 6000}}}", "training.epochs: a whole number may have 1000 bits"),
        (json.dumps(job_fields(params={"a": "\ud83d"})), "params.a: holds half of a character"),
        (json.dumps(job_fields(**{"\ud83d": 1})), r"\ud83d: holds half of a character"),
    ],
)
def test_a_job_file_that_is_none_is_refused(api: ServedApi, spec: str, part: str) -> None:
    assert part in _problem(api.submit(spec), 422).detail


def test_a_job_that_never_fits_is_refused_with_the_numbers(api: ServedApi) -> None:
    problem = _problem(api.submit(job_fields(scaling={"workers": 64})), 422)
    assert problem.title == "CannotFitError"
    assert "64 CPUs, and the cluster has 4" in problem.detail
    assert api.services.store.runs() == []


def test_a_job_is_taken_while_the_cluster_is_away_and_an_event_says_so(api: ServedApi) -> None:
    api.cluster.available = False
    run = _submitted(api, scaling={"workers": 64})
    [event] = [event for event in api.services.store.events(run.run_id) if event.reason == "fit_unchecked"]
    assert "does not answer" in event.message


def test_a_misspelt_module_is_refused_with_the_closest_one(api: ServedApi) -> None:
    problem = _problem(api.submit(job_fields(code={"task": "digts:build"})), 422)
    assert problem.title == "CodeBundleError"
    assert (
        "there is no digts.py or digts/__init__.py in the code folder; did you mean 'digits'?"
        in problem.detail
    )


def test_a_submit_that_fails_leaves_no_folder_behind(api: ServedApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(api.services.store, "create_run", broken)
    assert api.submit().status_code == 500
    assert list(api.services.settings.storage_path.iterdir()) == []


def test_an_emoji_in_a_job_is_kept(api: ServedApi) -> None:
    run = _submitted(api, labels={"mood": "\U0001f600"}, params={"word": "\U0001f600"})
    assert run.labels == {"mood": "\U0001f600"}
    assert api.services.store.run(run.run_id).spec.params == {"word": "\U0001f600"}


@pytest.mark.parametrize(
    ("parts", "detail"),
    [
        ({"spec": ("job.yaml", b"{}")}, "no part `code`"),
        ({"code": ("code.zip", b"")}, "no part `spec`"),
        ({"a": b"", "b": b"", "c": b""}, "Too many files"),
    ],
)
def test_a_request_without_its_parts_is_refused(
    api: ServedApi, parts: dict[str, object], detail: str
) -> None:
    assert detail in _problem(api.request("POST", "/api/v1/runs", files=parts), 422).detail


def test_a_body_that_is_no_multipart_is_refused(api: ServedApi) -> None:
    assert "multipart/form-data" in _problem(api.request("POST", "/api/v1/runs", json={}), 422).detail
    broken = api.request(
        "POST",
        "/api/v1/runs",
        content=b"nonsense",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    _problem(broken, 422)


@pytest.mark.parametrize("size", [20_001, 3_000_000, 80_000_000])
def test_code_that_is_too_large_is_refused_with_limit_size_and_remedy(api: ServedApi, size: int) -> None:
    problem = _problem(api.submit(code=bytes(size)), 413)
    assert problem.title == "TooLargeError"
    assert "20000" in problem.detail
    assert str(size)[:2] in problem.detail
    assert "keep data and checkpoints outside" in problem.detail


def test_a_large_body_without_its_length_is_cut_off(api: ServedApi) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="code"; filename="c"\r\n\r\n'
        for _ in range(200):
            yield bytes(64 * 1024)

    answer = api.request(
        "POST",
        "/api/v1/runs",
        content=endless(),
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert _problem(answer, 413).title == "TooLargeError"


def test_a_job_file_that_is_too_large_is_refused(api: ServedApi) -> None:
    problem = _problem(api.submit("name: " + "x" * 1_000_000), 413)
    assert "the part `spec` has 1000006 bytes, the limit is 1000000" in problem.detail


def test_a_zip_bomb_and_too_many_files_are_refused(api: ServedApi) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("digits.py", bytes(1_000_000))
    assert (
        "1000000 bytes unpacked, the limit is 200000"
        in _problem(api.submit(code=bomb.getvalue()), 413).detail
    )
    many = zipped(**{f"file{number}": "" for number in range(6)})
    assert "6 files and folders, the limit is 5" in _problem(api.submit(code=many), 413).detail


def test_code_that_is_no_zip_is_refused(api: ServedApi) -> None:
    assert "no zip file" in _problem(api.submit(code=b"PK nonsense"), 422).detail


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/epochs"),
        ("GET", "/events"),
        ("GET", "/logs"),
        ("POST", "/stop"),
    ],
)
def test_an_unknown_run_is_said_to_be_unknown(api: ServedApi, method: str, path: str) -> None:
    problem = _problem(api.request(method, f"/api/v1/runs/nobody-1{path}"), 404)
    assert "there is no run 'nobody-1'" in problem.detail


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("state=DANCING", "there is no state 'DANCING'; the states are QUEUED, STARTING"),
        ("limit=0", "query.limit"),
        ("limit=many", "query.limit"),
        ("offset=-1", "query.offset"),
        (f"offset={2**64}", "query.offset"),
    ],
)
def test_a_list_that_cannot_be_is_refused_by_name(api: ServedApi, query: str, part: str) -> None:
    assert part in _problem(api.request("GET", f"/api/v1/runs?{query}"), 422).detail


def test_addresses_and_methods_that_do_not_exist_are_problems_too(api: ServedApi) -> None:
    assert _problem(api.request("GET", "/api/v1/dances"), 404).detail == "there is no GET /api/v1/dances"
    assert "is not allowed" in _problem(api.request("DELETE", "/api/v1/runs"), 405).detail


def test_an_unexpected_error_is_logged_and_shows_nothing_of_itself(
    api: ServedApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(run_id: str) -> None:
        raise RuntimeError(f"secret detail of {run_id}")

    monkeypatch.setattr(api.services.store, "snapshot", fail)
    answer = api.request("GET", "/api/v1/runs/digits-1")
    assert "secret" not in answer.text
    assert _problem(answer, 500).title == "InternalError"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    [logged] = [entry for entry in caplog.records if getattr(entry, "action", "") == "request_failed"]
    assert logged.exc_info is not None
