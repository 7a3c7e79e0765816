from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from curvewatch_service.client import Client, RefusedError, ServiceAwayError, UnknownRunError, WrongTokenError
from curvewatch_service.schemas import EpochList, EventList, EventView, LogView, Problem, RunList
from proxy_support import proxy_and_netrc
from views_support import BEGIN, curve, run_view

Handler = Callable[[httpx.Request], httpx.Response]


def client_of(handler: Handler) -> Client:
    return Client("http://curvewatch.test:8420/", "cw_secret", transport=httpx.MockTransport(handler))


def answer(text: str, status: int = 200) -> Handler:
    return lambda _request: httpx.Response(status, text=text)


def refusal(status: int, detail: str, problems: list[str] | None = None) -> Handler:
    problem = Problem(title="SomeError", status=status, detail=detail, problems=problems or [])
    return answer(problem.model_dump_json(), status)


def test_a_job_is_sent_as_its_text_and_its_zip_with_the_token() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201, text=run_view().model_dump_json())

    run = client_of(handler).submit("name: ünï\n", b"PK-zip")
    (request,) = seen
    body = request.read()
    assert (request.method, request.url.path) == ("POST", "/api/v1/runs")
    assert request.headers["authorization"] == "Bearer cw_secret"
    assert "name: ünï\n".encode() in body
    assert b"PK-zip" in body
    assert run.run_id == "digits-1a2b3c"


def test_lists_are_asked_for_by_state_limit_and_offset() -> None:
    seen: list[httpx.URL] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url)
        return httpx.Response(200, text=RunList(runs=[], total=0).model_dump_json())

    client_of(handler).runs(states=["RUNNING", "QUEUED"], limit=5, offset=10)
    assert str(seen[0].query, "ascii") == "state=RUNNING&state=QUEUED&limit=5&offset=10"


@pytest.mark.parametrize(("limit", "pages"), [(20, 1), (1000, 1), (1001, 2), (5000, 3)])
def test_more_runs_than_the_service_lists_at_once_come_in_pages(limit: int, pages: int) -> None:
    runs = [run_view(run_id=f"digits-{number}") for number in range(2500)]
    asked: list[int] = []

    def handler(request: httpx.Request) -> httpx.Response:
        begin, size = int(request.url.params.get("offset", 0)), int(request.url.params["limit"])
        asked.append(size)
        return httpx.Response(
            200, text=RunList(runs=runs[begin : begin + size], total=len(runs)).model_dump_json()
        )

    listed = client_of(handler).all_runs(limit=limit)
    assert [run.run_id for run in listed.runs] == [run.run_id for run in runs[:limit]]
    assert listed.total == len(runs)
    assert (len(asked), max(asked) <= 1000) == (pages, True)


def test_each_part_of_a_run_comes_back_as_its_view() -> None:
    epochs = curve()
    event = EventView(time=BEGIN, reason="state_running", message="it runs", actor="worker")
    answers = {
        "/api/v1/runs/r": run_view(epochs=epochs).model_dump_json(),
        "/api/v1/runs/r/epochs": EpochList(epochs=epochs).model_dump_json(),
        "/api/v1/runs/r/events": EventList(events=[event]).model_dump_json(),
        "/api/v1/runs/r/logs": LogView(text="hello\n").model_dump_json(),
        "/api/v1/runs/r/stop": run_view(state="STOPPING").model_dump_json(),
        "/metrics": "curvewatch_runs 1\n",
    }
    client = client_of(lambda request: httpx.Response(200, text=answers[request.url.path]))
    assert client.run("r").latest == epochs[-1]
    assert client.epochs("r") == epochs
    assert client.events("r") == [event]
    assert client.logs("r") == "hello\n"
    assert client.stop("r").state == "STOPPING"
    assert client.metrics_text() == "curvewatch_runs 1\n"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, WrongTokenError), (404, UnknownRunError), (409, RefusedError), (503, RefusedError)],
)
def test_a_refusal_has_the_words_of_the_service(status: int, kind: type[RefusedError]) -> None:
    with pytest.raises(kind, match=r"^the sky is green$") as caught:
        client_of(refusal(status, "the sky is green")).run("r")
    assert type(caught.value) is kind
    assert caught.value.status == status


def test_a_refusal_with_several_problems_tells_each() -> None:
    problems = ["training.epochs: is required but missing", "name: must be printable"]
    with pytest.raises(RefusedError) as caught:
        client_of(refusal(422, "job.yaml: 2 problems", problems)).submit("", b"")
    assert str(caught.value).splitlines() == [
        "job.yaml: 2 problems",
        *(f"  {problem}" for problem in problems),
    ]


def test_a_service_that_is_away_is_told_with_its_address_and_the_remedy() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused", request=request)

    with pytest.raises(ServiceAwayError, match=r"http://curvewatch\.test:8420 .*refused.*`curvewatch serve`"):
        client_of(handler).runs()


def test_a_port_that_nobody_listens_on_is_a_service_that_is_away() -> None:
    # Port 9 (discard) is not served on the loopback interface of a test machine.
    with (
        pytest.raises(ServiceAwayError, match="no Curvewatch service answers"),
        Client("http://127.0.0.1:9", "t") as c,
    ):
        c.health()


@pytest.mark.parametrize("status", [200, 404, 502])
def test_a_web_server_that_is_no_curvewatch_is_told_apart(status: int) -> None:
    with pytest.raises(ServiceAwayError, match="check the address"):
        client_of(answer("<html>nginx</html>", status)).run("r")


def test_a_run_id_cannot_lead_out_of_its_place_in_the_path() -> None:
    seen: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return httpx.Response(200, text=run_view().model_dump_json())

    client_of(handler).run("a/../b?c#d")
    assert seen == [b"/api/v1/runs/a%2F..%2Fb%3Fc%23d"]


