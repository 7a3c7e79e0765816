from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from curvewatch_workers.checkpoint import FolderCheckpoints, NoCheckpoints, Snapshot
from curvewatch_workers.errors import CheckpointError
from record_support import make_record

CPU = torch.device("cpu")


def make_snapshot(epoch: int = 3) -> Snapshot:
    return Snapshot(
        epoch=epoch,
        model={"weight": torch.arange(3.0)},
        optimizer={"state": {}, "param_groups": [{"lr": 0.1}]},
        scheduler=None,
        stopper={"best": math.inf, "best_epoch": 0},
        scaler=None,
        best_model=None,
        records=tuple(make_record(epoch=number) for number in range(1, epoch + 1)),
    )


def test_a_snapshot_round_trips(tmp_path: Path) -> None:
    snapshot = make_snapshot()
    snapshot.write(tmp_path)

    again = Snapshot.read(tmp_path, CPU)

    assert torch.equal(again.model["weight"], snapshot.model["weight"])
    assert (again.epoch, again.optimizer, again.scheduler) == (3, snapshot.optimizer, None)
    assert (again.stopper, again.records) == (snapshot.stopper, snapshot.records)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Snapshot.read(tmp_path, CPU)
    make_snapshot().write(tmp_path)
    (tmp_path / "checkpoint.json").write_text(json.dumps({"format": 99, "epoch": 1}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 1"):
        Snapshot.read(tmp_path, CPU)


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_best_and_the_latest_are_kept(tmp_path: Path) -> None:
    checkpoints = FolderCheckpoints(tmp_path, rank=0, keep=2)
    for epoch, loss in enumerate([0.5, 0.2, math.nan, 0.4, 0.9], 1):
        checkpoints.save(epoch, make_snapshot(epoch).write, validation_loss=loss)

    assert kept(tmp_path) == ["epoch-000002", "epoch-000005"]
    with checkpoints.latest() as folder:
        assert folder == tmp_path / "epoch-000005"


def test_a_write_that_fails_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    checkpoints = FolderCheckpoints(tmp_path, rank=0, keep=2)
    checkpoints.save(1, make_snapshot(1).write, validation_loss=1.0)

    def torn(folder: Path) -> None:
        (folder / "model.pt").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(2, torn, validation_loss=0.5)
    with checkpoints.latest() as folder:
        assert folder is not None
        assert Snapshot.read(folder, CPU).epoch == 1


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    FolderCheckpoints(tmp_path, rank=1, keep=2).save(1, make_snapshot(1).write, validation_loss=1.0)

    assert kept(tmp_path) == []
    with NoCheckpoints().latest() as folder:
        assert folder is None


def test_numpys_numbers_do_not_make_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    optimizer = {"state": {}, "param_groups": [{"lr": np.float64(0.1), "step": np.int64(3)}]}
    snapshot = dataclasses.replace(make_snapshot(), optimizer=optimizer)
    snapshot.write(tmp_path)

    assert Snapshot.read(tmp_path, CPU).optimizer["param_groups"] == [{"lr": 0.1, "step": 3}]


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    make_snapshot().write(tmp_path)
    torch.save({"optimizer": Path("x"), "scheduler": None, "stopper": {}}, tmp_path / "training.pt")

    with pytest.raises(CheckpointError, match="cannot be read"):
        Snapshot.read(tmp_path, CPU)
