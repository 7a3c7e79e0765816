"""What would have to be done on a Grafana; nothing is written here.

A dashboard that is published carries, as the message of its version, a fingerprint of the built file. By it
the next call tells its own work from a person's: Grafana brings what it stores up to its own schema, so that
the same dashboard may read differently.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import requests

from curvewatch_dashboards.knobs import Knobs
from curvewatch_dashboards.provisioning import datasource as datasource_fields
from curvewatch_service.errors import GrafanaRefusedError
from curvewatch_service.grafana.changes import Change, changes
from curvewatch_service.grafana.server import GrafanaServer

_MESSAGE = re.compile(r"Curvewatch .* \(([0-9a-f]{16})\)")
_OWN = ("id", "version")
"""What Grafana counts for itself in a dashboard."""


class Action(StrEnum):
    """What is to be done with one thing, or why it was not."""

    CREATE = "create"
    UPDATE = "update"
    UNCHANGED = "unchanged"
    KEPT = "kept"
    """It differs, and is not ours to change."""
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing on Grafana, and what is to be done with it."""

    kind: str
    """folder, data source or dashboard."""
    uid: str
    title: str
    action: Action
    reason: str = ""
    """Why it is kept, or has failed."""
    changes: tuple[Change, ...] = ()
    body: dict[str, Any] | None = None
    """What is sent to Grafana."""
    path: str = ""
    """Where it is seen, below Grafana's address."""

    @property
    def writes(self) -> bool:
        """Whether something is sent."""
        return self.action in (Action.CREATE, Action.UPDATE)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a user asks for; None leaves alone what is there."""

    folder: str | None = None
    """Title of the folder."""
    prometheus_url: str | None = None
    """Prometheus of the data source."""
    overwrite: bool = False
    """Whether what people have changed is replaced."""


@dataclass(frozen=True, kw_only=True)
class BuiltDashboard:
    """A dashboard of the installed package."""

    name: str
    """Name of its file."""
    model: dict[str, Any]
    fingerprint: str
    """16 hexadecimal digits that change with its content."""

    @property
    def message(self) -> str:
        """What its version is saved with."""
        return f"Curvewatch {version('curvewatch')}: {self.name} ({self.fingerprint})"


def built_dashboards() -> list[BuiltDashboard]:
    """Return the dashboards that the installed package carries, by the name of their file."""
    folder = files("curvewatch_dashboards") / "built"
    return [
        BuiltDashboard(
            name=file.name,
            model=json.loads(content := file.read_text(encoding="utf-8")),
            fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
        )
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".json")
    ]


def plan(
    server: GrafanaServer, wanted: Wanted, dashboards: list[BuiltDashboard], knobs: Knobs
) -> Iterator[Step]:
    """Yield one step for each thing, in the order in which they have to be done.

    Raises:
        GrafanaError: Grafana cannot be read.
    """
    if wanted.prometheus_url is not None:
        yield _datasource(server, wanted.prometheus_url, knobs)
    yield _folder(server, wanted.folder, knobs)
    for dashboard in dashboards:
        yield _dashboard(server, dashboard, knobs.folder_uid, overwrite=wanted.overwrite)


def _folder(server: GrafanaServer, title: str | None, knobs: Knobs) -> Step:
    uid = knobs.folder_uid
    found = server.folder(uid)
    before = found and {"title": found.get("title")}
    # Where nobody asks for a title, people may give the folder one.
    after = {"title": title or (found or {}).get("title") or knobs.folder_title}
    return Step(
        kind="folder",
        uid=uid,
        title=after["title"],
        action=_action(before, after),
        changes=tuple(changes(before or {}, after)),
        body=after,
        path=f"/dashboards/f/{uid}",
    )


def _datasource(server: GrafanaServer, url: str, knobs: Knobs) -> Step:
    uid = knobs.datasource_uid
    wanted = datasource_fields(knobs, url)
    found = server.datasource(uid)
    step: dict[str, Any] = {"kind": "data source", "uid": uid, "path": f"/connections/datasources/edit/{uid}"}
    if found is None:
        found_changes = tuple(changes({}, wanted))
        return Step(**step, title=wanted["name"], action=Action.CREATE, changes=found_changes, body=wanted)
    # Its name, sign-in and other settings stay: they may be somebody's.
    body = {**found, "type": wanted["type"], "url": url}
    different = tuple(changes(found, body))
    title = str(found.get("name", wanted["name"]))
    if different and found.get("readOnly"):
        reason = (
            f"it is provisioned from a file on Grafana's machine, with {found.get('url')}; change it there"
        )
        return Step(**step, title=title, action=Action.KEPT, reason=reason, changes=different)
    action = Action.UPDATE if different else Action.UNCHANGED
    return Step(**step, title=title, action=action, changes=different, body=body)


def _dashboard(server: GrafanaServer, built: BuiltDashboard, folder_uid: str, *, overwrite: bool) -> Step:
    model = built.model
    uid, title = model["uid"], model["title"]
    try:
        found = server.dashboard(uid) or {}
    except GrafanaRefusedError as error:
        if error.answered != requests.codes.not_acceptable:
            raise
        # It was saved in the schema of dynamic dashboards, which this route does not give out.
        found = {"meta": {"newer": True, "folderUid": folder_uid}}
    before, meta = found.get("dashboard") or {}, found.get("meta") or {}
    place = meta.get("folderUid") or ""
    # People may move it; --overwrite brings it back.
    moved = bool(found) and overwrite and place != folder_uid
    body = {
        # Grafana refuses a version that somebody else has replaced meanwhile.
        "dashboard": {**model, "id": before.get("id"), "version": before.get("version", 0)},
        "folderUid": place if found and not moved else folder_uid,
        "message": built.message,
        "overwrite": overwrite,
    }
    step = Step(kind="dashboard", uid=uid, title=title, action=Action.CREATE, path=f"/d/{uid}", body=body)
    if not found:
        return replace(step, changes=tuple(changes({}, _summary(model))))
    different = tuple(changes(_content(before), _content(model)))
    if moved:
        different = (Change(path="folder", before=place or "root", after=folder_uid), *different)
    if not different:
        return replace(step, action=Action.UNCHANGED)
    action, reason = _may_change(server, built, meta, overwrite=overwrite, moved=moved)
    return replace(step, action=action, reason=reason, changes=different)


def _may_change(
    server: GrafanaServer, built: BuiltDashboard, meta: dict[str, Any], *, overwrite: bool, moved: bool
) -> tuple[Action, str]:
    """Return what to do with a dashboard that differs from the built one, and why."""
    if meta.get("provisioned"):
        return Action.KEPT, "it is provisioned from a file on Grafana's machine; mount the newer file there"
    if meta.get("newer"):
        saved = "somebody saved it in the schema of dynamic dashboards"
        return (
            (Action.UPDATE, "")
            if overwrite
            else (Action.KEPT, f"{saved}; publish with --overwrite to replace it")
        )
    ours = _MESSAGE.fullmatch(server.latest_message(built.model["uid"]))
    if ours is not None and ours[1] == built.fingerprint and not moved:
        return Action.UNCHANGED, "as published; Grafana stores it in its own schema"
    if ours is not None or overwrite:
        return Action.UPDATE, ""
    who = meta.get("updatedBy") or "somebody"
    when = f" on {meta['updated']}" if meta.get("updated") else ""
    return (
        Action.KEPT,
        f"{who} saved it{when}, not this command; save a copy in Grafana, or publish with --overwrite",
    )


def _action(before: dict[str, Any] | None, after: dict[str, Any]) -> Action:
    if before is None:
        return Action.CREATE
    return Action.UNCHANGED if before == after else Action.UPDATE


def _content(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in _OWN}


def _summary(model: dict[str, Any]) -> dict[str, Any]:
    """Return what a person wants to know of a new dashboard."""
    variables = (model.get("templating") or {}).get("list") or []
    return {
        "title": model["title"],
        "panels": [panel.get("title") for panel in model["panels"] if panel["type"] != "row"],
        "variables": [variable["name"] for variable in variables],
    }
