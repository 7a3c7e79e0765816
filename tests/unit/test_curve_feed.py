"""What the hooks share, without any framework."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from curvewatch_workers.errors import HookError
from curvewatch_workers.hooks.curve_feed import CurveFeed, accuracy_in, number_in
from curvewatch_workers.hooks.curve_file import Row, read_rows, write_rows

ROWS = (
    Row(at=1, train=0.1 + 0.2, validation=1e-300, accuracy=0.5, learning_rate=1e-3),
    Row(at=2, train=math.inf, validation=None),
    Row(at=4, train=None, validation=-2.5, accuracy=1.0),
)


def test_a_file_holds_its_rows_to_the_last_digit(tmp_path: Path) -> None:
    write_rows(tmp_path / "new" / "curve.csv", ROWS, "step")

    assert read_rows(tmp_path / "new" / "curve.csv") == ROWS
    assert read_rows(tmp_path / "none.csv") == ()


def test_a_process_that_is_killed_loses_no_finished_epoch(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from curvewatch_workers.hooks.curve_feed import CurveFeed
from curvewatch_workers.hooks.curve_file import Row

feed = CurveFeed("keras", sys.argv[1])
feed.begin(0)
for epoch in range(1, 8):
    feed.add(Row(at=epoch, train=1 / epoch, validation=2 / epoch))
os.kill(os.getpid(), signal.SIGKILL)
"""
    file = tmp_path / "curve.csv"
    (tmp_path / "curve.csv.part").write_text("epoch,tr")  # left by an earlier death

    done = subprocess.run([sys.executable, "-c", program, str(file)], check=False)

    assert done.returncode == -signal.SIGKILL
    assert [(row.at, row.train, row.validation) for row in read_rows(file)] == [
        (epoch, 1 / epoch, 2 / epoch) for epoch in range(1, 8)
    ]


def test_only_the_leader_writes_and_decides(tmp_path: Path) -> None:
    feed = CurveFeed("keras", tmp_path / "curve.csv", stop=True)
    feed.begin(0, leads=False)

    assert not feed.add(Row(at=1, train=math.nan, validation=math.nan))
    assert not (tmp_path / "curve.csv").exists()
    feed.begin(0)
    assert feed.add(Row(at=1, train=math.nan, validation=math.nan))


def test_a_row_that_comes_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    feed = CurveFeed("keras", tmp_path / "curve.csv", stop_on="not_finite")
    feed.begin(0)
    assert feed.add(Row(at=1, train=math.nan, validation=1.0))

    assert not feed.add(Row(at=1, train=0.5, validation=1.0))

    assert [row.train for row in read_rows(tmp_path / "curve.csv")] == [0.5]


def test_what_is_no_single_number_is_refused() -> None:
    with pytest.raises(
        HookError, match=r"what the training logs as 'loss' is no single number .*train_loss must name"
    ):
        number_in({"loss": [0.5, 0.4]}, "loss", "train_loss")
    with pytest.raises(HookError, match="it logs nothing"):
        number_in({}, "loss", "train_loss")


def test_the_accuracy_is_found_under_its_usual_names() -> None:
    assert accuracy_in({"accuracy": 0.9, "val_sparse_categorical_accuracy": 0.7}) == 0.7
    assert accuracy_in({"accuracy": 0.9, "eval_loss": 0.7}) is None
    assert accuracy_in({"val_accuracy": [0.9, 0.8]}) is None
