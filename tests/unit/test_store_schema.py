"""The database: migrations and tables agree, and a newer database is refused."""

from __future__ import annotations

import os
import stat
from contextlib import closing
from pathlib import Path

import alembic.command
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from curvewatch_service.database import for_writing, migration_config, open_database
from curvewatch_service.errors import DatabaseVersionError
from curvewatch_service.store import Store
from curvewatch_service.tables import Base


def _url(folder: Path) -> str:
    return f"sqlite:///{folder / 'deep' / 'curvewatch.db'}"


def test_migrations_make_exactly_the_tables_of_the_models(tmp_path: Path) -> None:
    engine = open_database(_url(tmp_path))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={"compare_type": True, "compare_server_default": True, "target_metadata": Base.metadata},
        )
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_migrations_lead_back_to_an_empty_database(tmp_path: Path) -> None:
    engine = open_database(_url(tmp_path))
    config = migration_config()
    with for_writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "base")
    with engine.connect() as connection:
        tables = connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'")).all()
    engine.dispose()
    assert {name for name in tables if not name.startswith("sqlite_")} == {"alembic_version"}


def test_sqlite_writes_ahead_waits_for_locks_and_keeps_references(tmp_path: Path) -> None:
    engine = open_database(_url(tmp_path))
    with engine.connect() as connection:
        values = [
            connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "busy_timeout", "foreign_keys")
        ]
    engine.dispose()
    assert values == ["wal", 30_000, 1]


def test_migrations_run_without_references_so_that_a_table_made_anew_costs_no_other_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def look(config: Config, _target: str) -> None:
        seen.append(config.attributes["connection"].scalar(text("PRAGMA foreign_keys")))

    monkeypatch.setattr(alembic.command, "upgrade", look)
    open_database(_url(tmp_path)).dispose()
    assert seen == [0]


def test_a_database_of_a_newer_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    engine = open_database(_url(tmp_path))
    with for_writing(engine).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(DatabaseVersionError, match=r"9999.*install the newer Curvewatch"):
        open_database(_url(tmp_path))


def test_a_database_is_made_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with closing(Store(f"sqlite:///{tmp_path / 'data' / 'curvewatch.db'}")) as store:
            store.count()
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}
    assert "curvewatch.db-wal" in modes
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
