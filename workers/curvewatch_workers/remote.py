"""Checkpoints on a storage that has no rename: what is complete has a marker, which is written last."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pyarrow.fs import FileSelector, FileSystem, FileType

from curvewatch_workers.drafts import Drafts
from curvewatch_workers.errors import printable
from curvewatch_workers.keeping import MARKER, Progress, mark, name_of, newest_first, score_in, surplus
from curvewatch_workers.ranking import Mode
from curvewatch_workers.storage import download, upload

logger = logging.getLogger(__name__)


class RemoteCheckpoints:
    """Keeps checkpoints as `epoch-000012` below a folder of any storage, uploaded in a thread of its own.

    A folder without its marker is no checkpoint. One upload is under way at a time: a checkpoint that is due
    meanwhile is left out, so that training never waits; the last one waits for it. An upload that fails is
    told and costs nothing but that checkpoint.

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
        self._upload: Future[None] | None = None
        self._failing = False

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
        """Write a checkpoint on this machine and begin its upload; the last one is uploaded on return."""
        if self._rank != 0 or (self._upload is not None and not self._upload.done() and not last):
            return None
        problem = self._finish()
        draft = self._drafts.new()
        try:
            write(draft)
        except BaseException:
            shutil.rmtree(draft)
            raise
        self._upload = self._uploader.submit(self._keep_one, draft, at, score)
        return (self._finish() if last else None) or problem

    def close(self) -> None:
        """Wait for the upload that is under way."""
        self._finish()
        self._uploader.shutdown()

    def _finish(self) -> str | None:
        """Wait for the upload under way; return what is to be told of it."""
        if self._upload is None:
            return None
        error, self._upload = self._upload.exception(), None
        if error is None:
            self._failing = False
            return None
        logger.error(
            "A checkpoint was not kept: %s", error, exc_info=error, extra={"action": "upload_failed"}
        )
        told, self._failing = self._failing, True
        text = printable(f"a checkpoint could not be kept in {self._root}, training goes on: {error}")
        return None if told else text[:4000]

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
        scores = {other: self._score_of(other) for other in self._marked()}
        for other in surplus(scores, latest=at, keep=self._keep, mode=self._mode):
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
