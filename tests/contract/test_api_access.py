"""Who may ask what: tokens, signed-in browsers, and the answers' own protection."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api_support import DEADLINE_SECONDS, ServedApi, serve_api, zipped
from curvewatch_service.api.session import COOKIE
from curvewatch_workers.contract import EpochFinished
from store_support import attempt_message, new_run, record, split


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    with serve_api(tmp_path_factory.mktemp("access")) as served:
        new_run(served.services.store)
        yield served


@pytest.fixture
def browser(api: ServedApi) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.url, timeout=DEADLINE_SECONDS) as client:
        yield client


def _sign_in(api: ServedApi, browser: httpx.Client, **fields: str) -> httpx.Response:
    return browser.post("/login", data={"token": api.token, **fields})


def _csrf(browser: httpx.Client) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', browser.get("/").text)
    assert found is not None
    return found[1]


_GUARDED = [
    ("GET", "/api/v1/runs"),
    ("POST", "/api/v1/runs"),
    ("GET", "/api/v1/runs/digits-1"),
    ("GET", "/api/v1/runs/digits-1/epochs"),
    ("GET", "/api/v1/runs/digits-1/events"),
    ("GET", "/api/v1/runs/digits-1/logs"),
    ("POST", "/api/v1/runs/digits-1/stop"),
    ("POST", "/api/v1/runs/digits-1/ingest"),
    ("GET", "/openapi.json"),
]


@pytest.mark.parametrize("token", ["", "cw_wrong", "cw_\u00e9".encode().decode("latin-1"), "x" * 5000])
def test_nothing_is_told_without_a_valid_token(api: ServedApi, token: str) -> None:
    headers = {b"Authorization": f"Bearer {token}".encode("latin-1")} if token else {}
    with httpx.Client(base_url=api.url, timeout=DEADLINE_SECONDS) as client:
        for method, path in _GUARDED:
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, path
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["title"] == "NotAuthenticatedError"
            assert "digits:build" not in answer.text


def test_every_route_but_the_open_ones_is_guarded(api: ServedApi) -> None:
    """A route that is added later cannot be forgotten: each is asked for without a token."""
    schema = api.request("GET", "/openapi.json").json()
    asked = {
        path: api.request(method.upper(), path.replace("{run_id}", "digits-1"), token="").status_code
        for path, methods in schema["paths"].items()
        for method in methods
    }
    open_paths = {path for path, status in asked.items() if status != 401}
    assert open_paths == {"/healthz", "/readyz", "/metrics", "/metrics/curves"}
    assert len(asked) > len(open_paths) + 5


@pytest.mark.parametrize("path", ["/api/v1/runs", "/api/v1/runs/digits-1/ingest"])
def test_a_body_is_not_waited_for_before_it_is_known_who_sends_it(api: ServedApi, path: str) -> None:
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10000000\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\nAuthorization: Bearer cw_wrong\r\n\r\n".encode()
        )
        assert connection.recv(12) == b"HTTP/1.1 401"


def test_a_users_token_is_not_good_for_ingest_and_a_runs_token_for_nothing_else(api: ServedApi) -> None:
    run_id, other_id = (api.submit().json()["run_id"] for _ in range(2))
    token = api.ingest_token(run_id)
    refused = {
        "the user's": api.request("POST", f"/api/v1/runs/{run_id}/ingest", json={}),
        "the other run's": api.request("POST", f"/api/v1/runs/{other_id}/ingest", token=token, json={}),
        "of no run": api.request("POST", "/api/v1/runs/nobody/ingest", token=token, json={}),
        "for reading": api.request("GET", f"/api/v1/runs/{run_id}", token=token),
    }
    assert {whose: answer.status_code for whose, answer in refused.items()} == dict.fromkeys(refused, 401)


def test_a_page_leads_to_the_sign_in_and_back(api: ServedApi, browser: httpx.Client) -> None:
    run_id = api.submit().json()["run_id"]
    sent_away = browser.get(f"/runs/{run_id}?from=mail")
    assert sent_away.status_code == 303
    assert sent_away.headers["Location"] == f"/login?next=%2Fruns%2F{run_id}%3Ffrom%3Dmail"
    answer = _sign_in(api, browser, next=f"/runs/{run_id}")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/runs/{run_id}")
    assert browser.get(f"/runs/{run_id}").status_code == 200


def test_the_page_of_a_run_with_a_frameworks_means_has_no_receipt(
    api: ServedApi, browser: httpx.Client
) -> None:
    run_id = api.submit().json()["run_id"]
    assert api.services.store.begin_submission(run_id) is not None
    means = split(loss=0.5).model_copy(update={"reported_by": "keras"})
    told = EpochFinished(record=record(1, run_id=run_id, train=means, validation=means))
    api.services.store.ingest(run_id, [attempt_message(1), told])
    _sign_in(api, browser)

    page = browser.get(f"/runs/{run_id}")

    assert page.status_code == 200
    assert "None: the numbers are the means that keras reports" in page.text
    assert "Not exact" not in page.text


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(api: ServedApi, browser: httpx.Client) -> None:
    cookie = _sign_in(api, browser).headers["Set-Cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert api.token not in cookie


def test_the_cookie_of_a_service_behind_https_is_sent_over_https_only(tmp_path: Path) -> None:
    with (
        serve_api(tmp_path, public_url="https://curves.example") as api,
        httpx.Client(base_url=api.url) as browser,
    ):
        assert "Secure" in _sign_in(api, browser).headers["Set-Cookie"].split("; ")


@pytest.mark.parametrize("token", ["", "cw_wrong"])
def test_a_wrong_token_signs_nobody_in(browser: httpx.Client, token: str) -> None:
    answer = browser.post("/login", data={"token": token, "next": "/runs/x"})
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/login?failed=1&next=%2Fruns%2Fx"
    assert "Set-Cookie" not in answer.headers
    assert browser.get("/login?failed=1").status_code == 200


def test_a_sign_in_reads_a_plain_form_only(api: ServedApi, browser: httpx.Client) -> None:
    sent = browser.post("/login", files={"token": ("token", b"x" * 2_000_000)})
    assert (sent.status_code, sent.json()["title"]) == (415, "WrongMediaError")
    assert "application/x-www-form-urlencoded" in sent.json()["detail"]
    assert (
        browser.post("/login", content=b"{}", headers={"Content-Type": "application/json"}).status_code == 415
    )
    kind = "Application/X-WWW-Form-URLencoded; charset=utf-8"
    signed_in = browser.post("/login", content=f"token={api.token}", headers={"Content-Type": kind})
    assert (signed_in.status_code, signed_in.headers["Location"]) == (303, "/")
    assert "Set-Cookie" in signed_in.headers


def test_a_sign_in_is_read_no_further_than_a_form_is_long(api: ServedApi, browser: httpx.Client) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert browser.post("/login", content=b"token=" + b"x" * 70_000, headers=headers).status_code == 413
    # Not announced, and without an end: the answer comes before the body does.
    with socket.create_connection((httpx.URL(api.url).host, httpx.URL(api.url).port or 80)) as wire:
        wire.settimeout(DEADLINE_SECONDS)
        head = "POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        wire.sendall(f"{head}Content-Type: {headers['Content-Type']}\r\n\r\n".encode())
        wire.sendall(b"11170\r\n" + b"x" * 0x11170 + b"\r\n")
        assert wire.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_another_site_cannot_sign_a_browser_in(api: ServedApi, browser: httpx.Client) -> None:
    browser.headers["Sec-Fetch-Site"] = "cross-site"
    assert "Set-Cookie" not in _sign_in(api, browser).headers


@pytest.mark.parametrize(
    "target", ["https://evil.example", "//evil.example", "/\\evil.example", "/\t/evil.example", ""]
)
def test_the_sign_in_leads_nowhere_else(api: ServedApi, browser: httpx.Client, target: str) -> None:
    assert _sign_in(api, browser, next=target).headers["Location"] == "/"


def test_a_signed_in_browser_may_read_and_needs_its_word_to_change(
    api: ServedApi, browser: httpx.Client
) -> None:
    run_id = api.submit().json()["run_id"]
    _sign_in(api, browser)
    stop = f"/api/v1/runs/{run_id}/stop"
    assert browser.get(f"/api/v1/runs/{run_id}").json()["run_id"] == run_id
    for headers, data in (({}, {}), ({"X-CSRF-Token": "0" * 64}, {}), ({}, {"csrf": "wrong"})):
        answer = browser.post(stop, headers=headers, data=data)
        assert (answer.status_code, answer.json()["title"]) == (403, "ForbiddenError")
    assert api.request("GET", f"/api/v1/runs/{run_id}").json()["state"] == "QUEUED"
    assert browser.post(stop, headers={"X-CSRF-Token": _csrf(browser)}).json()["state"] == "STOPPED"


def test_the_word_may_come_in_the_form_and_only_from_its_own_session(
    api: ServedApi, browser: httpx.Client
) -> None:
    run_id = api.submit().json()["run_id"]
    with httpx.Client(base_url=api.url, timeout=DEADLINE_SECONDS) as other:
        _sign_in(api, other)
        foreign = _csrf(other)
    _sign_in(api, browser)
    assert browser.post(f"/api/v1/runs/{run_id}/stop", data={"csrf": foreign}).status_code == 403
    own = browser.post(f"/api/v1/runs/{run_id}/stop", data={"csrf": _csrf(browser)})
    assert own.json()["state"] == "STOPPED"


def test_a_browser_may_submit_with_its_word(api: ServedApi, browser: httpx.Client) -> None:
    _sign_in(api, browser)
    spec = b"name: page\ncode: {task: 'digits:build'}\ntraining: {epochs: 1, global_batch_size: 8}\n"
    files = {"spec": ("job.yaml", spec), "code": ("code.zip", zipped())}
    assert browser.post("/api/v1/runs", files=files).status_code == 403
    accepted = browser.post("/api/v1/runs", files=files, headers={"X-CSRF-Token": _csrf(browser)})
    assert accepted.status_code == 201


def test_who_signs_out_is_out_even_with_the_old_cookie(api: ServedApi, browser: httpx.Client) -> None:
    _sign_in(api, browser)
    cookie = browser.cookies[COOKIE]
    browser.post("/logout", data={"csrf": "wrong"})
    assert browser.get("/api/v1/runs").status_code == 200
    answer = browser.post("/logout", data={"csrf": _csrf(browser)})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/login")
    assert COOKIE not in browser.cookies
    browser.cookies.set(COOKIE, cookie)
    assert browser.get("/api/v1/runs").status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/login", "/api/v1/runs", "/nowhere", "/metrics"])
def test_every_answer_forbids_foreign_scripts_frames_and_guesses(api: ServedApi, path: str) -> None:
    headers = api.request("GET", path, token="").headers
    policy = headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'self'", "style-src 'self' 'unsafe-inline'", "frame-ancestors 'none'"} <= set(policy)
    assert not [rule for rule in policy if "http:" in rule or "unsafe-eval" in rule or "*" in rule]
    assert (headers["X-Content-Type-Options"], headers["X-Frame-Options"]) == ("nosniff", "DENY")
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"


def test_no_page_of_documentation_loads_scripts_from_elsewhere(api: ServedApi) -> None:
    for path in ("/docs", "/redoc"):
        assert api.request("GET", path).status_code == 404
    schema = api.request("GET", "/openapi.json").json()
    assert "/api/v1/runs/{run_id}/ingest" in schema["paths"]
