"""The profile that a service writes at its start: no token is lost, and it leads to where the service is."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from curvewatch_service.auth import TokenStore
from curvewatch_service.code import CodeStore
from curvewatch_service.first_token import provide_token
from curvewatch_service.profile import write_profile
from curvewatch_service.services import Services
from curvewatch_service.settings import Settings
from curvewatch_service.store import Store
from curvewatch_service.testing import FakeCluster
from curvewatch_workers.contract import Profile, read_profile


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home" / "profile.json"
    monkeypatch.setenv("CURVEWATCH_PROFILE", str(path))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(f"sqlite:///{tmp_path / 'curvewatch.db'}")) as store:
        yield store


def started(store: Store, folder: Path, **chosen: object) -> Services:
    """Start a service on a store as far as its token."""
    settings = Settings.model_validate({"data_dir": folder, **chosen})
    services = Services(settings, store, CodeStore(folder / "code"), TokenStore(store), FakeCluster())
    provide_token(services)
    return services


def test_each_replaced_profile_is_kept_under_a_name_of_its_own(profile: Path, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_profile(Profile(server="http://elsewhere:1", token=f"cw_precious{number}"))
        with closing(Store(f"sqlite:///{tmp_path / f'{number}.db'}")) as store:
            assert started(store, tmp_path).tokens.owner_of(read_profile().token)
    kept = {path.name: read_profile(path).token for path in profile.parent.iterdir() if path != profile}
    assert kept == {
        "profile.json.previous": "cw_precious1",
        "profile.json.previous-2": "cw_precious2",
        "profile.json.previous-3": "cw_precious3",
    }


def test_the_profile_follows_the_service_to_another_port(profile: Path, store: Store, tmp_path: Path) -> None:
    started(store, tmp_path, port=8501)
    first = read_profile()
    assert first.server == "http://127.0.0.1:8501"
    started(store, tmp_path, port=8502)
    assert read_profile() == Profile(server="http://127.0.0.1:8502", token=first.token)
    assert stat.S_IMODE(profile.stat().st_mode) == 0o600
    assert [path.name for path in profile.parent.iterdir()] == ["profile.json"]


@pytest.mark.parametrize(
    "text", ['{"server": "http://elsewhere:1", "token": "cw_precious"}', "no profile at all"]
)
def test_what_is_no_profile_of_this_service_stays(
    profile: Path, store: Store, tmp_path: Path, text: str
) -> None:
    started(store, tmp_path)
    profile.write_text(text)
    started(store, tmp_path, port=8502)
    assert profile.read_text() == text


def test_a_profile_with_the_public_address_stays(profile: Path, store: Store, tmp_path: Path) -> None:
    started(store, tmp_path)
    chosen = write_profile(Profile(server="https://curves.example/", token=read_profile().token)).read_text()
    started(store, tmp_path, public_url="https://curves.example")
    assert profile.read_text() == chosen
