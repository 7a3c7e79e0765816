"""One Grafana over HTTP: what is asked again, and what each failure is called."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grafana_api.grafana_face import GrafanaFace

from curvewatch_service.errors import GrafanaError, GrafanaRefusedError
from curvewatch_service.grafana.server import GrafanaServer
from grafana_support import TOKEN, Answer, FakeGrafana, refusal, serve_grafana
from proxy_support import proxy_and_netrc

SOURCE = {
    "uid": "p",
    "name": "P",
    "type": "prometheus",
    "access": "proxy",
    "url": "http://p:9090",
    "jsonData": {},
}


@pytest.fixture
def grafana() -> Iterator[FakeGrafana]:
    with serve_grafana(FakeGrafana(version="13.0.1")) as served:
        yield served


@pytest.fixture
def server(grafana: FakeGrafana) -> Iterator[GrafanaServer]:
    with GrafanaServer(grafana.url, TOKEN, pause_seconds=0.001) as connected:
        yield connected


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_is_only_read_is_asked_again(status: int, grafana: FakeGrafana, server: GrafanaServer) -> None:
    grafana.fail("GET", "/api/folders/x", refusal(status, "busy"), times=2)
    assert server.folder("x") is None
    assert grafana.requests == ["GET /api/folders/x"] * 3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_write_is_sent_once(status: int, grafana: FakeGrafana, server: GrafanaServer) -> None:
    grafana.fail("POST", "/api/folders", Answer(status, "<html>a message of a gateway</html>"))
    with pytest.raises(
        GrafanaRefusedError, match=rf"folder 'X' \(uid x\): .* answered {status} .*its own trouble"
    ):
        server.create_folder("x", "X")
    assert grafana.requests == ["POST /api/folders"]


@pytest.mark.parametrize("status", [400, 401, 500])
def test_an_error_that_will_not_pass_is_not_asked_again(
    status: int, grafana: FakeGrafana, server: GrafanaServer
) -> None:
    grafana.fail("GET", "/api/folders/x", refusal(status, "no"), times=9)
    with pytest.raises(GrafanaRefusedError) as told:
        server.folder("x")
    assert told.value.answered == status
    assert grafana.requests == ["GET /api/folders/x"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal(400, "Dashboard title cannot be empty"), "answered 400 (Dashboard title cannot be empty)"),
        (refusal(404, "Dashboard not found"), "it, or its folder, went away meanwhile; publish again"),
        (refusal(409, "conflict"), "another dashboard is in its place"),
        (refusal(412, "The dashboard has been changed by someone else"), "somebody saved it at this moment"),
        (Answer(400, ["message"]), "answered 400 (Bad Request)"),
        (Answer(403, "message of a proxy"), "its service account needs Dashboards: Writer"),
    ],
)
def test_a_refusal_names_the_thing_and_what_to_do(
    answer: Answer, words: str, grafana: FakeGrafana, server: GrafanaServer
) -> None:
    grafana.fail("POST", "/api/dashboards/db", answer)
    with pytest.raises(GrafanaRefusedError) as told:
        server.save_dashboard({"dashboard": {"uid": "u", "title": "T"}})
    assert str(told.value).startswith("dashboard 'T' (uid u): Grafana at http://127.0.0.1:")
    assert words in str(told.value)


def test_a_data_source_with_the_name_of_another_is_told(grafana: FakeGrafana, server: GrafanaServer) -> None:
    server.create_datasource(SOURCE)
    with pytest.raises(
        GrafanaRefusedError, match=r"data source 'P' \(uid q\): .*another data source has its name"
    ):
        server.create_datasource({**SOURCE, "uid": "q"})
    assert list(grafana.datasources) == ["p"]


def test_a_data_source_that_was_saved_meanwhile_is_not_overwritten(server: GrafanaServer) -> None:
    server.create_datasource(SOURCE)
    stale = server.datasource("p") or {}
    server.update_datasource("p", {**stale, "url": "http://new:9090"})
    with pytest.raises(GrafanaRefusedError, match="somebody saved it at this moment"):
        server.update_datasource("p", {**stale, "url": "http://other:9090"})


def test_a_folder_that_cannot_be_seen_is_told_when_it_cannot_be_made(
    grafana: FakeGrafana, server: GrafanaServer
) -> None:
    server.create_folder("x", "X")
    with pytest.raises(GrafanaRefusedError, match="or its uid where the token cannot see it"):
        server.create_folder("x", "X")
    grafana.role = "Editor"
    assert server.folder("unknown") is None


@pytest.mark.parametrize(("version", "works"), [("12.3.0", True), ("13.0.1", False)])
def test_routes_with_numeric_ids_end_with_grafana_13(version: str, works: bool) -> None:
    """What grafana-api offers itself, and why a data source is written by its uid here."""
    grafana = FakeGrafana(version=version)
    with serve_grafana(grafana), GrafanaServer(grafana.url, TOKEN) as server:
        server.create_datasource(SOURCE)
        face = GrafanaFace(auth=TOKEN, host=grafana.url.removeprefix("http://"))
        with face.api.s:
            if works:
                face.datasource.update_datasource(1, SOURCE)
            else:
                with pytest.raises(Exception, match="Client Error 404"):
                    face.datasource.update_datasource(1, SOURCE)
                assert grafana.mistakes.pop() == "PUT /api/datasources/1 is no route of Grafana 13.0.1"
        server.update_datasource("p", {**SOURCE, "url": "http://new:9090"})
    assert grafana.datasources["p"]["url"] == "http://new:9090"


def test_nothing_at_the_address_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with (
        GrafanaServer(f"http://127.0.0.1:{port}", TOKEN, pause_seconds=0.001) as server,
        pytest.raises(GrafanaError) as told,
    ):
        server.version()
    assert str(told.value).startswith(f"no Grafana answers at http://127.0.0.1:{port} (")
    assert "Connection refused" in str(told.value)
    assert "0x" not in str(told.value), "no Python object in a sentence for a user"


def test_a_server_that_never_answers_is_told() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        GrafanaServer(
            f"http://127.0.0.1:{listening.getsockname()[1]}", TOKEN, timeout_seconds=0.05, pause_seconds=0.001
        ) as server,
    ):
        with pytest.raises(GrafanaError, match=r"no Grafana answers at .*timed out"):
            server.version()
        with pytest.raises(GrafanaError, match=r"timed out.*nothing is written twice"):
            server.create_folder("x", "X")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, "<html>Sign in</html>"),
        Answer(200, {"status": "ok"}),
        Answer(204, ""),
        Answer(404, "<html>message</html>"),
    ],
)
def test_another_server_is_told(answer: Answer, grafana: FakeGrafana, server: GrafanaServer) -> None:
    grafana.fail("GET", "/api/health", answer)
    with pytest.raises(GrafanaError, match=r"what answers at http://127.0.0.1:\d+ is no Grafana"):
        server.version()


def test_a_redirect_is_told_and_not_followed(grafana: FakeGrafana, server: GrafanaServer) -> None:
    elsewhere = {"Location": "https://grafana.example.org/api/health"}
    grafana.fail("GET", "/api/health", Answer(301, "", elsewhere))
    with pytest.raises(
        GrafanaError, match=r"sends on to https://grafana.example.org; give that address as --url"
    ):
        server.version()
    assert grafana.requests == ["GET /api/health"]


def test_a_grafana_below_a_path_is_reached() -> None:
    with serve_grafana(FakeGrafana(version="12.3.0"), prefix="/ops/grafana") as grafana:
        with GrafanaServer(f"{grafana.url}/", TOKEN) as server:
            assert server.version() == "12.3.0"
        with (
            GrafanaServer(grafana.url.removesuffix("/grafana"), TOKEN) as server,
            pytest.raises(GrafanaError, match="404 for /api/health; check --url and its path"),
        ):
            server.version()


def test_a_grafana_that_does_not_tell_its_version_is_one(grafana: FakeGrafana, server: GrafanaServer) -> None:
    grafana.fail("GET", "/api/health", Answer(200, {"database": "ok"}))
    assert server.version() == ""


def test_a_proxy_and_a_password_file_do_not_come_between(
    grafana: FakeGrafana, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy_and_netrc(monkeypatch, tmp_path) as seen, GrafanaServer(grafana.url, TOKEN) as server:
        assert server.folder("x") is None
    assert seen == []


def certificate(folder: Path) -> Path:
    """Write a key and a certificate for 127.0.0.1 that nobody has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "grafana")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "grafana.pem"
    path.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_certificate_is_trusted_when_its_signer_is_given(tmp_path: Path) -> None:
    path = certificate(tmp_path)
    with serve_grafana(FakeGrafana(version="12.3.0"), certificate=path) as grafana:
        with GrafanaServer(grafana.url, TOKEN, ca_file=path) as server:
            assert server.version() == "12.3.0"
        with (
            GrafanaServer(grafana.url, TOKEN, pause_seconds=0.001) as server,
            pytest.raises(
                GrafanaError, match=r"certificate of https://.* is not trusted \(self.signed .*--ca-file"
            ),
        ):
            server.version()


def test_https_to_a_plain_server_is_told(grafana: FakeGrafana) -> None:
    with (
        GrafanaServer(grafana.url.replace("http://", "https://"), TOKEN, pause_seconds=0.001) as server,
        pytest.raises(GrafanaError, match=r"speaks no TLS that is understood here .* http://"),
    ):
        server.version()
