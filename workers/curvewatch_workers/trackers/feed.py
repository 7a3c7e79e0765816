"""One tracker's thread: its errors and its slowness stay there."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial

from curvewatch_workers.contract import AttemptStarted, EpochFinished, EpochRecord, IngestMessage
from curvewatch_workers.trackers.points import point_of
from curvewatch_workers.trackers.tracker import Tracker

logger = logging.getLogger(__name__)


class Feed:
    """Gives a tracker the curve of one attempt.

    The epochs that come before the attempt's start are those of its checkpoint: the tracker is told to show exactly
    them, and then each new one. A tracker that fails is left alone until the end, when it is given the whole curve
    once more.

    Args:
        name: The tracker's name.
        tracker: Shows the curve.
        tell: Takes the first error, in words.
        superseded: Whether a later attempt has started, which the tracker now belongs to.
    """

    def __init__(
        self, name: str, tracker: Tracker, tell: Callable[[str], None], superseded: Callable[[], bool]
    ) -> None:
        self.name = name
        self._tracker, self._tell, self._superseded = tracker, tell, superseded
        self._curve: dict[int, EpochRecord] = {}
        self._started = self._failed = False
        self._queue: queue.SimpleQueue[IngestMessage | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"curvewatch-{name}", daemon=True)
        self._thread.start()

    def put(self, message: IngestMessage) -> None:
        """Take a message; returns at once."""
        self._queue.put(message)

    def end(self) -> None:
        """Say that nothing follows; returns at once."""
        self._queue.put(None)

    def ended(self, wait_seconds: float) -> bool:
        """Return whether the tracker was given everything and closed, waiting for that at most so long."""
        self._thread.join(max(0.0, wait_seconds))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            self._guarded(partial(self._take, message))
        if self._failed:
            self._guarded(self._rewrite)
        self._guarded(self._tracker.close)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            # A worker that was taken for dead must not write over the one that follows it.
            if not self._superseded():
                action()
        except Exception as error:
            # Told in one sentence; where in the library it happened is for whoever looks for it.
            logger.debug("Tracker %s", self.name, exc_info=True, extra={"action": "tracker_traceback"})
            if not self._failed:
                self._tell(f"tracker {self.name} failed with {type(error).__name__}: {error}")
            self._failed = True

    def _take(self, message: IngestMessage) -> None:
        if isinstance(message, EpochFinished):
            self._curve[message.record.epoch] = message.record
            if self._started and not self._failed:
                self._tracker.append(point_of(message.record))
        elif isinstance(message, AttemptStarted):
            self._started = True
            self._rewrite()

    def _rewrite(self) -> None:
        self._tracker.rewrite([point_of(self._curve[epoch]) for epoch in sorted(self._curve)])