def many_runs(request: httpx.Request) -> httpx.Response:
    """Serve 250 runs in pages of at most 100, and each by its id."""
    ids = [f"digits-{number:03d}" for number in reversed(range(250))]
    if request.url.path != "/api/v1/runs":
        return httpx.Response(
            200, text=run_view(run_id=request.url.path.rpartition("/")[2]).model_dump_json()
        )
    offset = int(request.url.params.get("offset", 0))
    limit = min(int(request.url.params.get("limit", 100)), 100)
    page = [run_view(run_id=run_id) for run_id in ids[offset : offset + limit]]
    return httpx.Response(200, text=RunList(runs=page, total=len(ids)).model_dump_json())


def test_a_run_is_found_by_its_id_its_unique_beginning_or_as_the_latest() -> None:
    client = client_of(many_runs)
    assert client.find("latest").run_id == "digits-249"
    assert client.find("digits-007").run_id == "digits-007"
    assert (
        client_of(only("digits-1a2b3c", "digits-1a2b3c-longer")).find("digits-1a2b3c").run_id
        == "digits-1a2b3c"
    )
    assert client_of(only("digits-1a2b3c", "words-9")).find("w").run_id == "words-9"


def only(*run_ids: str) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/api/v1/runs":
            run_id = request.url.path.rpartition("/")[2]
            assert run_id in run_ids
            return httpx.Response(200, text=run_view(run_id=run_id).model_dump_json())
        runs = [run_view(run_id=run_id) for run_id in run_ids]
        return httpx.Response(200, text=RunList(runs=runs, total=len(runs)).model_dump_json())

    return handler


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-00", r"10 runs begin with 'digits-00': digits-009, .*, \.\.\.; give more of the id"),
        ("mnist", r"no run is called 'mnist' or begins with it; `curvewatch runs` lists them"),
        ("", r"no run is called ''"),
    ],
)
def test_a_name_that_is_not_one_run_is_refused(name: str, message: str) -> None:
    with pytest.raises(UnknownRunError, match=message):
        client_of(many_runs).find(name)


def test_the_latest_of_no_runs_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        UnknownRunError, match=r"there is no run yet; submit one: curvewatch submit job\.yaml"
    ):
        client_of(only()).find("latest")


class Chunks(httpx.SyncByteStream):
    """An answer that comes in pieces, and may break off."""

    def __init__(self, *chunks: bytes, breaks_off: bool = False) -> None:
        self._chunks, self._breaks_off = chunks, breaks_off
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        if self._breaks_off:
            raise httpx.RemoteProtocolError("peer closed connection")

    def close(self) -> None:
        self.closed = True


def history_of(stream: Chunks, **headers: str) -> Client:
    return client_of(lambda _request: httpx.Response(200, headers=headers, stream=stream))


def test_a_history_comes_line_by_line_however_it_is_cut() -> None:
    stream = Chunks(b"# HELP a", b" b\n# TYPE", b" a gauge\n", 'a{b="\u2028\x0b"} 1 2\n# EO'.encode(), b"F\n")
    with history_of(stream, **{"Curvewatch-Samples": "1"}).history("digits-1") as (samples, lines):
        assert samples == 1
        assert list(lines) == [b"# HELP a b", b"# TYPE a gauge", 'a{b="\u2028\x0b"} 1 2'.encode(), b"# EOF"]
    assert stream.closed


def test_a_history_is_asked_for_by_its_run_and_waited_for() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, headers={"Curvewatch-Samples": "0"}, text="# EOF\n")

    with client_of(handler).history("a/b") as (_, lines):
        assert list(lines) == [b"# EOF"]
    (request,) = seen
    assert request.url.raw_path == b"/api/v1/runs/a%2Fb/history"
    assert request.headers["authorization"] == "Bearer cw_secret"
    timeouts = request.extensions["timeout"]
    assert timeouts["read"] > 60 > timeouts["connect"]


def test_a_history_that_breaks_off_is_told() -> None:
    stream = Chunks(b"# HELP a b\n", breaks_off=True)
    client = history_of(stream, **{"Curvewatch-Samples": "9"})
    with (
        pytest.raises(
            ServiceAwayError, match=r"the history of digits-1 broke off \(peer closed connection\)"
        ),
        client.history("digits-1") as (_, lines),
    ):
        list(lines)
    assert stream.closed


def test_a_history_of_something_else_is_refused() -> None:
    with (
        pytest.raises(ServiceAwayError, match="something that no Curvewatch"),
        history_of(Chunks(b"<html>")).history("digits-1"),
    ):
        pytest.fail("it was taken")


def test_a_history_that_the_service_refuses_is_told_in_its_words() -> None:
    client = client_of(refusal(404, "there is no run 'x'"))
    with pytest.raises(UnknownRunError, match="there is no run 'x'"), client.history("x"):
        pytest.fail("it was taken")


@pytest.mark.parametrize(
    ("server", "by_proxy"),
    [
        ("http://127.0.0.1:{port}", []),
        ("http://127.1.2.3:{port}", []),
        ("http://localhost:{port}", []),
        ("http://curvewatch.test:{port}", ["GET http://curvewatch.test:{port}/readyz Bearer cw_secret"]),
    ],
)
def test_a_proxy_is_used_for_other_machines_only(
    server: str, by_proxy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens at the port: whoever is asked is the proxy, or nobody."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    with (
        proxy_and_netrc(monkeypatch, tmp_path) as seen_by_proxy,
        Client(server.replace("{port}", port), "cw_secret") as client,
        pytest.raises(ServiceAwayError),
    ):
        client.health()

    assert seen_by_proxy == [line.replace("{port}", port) for line in by_proxy]
