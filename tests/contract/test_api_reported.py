"""Runs that are trained elsewhere: their trainer makes them, and its token changes hands with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api_support import ServedApi, serve_api
from curvewatch_service.runs import RunState
from store_support import attempt_message, epoch_message

RUN = "digits-cnn-abcdefgh"
REPORTED = {"name": "digits-cnn", "trained_by": "keras", "epochs": 20}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ServedApi]:
    with serve_api(tmp_path) as served:
        yield served


def put(api: ServedApi, run_id: str = RUN, **changes: Any) -> Any:
    token = changes.pop("token", None)
    return api.request("PUT", f"/api/v1/runs/{run_id}", token=token, json=REPORTED | changes)


def test_a_reported_run_is_made_once_told_and_shown_without_a_job(api: ServedApi) -> None:
    made = put(api)
    assert made.status_code == 201, made.text
    token = made.json()["ingest_token"]
    shown = api.request("GET", f"/api/v1/runs/{RUN}").json()
    assert (shown["state"], shown["name"], shown["owner"]) == ("STARTING", "digits-cnn", "ada")
    assert (shown["epochs_planned"], shown["submission_id"], shown["code_hash"]) == (20, None, "")
    assert shown["reason"] == "waits for the first word of keras"

    assert api.tell(RUN, attempt_message(1), epoch_message(1, run_id=RUN), token=token).status_code == 200
    shown = api.request("GET", f"/api/v1/runs/{RUN}").json()
    assert (shown["state"], shown["epoch"]) == ("RUNNING", 1)
    assert api.request("GET", f"/api/v1/runs/{RUN}/logs").json() == {"text": ""}
    assert not api.cluster.requests


def test_whoever_goes_on_shuts_out_the_trainer_before(api: ServedApi) -> None:
    before = put(api).json()["ingest_token"]
    again = put(api)
    assert again.status_code == 200
    assert api.tell(RUN, attempt_message(1), token=before).status_code == 401
    assert api.tell(RUN, attempt_message(2), token=again.json()["ingest_token"]).status_code == 200
    assert len(api.request("GET", "/api/v1/runs").json()["runs"]) == 1


def test_who_goes_on_may_plan_more_than_before(api: ServedApi) -> None:
    put(api, epochs=3)
    put(api, epochs=6, world_size=2)
    shown = api.request("GET", f"/api/v1/runs/{RUN}").json()
    assert shown["epochs_planned"] == 6


def test_an_id_that_is_anothers_is_refused(api: ServedApi) -> None:
    put(api)
    other = api.services.tokens.issue("eve")
    refused = put(api, token=other)
    assert refused.status_code == 409
    assert refused.json()["detail"] == (f"run '{RUN}' is another user's; report this training under a new id")
    job = api.submit().json()["run_id"]
    assert "is a job on the cluster" in put(api, job).json()["detail"]


def test_a_run_that_has_ended_is_not_taken_up_again(api: ServedApi) -> None:
    put(api)
    api.services.store.transition(RUN, RunState.LOST, expected=set(RunState), reason="gone", message="gone")
    refused = put(api)
    assert refused.status_code == 409
    assert "has ended, LOST: gone" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("run_id", "changes"),
    [
        ("Digits", {}),
        ("a" * 81, {}),
        ("..%2Fetc", {}),
        (RUN, {"name": "a b"}),
        (RUN, {"trained_by": "Keras 3"}),
        (RUN, {"epochs": 0}),
        (RUN, {"owner": "eve"}),
    ],
)
def test_what_cannot_be_a_run_is_refused(api: ServedApi, run_id: str, changes: dict[str, Any]) -> None:
    assert put(api, run_id, **changes).status_code in (404, 405, 422)
    assert api.request("GET", "/api/v1/runs").json()["total"] == 0


def test_only_a_user_makes_a_run(api: ServedApi) -> None:
    assert put(api, token="").status_code == 401
    assert put(api, token="cw_wrong").status_code == 401


def test_a_job_file_that_says_it_is_trained_elsewhere_is_refused(api: ServedApi) -> None:
    spec = {"name": "a", "code": {"trained_by": "keras"}, "training": {"epochs": 1, "global_batch_size": 1}}
    refused = api.submit(spec)
    assert refused.status_code == 422
    assert "code.trained_by" in refused.text
    assert "a job names its code" in refused.text


def test_a_lost_trainer_that_is_back_trains_on_and_its_curve_is_whole(api: ServedApi) -> None:
    token = put(api).json()["ingest_token"]
    api.tell(RUN, attempt_message(1), epoch_message(1, run_id=RUN), token=token)
    api.services.store.transition(
        RUN, RunState.LOST, expected=set(RunState), reason="silent", message="silent"
    )
    answer = api.tell(RUN, epoch_message(2, run_id=RUN), token=token)
    assert answer.json() == {"control": "continue"}
    assert [one["epoch"] for one in api.request("GET", f"/api/v1/runs/{RUN}/epochs").json()["epochs"]] == [
        1,
        2,
    ]


def test_a_stop_is_told_to_the_trainer(api: ServedApi) -> None:
    token = put(api).json()["ingest_token"]
    api.tell(RUN, attempt_message(1), token=token)
    assert api.request("POST", f"/api/v1/runs/{RUN}/stop").json()["state"] == "STOPPING"
    assert api.tell(RUN, token=token).json() == {"control": "stop"}


def test_the_page_shows_what_trains_it(api: ServedApi) -> None:
    token = put(api).json()["ingest_token"]
    api.tell(RUN, attempt_message(1), epoch_message(1, run_id=RUN), token=token)
    page = api.request("GET", f"/runs/{RUN}").text
    assert "Trained by</dt><dd><code>keras</code>" in page
    assert "Job file" not in page
    assert "Ray job" not in page


def test_a_training_without_an_end_has_no_planned_epochs_anywhere(api: ServedApi) -> None:
    token = put(api, epochs=None).json()["ingest_token"]
    api.tell(RUN, attempt_message(1), epoch_message(1, run_id=RUN), token=token)

    shown = api.request("GET", f"/api/v1/runs/{RUN}").json()
    assert (shown["epochs_planned"], shown["epoch"]) == (None, 1)
    assert "1000000" not in api.request("GET", f"/runs/{RUN}").text
    assert "1000000" not in api.request("GET", "/").text
    metrics = api.request("GET", "/metrics").text
    assert f'curvewatch_epoch{{run="digits-cnn",run_id="{RUN}"}} 1.0' in metrics
    assert f'curvewatch_epochs_planned{{run="digits-cnn",run_id="{RUN}"}}' not in metrics
