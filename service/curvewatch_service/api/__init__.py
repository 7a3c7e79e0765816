"""The HTTP API: one app that answers users, workers, browsers and Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI, Request
from prometheus_client import CollectorRegistry, ProcessCollector

# As a module, not its names: the pages use the sign-in of this package.
import curvewatch_service.pages
from curvewatch_service.api import alerts, health, history, ingest, problems, reported, runs, session
from curvewatch_service.api.safety import SafetyMiddleware
from curvewatch_service.api.timing import TimingMiddleware
from curvewatch_service.auth import Sessions
from curvewatch_service.export import RunCollector
from curvewatch_service.export_curves import CurveCollector
from curvewatch_service.services import Services

__all__ = ["create_app"]


def create_app(services: Services) -> FastAPI:
    """Return the app: the API, the sign-in, the pages and `/metrics`."""
    # The usual pages of documentation load scripts from elsewhere; the schema itself is behind the token.
    app = FastAPI(title="Curvewatch", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.services = services
    app.state.sessions = Sessions(services.store)
    app.state.cluster_probe = health.ClusterProbe(services.cluster)
    app.state.registry = _registry(services)
    app.state.curves = CollectorRegistry()
    app.state.curves.register(CurveCollector(services.store, services.settings))
    problems.install(app)
    app.add_middleware(SafetyMiddleware)
    # The outermost: what the others answer counts as well.
    app.add_middleware(TimingMiddleware, registry=app.state.registry)
    app.add_api_route(
        "/openapi.json", _schema, dependencies=[Depends(session.require_user)], include_in_schema=False
    )
    for module in (alerts, health, history, ingest, reported, runs, session):
        app.include_router(module.router)
    app.include_router(curvewatch_service.pages.router(services))
    return app


def _registry(services: Services) -> CollectorRegistry:
    """Return a registry of its own for each app, so that two in one process do not mix."""
    registry = CollectorRegistry()
    registry.register(RunCollector(services.store, services.settings))
    ProcessCollector(registry=registry)
    return registry


def _schema(request: Request) -> dict[str, Any]:
    app: FastAPI = request.app
    return app.openapi()
