"""What runs wrote to their spools: the way of records that the service was not there to receive."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm.exc import StaleDataError

from curvewatch_service.errors import BadRequestError, NotFoundError
from curvewatch_service.store import Store
from curvewatch_workers.contract import IngestMessage, RunLayout

logger = logging.getLogger(__name__)

BATCH = 200
"""Messages of one transaction."""
BAD_LINE = "spool_line_unreadable"
"""Reason of the event that tells of lines that could not be taken."""
BAD_FILE = "spool_file_unreadable"
"""Reason of the event that tells of a file that could not be read."""
_MESSAGE: TypeAdapter[IngestMessage] = TypeAdapter(IngestMessage)


class SpoolReader:
    """Hands what is new in the spools to the store; used by one thread.

    How far each file was read is kept in memory only: after a new start all is read again, and the
    store takes each message once.
    """

    def __init__(self, store: Store, storage_path: Path) -> None:
        self._store = store
        self._storage_path = storage_path
        self._offsets: dict[str, dict[Path, int]] = defaultdict(dict)
        self._bad_lines: dict[str, int] = defaultdict(int)
        self._bad_files: dict[str, set[Path]] = defaultdict(set)

    def ingest(self, run_id: str) -> int:
        """Take every complete line that was not taken before; return how many messages there were.

        Raises:
            NotFoundError: There is no such run.
        """
        offsets = self._offsets[run_id]
        taken = 0
        for path in sorted(RunLayout(self._storage_path, run_id).spool.glob("*.jsonl")):
            for lines, end in self._readable(run_id, path, offsets.get(path, 0)):
                taken += self._take(run_id, path, lines)
                # Only now: what the store could not take is read again.
                offsets[path] = end
        return taken

    def forget(self, run_id: str) -> None:
        """Drop what is remembered of a run that has ended."""
        self._offsets.pop(run_id, None)
        self._bad_lines.pop(run_id, None)
        self._bad_files.pop(run_id, None)

    def known(self) -> set[str]:
        """Return the runs of which something is remembered."""
        return set(self._offsets)

    def bad_lines(self, run_id: str) -> int:
        """Return how many lines of the run could not be taken."""
        return self._bad_lines.get(run_id, 0)

    def _readable(self, run_id: str, path: Path, offset: int) -> Iterator[tuple[list[bytes], int]]:
        """Yield the batches of a file as far as it can be read; it is tried again, and told of once."""
        try:
            yield from _batches(path, offset)
        except OSError as error:
            if path not in self._bad_files[run_id]:
                self._bad_files[run_id].add(path)
                trouble = error.strerror or error
                message = f"{path} in the run's spool cannot be read, its epochs may be missing: {trouble}"
                self._tell_once(run_id, BAD_FILE, message)
        else:
            self._bad_files[run_id].discard(path)

    def _take(self, run_id: str, path: Path, lines: list[bytes]) -> int:
        messages = []
        for line in lines:
            try:
                messages.append(_MESSAGE.validate_json(line))
            except ValidationError as error:
                self._skip(run_id, path, error.errors(include_input=False, include_url=False)[0]["msg"])
        try:
            self._store.ingest(run_id, messages)
        except Exception as error:
            if not _message_is_at_fault(error):
                raise
            # One of them: the others must not suffer for it.
            for message in messages:
                self._take_alone(run_id, path, message)
        return len(messages)

    def _take_alone(self, run_id: str, path: Path, message: IngestMessage) -> None:
        try:
            self._store.ingest(run_id, [message])
        except Exception as error:
            if not _message_is_at_fault(error):
                raise
            expected = isinstance(error, BadRequestError)
            self._skip(run_id, path, str(error) if expected else f"{type(error).__name__}: {error}")

    def _skip(self, run_id: str, path: Path, trouble: str) -> None:
        """Count a line that cannot be taken; the run's first one is also an event, over all starts."""
        self._bad_lines[run_id] += 1
        if self._bad_lines[run_id] > 1:
            return
        message = f"a line of {path.name} in the run's spool cannot be read and is left out: {trouble}"
        self._tell_once(run_id, BAD_LINE, message)

    def _tell_once(self, run_id: str, reason: str, message: str) -> None:
        logger.warning("Run %s: %s", run_id, message, extra={"action": reason, "run_id": run_id})
        if all(event.reason != reason for event in self._store.events(run_id)):
            self._store.add_event(run_id, reason=reason, message=message)


def _message_is_at_fault(error: Exception) -> bool:
    """Tell a message that will never be taken from a store that could not take any message just now.

    What is unforeseen counts as the message's fault: read again and again, it would block its run for ever.
    """
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return False
    passing = (OperationalError, PoolTimeoutError, StaleDataError, OSError, NotFoundError)
    return not isinstance(error, passing)


def _batches(path: Path, offset: int) -> Iterator[tuple[list[bytes], int]]:
    """Yield complete lines from an offset on, and the offset behind them.

    The last line may be torn: its writer is still at it, or died over it.
    """
    with path.open("rb") as file:
        file.seek(offset)
        lines: list[bytes] = []
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            if line.strip():
                lines.append(line)
            if len(lines) == BATCH:
                yield lines, offset
                lines = []
        if lines:
            yield lines, offset
