"""The connection to the database: how transactions begin, and the migration to the newest schema."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import alembic.util
from sqlalchemy import Connection, Engine, create_engine, event, make_url

from curvewatch_service.errors import DatabaseVersionError

BUSY_TIMEOUT_MILLISECONDS = 30_000
_MIGRATIONS = Path(__file__).with_name("migrations")


def open_database(url: str) -> Engine:
    """Open a database and bring it to the newest schema.

    Raises:
        DatabaseVersionError: It was written by a newer Curvewatch.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(parsed)
    else:
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _create_private(parsed.database)
        # As many connections as there can be threads of the service: one waits for a lock, never for a place.
        engine = create_engine(parsed, pool_size=10, max_overflow=90)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    migrate(engine)
    # What was opened for the migration does not check references; see `_check_references`.
    engine.dispose()
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _check_references)
    return engine


def _create_private(name: str) -> None:
    """Create the file of a database for its owner only; the log beside it gets the mode of the file."""
    if name == ":memory:" or name.startswith("file:"):
        return
    with contextlib.suppress(FileExistsError):
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def for_writing(engine: Engine) -> Engine:
    """Return the same database for transactions that write."""
    return engine.execution_options(writes=True)


def for_one_moment(engine: Engine) -> Engine:
    """Return the same database for transactions that see one moment of it, however long they read."""
    # SQLite's transactions do so in any case.
    return (
        engine
        if engine.dialect.name == "sqlite"
        else engine.execution_options(isolation_level="REPEATABLE READ")
    )


def migrate(engine: Engine) -> None:
    """Bring the database to the newest schema.

    Raises:
        DatabaseVersionError: It was written by a newer Curvewatch.
    """
    config = migration_config()
    with for_writing(engine).begin() as connection:
        config.attributes["connection"] = connection
        try:
            alembic.command.upgrade(config, "head")
        except alembic.util.CommandError as error:
            raise DatabaseVersionError(
                f"the database {engine.url.render_as_string()} has a schema that this Curvewatch does not "
                f"know ({error}); install the newer Curvewatch that wrote it, or choose another "
                "CURVEWATCH_DATABASE_URL"
            ) from error


def migration_config() -> alembic.config.Config:
    """Return the configuration of the migrations that this package brings along."""
    config = alembic.config.Config()
    # The configuration reads `%` as the start of a reference.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver would begin transactions late, at the first write; `_begin_sqlite` does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {BUSY_TIMEOUT_MILLISECONDS}",
        "journal_mode = WAL",
        "synchronous = FULL",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _check_references(connection: Any, _record: Any) -> None:
    # Never while migrating: SQLite alters a table by making it anew and dropping the old one, and to drop
    # a table deletes what refers to it.
    connection.execute("PRAGMA foreign_keys = ON").close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then writes cannot wait for another writer: SQLite fails it at once.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
