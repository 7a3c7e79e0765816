"""Follow a run from outside until it has ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from curvewatch_service.client import Client, ClientError, ServiceAwayError
from curvewatch_service.runs import RunState
from curvewatch_service.schemas import EpochView, RunView


class StillGoingError(ClientError):
    """A run has not ended in the time that it was given."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something about a run is new since the last change."""

    run: RunView
    epochs: tuple[EpochView, ...]
    """The visible curve so far."""
    new_epochs: tuple[EpochView, ...]
    """Those that were not there at the last change; an epoch that a later attempt replayed is new again."""
    away: str = ""
    """Why nothing is new: the service does not answer. Empty while it does."""

    @property
    def ended(self) -> bool:
        """Tell whether this is the last change: the run has ended, and all of it is here."""
        return RunState.parse(self.run.state).terminal and not self.away


def follow(
    client: Client,
    run_id: str,
    *,
    interval_seconds: float = 0.5,
    patience_seconds: float = 120.0,
    limit_seconds: float = math.inf,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Change]:
    """Yield each change of a run; the last one has the run in a terminal state.

    A service that is away for less than the patience is waited for: runs outlive its restarts.

    Raises:
        ServiceAwayError: It was away at the first look, or for longer than the patience.
        StillGoingError: The run has not ended within the limit.
    """
    last: Change | None = None
    begun_at = answered_at = clock()
    while True:
        try:
            change = _look(client, run_id, last)
            answered_at = clock()
        except ServiceAwayError as error:
            if last is None or clock() - answered_at > patience_seconds:
                raise
            change = Change(run=last.run, epochs=last.epochs, new_epochs=(), away=str(error))
        if last is None or _differs(change, last):
            yield change
        last = change
        if change.ended:
            return
        if clock() - begun_at > limit_seconds:
            planned = change.run.epochs_planned
            raise StillGoingError(
                f"{run_id} is still {change.run.state} after {limit_seconds:.0f} s ({change.run.reason}), "
                f"at epoch {change.run.epoch}" + ("" if planned is None else f" of {planned}")
            )
        sleep(interval_seconds)


def _look(client: Client, run_id: str, last: Change | None) -> Change:
    run = client.run(run_id)
    # The run is read before its epochs: what a terminal state promises is then in the epochs.
    if last is not None and run.latest == last.run.latest and run.epoch == last.run.epoch:
        return Change(run=run, epochs=last.epochs, new_epochs=())
    epochs = tuple(client.epochs(run_id))
    known = {(epoch.epoch, epoch.attempt) for epoch in last.epochs} if last else set()
    new = tuple(epoch for epoch in epochs if (epoch.epoch, epoch.attempt) not in known)
    return Change(run=run, epochs=epochs, new_epochs=new)


def _differs(change: Change, last: Change) -> bool:
    return bool(change.new_epochs) or change.away != last.away or change.run != last.run
