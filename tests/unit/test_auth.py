"""Tokens and sessions: only hashes are kept, and time ends a session."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from curvewatch_service.auth import (
    SESSION_LIFETIME,
    Sessions,
    TokenStore,
    may_ingest,
    new_ingest_token,
    token_hash,
    write_ingest_token,
)
from curvewatch_service.errors import BadRequestError
from curvewatch_service.store import Store
from store_support import database_url, job


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(database_url(tmp_path))
    yield opened
    opened.close()


def test_a_token_names_its_owner_and_no_other_does(store: Store) -> None:
    tokens = TokenStore(store)
    assert tokens.empty
    first, second = tokens.issue("ada"), tokens.issue("grace")
    assert not tokens.empty
    assert (tokens.owner_of(first), tokens.owner_of(second)) == ("ada", "grace")
    assert first.startswith("cw_")
    assert len(first) >= len("cw_") + 43
    for wrong in ("", "cw_", first[:-1], first + "x", first.upper(), token_hash(first), "\udcff"):
        assert tokens.owner_of(wrong) is None


def test_no_secret_is_in_the_database_files(store: Store, tmp_path: Path) -> None:
    token = TokenStore(store).issue("ada")
    cookie = Sessions(store).begin(token)
    assert cookie is not None
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ada" in kept
    assert token.encode() not in kept
    assert cookie.encode() not in kept


@pytest.mark.parametrize("owner", ["", "  ", "ada\n", "a\x1b[31m"])
def test_a_name_without_printable_characters_gets_no_token(store: Store, owner: str) -> None:
    with pytest.raises(BadRequestError, match="printable"):
        TokenStore(store).issue(owner)


def test_a_session_lasts_its_time_and_no_longer(store: Store) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    sessions = Sessions(store, clock=lambda: now)
    cookie = sessions.begin(TokenStore(store).issue("ada"))
    assert cookie is not None
    now += SESSION_LIFETIME - timedelta(seconds=1)
    found = sessions.find(cookie)
    assert found is not None
    assert found.owner == "ada"
    now += timedelta(seconds=1)
    assert sessions.find(cookie) is None


def test_a_session_outlives_the_service_and_has_its_own_word(store: Store, tmp_path: Path) -> None:
    token = TokenStore(store).issue("ada")
    first, second = Sessions(store).begin(token), Sessions(store).begin(token)
    assert first is not None
    assert second is not None
    before = [Sessions(store).find(cookie) for cookie in (first, second)]
    store.close()
    again = Store(database_url(tmp_path))
    assert [Sessions(again).find(cookie) for cookie in (first, second)] == before
    assert before[0] is not None
    assert before[1] is not None
    assert before[0].csrf != before[1].csrf
    assert first not in before[0].csrf
    again.close()


def test_a_wrong_token_begins_no_session(store: Store) -> None:
    assert Sessions(store).begin("cw_wrong") is None
    assert Sessions(store).find("nothing") is None


def test_a_runs_token_is_written_for_the_service_only_and_never_over_another(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "digits-1" / "ingest-token"
    write_ingest_token(path, "cwi_x")
    assert path.read_text() == "cwi_x"
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    with pytest.raises(FileExistsError):
        write_ingest_token(path, "cwi_y")


def test_an_ingest_token_is_good_for_its_own_run_only(store: Store) -> None:
    tokens = {run_id: new_ingest_token() for run_id in ("a", "b")}
    for run_id, token in tokens.items():
        store.create_run(
            run_id=run_id, spec=job(), owner="ada", code_hash="c", ingest_token_hash=token_hash(token)
        )
    allowed = {(run_id, whose): may_ingest(store, run_id, tokens[whose]) for run_id in "ab" for whose in "ab"}
    assert allowed == {("a", "a"): True, ("a", "b"): False, ("b", "a"): False, ("b", "b"): True}
    assert not may_ingest(store, "nobody", tokens["a"])
