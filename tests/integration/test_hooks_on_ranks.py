"""The hooks on several real ranks: one file, and all stop after the same epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hook_support import read_file, verdict_of
from torchrun_support import free_port


@pytest.mark.parametrize("framework", ["lightning", "transformers"])
def test_all_ranks_stop_after_the_same_epoch(framework: str, tmp_path: Path, project_root: Path) -> None:
    tests = project_root / "tests"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    script = [str(tests / "hook_scripts.py"), framework, str(tmp_path)]
    done = subprocess.run(
        [*launcher, str(free_port()), *script],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "PYTHONPATH": str(tests)},
    )
    assert done.returncode == 0, done.stdout + done.stderr

    rows = read_file(tmp_path / "curve.csv")
    epochs = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert epochs == [len(rows)] * 2
    assert len(rows) < 60
    assert verdict_of(tmp_path / "curve.csv")["stop_epoch"] == len(rows)
    assert done.stderr.count("The training stops.") == 1
