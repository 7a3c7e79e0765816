"""What every answer carries, and what becomes of an error that nobody expected."""

from __future__ import annotations

import logging
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curvewatch_service.api.problems import problem_answer, unexpected

_HEADERS: Final = {
    # Scripts and data come from this service only. The charts set styles, which needs unsafe-inline; they
    # make their pictures for download at data: and blob: addresses.
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_logger = logging.getLogger(__name__)


class SafetyMiddleware:
    """Adds the security headers to every answer, and answers an unexpected error with a problem."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # What a user sees stays out of caches; static files bring an etag.
                if "etag" not in headers:
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            if started:
                raise
            what = f"{scope['method']} {scope['path']}"
            _logger.exception("%s failed.", what, extra={"action": "request_failed", "path": scope["path"]})
            await problem_answer(unexpected())(scope, receive, send_with_headers)
