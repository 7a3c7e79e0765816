"""The demo when it is interrupted; `make demo` shows it whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

END_SECONDS = 120


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


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are looked for in /proc")
def test_a_demo_that_is_interrupted_leaves_nothing_behind(short_folder: Path, project_root: Path) -> None:
    command = [sys.executable, "-m", "curvewatch_service.cli", "demo"]
    environment = {**os.environ, "TMPDIR": str(short_folder), "PYTHONUNBUFFERED": "1"}
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
            # In the middle of its work: the run is known, and Ray is up.
            if " QUEUED: " in line or " STARTING: " in line:
                break
        assert any("The service runs: http://127.0.0.1:" in line for line in seen), "".join(seen)
        assert processes_below(short_folder) != []
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=END_SECONDS)
    assert demo.returncode == 130, rest
    assert "Interrupted." in rest
    assert "Stopping the service and its Ray cluster: done in" in rest
    assert "Traceback" not in rest
    assert processes_below(short_folder) == []
    assert list(short_folder.iterdir()) == []
