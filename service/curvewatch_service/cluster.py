"""Ray, as the service sees it: jobs to submit, watch and stop, and what there is to run them."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import requests

from curvewatch_service.errors import ClusterUnavailableError, JobRefusedError, ServiceError
from curvewatch_service.planning import JobRequest, Resources

if TYPE_CHECKING:
    from curvewatch_service.settings import Settings

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
SUBMIT_SECONDS = 120.0
"""How long Ray may take to take uploaded code, or a job."""
LOG_CHARACTERS = 1_000_000
"""Most of a log that is handed on, from its end."""


class JobStatus(StrEnum):
    """Where Ray says that a job is."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return self in (JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED)


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What Ray knows of a job."""

    state: JobStatus
    message: str = ""
    """Ray's own words; empty when it has none."""
    exit_code: int | None = None
    """What its driver ended with, below 0 for a signal; None while it runs, and when Ray does not know."""


class Cluster(Protocol):
    """What the service needs of a cluster.

    Every method raises ClusterUnavailableError when the cluster does not answer.
    """

    def submit(self, request: JobRequest) -> None:
        """Start a job; a job of this submission id that is there already is success.

        Raises:
            JobRefusedError: The job cannot be taken as it is, now or later.
        """

    def status(self, submission_id: str) -> JobState | None:
        """Return where a job is, None when the cluster does not know it."""

    def logs(self, submission_id: str) -> str:
        """Return the end of what the job's driver printed, empty when there is none."""

    def keep_logs(self, submission_id: str) -> None:
        """Let `logs` answer for this job even when the cluster is gone."""

    def stop(self, submission_id: str) -> None:
        """Ask for the end of a job; one that is not known or has ended stays as it is."""

    def resources(self) -> Resources:
        """Return what the cluster has, or can grow to, whether in use or not."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a Ray cluster answers."""

    url: str
    """Of the dashboard, such as `http://127.0.0.1:8265`."""
    token_path: Path | None = None
    """File that holds the cluster's token; none for a cluster without one."""

    def headers(self) -> dict[str, str]:
        """Return the headers that authenticate a request.

        Raises:
            ClusterUnavailableError: The token cannot be read.
        """
        if self.token_path is None:
            return {}
        try:
            token = self.token_path.read_text().strip()
        except OSError as error:
            raise ClusterUnavailableError(
                f"the token of the Ray cluster cannot be read from {self.token_path} ({error.strerror}); "
                "set CURVEWATCH_RAY_TOKEN_PATH to the file that holds it"
            ) from error
        return {"Authorization": f"Bearer {token}"}


