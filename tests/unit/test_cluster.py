"""The cluster's client against servers that answer well, badly, or not at all."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import curvewatch_service.cluster as cluster_module
from curvewatch_service.cluster import Endpoint, JobState, JobStatus, RayCluster
from curvewatch_service.errors import ClusterUnavailableError, JobRefusedError
from curvewatch_service.planning import JobRequest, Resources
from proxy_support import proxy_and_netrc

SECRET = "s3cret-token-of-the-cluster"


@dataclass
class Dashboard:
    """A server with the routes of Ray's dashboard; each test says what they answer."""

    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and body of each path."""
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Authorization header of each request."""
    url: str = ""

    def answer(self, path: str, body: object, status: int = 200) -> None:
        self.answers[path] = (status, body if isinstance(body, str) else json.dumps(body))


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    state = Dashboard()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.seen.append((self.command, self.path, self.headers.get("Authorization")))
            status, body = state.answers.get(self.path.split("?")[0], (404, "no such thing"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = do_PUT = _reply  # noqa: N815 - names of http.server

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def token_path(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(SECRET + "\n")
    return path


@pytest.fixture
def cluster(dashboard: Dashboard, token_path: Path, tmp_path: Path) -> Iterator[RayCluster]:
    endpoint = Endpoint(url=dashboard.url, token_path=token_path)
    with closing(RayCluster(lambda: endpoint, kept_logs=tmp_path / "logs")) as opened:
        yield opened


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _node(state: str = "ALIVE", **resources: float) -> dict[str, object]:
    return {"state": state, "resources_total": {"memory": 1e9, **resources}}


def _nodes(*nodes: dict[str, object]) -> dict[str, object]:
    return {"data": {"result": {"result": list(nodes)}}}


def test_a_job_is_found_with_the_words_of_ray(dashboard: Dashboard, cluster: RayCluster) -> None:
    dashboard.answer("/api/jobs/r-1", {"status": "FAILED", "message": "exit code 1"})
    dashboard.answer("/api/jobs/r-2", {"status": "PENDING", "message": None})
    assert cluster.status("r-1") == JobState(state=JobStatus.FAILED, message="exit code 1")
    assert cluster.status("r-2") == JobState(state=JobStatus.PENDING)
    assert cluster.status("r-3") is None
    assert dashboard.seen[0] == ("GET", "/api/jobs/r-1", f"Bearer {SECRET}")


def test_the_token_is_read_anew_when_it_was_replaced(
    dashboard: Dashboard, cluster: RayCluster, token_path: Path
) -> None:
    cluster.status("r-1")
    token_path.write_text("another")
    cluster.status("r-1")
    assert [header for _, _, header in dashboard.seen] == [f"Bearer {SECRET}", "Bearer another"]


def test_a_missing_token_file_is_named(dashboard: Dashboard, tmp_path: Path) -> None:
    endpoint = Endpoint(url=dashboard.url, token_path=tmp_path / "nothing")
    with (
        closing(RayCluster(lambda: endpoint)) as cluster,
        pytest.raises(ClusterUnavailableError, match=r"nothing.*CURVEWATCH_RAY_TOKEN_PATH"),
    ):
        cluster.status("r-1")


def test_the_resources_are_those_of_live_nodes(dashboard: Dashboard, cluster: RayCluster) -> None:
    dashboard.answer("/api/v0/nodes", _nodes(_node(CPU=4, GPU=1), _node(CPU=8), _node("DEAD", CPU=64)))
    assert cluster.resources() == Resources(cpus=12, gpus=1, largest_node_cpus=8)


def test_a_cluster_that_grows_has_what_it_can_grow_to(dashboard: Dashboard) -> None:
    dashboard.answer("/api/v0/nodes", _nodes(_node(CPU=4)))
    with closing(RayCluster(lambda: Endpoint(url=dashboard.url), max_cpus=256, max_gpus=16)) as growing:
        assert growing.resources() == Resources(cpus=256, gpus=16)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"data": None},
        {"data": {"result": {"result": [{"state": "ALIVE"}]}}},
        _nodes({"state": "ALIVE", "resources_total": None}),
        _nodes({"state": "ALIVE", "resources_total": {"CPU": "many"}}),
    ],
)
def test_nodes_that_are_told_otherwise_are_a_cluster_that_is_not_available(
    dashboard: Dashboard, cluster: RayCluster, body: object
) -> None:
    dashboard.answer("/api/v0/nodes", body)
    with pytest.raises(ClusterUnavailableError, match="tells of the nodes in a way that Ray does not"):
        cluster.resources()


@pytest.mark.parametrize("body", [{}, [], {"status": "DREAMING"}, {"status": None}])
def test_a_job_that_is_told_otherwise_is_a_cluster_that_is_not_available(
    dashboard: Dashboard, cluster: RayCluster, body: object
) -> None:
    dashboard.answer("/api/jobs/r-1", body)
    with pytest.raises(ClusterUnavailableError, match="tells of a job in a way that Ray does not"):
        cluster.status("r-1")


def test_a_cluster_without_a_live_node_is_not_available(dashboard: Dashboard, cluster: RayCluster) -> None:
    dashboard.answer("/api/v0/nodes", _nodes(_node("DEAD", CPU=64)))
    with pytest.raises(ClusterUnavailableError, match="no live node"):
        cluster.resources()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, "Unauthorized", "CURVEWATCH_RAY_TOKEN_PATH"),
        (403, "Forbidden", "CURVEWATCH_RAY_TOKEN_PATH"),
        (500, "GCS is away", "HTTP 500: GCS is away"),
        (200, "<html>some other site</html>", "no Ray dashboard"),
        (200, "null", "no Ray dashboard"),
    ],
)
def test_what_is_no_answer_says_what_to_do_and_not_the_token(
    dashboard: Dashboard, cluster: RayCluster, status: int, body: str, words: str
) -> None:
    dashboard.answer("/api/jobs/r-1", body, status)
    with pytest.raises(ClusterUnavailableError) as refused:
        cluster.status("r-1")
    assert words in str(refused.value)
    assert dashboard.url in str(refused.value)
    assert SECRET not in str(refused.value)


