"""Exceptions in the middle of training, kept in the run's storage for whoever decides whether to try again."""

from __future__ import annotations

import re

from pydantic import AwareDatetime, Field

from curvewatch_workers.contract.layout import RunLayout
from curvewatch_workers.contract.records import Record, Split

_OF_ONE_PROCESS = re.compile(
    r"0x[0-9a-fA-F]+"  # addresses
    r"|\btmp[a-z0-9_]{8}\b"  # names that Python's tempfile draws
    r"|\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"  # UUIDs
)
"""What differs from process to process in the message of one and the same error."""


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
    kind: str = ""
    """Type of the exception with its module; empty in files of earlier versions."""
    frames: tuple[str, ...] = ()
    """Where it was raised, the outermost first, without this package's own frames: `train.py:8 in load`."""
    passing: bool = False
    """Whether network or storage failed under the workers: the next attempt may find it gone."""

    def same_as(self, other: KeptFailure) -> bool:
        """Tell whether both are the same exception from the same line of code at the same epoch and step."""
        return not (self.passing or other.passing) and self._key == other._key

    @property
    def _key(self) -> tuple[object, ...]:
        return self.position, self.kind, self.frames, _OF_ONE_PROCESS.sub("~", self.error)

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
