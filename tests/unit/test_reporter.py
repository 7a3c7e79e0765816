"""The reporter against a real HTTP server that fails in the ways a service fails."""

from __future__ import annotations

import json
import logging
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from curvewatch_workers.contract import Control, EpochFinished, IngestAnswer, IngestRequest, WorkerEvent
from curvewatch_workers.reporter import HttpPost, NullReporter, SpoolingReporter, Undeliverable
from proxy_support import proxy_and_netrc
from record_support import START, make_record

MESSAGE: TypeAdapter[EpochFinished] = TypeAdapter(EpochFinished)


class Service:
    """Answers with the statuses of a script, then 200; keeps what it took."""

    def __init__(self) -> None:
        self.script: list[int] = []
        self.bodies: list[bytes] = []
        self.control = Control.CONTINUE
        self.taken: list[int] = []
        self.events: list[WorkerEvent] = []
        self.tokens: set[str | None] = set()
        self.changed = threading.Condition()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = service.script.pop(0) if service.script else 200
                answer = (
                    IngestAnswer(control=service.control).model_dump_json().encode()
                    if status == 200
                    else b"no"
                )
                with service.changed:
                    if status == 200:
                        messages = IngestRequest.model_validate_json(body).messages
                        service.taken += [m.record.epoch for m in messages if isinstance(m, EpochFinished)]
                        service.events += [m for m in messages if isinstance(m, WorkerEvent)]
                        service.tokens.add(self.headers["Authorization"])
                    service.changed.notify_all()
                if status == 200 and service.bodies:
                    answer = service.bodies.pop(0)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/ingest"

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout=20)


@pytest.fixture
def service() -> Iterator[Service]:
    one = Service()
    thread = threading.Thread(target=one.server.serve_forever, daemon=True)
    thread.start()
    yield one
    one.server.shutdown()
    one.server.server_close()


def make_reporter(spool: Path, url: str | None, flush_seconds: float = 10.0) -> SpoolingReporter:
    post = HttpPost(url, "secret") if url else None
    return SpoolingReporter(
        spool,
        post,
        poll_seconds=0.02,
        backoff_seconds=0.01,
        flush_seconds=flush_seconds,
        respool_seconds=0.02,
    )


def spooled(spool: Path) -> list[int]:
    return [MESSAGE.validate_json(line).record.epoch for line in spool.read_bytes().splitlines()]


def send(reporter: SpoolingReporter, *epochs: int) -> None:
    for epoch in epochs:
        reporter.send(EpochFinished(record=make_record(epoch=epoch)))


def test_messages_arrive_in_order_and_lie_in_the_spool(service: Service, tmp_path: Path) -> None:
    reporter = make_reporter(tmp_path / "a.jsonl", service.url)
    send(reporter, 1, 2, 3)
    reporter.close()

    assert service.taken == [1, 2, 3]
    assert service.tokens == {"Bearer secret"}
    assert spooled(tmp_path / "a.jsonl") == [1, 2, 3]


@pytest.mark.parametrize("status", [500, 503, 408, 429])
def test_passing_failures_are_tried_again(service: Service, tmp_path: Path, status: int) -> None:
    service.script = [status, status]
    reporter = make_reporter(tmp_path / "a.jsonl", service.url)
    send(reporter, 1)
    service.wait(lambda: service.taken == [1])
    send(reporter, 2)
    reporter.close()

    assert service.taken == [1, 2]


def test_a_refusal_is_final_and_the_spool_still_has_it(service: Service, tmp_path: Path) -> None:
    service.script = [401]
    reporter = make_reporter(tmp_path / "a.jsonl", service.url)
    send(reporter, 1)
    service.wait(lambda: not service.script)
    send(reporter, 2)
    reporter.close()

    assert 1 not in service.taken
    assert spooled(tmp_path / "a.jsonl") == [1, 2]


def test_a_service_that_is_away_costs_a_bounded_wait_and_loses_nothing(tmp_path: Path) -> None:
    reporter = make_reporter(tmp_path / "a.jsonl", "http://127.0.0.1:9/ingest", flush_seconds=0.3)
    send(reporter, *range(1, 51))
    reporter.close()

    assert spooled(tmp_path / "a.jsonl") == list(range(1, 51))


def test_the_control_word_is_asked_for_between_epochs(service: Service, tmp_path: Path) -> None:
    reporter = make_reporter(tmp_path / "a.jsonl", service.url)
    send(reporter, 1)
    service.wait(lambda: service.taken == [1])
    service.control = Control.STOP
    deadline = threading.Event()
    for _ in range(400):
        if reporter.control() is Control.STOP:
            break
        deadline.wait(0.02)
    assert reporter.control() is Control.STOP
    reporter.close()


def test_without_a_service_everything_is_spooled(tmp_path: Path) -> None:
    reporter = make_reporter(tmp_path / "spool" / "a.jsonl", None)
    send(reporter, 1, 2)
    reporter.close()

    assert spooled(tmp_path / "spool" / "a.jsonl") == [1, 2]
    assert reporter.control() is Control.CONTINUE


