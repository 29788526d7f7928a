"""An SQLite database that is nobody else's business: opened privately, in WAL mode, and once.

Rules of SQLite that shaped this:

* Closing *any* descriptor of a database drops all the process's locks on it. So its owner and mode
  are looked at by name, and never by opening it.
* A connection must not be carried over a fork, nor closed in the child: it is closed before the fork.
* `-wal` and `-shm` are made with the mode of the database: it must have the right one first.
* Two processes that turn WAL on or make a table at once find the database locked: a lock file comes
  first, and the schema is made under it.
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
from .lock import exclusive
from .files import check_file, check_writable, make_directory, open_private, sync_directory, map_os_errors
from .worker import Busy

__all__ = ["Database"]

_BUSY_TIMEOUT = 0.02  # seconds; a busy job is put back behind the others, and tried again
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FILE = "Name a file in it, such as tokens.db."
_NO_TEXT = "Could not decode to UTF-8"  # the driver's words; it gives this error no code


class Database:
    """The database at `path`, whose table `tokens` is made by `make_schema` if there is none.

    Mutable state: the connection, and the file that it was opened on. Only jobs of the store's worker
    touch it, and the hooks of a fork, which run while no job does.
    """

    def __init__(self, path: Path, make_schema: Callable[[sqlite3.Connection], None]) -> None:
        if not path.name:
            raise ConfigurationError(f"{path} is a directory, not a database file.", todo=_FILE)
        self.path = path
        self._make_schema = make_schema
        self._locks = path.with_name(path.name + ".locks")
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def prepare(self) -> Path:
        """The directory of the lock files. Raises unless a write could begin now."""
        if not self.path.parent.is_dir():
            raise StoreUnavailable(
                f"The directory {self.path.parent} of the token database does not exist.",
                todo="Create it. (In a URL, three slashes begin a relative path, sqlite:///tokens.db, "
                "and four an absolute one, sqlite:////var/lib/tokens.db.)",
            )
        with map_os_errors("made ready", self.path):
            self._status()
            check_writable(self.path.parent)
            make_directory(self._locks)
            check_writable(self._locks)
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
        """The connection, or None if there is no table and none is to be made.

        The one seam at which SQLite's errors get their names. After any of them the connection is
        closed: the next job starts afresh.
        """
        try:
            with map_os_errors("opened", self.path):
                connection = self._connect(create=create)
            yield connection
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _BUSY:
                raise Busy(f"Another process is writing to {self.path}.") from None
            self.close()
            if str(error).startswith(_NO_TEXT):
                error.args = (_NO_TEXT,)  # it went on with the text itself, which may be a token
            if code in _CORRUPT or str(error).startswith(_NO_TEXT):
                raise StoreCorrupt(f"{self.path} is damaged, or no SQLite database: {error}.") from error
            raise StoreUnavailable(
                f"{self.path} could not be used: {error}.",
                todo="Check that it and its directory are writable, and that there is space left.",
            ) from error

    def _connect(self, *, create: bool) -> sqlite3.Connection | None:
        status = self._status()
        if self._connection is not None:
            if status is not None and (status.st_dev, status.st_ino) == self._file:
                return self._connection
            self.close()  # the file was removed or replaced: what we would write would be lost
        connection = self._open() if status is not None and status.st_size else None
        if connection is None and create:
            make_directory(self._locks)
            with exclusive(self._locks / "schema.lock"):
                self._create_file()
                connection = self._open(initialise=True)
            if connection is None:
                raise StoreUnavailable(f"{self.path} is on a file system that cannot do WAL.")
        if connection is not None:
            status = self.path.lstat()
            self._connection, self._file = connection, (status.st_dev, status.st_ino)
        return connection

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
        """Make an empty file, since SQLite gives `-wal` and `-shm` the mode of the database.

        Nobody has a connection to an empty file, so closing this descriptor drops no locks.
        """
        with contextlib.suppress(FileExistsError):
            os.close(open_private(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
            sync_directory(self.path.parent)

    def _open(self, *, initialise: bool = False) -> sqlite3.Connection | None:
        """A connection, or None if the database is not ready for one."""
        connection = sqlite3.connect(
            self.path.as_uri() + "?mode=rw",  # never make the file: that is for `_create_file`
            uri=True,
            timeout=_BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            if initialise:
                self._initialise(connection)
            if _is_ready(connection):
                connection.execute("PRAGMA synchronous = FULL").fetchall()
                connection.execute("PRAGMA secure_delete = ON").fetchall()
                return connection
        except BaseException:
            connection.close()
            raise
        connection.close()
        return None

    def _initialise(self, connection: sqlite3.Connection) -> None:
        if not _is_ready(connection):  # else another process was faster
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            self._make_schema(connection)

    def close(self) -> None:
        """Close the connection; the next job opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # every write was durable when it returned
                connection.close()

    def __del__(self) -> None:
        # A store that was handed to a session and forgotten. SQLite would close by itself; Python 3.13
        # warns of it, and nothing is lost by it: every write was durable when it returned.
        with contextlib.suppress(AttributeError):  # it was refused before it had a connection to close
            self.close()

    def forget(self) -> None:
        """In the child of a fork that could not wait: neither use nor close the parent's connection."""
        if self._connection is not None:
            _abandoned.append(self._connection)
            self._connection = None

    def __repr__(self) -> str:
        return f"<Database {self.path} {'open' if self._connection else 'closed'}>"


_abandoned: list[sqlite3.Connection] = []  # kept, because to collect a connection is to close it


def _is_ready(connection: sqlite3.Connection) -> bool:
    tables = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'tokens'")
    return bool(tables.fetchall()) and connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
