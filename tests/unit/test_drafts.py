from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from curvewatch_workers.drafts import Drafts

MAKES_ONE = """
import sys
from pathlib import Path
from curvewatch_workers.drafts import Drafts
drafts = Drafts(Path(sys.argv[1]))
(drafts.new() / "model.pt").write_bytes(b"x")
print("made", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", MAKES_ONE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "made\n"
        drafts = Drafts(tmp_path)
        own = drafts.new()

        drafts.clear_dead()
        assert len(list(tmp_path.iterdir())) == 2

        other.send_signal(signal.SIGKILL)
        other.wait(30)
        drafts.clear_dead()
        assert list(tmp_path.iterdir()) == [own]


def test_drafts_that_are_gone_keep_no_file_open(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with drafts.one() as folder:
            assert folder.is_dir()

    assert not list(tmp_path.iterdir())
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_what_is_no_draft_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (tmp_path / "curvewatch-draft-link").symlink_to(target)
    (tmp_path / "curvewatch-draft-file").touch()

    Drafts(tmp_path).clear_dead()

    assert len(list(tmp_path.iterdir())) == 3
