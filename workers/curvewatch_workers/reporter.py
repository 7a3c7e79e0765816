"""Telling the service what happened, without training ever waiting for it."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import requests
from pydantic import ValidationError

from curvewatch_workers.contract import (
    Control,
    EpochFinished,
    IngestAnswer,
    IngestMessage,
    IngestRequest,
    RunFinished,
    RunLayout,
    WorkerEvent,
    WorkerJob,
)
from curvewatch_workers.deadline import DeadlineSession

logger = logging.getLogger(__name__)

_BATCH = 200
_POST_SECONDS = 10.0
"""How long one request may take in all."""
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
    """The service will never take this batch.

    Args:
        message: Why not.
        status: Status of its answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def is_final(status: int) -> bool:
    """Tell whether a service that answers with this error will say the same next time."""
    return status < 500 and status not in _RETRY_STATUS


Post = Callable[[tuple[IngestMessage, ...]], Control]
"""Sends a batch, returns the control word. Raises Undeliverable or Refused."""


class HttpPost:
    """Posts batches to the service's ingest route.

    Args:
        url: Address of the route.
        token: The run's own ingest token.
        seconds: How long one request may take in all, however slowly the answer comes.
        outside: Whether the service may be reached through a proxy of the environment.
    """

    def __init__(
        self, url: str, token: str, *, seconds: float = _POST_SECONDS, outside: bool = False
    ) -> None:
        self._url = url
        self._seconds = seconds
        self._session = DeadlineSession(url if outside else None)
        self._session.headers.update({"Authorization": f"Bearer {token}", "Content-Type": "application/json"})

    def __call__(self, messages: tuple[IngestMessage, ...]) -> Control:
        """Send a batch."""
        body = IngestRequest(messages=messages).model_dump_json()
        try:
            response = self._session.send_within(self._seconds, self._url, body)
        except requests.RequestException as error:
            raise Undeliverable(str(error)) from error
        if response.ok:
            return _control_in(response)
        if is_final(response.status_code):
            raise Refused(f"{response.status_code}: {response.text[:500]}", response.status_code)
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
    """Spools each message to disk in one thread, and sends what is spooled in another.

    The spool is the truth: what could not be sent when the run ends is taken from there by the service later.
    So the spool waits for nobody: a service that takes long to answer holds up the sending only.

    Args:
        spool: JSON-lines file that is appended to.
        post: Sends a batch; None only spools.
        poll_seconds: How often the control word is asked for when there is nothing to send.
        flush_seconds: Longest wait in `close`.
        backoff_seconds: First pause after a failed attempt; doubled up to thirty times that, with jitter.
        respool_seconds: Pause before what the disk did not take is tried again.
        remedy: What becomes of messages that the service has not confirmed in the end.
        unsent: Messages that an earlier writer has spooled, to be sent before all others and not spooled again.
    """

    def __init__(
        self,
        spool: Path,
        post: Post | None,
        *,
        poll_seconds: float = 2.0,
        flush_seconds: float = 15.0,
        backoff_seconds: float = 0.5,
        respool_seconds: float = 10.0,
        remedy: str = "the service takes them from there, if it can read it",
        unsent: Iterable[IngestMessage] = (),
    ) -> None:
        self._post = post
        self._poll = poll_seconds
        self._flush = flush_seconds
        self._backoff = backoff_seconds
        self._respool = respool_seconds
        self._remedy = remedy
        self._control = Control.CONTINUE
        self._queue: queue.SimpleQueue[IngestMessage | None] = queue.SimpleQueue()
        # Guards the three below, and tells the sender of a change.
        self._changed = threading.Condition()
        self._unsent: list[IngestMessage] = list(unsent)
        self._all_spooled = False
        self._given_up = False
        self._failures = 0
        spool.parent.mkdir(parents=True, exist_ok=True)
        self._spool_path = spool
        # Of the spooler's thread alone.
        self._held: list[bytes] = []
        self._torn = self._full = False
        self._spooler = threading.Thread(target=self._spool_all, name="curvewatch-spooler", daemon=True)
        self._sender = threading.Thread(target=self._send_all, name="curvewatch-sender", daemon=True)
        self._spooler.start()
        self._sender.start()

    def send(self, message: IngestMessage) -> None:
        """Take a message; returns at once."""
        self._queue.put(message)

    def control(self) -> Control:
        """Return the latest control word."""
        return self._control

    def close(self) -> None:
        """Spool everything, then try to send it; for at most `flush_seconds` in all."""
        deadline = time.monotonic() + self._flush
        self._queue.put(None)
        self._spooler.join(self._flush)
        self._sender.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._given_up = True
            self._changed.notify_all()
            unsent, unspooled, spooled = len(self._unsent), len(self._held), self._all_spooled
        if unspooled or not spooled:
            logger.error(
                "Not all messages could be written to %s; what the service has not taken of them is lost",
                self._spool_path,
                extra={"action": "reporter_unspooled"},
            )
        if unsent and self._post is not None:
            logger.warning(
                "The service has not confirmed %d messages, which lie in %s; %s",
                unsent,
                self._spool_path,
                self._remedy,
                extra={"action": "reporter_unsent"},
            )

    def _spool_all(self) -> None:
        """Move what is queued into the spool, with one fsync for all that waits, until the reporter closes.

        What the disk does not take is held in memory and tried again, with what comes next or after a while.
        """
        closing = False
        while not closing:
            taken = self._taken()
            closing = None in taken
            written = [(message, _line(message)) for message in taken if message is not None]
            messages = [message for message, line in written if line]
            self._held += [line for _, line in written if line]
            trouble = self._spool() if self._held else None
            if trouble is not None and not self._full:
                event = self._event(trouble, messages)
                messages.append(event)
                self._held.append(_line(event))
            self._full = trouble is not None
            with self._changed:
                self._unsent += messages if self._post is not None else []
                self._all_spooled = closing
                self._changed.notify_all()

    def _taken(self) -> list[IngestMessage | None]:
        """Wait for a message, while some are held only until it is time to try these again; take all that wait."""
        taken: list[IngestMessage | None] = []
        with contextlib.suppress(queue.Empty):
            taken.append(self._queue.get(timeout=self._respool if self._held else None))
            while True:
                taken.append(self._queue.get_nowait())
        return taken

    def _spool(self) -> str | None:
        """Append what is held to the spool; return why it is not on the disk."""
        end: int | None = None
        try:
            with self._spool_path.open("ab") as file:
                end = file.tell()
                # What an earlier, failed write left of a line must not swallow the next one.
                file.write(b"\n" if self._torn else b"")
                file.write(b"".join(self._held))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # A full disk must end neither the run nor the sending.
            self._torn = not _cut(self._spool_path, end)
            logger.log(
                logging.DEBUG if self._full else logging.ERROR,
                "Could not spool %d messages, which are held in memory and tried again: %s",
                len(self._held),
                error,
                extra={"action": "reporter_spool_failed"},
            )
            return error.strerror or str(error)
        self._torn = False
        self._held.clear()
        return None

    def _event(self, trouble: str, messages: list[IngestMessage]) -> WorkerEvent:
        return WorkerEvent(
            attempt=max(map(_attempt_of, messages), default=0),
            time=dt.datetime.now(dt.UTC),
            reason="spool_not_written",
            message=f"{self._spool_path} cannot be written: {trouble}; training goes on, and what happens is held in "
            "memory until it can. Make room before the run ends",
        )

    def _send_all(self) -> None:
        """Send what is spooled, and ask for the control word between, until all is sent or time is up."""
        pause = 0.0
        while self._post is not None and self._due(pause):
            pause = self._deliver(self._post)

    def _due(self, pause: float) -> bool:
        """Wait until there is something to send or to ask; False when there is no more.

        Args:
            pause: Seconds to wait after a failure, whatever there is to send; 0 after a success.
        """
        with self._changed:
            if pause:
                self._changed.wait_for(lambda: self._given_up, pause)
            else:
                self._changed.wait_for(
                    lambda: self._unsent or self._all_spooled or self._given_up, self._poll
                )
            return not self._given_up and (bool(self._unsent) or not self._all_spooled)

    def _deliver(self, post: Post) -> float:
        """Send one batch; return the seconds to wait before the next."""
        with self._changed:
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
        with self._changed:
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


def _line(message: IngestMessage) -> bytes:
    """Return the line of a message in the spool; an empty one when it cannot be written at all."""
    try:
        return message.model_dump_json().encode() + b"\n"
    except ValueError:
        logger.exception("Could not write down a message", extra={"action": "reporter_message_dropped"})
        return b""


def _cut(path: Path, end: int | None) -> bool:
    """Take away what a failed write left behind a place; return whether it is gone."""
    if end is None:
        return True
    try:
        os.truncate(path, end)
    except OSError:
        return False
    return True


def _attempt_of(message: IngestMessage) -> int:
    if isinstance(message, EpochFinished):
        return message.record.attempt
    return 0 if isinstance(message, RunFinished) else message.attempt


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
