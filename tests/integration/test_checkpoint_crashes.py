"""A process that dies at any step of keeping a checkpoint leaves one that can be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
import torch
from checkpoint_support import make_snapshot
from curvewatch_workers.keeping import Progress
from curvewatch_workers.checkpoint import FolderCheckpoints, Snapshot
from curvewatch_workers.drafts import Drafts
from curvewatch_workers.errors import DamagedCheckpointError
from curvewatch_workers.remote import RemoteCheckpoints
from curvewatch_workers.storage import open_storage

torch.set_num_threads(1)
KIND, BASE = sys.argv[1], Path(sys.argv[2])
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir", "os.listdir"}

def make(root):
    if KIND == "folder":
        return FolderCheckpoints(root, rank=0, keep=1)
    filesystem, place = open_storage(f"local://{root}")
    (BASE / "tmp").mkdir(exist_ok=True)
    return RemoteCheckpoints(filesystem, place, rank=0, keep=1, mode="min", drafts=Drafts(BASE / "tmp"))

def save(checkpoints, epoch, score):
    problem = checkpoints.save(Progress(epoch), make_snapshot(epoch).write, score=score, last=True)
    assert problem is None, problem

def readable(checkpoints):
    for name in checkpoints.names():
        with checkpoints.open(name) as folder:
            try:
                yield Snapshot.read(folder).epoch
            except DamagedCheckpointError:
                assert replaced and name == "epoch-000002", name

def dies_at(step, root):
    # A pool's thread does not outlive a fork: the child has checkpoints of its own.
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [step]
    def hook(event, _arguments):
        if event in STEPS:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
    checkpoints = make(root)
    sys.addaudithook(hook)
    save(checkpoints, 2, 0.5)
    os._exit(0)

deaths = 0
for replaced in (False, True):
    step, code = 0, 9
    while code == 9:
        step += 1
        root = BASE / f"{replaced}-{step}"
        if os.fork() == 0:
            save(make(root), 1, 1.0)
            if replaced:
                place = root / "epoch-000002"
                place.mkdir()
                (place / "complete.json").write_text("{}")
            os._exit(0)
        os.wait()
        code = dies_at(step, root)
        deaths += code == 9
        assert code in (0, 9), code
        found = list(readable(make(root)))
        assert found in ([1], [2], [2, 1]), (step, found)
        after = make(root)
        save(after, 3, 0.1)
        assert list(readable(after)) == [3], step
        assert KIND != "folder" or sorted(path.name for path in root.iterdir()) == ["epoch-000003"], step
    assert found == [2], found
print("deaths:", deaths)
left = Drafts(BASE / "tmp")
left.clear_dead()
print("drafts left:", len(list(BASE.glob("tmp/curvewatch-draft-*"))))
"""


@pytest.mark.parametrize("kind", ["folder", "remote"])
def test_whatever_dies_when_a_checkpoint_can_be_read(tmp_path: Path, kind: str, project_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        env={"PYTHONPATH": str(project_root / "tests"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"},
    )

    assert done.returncode == 0, done.stderr
    deaths = int(done.stdout.split("deaths: ")[1].split()[0])
    # Each of the two rounds dies at least at every file that it writes, and at every rename.
    assert deaths > 30, done.stdout
    assert "drafts left: 0" in done.stdout
