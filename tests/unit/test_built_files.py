"""What is generated is up to date: rules, dashboards, configurations, and their copies."""

from __future__ import annotations

from pathlib import Path

import pytest

from curvewatch_dashboards import build
from curvewatch_dashboards.knobs import Knobs

ROOT = Path(__file__).parents[2]


def test_the_committed_files_are_up_to_date() -> None:
    assert build.differences(build.outputs(Knobs()), ROOT) == ""


def test_a_file_that_is_out_of_date_is_shown_as_a_diff(tmp_path: Path) -> None:
    files = build.outputs(Knobs())
    build.write(files, tmp_path)
    assert build.differences(files, tmp_path) == ""
    path = tmp_path / "dashboards/curvewatch_dashboards/built/rules.yaml"
    path.write_text(path.read_text().replace("for: 15s", "for: 1h", 1))
    diff = build.differences(files, tmp_path)
    assert "-    for: 1h" in diff
    assert "+    for: 15s" in diff


def test_the_command_fails_and_changes_nothing_when_a_file_is_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    assert build.main(["--check"]) == 2
    assert "is no source tree of Curvewatch" in capsys.readouterr().err
    (tmp_path / "pyproject.toml").touch()
    assert build.main(["--check"]) == 1
    assert "run `make build`" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0
