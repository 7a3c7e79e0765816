"""Runs that are trained elsewhere: their trainer makes them and reports them."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from curvewatch_service.api.bodies import read_body
from curvewatch_service.api.session import CurrentUser, User, require_user, services_of
from curvewatch_service.auth import new_ingest_token, token_hash
from curvewatch_service.elsewhere import put_reported_run
from curvewatch_workers.contract import LONGEST_RUN_ID, RUN_ID_PATTERN, ReportedRun, ReportedRunAnswer

MAX_BYTES = 64 * 1024
_logger = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1", dependencies=[Depends(require_user)])


async def _body(request: Request, _user: Annotated[User, Depends(require_user)]) -> bytes:
    return await read_body(request, limit=MAX_BYTES, remedy="send the run alone")


@router.put(
    "/runs/{run_id}",
    responses={201: {"model": ReportedRunAnswer, "description": "The run was not there before."}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ReportedRun.model_json_schema()}},
        }
    },
)
def put_run(
    request: Request,
    response: Response,
    user: CurrentUser,
    run_id: Annotated[str, Path(pattern=RUN_ID_PATTERN, max_length=LONGEST_RUN_ID)],
    body: Annotated[bytes, Depends(_body)],
) -> ReportedRunAnswer:
    """Make a run that is trained elsewhere, or go on with it: its ingest token is new each time.

    So a trainer that goes on after a crash shuts out what is left of the one before.
    """
    try:
        reported = ReportedRun.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from error
    services, token = services_of(request), new_ingest_token()
    made = put_reported_run(
        services.store,
        run_id=run_id,
        spec=reported.spec(),
        owner=user.name,
        ingest_token_hash=token_hash(token),
    )
    if made:
        response.status_code = 201
        _logger.info(
            "%s reports run %s.", user.name, run_id, extra={"action": "run_reported", "run_id": run_id}
        )
    return ReportedRunAnswer(ingest_token=token)
