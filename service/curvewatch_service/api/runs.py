"""Runs: submit, list, show and stop them."""

from __future__ import annotations

import logging
import shutil
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from curvewatch_service.alerts import alerts_of
from curvewatch_service.api.bodies import Upload, read_upload
from curvewatch_service.api.session import CurrentUser, User, require_user, services_of
from curvewatch_service.auth import new_ingest_token, token_hash, write_ingest_token
from curvewatch_service.code import require_task_module
from curvewatch_service.errors import BadRequestError, ClusterUnavailableError
from curvewatch_service.planning import require_fit
from curvewatch_service.runs import RunState
from curvewatch_service.schemas import EpochList, EventList, LogView, RecordList, RunList, RunView
from curvewatch_service.services import Services
from curvewatch_service.store import Run
from curvewatch_service.views import epoch_view, event_view, run_summary, run_view
from curvewatch_workers.contract import JobSpec, RunLayout, new_run_id, parse_job_spec

MAX_PAGE = 1000
_logger = logging.getLogger(__name__)
router = APIRouter(prefix="/api/v1", dependencies=[Depends(require_user)])


async def _upload(request: Request, _user: Annotated[User, Depends(require_user)]) -> Upload:
    return await read_upload(request, max_code_bytes=services_of(request).settings.max_code_bytes)


@router.post(
    "/runs",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["spec", "code"],
                        "properties": {
                            "spec": {"type": "string", "description": "The job file, YAML or JSON."},
                            "code": {
                                "type": "string",
                                "format": "binary",
                                "description": "The code folder, zipped.",
                            },
                        },
                    }
                }
            },
        }
    },
)
def submit(request: Request, user: CurrentUser, upload: Annotated[Upload, Depends(_upload)]) -> RunView:
    """Take a job; it waits in the queue until the cluster has room for it."""
    services = services_of(request)
    spec = parse_job_spec(upload.spec, source="job.yaml")
    unchecked = _require_fit(services, spec)
    require_task_module(
        services.code.names(upload.code), spec.code, installed_known=services.settings.embedded
    )
    run = _create(services, spec, owner=user.name, code_hash=services.code.put(upload.code))
    if unchecked is not None:
        services.store.add_event(run.run_id, reason="fit_unchecked", message=unchecked)
    _logger.info(
        "%s submitted run %s.", user.name, run.run_id, extra={"action": "run_submitted", "run_id": run.run_id}
    )
    services.notify()
    return run_view(run, None)


def _require_fit(services: Services, spec: JobSpec) -> str | None:
    """Refuse a job that the cluster can never run; return why that is not known, if it is not.

    A cluster that is away now may be back when the run's turn comes, so the job is taken.
    """
    try:
        require_fit(spec, services.cluster.resources())
    except ClusterUnavailableError as error:
        return f"taken without a look at the cluster, which does not answer: {error}"
    return None


def _create(services: Services, spec: JobSpec, *, owner: str, code_hash: str) -> Run:
    run_id, token = new_run_id(spec.name), new_ingest_token()
    layout = RunLayout(services.settings.storage_path, run_id)
    try:
        # Before the run is known: its workers may start as soon as it is.
        write_ingest_token(layout.ingest_token, token)
        return services.store.create_run(
            run_id=run_id, spec=spec, owner=owner, code_hash=code_hash, ingest_token_hash=token_hash(token)
        )
    except Exception:
        shutil.rmtree(layout.root, ignore_errors=True)
        raise


@router.get("/runs")
def list_runs(
    request: Request,
    state: Annotated[list[str] | None, Query(description="Only runs in these states.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    offset: Annotated[int, Query(ge=0, lt=2**63)] = 0,
) -> RunList:
    """List runs, newest first."""
    store = services_of(request).store
    states = list(RunState) if state is None else [_parse_state(label) for label in state]
    runs = store.runs(states=states, limit=limit, offset=offset)
    latest, counts = store.latest_epochs([run.run_id for run in runs]), store.count()
    return RunList(
        runs=[run_summary(run, latest.get(run.run_id)) for run in runs],
        total=sum(counts[state] for state in set(states)),
    )


def _parse_state(label: str) -> RunState:
    try:
        return RunState.parse(label.upper())
    except KeyError:
        known = ", ".join(state.label for state in RunState)
        raise BadRequestError(f"there is no state {label!r}; the states are {known}") from None


@router.get("/runs/{run_id}")
def show_run(request: Request, run_id: str) -> RunView:
    """Show a run."""
    services = services_of(request)
    snapshot = services.store.snapshot(run_id)
    silence = services.settings.alert_silence_seconds
    alerts = alerts_of(services.store, run_id, silence_seconds=silence)
    return run_view(snapshot.run, snapshot.latest, alerts)


@router.get("/runs/{run_id}/epochs")
def list_epochs(request: Request, run_id: str) -> EpochList:
    """Show a run's curve: each epoch once, in order."""
    return EpochList(epochs=[epoch_view(record) for record in services_of(request).store.epochs(run_id)])


@router.get("/runs/{run_id}/records")
def list_records(request: Request, run_id: str) -> RecordList:
    """Show a run's records, each epoch once, in order: the totals and counts that its numbers follow from."""
    return RecordList(records=list(services_of(request).store.epochs(run_id)))


@router.get("/runs/{run_id}/events")
def list_events(request: Request, run_id: str) -> EventList:
    """Show what happened to a run, in order."""
    return EventList(events=[event_view(event) for event in services_of(request).store.events(run_id)])


@router.get("/runs/{run_id}/logs")
def show_logs(request: Request, run_id: str) -> LogView:
    """Show the end of what the run's program printed; empty before it was given to the cluster."""
    services = services_of(request)
    submission_id = services.store.run(run_id).submission_id
    return LogView(text="" if submission_id is None else services.cluster.logs(submission_id))


@router.post("/runs/{run_id}/stop")
def stop_run(request: Request, user: CurrentUser, run_id: str) -> RunView:
    """Stop a run: at once while it is queued, else after its current epoch, with a checkpoint."""
    services = services_of(request)
    services.store.stop(run_id, actor=user.name)
    services.notify()
    return show_run(request, run_id)
