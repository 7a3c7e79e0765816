"""Checkpoints: a folder that holds all that a run needs to go on, and where such folders are kept."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils import _pytree as pytree

from curvewatch_workers.contract import EpochRecord
from curvewatch_workers.errors import CheckpointError

FORMAT = 1
MODEL_FILE, TRAINING_FILE, RECORDS_FILE, META_FILE = (
    "model.pt",
    "training.pt",
    "records.jsonl",
    "checkpoint.json",
)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at the end of an epoch. Random numbers need no state: each epoch is seeded anew."""

    epoch: int
    """The epoch that was finished."""
    model: dict[str, Any]
    """State of the unwrapped model."""
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    stopper: dict[str, Any]
    """State of early stopping."""
    scaler: dict[str, Any] | None
    """State of the fp16 gradient scaler; None in other precisions."""
    best_model: dict[str, Any] | None
    """State of the model at the best epoch; None unless the job wants it back when it stops early."""
    records: tuple[EpochRecord, ...]
    """Every epoch so far, so that a later attempt can tell the service what it lacks."""

    def write(self, folder: Path) -> None:
        """Write the snapshot into an existing empty folder."""
        torch.save(self.model, folder / MODEL_FILE)
        training = {
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "stopper": self.stopper,
            "scaler": self.scaler,
            "best_model": self.best_model,
        }
        # NumPy's numbers, which a schedule may have made, would be written but not read: they are pickled code.
        training = pytree.tree_map_only(np.generic, lambda number: number.item(), training)
        torch.save(training, folder / TRAINING_FILE)
        lines = (record.model_dump_json() + "\n" for record in self.records)
        (folder / RECORDS_FILE).write_text("".join(lines), encoding="utf-8")
        (folder / META_FILE).write_text(json.dumps({"format": FORMAT, "epoch": self.epoch}), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, device: torch.device) -> Snapshot:
        """Read a snapshot, its tensors onto the device.

        Raises:
            CheckpointError: The folder is no checkpoint of this format.
        """
        try:
            meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
            if meta["format"] != FORMAT:
                raise CheckpointError(
                    f"checkpoint {folder} has format {meta['format']}, this version reads {FORMAT}; "
                    "resume it with the version that wrote it"
                )
            training = torch.load(folder / TRAINING_FILE, map_location=device, weights_only=True)
            lines = (folder / RECORDS_FILE).read_text(encoding="utf-8").splitlines()
            return cls(
                epoch=meta["epoch"],
                model=torch.load(folder / MODEL_FILE, map_location=device, weights_only=True),
                optimizer=training["optimizer"],
                scheduler=training["scheduler"],
                stopper=training["stopper"],
                scaler=training["scaler"],
                best_model=training["best_model"],
                records=tuple(EpochRecord.model_validate_json(line) for line in lines),
            )
        except (OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from error


class Checkpoints(Protocol):
    """Where checkpoints are kept. Every rank calls both methods, at the same epochs."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """Open the folder of the latest checkpoint; None when there is none."""

    def save(self, epoch: int, write: Callable[[Path], None], *, validation_loss: float) -> None:
        """Keep a checkpoint; `write` is called with an empty folder, on rank 0 only."""


class NoCheckpoints:
    """Keeps nothing, for trials."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """Return none."""
        return contextlib.nullcontext()

    def save(self, epoch: int, write: Callable[[Path], None], *, validation_loss: float) -> None:
        """Keep nothing."""


class FolderCheckpoints:
    """Keeps checkpoints as `epoch-000012` below a folder, whole or not at all: the latest and the best.

    Args:
        root: Folder that all ranks see.
        rank: This rank; only rank 0 writes.
        keep: Checkpoints kept: those of lowest validation loss, and the latest always.
    """

    def __init__(self, root: Path, *, rank: int, keep: int) -> None:
        self._root = root
        self._rank = rank
        self._keep = keep

    @contextlib.contextmanager
    def latest(self) -> Iterator[Path | None]:
        """Open the latest checkpoint."""
        folders = self._folders()
        yield folders[-1] if folders else None

    def save(self, epoch: int, write: Callable[[Path], None], *, validation_loss: float) -> None:
        """Write a checkpoint beside its place, move it there, then remove the surplus."""
        if self._rank != 0:
            return
        draft = self._root / f".draft-{epoch:06d}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write(draft)
        (draft / "validation_loss").write_text(repr(validation_loss), encoding="utf-8")
        place = self._root / f"epoch-{epoch:06d}"
        shutil.rmtree(place, ignore_errors=True)
        draft.replace(place)
        *older, _latest = self._folders()
        for surplus in sorted(older, key=self._loss_of)[max(self._keep - 1, 0) :]:
            shutil.rmtree(surplus)

    def _folders(self) -> list[Path]:
        return sorted(self._root.glob("epoch-*"))

    @staticmethod
    def _loss_of(folder: Path) -> tuple[bool, float]:
        loss = float((folder / "validation_loss").read_text(encoding="utf-8"))
        return loss != loss, loss  # NaN last
