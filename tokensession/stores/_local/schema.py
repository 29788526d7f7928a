"""What is in an SQLite database: our tables, those of another program, or nothing yet."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from ...errors import StoreCorrupt, StoreUnavailable

__all__ = [
    "MIGRATIONS",
    "UNCHANGED",
    "applied",
    "check_tables",
    "database_id",
    "fetch",
    "has_table",
    "is_wal",
]

MIGRATIONS = "tokensession"
"""The name of our set of migrations."""
UNCHANGED = "The database is unchanged."

_TABLES = frozenset({"tokens", "tokensession_store", "_sqlite_migrations"})  # ours
_COLUMNS = frozenset({"key", "version", "data"})  # of the table `tokens`, from the first version on
_OWN_DATABASE = "Give the tokens a database of their own, such as tokens.db."


def fetch(connection: sqlite3.Connection, statement: str, *values: Any) -> list[Any]:
    """All rows. The statement has ended, even if it failed: one that has not keeps its lock."""
    with contextlib.closing(connection.execute(statement, values)) as rows:
        return rows.fetchall()


def check_tables(connection: sqlite3.Connection, path: Path, migrations: set[str]) -> None:
    """Raise unless this database is ours, or could be. To be called before anything is changed."""
    if applied(connection) - migrations:
        raise StoreCorrupt(
            f"{path} was written by a newer version of tokensession.",
            intact=UNCHANGED,
            todo="Use that version, or another database.",
        )
    objects = _objects(connection)
    kind = objects.get("tokens")
    if kind == "view" or (kind and not _can_hold_records(connection)):
        raise StoreUnavailable(
            f"{path} has a {kind} 'tokens' that is not one of tokensession's.",
            intact=UNCHANGED,
            todo=_OWN_DATABASE,
        )
    others = [name for name in objects if name not in _TABLES and not name.startswith("sqlite_")]
    if others and is_wal(connection):
        raise StoreUnavailable(
            f"{path} is in WAL mode, which is not safe for tokens, and not ours alone.",
            intact=UNCHANGED,
            todo=f"{_OWN_DATABASE} Or, if its program allows that, run PRAGMA journal_mode = TRUNCATE on it.",
        )


def applied(connection: sqlite3.Connection) -> set[str]:
    """The names of the migrations that this database has had."""
    if not has_table(connection, "_sqlite_migrations"):
        return set()
    made = "SELECT name FROM _sqlite_migrations WHERE migration_set = ?"
    return {name for (name,) in fetch(connection, made, MIGRATIONS)}


def database_id(connection: sqlite3.Connection) -> str:
    """The random name of the database. It is part of each record's checksum."""
    rows = fetch(connection, "SELECT id FROM tokensession_store WHERE one = 1")
    return str(rows[0][0]) if rows else ""


def is_wal(connection: sqlite3.Connection) -> bool:
    """Whether the database has a write-ahead log."""
    return fetch(connection, "PRAGMA journal_mode") == [("wal",)]


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    """Whether there is a table with this name."""
    return _objects(connection).get(name) == "table"


def _objects(connection: sqlite3.Connection) -> dict[str, str]:
    """The tables and views, with "table" or "view". Lower case, because SQLite ignores case."""
    found = fetch(connection, "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')")
    return {str(name).lower(): str(kind) for name, kind in found}


def _can_hold_records(connection: sqlite3.Connection) -> bool:
    """Whether the table `tokens` has our columns, and no others that must be given."""
    columns = fetch(connection, "PRAGMA table_info(tokens)")
    names = {name for _, name, *_ in columns}
    keys = [name for _, name, _, _, _, primary in columns if primary]
    required = {name for _, name, _, not_null, default, _ in columns if not_null and default is None}
    return keys == ["key"] and names >= _COLUMNS and required <= _COLUMNS
