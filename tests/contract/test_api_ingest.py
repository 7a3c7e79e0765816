"""What workers tell over HTTP, and the health of the service."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from api_support import ServedApi, serve_api
from curvewatch_service.api import ingest as ingest_api
from curvewatch_service.planning import Resources
from curvewatch_service.schemas import EventList
from curvewatch_workers.series import INGEST_ERRORS, INGESTED_MESSAGES
from store_support import attempt_message, epoch_message


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ServedApi]:
    with serve_api(tmp_path) as served:
        yield served


@pytest.fixture
def run_id(api: ServedApi) -> str:
    submitted: str = api.submit().json()["run_id"]
    api.services.store.begin_submission(submitted)
    return submitted


def test_messages_are_durable_once_answered_and_count_once(api: ServedApi, run_id: str) -> None:
    messages = (attempt_message(1), epoch_message(1, run_id=run_id))
    for _ in range(3):
        answer = api.tell(run_id, *messages)
        assert (answer.status_code, answer.json()) == (200, {"control": "continue"})
    assert [record.epoch for record in api.services.store.epochs(run_id)] == [1]
    assert api.services.store.counters.value(INGESTED_MESSAGES, "epoch") == 1
    assert api.services.store.counters.value(INGEST_ERRORS) == 0


@pytest.mark.parametrize(
    ("epoch", "step", "origin"),
    [
        (0, 0, "from the beginning"),
        (3, 0, "after epoch 3"),
        (3, 40, "after step 40 of epoch 4"),
        (0, 7, "after step 7 of epoch 1"),
    ],
)
def test_an_attempt_on_another_number_of_workers_is_told_and_where_it_begins(
    api: ServedApi, run_id: str, epoch: int, step: int, origin: str
) -> None:
    second = attempt_message(2, resumed_after_epoch=epoch, world_size=3)
    second = second.model_copy(update={"resumed_after_step": step})
    for _ in range(2):  # told again, it is told once
        assert api.tell(run_id, attempt_message(1, world_size=2), second).status_code == 200

    answer = api.request("GET", f"/api/v1/runs/{run_id}/events")
    told = {event.reason: event.message for event in EventList.model_validate_json(answer.content).events}
    assert told["world_size_changed"] == "attempt 2 trains on 3 workers, the one before on 2"
    assert told["worker_restart"] == f"attempt 2 started on 3 workers, {origin}"
    reasons = [event.reason for event in api.services.store.events(run_id)]
    assert (reasons.count("world_size_changed"), reasons.count("worker_restart")) == (1, 1)


def test_an_attempt_on_as_many_workers_is_no_change(api: ServedApi, run_id: str) -> None:
    api.tell(run_id, attempt_message(1), attempt_message(2, resumed_after_epoch=1))

    reasons = [event.reason for event in api.services.store.events(run_id)]
    assert "worker_restart" in reasons
    assert "world_size_changed" not in reasons


@pytest.mark.parametrize("field", ["resumed_after_step", "resumed_after_epoch", "world_size"])
def test_an_attempt_with_a_number_below_its_least_is_refused(api: ServedApi, run_id: str, field: str) -> None:
    told = {**json.loads(attempt_message(1).model_dump_json()), field: -1}
    path = f"/api/v1/runs/{run_id}/ingest"
    content = json.dumps({"messages": [told]})
    answer = api.request("POST", path, token=api.ingest_token(run_id), content=content)
    assert answer.status_code == 422
    assert f"messages.0.attempt_started.{field}: Input should be greater than" in answer.json()["detail"]


def test_no_message_at_all_asks_for_the_control_word(api: ServedApi, run_id: str) -> None:
    assert api.tell(run_id).json() == {"control": "continue"}
    api.request("POST", f"/api/v1/runs/{run_id}/stop")
    assert api.tell(run_id).json() == {"control": "stop"}


def test_many_workers_at_the_same_time_lose_nothing(api: ServedApi, run_id: str) -> None:
    def tell(epoch: int) -> int:
        return api.tell(run_id, epoch_message(epoch, run_id=run_id)).status_code

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(tell, [*range(1, 41), *range(1, 41)])) == {200}
    assert [record.epoch for record in api.services.store.epochs(run_id)] == list(range(1, 41))


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"{}", "messages: Field required"),
        (b'{"messages": 5}', "messages: "),
        (b'{"messages": [{"kind": "dance"}]}', "dance"),
        (
            b'{"messages": [{"kind": "epoch", "record": {}}]}',
            "messages.0.epoch.record.run_id: Field required",
        ),
        (b"\xff\xfe", "Invalid JSON"),
    ],
)
def test_messages_that_cannot_be_read_are_refused_and_counted(
    api: ServedApi, run_id: str, body: bytes, part: str
) -> None:
    path = f"/api/v1/runs/{run_id}/ingest"
    answer = api.request("POST", path, token=api.ingest_token(run_id), content=body)
    assert answer.status_code == 422
    assert part in answer.json()["detail"]
    assert api.services.store.counters.value(INGEST_ERRORS) == 1


def test_a_count_beyond_every_export_is_refused_and_harms_nobody(api: ServedApi, run_id: str) -> None:
    told = json.loads(epoch_message(1, run_id=run_id).model_dump_json())
    told["record"]["gpu_memory_peak_bytes"] = [10**400, 0]
    answer = api.request(
        "POST",
        f"/api/v1/runs/{run_id}/ingest",
        token=api.ingest_token(run_id),
        content=json.dumps({"messages": [told]}),
    )
    assert answer.status_code == 422
    assert "gpu_memory_peak_bytes.0: Input should be less than or equal to 9007199254740992" in answer.text
    assert api.request("GET", "/metrics", token="").status_code == 200


def test_a_record_of_another_run_and_a_wrong_token_are_refused_and_counted(
    api: ServedApi, run_id: str
) -> None:
    assert api.tell(run_id, epoch_message(1, run_id="other")).status_code == 422
    assert api.tell(run_id, epoch_message(1, run_id=run_id), token="cwi_wrong").status_code == 401
    assert api.services.store.counters.value(INGEST_ERRORS) == 2
    assert api.services.store.epochs(run_id) == []


def test_too_much_at_once_is_refused(api: ServedApi, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_api, "MAX_BYTES", 100)
    answer = api.tell(run_id, epoch_message(1, run_id=run_id))
    assert answer.status_code == 413
    assert "the limit is 100; send fewer messages at once" in answer.json()["detail"]


def test_health_needs_no_token_and_no_cluster(api: ServedApi) -> None:
    assert api.request("GET", "/healthz", token="").json() == {"status": "ok"}
    assert api.request("GET", "/readyz", token="").json() == {"store": "ok", "cluster": "ok"}
    api.cluster.available = False
    answer = api.request("GET", "/readyz", token="")
    assert (answer.status_code, answer.json()["cluster"]) == (200, "unavailable")


def test_a_cluster_that_takes_long_to_answer_does_not_hold_the_probe_up(
    api: ServedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def late() -> Resources:
        answered.wait(20)
        return Resources(cpus=4)

    monkeypatch.setattr(api.cluster, "resources", late)
    assert api.request("GET", "/readyz", token="").json()["cluster"] == "unknown"
    answered.set()
    assert _until_ok(lambda: api.request("GET", "/readyz", token=""))


def _until_ok(ask: Callable[[], httpx.Response]) -> bool:
    """Ask until the cluster's answer is in: each question waits a little for it by itself."""
    return any(ask().json()["cluster"] == "ok" for _ in range(20))


def test_a_service_without_its_store_is_not_ready(api: ServedApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[object, int]:
        raise OSError("disk full")

    monkeypatch.setattr(api.services.store, "count", broken)
    assert api.request("GET", "/readyz", token="").status_code == 500
    assert api.request("GET", "/healthz", token="").status_code == 200
