"""Do on a Grafana what was planned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from curvewatch_service.errors import GrafanaError, GrafanaRefusedError
from curvewatch_service.grafana.planning import Action, Step
from curvewatch_service.grafana.server import GrafanaServer

_AWAY = "not tried, because Grafana does not answer any more; publish again"
_NO_FOLDER = "not tried, because its folder could not be made"


def apply(server: GrafanaServer, steps: Iterable[Step]) -> Iterator[Step]:
    """Do the steps, and yield each as it went: one that fails says why, and what does not need it goes on."""
    away = no_folder = False
    for step in steps:
        if away and step.writes:
            yield _failed(step, _AWAY)
        elif no_folder and step.kind == "dashboard" and step.action is Action.CREATE:
            yield _failed(step, _NO_FOLDER)
        else:
            try:
                _write(server, step)
            except GrafanaError as error:
                away = not isinstance(error, GrafanaRefusedError)
                no_folder = no_folder or (step.kind == "folder" and step.action is Action.CREATE)
                yield _failed(step, str(error))
            else:
                yield step


def _failed(step: Step, reason: str) -> Step:
    return replace(step, action=Action.FAILED, reason=reason)


def _write(server: GrafanaServer, step: Step) -> None:
    if not step.writes:
        return
    body, create = step.body or {}, step.action is Action.CREATE
    if step.kind == "folder" and create:
        server.create_folder(step.uid, step.title)
    elif step.kind == "folder":
        server.rename_folder(step.uid, step.title)
    elif step.kind == "dashboard":
        server.save_dashboard(body)
    elif create:
        server.create_datasource(body)
    else:
        server.update_datasource(step.uid, body)
