"""Broken stores that need an SQLite database: see `broken`. Each is an `SQLiteStore` with one mistake."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _backends

from broken import Broken
from tokensession.stores import SQLiteStore
from tokensession.stores._local.database import Database
from tokensession.stores._local.files import check_file
from tokensession.stores._local.schema import fetch
from tokensession.testing.conformance.backend import Backend

__all__ = ["BROKEN_DATABASES"]


class BrokenSQLiteStore(SQLiteStore):
    """An `SQLiteStore` that can have another class for its database."""

    database: type[Database] = Database

    def __init__(self, path: Path, *, clock: Any = None) -> None:
        super().__init__(path, clock=clock)
        self._database.__class__ = self.database


class WriteAheadLog(BrokenSQLiteStore):
    """A backup drops its locks, and the next process that closes the database deletes the log in use."""

    class database(Database):  # noqa: N801 - it replaces a class attribute
        def _initialise(self, connection: sqlite3.Connection) -> None:
            super()._initialise(connection)
            fetch(connection, "PRAGMA journal_mode = WAL")

        def _leave_wal(self, connection: sqlite3.Connection) -> None:
            pass

        def _check_side_files(self) -> None:
            pass  # it would drop the locks already, by reading the file

        def _use(self, connection: sqlite3.Connection, *, initialised: bool) -> None:
            super()._use(connection, initialised=initialised)
            self._up_to_date = True


class OnlyTheDatabaseIsChecked(BrokenSQLiteStore):
    """SQLite believes whatever is in the journal beside it, and a second name has locks of its own."""

    class database(Database):  # noqa: N801
        def _status(self) -> os.stat_result | None:
            try:
                status = self.path.lstat()
            except FileNotFoundError:
                return None
            check_file(self.path, status)
            return status

        def _check_name(self, status: os.stat_result | None) -> None:
            pass


def backend_of(kind: type[BrokenSQLiteStore]) -> Callable[[Path], Backend]:
    """A function that makes the backend of such a store."""

    def make(directory: Path) -> Backend:
        backend = _backends.sqlite(directory, kind)
        return dataclasses.replace(
            backend,
            url=f"{kind.__module__}:{kind.__name__}:{directory / 'database' / 'tokens.db'}",
            opener="broken.files:open_broken",
        )

    return make


_TABLE: list[tuple[type[BrokenSQLiteStore], tuple[str, ...]]] = [
    (WriteAheadLog, ("test_a_backup_by_the_process_itself_breaks_nothing",)),
    (
        OnlyTheDatabaseIsChecked,
        (
            "test_a_file_that_others_may_open_is_not_used",
            "test_a_file_of_another_user_is_not_used",
            "test_a_second_name_leads_to_no_second_claim",
        ),
    ),
]

BROKEN_DATABASES = [Broken(kind.__name__, backend_of(kind), promises) for kind, promises in _TABLE]
