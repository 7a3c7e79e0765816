"""The service as a process: from its settings to an orderly end."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, TextIO

import uvicorn
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from curvewatch_service.auth import TokenStore
from curvewatch_service.cluster import Endpoint, RayCluster
from curvewatch_service.code import CodeLimits, CodeStore
from curvewatch_service.embedded import EmbeddedRay
from curvewatch_service.errors import ClusterUnavailableError, ServiceError, SettingsError
from curvewatch_service.first_token import local_url, provide_alerts_token, provide_token
from curvewatch_service.ray_head import JOB_STOP_SECONDS
from curvewatch_service.reconcile import Reconciler, ReconcilerLoop
from curvewatch_service.services import Services
from curvewatch_service.settings import Settings
from curvewatch_service.store import Store

if TYPE_CHECKING:
    from fastapi import FastAPI

    from curvewatch_service.history_sink import HistorySink

logger = logging.getLogger(__name__)

RAY_CHECK_SECONDS = 2.0
"""Pause between two looks at whether the service's own Ray lives."""
RAY_RETRY_SECONDS = 15.0
"""Pause after a start of it that failed."""
HTTP_CLOSE_SECONDS = 5
"""How long requests may take to finish when the service ends."""
LAST_WRITE_SECONDS = 5.0
"""How long the last epochs may take to be written to the remote-write receiver when it ends."""


def serve(settings: Settings) -> None:
    """Run the service until SIGINT or SIGTERM, then end it in order; a second signal ends the wait for runs.

    Raises:
        SettingsError: Another service has the data folder or the port, or the folder, the database or the
            profile cannot be used.
        ServiceError: The HTTP server ended by itself.
    """
    _configure_logging()
    with _alone_in(settings), _listening(settings) as listener, contextlib.ExitStack() as stack:
        store = _open_store(settings)
        stack.callback(store.close)
        _Server(settings, store, _open_sink(settings, store)).run(listener)


class _Server:
    """The threads of the service: HTTP, the reconciler, and if it has them the keeper of its own Ray and the sink."""

    def __init__(self, settings: Settings, store: Store, sink: HistorySink | None) -> None:
        self._settings = settings
        self._sink = sink
        self._ray = EmbeddedRay(settings.data_dir) if settings.embedded else None
        self._cluster = cluster = RayCluster.at(settings, _endpoint_of(settings, self._ray))
        self._reconciler = Reconciler(store, cluster, settings)
        self._loop = ReconcilerLoop(self._reconciler, interval_seconds=settings.reconcile_interval_seconds)
        self._keeper = _RayKeeper(self._ray, on_start=self._loop.wake) if self._ray is not None else None
        self._services = Services(
            settings=settings,
            store=store,
            code=CodeStore(
                settings.data_dir / "code",
                limits=CodeLimits(max_bytes=settings.max_code_bytes, max_files=settings.max_code_files),
            ),
            tokens=TokenStore(store),
            cluster=cluster,
            alerts_token=provide_alerts_token(settings),
            notify=self._loop.wake,
        )
        self._end = threading.Event()
        self._hurry = threading.Event()

    def run(self, listener: socket.socket) -> None:
        from curvewatch_service.api import create_app

        http = _HttpThread(create_app(self._services), on_end=self._end.set)
        with _signals(self._on_signal):
            provide_token(self._services)
            http.start(listener)
            if self._keeper is not None:
                self._keeper.start()
            self._loop.start()
            if self._sink is not None:
                self._sink.start()
            logger.info("Curvewatch is at %s", local_url(self._settings), extra={"action": "service_started"})
            self._end.wait()
            self._shut_down()
            http.stop()
            if self._sink is not None:
                # After whatever could bring an epoch.
                self._sink.stop(seconds=LAST_WRITE_SECONDS)
            self._cluster.close()
        if http.failed:
            raise ServiceError("the HTTP server ended by itself; the log above says why")
        logger.info("Curvewatch has ended.", extra={"action": "service_ended"})

    def _on_signal(self, number: int) -> None:
        if self._end.is_set():
            self._hurry.set()
        else:
            logger.info(
                "Ending on %s; once more ends the wait for checkpoints.",
                signal.Signals(number).name,
                extra={"action": "service_ending"},
            )
        self._end.set()

    def _shut_down(self) -> None:
        """Leave a foreign cluster's runs alone; pause those on our own Ray, then end it."""
        self._reconciler.admitting = False
        if self._keeper is not None:
            self._keeper.stop()
        if self._ray is not None and self._ray.alive():
            self._pause_runs()
        self._loop.stop()
        if self._ray is not None:
            self._ray.stop()

    def _pause_runs(self) -> None:
        """Let each run write a checkpoint and leave; end the jobs of those that take too long."""
        reconciler = self._reconciler
        # Again each time: the reconciler may just have submitted one.
        if self._wait_until_idle(self._settings.shutdown_grace_seconds, reconciler.pause_all):
            return
        logger.warning(
            "Some runs did not pause in time; their jobs are ended, they go on from their latest checkpoint.",
            extra={"action": "pause_overdue"},
        )
        self._hurry.clear()
        try:
            reconciler.stop_jobs()
        except ClusterUnavailableError as error:
            logger.warning("%s", error, extra={"action": "cluster_unavailable"})
            return
        self._wait_until_idle(JOB_STOP_SECONDS + 5, _do_nothing)

    def _wait_until_idle(self, seconds: float, each_time: Callable[[], None]) -> bool:
        deadline = time.monotonic() + seconds
        while not self._reconciler.idle():
            if self._hurry.is_set() or time.monotonic() > deadline:
                return False
            each_time()
            self._loop.wake()
            self._hurry.wait(0.25)
        return True


