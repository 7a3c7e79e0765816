"""What Alertmanager tells, with a token of its own."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from curvewatch_service.alerts import take_alerts
from curvewatch_service.api.bodies import read_body
from curvewatch_service.api.session import bearer_token, services_of
from curvewatch_service.auth import same_secret
from curvewatch_service.errors import NotAuthenticatedError
from curvewatch_service.notifications import AlertmanagerWebhook, notification_of
from curvewatch_service.schemas import View

MAX_BYTES = 4 * 1024 * 1024
_logger = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1")


class NotedView(View):
    """Answer of `POST /alerts`."""

    new: int
    """Alerts that said what was not known."""
    known: int
    without_run: int
    """Alerts on no run of this service."""


def _require_alerts_token(request: Request) -> None:
    token, expected = bearer_token(request), services_of(request).alerts_token
    if token is None or not expected or not same_secret(token, expected):
        raise NotAuthenticatedError(
            "alerts are taken from Alertmanager only, with the token in the file `alerts-token` of the service's data "
            "folder (CURVEWATCH_ALERTS_TOKEN_PATH); name a copy of it as credentials_file of the webhook's "
            "http_config.authorization"
        )


async def _body(request: Request, _allowed: Annotated[None, Depends(_require_alerts_token)]) -> bytes:
    return await read_body(request, limit=MAX_BYTES, remedy="set max_alerts of the webhook's receiver")


@router.post(
    "/alerts",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": AlertmanagerWebhook.model_json_schema()}},
        }
    },
)
def take(request: Request, body: Annotated[bytes, Depends(_body)]) -> NotedView:
    """Take a notification of Alertmanager's webhook; what was told before changes nothing."""
    try:
        webhook = AlertmanagerWebhook.model_validate_json(body)
        notifications = [notification_of(alert) for alert in webhook.alerts]
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
    if webhook.truncatedAlerts:
        _logger.warning(
            "Alertmanager left %d alerts out of a notification; raise max_alerts of its receiver.",
            webhook.truncatedAlerts,
            extra={"action": "alerts_truncated"},
        )
    services = services_of(request)
    noted = take_alerts(services.store, notifications)
    if noted.stops:
        services.notify()
    return NotedView(new=noted.new, known=noted.known, without_run=noted.without_run)
