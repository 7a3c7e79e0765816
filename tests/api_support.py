"""The real app behind a real HTTP server, for tests of the API."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from curvewatch_service.api import create_app
from curvewatch_service.auth import TokenStore
from curvewatch_service.code import CodeLimits, CodeStore
from curvewatch_service.planning import Resources
from curvewatch_service.services import Services
from curvewatch_service.settings import Settings
from curvewatch_service.store import Store
from curvewatch_service.testing import FakeCluster
from curvewatch_workers.contract import IngestMessage, IngestRequest, RunLayout

DEADLINE_SECONDS = 20


@dataclass
class ServedApi:
    """The service's API at a port of this machine, and what stands behind it."""

    services: Services
    cluster: FakeCluster
    token: str
    url: str
    woken: list[None] = field(default_factory=list)
    """One entry for each time that the reconciler was woken."""

    def request(self, method: str, path: str, *, token: str | None = None, **more: Any) -> httpx.Response:
        """Send a request as the user `ada`, or with another token; an empty one sends none."""
        sent = self.token if token is None else token
        headers = {"Authorization": f"Bearer {sent}"} if sent else {}
        headers.update(more.pop("headers", {}))
        with httpx.Client(base_url=self.url, timeout=DEADLINE_SECONDS) as client:
            return client.request(method, path, headers=headers, **more)

    def submit(self, spec: object = None, code: bytes | None = None, **more: Any) -> httpx.Response:
        """Submit a job."""
        text = spec if isinstance(spec, str) else json.dumps(job_fields() if spec is None else spec)
        files = {"spec": ("job.yaml", text.encode("utf-8", "surrogateescape")), "code": code or zipped()}
        return self.request("POST", "/api/v1/runs", files=files, **more)

    def ingest_token(self, run_id: str) -> str:
        """Return what the workers of a run read from its folder."""
        return RunLayout(self.services.settings.storage_path, run_id).ingest_token.read_text()

    def tell(self, run_id: str, *messages: IngestMessage, token: str | None = None) -> httpx.Response:
        """Send messages as the workers of a run."""
        return self.request(
            "POST",
            f"/api/v1/runs/{run_id}/ingest",
            token=self.ingest_token(run_id) if token is None else token,
            content=IngestRequest(messages=messages).model_dump_json(),
            headers={"Content-Type": "application/json"},
        )


def job_fields(**changes: object) -> dict[str, object]:
    """A small job, as its file holds it."""
    return {
        "name": "digits",
        "code": {"task": "digits:build"},
        "training": {"epochs": 10, "global_batch_size": 32},
        "scaling": {"workers": 2},
        **changes,
    }


def zipped(**files: str) -> bytes:
    """A zip of a code folder; `__` in a name stands for `/`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (files or {"digits": "def build(): ..."}).items():
            archive.writestr(zipfile.ZipInfo(f"{name.replace('__', '/')}.py"), text)
    return packed.getvalue()


@contextmanager
def serve_api(folder: Path, *, alerts_token: str = "", **chosen: Any) -> Iterator[ServedApi]:
    """Serve the API with its data in a folder and a cluster that lives in memory."""
    settings = Settings(data_dir=folder, **chosen)
    store = Store(settings.database_url)
    cluster, woken = FakeCluster(total=Resources(cpus=4)), list[None]()
    services = Services(
        settings=settings,
        store=store,
        code=CodeStore(
            folder / "code",
            limits=CodeLimits(max_bytes=settings.max_code_bytes, max_files=settings.max_code_files),
        ),
        tokens=TokenStore(store),
        cluster=cluster,
        alerts_token=alerts_token,
        notify=lambda: woken.append(None),
    )
    config = uvicorn.Config(create_app(services), port=0, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        port = _port(server)
        yield ServedApi(services, cluster, services.tokens.issue("ada"), f"http://127.0.0.1:{port}", woken)
    finally:
        server.should_exit = True
        thread.join(DEADLINE_SECONDS)
        store.close()


def _port(server: uvicorn.Server) -> int:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not server.started:
        if time.monotonic() > deadline:
            raise TimeoutError("the HTTP server did not start")
        time.sleep(0.01)
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port
