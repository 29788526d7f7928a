"""A private SQLite database in WAL mode, opened once.

Facts about SQLite behind this code:

* Closing *any* descriptor of a database drops all locks that the process has on it. So its owner and mode
  are checked by name, without opening it.
* A connection must not be used or closed in the child of a fork, so it is closed before the fork. It must not
  even be inherited: SQLite remembers in memory what it has locked, so a new connection in the child would
  take the parent's locks for its own, and hold none.
* `-wal` and `-shm` get the mode of the database, so the database must have the right mode first.
* Two processes that turn WAL on or create a table at the same time find the database locked. So that happens
  under a lock file.
* SQLite's own wait for a lock would stop the other jobs of the store, so there is none once the database is
  open: the worker tries a busy job again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, overload

from ...errors import ConfigurationError, StoreCorrupt, StoreUnavailable
from .files import check_file, check_writable, make_directory, map_os_errors, open_private, sync_directory
from .lock import exclusive
from .place import Note, Place
from .worker import LONGEST_PATIENCE, Busy

__all__ = ["MIGRATIONS", "Database"]

MIGRATIONS = "tokensession"
"""The name of our set of migrations."""

_INITIALISING_TIMEOUT = 0.5  # seconds; without a wait, others that look whether it is ready would prevent it
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FILE = "Name a file in it, such as tokens.db."
_NOT_TEXT = "Could not decode to UTF-8"  # the driver's message; this error has no code


class Database:
    """The database at `path`. `migrate` creates its table `tokens`, or brings it up to date.

    `migrations` are the names of the migrations that this makes. sqlite-utils records them in a table of the
    database, by the name of their set. (Not in `user_version`: that may be another program's, whose tables
    are in the same file.) A start that finds them all needs no migration and no import.

    Mutable state: the connection, and the file that it was opened on. It is touched only by jobs of the
    store's worker, and by the hooks of a fork, which run while no job does.
    """

    def __init__(
        self, path: Path, *, migrations: tuple[str, ...], migrate: Callable[[sqlite3.Connection], None]
    ) -> None:
        if not path.name:
            raise ConfigurationError(f"{path} is a directory, not a database file.", todo=_FILE)
        self.path = path
        self._migrations = set(migrations)
        self._migrate = migrate
        self._locks = path.with_name(path.name + ".locks")
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._place = Place(path)

    def prepare(self) -> Path:
        """The directory of the lock files. Raises unless a write could begin now."""
        if not self.path.parent.is_dir():
            raise StoreUnavailable(
                f"The directory {self.path.parent} of the token database does not exist.",
                todo="Create it. (In a URL, three slashes begin a relative path, sqlite:///tokens.db, "
                "and four an absolute one, sqlite:////var/lib/tokens.db.)",
            )
        with map_os_errors("prepared", self.path):
            self._status()
            check_writable(self.path.parent)
            make_directory(self._locks)
            if self.path.exists() and not os.access(self.path, os.W_OK):
                raise PermissionError(errno.EACCES, "it is read-only")
        with self.opened(create=True):
            return self._locks

    @overload
    def opened(self) -> contextlib.AbstractContextManager[sqlite3.Connection | None]: ...
    @overload
    def opened(self, *, create: Literal[True]) -> contextlib.AbstractContextManager[sqlite3.Connection]: ...
    @contextlib.contextmanager
    def opened(self, *, create: bool = False) -> Iterator[Any]:
        """The connection, or None if there is no table and `create` is false.

        The one place that turns SQLite's errors into store errors. After any error except `Busy` the
        connection is closed, and the next job opens a new one.
        """
        patience = LONGEST_PATIENCE  # on a busy machine, the first start of many processes takes seconds
        try:
            with map_os_errors("opened", self.path):
                connection = self._connect(create=create)
            patience = 0.0
            yield connection
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _BUSY:
                raise Busy(self.path, patience=patience, progress=self._commits()) from None
            self.close()
            if str(error).startswith(_NOT_TEXT):
                error.args = (_NOT_TEXT,)  # the rest of the message is the text itself, perhaps a token
            if code in _CORRUPT or str(error).startswith(_NOT_TEXT):
                raise StoreCorrupt(
                    f"{self.path} is damaged, or is not an SQLite database: {error}.",
                    todo="Restore it from the newest backup, or move it away and sign in again.",
                ) from error
            raise StoreUnavailable(
                f"{self.path} could not be used: {error}.",
                todo="Check that it and its directory are writable, and that there is disk space left.",
            ) from error

    def _connect(self, *, create: bool) -> sqlite3.Connection | None:
        status = self._status()
        if self._connection is not None:
            if status is not None and (status.st_dev, status.st_ino) == self._file:
                return self._connection
            self.close()  # the file was removed or replaced, so a write to the old one would be lost
        connection = self._open() if status is not None and status.st_size else None
        # A read does without the migrations if it may not write: then it leaves the database as it is.
        if connection is not None and self._is_outdated(connection) and (create or self._is_writable()):
            connection.close()
            connection, create = None, True
        if connection is None and create:
            make_directory(self._locks)
            with exclusive(self._locks / "schema.lock", patience=LONGEST_PATIENCE):
                self._create_file()
                connection = self._open(initialise=True)
            if connection is None:
                raise StoreUnavailable(f"{self.path} is on a file system that does not support WAL.")
        if connection is not None:
            status = self.path.lstat()
            self._connection, self._file = connection, (status.st_dev, status.st_ino)
            self._compare_place(connection)
        return connection

    def _compare_place(self, connection: sqlite3.Connection) -> None:
        """Warn if the database is a copy."""
        if not _has(connection, "tokensession_store"):  # an older database, which we may only read
            return
        rows = connection.execute("SELECT id, inode FROM tokensession_store").fetchall()
        note = self._place.compare(Note(*rows[0]) if rows else None)
        if note is not None:
            # It may be locked now, or read-only. Then the next process that opens it does this.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("INSERT OR REPLACE INTO tokensession_store VALUES (1, ?, ?)", note)

    def _status(self) -> os.stat_result | None:
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(status.st_mode):
            raise StoreUnavailable(f"{self.path} is a directory, not a database file.", todo=_FILE)
        check_file(self.path, status)
        return status

    def _create_file(self) -> None:
        """Create an empty private file, because SQLite gives `-wal` and `-shm` the mode of the database.

        There are no connections to an empty file, so closing this descriptor drops no locks.
        """
        with contextlib.suppress(FileExistsError):
            os.close(open_private(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        sync_directory(self.path.parent)  # also if another process has made it, and was killed before this

    def _open(self, *, initialise: bool = False) -> sqlite3.Connection | None:
        """A connection, or None if the database is not ready for one."""
        connection = sqlite3.connect(
            self.path.as_uri() + "?mode=rw",  # does not create the file: `_create_file` does
            uri=True,
            timeout=_INITIALISING_TIMEOUT if initialise else 0.0,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if initialise:
                self._initialise(connection)
            if _is_ready(connection):
                connection.execute("PRAGMA synchronous = FULL").fetchall()
                connection.execute("PRAGMA secure_delete = ON").fetchall()
                connection.execute("PRAGMA busy_timeout = 0").fetchall()
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def _initialise(self, connection: sqlite3.Connection) -> None:
        if self._is_outdated(connection) or not _is_ready(connection):  # else another process was faster
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            if _applied(connection) and not _has(connection, "tokens"):  # someone dropped it
                forget = "DELETE FROM _sqlite_migrations WHERE migration_set = ?"
                connection.execute(forget, (MIGRATIONS,)).fetchall()
            self._migrate(connection)

    def _is_outdated(self, connection: sqlite3.Connection) -> bool:
        """Whether a migration is missing. Raises `StoreCorrupt` if there is one that we do not know."""
        try:
            applied = _applied(connection)
            if applied - self._migrations:
                raise StoreCorrupt(
                    f"{self.path} was written by a newer version of tokensession.",
                    intact="The database is unchanged.",
                    todo="Use that version, or another database.",
                )
        except BaseException:
            connection.close()
            raise
        return applied != self._migrations

    def _is_writable(self) -> bool:
        effective = os.access in os.supports_effective_ids
        return all(
            os.access(path, os.W_OK, effective_ids=effective) for path in (self.path, self.path.parent)
        )

    def _commits(self) -> int | None:
        """A number that changes when another connection commits, if it is known."""
        with contextlib.suppress(sqlite3.Error):
            if self._connection is not None:
                ((number,),) = self._connection.execute("PRAGMA data_version").fetchall()
                return int(number)
        return None

    def close(self) -> None:
        """Close the connection; the next job opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # every write was durable when it returned
                connection.close()

    def __del__(self) -> None:
        # The store was collected without being closed. SQLite would close by itself, but Python 3.13 warns
        # about it. Nothing is lost: every write was durable when it returned.
        with contextlib.suppress(AttributeError):  # `__init__` raised before there was a connection
            self.close()

    def forget(self) -> None:
        """In the child of a fork that could not wait: neither use nor close the parent's connection."""
        if self._connection is not None:
            _abandoned.append(self._connection)
            self._connection = None

    def __repr__(self) -> str:
        return f"<Database {self.path} {'open' if self._connection else 'closed'}>"


_abandoned: list[sqlite3.Connection] = []  # referenced, because collecting a connection closes it


def _is_ready(connection: sqlite3.Connection) -> bool:
    mode = connection.execute("PRAGMA journal_mode").fetchall()
    return _has(connection, "tokens") and mode == [("wal",)]


def _applied(connection: sqlite3.Connection) -> set[str]:
    """The names of the migrations that this database has had."""
    if not _has(connection, "_sqlite_migrations"):
        return set()
    names = connection.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = ?", (MIGRATIONS,))
    return {name for (name,) in names.fetchall()}


def _has(connection: sqlite3.Connection, table: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,))
    return bool(found.fetchall())
