"""The service's own app over a store, served on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from curvewatch_service.api import create_app
from curvewatch_service.auth import TokenStore
from curvewatch_service.code import CodeStore
from curvewatch_service.services import Services
from curvewatch_service.settings import Settings
from curvewatch_service.store import Store
from curvewatch_service.testing import FakeCluster


def services_over(store: Store, folder: Path, *, linger_seconds: float) -> Services:
    """Return what the API works with: a given store, and a cluster on which nothing runs."""
    return Services(
        settings=Settings(data_dir=folder / "data", linger_seconds=linger_seconds),
        store=store,
        code=CodeStore(folder / "code"),
        tokens=TokenStore(store),
        cluster=FakeCluster(),
    )


@contextmanager
def served(services: Services) -> Iterator[str]:
    """Serve the app on a free port of loopback; gives `host:port`."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(services), log_config=None, timeout_graceful_shutdown=5)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        host, port = listener.getsockname()
        yield f"{host}:{port}"
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
