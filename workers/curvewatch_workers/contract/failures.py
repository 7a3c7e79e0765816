"""Exceptions in the middle of training, kept in the run's storage for whoever decides whether to try again."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from curvewatch_workers.contract.layout import RunLayout
from curvewatch_workers.contract.records import Record, Split


class KeptFailure(Record):
    """An exception that ended an attempt on one rank."""

    submission: int = Field(ge=1)
    """Which start of the Ray job it belongs to, from 1."""
    time: AwareDatetime
    """When it was raised."""
    error: str
    """Type and message of the exception."""
    position: tuple[int, Split, int]
    """Epoch, from 1 (0 before the first), split and step, from 0."""
    traceback: str
    """Traceback of the user's code, trimmed of ours."""

    def same_as(self, other: KeptFailure) -> bool:
        """Tell whether both are the same exception at the same epoch and step."""
        return (self.error, self.position) == (other.error, other.position)

    def told(self, how: str) -> str:
        """Return one sentence: how it failed (`failed`, `failed twice`), where, and with what."""
        epoch, split, step = self.position
        place = f"at epoch {epoch}, {split} step {step + 1}" if epoch else "before the first epoch"
        return f"{how} {place}: {self.error}"


def last_failure(layout: RunLayout, submission: int) -> KeptFailure | None:
    """Return the first failure of the last attempt of a submission that left any; None when none did.

    What fails first is the cause: the other ranks fail when they miss their peer.
    """
    attempts = _by_attempt(layout, submission)
    return attempts[-1][0] if attempts else None


def repeated_failure(layout: RunLayout, submission: int) -> KeptFailure | None:
    """Return what the last two attempts that failed have in common: what fails twice at one step fails always.

    Only of this submission: who submits again has changed something.
    """
    attempts = _by_attempt(layout, submission)
    if len(attempts) < 2:
        return None
    before, last = attempts[-2:]
    return next((one for one in last for other in before if one.same_as(other)), None)


def _by_attempt(layout: RunLayout, submission: int) -> list[list[KeptFailure]]:
    """Return the kept failures of a submission: those of each attempt that left any, in order of attempt and time."""
    attempts: dict[str, list[KeptFailure]] = {}
    for path in sorted(layout.attempts.glob("*-failure-*.json")):
        try:
            failure = KeptFailure.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if failure.submission == submission:
            attempts.setdefault(path.name.split("-")[0], []).append(failure)
    return [sorted(failures, key=lambda failure: failure.time) for failures in attempts.values()]
