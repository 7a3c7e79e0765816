"""Typed client of the HTTP API.

ClientError: something that a user of the service is told
├── ServiceAwayError: nothing answers at the address
└── RefusedError: the service answered with an error; carries its status and each of its problems
    ├── WrongTokenError (401)
    └── UnknownRunError (404)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from curvewatch_service.schemas import (
    SAMPLES_HEADER,
    EpochList,
    EpochView,
    EventList,
    EventView,
    LogView,
    Problem,
    RecordList,
    RunList,
    RunSummary,
    RunView,
    View,
)
from curvewatch_workers.contract import (
    EpochRecord,
    IngestAnswer,
    IngestMessage,
    IngestRequest,
    ReportedRun,
    ReportedRunAnswer,
)
from curvewatch_workers.series import HISTORY_PATH

_Answer = TypeVar("_Answer", bound=BaseModel)
_PAGE = 100
_MAX_PAGE = 1000
"""Most runs that the service lists at once."""
_HISTORY_SECONDS = 600.0
"""That the service may read in a long run before its history begins."""


class Health(View):
    """What the service says of itself."""

    cluster: str
    """`ok`, `unavailable`, or `unknown` while the cluster takes long to answer."""


class ClientError(Exception):
    """Something that a user of the service is told."""


class ServiceAwayError(ClientError):
    """Nothing answers at the service's address."""


class RefusedError(ClientError):
    """The service answered with an error."""

    def __init__(self, detail: str, *, status: int, problems: Collection[str] = ()) -> None:
        self.status = status
        self.problems = tuple(problems)
        super().__init__(
            "\n".join([detail, *(f"  {problem}" for problem in problems if problem not in detail)])
        )


class WrongTokenError(RefusedError):
    """The service does not know the token."""


class UnknownRunError(RefusedError):
    """The service has no such run."""


_BY_STATUS: dict[int, type[RefusedError]] = {401: WrongTokenError, 404: UnknownRunError}


