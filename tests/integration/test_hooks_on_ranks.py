"""The hooks on several real ranks: one file, and all stop after the same epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hook_support import read_file, verdict_of
from torchrun_support import free_port, train

LOOP = """
import sys
from pathlib import Path

def main(tests, folder):
    sys.path.insert(0, tests)
    import hook_scripts

    hook_scripts.train_{framework}(Path(folder))
"""


@pytest.mark.parametrize("framework", ["lightning", pytest.param("transformers", marks=pytest.mark.long)])
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


@pytest.mark.parametrize("framework", [pytest.param("lightning", marks=pytest.mark.long), "transformers"])
def test_a_job_of_two_workers_has_the_frameworks_curve(
    framework: str, tmp_path: Path, project_root: Path
) -> None:
    job = tmp_path / "job"
    job.mkdir()
    (job / "loop.py").write_text(LOOP.format(framework=framework))
    params = {"tests": str(project_root / "tests"), "folder": str(tmp_path)}
    spec = {
        "name": "hooked",
        "code": {"loop": "loop:main"},
        "params": params,
        "training": {"epochs": 60, "global_batch_size": 32},
        "scaling": {"workers": 2},
    }
    (job / "job.yaml").write_text(json.dumps(spec))

    records = train(job, tmp_path / "out", ranks=2)

    assert [(record.epoch, record.train.loss, record.validation.loss) for record in records] == [
        (row["epoch"], row["train_loss"], row["val_loss"]) for row in read_file(tmp_path / "curve.csv")
    ]
    assert 5 <= len(records) < 60
    assert {(record.world_size, record.train.reported_by) for record in records} == {(2, framework)}
