"""Remote write: the request byte by byte, and what is tried again, settled and given up after each answer."""

from __future__ import annotations

import math
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cramjam
import pytest

from curvewatch_service import history_sink, outbox, server
from curvewatch_service.errors import BadRequestError, SettingsError
from curvewatch_service.history_sink import LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS, HistorySink
from curvewatch_service.remote_write import Receiver, RefusedError, UndeliveredError, encode
from curvewatch_service.samples import Sample
from curvewatch_service.scrape import scraping
from curvewatch_service.settings import Settings, load_settings
from curvewatch_service.store import Store
from curvewatch_workers.contract import EpochFinished
from curvewatch_workers.series import (
    HISTORY_EPOCH,
    HISTORY_LOSS,
    REMOTE_WRITE_EPOCHS,
    REMOTE_WRITE_FAILURES,
)
from store_support import START, database_url, epoch_message, new_run, record

Answer = tuple[int, str, dict[str, str]]
"""Status, text and headers."""
RUN = {"run_id": "digits-1", "run": "digits"}


@dataclass
class Answering:
    """A server that answers remote writes as it is told to, one answer after the other, the last for good."""

    url: str
    answers: list[Answer]
    headers: list[dict[str, str]] = field(default_factory=list)
    """Of each request, names in lower case."""
    epochs: list[list[int]] = field(default_factory=list)
    """The epochs of each request."""
    refused: set[int] = field(default_factory=set)
    """Epochs for which a request that has one is answered with 400."""


@contextmanager
def answering(*answers: Answer) -> Iterator[Answering]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.headers.append({name.lower(): value for name, value in self.headers.items()})
            epochs = [
                int(value)
                for labels, points in decoded(body)
                if ("__name__", HISTORY_EPOCH.name) in labels
                for _, value in points
            ]
            told.epochs.append(epochs)
            status, text, headers = told.answers.pop(0) if len(told.answers) > 1 else told.answers[0]
            if told.refused & set(epochs):
                status, text = 400, "out of bounds"
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = Answering(f"http://127.0.0.1:{http.server_port}/write", list(answers))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield told
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def decoded(body: bytes) -> list[tuple[list[tuple[str, str]], list[tuple[int, float]]]]:
    """Read a request by the rules of protobuf's wire format: its series, each with labels and points."""
    series = []
    for number, content in _fields(bytes(cramjam.snappy.decompress_raw(body))):
        assert number == 1
        labels, points = [], []
        for part, packed in _fields(content):
            values = dict(_fields(packed))
            if part == 1:
                labels.append((values[1].decode(), values[2].decode()))
            else:
                assert part == 2
                (value,) = struct.unpack("<d", values.get(1, bytes(8)))
                points.append((int.from_bytes(values.get(2, b""), "little", signed=True), value))
        series.append((labels, points))
    return series


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value.to_bytes(8, "little")
            case 1:
                yield key >> 3, message[at : at + 8]
                at += 8
            case 2:
                length, at = _varint(message, at)
                yield key >> 3, message[at : at + length]
                at += length
            case other:
                pytest.fail(f"wire type {other}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


OK: Answer = (204, "", {})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path), to_outbox=True)
    yield opened
    opened.close()


def _ingest(store: Store, epochs: int, run_id: str = "digits-1") -> None:
    new_run(store, run_id)
    store.ingest(run_id, [epoch_message(epoch, run_id=run_id) for epoch in range(1, epochs + 1)])


def _pending(store: Store) -> int:
    with scraping(store) as scrape:
        return scrape.pending_epochs()


def _counts(store: Store) -> dict[str, int]:
    counted = {outcome: store.counters.value(REMOTE_WRITE_EPOCHS, outcome) for outcome in ("sent", "refused")}
    return {**counted, "failures": store.counters.value(REMOTE_WRITE_FAILURES), "pending": _pending(store)}


def _sink(store: Store, url: str, token_path: Path | None = None) -> HistorySink:
    return HistorySink(store, Receiver(url, token_path=token_path), cluster="lab")


def test_a_request_has_each_series_once_with_sorted_labels_and_its_points_in_order() -> None:
    empty = {"split": "train", **RUN, "metric": ""}
    samples = [
        (-5, Sample(HISTORY_LOSS, 0.1, empty)),
        (0, Sample(HISTORY_EPOCH, 0.0, {"run_id": "digits-1", "run": 'é"\\'})),
        (1_767_225_600_123, Sample(HISTORY_LOSS, math.nan, empty)),
        (1_767_225_600_124, Sample(HISTORY_LOSS, -math.inf, empty)),
    ]
    (of_loss, losses), (of_epoch, epochs) = decoded(encode(samples))
    assert of_loss == [
        ("__name__", "curvewatch_history_loss"),
        ("run", "digits"),
        ("run_id", "digits-1"),
        ("split", "train"),
    ]
    assert of_epoch == [("__name__", "curvewatch_history_epoch"), ("run", 'é"\\'), ("run_id", "digits-1")]
    assert epochs == [(0, 0.0)]
    assert [time for time, _ in losses] == [-5, 1_767_225_600_123, 1_767_225_600_124]
    assert losses[0][1] == 0.1
    assert math.isnan(losses[1][1])
    assert losses[2][1] == -math.inf