def test_a_disk_that_cannot_be_written_ends_neither_run_nor_sending(service: Service, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    link = tmp_path / "a.jsonl"
    link.symlink_to(full)
    reporter = make_reporter(link, service.url)
    send(reporter, 1)
    service.wait(lambda: service.taken == [1])
    reporter.close()


def has_full_disk(folder: Path) -> Path:
    """Return a file that takes nothing until it is replaced."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    spool = folder / "a.jsonl"
    spool.symlink_to("/dev/full")
    return spool


def test_what_a_full_disk_did_not_take_is_spooled_once_it_has_room(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = has_full_disk(tmp_path)
    reporter = make_reporter(spool, service.url)
    send(reporter, 1, 2)
    service.wait(lambda: service.taken == [1, 2] and bool(service.events))
    spool.unlink()
    deadline = time.monotonic() + 20
    while not spool.exists():  # nothing else is sent: it is tried again all the same
        assert time.monotonic() < deadline
        time.sleep(0.01)
    send(reporter, 3)
    reporter.close()

    kinds = [json.loads(line)["kind"] for line in spool.read_bytes().splitlines() if line]
    assert sorted(kinds) == ["epoch", "epoch", "epoch", "event"]
    (event,) = service.events
    assert (event.reason, event.attempt) == ("spool_not_written", 1)
    assert "No space left on device" in event.message
    assert str(spool) in event.message
    assert not any("is lost" in message for message in caplog.messages)


def test_a_disk_that_fills_within_a_line_costs_no_line(tmp_path: Path) -> None:
    spool = tmp_path / "a.jsonl"
    reporter = make_reporter(spool, None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_500, hard))
    try:
        send(reporter, *range(1, 101))
        deadline = time.monotonic() + 20
        # Until a write has failed: one that came after the limit is lifted would find room.
        while not reporter._full:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    reporter.close()

    told = [json.loads(line) for line in spool.read_bytes().splitlines()]
    assert [one["record"]["epoch"] for one in told if one["kind"] == "epoch"] == list(range(1, 101))
    assert [one["reason"] for one in told if one["kind"] == "event"] == ["spool_not_written"]


def test_a_message_that_cannot_be_written_costs_itself_only(tmp_path: Path) -> None:
    reporter = make_reporter(tmp_path / "a.jsonl", None)
    half_a_character = WorkerEvent(attempt=1, time=START, reason="odd", message="x").model_copy(
        update={"message": "\udce9"}
    )
    reporter.send(half_a_character)
    send(reporter, 1)
    reporter.close()

    assert spooled(tmp_path / "a.jsonl") == [1]


def test_the_other_ranks_report_nowhere() -> None:
    reporter = NullReporter()
    reporter.send(EpochFinished(record=make_record()))
    reporter.close()

    assert reporter.control() is Control.CONTINUE


def test_hours_of_failures_end_neither_thread_nor_spool(tmp_path: Path) -> None:
    """Once the pause grew until it was no number any more, and took the thread with it."""
    enough = threading.Event()
    attempts = 0

    def away(_messages: object) -> Control:
        nonlocal attempts
        attempts += 1
        if attempts > 1100:
            enough.set()
        raise Undeliverable("away")

    reporter = SpoolingReporter(
        tmp_path / "a.jsonl", away, poll_seconds=0.0, backoff_seconds=0.0, flush_seconds=0.2
    )
    send(reporter, 1)
    assert enough.wait(30)
    send(reporter, 2, 3)
    reporter.close()

    assert spooled(tmp_path / "a.jsonl") == [1, 2, 3]


def test_an_answer_that_is_none_of_ours_is_tried_again(service: Service, tmp_path: Path) -> None:
    """A proxy's sign-in page comes with status 200."""
    service.bodies = [b"<html>sign in</html>", b'{"control": "dance"}']
    reporter = make_reporter(tmp_path / "a.jsonl", service.url)
    send(reporter, 1)
    service.wait(lambda: not service.bodies)
    send(reporter, 2)
    service.wait(lambda: 2 in service.taken)
    reporter.close()

    assert spooled(tmp_path / "a.jsonl") == [1, 2]


def test_whatever_a_sender_raises_is_survived(tmp_path: Path) -> None:
    failed = threading.Event()

    def broken(_messages: object) -> Control:
        failed.set()
        raise RuntimeError("a bug")

    reporter = SpoolingReporter(
        tmp_path / "a.jsonl", broken, poll_seconds=0.02, backoff_seconds=0.01, flush_seconds=0.1
    )
    send(reporter, 1)
    assert failed.wait(10)
    send(reporter, 2)
    reporter.close()

    assert spooled(tmp_path / "a.jsonl") == [1, 2]


def read_request(taken: socket.socket) -> None:
    """Read one request to its end: the body is JSON without whitespace at its end."""
    received = b""
    while b"\r\n\r\n" not in received or not received.endswith(b"}"):
        part = taken.recv(65536)
        if not part:
            raise ConnectionError("the client has gone")
        received += part


class DeafService:
    """Takes connections and bytes. It never answers, or drips bytes of an answer that is never whole.

    Args:
        drip: Bytes of the answer, sent one at a time.
        first: A whole answer to the first request of a connection.
    """

    def __init__(self, drip: bytes = b"", *, first: bytes = b"") -> None:
        self._drip = drip
        self._first = first
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._ended = threading.Event()
        self.asked = threading.Event()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/ingest"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                taken, _ = self._listener.accept()
            except OSError:  # closed at the end of the test
                return
            self._open.append(taken)
            threading.Thread(target=self._serve, args=(taken,), daemon=True).start()

    def _serve(self, taken: socket.socket) -> None:
        try:
            if self._first:
                read_request(taken)
                taken.sendall(self._first)
            read_request(taken)
            self.asked.set()
            for byte in self._drip:
                taken.send(bytes([byte]))
                if self._ended.wait(0.05):
                    return
        except OSError:  # the client has gone, as it should
            return

    @property
    def connections(self) -> int:
        return len(self._open)

    def close(self) -> None:
        self._ended.set()
        self._listener.close()
        for taken in self._open:
            taken.close()


HEAD_THAT_NEVER_ENDS = b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000
BODY_THAT_NEVER_ENDS = b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 10_000


@pytest.fixture(params=[b"", HEAD_THAT_NEVER_ENDS, BODY_THAT_NEVER_ENDS], ids=["mute", "head", "body"])
def deaf(request: pytest.FixtureRequest) -> Iterator[DeafService]:
    one = DeafService(request.param)
    yield one
    one.close()


def test_the_spool_never_waits_for_a_service_that_does_not_answer(deaf: DeafService, tmp_path: Path) -> None:
    """Killed now, the process would lose nothing, though its first request is still under way."""
    spool = tmp_path / "a.jsonl"
    reporter = SpoolingReporter(spool, HttpPost(deaf.url, "secret", seconds=60), flush_seconds=0.2)
    send(reporter, 1)
    assert deaf.asked.wait(20)
    send(reporter, *range(2, 8))
    deadline = time.monotonic() + 8
    while not spool.exists() or spool.read_bytes().count(b"\n") < 7:
        assert time.monotonic() < deadline, spool.read_bytes()
        time.sleep(0.01)

    assert spooled(spool) == [1, 2, 3, 4, 5, 6, 7]
    reporter.close()


def test_a_request_ends_in_time_however_slowly_it_is_answered(deaf: DeafService) -> None:
    post = HttpPost(deaf.url, "secret", seconds=0.5)
    began = time.monotonic()
    with pytest.raises(Undeliverable, match=r"(no whole answer within 0\.5 s|Read timed out)"):
        post((EpochFinished(record=make_record()),))
    assert 0.4 < time.monotonic() - began < 5


def test_a_request_on_a_connection_that_was_used_before_ends_in_time_too() -> None:
    answer = IngestAnswer(control=Control.STOP).model_dump_json().encode()
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)
    deaf = DeafService(HEAD_THAT_NEVER_ENDS, first=whole)
    post = HttpPost(deaf.url, "secret", seconds=2)
    assert post(()) is Control.STOP
    with pytest.raises(Undeliverable, match="no whole answer within 2 s"):
        post(())
    assert deaf.connections == 1
    deaf.close()


