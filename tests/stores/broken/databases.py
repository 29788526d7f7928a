"""Broken stores that need an SQLite database: see `broken`. Each is an `SQLiteStore` with one mistake."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import _backends

from broken import breaks, opened_by_peers
from tokensession.stores import SQLiteStore
from tokensession.stores._local.database import Database
from tokensession.stores._local.files import check_file
from tokensession.stores._local.schema import fetch
from tokensession.testing.conformance.backend import Backend


class BrokenSQLiteStore(SQLiteStore):
    """An `SQLiteStore` that can have another class for its database."""

    database: type[Database] = Database

    @classmethod
    def make_backend(cls, directory: Path) -> Backend:
        path = directory / "database" / "tokens.db"
        return opened_by_peers(_backends.sqlite(directory, cls), cls, path)

    def __init__(self, path: Path, *, clock: Any = None) -> None:
        super().__init__(path, clock=clock)
        self._database.__class__ = self.database


@breaks("test_a_backup_by_the_process_itself_breaks_nothing")
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


@breaks(
    "test_a_file_that_others_may_open_is_not_used",
    "test_a_file_of_another_user_is_not_used",
    "test_a_second_name_leads_to_no_second_claim",
)
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
