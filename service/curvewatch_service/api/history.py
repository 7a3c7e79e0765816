"""The past of a run, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST

from curvewatch_service.api.session import require_user, services_of
from curvewatch_service.history import read_history
from curvewatch_service.openmetrics import document
from curvewatch_service.schemas import SAMPLES_HEADER
from curvewatch_workers.series import HISTORY_PATH

router = APIRouter(dependencies=[Depends(require_user)])


@router.get(
    HISTORY_PATH,
    response_class=StreamingResponse,
    responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}},
)
def history(request: Request, run_id: str) -> StreamingResponse:
    """Return every epoch of a run's curve as OpenMetrics text, each at the time at which it ended."""
    services = services_of(request)
    # Before the answer begins: what goes wrong with the run is then an error and not half an answer.
    found = read_history(services.store, run_id, cluster=services.settings.cluster_name)
    return StreamingResponse(
        document(found),
        headers={
            "Content-Type": CONTENT_TYPE_LATEST,
            SAMPLES_HEADER: str(sum(len(one.times) for one in found)),
        },
    )
