"""Writes each epoch to the remote-write receiver, in a thread that nothing waits for."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence

from curvewatch_service import outbox
from curvewatch_service.history import history_samples
from curvewatch_service.outbox import Pending
from curvewatch_service.remote_write import Receiver, RefusedError, UndeliveredError, encode
from curvewatch_service.store import Store
from curvewatch_workers.series import REMOTE_WRITE_EPOCHS, REMOTE_WRITE_FAILURES

BATCH_EPOCHS = 100
"""Most epochs of one request."""
LOOK_SECONDS = 1.0
"""Pause between two looks into an outbox that was empty."""
SHORTEST_PAUSE_SECONDS = 0.5
"""Pause after the first of several failures; it doubles with each."""
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
"""Longest that a receiver may ask to be left alone."""
_logger = logging.getLogger(__name__)


class HistorySink:
    """Empties the outbox into a receiver.

    A request that is refused is cut in halves until the epochs are found that the receiver does not take: a receiver
    refuses the whole of a request for one sample, or keeps the rest of it and does not say so.
    """

    def __init__(self, store: Store, receiver: Receiver, *, cluster: str) -> None:
        self._store = store
        self._receiver = receiver
        self._cluster = cluster
        self._failures = 0
        self._stopping = threading.Event()
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._run, name="curvewatch-remote-write", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, *, seconds: float) -> None:
        """Send what waits, as long as the receiver takes it and the time lasts, then end the thread.

        What is left stays in the outbox for the next start.
        """
        self._deadline = time.monotonic() + seconds
        self._stopping.set()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            self._receiver.close()

    def step(self) -> float:
        """Send one request; returns how many seconds to wait before the next."""
        try:
            with self._store.read() as session:
                epochs = outbox.pending(session, most=BATCH_EPOCHS)
            self._deliver(epochs)
        except UndeliveredError as error:
            self._store.counters.add(REMOTE_WRITE_FAILURES)
            if not self._failures:
                _logger.warning(
                    "Epochs cannot be written to CURVEWATCH_REMOTE_WRITE_URL (%s); they wait, and it is tried again.",
                    error,
                    extra={"action": "remote_write_failed"},
                )
            return self._pause(error.retry_after_seconds)
        except Exception:
            self._store.counters.add(REMOTE_WRITE_FAILURES)
            _logger.exception("A remote write failed.", extra={"action": "remote_write_failed"})
            return self._pause()
        if epochs and self._failures:
            _logger.info("Epochs are written again.", extra={"action": "remote_write_recovered"})
        if epochs:
            self._failures = 0
        return 0.0 if len(epochs) == BATCH_EPOCHS else LOOK_SECONDS

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            pause = self.step()
        # The last epochs may have come while it waited; one failure ends it.
        self._failures = 0
        while time.monotonic() < self._deadline and self.step() == 0.0:
            pass

    def _pause(self, retry_after_seconds: float = 0.0) -> float:
        """Return the pause after a failure: longer each time, and never quite the same for two services."""
        longest = min(SHORTEST_PAUSE_SECONDS * 2.0 ** min(self._failures, 16), LONGEST_PAUSE_SECONDS)
        self._failures += 1
        asked = min(retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS)
        return max(random.uniform(longest / 2, longest), asked)  # noqa: S311 - no secret

    def _deliver(self, epochs: Sequence[Pending]) -> None:
        """Send epochs, and settle each that the receiver took or will never take.

        Raises:
            UndeliveredError: The rest waits.
        """
        if not epochs:
            return
        try:
            self._receiver.send(self._request(epochs))
        except RefusedError as error:
            if len(epochs) > 1:
                middle = len(epochs) // 2
                self._deliver(epochs[:middle])
                self._deliver(epochs[middle:])
            elif error.passed:
                # A run's epochs leave in order of time, and nobody else writes its series: a later one is there only
                # because this one was sent before it, by a service that died or missed the answer.
                self._settle(epochs)
            else:
                self._refuse(epochs[0], str(error))
        else:
            self._settle(epochs)

    def _request(self, epochs: Sequence[Pending]) -> bytes:
        return encode(
            (epoch.millisecond, sample)
            for epoch in epochs
            for sample in history_samples(epoch.run, epoch.record, cluster=self._cluster)
        )

    def _settle(self, epochs: Sequence[Pending]) -> None:
        with self._store.write() as session:
            sent = outbox.remove(session, epochs)
        self._store.counters.add(REMOTE_WRITE_EPOCHS, "sent", amount=sent)

    def _refuse(self, epoch: Pending, why: str) -> None:
        with self._store.write() as session:
            first = outbox.refuse(session, epoch, why)
        if first is None:
            # Another service on the same database was faster.
            return
        self._store.counters.add(REMOTE_WRITE_EPOCHS, "refused")
        if first:
            _logger.warning(
                "Epoch %d of run %s will never be taken by the remote-write receiver: %s. Of others of this run that "
                "it refuses only the count tells.",
                epoch.record.epoch,
                epoch.run.run_id,
                why,
                extra={"action": "history_refused", "run_id": epoch.run.run_id},
            )
