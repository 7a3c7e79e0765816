from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from curvewatch_service.profile import write_profile
from curvewatch_workers.contract import Profile, ProfileError, profile_of, profile_path, read_profile

PROFILE = Profile(server="http://127.0.0.1:8420", token="cw_secret")


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "deep" / "profile.json"
    monkeypatch.setenv("CURVEWATCH_PROFILE", str(path))
    return path


def test_what_is_written_is_read(path: Path) -> None:
    assert write_profile(PROFILE) == path
    assert read_profile() == PROFILE
    assert json.loads(path.read_text()) == {"server": "http://127.0.0.1:8420", "token": "cw_secret"}


def test_only_the_owner_can_read_it_even_where_others_could_before(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("{}")
    path.chmod(0o644)
    write_profile(PROFILE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["profile.json"]


def test_the_token_is_not_in_what_a_log_would_show() -> None:
    assert "cw_secret" not in repr(PROFILE)


def test_without_the_variable_it_is_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CURVEWATCH_PROFILE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profile_path() == tmp_path / ".config" / "curvewatch" / "profile.json"


def test_none_is_told_with_its_place_and_the_remedies(path: Path) -> None:
    with pytest.raises(
        ProfileError, match=r"no profile at .*curvewatch serve.*--server and --token"
    ) as caught:
        read_profile()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("not json", "file: Invalid JSON"),
        ("{}", "server: Field required; token: Field required"),
        ('{"server": "ftp://x", "token": "t"}', "server: String should match"),
        ('{"server": "http://x", "token": "hush hush"}', "token: String should match"),
    ],
)
def test_what_is_no_profile_is_told_without_the_token(path: Path, text: str, wrong: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        read_profile()
    assert wrong in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CURVEWATCH_PROFILE", str(tmp_path / "file" / "profile.json"))
    with pytest.raises(ProfileError, match="cannot be written"):
        write_profile(PROFILE)


def test_what_a_user_typed_is_told_without_the_token() -> None:
    assert profile_of("http://127.0.0.1:8420", "cw_secret") == PROFILE
    with pytest.raises(
        ProfileError, match=r"service 'localhost:8420' .* server: .* http://127\.0\.0\.1:8420"
    ):
        profile_of("localhost:8420", "cw_secret")
    with pytest.raises(ProfileError) as caught:
        profile_of("http://x", "hush hush")
    assert "hush" not in str(caught.value)