class Client:
    """Talk to one service as one user.

    Every method raises:
        ServiceAwayError: Nothing answers, or what answers is no Curvewatch service.
        RefusedError: The service said no; the message is the service's own.
    """

    def __init__(
        self,
        server: str,
        token: str,
        *,
        timeout_seconds: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare the connection; nothing is sent yet.

        Raises:
            ClientError: The server's address is none.
        """
        self.server = server.rstrip("/")
        try:
            if transport is None and _is_this_machine(httpx.URL(self.server).host):
                transport = httpx.HTTPTransport()  # a proxy of the environment reaches another "this machine"
            self._http = httpx.Client(
                base_url=self.server,
                headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
                timeout=timeout_seconds,
                transport=transport,
            )
        except httpx.InvalidURL as error:
            raise ClientError(
                f"{server!r} is no address of a service ({error}); an address is like http://127.0.0.1:8420"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def submit(self, spec_text: str, code_zip: bytes) -> RunView:
        """Submit a job: its file as YAML or JSON text, and its code folder as a zip."""
        files = {
            "spec": ("job.yaml", spec_text.encode(), "application/yaml"),
            "code": ("code.zip", code_zip, "application/zip"),
        }
        return self._read(RunView, self._send("POST", "/api/v1/runs", files=files))

    def put_run(self, run_id: str, run: ReportedRun) -> ReportedRunAnswer:
        """Make a run that is trained elsewhere, or take it over; its former ingest token is good no more."""
        path, body = f"/api/v1/runs/{quote(run_id, safe='')}", run.model_dump_json()
        return self._read(ReportedRunAnswer, self._send("PUT", path, content=body))

    def ingest(self, run_id: str, messages: Sequence[IngestMessage]) -> IngestAnswer:
        """Tell what happened to a run, as its workers do; the client's token is the run's ingest token."""
        path, body = f"/api/v1/runs/{quote(run_id, safe='')}/ingest", IngestRequest(messages=tuple(messages))
        return self._read(IngestAnswer, self._send("POST", path, content=body.model_dump_json()))

    def runs(self, *, states: Collection[str] = (), limit: int | None = None, offset: int = 0) -> RunList:
        """Return runs, newest first; `total` counts those that were left out too."""
        params: list[tuple[str, str | int | float | bool | None]] = [("state", state) for state in states]
        if limit is not None:
            params.append(("limit", limit))
        if offset:
            params.append(("offset", offset))
        return self._read(RunList, self._send("GET", "/api/v1/runs", params=httpx.QueryParams(params)))

    def all_runs(self, *, states: Collection[str] = (), limit: int) -> RunList:
        """Return so many runs, newest first, asked for in as many pages as that takes."""
        found: dict[str, RunSummary] = {}
        offset = 0
        while True:
            page = self.runs(states=states, limit=min(limit - len(found), _MAX_PAGE), offset=offset)
            # A run that was submitted meanwhile moves the others on: one may come twice.
            found.update((run.run_id, run) for run in page.runs)
            offset += len(page.runs)
            if not page.runs or offset >= page.total or len(found) >= limit:
                return RunList(runs=list(found.values()), total=page.total)

    def run(self, run_id: str) -> RunView:
        """Return one run."""
        return self._read(RunView, self._send("GET", f"/api/v1/runs/{quote(run_id, safe='')}"))

    def epochs(self, run_id: str) -> list[EpochView]:
        """Return the epochs of a run, in order."""
        return self._read(
            EpochList, self._send("GET", f"/api/v1/runs/{quote(run_id, safe='')}/epochs")
        ).epochs

    def records(self, run_id: str) -> list[EpochRecord]:
        """Return the records of a run, in order: the totals and counts that its numbers follow from."""
        return self._read(
            RecordList, self._send("GET", f"/api/v1/runs/{quote(run_id, safe='')}/records")
        ).records

    def events(self, run_id: str) -> list[EventView]:
        """Return what happened to a run, in order."""
        return self._read(
            EventList, self._send("GET", f"/api/v1/runs/{quote(run_id, safe='')}/events")
        ).events

    def logs(self, run_id: str) -> str:
        """Return what the run's program has written so far."""
        return self._read(LogView, self._send("GET", f"/api/v1/runs/{quote(run_id, safe='')}/logs")).text

    @contextmanager
    def history(self, run_id: str) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Ask for the history of a run: how many samples it has, and its lines as OpenMetrics text, as they come."""
        asked = self._http.build_request(
            "GET",
            HISTORY_PATH.format(run_id=quote(run_id, safe="")),
            timeout=httpx.Timeout(self._http.timeout.connect, read=_HISTORY_SECONDS),
        )
        try:
            response = self._http.send(asked, stream=True)
        except httpx.TransportError as error:
            raise self._away(error) from error
        try:
            if not response.is_success:
                response.read()
                raise self._refusal(response)
            samples = response.headers.get(SAMPLES_HEADER, "")
            if not samples.isdecimal():
                raise self._not_ours(response)
            yield int(samples), _lines(response.iter_bytes())
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServiceAwayError(
                f"the history of {run_id} broke off ({reason}); see whether {self.server} still answers, and "
                "ask again"
            ) from error
        finally:
            response.close()

    def stop(self, run_id: str) -> RunView:
        """Ask a run to stop; it takes a checkpoint at the end of its epoch and ends."""
        return self._read(RunView, self._send("POST", f"/api/v1/runs/{quote(run_id, safe='')}/stop"))

    def metrics_text(self) -> str:
        """Return the Prometheus exposition."""
        return self._send("GET", "/metrics").text

    def health(self) -> Health:
        """Return what the service says of itself."""
        return self._read(Health, self._send("GET", "/readyz"))

    def find(self, name: str) -> RunView:
        """Return the run that `latest`, a whole run id or the unique beginning of one names.

        Raises:
            UnknownRunError: No run, or more than one, is named by it.
        """
        if name == "latest":
            newest = self.runs(limit=1).runs
            if not newest:
                raise UnknownRunError(
                    "there is no run yet; submit one: curvewatch submit job.yaml", status=404
                )
            return self.run(newest[0].run_id)
        matches = self._beginning_with(name)
        if name in matches:
            return self.run(name)
        if not matches:
            raise UnknownRunError(
                f"no run is called {name!r} or begins with it; `curvewatch runs` lists them", status=404
            )
        if len(matches) > 1:
            shown = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
            raise UnknownRunError(
                f"{len(matches)} runs begin with {name!r}: {shown}; give more of the id", status=404
            )
        return self.run(matches[0])

    def _beginning_with(self, prefix: str) -> list[str]:
        matches: list[str] = []
        offset = 0
        while True:
            page = self.runs(limit=_PAGE, offset=offset)
            matches += [run.run_id for run in page.runs if prefix and run.run_id.startswith(prefix)]
            offset += len(page.runs)
            if not page.runs or offset >= page.total:
                return matches

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: httpx.QueryParams | None = None,
        files: dict[str, tuple[str, bytes, str]] | None = None,
        content: str | None = None,
    ) -> httpx.Response:
        headers = None if content is None else {"Content-Type": "application/json"}
        try:
            response = self._http.request(
                method, path, params=params, files=files, content=content, headers=headers
            )
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._away(error) from error
        if response.is_success:
            return response
        raise self._refusal(response)

    def _away(self, error: Exception) -> ServiceAwayError:
        reason = str(error) or type(error).__name__
        return ServiceAwayError(
            f"no Curvewatch service answers at {self.server} ({reason}); start one with "
            "`curvewatch serve`, or name the right address with --server"
        )

    def _refusal(self, response: httpx.Response) -> ClientError:
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            return self._not_ours(response)
        kind = _BY_STATUS.get(response.status_code, RefusedError)
        return kind(problem.detail, status=response.status_code, problems=problem.problems)

    def _read(self, kind: type[_Answer], response: httpx.Response) -> _Answer:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise self._not_ours(response) from error

    def _not_ours(self, response: httpx.Response) -> ServiceAwayError:
        return ServiceAwayError(
            f"{response.request.url} answered {response.status_code} with something that no "
            "Curvewatch service of this version says; check the address, and that client and service "
            "have the same version"
        )


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines without their ends; only a line feed ends one, whatever else ends lines elsewhere."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