class RayCluster:
    """A real Ray cluster: its Jobs API, and its state API for what it has.

    The token is read anew for each request, so that it can be replaced in place, and is sent nowhere
    but to the cluster's own URL.
    """

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        *,
        max_cpus: float | None = None,
        max_gpus: float | None = None,
        kept_logs: Path | None = None,
        answer_seconds: float = 10,
    ) -> None:
        """Remember where the cluster is; nothing is sent yet.

        Args:
            endpoint: Tells where Ray answers now; raises ClusterUnavailableError while it answers nowhere.
            max_cpus: CPUs that an autoscaling cluster can grow to; none takes what it has.
            max_gpus: GPUs that it can grow to.
            kept_logs: Folder for the logs of jobs that have ended; none keeps none.
            answer_seconds: How long a question may take: a head that is gone must not hold up who asks.
        """
        self._endpoint = endpoint
        self._max_cpus = max_cpus
        self._max_gpus = max_gpus
        self._kept_logs = kept_logs
        timeout = httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS)
        self._http = httpx.Client(timeout=timeout, trust_env=False)

    @classmethod
    def at(cls, settings: Settings, endpoint: Callable[[], Endpoint]) -> RayCluster:
        """Return the cluster of these settings, answering at an endpoint."""
        return cls(
            endpoint,
            max_cpus=settings.cluster_max_cpus,
            max_gpus=settings.cluster_max_gpus,
            kept_logs=settings.data_dir / "logs",
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def submit(self, request: JobRequest) -> None:
        """Start a job; a job of this submission id that is there already is success."""
        # Ray answers 500 to a second job of the same id as to much else: look before, and after a failure.
        if self.status(request.submission_id) is not None:
            return
        try:
            self._submit(request)
        except Exception:
            if self.status(request.submission_id) is None:
                raise
        logger.info(
            "Ray took job %s.",
            request.submission_id,
            extra={"action": "job_submitted", "submission_id": request.submission_id},
        )

    def status(self, submission_id: str) -> JobState | None:
        """Return where a job is, None when the cluster does not know it."""
        answer = self._request("GET", f"/api/jobs/{submission_id}", missing_is_fine=True)
        if answer is None:
            return None
        with self._understanding("a job"):
            return JobState(
                state=JobStatus(answer["status"]),
                message=str(answer.get("message") or ""),
                exit_code=answer.get("driver_exit_code"),
            )

    def logs(self, submission_id: str) -> str:
        """Return the end of what the job's driver printed, empty when there is none."""
        kept = self._kept_log(submission_id)
        if kept is not None and kept.exists():
            return kept.read_text()
        answer = self._request("GET", f"/api/jobs/{submission_id}/logs", missing_is_fine=True)
        if answer is None:
            return ""
        with self._understanding("a log"):
            return str(answer["logs"] or "")[-LOG_CHARACTERS:]

    def keep_logs(self, submission_id: str) -> None:
        """Let `logs` answer for this job even when the cluster is gone.

        Raises:
            OSError: The log cannot be written.
        """
        kept = self._kept_log(submission_id)
        text = self.logs(submission_id)
        if kept is not None and text:
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = kept.with_suffix(".new")
            draft.write_text(text)
            draft.replace(kept)

    def _kept_log(self, submission_id: str) -> Path | None:
        return None if self._kept_logs is None else self._kept_logs / f"{submission_id}.log"

    def stop(self, submission_id: str) -> None:
        """Ask for the end of a job; one that is not known or has ended stays as it is."""
        self._request("POST", f"/api/jobs/{submission_id}/stop", missing_is_fine=True)

    def resources(self) -> Resources:
        """Return what the cluster has, or can grow to, whether in use or not."""
        answer = self._request("GET", "/api/v0/nodes?detail=1&limit=10000")
        with self._understanding("the nodes"):
            nodes = [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]
            totals = [_cpus_and_gpus(node["resources_total"]) for node in nodes]
        if not totals:
            raise ClusterUnavailableError(
                "the Ray cluster answers but has no live node yet; try again shortly"
            )
        cpus, gpus = (sum(amounts) for amounts in zip(*totals, strict=True))
        growing = self._max_cpus is not None or self._max_gpus is not None
        return Resources(
            cpus=self._max_cpus if self._max_cpus is not None else cpus,
            gpus=self._max_gpus if self._max_gpus is not None else gpus,
            # A cluster that grows may yet get a larger node.
            largest_node_cpus=None if growing else max(node_cpus for node_cpus, _ in totals),
        )

    @contextlib.contextmanager
    def _understanding(self, what: str) -> Iterator[None]:
        """Read an answer; one in which something is missing comes from a head that starts, or from no Ray.

        Raises:
            ClusterUnavailableError: The answer has not the fields that Ray's have.
        """
        try:
            yield
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ClusterUnavailableError(
                f"what answers at {self._endpoint().url} tells of {what} in a way that Ray does not "
                f"({type(error).__name__}: {error}); is it a Ray dashboard of a version that is supported?"
            ) from error

    def _request(self, method: str, path: str, *, missing_is_fine: bool = False) -> Any:
        """Send one request and return its JSON; None for a 404 that is fine."""
        endpoint = self._endpoint()
        try:
            response = self._http.request(method, endpoint.url + path, headers=endpoint.headers())
        except httpx.HTTPError as error:
            raise ClusterUnavailableError(
                f"Ray does not answer at {endpoint.url} ({error or type(error).__name__}); "
                "is the cluster up and the address right?"
            ) from error
        if response.status_code == 404 and missing_is_fine:
            return None
        _require_success(endpoint, response)
        try:
            answer = response.json()
            if answer is None:  # it would read as a job that is not known
                raise ValueError("null")
            return answer
        except ValueError as error:
            raise ClusterUnavailableError(
                f"what answers at {endpoint.url} is no Ray dashboard; check the address"
            ) from error

    def _submit(self, request: JobRequest) -> None:
        endpoint = self._endpoint()
        try:
            client = _bounded_client()(endpoint.url, endpoint.headers())
            client.submit_job(
                submission_id=request.submission_id,
                entrypoint=request.entrypoint,
                runtime_env=dict(request.runtime_env),
                metadata=dict(request.metadata),
            )
        except Exception as error:
            raise _submission_error(request, endpoint, error) from error


def _cpus_and_gpus(resources: dict[str, Any]) -> tuple[float, float]:
    return float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0))


def _submission_error(request: JobRequest, endpoint: Endpoint, error: Exception) -> ServiceError:
    """Tell what Ray will never take from what it could not take just now.

    Ray's client raises ValueError and the like for what it does not send, RuntimeError for what the
    cluster answers, errors of `requests` and its own for a cluster that does not answer.
    """
    text = str(error)[-2000:]
    not_sent = isinstance(error, (ValueError, TypeError, FileNotFoundError))
    if not_sent and not isinstance(error, requests.RequestException):
        return JobRefusedError(f"job {request.submission_id} cannot be sent to Ray: {text}")
    if isinstance(error, RuntimeError) and "status code 400" in text:
        return JobRefusedError(f"Ray refuses job {request.submission_id}: {text}")
    return ClusterUnavailableError(f"Ray at {endpoint.url} did not take job {request.submission_id}: {text}")


def _require_success(endpoint: Endpoint, response: httpx.Response) -> None:
    if response.is_success:
        return
    if response.status_code in (401, 403):
        raise ClusterUnavailableError(
            f"Ray at {endpoint.url} wants another token (HTTP {response.status_code}); set "
            "CURVEWATCH_RAY_TOKEN_PATH to the file that holds the token of this cluster"
        )
    raise ClusterUnavailableError(
        f"Ray at {endpoint.url} answered HTTP {response.status_code}: {response.text.strip()[-500:]}"
    )


@functools.cache
def _bounded_client() -> Callable[[str, dict[str, str]], Any]:
    """Return Ray's job client with time limits. Ray is imported only here: it takes a second."""
    from ray.dashboard.modules.dashboard_sdk import SubmissionClient
    from ray.job_submission import JobSubmissionClient

    class BoundedClient(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types
        def __init__(self, url: str, headers: dict[str, str]) -> None:
            # Ray's own constructor lets RAY_ADDRESS win over the address that it is given.
            import ray

            self._client_ray_version = ray.__version__
            SubmissionClient.__init__(self, address=url, headers=headers)

        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            ours = {
                "timeout": (CONNECT_SECONDS, SUBMIT_SECONDS),
                # As with our own questions to the cluster, the environment has no say in the way there ...
                "proxies": dict.fromkeys(("http", "https", "all")),
                # ... and no password of ~/.netrc takes the place of the token.
                "auth": lambda prepared: prepared,
            }
            return super()._do_request(*args, **{**ours, **kwargs})

    return BoundedClient
