"""A proxy that the environment names, and a password file: what must not come between us and ourselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@contextmanager
def proxy_and_netrc(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[list[str]]:
    """Name a proxy, and a netrc with a password for this machine; yield the requests that the proxy saw."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            seen.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
            self.send_error(502)

        do_GET = do_POST = do_PUT = do_CONNECT = _refuse  # noqa: N815 - names of http.server

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        patch.setenv(name, f"http://127.0.0.1:{server.server_address[1]}")
        patch.delenv(name.upper(), raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        patch.delenv(name, raising=False)
    netrc = folder / "netrc"
    netrc.write_text("machine 127.0.0.1\nlogin somebody\npassword else\n")
    netrc.chmod(0o600)
    patch.setenv("NETRC", str(netrc))
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
