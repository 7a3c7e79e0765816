"""Settings: defaults that follow from each other, and errors that name the variable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from curvewatch_service.errors import SettingsError
from curvewatch_service.settings import Settings, load_settings

WILDCARD = "0.0.0.0"  # noqa: S104 - nothing is bound here


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(f"CURVEWATCH_{field.upper()}", raising=False)


def test_everything_lies_below_the_data_folder_by_default(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/curvewatch.db"
    assert settings.storage_path == tmp_path / "runs"
    assert settings.public_url == "http://127.0.0.1:8420"
    assert (settings.embedded, settings.cluster_name, settings.worker_python) == (
        True,
        "embedded",
        sys.executable,
    )


def test_variables_are_read_and_a_chosen_value_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CURVEWATCH_PORT", "9000")
    monkeypatch.setenv("CURVEWATCH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CURVEWATCH_RAY_ADDRESS", "http://head:8265/")
    settings = load_settings()
    assert (settings.public_url, settings.ray_address) == ("http://127.0.0.1:9000", "http://head:8265")
    assert (settings.embedded, settings.cluster_name) == (False, "ray")
    assert load_settings(port=9001).public_url == "http://127.0.0.1:9001"


def test_paths_are_absolute_whatever_the_folder_is_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings(data_dir="data").data_dir == tmp_path / "data"
    assert load_settings(data_dir="~/data").data_dir == tmp_path / "data"


@pytest.mark.parametrize(
    ("host", "url"),
    [("::1", "http://[::1]:8420"), (WILDCARD, "http://127.0.0.1:8420"), ("::", "http://127.0.0.1:8420")],
)
def test_the_workers_get_an_address_that_can_be_reached(host: str, url: str) -> None:
    assert load_settings(host=host).public_url == url


def test_a_wildcard_is_this_hosts_name_for_workers_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "curves")
    assert load_settings(host=WILDCARD, ray_address="http://head:8265").public_url == "http://curves:8420"


def test_every_wrong_value_is_told_at_once_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVEWATCH_PORT", "http")
    monkeypatch.setenv("CURVEWATCH_LINGER_SECONDS", "-1")
    with pytest.raises(SettingsError) as raised:
        load_settings(ray_address="head:8265")
    told = str(raised.value)
    assert "CURVEWATCH_PORT: " in told
    assert "CURVEWATCH_LINGER_SECONDS: " in told
    assert "ray_address: must start with http:// or https://, got 'head:8265'" in told


def test_settings_do_not_change() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_a_wrong_value_is_told_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURVEWATCH_PORT", "abc")

    with pytest.raises(SettingsError) as raised:
        load_settings()

    assert str(raised.value).startswith("CURVEWATCH_PORT: ")
    assert "default factory" not in str(raised.value)
