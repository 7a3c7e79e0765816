"""Checkpoints: a folder that holds all that a run needs to go on, and where such folders are kept."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import pickle
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.durable import crc32, sync, sync_folder
from curvewatch_workers.errors import CheckpointError, DamagedCheckpointError
from curvewatch_workers.keeping import MARKER, Progress, mark, name_of, newest_first, score_in, surplus
from curvewatch_workers.partial import PartialEpoch
from curvewatch_workers.ranking import Best, Mode

logger = logging.getLogger(__name__)

FORMAT = 3
MODEL_FILE, TRAINING_FILE, RECORDS_FILE, META_FILE = (
    "model.pt",
    "training.pt",
    "records.jsonl",
    "checkpoint.json",
)
_REMEDY = "keep only tensors, numbers, strings, lists and dicts in it"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run after an epoch, or in the middle of one. Random numbers need no state: each epoch is seeded anew."""

    epoch: int
    """The last epoch that was finished."""
    partial: PartialEpoch | None = None
    """What the next epoch has come to; None between two epochs."""
    rolled_back_to: int | None = None
    """The epoch whose weights the next one begins with, after a rescue; 0 for the initial ones."""
    attempt: int
    """Start of the worker group that wrote it, from 1."""
    model: dict[str, Any]
    """State of the unwrapped model."""
    optimizer: dict[str, Any]
    optimizer_class: str | None = None
    """Name of the optimizer's class; None in checkpoints that do not say."""
    scheduler: dict[str, Any] | None
    scaler: dict[str, Any] | None = None
    """State of the gradient scaler; None without one."""
    loss: dict[str, Any] | None = None
    """State of the loss, of rank 0; None without any."""
    best_model: dict[str, Any] | None = None
    """State of the model at the best epoch; None unless the job wants it back when it stops early."""
    best_model_epoch: int | None = 0
    """The epoch that `best_model` is from, 0 without one; None in checkpoints that do not say."""
    best: Best | None
    """The best epoch so far; None when no epoch had a finite number."""
    records: tuple[EpochRecord, ...]
    """Every epoch so far, so that a later attempt can tell the service what it lacks."""

    @property
    def weights_epoch(self) -> int:
        """The epoch whose weights it holds, for one between two epochs; 0 for the initial ones."""
        return self.epoch if self.rolled_back_to is None else self.rolled_back_to

    def write(self, folder: Path) -> None:
        """Write the snapshot into an existing empty folder; what says that it is whole comes last.

        Raises:
            OSError: It cannot be written.
        """
        _save(self.model, folder / MODEL_FILE)
        training = {
            "optimizer": self.optimizer,
            "optimizer_class": self.optimizer_class,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "loss": self.loss,
            "best_model": self.best_model,
            "best_model_epoch": self.best_model_epoch,
            "partial": self.partial.state() if self.partial else None,
            "rolled_back_to": self.rolled_back_to,
        }
        _save(_plain(training), folder / TRAINING_FILE)
        lines = (record.model_dump_json() + "\n" for record in self.records)
        (folder / RECORDS_FILE).write_text("".join(lines), encoding="utf-8")
        meta = {
            "format": FORMAT,
            "epoch": self.epoch,
            "attempt": self.attempt,
            "best": self.best._asdict() if self.best else None,
            "crc32": {name: crc32(folder / name) for name in (MODEL_FILE, TRAINING_FILE, RECORDS_FILE)},
        }
        said = {**meta, "checksum": _checksum(meta)}
        (folder / META_FILE).write_text(json.dumps(said), encoding="utf-8")

    def unreadable(self) -> str | None:
        """Return which part of the task's state `read` would refuse and why, in one sentence; None without any.

        Tensors are left out: what they hold is read whatever it is.
        """
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "loss": self.loss,
        }
        for name, state in parts.items():
            why = _why_unreadable(_plain(state) if name != "model" else state)
            if why is not None:
                return f"TrainingTask.{name}: {why}"
        return None

    @classmethod
    def read(cls, folder: Path) -> Snapshot:
        """Read a snapshot, its tensors into host memory: who loads a state moves what belongs on a device.

        Raises:
            DamagedCheckpointError: A file is missing, or is not what was written.
            CheckpointError: The checkpoint has another format, or holds what cannot be loaded.
        """
        meta = _undamaged(folder)
        try:
            training = torch.load(folder / TRAINING_FILE, map_location="cpu", weights_only=True)
            lines = (folder / RECORDS_FILE).read_text(encoding="utf-8").splitlines()
            return cls(
                epoch=meta["epoch"],
                attempt=meta["attempt"],
                model=torch.load(folder / MODEL_FILE, map_location="cpu", weights_only=True),
                optimizer=training["optimizer"],
                optimizer_class=training.get("optimizer_class"),
                scheduler=training["scheduler"],
                scaler=training["scaler"],
                # Checkpoints of this format have been written without what is only got.
                loss=training.get("loss"),
                best_model=training["best_model"],
                best_model_epoch=training.get("best_model_epoch", None if training["best_model"] else 0),
                partial=PartialEpoch.of_state(training["partial"]) if training["partial"] else None,
                rolled_back_to=training.get("rolled_back_to"),
                best=Best(**meta["best"]) if meta["best"] else None,
                records=tuple(EpochRecord.model_validate_json(line) for line in lines),
            )
        except (OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error


def _save(state: Any, path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:
        # torch's writer tells of a full disk by a failed check of its own.
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            f"{path} cannot be written, with {free} bytes free on its disk: {_first_line(error)}"
        ) from error


def _plain(state: Any) -> Any:
    """Return the state without NumPy's numbers, which a schedule may have made: they are pickled code."""
    return pytree.tree_map_only(np.generic, lambda number: number.item(), state)


def _why_unreadable(state: Any) -> str | None:
    # Not those of subclasses: their class is written too.
    skeleton = pytree.tree_map(lambda leaf: None if type(leaf) in (Tensor, nn.Parameter) else leaf, state)
    file = io.BytesIO()
    try:
        torch.save(skeleton, file)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return f"its state_dict() cannot be pickled: {_first_line(error)}; {_REMEDY}"
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        file.seek(0)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        return (
            f"its state_dict() holds {', '.join(names) or _first_line(error)}, which a checkpoint could not be read "
            f"back with; {_REMEDY}, or pass a class to torch.serialization.add_safe_globals where it is imported"
        )
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _checksum(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _undamaged(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself, once its files are those that it names.

    torch reads altered weights without a word: it compares no checksum.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        own = meta.pop("checksum", None)
        if own is not None and own != _checksum(meta):
            raise ValueError(f"{META_FILE} is not what was written")
        if meta["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {folder} has format {meta['format']}, this version reads {FORMAT}; "
                "resume it with the version that wrote it"
            )
        # Checkpoints of this format have been written without a checksum of their own.
        if own is None and set(meta) != {"format", "epoch", "attempt", "best", "crc32"}:
            raise ValueError(f"{META_FILE} says {', '.join(meta)}")
        damaged = [name for name, written in meta["crc32"].items() if crc32(folder / name) != written]
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"checkpoint {folder} cannot be read: {error}") from error
    if damaged:
        raise DamagedCheckpointError(
            f"checkpoint {folder} cannot be read: {', '.join(damaged)} is not what was written"
        )
    return meta


class Checkpoints(Protocol):
    """Where checkpoints are kept. Every rank makes the same calls, at the same epochs."""

    def names(self) -> tuple[str, ...]:
        """Name the checkpoints that can be opened, the latest first."""

    def open(self, name: str) -> AbstractContextManager[Path]:
        """Give a checkpoint as a folder on this machine, which may be gone afterwards."""

    def save(self, at: Progress, write: Callable[[Path], None], *, score: float, last: bool) -> str | None:
        """Keep a checkpoint; return why an earlier one could not be kept, told once, None when all is well.

        Args:
            at: How far the run has come.
            write: Called with an empty folder, on rank 0 only.
            score: What the checkpoint is ranked by; it need not be finite.
            last: No other may follow. While an earlier one is on its way, another may be left out; the last never is.

        Raises:
            CheckpointLostError: It is the last one and could not be kept.
        """


class NoCheckpoints:
    """Keeps nothing, for trials."""

    def names(self) -> tuple[str, ...]:
        """Name none."""
        return ()

    def open(self, name: str) -> AbstractContextManager[Path]:
        """Open none.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(f"there is no checkpoint {name}: none are kept")

    def save(self, at: Progress, write: Callable[[Path], None], *, score: float, last: bool) -> str | None:
        """Keep nothing."""


class FolderCheckpoints:
    """Keeps checkpoints as `epoch-000012` below a folder, each whole or not at all, whatever crashes when.

    A rename is the one step that makes a checkpoint, or takes it away: local file systems and NFS do it at once.

    Args:
        root: Folder that all ranks see.
        rank: This rank; only rank 0 writes.
        keep: Checkpoints kept: so many of the best, and the latest besides.
        mode: Whether lower or higher scores are better.
    """

    def __init__(self, root: Path, *, rank: int, keep: int, mode: Mode = "min") -> None:
        self._root = root
        self._rank = rank
        self._keep = keep
        self._mode: Mode = mode

    def names(self) -> tuple[str, ...]:
        """Name the checkpoints, the latest first."""
        return newest_first(path.name for path in self._root.glob("epoch-*") if path.is_dir())

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Path]:
        """Give the checkpoint's own folder."""
        yield self._root / name

    def save(self, at: Progress, write: Callable[[Path], None], *, score: float, last: bool) -> str | None:  # noqa: ARG002
        """Write a checkpoint beside its place, onto the disk, move it there, then remove the surplus."""
        if self._rank != 0:
            return None
        for leftover in self._root.glob(".*-epoch-*"):
            _delete(leftover)
        name = name_of(at)
        draft = self._beside(name, "draft")
        draft.mkdir(parents=True)
        try:
            write(draft)
            (draft / MARKER).write_text(mark(at, score), encoding="utf-8")
            sync_folder(draft)
        except BaseException:
            # On a full disk its room is needed to say why.
            _delete(draft)
            raise
        # There is one already when it could not be read, and the run went on from one before it.
        self._remove(name)
        draft.replace(self._root / name)
        sync(self._root)
        scores = {other: self._score_of(other) for other in self.names()}
        for other in surplus(scores, latest=at, keep=self._keep, mode=self._mode):
            self._remove(other)
        return None

    def _remove(self, name: str) -> None:
        """Take a checkpoint away: at once, for a half deleted one must not be found."""
        place = self._root / name
        if place.exists():
            gone = self._beside(name, "gone")
            place.replace(gone)
            _delete(gone)

    def _beside(self, name: str, what: str) -> Path:
        # A name of its own each time: NFS may not let go of an earlier one.
        return self._root / f".{what}-{name}-{secrets.token_hex(4)}"

    def _score_of(self, name: str) -> float:
        try:
            text = (self._root / name / MARKER).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            text = ""
        return score_in(text)


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError:
        # NFS keeps files that somebody still reads; the next checkpoint tries again.
        logger.warning(
            "Could not delete %s", folder, exc_info=True, extra={"action": "checkpoint_not_deleted"}
        )
