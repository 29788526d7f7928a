"""One table in a Postgres database, for processes on any number of hosts.

A row holds a record, and who has its claim. `_postgres/statements.py` has the statements. Each operation is
one, so no connection is held while a token request is under way. `_postgres/server.py` has the connections,
`_postgres/listener.py` wakes the waiters, `_postgres/schema.py` has the table, and `_remote/lease.py` keeps
leases alive.

Why a lease in columns, and none of Postgres' own locks: an advisory lock of a session is granted several
times behind a pooler in transaction mode, and it outlives a host that has lost its network by up to two
hours. A row lock needs an open transaction, and so a connection, during the token request.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from anyio import CancelScope

from .._validate import describe
from ..clock import Clock, SystemClock
from ..errors import ConfigurationError, StoreCorrupt, StoreUnavailable, Superseded
from ._closing import ClosesAtExit
from ._local.checksum import checksum
from ._pickling import check_parts
from ._postgres.schema import check_name, migrate
from ._postgres.statements import statements
from ._remote.lease import LEASE, READ_PATIENCE, LeasedClaim, Leases
from ._remote.operations import Attempt, Grant, Held
from .protocol import ANY, AnyVersion, Record, check_key, new_version

if TYPE_CHECKING:
    from ._postgres.server import Server

__all__ = ["PostgresStore"]

T = TypeVar("T")

_TABLE = "tokensession"
_HOST = r"(?:\[[^]@]*\]|[^:@,]*)(?::[0-9]*)?"
_HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*")
_RACES = 10  # lost one after another by one statement: then something is wrong


class PostgresStore(ClosesAtExit):
    """Keeps records in a table of a Postgres database (version 12 or newer), for any number of hosts.

    `PostgresStore(pool)` borrows a pool of asyncpg. `PostgresStore.connect(url)` has connections of its own.
    The table is created on first use, and brought up to date.

    `lease`: a holder that gives no sign of life for so many seconds, by the server's clock, loses its claim.
    `listen`: the URL of a connection on which waiters are notified. It must lead to the server itself, and
    not to a pooler in transaction mode. Without it, waiters look every 50 ms. `clock` times waiting, and is
    for tests; the server dates records and leases.

    A store with connections of its own pickles as its configuration, with the URL and its password.
    """

    def __init__(
        self,
        pool: Any,
        *,
        lease: float = LEASE,
        table: str = _TABLE,
        listen: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._set_up(pool, None, lease=lease, table=table, listen=listen, clock=clock)

    @classmethod
    def connect(
        cls,
        dsn: str,
        *,
        lease: float = LEASE,
        table: str = _TABLE,
        listen: bool | str = True,
        clock: Clock | None = None,
    ) -> Self:
        """A store with connections of its own, made on first use: at most five in a process.

        `dsn`: `postgresql://user:password@host:port/database`, with any option that asyncpg knows.
        `listen=True` listens at the same address. If that is a pooler in transaction mode, notifications do
        not arrive; the store notices, and waiters look every 50 ms. `listen=False` also saves the
        notification in each commit, so pass it in all processes or in none.
        """
        store = cls.__new__(cls)
        store._set_up(None, dsn, lease=lease, table=table, listen=listen, clock=clock)
        return store

    @staticmethod
    def schema(table: str = _TABLE) -> str:
        """The SQL that makes the table, if an administrator does that for you.

        The store then needs SELECT, INSERT and UPDATE on it, and nothing else.
        """
        return migrate(check_name(table))

    def _set_up(
        self,
        pool: Any,
        dsn: str | None,
        *,
        lease: float,
        table: str,
        listen: bool | str | None,
        clock: Clock | None,
    ) -> None:
        if not (isinstance(lease, int | float) and 0 < lease < float("inf")):
            raise ConfigurationError(f"lease must be a number of seconds above 0, not {lease!r}.")
        server = _server_class()
        where = "of this pool" if dsn is None else _where("dsn", dsn)
        if isinstance(listen, str):
            _where("listen", listen)
        self._table, self._where = check_name(table), where
        self._dsn, self._listen = dsn, listen
        self._clock: Clock = clock or SystemClock()
        channel = table if listen else ""
        self._server: Server = server(
            table=table,
            where=where,
            clock=self._clock,
            dsn=dsn,
            pool=pool,
            listen=(listen if isinstance(listen, str) else dsn) if listen else None,
            notify=self._wake,
            before_close=self._end_claims,
        )
        self._rows = _Rows(self._server, table, channel=channel, lease=float(lease))
        self._leases = Leases(self._rows, self._clock, lease=float(lease), on_wait=self._wait)

    async def load(self, key: str) -> Record | None:
        """The whole record, or None. Never waits for a claim."""
        return await self._read(partial(self._rows.load, check_key(key)))

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LeasedClaim | Record:
        """A newer record than `seen`, or the only claim. `timeout` in seconds. See `Store.claim`."""
        with self._server.listener.interested(key, _identity(key)):
            return await self._leases.claim(key, seen=seen, timeout=timeout)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, whether or not the key is claimed. See `Store.put`."""
        record = Record(new_version(), bytes(data))
        del data  # if a reporter prints this frame's locals, a Record shows nothing
        stored = await self._leases.run(partial(self._rows.write, check_key(key), record, expect))
        self._leases.notify(key, stored.version)
        return stored

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Delete the record. Returns whether there was one. See `Store.delete`."""
        return await self._leases.run(partial(self._rows.delete, check_key(key), expect))

    async def keys(self) -> list[str]:
        """The keys of all records, sorted."""
        return await self._read(self._rows.keys)

    async def aclose(self) -> None:
        """Close the connections. A pool that you passed in stays open. A later call reopens."""
        with CancelScope(shield=True):
            await self._server.aclose()

    async def _read(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await self._leases.run(call, patience=READ_PATIENCE, on_abandoned=lambda _: None)

    def _wait(self) -> None:
        self._server.listener.wait()

    def _wake(self, key: str | None) -> None:
        if key is None:
            self._leases.notify_all()
        else:
            self._leases.notify(key, None)

    async def _end_claims(self) -> None:
        await self._leases.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        name = type(self).__name__
        if self._dsn is None:
            raise TypeError(
                f"This {name} can be neither pickled nor copied, because it borrows a pool, and a pool "
                f"belongs to one process. Use {name}.connect(), or make a store in the other process."
            )
        check_parts(self, clock=self._clock)
        options: dict[str, Any] = {
            "lease": self._leases.lease,
            "table": self._table,
            "listen": self._listen,
            "clock": self._clock,
        }
        return partial(type(self).connect, self._dsn, **options), ()

    def __repr__(self) -> str:
        state = "open" if self._server.open else "closed"
        return f"<PostgresStore {self._where.removeprefix('at ')} {self._table} {state}>"


class _Rows:
    """The operations on the rows of the table. Implements `operations.Operations`."""

    def __init__(self, server: Server, table: str, *, channel: str, lease: float) -> None:
        self._fetch = server.fetch
        self._statements = statements(table)
        self._channel = channel
        self._lease = lease

    async def load(self, key: str) -> Record | None:
        rows = await self._fetch(self._statements.load, _identity(key))
        return _record(key, rows[0]) if rows else None

    async def keys(self) -> list[str]:
        try:
            return sorted(bytes(row["key"]).decode() for row in await self._fetch(self._statements.keys))
        except UnicodeDecodeError:
            raise StoreCorrupt("A stored key is not text.") from None

    async def try_claim(self, key: str, seen: str | None, owner: str) -> Attempt:
        for _ in range(_RACES):
            values = (_identity(key), key.encode(), owner, self._lease, seen)
            for row in await self._fetch(self._statements.claim, *values):
                if row["granted"]:
                    return Grant(_record(key, row), row["interrupted"], max(row["listening"] or 0.0, 0.0))
                if row["version"] not in (None, seen) and (record := _record(key, row)) is not None:
                    return record
                if row["owner"] is not None and row["ends"] > 0:
                    return Held(row["owner"], row["held"], row["ends"])
            # Another has made or changed the row while this one looked at it.
        raise _lost_races()

    async def renew(self, key: str, owner: str, seconds: float) -> bool:
        return bool(await self._fetch(self._statements.renew, _identity(key), owner, seconds))

    async def sending(self, key: str, owner: str, listening: float) -> bool:
        values = (_identity(key), owner, self._lease, float(listening))
        return bool(await self._fetch(self._statements.sending, *values))

    async def commit(self, key: str, owner: str, expect: str | None, version: str, data: bytes) -> Record:
        return await self.write(key, Record(version, data), expect, owner)

    async def abandon(self, key: str, owner: str) -> None:
        await self._fetch(self._statements.abandon, _identity(key), owner, self._channel)

    async def write(
        self, key: str, record: Record, expect: str | AnyVersion | None, owner: str | None = None
    ) -> Record:
        """Replace the version `expect`. With an owner, its claim ends. Raises `Superseded`."""
        version = expect if isinstance(expect, str) else None
        values = (_identity(key), key.encode(), expect is ANY, version, record.version, record.data)
        for _ in range(_RACES):
            rows = await self._fetch(
                self._statements.write, *values, _checksum(key, record), owner, self._channel
            )
            if rows and rows[0]["stored"]:
                return record
            stored = _record(key, rows[0]) if rows else None
            if stored == record:  # the same write, repeated because its answer got lost
                return record
            if (stored.version if stored else None) != version:
                raise Superseded("A newer record is stored.", record=stored)
        raise _lost_races()

    async def delete(self, key: str, expect: str | AnyVersion) -> bool:
        version = expect if isinstance(expect, str) else None
        for _ in range(_RACES):
            rows = await self._fetch(
                self._statements.delete, _identity(key), version is None, version, self._channel
            )
            if not rows or rows[0]["deleted"]:
                return bool(rows)
            if version is not None and rows[0]["version"] != version:
                raise Superseded("A newer record is stored.", record=_record(key, rows[0]))
        raise _lost_races()


def _server_class() -> type[Server]:
    try:
        from ._postgres.server import Server
    except ImportError as error:
        raise ConfigurationError(
            "PostgresStore needs the package asyncpg.", todo="Run pip install 'tokensession[postgres]'."
        ) from error
    return Server


def _where(name: str, url: str) -> str:
    """Host and database of this URL: what an error may say about it. The rest may be a password."""
    if not isinstance(url, str) or not url.lower().startswith(("postgresql://", "postgres://")):
        raise ConfigurationError(
            f"{name} must be a URL such as 'postgresql://user@host/database', not {describe(url)}."
        )
    parts = None
    with contextlib.suppress(ValueError):  # its message repeats a part of the URL
        split = urlsplit(url)
        named = split.netloc.rpartition("@")[2].split(",")
        ports = [urlsplit(f"//{host}").port for host in named]
        options = parse_qsl(split.query, keep_blank_values=True, strict_parsing=bool(split.query))
        possible = 0 not in ports and (all(named) or named == [""])
        parts = split if all(name for name, _ in options) and possible else None
    user, _, hosts = ("", "", "") if parts is None else parts.netloc.rpartition("@")
    # The driver ends a password at its first "@", and takes the rest for a host. An "@" farther on, or a port
    # that is not a number, is a sign of a password with a "/", "?" or "#" in it.
    if (
        parts is None
        or "@" in user + parts.path + parts.query
        or parts.fragment
        or not _HOSTS.fullmatch(hosts)
    ):
        raise ConfigurationError(
            f"The URL {name} is malformed.",
            todo="Write it postgresql://user:password@host:5432/database, and escape special characters "
            "(%40 for @, %2F for /).",
        )
    return f"at {hosts + parts.path or 'the default address'}"


def _identity(key: str) -> bytes:
    return hashlib.sha256(check_key(key).encode()).digest()


def _checksum(key: str, record: Record) -> bytes:
    return checksum(key.encode(), record.version.encode(), record.data)


def _record(key: str, row: Any) -> Record | None:
    if row["version"] is None:
        return None
    record = Record(row["version"], row["data"] or b"", row["age"] or 0.0)
    if row["data"] is None or row["checksum"] != _checksum(key, record):
        raise StoreCorrupt("A stored record has the wrong checksum: it is damaged, or another key's.")
    return record


def _lost_races() -> StoreUnavailable:
    return StoreUnavailable("Other processes have replaced the record again and again.", todo="Try again.")
