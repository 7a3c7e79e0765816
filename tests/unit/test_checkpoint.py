from __future__ import annotations

import dataclasses
import json
import resource
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoint_support import make_snapshot
from curvewatch_workers.checkpoint import NoCheckpoints, Snapshot
from curvewatch_workers.errors import CheckpointError, DamagedCheckpointError
from curvewatch_workers.keeping import Progress
from curvewatch_workers.ranking import Best


def test_a_snapshot_round_trips(tmp_path: Path) -> None:
    snapshot = make_snapshot()
    snapshot.write(tmp_path)

    again = Snapshot.read(tmp_path)

    assert torch.equal(again.model["weight"], snapshot.model["weight"])
    assert (again.epoch, again.optimizer, again.scheduler) == (3, snapshot.optimizer, None)
    assert again.records == snapshot.records
    assert (again.attempt, again.scaler, again.best) == (2, {"scale": 65536.0}, Best(0.25, 1))


def test_weights_that_find_no_room_are_told_as_such(tmp_path: Path) -> None:
    snapshot = dataclasses.replace(make_snapshot(), model={"weight": torch.zeros(100_000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"model\.pt cannot be written, with [0-9]+ bytes free on its disk"):
            snapshot.write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        Snapshot.read(tmp_path)
    make_snapshot().write(tmp_path)
    (tmp_path / "checkpoint.json").write_text(json.dumps({"format": 99, "epoch": 1}))
    with pytest.raises(CheckpointError, match="format 99, this version reads 3"):
        Snapshot.read(tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "training.pt", "records.jsonl"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_file_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    make_snapshot().write(tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        middle = len(content) // 2
        altered = bytes([content[middle] ^ 1])
        file.write_bytes(content[:middle] + (b"" if damage == "cut" else altered + content[middle + 1 :]))

    with pytest.raises(DamagedCheckpointError, match=name):
        Snapshot.read(tmp_path)


def test_no_flipped_byte_of_what_it_says_of_itself_goes_unnoticed(tmp_path: Path) -> None:
    make_snapshot().write(tmp_path)
    file = tmp_path / "checkpoint.json"
    content = file.read_bytes()
    said = json.loads(content)
    for place, byte in enumerate(content):
        file.write_bytes(content[:place] + bytes([byte ^ 1]) + content[place + 1 :])
        try:
            Snapshot.read(tmp_path)
        except DamagedCheckpointError:
            continue
        # White space, or another way to write the same.
        assert json.loads(file.read_bytes()) == said, f"byte {place} of {content!r}"


def test_a_checkpoint_of_before_there_was_a_checksum_of_itself_is_read(tmp_path: Path) -> None:
    make_snapshot().write(tmp_path)
    file = tmp_path / "checkpoint.json"
    said = json.loads(file.read_text())
    del said["checksum"]
    file.write_text(json.dumps(said))

    assert Snapshot.read(tmp_path).epoch == 3


def test_numpys_numbers_do_not_make_a_checkpoint_that_cannot_be_read(tmp_path: Path) -> None:
    optimizer = {"state": {}, "param_groups": [{"lr": np.float64(0.1), "step": np.int64(3)}]}
    snapshot = dataclasses.replace(make_snapshot(), optimizer=optimizer)
    snapshot.write(tmp_path)

    assert Snapshot.read(tmp_path).optimizer["param_groups"] == [{"lr": 0.1, "step": 3}]


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    dataclasses.replace(make_snapshot(), optimizer={"state": Path("x")}).write(tmp_path)

    with pytest.raises(CheckpointError, match="cannot be read"):
        Snapshot.read(tmp_path)


class Phase(Enum):
    WARMUP = 1


@pytest.mark.parametrize(
    ("changes", "part", "what"),
    [
        ({"optimizer": {"state": {0: {"place": Path("x")}}}}, "optimizer", "pathlib"),
        ({"scheduler": {"phase": Phase.WARMUP}}, "scheduler", "Phase"),
        ({"scheduler": {"curve": np.arange(2)}}, "scheduler", "numpy"),
        ({"scheduler": {"function": lambda: 0}}, "scheduler", "lambda"),
        ({"model": {"_extra_state": Path("x")}}, "model", "pathlib"),
    ],
)
def test_what_could_not_be_read_back_is_named_before_it_is_written(
    changes: dict[str, Any], part: str, what: str
) -> None:
    told = dataclasses.replace(make_snapshot(), **changes).unreadable()

    assert told is not None
    assert told.startswith(f"TrainingTask.{part}: ")
    assert what in told
    assert "\n" not in told
    assert make_snapshot().unreadable() is None


def test_a_class_that_the_user_allowed_can_be_read_back() -> None:
    snapshot = dataclasses.replace(make_snapshot(), scheduler={"phase": Phase.WARMUP})

    with torch.serialization.safe_globals([Phase]):
        assert snapshot.unreadable() is None


def test_looking_at_the_state_copies_no_tensor() -> None:
    large = torch.empty(1 << 40, device="meta")

    assert dataclasses.replace(make_snapshot(), model={"weight": large}).unreadable() is None


def test_nothing_is_kept_for_a_trial() -> None:
    checkpoints = NoCheckpoints()
    checkpoints.save(Progress(1), make_snapshot(1).write, score=1.0, last=True)

    assert checkpoints.names() == ()
    with pytest.raises(CheckpointError, match="none are kept"):
        checkpoints.open("epoch-000001")
