"""One table in an SQLite database: `tokens(key TEXT PRIMARY KEY, version TEXT, data BLOB)`.

sqlite-utils makes the schema, and its command line is a good way to look into the file; nothing else
is done through it, and a start that finds the table never imports it. The records go through a plain
`sqlite3` connection in the store's own thread: WAL, so that nobody who reads waits; `synchronous=FULL`
(0.24 ms a write; NORMAL saves 0.23 of it and can lose a rotated refresh token with the power).

The claim is the file store's lock file, in `<path>.locks/`. The road not taken is a transaction held
while the token is refreshed: it takes 138 ms to hand over among 32 processes, and blocks every key.

Rules of SQLite that shaped it:

* What was deleted stays readable in the `-wal` until a checkpoint truncates it.
* A transaction that begins by reading cannot always go on to write: hence BEGIN IMMEDIATE.
* A statement that is not run to its end keeps its snapshot open: hence fetchall.

How the database is opened, privately and once, is `database`'s affair.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..clock import Clock, SystemClock
from ..errors import StoreCorrupt, Superseded
from ._local.claims import Claims, LocalClaim, report_lost
from ._local.database import Database
from ._local.lock import lock_name
from ._local.files import absolute, require_posix
from ._local.worker import Worker
from .protocol import ANY, AnyVersion, Record, check_key, new_version

__all__ = ["SQLiteStore"]


class SQLiteStore:
    """Keeps all records in the database at `path`, which it makes, with mode 0600.

    Its directory must be there, and writable: a WAL database cannot be read in one that is not.
    Others may have no access to the file: then nothing is read, and the error is `StoreInsecure`.
    `clock` dates claims and paces waiting. Raises `ConfigurationError` on a platform without POSIX
    file locks, or if the path can name no file.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        require_posix("SQLiteStore")
        self._database = Database(absolute("SQLiteStore", path), _make_schema)
        self._records = _Records(self._database)
        self._worker = Worker(
            "tokensession-sqlite",
            before_fork=self._database.close,
            after_fork_in_child=self._database.forget,
        )
        self._claims = Claims(self._records, self._worker, clock or SystemClock())

    async def load(self, key: str) -> Record | None:
        """The whole record, or None. Never waits for a claim."""
        check_key(key).encode()  # raises here, not in the driver, for what is no Unicode text
        return await self._worker.run(partial(self._records.read, key))

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        """A newer record than `seen`, or the only claim. See `Store.claim`. `timeout` in seconds."""
        check_key(key).encode()
        return await self._claims.claim(key, seen=seen, timeout=timeout)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, claim or no claim. See `Store.put`."""
        check_key(key).encode()
        record = Record(new_version(), bytes(data))
        del data  # a Record shows nothing of it, should this frame be reported with its locals
        return await self._worker.run(partial(self._records.put, key, record, expect), on_abandoned=report_lost)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Forget the record; whether there was one. See `Store.delete`."""
        check_key(key).encode()
        return await self._worker.run(partial(self._records.delete, key, expect), on_abandoned=report_lost)

    async def keys(self) -> list[str]:
        """Every key that has a record, sorted."""
        return await self._worker.run(self._records.keys)

    async def aclose(self) -> None:
        """Close the connection and end the worker thread, after its last job. A later call reopens."""
        await self._worker.aclose(self._database.close)

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._database.path} {'open' if self._worker.open else 'closed'}>"


class _Records:
    """What the worker thread does. A `claims.Medium`.

    `_residue`: whether the `-wal` may hold what was replaced or deleted. Only jobs touch it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wal_dirty = False

    def prepare(self, key: str) -> Path:
        return self._database.prepare() / lock_name(key, ".lock")

    def read(self, key: str) -> Record | None:
        with self._database.opened() as connection:
            return _read(connection, key) if connection else None

    def keys(self) -> list[str]:
        with self._database.opened() as connection:
            rows = connection.execute("SELECT key FROM tokens").fetchall() if connection else []
        if not all(type(key) is str for (key,) in rows):
            raise StoreCorrupt(f"A key in {self._database.path} is no text.")
        return sorted(key for (key,) in rows)

    def write(self, key: str, record: Record, expect: str | AnyVersion | None) -> Record:
        with self._writing(key) as connection:
            if expect is not ANY:
                stored = _read(connection, key)
                if stored == record:  # this very write, made before, and its answer lost
                    return record
                if (stored.version if stored else None) != expect:
                    raise Superseded("A newer record is stored.", record=stored)
            connection.execute(
                "INSERT INTO tokens (key, version, data) VALUES (?, ?, ?)"
                " ON CONFLICT (key) DO UPDATE SET version = excluded.version, data = excluded.data",
                (key, record.version, record.data),
            )
        return record

    def put(self, key: str, record: Record, expect: str | AnyVersion | None) -> Record:
        """Like `write`, and nothing is left of what it replaced: this may be a sign-out."""
        self._wal_dirty = True
        return self.write(key, record, expect)

    def delete(self, key: str, expect: str | AnyVersion) -> bool:
        self._wal_dirty = True
        with self._writing(key) as connection:
            if expect is not ANY:
                stored = _read(connection, key)
                if stored is not None and stored.version != expect:
                    raise Superseded("A newer record is stored.", record=stored)
            return connection.execute("DELETE FROM tokens WHERE key = ?", (key,)).rowcount > 0

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else can write in, from its first statement on."""
        self.prepare(key)
        with self._database.opened(create=True) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            if self._wal_dirty:
                self._truncate(connection)

    def _truncate(self, connection: sqlite3.Connection) -> None:
        # The write is stored. A reader may be in the way of this: then the next write tries again.
        with contextlib.suppress(sqlite3.Error):
            ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._wal_dirty = bool(busy)


def _read(connection: sqlite3.Connection, key: str) -> Record | None:
    rows = connection.execute("SELECT version, data FROM tokens WHERE key = ?", (key,)).fetchall()
    if not rows:
        return None
    version, data = rows[0]
    if type(version) is not str or type(data) is not bytes:
        raise StoreCorrupt("A stored record has a version or data of the wrong type.")
    return Record(version, data)


def _make_schema(connection: sqlite3.Connection) -> None:
    """Make the table. Nobody else does at this moment."""
    from sqlite_utils import Database as Schema  # 50 ms, once in the life of a database

    # It is handed our connection, because its own cannot leave the thread that made it; and plugins,
    # being anybody's code, are not handed the tokens.
    schema = Schema(connection, recursive_triggers=False, execute_plugins=False)
    schema.create_table(
        "tokens",
        {"key": str, "version": str, "data": bytes},
        pk="key",
        not_null=("version", "data"),
        if_not_exists=True,
    )