def test_a_request_says_what_it_is_and_who_sends_it_with_the_token_of_now(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    with answering(OK) as told:
        receiver = Receiver(told.url, token_path=token)
        receiver.send(encode([]))
        token.write_text("second\n")
        receiver.send(encode([]))
        token.write_bytes("zündschlüssel".encode("latin-1"))
        with pytest.raises(UndeliveredError, match="other characters than ASCII"):
            receiver.send(encode([]))
        token.unlink()
        with pytest.raises(UndeliveredError, match="No such file"):
            receiver.send(encode([]))
        receiver.close()
        Receiver(told.url).send(encode([]))
    first, second, without = told.headers
    assert (first["authorization"], second["authorization"]) == ("Bearer first", "Bearer second")
    assert "authorization" not in without
    assert first["content-type"] == "application/x-protobuf"
    assert first["content-encoding"] == "snappy"
    assert first["x-prometheus-remote-write-version"] == "0.1.0"
    assert first["user-agent"].startswith("curvewatch/")


@pytest.mark.parametrize("status", [400, 409, 413, 422])
def test_an_answer_about_the_samples_is_final(status: int) -> None:
    why = f"^HTTP {status}: out of bounds$"
    with (
        answering((status, "out of bounds\nmore", {})) as told,
        pytest.raises(RefusedError, match=why) as refused,
    ):
        Receiver(told.url).send(encode([]))
    assert not refused.value.passed


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("out of order sample", True),
        ("series is not ordered (err-mimir-sample-out-of-order)", True),
        ("out of bounds", False),
        ("too old sample", False),
        ("duplicate sample for timestamp", False),
        ("", False),
    ],
)
def test_only_out_of_order_says_that_the_receiver_has_a_later_sample(text: str, passed: bool) -> None:
    with answering((400, text, {})) as told, pytest.raises(RefusedError) as refused:
        Receiver(told.url).send(encode([]))
    assert refused.value.passed is passed


@pytest.mark.parametrize("status", [302, 401, 403, 404, 408, 429, 500, 502, 503])
def test_an_answer_about_anything_else_is_not(status: int) -> None:
    with (
        answering((status, "", {})) as told,
        pytest.raises(UndeliveredError, match=f"HTTP {status}") as failed,
    ):
        Receiver(told.url).send(encode([]))
    assert failed.value.retry_after_seconds == 0


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("7", 7, 7),
        ("in an hour", 3000, 3600),
        ("an hour ago", 0, 0),
        ("soon", 0, 0),
        ("nan", 0, 0),
        ("-3", 0, 0),
    ],
)
def test_a_receiver_may_ask_to_be_left_alone_for_some_seconds_or_until_a_date(
    asked: str, least: float, most: float
) -> None:
    hours = {"in an hour": 1, "an hour ago": -1}.get(asked)
    if hours is not None:
        asked = format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)
    with answering((429, "busy", {"Retry-After": asked})) as told, pytest.raises(UndeliveredError) as failed:
        Receiver(told.url).send(encode([]))
    assert least <= failed.value.retry_after_seconds <= most


def test_pauses_grow_with_each_failure_are_what_the_receiver_asks_for_and_begin_anew(store: Store) -> None:
    _ingest(store, 3)
    failing: list[Answer] = [(503, "starting", {})] * 9
    with answering(*failing, (429, "busy", {"Retry-After": "100"}), OK) as told:
        sink = _sink(store, told.url)
        pauses = [sink.step() for _ in failing]
        for number, pause in enumerate(pauses):
            longest = min(SHORTEST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS)
            assert longest / 2 <= pause <= longest
        assert sink.step() == 100
        assert _counts(store) == {"sent": 0, "refused": 0, "failures": 10, "pending": 3}
        sink.step()
        assert _counts(store) == {"sent": 3, "refused": 0, "failures": 10, "pending": 0}
        told.answers[:] = [(500, "", {})]
        store.ingest("digits-1", [epoch_message(4)])
        assert sink.step() <= SHORTEST_PAUSE_SECONDS
    assert told.epochs == [[1, 2, 3]] * 11 + [[4]]


def test_epochs_that_are_refused_cost_no_other_of_their_request(store: Store) -> None:
    _ingest(store, 9)
    _ingest(store, 2, "other-1")
    with answering(OK) as told:
        told.refused = {3, 4, 9}
        _sink(store, told.url).step()
    assert _counts(store) == {"sent": 8, "refused": 3, "failures": 0, "pending": 0}
    taken = sorted(epoch for epochs in told.epochs if not told.refused & set(epochs) for epoch in epochs)
    assert taken == [1, 1, 2, 2, 5, 6, 7, 8]
    (event,) = [one for one in store.events("digits-1") if one.reason == "history_refused"]
    assert "epoch 3 (HTTP 400: out of bounds)" in event.message
    assert all(one.reason != "history_refused" for one in store.events("other-1"))


