"""One Grafana, through its HTTP API.

Only routes that Grafana 11, 12 and 13 have in common, and things are named by their uid alone: routes with
numeric ids of data sources are off from Grafana 13. The documentation of these routes is below
https://grafana.com/docs/grafana/latest/developer-resources/api-reference/http-api/
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import SplitResult, quote, urlsplit

import requests
from grafana_api.grafana_face import GrafanaFace
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from curvewatch_service.errors import GrafanaError, GrafanaRefusedError
from curvewatch_service.grafana.troubles import cause, innermost, insecure, refusal, said_by

_TRIES = 3
_BUSY = frozenset({429, 502, 503, 504})
"""Answers of a server that will have time later, or of a gateway that does not reach it."""


class GrafanaServer:
    """Talk to one Grafana with one token.

    Every method raises:
        GrafanaError: Nothing answers, or what answers is no Grafana.
        GrafanaRefusedError: Grafana said no.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        ca_file: Path | None = None,
        timeout_seconds: float = 15.0,
        pause_seconds: float = 0.5,
    ) -> None:
        """Prepare the connection; nothing is sent yet.

        Args:
            url: Address of Grafana, with its path where it has one.
            token: Token of a service account.
            ca_file: Certificates (PEM) that sign Grafana's; else those of `requests`.
            timeout_seconds: How long one answer may take.
            pause_seconds: Pause before what may be asked again is asked again; doubles each time.

        Raises:
            GrafanaError: The address is none, or the token cannot be one.
        """
        address = _address(url)
        self.url = url.rstrip("/")
        host = address.hostname or ""
        face = GrafanaFace(
            auth=_token(token),
            host=f"[{host}]" if ":" in host else host,
            port=address.port,
            url_path_prefix=address.path.strip("/") + "/" if address.path.strip("/") else "",
            protocol=address.scheme,
            verify=str(ca_file) if ca_file else True,
            timeout=timeout_seconds,
        )
        self._face = face
        session: requests.Session = face.api.s
        # A proxy of the environment reaches another "this machine".
        session.trust_env = not _is_this_machine(host)
        session.hooks["response"].append(self._check)
        adapter = HTTPAdapter(max_retries=_retry(pause_seconds))
        session.mount("http://", adapter)
        session.mount("https://", adapter)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._face.api.s.close()

    def version(self) -> str:
        """Return Grafana's version, such as `12.1.0`; empty where it does not tell strangers."""
        health = self._ask("", lambda: self._face.api.GET("/health"))
        if not isinstance(health, dict) or "database" not in health:
            raise self._no_grafana()
        return str(health.get("version", ""))

    def folder(self, uid: str) -> dict[str, Any] | None:
        """Return a folder; none where there is none that the token may see."""
        try:
            return self._object("folder", uid, lambda: self._face.folder.get_folder(uid))
        except GrafanaRefusedError as error:
            # An Editor is not told that a folder is missing, but refused; making it will show which it is.
            if error.answered == requests.codes.forbidden:
                return None
            raise

    def create_folder(self, uid: str, title: str) -> None:
        """Make a folder below the root."""
        self._ask(f"folder {title!r} (uid {uid})", lambda: self._face.folder.create_folder(title, uid))

    def rename_folder(self, uid: str, title: str) -> None:
        """Give a folder another title."""
        self._ask(
            f"folder {title!r} (uid {uid})",
            lambda: self._face.folder.update_folder(uid, title, overwrite=True),
        )

    def datasource(self, uid: str) -> dict[str, Any] | None:
        """Return a data source, if there is one."""
        route = f"/datasources/uid/{quote(uid, safe='')}"
        return self._object("data source", uid, lambda: self._face.api.GET(route))

    def create_datasource(self, body: dict[str, Any]) -> None:
        """Make a data source."""
        what = f"data source {body['name']!r} (uid {body['uid']})"
        self._ask(what, lambda: self._face.datasource.create_datasource(body))

    def update_datasource(self, uid: str, body: dict[str, Any]) -> None:
        """Write a data source whose `version` is the one that was read."""
        route = f"/datasources/uid/{quote(uid, safe='')}"
        self._ask(f"data source {body['name']!r} (uid {uid})", lambda: self._face.api.PUT(route, json=body))

    def dashboard(self, uid: str) -> dict[str, Any] | None:
        """Return a dashboard as `dashboard` and `meta`, if there is one."""
        return self._object("dashboard", uid, lambda: self._face.dashboard.get_dashboard(uid))

    def latest_message(self, uid: str) -> str:
        """Return what was said when the latest version of a dashboard was saved."""
        route = f"/dashboards/uid/{quote(uid, safe='')}/versions?limit=1"
        answer = self._ask(f"dashboard (uid {uid})", lambda: self._face.api.GET(route))
        # Grafana 11 answers with the list itself.
        versions = answer.get("versions") if isinstance(answer, dict) else answer
        latest: dict[str, Any] = max(
            versions or [], key=lambda version: version.get("version") or 0, default={}
        )
        return str(latest.get("message") or "")

    def save_dashboard(self, body: dict[str, Any]) -> None:
        """Write a dashboard: its model, the folder's uid, a message, and whether it may overwrite."""
        board = body["dashboard"]
        what = f"dashboard {board['title']!r} (uid {board['uid']})"
        self._ask(what, lambda: self._face.dashboard.update_dashboard(body))

    def _object(self, kind: str, uid: str, ask: Callable[[], Any]) -> dict[str, Any] | None:
        try:
            found = self._ask(f"{kind} (uid {uid})", ask)
        except GrafanaRefusedError as error:
            if error.answered == requests.codes.not_found:
                return None
            raise
        if not isinstance(found, dict) or not found:
            raise self._no_grafana()
        return found

    def _ask(self, what: str, ask: Callable[[], Any]) -> Any:
        """Return Grafana's answer, empty where it has none; tell what went wrong with which thing."""
        try:
            return ask()
        except GrafanaRefusedError as error:
            raise GrafanaRefusedError(
                refusal(what, error.answered, str(error), self.url), answered=error.answered
            ) from error
        except requests.exceptions.JSONDecodeError as error:
            if not error.doc.strip():
                return {}  # 204 and the like: done, and nothing to say
            raise self._no_grafana() from error
        except requests.exceptions.SSLError as error:
            raise GrafanaError(insecure(self.url, innermost(error))) from error
        except requests.exceptions.RequestException as error:
            raise GrafanaError(
                f"no Grafana answers at {self.url} ({cause(error)}); check --url and that Grafana runs, and publish "
                "again: nothing is written twice"
            ) from error

    def _check(self, response: requests.Response, *_: object, **__: object) -> None:
        """Read errors before grafana-api does, which fails on answers that are not JSON objects."""
        if response.is_redirect:
            # Followed, a POST would become a GET, and the token might go elsewhere.
            where = response.headers["Location"].split("?")[0].removesuffix("/api/health")
            raise GrafanaError(
                f"{self.url} sends on to {where}; give that address as --url, if it is Grafana's"
            )
        if response.status_code >= requests.codes.bad_request:
            raise GrafanaRefusedError(said_by(response), answered=response.status_code)

    def _no_grafana(self) -> GrafanaError:
        return GrafanaError(
            f"what answers at {self.url} is no Grafana: it did not answer as GET /api/health of one does; check "
            "--url, and its path where Grafana is served below one"
        )


def _retry(pause_seconds: float) -> Retry:
    """Ask again what was only read, or what was never sent."""
    return Retry(
        total=_TRIES - 1,
        other=0,
        # A write whose answer is lost may have been taken; it is told, not sent twice.
        allowed_methods=frozenset({"GET"}),
        status_forcelist=_BUSY,
        backoff_factor=pause_seconds,
        respect_retry_after_header=False,
        raise_on_status=False,
    )


def _address(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        usable = bool(address.hostname) and (address.port is None or address.port > 0)
    except ValueError:
        usable = False
    if not usable or address.scheme not in ("http", "https"):
        raise GrafanaError(
            f"{url!r} is no address of a Grafana; an address is like https://grafana.example.org"
        )
    if address.username is not None or address.query or address.fragment:
        # Not repeated: there may be a password in it.
        raise GrafanaError(
            f"the address of the Grafana at {address.hostname} has a user, a query or a fragment in it; give the "
            "address alone, and the token of a service account"
        )
    return address


def _token(token: str) -> str:
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise GrafanaError(
            "the Grafana token is empty, or has characters that no token has; copy it again from Administration, "
            "Users and access, Service accounts"
        )
    return token


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
