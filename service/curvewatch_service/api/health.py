"""Is the service there, can it work, and what are its numbers: for probes and Prometheus, without a token."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from curvewatch_service.api.session import services_of
from curvewatch_service.cluster import Cluster
from curvewatch_service.errors import ClusterUnavailableError
from curvewatch_service.schemas import View
from curvewatch_workers.series import CURVES_PATH

CLUSTER_WAIT_SECONDS = 0.5
_VERSIONS = {
    "application/openmetrics-text": ("", "1.0.0"),
    "text/plain": ("", "0.0.4", "1.0.0"),
    "text/*": ("",),
    "*/*": ("",),
}
"""Versions of each format that can be answered; empty where the scraper names none."""
router = APIRouter()


class HealthView(View):
    """Answer of `GET /healthz`."""

    status: str = "ok"


class ReadyView(View):
    """Answer of `GET /readyz`."""

    store: str = "ok"
    """Always `ok`: without its store the service answers with an error."""
    cluster: str
    """`ok`, `unavailable`, or `unknown` while the cluster takes long to answer."""


class ClusterProbe:
    """Asks whether the cluster answers, without waiting long; one question at a time."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="cluster-probe")
        self._question: Future[object] | None = None

    def state(self) -> str:
        """Return `ok`, `unavailable`, or `unknown` while the answer takes long."""
        with self._lock:
            if self._question is None or self._question.done():
                self._question = self._threads.submit(self._cluster.resources)
            question = self._question
        try:
            question.result(timeout=CLUSTER_WAIT_SECONDS)
        except FutureTimeoutError:
            return "unknown"
        except ClusterUnavailableError:
            return "unavailable"
        return "ok"


@router.get("/healthz")
def healthz() -> HealthView:
    """Tell that the process answers."""
    return HealthView()


@router.get("/readyz")
def readyz(request: Request) -> ReadyView:
    """Tell that the service can take jobs and records: its store answers.

    The cluster is reported and fails nothing: without it jobs queue, records come in, pages are shown.
    """
    services_of(request).store.count()
    probe: ClusterProbe = request.app.state.cluster_probe
    return ReadyView(cluster=probe.state())


def preferred_format(accept: str) -> str:
    """Return the one range of an Accept header that a scraper likes best, of those that can be answered.

    The library reads neither the weights (`q`) nor a version that is no number. Empty, which is Prometheus' plain text,
    where there is none.
    """
    best, most = "", 0.0
    for accepted in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in accepted.split(";"))
        given = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            weight = float(given.get("q", "1"))
        except ValueError:
            continue
        version = given.get("version", "")
        if version in _VERSIONS.get(kind, ()) and weight > most:
            best, most = accepted.strip().lower(), weight
    return best


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Return every series but the curves, in the format that the scraper prefers."""
    return _exposition(request, request.app.state.registry)


@router.get(CURVES_PATH, response_class=Response)
def curves(request: Request) -> Response:
    """Return the curves, a point an epoch, in the format that the scraper prefers."""
    return _exposition(request, request.app.state.curves)


def _exposition(request: Request, registry: CollectorRegistry) -> Response:
    encode, content_type = choose_encoder(preferred_format(request.headers.get("Accept", "")))
    body, headers = encode(registry), {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
    if gzip_accepted(request.headers.get("Accept-Encoding", "")):
        # A tenth of 6 kB a run. The lowest level: higher ones pack little more of this, and take longer by far.
        body, headers["Content-Encoding"] = gzip.compress(body, compresslevel=1), "gzip"
    return Response(body, headers=headers)
