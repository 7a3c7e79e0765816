"""`scripts/stack.py` where a person errs, or where it was killed: what it says. Nothing is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stack_support import call

PORTS = (1, 2, 3)


@pytest.mark.parametrize("noted", ["", "{", '["curvewatch"]', '[{"name": "curvewatch"}]', "3"])
@pytest.mark.parametrize("what", ["up", "down"])
def test_notes_that_cannot_be_read_are_told(what: str, noted: str, tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(noted)
    done = call(tmp_path, PORTS, dict(os.environ), what)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'stack.json'}, which says what runs, cannot be read")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("ports", "told"),
    [
        ((99999, 2, 3), "'99999' is no port; give a whole number from 1 to 65535"),
        ((0, 2, 3), "'0' is no port"),
        ((8421, 9091, 9091), "8421 9091 9091 has one twice; each part needs its own"),
    ],
)
def test_ports_that_cannot_be_are_told(ports: tuple[int, int, int], told: str, tmp_path: Path) -> None:
    done = call(tmp_path, ports, dict(os.environ), "up")
    assert done.returncode == 2
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_down_ends_nothing_where_what_was_noted_runs_no_more(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(
        f'[{{"name": "curvewatch", "url": "http://127.0.0.1:1", "pid": {os.getpid()}, "started": 1.0}}]'
    )
    done = call(tmp_path, PORTS, dict(os.environ), "down")
    assert (done.returncode, done.stdout) == (0, "Nothing was running.\n")
    assert not (tmp_path / "stack.json").exists()
