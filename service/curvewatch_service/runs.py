"""The life of a run: states that carry their facts, and the moves between them."""

from __future__ import annotations

from enum import Enum

from curvewatch_service.errors import IllegalTransitionError


class RunState(Enum):
    """Where a run is. Each member carries (name on the wire, terminal, holds resources of the cluster)."""

    QUEUED = ("QUEUED", False, False)
    STARTING = ("STARTING", False, True)
    RUNNING = ("RUNNING", False, True)
    RESTARTING = ("RESTARTING", False, True)
    STOPPING = ("STOPPING", False, True)
    SUCCEEDED = ("SUCCEEDED", True, False)
    FAILED = ("FAILED", True, False)
    STOPPED = ("STOPPED", True, False)
    LOST = ("LOST", True, False)

    def __init__(self, label: str, terminal: bool, holds_resources: bool) -> None:
        self.label = label
        self.terminal = terminal
        self.holds_resources = holds_resources

    @classmethod
    def parse(cls, label: str) -> RunState:
        """Return the state of this name."""
        return cls[label]

    def can_become(self, target: RunState) -> bool:
        """Tell whether a run may move from this state to another."""
        return target in _MOVES[self]

    def require(self, target: RunState) -> None:
        """Check a move.

        Raises:
            IllegalTransitionError: The move is not one of the life of a run.
        """
        if not self.can_become(target):
            raise IllegalTransitionError(self.label, target.label)


_ENDS = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED, RunState.LOST})
_MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset(
        # RESTARTING is STARTING of a run that has been on the cluster before.
        {RunState.STARTING, RunState.RESTARTING, RunState.STOPPED, RunState.FAILED}
    ),
    RunState.STARTING: _ENDS | {RunState.RUNNING, RunState.STOPPING, RunState.QUEUED},
    RunState.RUNNING: _ENDS | {RunState.STOPPING, RunState.QUEUED},
    # QUEUED again: the service paused the run, or its cluster went away; it resumes from its checkpoint.
    RunState.RESTARTING: _ENDS | {RunState.RUNNING, RunState.STOPPING, RunState.QUEUED},
    RunState.STOPPING: _ENDS,
    **{state: frozenset[RunState]() for state in _ENDS},
}
