"""One table in an SQLite database: `tokens(key, version, data, written_wall, written_boot, checksum)`.

`key` is the primary key. `written_wall` and `written_boot` say when the record was written, by two clocks:
see `_local/moment.py`. `checksum` binds the other columns to each other. A second table has one row about the
database itself: see `_local/place.py`. Its random name is part of the checksum: if SQLite rolls the journal
of one database back into another, no record of the one is taken for a record of the other.

sqlite-utils' migrations create the schema, and bring an older one up to date. A start that finds
nothing to do never imports it. (Its command line is a good way to look into the file.) Records go through a
plain `sqlite3` connection in the store's own thread, with a rollback journal: `_local/database.py` opens it
and says why. `journal_mode=TRUNCATE`, so that a commit needs no inode, and `synchronous=EXTRA`, so that it is
durable.

The claim is the file store's lock file, in `<path>.locks/`. We do not hold a transaction during a refresh:
that takes 138 ms to hand over among 32 processes, and blocks every key.

Facts about SQLite behind this code:

* A transaction that begins by reading cannot always go on to write: hence BEGIN IMMEDIATE.
* A statement that is not run to its end keeps its lock, even if it has failed: hence `fetch`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

from anyio import CancelScope

from ..clock import Clock, SystemClock
from ..errors import StoreCorrupt, StoreUnavailable, Superseded
from ._closing import ClosesAtExit
from ._local.checksum import checksum
from ._local.claims import Claims, LocalClaim, log_failed_write
from ._local.database import Database
from ._local.files import absolute, require_posix
from ._local.lock import lock_name
from ._local.moment import Moment
from ._local.schema import MIGRATIONS, database_id, fetch
from ._local.worker import Worker
from ._pickling import as_configuration
from .protocol import ANY, AnyVersion, Record, check_key, new_version

__all__ = ["SQLiteStore"]

_MIGRATIONS = ("m001_tokens", "m002_written", "m003_checksum")  # the functions in `_migrate`, in order


class SQLiteStore(ClosesAtExit):
    """Keeps all records in the SQLite database at `path`.

    The store creates the database with mode 0600. Its directory must exist. If other users have access to
    the file, or may create files beside it, nothing is read and you get `StoreInsecure`. `clock` dates
    records and claims, and times waiting. Use `async with`, or call `aclose` at the end. Raises
    `ConfigurationError` if the platform has no POSIX file locks or the path cannot name a file.

    A pickle or a copy of a store is a new, closed store over the same database.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        require_posix("SQLiteStore")
        self._clock = clock = clock or SystemClock()
        self._database = Database(absolute("SQLiteStore", path), migrations=_MIGRATIONS, migrate=_migrate)
        self._records = _Records(self._database, clock)
        self._worker = Worker(
            "tokensession-sqlite",
            clock=clock,
            before_fork=self._database.close,
            after_fork_in_child=self._database.forget,
        )
        self._claims = Claims(self._records, self._worker, clock)

    async def load(self, key: str) -> Record | None:
        """The whole record, or None. Never waits for a claim."""
        check_key(key)
        return await self._worker.run(partial(self._records.read, key), droppable=True)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        """A newer record than `seen`, or the only claim. `timeout` in seconds. See `Store.claim`."""
        check_key(key)
        return await self._claims.claim(key, seen=seen, timeout=timeout)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, whether or not the key is claimed. See `Store.put`."""
        check_key(key)
        record = Record(new_version(), bytes(data))
        del data  # if a reporter prints this frame's locals, a Record shows nothing
        write = partial(self._records.put, key, record, expect)
        return await self._worker.run(write, on_abandoned=log_failed_write)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Delete the record. Returns whether there was one. See `Store.delete`."""
        check_key(key)
        delete = partial(self._records.delete, key, expect)
        return await self._worker.run(delete, on_abandoned=log_failed_write)

    async def keys(self) -> list[str]:
        """The keys of all records, sorted."""
        return await self._worker.run(self._records.keys, droppable=True)

    async def aclose(self) -> None:
        """Close the connection and end the worker thread, after its last job. A later call reopens.

        A cancelled anyio scope does not cut this short. If `task.cancel()` does, call it again: it
        continues.
        """
        with CancelScope(shield=True):
            await self._worker.aclose(self._database.close)

    def __reduce__(self) -> tuple[Any, ...]:
        return as_configuration(self, self._database.path, self._clock)

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._database.path} {'open' if self._worker.open else 'closed'}>"