def test_closing_is_bounded_and_says_what_was_not_confirmed(
    deaf: DeafService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "a.jsonl"
    reporter = SpoolingReporter(spool, HttpPost(deaf.url, "secret", seconds=60), flush_seconds=0.5)
    send(reporter, 1, 2, 3)
    assert deaf.asked.wait(20)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        reporter.close()

    assert time.monotonic() - began < 5
    assert spooled(spool) == [1, 2, 3]
    (warning,) = caplog.messages
    assert warning == (
        f"The service has not confirmed 3 messages, which lie in {spool}; the service takes them from there, if it can "
        "read it"
    )


def test_what_is_neither_spooled_nor_sent_is_said_to_be_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jsonl").mkdir()
    reporter = make_reporter(tmp_path / "a.jsonl", "http://127.0.0.1:9/ingest", flush_seconds=0.2)
    send(reporter, 1)
    reporter.close()

    assert any("is lost" in message for message in caplog.messages)


def test_neither_a_proxy_nor_a_netrc_comes_between(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy_and_netrc(monkeypatch, tmp_path) as seen_by_proxy:
        reporter = make_reporter(tmp_path / "a.jsonl", service.url)
        send(reporter, 1)
        reporter.close()

    assert (service.taken, service.tokens) == ([1], {"Bearer secret"})
    assert seen_by_proxy == []
