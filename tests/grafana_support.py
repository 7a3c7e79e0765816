"""A Grafana on loopback that holds requests against Grafana's documented HTTP API, and answers as it does.

Real HTTP, no Grafana: routes, fields, statuses and messages are those of "Folder HTTP API", "Data source HTTP
API", "Dashboard HTTP API (legacy)", "Dashboard versions" and "Other HTTP API" in Grafana's documentation of 11
to 13. What a documented request would not be is kept in `mistakes`; a test that ends with one fails.

What differs between the versions, as far as Curvewatch can notice:
- 11 returns a dashboard as it was saved, from 12 on in Grafana's newest schema, with fields that nobody sent.
- Before 11.6 the versions of a dashboard come as an array, later as an object with `versions`.
- From 12 on a dashboard that a person saved in the schema of dynamic dashboards is a 406.
- 13 has no route with the numeric id of a data source (they need the toggle datasourceLegacyIdApi).
- A folder that is there already is a 409 in 11, a 412 from 12 on.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "glsa_0123456789abcdef"
VERSIONS = ("11.4.0", "12.3.0", "13.0.1")

_DATASOURCE_FIELDS = {
    **dict.fromkeys(("uid", "name", "type", "access", "url", "user", "database", "basicAuthUser"), str),
    **dict.fromkeys(("password", "basicAuthPassword", "typeLogoUrl", "apiVersion"), str),
    **dict.fromkeys(("basicAuth", "withCredentials", "isDefault", "readOnly"), bool),
    **dict.fromkeys(("id", "orgId", "version"), int),
    **dict.fromkeys(("jsonData", "secureJsonData", "secureJsonFields", "accessControl"), dict),
}
_FIELDS: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "folders"): {"uid": str, "title": str, "parentUid": str},
    ("PUT", "folders"): {"title": str, "version": int, "overwrite": bool},
    ("POST", "dashboards"): {
        "dashboard": dict,
        "folderId": int,
        "folderUid": str,
        "message": str,
        "overwrite": bool,
    },
    ("POST", "datasources"): _DATASOURCE_FIELDS,
    ("PUT", "datasources"): _DATASOURCE_FIELDS,
}
_NEEDED = {"folders": ("title",), "dashboards": ("dashboard",), "datasources": ("name", "type", "access")}


@dataclass
class Answer:
    """What a request is answered with."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """An answer that comes instead of Grafana's own, `times` times."""

    method: str
    path: str
    answer: Answer
    times: int = 1


def refusal(status: int, message: str, /, **more: Any) -> Answer:
    """Return an error as Grafana writes it."""
    return Answer(status, {"message": message, **more})