class _Records:
    """What runs in the worker thread. Implements `claims.Records`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def prepare(self, key: str) -> Path:
        return self._database.prepare() / lock_name(key, ".lock")

    def reserve(self, key: str) -> None:
        self._database.reserve()

    def unreserve(self, key: str) -> None:
        pass

    def read(self, key: str) -> Record | None:
        with self._database.reading() as connection:
            return self._read(connection, key) if connection else None

    def _read(self, connection: sqlite3.Connection, key: str) -> Record | None:
        # All columns, because an older database that we may only read has less.
        with contextlib.closing(connection.execute("SELECT * FROM tokens WHERE key = ?", (key,))) as found:
            rows = [dict(zip((name for name, *_ in found.description), row, strict=True)) for row in found]
        if not rows:
            return None
        row = rows[0]
        version, data, wall, boot = map(row.get, ("version", "data", "written_wall", "written_boot"))
        if type(version) is not str or type(data) is not bytes:
            raise StoreCorrupt("A stored record has a version or data of the wrong type.")
        # A record of an older version does not say when it was written.
        written = Moment(wall, boot) if type(wall) is float and type(boot) is float else None
        if row.get("checksum") is not None and row["checksum"] != _checksum(
            database_id(connection), key, version, data, written
        ):
            raise StoreCorrupt(
                f"A record in {self._database.path} has the wrong checksum: it is damaged, or another key's.",
            )
        return Record(version, data, written.age(self._clock) if written is not None else 0.0)

    def keys(self) -> list[str]:
        with self._database.reading() as connection:
            rows = fetch(connection, "SELECT key FROM tokens") if connection else []
        if not all(type(key) is str for (key,) in rows):
            raise StoreCorrupt(f"A key in {self._database.path} is not text.")
        return sorted(key for (key,) in rows)

    def write(self, key: str, record: Record, expect: str | AnyVersion | None) -> Record:
        with self._database.writing() as connection:
            if expect is not ANY:
                stored = self._read(connection, key)
                if stored == record:  # the same write, repeated because its result got lost
                    return record
                if (stored.version if stored else None) != expect:
                    raise Superseded("A newer record is stored.", record=stored)
            self.insert(connection, key, record)
        return record

    def insert(self, connection: sqlite3.Connection, key: str, record: Record) -> None:
        """Store it, inside a transaction."""
        now = Moment.now(self._clock)
        checksum = _checksum(database_id(connection), key, record.version, record.data, now)
        stored = connection.execute(
            "INSERT INTO tokens (key, version, data, written_wall, written_boot, checksum)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET version = excluded.version,"
            " data = excluded.data, written_wall = excluded.written_wall,"
            " written_boot = excluded.written_boot, checksum = excluded.checksum",
            (key, record.version, record.data, *now, checksum),
        )
        if stored.rowcount != 1:
            raise StoreUnavailable("The database has ignored a write, perhaps because of a trigger.")

    def put(self, key: str, record: Record, expect: str | AnyVersion | None) -> Record:
        """Like `write`, without a claim."""
        self._database.prepare()
        return self.write(key, record, expect)

    def delete(self, key: str, expect: str | AnyVersion) -> bool:
        self._database.prepare()
        with self._database.writing() as connection:
            if expect is not ANY:
                stored = self._read(connection, key)
                if stored is not None and stored.version != expect:
                    raise Superseded("A newer record is stored.", record=stored)
            return connection.execute("DELETE FROM tokens WHERE key = ?", (key,)).rowcount > 0


def _checksum(database: str, key: str, version: str, data: bytes, written: Moment | None) -> bytes:
    parts = (database.encode(), key.encode(), version.encode(), data)
    return checksum(*parts, written.packed() if written is not None else b"")


def _migrate(connection: sqlite3.Connection) -> None:
    """Make the migrations that are missing. The caller holds the lock that excludes other processes."""
    # 50 ms, once in the life of a database
    from sqlite_utils import Database as Schema
    from sqlite_utils import Migrations

    migrations = Migrations(MIGRATIONS)

    @migrations()
    def m001_tokens(schema: Schema) -> None:
        schema.create_table(
            "tokens",
            {"key": str, "version": str, "data": bytes},
            pk="key",
            not_null=("version", "data"),
            if_not_exists=True,  # a database from before there were migrations has it
        )

    @migrations()
    def m002_written(schema: Schema) -> None:
        tokens = schema.table("tokens")
        tokens.add_column("written_wall", float)
        tokens.add_column("written_boot", float)
        schema.create_table(
            "tokensession_store",
            {"one": int, "id": str, "inode": int},
            pk="one",
            not_null=("id", "inode"),
            if_not_exists=True,  # `tokens` was dropped, and this was not
        )

    # It gets our connection, because one of its own could not leave the thread that made it. It gets no
    # plugins, because they are third-party code and would see the tokens.
    @migrations()
    def m003_checksum(schema: Schema) -> None:
        schema.table("tokens").add_column("checksum", bytes)
        first = "INSERT OR IGNORE INTO tokensession_store VALUES (1, ?, 0)"
        connection.execute(first, (secrets.token_hex(8),))
        name = database_id(connection)
        rows = "SELECT key, version, data, written_wall, written_boot FROM tokens"
        for key, version, data, wall, boot in fetch(connection, rows):
            with contextlib.suppress(AttributeError, TypeError):  # damaged before: it stays so
                written = Moment(wall, boot) if wall is not None else None
                change = "UPDATE tokens SET checksum = ? WHERE key = ?"
                connection.execute(change, (_checksum(name, key, version, data, written), key))
        # An older version that has the database open now goes on to write, and knows no checksum. Its record
        # may be the only copy of a refresh token: it has none, and is read all the same.
        connection.execute(
            "CREATE TRIGGER IF NOT EXISTS tokensession_unbound AFTER UPDATE OF version ON tokens"
            " WHEN new.version IS NOT old.version AND new.checksum IS old.checksum"
            " BEGIN UPDATE tokens SET checksum = NULL WHERE key = new.key; END"
        )

    migrations.apply(Schema(connection, recursive_triggers=False, execute_plugins=False))