def test_a_failure_in_the_middle_keeps_what_is_not_settled_and_nothing_else(store: Store) -> None:
    _ingest(store, 4)
    refusal: Answer = (400, "out of bounds", {})
    with answering(refusal, OK, refusal, refusal, (503, "", {}), OK) as told:
        sink = _sink(store, told.url)
        sink.step()
        assert _counts(store) == {"sent": 2, "refused": 1, "failures": 1, "pending": 1}
        sink.step()
        assert _counts(store) == {"sent": 3, "refused": 1, "failures": 1, "pending": 0}
    assert told.epochs == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4], [4]]


def test_a_request_has_a_bounded_number_of_epochs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_sink, "BATCH_EPOCHS", 4)
    _ingest(store, 9)
    with answering(OK) as told:
        sink = _sink(store, told.url)
        assert [sink.step(), sink.step(), sink.step()] == [0, 0, history_sink.LOOK_SECONDS]
    assert told.epochs == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_the_end_sends_what_waits_and_one_failure_ends_it(store: Store) -> None:
    _ingest(store, 3)
    with answering((503, "", {"Retry-After": "500"}), OK) as told:
        sink = _sink(store, told.url)
        sink.start()
        while not told.epochs:
            threading.Event().wait(0.01)
        sink.stop(seconds=10)
        assert _counts(store) == {"sent": 3, "refused": 0, "failures": 1, "pending": 0}
        told.answers[:] = [(503, "", {})]
        store.ingest("digits-1", [epoch_message(4)])
        again = _sink(store, told.url)
        again.start()
        again.stop(seconds=10)
        assert _counts(store)["pending"] == 1
        assert len(told.epochs) <= 4


def test_times_rise_within_a_run_whatever_the_clocks_of_its_machines_say(store: Store) -> None:
    new_run(store)
    seconds = [0.0, 0.0, 0.0004, -5.0, 1.0]
    records = [
        record(epoch).model_copy(
            update={
                "started_at": START - timedelta(hours=1),
                "finished_at": START + timedelta(seconds=second),
            }
        )
        for epoch, second in enumerate(seconds, start=1)
    ]
    store.ingest("digits-1", [EpochFinished(record=one) for one in records[:2]])
    with answering(OK) as told:
        sink = _sink(store, told.url)
        sink.step()
        store.ingest("digits-1", [EpochFinished(record=one) for one in records[2:]])
        with store.read() as session:
            sent = [epoch.millisecond for epoch in outbox.pending(session, most=10)]
    start = round(START.timestamp() * 1000)
    assert sent == [start + 2, start + 3, start + 1000]


def test_an_epoch_waits_once_however_often_it_is_told_and_only_where_it_is_to_be_sent(
    store: Store, tmp_path: Path
) -> None:
    _ingest(store, 2)
    store.ingest("digits-1", [epoch_message(2), epoch_message(2, attempt=2)])
    assert _pending(store) == 3
    silent = Store(database_url(tmp_path / "silent"))
    _ingest(silent, 2)
    assert _pending(silent) == 0
    silent.close()


def test_an_epoch_that_is_not_stored_does_not_wait_either(store: Store) -> None:
    new_run(store)
    with pytest.raises(BadRequestError):
        store.ingest("digits-1", [epoch_message(1), epoch_message(2, run_id="other-1")])
    assert (store.epochs("digits-1"), _pending(store)) == ([], 0)


def test_without_what_it_needs_the_service_says_what_to_install(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cramjam", None)
    for name in ("remote_write", "history_sink"):
        monkeypatch.delitem(sys.modules, f"curvewatch_service.{name}")
    settings = Settings(data_dir=tmp_path, remote_write_url="http://127.0.0.1:9090/api/v1/write")
    with pytest.raises(SettingsError, match=r"needs the package cramjam.*curvewatch\[remote-write\]"):
        server._open_sink(settings, store)
    assert server._open_sink(Settings(data_dir=tmp_path), store) is None


def test_a_token_that_cannot_be_read_or_an_address_that_is_none_is_told_at_the_start(
    store: Store, tmp_path: Path
) -> None:
    url = "http://127.0.0.1:9090/api/v1/write"
    missing = Settings(data_dir=tmp_path, remote_write_url=url, remote_write_token_path=tmp_path / "token")
    with pytest.raises(SettingsError, match=r"token file .*/token .* cannot be read \(No such file"):
        server._open_sink(missing, store)
    for address in ("http://user:secret@host:port/write", "http:///secret/write", "https://"):
        wrong = Settings(data_dir=tmp_path, remote_write_url=address)
        with pytest.raises(SettingsError, match="CURVEWATCH_REMOTE_WRITE_URL is no URL") as told:
            server._open_sink(wrong, store)
        assert "secret" not in str(told.value)


def test_an_address_without_its_scheme_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVEWATCH_REMOTE_WRITE_URL", "user:secret@prometheus:9090/api/v1/write")
    with pytest.raises(SettingsError, match="CURVEWATCH_REMOTE_WRITE_URL: must start with http://") as told:
        load_settings()
    assert "secret" not in str(told.value)