class _HttpThread:
    """Uvicorn in a thread, so that it answers while the main thread waits for signals and for runs."""

    def __init__(self, app: FastAPI, *, on_end: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=HTTP_CLOSE_SECONDS
        )
        self._server = uvicorn.Server(config)
        self._on_end = on_end
        self._thread = threading.Thread(target=self._run, name="curvewatch-http", daemon=True)
        self._listener: socket.socket | None = None
        self.failed = False

    def start(self, listener: socket.socket) -> None:
        self._listener = listener
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(HTTP_CLOSE_SECONDS + 5)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener] if self._listener is not None else None)
        except Exception:
            logger.exception("The HTTP server failed.", extra={"action": "http_failed"})
        finally:
            self.failed = not self._server.should_exit
            self._on_end()


class _RayKeeper:
    """Starts the service's own Ray, and starts it again when it has died."""

    def __init__(self, ray: EmbeddedRay, *, on_start: Callable[[], None]) -> None:
        self._ray = ray
        self._on_start = on_start
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="curvewatch-ray", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._ray.cancel_start()
        self._thread.join(10)

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            pause = RAY_CHECK_SECONDS
            if self._ray.alive():
                continue
            try:
                self._ray.start()
            except ClusterUnavailableError as error:
                pause = RAY_RETRY_SECONDS
                if not self._stopping.is_set():
                    logger.error("%s", error, extra={"action": "embedded_failed"})
            else:
                self._on_start()


def _endpoint_of(settings: Settings, ray: EmbeddedRay | None) -> Callable[[], Endpoint]:
    if ray is not None:
        return ray.endpoint
    endpoint = Endpoint(url=settings.ray_address or "", token_path=settings.ray_token_path)
    return lambda: endpoint


@contextlib.contextmanager
def _alone_in(settings: Settings) -> Iterator[None]:
    """Hold the data folder; the operating system lets go of it when this process ends, however it does.

    Raises:
        SettingsError: Another service holds it, or it cannot be made or written.
    """
    with _open_lock(settings) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(
                f"the data folder {settings.data_dir} belongs to a service that is running; stop that one, "
                "or choose another folder with --data-dir"
            ) from error
        yield


def _open_lock(settings: Settings) -> TextIO:
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return (settings.data_dir / "service.lock").open("a")
    except OSError as error:
        raise SettingsError(
            f"the data folder {settings.data_dir} cannot be used ({error.strerror or error}); choose a folder "
            "that this user may write, with --data-dir or CURVEWATCH_DATA_DIR"
        ) from error


def _open_store(settings: Settings) -> Store:
    """Open the store.

    Raises:
        SettingsError: The database cannot be opened. The URL is not repeated: it may hold a password.
    """
    try:
        return Store(settings.database_url, to_outbox=settings.remote_write_url is not None)
    # A port that is no number is a ValueError, a driver that is not installed an ImportError.
    except (OSError, SQLAlchemyError, ImportError, ValueError) as error:
        raise SettingsError(
            f"the database of CURVEWATCH_DATABASE_URL cannot be opened ({_why(error)}); give a URL like "
            "sqlite:////var/lib/curvewatch/curvewatch.db of a file that this user may write, or leave the "
            "setting away for a file in the data folder"
        ) from error


def _open_sink(settings: Settings, store: Store) -> HistorySink | None:
    """Return what writes each epoch to the remote-write receiver; None when there is none.

    Raises:
        SettingsError: What remote write needs is not installed, or the file of its token cannot be read.
    """
    url, token_path = settings.remote_write_url, settings.remote_write_token_path
    if url is None:
        return None
    try:
        from curvewatch_service.history_sink import HistorySink
        from curvewatch_service.remote_write import Receiver
    except ImportError as error:
        raise SettingsError(
            f"CURVEWATCH_REMOTE_WRITE_URL needs the package {error.name}, which is not installed; run "
            "pip install 'curvewatch[remote-write]', or leave the setting away"
        ) from error
    try:
        if token_path is not None:
            token_path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"the token file {token_path} of CURVEWATCH_REMOTE_WRITE_TOKEN_PATH cannot be read "
            f"({getattr(error, 'strerror', None) or error}); give a file that this user may read"
        ) from error
    return HistorySink(store, Receiver(url, token_path=token_path), cluster=settings.cluster_name)


def _why(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"its driver {error.name or 'for this kind of database'} is not installed"
    if isinstance(error, ArgumentError | ValueError):
        return "it is no URL of a database that SQLAlchemy knows"
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}"
    # What a driver says of SQLite names no secret; of others only the kind of the error is passed on.
    original = error.orig if isinstance(error, DBAPIError) else error
    return str(original) if isinstance(original, sqlite3.Error) else type(original).__name__


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """Open the port, before anything else is started that a taken port would leave behind.

    Raises:
        SettingsError: The port is taken, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(128)
        except OSError as error:
            raise SettingsError(
                f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}; choose "
                "another with --host and --port"
            ) from error
        yield listener


@contextlib.contextmanager
def _signals(handle: Callable[[int], None]) -> Iterator[None]:
    def handler(number: int, _frame: FrameType | None) -> None:
        handle(number)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def _configure_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # One line for each question to Ray, and for each start of uvicorn, tells nobody anything.
    for name in ("httpx", "uvicorn.error", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _do_nothing() -> None:
    """Wait only."""
