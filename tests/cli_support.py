"""The command line as a person calls it, in this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from curvewatch_service.cli import main


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str


class Shell:
    """Runs commands as a person does, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str | Path) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["curvewatch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        captured = self._capsys.readouterr()
        code = ending.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)
