"""Checkpoints on their way to their storage: folders on this machine's own disk, where writing is fast.

Each is held locked by the process that made it. The lock goes with the process, however that ends, and tells
the next one which folders nobody will ever fetch.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_PREFIX = "curvewatch-draft-"
_UNLOCKED_PREFIX = "curvewatch-new-"


class Drafts:
    """Makes folders below the system's temporary folder, and clears away those of processes that died.

    Args:
        root: Where the folders are made; None for the system's temporary folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or Path(tempfile.gettempdir())
        self._locks: dict[Path, int] = {}

    def new(self) -> Path:
        """Make an empty folder; whoever uses it deletes it."""
        for gone in [path for path in self._locks if not path.exists()]:
            os.close(self._locks.pop(gone))
        unlocked = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX, dir=self._root))
        lock = os.open(unlocked, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Under its final name it is locked from the first moment: nobody takes it for a dead process's.
        folder = self._root / unlocked.name.replace(_UNLOCKED_PREFIX, _PREFIX)
        unlocked.rename(folder)
        self._locks[folder] = lock
        return folder

    def clear_dead(self) -> None:
        """Delete the folders that died with the process that made them."""
        for folder in self._root.glob(f"{_PREFIX}*"):
            try:
                _delete_if_dead(folder)
            except (FileNotFoundError, PermissionError, NotADirectoryError):
                continue  # another process was faster, or it is none of ours
            except OSError:
                logger.warning(
                    "Could not delete %s", folder, exc_info=True, extra={"action": "draft_not_deleted"}
                )

    @contextlib.contextmanager
    def one(self) -> Iterator[Path]:
        """Make an empty folder that is gone afterwards."""
        folder = self.new()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def _delete_if_dead(folder: Path) -> None:
    """Delete a folder whose lock nobody holds.

    Raises:
        OSError: It is gone, another user's, or no folder.
    """
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    except BlockingIOError:
        return
    finally:
        os.close(lock)
