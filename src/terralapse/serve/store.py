"""The database of what a server keeps: a file of SQLite in a folder of the operator, or a PostgreSQL that
several servers share."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from terralapse.errors import MissingExtraError, SettingError

POSTGRESQL = "postgresql+psycopg"
_LOCK = 0x7E55A1A9  # of PostgreSQL, for servers that make the tables at once
_CONNECT_S = 10
_FORM = f"Give it as {POSTGRESQL}://USER:PASSWORD@HOST/NAME, or leave it out for files of SQLite."


def open_store(database: str | None, file: Path, tables: MetaData) -> Engine:
    """A database in which the tables are there, with every column that they have now.

    Args:
        database: the address of a PostgreSQL; None takes `file`.
        file: of SQLite, made where it is not there.
        tables: what is made where it is missing.

    Raises:
        SettingError: no such kind of database, or it cannot be reached or used.
        MissingExtraError: the driver is not installed.
    """
    if database is None:
        engine = create_engine(f"sqlite:///{file}")
        event.listen(engine, "connect", _careful)
        _make(engine, tables)
        return engine
    shown = check_database(database)
    engine = create_engine(
        database, pool_pre_ping=True, pool_size=8, connect_args={"connect_timeout": _CONNECT_S}
    )
    try:
        _make(engine, tables)
    except SQLAlchemyError as error:
        engine.dispose()
        reason = str(getattr(error, "orig", error)).strip().splitlines()
        raise SettingError(
            f"database {shown}",
            f"cannot be used ({reason[0] if reason else type(error).__name__})",
            "Check that it runs, that the address is right, and that its user may make tables.",
        ) from error
    return engine


def check_database(database: str) -> str:
    """The address as it may be shown, without its password.

    Raises:
        SettingError: it is no address of a PostgreSQL.
        MissingExtraError: the driver is not installed.
    """
    try:
        url = make_url(database)
    except (ArgumentError, ValueError) as error:
        raise SettingError("database", "is no address", _FORM) from error
    shown = url.render_as_string(hide_password=True)
    if url.drivername != POSTGRESQL:
        raise SettingError(f"database {shown}", f"is not of the kind {POSTGRESQL}", _FORM)
    if find_spec("psycopg") is None:
        raise MissingExtraError(
            f"database {shown}",
            "needs psycopg, which is not installed",
            "pip install 'terralapse[postgresql]'",
        )
    return shown


def _make(engine: Engine, tables: MetaData) -> None:
    """Tables that are missing, and columns that a file of an earlier version lacks."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        tables.create_all(connection)
        known = inspect(connection)
        for table in tables.sorted_tables:
            there = {column["name"] for column in known.get_columns(table.name)}
            for column in table.columns:
                if column.name not in there:
                    kind = column.type.compile(engine.dialect)
                    rest = "" if column.nullable else f" NOT NULL DEFAULT {column.server_default.arg!r}"  # type: ignore[union-attr]
                    connection.execute(
                        text(f'ALTER TABLE {table.name} ADD COLUMN "{column.name}" {kind}{rest}')
                    )


def _careful(connection: Any, _record: Any) -> None:
    """On the disk before an answer leaves; readers do not wait for writers."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
