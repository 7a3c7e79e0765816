"""The demo when it is interrupted; `make demo` shows it whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

END_SECONDS = 120
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="processes are looked for in /proc"
)
pytestmark = pytest.mark.long


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Return a folder with a short path: Ray's sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="cw", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def processes_below(folder: Path) -> list[str]:
    """Return the command lines of all processes that were told of a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if str(folder) in command:
            found.append(command)
    return found


@contextmanager
def demo_at_work(folder: Path, project_root: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the demo and hand it over in the middle of its work: a run is known, and Ray is up."""
    command = [sys.executable, "-m", "curvewatch_service.cli", "demo"]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command,
        cwd=project_root,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as demo:
        assert demo.stdout is not None
        seen = []
        for line in iter(demo.stdout.readline, ""):
            seen.append(line)
            if " QUEUED: " in line or " STARTING: " in line:
                break
        assert any("The service runs: http://127.0.0.1:" in line for line in seen), "".join(seen)
        assert processes_below(folder) != []
        yield demo


@needs_proc
@pytest.mark.long
def test_a_demo_whose_terminal_goes_away_leaves_nothing_behind(
    short_folder: Path, project_root: Path
) -> None:
    with demo_at_work(short_folder, project_root) as demo:
        assert demo.stdout is not None
        demo.stdout.close()  # nothing can be said any more
        demo.send_signal(signal.SIGHUP)
        demo.wait(END_SECONDS)
    assert demo.returncode != -signal.SIGHUP
    assert processes_below(short_folder) == []
    assert list(short_folder.iterdir()) == []


@needs_proc
def test_a_demo_that_is_interrupted_leaves_nothing_behind(short_folder: Path, project_root: Path) -> None:
    with demo_at_work(short_folder, project_root) as demo:
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=END_SECONDS)
    assert demo.returncode == 130, rest
    assert "Interrupted." in rest
    assert "Stopping the service and its Ray cluster: done in" in rest
    assert "Traceback" not in rest
    assert processes_below(short_folder) == []
    assert list(short_folder.iterdir()) == []
