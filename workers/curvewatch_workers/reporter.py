"""Telling the service what happened, without training ever waiting for it."""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import requests
from pydantic import ValidationError

from curvewatch_workers.contract import (
    Control,
    IngestAnswer,
    IngestMessage,
    IngestRequest,
    RunLayout,
    WorkerJob,
)

logger = logging.getLogger(__name__)

_BATCH = 200
_TIMEOUT_SECONDS = (3.05, 10.0)
_RETRY_STATUS = frozenset({408, 425, 429})


class Reporter(Protocol):
    """Takes messages and knows what the service last wanted."""

    def send(self, message: IngestMessage) -> None:
        """Take a message; returns at once."""

    def control(self) -> Control:
        """Return the latest control word; returns at once."""

    def close(self) -> None:
        """Write down and send what is left, within a bounded time."""


class NullReporter:
    """Reports nowhere: the reporter of every rank but 0."""

    def send(self, message: IngestMessage) -> None:
        """Drop the message: rank 0 sends the same."""

    def control(self) -> Control:
        """Go on: rank 0 is the one who is told."""
        return Control.CONTINUE

    def close(self) -> None:
        """Do nothing."""


class Undeliverable(Exception):  # noqa: N818 - a reason to try again, not a failure
    """The service could not take a batch now."""


class Refused(Exception):  # noqa: N818 - final, and the spool still has it
    """The service will never take this batch."""


Post = Callable[[tuple[IngestMessage, ...]], Control]
"""Sends a batch, returns the control word. Raises Undeliverable or Refused."""


