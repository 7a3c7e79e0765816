"""HTTP requests that end by a moment, however slowly the other side talks."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_CONNECT_SECONDS = 3.05
_running = threading.local()


class DeadlineSession(requests.Session):
    """Sends within a total time, for one thread.

    The time limit of `requests` begins anew with each byte that arrives. Here the connection itself is cut.
    Proxies of the environment and ~/.netrc are left aside: the address is a service beside the cluster, and
    netrc's password would take the place of the token. A private authority's certificates are still taken
    from REQUESTS_CA_BUNDLE.

    Args:
        outside: Address of a service that may well be elsewhere: it is reached through the environment's proxies,
            unless it is this machine. Through a proxy each byte has the time limit, not the whole answer.
    """

    def __init__(self, outside: str | None = None) -> None:
        super().__init__()
        self.trust_env = False
        if outside is not None and not _is_this_machine(outside):
            self.proxies.update(requests.utils.get_environ_proxies(outside))
        self.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        for scheme in ("http://", "https://"):
            self.mount(scheme, _CuttableAdapter())

    def send_within(self, seconds: float, url: str, data: str, *, method: str = "POST") -> requests.Response:
        """Send a body and read the whole answer.

        Raises:
            requests.Timeout: The answer was not whole in time.
            requests.RequestException: It failed otherwise.
        """
        cut = _running.cut = _Cut()
        timer = threading.Timer(seconds, cut.now)
        timer.daemon = True
        # Python 3.12 and later start no thread any more while a program ends: the time limit of each byte is left.
        with contextlib.suppress(RuntimeError):
            timer.start()
        try:
            response = self.request(method, url, data=data, timeout=(min(_CONNECT_SECONDS, seconds), seconds))
        except requests.RequestException as error:
            if cut.done:
                raise requests.Timeout(f"no whole answer within {seconds:g} s") from error
            raise
        finally:
            timer.cancel()
            _running.cut = None
        if cut.done:  # an answer without a length ends where it was cut
            raise requests.Timeout(f"no whole answer within {seconds:g} s")
        return response


def _is_this_machine(address: str) -> bool:
    try:
        host = urlsplit(address).hostname or ""
    except ValueError:
        return True  # no address at all, which is told when something is sent to it
    with contextlib.suppress(ValueError):  # a name
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class _Cut:
    """Ends the connection that a request uses, from another thread."""

    def __init__(self) -> None:
        self.done = False
        self._lock = threading.Lock()
        self._connection: _Cuttable | None = None

    def watch(self, connection: _Cuttable) -> None:
        with self._lock:
            self._connection = connection

    def now(self) -> None:
        with self._lock:
            self.done = True
            used = getattr(self._connection, "sock", None)
        if used is not None:
            with contextlib.suppress(OSError):  # the other side was faster
                # Of the plain socket: that of TLS would pull its state from under the thread that reads.
                socket.socket.shutdown(used, socket.SHUT_RDWR)


class _Cuttable:
    """A connection that the running request's `_Cut` knows, whether it is new or used again."""

    def connect(self) -> None:
        self._tell()
        super().connect()  # type: ignore[misc]  # urllib3's, beside this class

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._tell()
        super().request(*args, **kwargs)  # type: ignore[misc]

    def _tell(self) -> None:
        cut: _Cut | None = getattr(_running, "cut", None)
        if cut is not None:
            cut.watch(self)


class _PlainConnection(_Cuttable, HTTPConnection):
    pass


class _TlsConnection(_Cuttable, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _CuttableAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}
