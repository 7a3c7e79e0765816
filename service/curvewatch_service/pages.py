"""The page: the list of runs, one run, and the sign-in, for a browser."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from fastapi.routing import APIRoute

from curvewatch_service import terminal
from curvewatch_service.alerts import alerts_of
from curvewatch_service.api.session import PageUser, User, local_path
from curvewatch_service.errors import NotFoundError, ServiceError
from curvewatch_service.rendering import environment, static_file
from curvewatch_service.schemas import EpochView, RunView
from curvewatch_service.services import Services
from curvewatch_service.views import epoch_view, event_view, run_summary, run_view

RUNS_ON_A_PAGE = 50
_TEMPLATES = environment()
_TITLES = {401: "Sign in", 403: "Not from here", 404: "No such page", 409: "Not possible", 503: "Ray is away"}


class _PageRoute(APIRoute):
    """Shows errors as a page: who looks at one is a person."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_or_explain(request: Request) -> Response:
            try:
                return await answer(request)
            except ServiceError as error:
                return _problem(error.status, str(error))
            except RequestValidationError:
                return _problem(422, f"the address {request.url.path}?{request.url.query} cannot be used")

        return answer_or_explain


def router(services: Services) -> APIRouter:
    """Return the routes of the page."""
    pages = _Pages(services)
    routes = APIRouter(include_in_schema=False, route_class=_PageRoute)
    routes.add_api_route("/", pages.runs)
    routes.add_api_route("/login", _login)
    routes.add_api_route("/runs/{run_id}", pages.run)
    routes.add_api_route("/runs/{run_id}/logs", pages.logs)
    routes.add_api_route("/runs/{run_id}/stop", pages.stop, methods=["POST"])
    routes.add_api_route("/static/{name}", _static)
    return routes


class _Pages:
    def __init__(self, services: Services) -> None:
        self._services = services

    def runs(self, user: PageUser, page: Annotated[int, Query(ge=1, le=1_000_000)] = 1) -> Response:
        """Show the list of runs, newest first."""
        store = self._services.store
        counts = store.count()
        runs = store.runs(limit=RUNS_ON_A_PAGE, offset=(page - 1) * RUNS_ON_A_PAGE)
        latest = store.latest_epochs([run.run_id for run in runs])
        return _page(
            "runs.html",
            user,
            runs=[run_summary(run, latest.get(run.run_id)) for run in runs],
            total=sum(counts.values()),
            active=sum(count for state, count in counts.items() if not state.terminal),
            page=page,
            pages=max(1, math.ceil(sum(counts.values()) / RUNS_ON_A_PAGE)),
        )

    def run(self, run_id: str, user: PageUser) -> Response:
        """Show one run."""
        store = self._services.store
        snapshot = store.snapshot(run_id)
        records = store.epochs(run_id)
        silence = self._services.settings.alert_silence_seconds
        alerts = alerts_of(store, run_id, silence_seconds=silence)
        view = run_view(snapshot.run, snapshot.latest, alerts)
        epochs = [epoch_view(record) for record in records]
        return _page(
            "run.html",
            user,
            run=view,
            terminal=snapshot.run.state.terminal,
            epochs=epochs,
            events=[event_view(event) for event in store.events(run_id)],
            best=terminal.best_epoch(epochs),
            exact_epochs=sum(
                epoch.train.receipt.exact and epoch.validation.receipt.exact for epoch in epochs
            ),
            left=_time_left(view, epochs),
            duration=_duration(view),
            spec_yaml=yaml.safe_dump(view.spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        )

    def logs(self, run_id: str, user: PageUser) -> Response:  # noqa: ARG002 - who is checked, not used
        """Show what the run's program printed."""
        submission_id = self._services.store.run(run_id).submission_id
        text = self._services.cluster.logs(submission_id) if submission_id is not None else ""
        return PlainTextResponse(text or "The job has written nothing yet.\n")

    def stop(self, run_id: str, user: PageUser) -> Response:
        """Stop a run, and lead back to its page."""
        self._services.store.stop(run_id, actor=user.name)
        self._services.notify()
        return RedirectResponse(f"/runs/{run_id}", status_code=303)


def _login(next: str = "/", failed: bool = False) -> Response:  # noqa: A002 - the name in the address
    """Show the sign-in."""
    error = "This service does not know that token." if failed else ""
    return _page("login.html", None, next=local_path(next), error=error)


def _static(name: str) -> Response:
    """Return a file of the page; its address changes with its content."""
    file = static_file(name)
    if file is None:
        raise NotFoundError(f"there is no file {name!r}")
    headers = {
        "Content-Encoding": "gzip",
        "ETag": f'"{file.digest}"',
        "Cache-Control": "public, max-age=31536000, immutable",
    }
    return Response(file.content, media_type=file.media_type, headers=headers)


def _page(template: str, user: User | None, *, status: int = 200, **content: object) -> Response:
    owner, csrf = (user.name, user.csrf) if user is not None else ("", "")
    text = _TEMPLATES.get_template(template).render(owner=owner, csrf=csrf, **content)
    return HTMLResponse(text, status_code=status)


def _problem(status: int, detail: str) -> Response:
    title = _TITLES.get(status, "This did not work")
    return _page("problem.html", None, status=status, title=title, detail=detail)


def _time_left(run: RunView, epochs: Sequence[EpochView]) -> str:
    """Return how long the run still takes; empty when it does not train now or that is not known."""
    seconds = terminal.seconds_left(epochs, run.epochs_planned)
    return terminal.span(seconds) if seconds is not None and run.state == "RUNNING" else ""


def _duration(run: RunView) -> str:
    if run.started_at is None:
        return "-"
    return terminal.span(((run.finished_at or datetime.now(UTC)) - run.started_at).total_seconds())