def test_a_cluster_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with (
        closing(RayCluster(lambda: Endpoint(url=url))) as cluster,
        pytest.raises(ClusterUnavailableError, match=url),
    ):
        cluster.status("r-1")


def test_no_question_waits_for_a_silent_cluster(silent_url: str) -> None:
    begin = time.monotonic()
    with closing(RayCluster(lambda: Endpoint(url=silent_url), answer_seconds=0.2)) as cluster:
        for question in (lambda: cluster.status("r-1"), cluster.resources, lambda: cluster.stop("r-1")):
            with pytest.raises(ClusterUnavailableError, match=silent_url):
                question()
    assert time.monotonic() - begin < 5


def test_no_submission_waits_for_a_cluster_that_falls_silent(
    dashboard: Dashboard, silent_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question before it is still answered; then nobody takes the job."""
    monkeypatch.setattr(cluster_module, "SUBMIT_SECONDS", 0.2)
    # Would win over the address that the service was given, if Ray's client were left to itself.
    monkeypatch.setenv("RAY_ADDRESS", dashboard.url)
    endpoints = iter([dashboard.url, silent_url, dashboard.url])
    with (
        closing(RayCluster(lambda: Endpoint(url=next(endpoints)))) as cluster,
        pytest.raises(ClusterUnavailableError, match=silent_url),
    ):
        cluster.submit(JobRequest(submission_id="r-1", entrypoint="true"))


def test_a_job_that_is_there_is_not_submitted_again(dashboard: Dashboard, cluster: RayCluster) -> None:
    dashboard.answer("/api/jobs/r-1", {"status": "RUNNING", "message": ""})
    cluster.submit(JobRequest(submission_id="r-1", entrypoint="true"))
    assert [method for method, _, _ in dashboard.seen] == ["GET"]


def test_a_failed_submission_is_success_when_the_job_is_there_after_all(
    dashboard: Dashboard,
    cluster: RayCluster,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer got lost on its way, or another request of the same id was faster."""
    dashboard.answer("/api/jobs/", "already exists", 500)
    answers: Iterator[JobState | None] = iter([None, JobState(state=JobStatus.PENDING)])
    monkeypatch.setattr(cluster, "status", lambda _: next(answers))
    with caplog.at_level(logging.DEBUG):
        cluster.submit(JobRequest(submission_id="r-1", entrypoint="true"))
    assert ("POST", "/api/jobs/", f"Bearer {SECRET}") in dashboard.seen
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("status", "error"),
    [(500, ClusterUnavailableError), (400, JobRefusedError), (401, ClusterUnavailableError)],
)
def test_what_ray_will_never_take_is_told_from_what_it_could_not_take_now(
    dashboard: Dashboard, cluster: RayCluster, status: int, error: type[Exception]
) -> None:
    dashboard.answer("/api/jobs/", "entrypoint must not be empty", status)
    with pytest.raises(error, match=r"r-1[\s\S]*entrypoint must not be empty"):
        cluster.submit(JobRequest(submission_id="r-1", entrypoint="true"))


def test_code_that_is_not_there_is_refused(cluster: RayCluster, tmp_path: Path) -> None:
    request = JobRequest(
        submission_id="r-1", entrypoint="true", runtime_env={"working_dir": str(tmp_path / "none.zip")}
    )
    with pytest.raises(JobRefusedError, match=r"none\.zip"):
        cluster.submit(request)


def test_a_kept_log_outlives_the_cluster(dashboard: Dashboard, cluster: RayCluster) -> None:
    assert cluster.logs("r-1") == ""
    cluster.keep_logs("r-1")
    dashboard.answer("/api/jobs/r-1/logs", {"logs": "epoch 1\nepoch 2\n"})
    assert cluster.logs("r-1") == "epoch 1\nepoch 2\n"
    cluster.keep_logs("r-1")
    dashboard.answers.clear()
    assert cluster.logs("r-1") == "epoch 1\nepoch 2\n"


def test_of_a_long_log_the_end_is_handed_on(dashboard: Dashboard, cluster: RayCluster) -> None:
    dashboard.answer("/api/jobs/r-1/logs", {"logs": "x" * 2_000_000 + "the end"})
    log = cluster.logs("r-1")
    assert len(log) == cluster_module.LOG_CHARACTERS
    assert log.endswith("the end")


def test_a_stop_is_sent_and_a_job_that_is_gone_is_fine(dashboard: Dashboard, cluster: RayCluster) -> None:
    cluster.stop("r-1")
    assert dashboard.seen[-1][:2] == ("POST", "/api/jobs/r-1/stop")


def test_a_job_reaches_ray_past_proxies_and_a_netrc(
    dashboard: Dashboard, cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard.answer("/api/jobs/", {"submission_id": "r-1", "job_id": "r-1"})
    with proxy_and_netrc(monkeypatch, tmp_path) as seen_by_proxy:
        cluster.submit(JobRequest(submission_id="r-1", entrypoint="true"))

    assert ("POST", "/api/jobs/", f"Bearer {SECRET}") in dashboard.seen
    assert {header for _, _, header in dashboard.seen} == {f"Bearer {SECRET}"}
    assert seen_by_proxy == []
