"""Counts and times the answers of the service."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curvewatch_workers import series

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NO_ROUTE: Final = "none"

# A series of its own for the birth of each counter tells nothing that the process's start does not.
disable_created_metrics()  # type: ignore[no-untyped-call]


class TimingMiddleware:
    """Counts every answer by method, route and status, and times it until its last byte is handed on.

    A route is named by its pattern, and what has none, or a method of its own making, goes by one name: a stranger
    who tries addresses adds no series.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        count, seconds = series.HTTP_REQUESTS, series.HTTP_SECONDS
        self._count = Counter(count.name, count.help, count.labels, registry=registry)
        self._seconds = Histogram(
            seconds.name, seconds.help, seconds.labels, registry=registry, buckets=BUCKETS
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            self._count.labels(method, route, str(status)).inc()
            self._seconds.labels(method, route).observe(time.perf_counter() - started)
