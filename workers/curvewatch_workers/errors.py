"""Errors of the training program.

WorkersError
├── TaskError: the user's callable, or what it returned, cannot be used
│   ├── UnsavableStateError: the task holds state that no checkpoint can hold
│   ├── ExitedError: the user's code has called sys.exit
│   └── UserCodeError: the user's code raised; carries its traceback, trimmed of ours
├── LayoutMismatchError: the ranks disagree on the buffer of the epoch
├── StorageError: the place for checkpoints cannot be used
├── CheckpointError: a checkpoint cannot be used
│   ├── DamagedCheckpointError: it is not what was written; an earlier one may do
│   └── CheckpointLostError: one that others do not follow could not be kept
├── SupersededError: a later attempt of the run has started
├── TrackerError: a tracker cannot be written; never ends a run
└── HookError: a callback of another trainer cannot do what it was set up for
"""

from __future__ import annotations

import traceback
from pathlib import Path

_NOTE = 48
"""Room for the note of what was cut off."""
_OWN_FOLDER = Path(__file__).parent


class WorkersError(Exception):
    """Something is wrong with a run. The message names the thing, the rule, the value and the remedy."""


class TaskError(WorkersError):
    """The user's callable, or what it returned, cannot be used."""


class UnsavableStateError(TaskError):
    """The task holds state that could not be read back from a checkpoint."""


class ExitedError(TaskError):
    """The user's code has called sys.exit in a worker."""


class UserCodeError(TaskError):
    """The user's code raised an exception."""

    def __init__(self, where: str, cause: BaseException) -> None:
        super().__init__(printable(f"{where} raised {type(cause).__name__}: {cause}"))
        self.traceback_text = user_traceback(cause)


class LayoutMismatchError(WorkersError):
    """The ranks disagree on the buffer that they reduce at the end of an epoch."""


class StorageError(WorkersError):
    """The place for checkpoints cannot be used."""


class CheckpointError(WorkersError):
    """A checkpoint cannot be used."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what was written; an earlier one may do."""


class CheckpointLostError(CheckpointError):
    """A checkpoint that no other follows could not be kept."""


class SupersededError(WorkersError):
    """A later attempt of the run has started, and only the latest may train."""


class TrackerError(WorkersError):
    """A tracker cannot be written."""


class HookError(WorkersError):
    """A callback of another trainer cannot do what it was set up for."""


def user_traceback(error: BaseException) -> str:
    """Format a traceback without the frames of this package that lead to the user's code."""
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(_frames_of_others(error))]
    return printable("".join([*lines, *traceback.format_exception_only(error)]))


def frames_of_others(error: BaseException) -> tuple[str, ...]:
    """Return where an exception and what caused it were raised, without the frames of this package."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    frames = [frame for one in reversed(chain) for frame in _frames_of_others(one)]
    return tuple(printable(f"{Path(one.filename).name}:{one.lineno} in {one.name}") for one in frames)


def _frames_of_others(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if _OWN_FOLDER not in Path(frame.filename).parents]


def printable(text: str) -> str:
    """Return the text with escapes for what UTF-8 cannot hold: file names may carry lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shortened(text: str, limit: int = 4096) -> str:
    """Return the text, printable and of at most so many characters; what is cut off is counted at its end."""
    text = printable(text)
    if len(text) <= limit:
        return text
    kept = limit - _NOTE
    return f"{text[:kept]}... [{len(text) - kept} more characters]"
