"""A private SQLite database with a rollback journal, opened once.

Facts about SQLite behind this code:

* Closing *any* descriptor of a database drops all locks that the process has on it. A backup that copies the
  file inside the service does that. So the database is never opened to look at it, and our own processes
  exclude each other with a lock file beside it: the locks of SQLite only keep other programs out.
* A write-ahead log would not survive that: the process that closes such a database last deletes its `-wal`,
  with the commits in it, and its shared memory kills the process if the disk of a copy-on-write file system
  is full. Hence the rollback journal. Its file stays, empty, so that a commit needs no inode.
* A connection must not be used or closed in the child of a fork, so it is closed before the fork. It must not
  even be inherited: SQLite remembers in memory what it has locked, so a new connection in the child would
  take the parent's locks for its own, and hold none.
* SQLite finds the journal by the name of the database. With two names for one file, a process would not see
  the journal of another that was killed, and our lock files would be two.
* SQLite's own wait for a lock would stop the other jobs of the store, so there is none: the worker tries a
  busy job again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ...errors import ConfigurationError, StoreCorrupt, StoreUnavailable
from .files import (
    check_directory,
    check_file,
    check_writable,
    make_directory,
    map_os_errors,
    open_private,
    read_private,
    sync_directory,
)
from .lock import exclusive, shared
from .place import Note, Place
from .schema import MIGRATIONS, UNCHANGED, applied, check_tables, fetch, has_table, is_wal
from .surroundings import check_not_mounted, check_one_name, check_parent
from .worker import LONGEST_PATIENCE, Busy

__all__ = ["Database"]

_log = logging.getLogger("tokensession.stores")

_SIDE_FILES = ("-journal", "-wal", "-shm")  # SQLite's own, named after the database
_MAX_PATH = 503  # bytes; SQLite takes 511, and appends "-journal"
_HEADER = 100  # bytes
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_FILE = "Name a file in it, such as tokens.db."
_NOT_TEXT = "Could not decode to UTF-8"  # the driver's message; this error has no code


class Database:
    """The database at `path`. `migrate` creates its table `tokens`, or brings it up to date.

    `migrations` are the names of the migrations that this makes. sqlite-utils records them in a table of the
    database, by the name of their set. (Not in `user_version`: that may be another program's, whose tables
    are in the same file.) A start that finds them all needs no migration and no import.

    Mutable state: the connection, the file that it was opened on, and what was said once. It is touched only
    by jobs of the store's worker, and by the hooks of a fork, which run while no job does.
    """

    def __init__(
        self, path: Path, *, migrations: tuple[str, ...], migrate: Callable[[sqlite3.Connection], None]
    ) -> None:
        if not path.name:
            raise ConfigurationError(f"{path} is a directory, not a database file.", todo=_FILE)
        if (length := len(os.fsencode(path))) > _MAX_PATH:
            raise ConfigurationError(
                f"The path of the database has {length} bytes, and SQLite takes {_MAX_PATH}.",
                todo="Use a shorter path, for example in a directory with a shorter name.",
            )
        self.path = path
        self._migrations = set(migrations)
        self._migrate = migrate
        self._locks = path.with_name(path.name + ".locks")
        self._lock = self._locks / "database.lock"
        self._noted = self._locks / "database.inode"
        self._side_files = tuple(Path(f"{path}{suffix}") for suffix in _SIDE_FILES)
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._up_to_date = False
        self._place = Place(path)
        self._said_wal = False

    # -- what jobs do -----------------------------------------------------------------------------------

    def prepare(self) -> Path:
        """The directory of the lock files. Raises unless a write could begin now."""
        with self._errors():
            self._make_writable()
            self._check_name(self._status())
        return self._locks

    def reserve(self) -> None:
        """Raise unless a write can be committed now.

        Another program may keep the database locked, or read it for a long time. And a commit opens the
        journal, and perhaps its directory. All that must be known before a refresh token is spent.
        """
        with self._errors(), self._alone() as connection, contextlib.ExitStack() as spare:
            for path in (self._side_files[0], self.path.parent):
                spare.callback(os.close, os.open(path, os.O_RDONLY))
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """The connection, or None if there is no table. It changes nothing, if nothing is outdated."""
        with self._errors():
            with self._together():
                status = self._status()
                self._check_name(status)
                connection = self._open_as_it_is(status)
                if connection is None or self._up_to_date or not self._is_writable():
                    try:
                        yield connection
                    finally:
                        _forget_pages(connection)
                    return
                self.close()  # open, it would keep the database in WAL mode
            with self._alone(patience=LONGEST_PATIENCE) as connection:
                yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that excludes other writers from its first statement on. It is durable afterwards.

        Works although the database has got a second name since `prepare`: a commit must not be lost.
        """
        with self._errors():
            self._make_writable()
            with self._alone(patience=LONGEST_PATIENCE) as connection:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns SQLite's errors into store errors, here and nowhere else.

        After any error except `Busy` the connection is closed, and the next job opens a new one.
        """
        try:
            with map_os_errors("opened", self.path):
                yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _BUSY:
                raise Busy(self.path, progress=self._commits()) from None
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

    # -- files ------------------------------------------------------------------------------------------

    def _status(self) -> os.stat_result | None:
        """The status of the database, if there is one. Raises if it or a side file is not private to us."""
        for side in self._side_files:  # SQLite believes what it finds there
            with contextlib.suppress(FileNotFoundError):
                check_file(side, side.lstat())
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(status.st_mode):
            raise StoreUnavailable(f"{self.path} is a directory, not a database file.", todo=_FILE)
        check_file(self.path, status)
        return status

    def _noted_inode(self) -> int | None:
        """The inode of the database that was last written to, if it is known."""
        with contextlib.suppress(OSError, ValueError):
            return int(read_private(self._noted) or b"")
        return None

    def _note_inode(self, status: os.stat_result) -> None:
        if self._noted_inode() != status.st_ino:
            fd = open_private(self._noted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with open(fd, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                file.write(b"%d" % status.st_ino)

    def _check_name(self, status: os.stat_result | None) -> None:
        if status is not None:
            check_one_name(self.path, status)

    def _check_side_files(self) -> None:
        """Raise if the journal or a log is another database's. SQLite would read it all the same."""
        journal, log, _ = self._side_files
        if _has_content(journal) and self._noted_inode() not in (None, self.path.stat().st_ino):
            raise StoreUnavailable(
                f"There is a journal beside {self.path}, and it is that of an earlier database.",
                intact=UNCHANGED,
                todo=f"If you have put another database here, move {journal.name} away. If you have moved it "
                f"together with its journal, delete {self._noted}.",
            )
        if not _has_content(log):
            return
        with self.path.open("rb") as file:  # closing it drops the locks of others in this process: see above
            header = file.read(_HEADER)
        if header[18:19] == b"\1":  # a rollback journal: SQLite's "file format write version"
            raise StoreUnavailable(
                f"There is a write-ahead log beside {self.path}, and it belongs to another database.",
                intact=UNCHANGED,
                todo=f"If you have moved this database here, move {log.name} and {self.path.name}-shm away.",
            )

    def _is_open(self, status: os.stat_result) -> bool:
        return self._connection is not None and (status.st_dev, status.st_ino) == self._file

    def _is_writable(self) -> bool:
        effective = os.access in os.supports_effective_ids
        return all(
            os.access(path, os.W_OK, effective_ids=effective) for path in (self.path, self.path.parent)
        )

    def _make_writable(self) -> None:
        """Make what a write needs, and raise if it could not begin now."""
        if not self.path.parent.is_dir():
            raise StoreUnavailable(
                f"The directory {self.path.parent} of the token database does not exist.",
                todo="Create it. (In a URL, three slashes begin a relative path, sqlite:///tokens.db, "
                "and four an absolute one, sqlite:////var/lib/tokens.db.)",
            )
        status = self._status()
        if status is None:
            check_parent(self.path.parent)  # before anything is put there
        check_writable(self.path.parent)
        make_directory(self._locks)
        check_writable(self._locks)
        if status is not None and not os.access(self.path, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
        if status is None or not self._is_open(status):
            with self._alone(patience=LONGEST_PATIENCE, create=True):
                pass
        journal = self._side_files[0]
        if not journal.exists():  # another program's commit removes it
            with contextlib.suppress(FileExistsError):
                os.close(open_private(journal, os.O_RDWR | os.O_CREAT | os.O_EXCL))

    @contextlib.contextmanager
    def _alone(self, *, patience: float = 0.0, create: bool = False) -> Iterator[sqlite3.Connection]:
        """The connection, while no other process of ours uses the database.

        All migrations have been made, and the journal is a rollback journal. If another program has kept the
        database in WAL mode, the connection is closed in the end: then the next job can leave that mode.
        """
        make_directory(self._locks)
        with exclusive(self._lock, patience=patience):
            if create:
                self._create_file()
            connection = self._open_up_to_date()
            try:
                yield connection
            finally:
                if self._up_to_date:
                    _forget_pages(connection)
                else:
                    self.close()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """No process of ours writes."""
        with contextlib.ExitStack() as stack:
            if check_directory(self._locks):
                with contextlib.suppress(FileNotFoundError, PermissionError):  # then no one of ours writes
                    stack.enter_context(shared(self._lock))
            yield

    def _create_file(self) -> None:
        """Create an empty private file, because SQLite gives its side files the mode of the database.

        There are no connections to an empty file, so closing this descriptor drops no locks.
        """
        with contextlib.suppress(FileExistsError):
            os.close(open_private(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        sync_directory(self.path.parent)  # also if another process has made it, and was killed before this

    # -- the connection ---------------------------------------------------------------------------------

    def _open_as_it_is(self, status: os.stat_result | None) -> sqlite3.Connection | None:
        """The connection, or None if there is no table. `status` is the file's."""
        if status is None or not status.st_size:
            self.close()
            return None
        if self._is_open(status):
            return self._connection
        connection = self._connect()
        if connection is not None:
            self._use(connection, initialised=False)
        return connection

    def _open_up_to_date(self) -> sqlite3.Connection:
        """The connection. All migrations have been made, and the journal is a rollback journal."""
        status = self._status()
        if status is not None and self._is_open(status) and self._connection is not None and self._up_to_date:
            return self._connection
        self.close()  # a second connection would keep the database in WAL mode
        connection = self._connect(initialise=True)
        if connection is None:
            raise StoreUnavailable(f"{self.path} has no table 'tokens', although it was just created.")
        self._use(connection, initialised=True)
        return connection

    def _use(self, connection: sqlite3.Connection, *, initialised: bool) -> None:
        self.close()  # the file was removed or replaced, so a write to the old one would be lost
        status = self.path.lstat()
        self._connection, self._file = connection, (status.st_dev, status.st_ino)
        note = self._compare_place(connection)
        if note is not None and initialised:
            # It may be locked now, or read-only. Then the next process that opens it does this.
            with contextlib.suppress(sqlite3.Error):
                fetch(connection, "INSERT OR REPLACE INTO tokensession_store VALUES (1, ?, ?)", *note)
        if initialised:
            self._note_inode(status)
        current = applied(connection) == self._migrations and not is_wal(connection)
        self._up_to_date = current and (initialised or note is None)

    def _connect(self, *, initialise: bool = False) -> sqlite3.Connection | None:
        """A connection, or None if there is no table."""
        check_parent(self.path.parent)
        check_not_mounted(self.path)
        self._check_side_files()
        connection = sqlite3.connect(
            self.path.as_uri() + "?mode=rw",  # does not create the file: `_create_file` does
            uri=True,
            timeout=0.0,
            isolation_level=None,
            check_same_thread=False,
        )
        with contextlib.ExitStack() as unless_returned:
            unless_returned.callback(connection.close)
            check_tables(connection, self.path, self._migrations)
            if initialise:
                self._initialise(connection)
            if not has_table(connection, "tokens"):
                return None
            if not is_wal(connection):
                fetch(connection, "PRAGMA journal_mode = TRUNCATE")
            fetch(connection, "PRAGMA synchronous = EXTRA")
            fetch(connection, "PRAGMA secure_delete = ON")
            unless_returned.pop_all()
        return connection

    def _initialise(self, connection: sqlite3.Connection) -> None:
        if is_wal(connection):  # of an older version
            self._leave_wal(connection)
        if applied(connection) == self._migrations and has_table(connection, "tokens"):
            return
        fetch(connection, "PRAGMA secure_delete = ON")
        if applied(connection) and not has_table(connection, "tokens"):  # someone dropped it
            forget = "DELETE FROM _sqlite_migrations WHERE migration_set = ?"
            fetch(connection, forget, MIGRATIONS)
        self._migrate(connection)

    def _leave_wal(self, connection: sqlite3.Connection) -> None:
        """Convert the database. If another connection is open, go on as it is: the next job tries again."""
        with contextlib.suppress(sqlite3.OperationalError):
            fetch(connection, "PRAGMA journal_mode = TRUNCATE")
        if is_wal(connection) and not self._said_wal:
            self._said_wal = True
            _log.warning(
                "%s is still in WAL mode, because another program has it open. It works, but a program that "
                "copies it can damage it. Close the other program, and restart this one.",
                self.path,
            )

    def _compare_place(self, connection: sqlite3.Connection) -> Note | None:
        """Warn if the database is a copy. Returns what must be noted."""
        if not has_table(connection, "tokensession_store"):  # an older database, which we may only read
            return None
        rows = fetch(connection, "SELECT id, inode FROM tokensession_store")
        return self._place.compare(Note(*rows[0]) if rows else None)

    def _commits(self) -> int | None:
        """A number that changes when another connection commits, if it is known."""
        with contextlib.suppress(sqlite3.Error):
            if self._connection is not None:
                ((number,),) = fetch(self._connection, "PRAGMA data_version")
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


def _forget_pages(connection: sqlite3.Connection | None) -> None:
    """Have the next job read the file. SQLite only compares a counter, which a restored backup may share."""
    if connection is not None:
        with contextlib.suppress(sqlite3.Error):  # if it is broken, it is closed next
            fetch(connection, "PRAGMA shrink_memory")


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