@dataclass
class FakeGrafana:
    """The state of one Grafana, and what it was asked."""

    version: str
    role: str = "Admin"
    """Role of the service account: Viewer, Editor or Admin."""
    url: str = ""
    folders: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasources: dict[str, dict[str, Any]] = field(default_factory=dict)
    dashboards: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Saved versions of each dashboard, the oldest first: model, message, by, folder."""
    provisioned: set[str] = field(default_factory=set)
    """Dashboards that come from a file of the server."""
    dynamic: set[str] = field(default_factory=set)
    """Dashboards that a person saved in the schema of dynamic dashboards."""
    requests: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def writes(self) -> list[str]:
        """Requests that are no GET."""
        return [request for request in self.requests if not request.startswith("GET ")]

    def fail(self, method: str, path: str, answer: Answer, times: int = 1) -> None:
        """Let the next requests for a path be answered otherwise."""
        self.faults.append(Fault(method, path, answer, times))

    def edit(self, uid: str, by: str = "ada", message: str = "", **fields: Any) -> None:
        """Save a dashboard as a person does in the browser."""
        latest = self.dashboards[uid][-1]
        self._save(uid, {**latest["model"], **fields}, message=message, by=by, folder=latest["folder"])

    def answer(self, method: str, target: str, headers: Any, content: bytes) -> Answer:
        """Answer one request."""
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        self.requests.append(f"{method} {path}")
        for fault in self.faults:
            if fault.times and (fault.method, fault.path) == (method, path):
                fault.times -= 1
                return fault.answer
        if (method, path) == ("GET", "/api/health"):
            return Answer(200, {"database": "ok", "version": self.version, "commit": "0123456"})
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return refusal(401, "Invalid API key", messageId="api-key.invalid", traceID="")
        for verb, pattern, handle in _ROUTES:
            found = re.fullmatch(pattern, path)
            if verb == method and found and not (handle is _by_id and self.major >= 13):
                return self._checked(handle, found, query, headers, content, method, path)
        self.mistakes.append(f"{method} {path} is no route of Grafana {self.version}")
        return refusal(404, "Not found")

    def _checked(
        self,
        handle: Callable[..., Answer],
        found: re.Match[str],
        query: dict[str, list[str]],
        headers: Any,
        content: bytes,
        method: str,
        path: str,
    ) -> Answer:
        if set(query) - {"limit", "start"}:
            self.mistakes.append(f"{method} {path}: no parameter {query}")
        if method == "GET":
            return handle(self, *found.groups())
        body = json.loads(content)
        resource = path.split("/")[2]
        fields = _FIELDS[method, resource]
        wrong = [name for name, value in body.items() if not _fits(value, fields.get(name))]
        wrong += [name for name in _NEEDED[resource] if not body.get(name)]
        if headers.get("Content-Type") != "application/json" or wrong:
            self.mistakes.append(
                f"{method} {path}: wrong, missing or unknown {wrong}, {headers.get('Content-Type')}"
            )
            return refusal(400, "bad request data")
        return handle(self, *found.groups(), body)

    def denied(self, action: str, *roles: str) -> Answer | None:
        if self.role in roles:
            return None
        said = f"You'll need additional permissions to perform this action. Permissions needed: {action}"
        return refusal(403, said, accessErrorId="ACE0123456789", title="Access denied")

    def _save(self, uid: str, model: dict[str, Any], *, message: str, by: str, folder: str) -> None:
        versions = self.dashboards.setdefault(uid, [])
        versions.append({"model": model, "message": message, "by": by, "folder": folder})


def _fits(value: Any, kind: type | None) -> bool:
    if kind is None:
        return False
    return value is None or (isinstance(value, kind) and not (kind is int and isinstance(value, bool)))


def _get_folder(grafana: FakeGrafana, uid: str) -> Answer:
    if uid in grafana.folders:
        return Answer(200, grafana.folders[uid])
    missing = refusal(404, "folder not found", status="not-found")
    return grafana.denied("folders:read", "Admin") or missing


def _post_folder(grafana: FakeGrafana, body: dict[str, Any]) -> Answer:
    denied = grafana.denied("folders:create", "Editor", "Admin")
    if denied:
        return denied
    if body["uid"] in grafana.folders:
        status = 409 if grafana.major < 12 else 412
        return refusal(status, "a folder/dashboard with the same uid already exists")
    folder = {"id": len(grafana.folders) + 1, "uid": body["uid"], "title": body["title"], "version": 1}
    grafana.folders[body["uid"]] = {**folder, "url": f"/dashboards/f/{body['uid']}/x", "canSave": True}
    return Answer(200, grafana.folders[body["uid"]])


def _put_folder(grafana: FakeGrafana, uid: str, body: dict[str, Any]) -> Answer:
    denied = grafana.denied("folders:write", "Editor", "Admin")
    if denied or uid not in grafana.folders:
        return denied or refusal(404, "folder not found", status="not-found")
    folder = grafana.folders[uid]
    if not body.get("overwrite") and body.get("version") != folder["version"]:
        return refusal(412, "The folder has been changed by someone else", status="version-mismatch")
    folder.update(title=body["title"], version=folder["version"] + 1)
    return Answer(200, folder)


def _get_dashboard(grafana: FakeGrafana, uid: str) -> Answer:
    versions = grafana.dashboards.get(uid)
    if not versions:
        return refusal(404, "Dashboard not found")
    if uid in grafana.dynamic:
        instead = f"/apis/dashboard.grafana.app/v2beta1/namespaces/default/dashboards/{uid}"
        return refusal(406, f"dashboard api version not supported, use {instead} instead")
    latest = versions[-1]
    model = {**latest["model"], "id": 7, "version": len(versions)}
    if grafana.major >= 12:
        panels = [{"pluginVersion": grafana.version, **panel} for panel in model["panels"]]
        model = {"links": [], "preload": False, "timepicker": {}, **model, "panels": panels}
    meta = {
        "folderUid": latest["folder"],
        "provisioned": uid in grafana.provisioned,
        "updatedBy": latest["by"],
        "updated": "2026-05-04T10:00:00Z",
        "version": len(versions),
        "url": f"/d/{uid}/x",
    }
    return Answer(200, {"dashboard": model, "meta": meta})


def _get_versions(grafana: FakeGrafana, uid: str) -> Answer:
    denied = grafana.denied("dashboards:write", "Editor", "Admin")
    if denied:
        return denied
    listed = [
        {"id": at, "uid": uid, "version": at, "message": one["message"], "createdBy": one["by"]}
        for at, one in enumerate(grafana.dashboards[uid], start=1)
    ][::-1]
    return Answer(200, listed if grafana.major < 12 else {"continueToken": "", "versions": listed})


def _post_dashboard(grafana: FakeGrafana, body: dict[str, Any]) -> Answer:
    denied = grafana.denied("dashboards:write", "Editor", "Admin")
    if denied:
        return denied
    model = dict(body["dashboard"])
    uid, known = model["uid"], grafana.dashboards.get(model["uid"], [])
    if not model.get("title") or len(uid) > 40:
        return refusal(400, "Dashboard title cannot be empty")
    if body.get("folderUid") and body["folderUid"] not in grafana.folders:
        return refusal(400, "folder not found")
    if uid in grafana.provisioned:
        return refusal(400, "Cannot save provisioned dashboard")
    if model.pop("id") not in (7 if known else None, None):
        return refusal(404, "Dashboard not found", status="not-found")
    if model.pop("version", 0) != len(known) and known and not body.get("overwrite"):
        return refusal(412, "The dashboard has been changed by someone else", status="version-mismatch")
    grafana.dynamic.discard(uid)
    grafana._save(uid, model, message=body.get("message", ""), by="sa-ci", folder=body.get("folderUid", ""))
    version = len(grafana.dashboards[uid])
    return Answer(200, {"id": 7, "uid": uid, "url": f"/d/{uid}/x", "status": "success", "version": version})


def _get_datasource(grafana: FakeGrafana, uid: str) -> Answer:
    denied = grafana.denied("datasources:read", "Admin")
    if denied or uid not in grafana.datasources:
        return denied or refusal(404, "Data source not found")
    return Answer(200, grafana.datasources[uid])


def _post_datasource(grafana: FakeGrafana, body: dict[str, Any]) -> Answer:
    denied = grafana.denied("datasources:create", "Admin")
    if denied:
        return denied
    if body["name"] in [one["name"] for one in grafana.datasources.values()]:
        return refusal(409, "data source with the same name already exists")
    made = {"id": len(grafana.datasources) + 1, "orgId": 1, "version": 1, "readOnly": False, **body}
    grafana.datasources[body["uid"]] = {"secureJsonFields": {}, "basicAuth": False, **made}
    return Answer(
        200, {"id": made["id"], "message": "Datasource added", "name": body["name"], "datasource": made}
    )


def _put_datasource(grafana: FakeGrafana, uid: str, body: dict[str, Any]) -> Answer:
    denied = grafana.denied("datasources:write", "Admin")
    found = grafana.datasources.get(uid)
    if denied or found is None:
        return denied or refusal(404, "Data source not found")
    if found["readOnly"]:
        return refusal(403, "Cannot update read-only data source")
    if body.get("version", found["version"]) != found["version"]:
        return refusal(
            409, "Datasource has already been updated by someone else. Please reload and try again"
        )
    found.update(body, version=found["version"] + 1)
    return Answer(
        200, {"id": found["id"], "message": "Datasource updated", "name": found["name"], "datasource": found}
    )


def _by_id(grafana: FakeGrafana, number: str, *body: dict[str, Any]) -> Answer:
    uid = next((uid for uid, one in grafana.datasources.items() if one["id"] == int(number)), "")
    return _put_datasource(grafana, uid, *body) if body else _get_datasource(grafana, uid)


_ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", r"/api/folders/([\w-]+)", _get_folder),
    ("POST", r"/api/folders", _post_folder),
    ("PUT", r"/api/folders/([\w-]+)", _put_folder),
    ("GET", r"/api/dashboards/uid/([\w-]+)", _get_dashboard),
    ("GET", r"/api/dashboards/uid/([\w-]+)/versions", _get_versions),
    ("POST", r"/api/dashboards/db", _post_dashboard),
    ("GET", r"/api/datasources/uid/([\w-]+)", _get_datasource),
    ("POST", r"/api/datasources", _post_datasource),
    ("PUT", r"/api/datasources/uid/([\w-]+)", _put_datasource),
    ("GET", r"/api/datasources/(\d+)", _by_id),
    ("PUT", r"/api/datasources/(\d+)", _by_id),
)


@contextmanager
def serve_grafana(
    grafana: FakeGrafana, *, prefix: str = "", certificate: Path | None = None
) -> Iterator[FakeGrafana]:
    """Serve a Grafana on loopback below a path; end with a failure if it was asked what is not documented."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path.startswith(prefix):
                answer = grafana.answer(self.command, self.path.removeprefix(prefix), self.headers, content)
            else:
                answer = Answer(404, "<html>nginx</html>")
            body = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if answer.status != 204:
                self.wfile.write(body.encode())

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer  # noqa: N815 - names of http.server

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    grafana.url = f"{scheme}://127.0.0.1:{server.server_address[1]}{prefix}"
    try:
        yield grafana
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert grafana.mistakes == []
