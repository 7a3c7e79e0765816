"""Notices that a node is about to leave, and when a checkpoint is taken for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from curvewatch_workers.group import Group

LOOK_SECONDS = 5.0
"""About how often the ranks look for a notice: as often as Ray does."""
MARGIN_SECONDS = 10.0
"""How long before a node leaves a checkpoint is begun at the latest."""
GRACE_SECONDS = 120.0
"""How long Ray Train waits when a notice has no deadline."""

_GROWTH = 10
"""How many times as many steps there may be before the next look as there were before the last."""


class Notice(NamedTuple):
    """Some nodes are about to leave."""

    deadline: float | None
    """When the first of them does, in seconds since 1970; None when nobody said."""
    ranks: tuple[int, ...]
    """The ranks on them."""


class Notices(Protocol):
    """Where notices come from."""

    def latest(self) -> Notice | None:
        """Return the latest notice, the same on each rank; every rank makes this call."""


class Lookout:
    """Looks for notices now and then, at steps on which all ranks agree, and says when to take a checkpoint.

    A look is a call to the cluster and a small broadcast, so it is paced by the clock of rank 0, which tells the
    others after how many steps the next one comes.

    Args:
        notices: Where notices come from; None when there never is one.
        group: The ranks.
        clock: Steady seconds.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        notices: Notices | None,
        group: Group,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._notices, self._group, self._clock, self._now = notices, group, clock, now
        self._steps = 0
        self._next = 1
        self._last = (0, clock())
        self._first_seen = 0.0
        self.notice: Notice | None = None
        """The latest notice; the same on each rank."""
        self.is_new = False
        """Whether the last look found it."""
        self.answered = False
        """Whether a checkpoint has been taken since."""

    def must_save(self, steps_to_boundary: int | None) -> bool:
        """Tell, after each step, whether to take a checkpoint now: the same on each rank.

        Args:
            steps_to_boundary: Steps until the next checkpoint could be taken; those of a validation pass count, as
                if they were as slow. None where nobody could go on from one that is taken now.
        """
        self._steps += 1
        self.is_new = False
        if self._notices is None or self._steps < self._next:
            return False
        return self._look(self._notices, steps_to_boundary)

    def look_at_boundary(self) -> None:
        """Look once more after an epoch that took longer than the pause between two looks."""
        self.is_new = False
        if self._notices is not None:
            self._look(self._notices, None)

    def saved(self) -> None:
        """Note that a checkpoint was taken."""
        self.answered = True

    def seconds_left(self) -> float | None:
        """Return how long the nodes stay; None without a notice."""
        if self.notice is None:
            return None
        deadline = self.notice.deadline
        return (self._first_seen + GRACE_SECONDS if deadline is None else deadline) - self._now()

    def _look(self, notices: Notices, steps_to_boundary: int | None) -> bool:
        notice = notices.latest()
        if notice != self.notice:
            self.notice, self.is_new, self.answered = notice, notice is not None, False
            self._first_seen = self._now()
        (last_step, last_time), time_now = self._last, self._clock()
        taken = max(self._steps - last_step, 1)
        pace = (time_now - last_time) / taken
        self._last = (self._steps, time_now)
        left, waits = self.seconds_left(), self.notice is not None and not self.answered
        save = (
            waits
            and left is not None
            and steps_to_boundary is not None
            and pace * steps_to_boundary + MARGIN_SECONDS > left
        )
        # With an eye on a deadline the looks come closer together.
        pause = LOOK_SECONDS / 5 if waits else LOOK_SECONDS
        # A few quick steps say little of those to come.
        after = max(1, min(int(pause / max(pace, 1e-9)), _GROWTH * taken))
        told = torch.tensor([after, save], dtype=torch.int64, device=self._group.device)
        self._group.broadcast(told)
        after, save = told.tolist()
        self._next = self._steps + after
        return bool(save)
