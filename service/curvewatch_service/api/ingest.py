"""What the workers of a run tell, with the run's own token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from curvewatch_service.api.bodies import read_body
from curvewatch_service.api.session import bearer_token, services_of
from curvewatch_service.auth import may_ingest
from curvewatch_service.errors import NotAuthenticatedError
from curvewatch_workers.contract import IngestAnswer, IngestRequest
from curvewatch_workers.series import INGEST_ERRORS

MAX_BYTES = 64 * 1024 * 1024
router = APIRouter(prefix="/api/v1")


def _count_refusals(request: Request) -> Iterator[None]:
    try:
        yield
    except Exception:
        services_of(request).store.counters.add(INGEST_ERRORS)
        raise


def _require_run_token(
    request: Request, run_id: str, _counted: Annotated[None, Depends(_count_refusals)]
) -> None:
    token = bearer_token(request)
    if token is None or not may_ingest(services_of(request).store, run_id, token):
        raise NotAuthenticatedError(
            f"only the workers of run {run_id!r} may tell about it, with the token in the run's own folder"
        )


async def _body(request: Request, _allowed: Annotated[None, Depends(_require_run_token)]) -> bytes:
    return await read_body(request, limit=MAX_BYTES)


@router.post(
    "/runs/{run_id}/ingest",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": IngestRequest.model_json_schema()}},
        }
    },
)
def ingest(request: Request, run_id: str, body: Annotated[bytes, Depends(_body)]) -> IngestAnswer:
    """Take messages of workers; those that were taken before change nothing."""
    try:
        messages = IngestRequest.model_validate_json(body).messages
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
    return IngestAnswer(control=services_of(request).store.ingest(run_id, messages))