class HttpPost:
    """Posts batches to the service's ingest route.

    Args:
        url: Address of the route.
        token: The run's own ingest token.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.headers.update({"Authorization": f"Bearer {token}", "Content-Type": "application/json"})

    def __call__(self, messages: tuple[IngestMessage, ...]) -> Control:
        """Send a batch."""
        body = IngestRequest(messages=messages).model_dump_json()
        try:
            response = self._session.post(self._url, data=body, timeout=_TIMEOUT_SECONDS)
        except requests.RequestException as error:
            raise Undeliverable(str(error)) from error
        if response.ok:
            return _control_in(response)
        if response.status_code < 500 and response.status_code not in _RETRY_STATUS:
            raise Refused(f"{response.status_code}: {response.text[:500]}")
        raise Undeliverable(f"{response.status_code}: {response.text[:500]}")


def _control_in(response: requests.Response) -> Control:
    try:
        return IngestAnswer.model_validate_json(response.content).control
    except ValidationError as error:
        # A proxy's own page, or a service of another version: the messages may not have arrived.
        raise Undeliverable(
            f"{response.status_code}, but no answer to an ingest: {response.text[:200]!r}"
        ) from error


class SpoolingReporter:
    """Spools each message to disk, then sends it, in a thread of its own.

    The spool is the truth: what could not be sent when the run ends is taken from there by the service later.

    Args:
        spool: JSON-lines file that is appended to.
        post: Sends a batch; None only spools.
        poll_seconds: How often the control word is asked for when there is nothing to send.
        flush_seconds: Longest wait for the service in `close`.
        backoff_seconds: First pause after a failed attempt; doubled up to thirty times that, with jitter.
    """

    def __init__(
        self,
        spool: Path,
        post: Post | None,
        *,
        poll_seconds: float = 2.0,
        flush_seconds: float = 15.0,
        backoff_seconds: float = 0.5,
    ) -> None:
        self._post = post
        self._poll = poll_seconds
        self._flush = flush_seconds
        self._backoff = backoff_seconds
        self._control = Control.CONTINUE
        self._queue: queue.SimpleQueue[IngestMessage | None] = queue.SimpleQueue()
        self._unsent: list[IngestMessage] = []
        self._closing_at: float | None = None
        self._failures = 0
        spool.parent.mkdir(parents=True, exist_ok=True)
        self._spool_path = spool
        self._torn = False
        self._thread = threading.Thread(target=self._run, name="curvewatch-reporter", daemon=True)
        self._thread.start()

    def send(self, message: IngestMessage) -> None:
        """Take a message; returns at once."""
        self._queue.put(message)

    def control(self) -> Control:
        """Return the latest control word."""
        return self._control

    def close(self) -> None:
        """Spool everything, then try to send it for at most `flush_seconds`."""
        self._closing_at = time.monotonic() + self._flush
        self._queue.put(None)
        # Two time-outs of a request may still run out after the deadline was seen.
        self._thread.join(self._flush + 2 * sum(_TIMEOUT_SECONDS))
        if self._unsent:
            logger.warning(
                "%d messages were not taken by the service; they stay in the spool and are ingested from there",
                len(self._unsent),
                extra={"action": "reporter_unsent"},
            )

    def _run(self) -> None:
        next_try = 0.0
        open_ = True
        while open_ or self._may_still_send():
            wait = max(0.0, next_try - time.monotonic()) if self._unsent else self._poll
            if open_:
                open_ = self._take(wait)
            elif self._closing_at is not None:
                time.sleep(max(0.0, min(wait, self._closing_at - time.monotonic())))
            if self._post is None:
                self._unsent.clear()
            elif time.monotonic() >= next_try:
                next_try = time.monotonic() + self._deliver(self._post)

    def _may_still_send(self) -> bool:
        return bool(self._unsent) and self._closing_at is not None and time.monotonic() < self._closing_at

    def _take(self, wait: float) -> bool:
        """Move what is queued into the spool with one fsync; False when the reporter is closing."""
        taken: list[IngestMessage] = []
        closing = False
        try:
            message = self._queue.get(timeout=wait) if wait > 0 else self._queue.get_nowait()
            while True:
                if message is None:
                    closing = True
                else:
                    taken.append(message)
                message = self._queue.get_nowait()
        except queue.Empty:
            pass
        if taken:
            self._spool(taken)
            self._unsent += taken
        return not closing

    def _spool(self, messages: list[IngestMessage]) -> None:
        try:
            lines = b"".join(one.model_dump_json().encode() + b"\n" for one in messages)
            with self._spool_path.open("ab") as file:
                # What an earlier, failed write left of a line must not swallow the next one.
                file.write(b"\n" + lines if self._torn else lines)
                file.flush()
                os.fsync(file.fileno())
            self._torn = False
        except Exception:
            # A full disk, or a message that cannot be written, must end neither the run nor the sending.
            self._torn = True
            logger.exception(
                "Could not spool %d messages", len(messages), extra={"action": "reporter_spool_failed"}
            )

    def _deliver(self, post: Post) -> float:
        """Send one batch; return the seconds to wait before the next."""
        batch = tuple(self._unsent[:_BATCH])
        try:
            self._control = post(batch)
        except Refused as error:
            logger.error(
                "The service refused %d messages: %s", len(batch), error, extra={"action": "reporter_refused"}
            )
        except Exception as error:  # noqa: BLE001 - the thread must outlive whatever a sender raises
            return self._back_off(len(batch), error)
        self._failures = 0
        del self._unsent[: len(batch)]
        return 0.0

    def _back_off(self, messages: int, error: Exception) -> float:
        self._failures += 1
        pause = self._backoff * min(2.0 ** min(self._failures - 1, 5), 30.0)
        # A service that is away for hours must not fill the log: at failures 1, 2, 4, 8, ...
        if self._failures & (self._failures - 1) == 0:
            logger.warning(
                "The service did not take %d messages (%s), failure %d; trying again in %.1f s",
                messages,
                error,
                self._failures,
                pause,
                extra={"action": "reporter_retry"},
            )
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def reporter_for(job: WorkerJob, source: str) -> Reporter:
    """Return the reporter of a job.

    Args:
        job: The job.
        source: Name of the spool file, unique to the writer, such as `attempt-000001`.
    """
    layout = RunLayout(job.storage_path, job.run_id)
    post = None
    if job.service_url is not None:
        url = f"{job.service_url.rstrip('/')}/api/v1/runs/{job.run_id}/ingest"
        post = HttpPost(url, layout.ingest_token.read_text(encoding="utf-8").strip())
    return SpoolingReporter(layout.spool / f"{source}.jsonl", post)
