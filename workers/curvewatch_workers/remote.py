"""Checkpoints on a storage that has no rename: what is complete has a marker, which is written last."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pyarrow.fs import FileSelector, FileSystem, FileType

from curvewatch_workers.drafts import Drafts
from curvewatch_workers.errors import CheckpointLostError, printable
from curvewatch_workers.keeping import MARKER, Progress, mark, name_of, newest_first, score_in, surplus
from curvewatch_workers.ranking import Mode
from curvewatch_workers.storage import download, upload

logger = logging.getLogger(__name__)


class _Upload(NamedTuple):
    name: str
    future: Future[None]


class RemoteCheckpoints:
    """Keeps checkpoints as `epoch-000012` below a folder of any storage, uploaded in a thread of its own.

    A folder without its marker is no checkpoint. One upload is under way at a time: a checkpoint that is due
    meanwhile is left out, so that training never waits; the last one waits for it. An upload that fails is
    told and costs nothing but that checkpoint, unless it is the last one.

    Args:
        filesystem: The storage.
        root: Folder on it, of this run alone.
        rank: This rank; only rank 0 writes.
        keep: Checkpoints kept: so many of the best, and the latest besides.
        mode: Whether lower or higher scores are better.
        drafts: Where a checkpoint is written before its upload.
    """

    def __init__(
        self, filesystem: FileSystem, root: str, *, rank: int, keep: int, mode: Mode, drafts: Drafts
    ) -> None:
        self._filesystem, self._root, self._rank = filesystem, root, rank
        self._keep, self._mode, self._drafts = keep, mode, drafts
        self._uploader = ThreadPoolExecutor(1, thread_name_prefix="curvewatch-upload")
        self._upload: _Upload | None = None
        self._lost: list[str] = []
        """Checkpoints that were not kept since the storage last took one."""
        self._why = ""

    def names(self) -> tuple[str, ...]:
        """Name the checkpoints that are complete, the latest first."""
        return newest_first(self._marked())

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """Download a checkpoint into a folder that is gone afterwards."""
        with self._drafts.one() as folder:
            download(self._filesystem, f"{self._root}/{name}", folder)
            yield folder

    def save(self, at: Progress, write: Callable[[Path], None], *, score: float, last: bool) -> str | None:
        """Write a checkpoint on this machine and begin its upload; the last one is uploaded on return.

        Raises:
            CheckpointLostError: It is the last one and was not uploaded.
        """
        if self._rank != 0 or (self._upload is not None and not self._upload.future.done() and not last):
            return None
        told = self._finish()
        draft = self._drafts.new()
        try:
            write(draft)
        except BaseException:
            shutil.rmtree(draft)
            raise
        name = name_of(at)
        self._upload = _Upload(name, self._uploader.submit(self._keep_one, draft, at, score))
        if last:
            told = self._finish() or told
            if name in self._lost:
                raise CheckpointLostError(f"checkpoint {name} could not be kept in {self._root}: {self._why}")
        return told

    def close(self) -> None:
        """Wait for the upload that is under way."""
        self._finish()
        self._uploader.shutdown()

    def _finish(self) -> str | None:
        """Wait for the upload under way; return what is to be told of it."""
        if self._upload is None:
            return None
        (name, future), self._upload = self._upload, None
        error = future.exception()
        if error is None:
            lost, self._lost = self._lost, []
            return (
                f"checkpoints are kept in {self._root} again; {_listed(lost)} were not" if lost[1:] else None
            )
        logger.error(
            "A checkpoint was not kept: %s", error, exc_info=error, extra={"action": "upload_failed"}
        )
        self._lost.append(name)
        self._why = printable(str(error) or type(error).__name__)
        if self._lost[1:]:
            return None
        return f"checkpoint {name} could not be kept in {self._root}, training goes on: {self._why}"

    def _keep_one(self, draft: Path, at: Progress, score: float) -> None:
        name = name_of(at)
        try:
            # What an upload that failed left there, or a checkpoint that could not be read.
            self._remove(name)
            upload(draft, self._filesystem, f"{self._root}/{name}")
            with self._filesystem.open_output_stream(f"{self._root}/{name}/{MARKER}") as marker:
                marker.write(mark(at, score).encode())
        finally:
            shutil.rmtree(draft)
        try:
            self._remove_surplus(at)
        except OSError:
            # This one is kept all the same; the next one tries again.
            logger.warning(
                "Could not delete surplus checkpoints in %s",
                self._root,
                exc_info=True,
                extra={"action": "checkpoint_not_deleted"},
            )

    def _remove_surplus(self, latest: Progress) -> None:
        scores = {other: self._score_of(other) for other in self._marked()}
        for other in surplus(scores, latest=latest, keep=self._keep, mode=self._mode):
            self._remove(other)

    def _remove(self, name: str) -> None:
        """Take a checkpoint away, its marker first: a half deleted one must not be found."""
        place = f"{self._root}/{name}"
        for path, delete in (
            (f"{place}/{MARKER}", self._filesystem.delete_file),
            (place, self._filesystem.delete_dir),
        ):
            if self._filesystem.get_file_info(path).type is not FileType.NotFound:
                delete(path)

    def _marked(self) -> list[str]:
        found = self._filesystem.get_file_info(FileSelector(self._root, recursive=True, allow_not_found=True))
        return [Path(info.path).parent.name for info in found if info.base_name == MARKER]

    def _score_of(self, name: str) -> float:
        with self._filesystem.open_input_stream(f"{self._root}/{name}/{MARKER}") as marker:
            return score_in(marker.read().decode())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
