"""The connections of one store: made on first use in an event loop, and closed with it.

A connection belongs to one event loop and one process. So everything here is in a `_Session`, and a call from
another loop, or from a forked child, begins a new one. A child leaves the parent's connections as they are:
to close one there would stop the parent from hearing of it.

A session is closed with the store, or by the end of the event loop: see `_remote/ending.py`.

Every call is bounded. One that has lost its connection, or got no answer, may be made again: that is decided
in `_remote/lease.py`. Its connection is ended, in whatever state the server has it. The server is not asked
to cancel the statement: such a request gets no answer either, and pgbouncer 1.18 ends itself, with all of its
clients, if one is given up before it is through (its issue 801).

A pooler in transaction mode gives each transaction of a client another connection of the server, so no
statement stays prepared (`statement_cache_size=0`: asyncpg then sends the statement together with its
values). A pooler is noticed by its process id, which is not that of the server's process. Without one,
statements are prepared once for each connection, which saves a round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import asyncpg

from ...clock import Clock, bounded
from ...errors import ConfigurationError, StoreUnavailable
from .._remote.ending import Ending
from .._remote.operations import NoAnswer, in_another_loop
from .failures import Failure, explain, is_passing
from .listener import Listener
from .schema import LOCK, LOOK, judge, migrate, quoted

__all__ = ["Server"]

T = TypeVar("T")

# All in seconds.
_CONNECT = 2.0
_CALL = 2.0
_MAKE = 4.0  # for the transaction that makes the table
_RELEASE = 0.5
_CLOSE = 10.0  # for calls that are under way when the store is closed; they have bounds of their own

_CONNECTIONS = 4  # a call takes a millisecond, so more would only wait for the server
_IDLE = 60.0  # a connection that is not used for so many seconds is closed


@dataclass(eq=False)
class _Session:
    """What belongs to one event loop in one process."""

    loop: asyncio.AbstractEventLoop
    listener: Listener
    pid: int = field(default_factory=os.getpid)
    pool: Any = None
    prepared: asyncio.Task[None] | None = None
    ending: Ending | None = None


class Server:
    """Runs statements on the server of a store.

    Either `pool` is borrowed, or `dsn` is connected to. `listen`: the URL of the connection that listens for
    notifications, or None. `notify(key)` wakes the waiters for this key, or all of them if it is None.
    `before_close` is awaited before the connections are closed.
    """

    def __init__(
        self,
        *,
        table: str,
        where: str,
        clock: Clock,
        dsn: str | None,
        pool: Any,
        listen: str | None,
        notify: Callable[[str | None], None],
        before_close: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._table = table
        self._where = where
        self._clock = clock
        self._dsn = dsn
        self._pool = pool
        self._listen = listen
        self._notify = notify
        self._before_close = before_close
        self._session: _Session | None = None
        self._inherited: list[_Session] = []  # kept, because collecting them would close their sockets

    @property
    def open(self) -> bool:
        """Whether there may be connections."""
        return self._session is not None and self._session.pid == os.getpid()

    @property
    def listener(self) -> Listener:
        """What wakes the waiters of the running event loop."""
        return self._here().listener

    async def fetch(self, statement: str, *values: Any) -> list[Any]:
        """The rows. Raises `NoAnswer` or a `StoreError` after some seconds, whatever the server does."""
        session = self._here()
        try:
            await self._ready(session)
            return await self._fetch(session.pool, statement, values)
        except Failure as error:
            if isinstance(error, asyncpg.UndefinedTableError):
                session.prepared = None
            problem = explain(error, self._where)
            if isinstance(problem, StoreUnavailable) and is_passing(error):
                raise NoAnswer(problem) from error
            # The driver repeats a part of a wrong URL, which may be a password.
            raise problem from (None if isinstance(problem, ConfigurationError) else error)

    async def _fetch(self, pool: Any, statement: str, values: tuple[Any, ...]) -> list[Any]:
        connection = await pool.acquire(timeout=_CONNECT)
        try:
            rows: list[Any] = await _answer(connection, connection.fetch(statement, *values, timeout=_CALL))
            return rows
        except (TimeoutError, asyncpg.ReadOnlySQLTransactionError):
            if self._dsn is not None:  # the others may lead to the same dead end, or former primary
                await pool.expire_connections()
            raise
        finally:
            await _release(pool, connection)

    async def aclose(self) -> None:
        """End the session of this event loop, after its calls. A later call begins another one."""
        session = self._session
        if session is None:
            return
        if session.pid == os.getpid() and session.loop is asyncio.get_running_loop():
            if session.ending is not None:
                await session.ending.aclose()
        else:
            self._leave(session)

    def _here(self) -> _Session:
        loop, session = asyncio.get_running_loop(), self._session
        if session is not None:
            if session.loop is loop and session.pid == os.getpid():
                return session
            if self._dsn is None:
                raise StoreUnavailable(
                    "This pool belongs to another process or event loop: the one that used it first.",
                    todo="Make a pool and a store in each of them, or use PostgresStore.connect(url).",
                )
            if session.pid == os.getpid() and session.loop.is_running():
                raise in_another_loop()
            self._leave(session)
        listen = None if self._listen is None else partial(asyncpg.connect, self._listen, timeout=_CONNECT)
        listener = Listener(
            listen, send=self._send, notify=self._notify, channel=self._table, clock=self._clock
        )
        self._session = session = _Session(loop, listener)
        session.ending = Ending(partial(self._close, session))
        return session

    def _leave(self, session: _Session) -> None:
        """Let go of the session of another process or event loop."""
        self._session = None
        if session.pid != os.getpid():
            self._inherited.append(session)
        elif session.ending is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed, and so is the session
                session.loop.call_soon_threadsafe(session.ending.begin)

    async def _send(self, channel: str, payload: str) -> None:
        await self.fetch("SELECT pg_notify($1, $2)", channel, payload)

    async def _close(self, session: _Session) -> None:
        with contextlib.suppress(TimeoutError):
            if self._session is session:
                await bounded(self._clock, _CLOSE, self._before_close())
        if self._session is session:
            self._session = None
        await session.listener.aclose()
        if session.prepared is not None:
            session.prepared.cancel()
            await asyncio.wait([session.prepared])
        if session.pool is not None and self._dsn is not None:
            try:
                await bounded(self._clock, _RELEASE, session.pool.close())
            except (*Failure, asyncio.CancelledError):
                session.pool.terminate()
                await asyncio.sleep(0)  # for the sockets to be closed

    async def _ready(self, session: _Session) -> None:
        """Once in a session: check the server and the table, and make the pool."""
        task = session.prepared
        if task is None or task.cancelling():  # by the end of the loop, for which a write makes another try
            task = session.prepared = asyncio.ensure_future(self._prepare(session))
            task.add_done_callback(_retrieve_exception)
        if task.done() and not task.cancelled() and task.exception() is None:
            return
        try:
            await asyncio.shield(task)
        finally:
            if task.done() and (task.cancelled() or task.exception()) and session.prepared is task:
                session.prepared = None

    async def _prepare(self, session: _Session) -> None:
        if self._pool is not None:
            connection = await self._pool.acquire(timeout=_CONNECT)
            try:
                await self._check(connection)
            finally:
                await _release(self._pool, connection)
            session.pool = self._pool
            return
        connection = await asyncpg.connect(self._dsn, timeout=_CONNECT, statement_cache_size=0)
        try:
            pooled = await self._check(connection) != connection.get_server_pid()
        finally:
            await _close_connection(connection)
        if session.pool is None:
            session.pool = await asyncpg.create_pool(
                self._dsn,
                min_size=0,
                max_size=_CONNECTIONS,
                max_inactive_connection_lifetime=_IDLE,
                reset=_leave_as_it_is,
                timeout=_CONNECT,
                command_timeout=_CALL,
                statement_cache_size=0 if pooled else 100,
            )

    async def _check(self, connection: Any) -> int:
        """Make the table, or bring it up to date. Returns the id of the server process."""
        found = await _answer(connection, self._look(connection))
        if judge(self._table, found) is not None:
            # Bounded, because the driver begins and ends a transaction without a time limit.
            found = await _answer(connection, bounded(self._clock, _MAKE, self._make(connection)))
        process: int = found["backend"]
        return process

    async def _make(self, connection: Any) -> Any:
        async with connection.transaction(isolation="read_committed"):  # to see what others make
            await _answer(connection, connection.execute(LOCK, timeout=_CALL))
            # Another process may have made it since.
            found = await _answer(connection, self._look(connection))
            if (version := judge(self._table, found)) is not None:
                migration = migrate(self._table, version)
                await _answer(connection, connection.execute(migration, timeout=_CALL))
        return found

    async def _look(self, connection: Any) -> Any:
        return await connection.fetchrow(LOOK, quoted(self._table), timeout=_CALL)


async def _answer(connection: Any, call: Coroutine[Any, Any, T]) -> T:
    """The result of this call over the connection. If there is none, the connection is ended at once."""
    try:
        return await call
    except (asyncpg.InterfaceError, asyncpg.InternalClientError):
        connection.terminate()  # the driver has lost track of it
        raise
    except (TimeoutError, asyncio.CancelledError):
        connection.terminate()  # before the driver asks the server to cancel the statement: see above
        raise


async def _release(pool: Any, connection: Any) -> None:
    """Give it back. If the server does not answer, the driver ends the connection instead."""
    with contextlib.suppress(*Failure):
        await pool.release(connection, timeout=_RELEASE)


async def _close_connection(connection: Any) -> None:
    try:
        await connection.close(timeout=_RELEASE)
    except Failure:
        connection.terminate()


async def _leave_as_it_is(connection: Any) -> None:
    """Instead of the driver's reset, which costs a round trip. Our statements leave nothing behind."""


def _retrieve_exception(task: asyncio.Future[Any]) -> None:
    """Retrieve the exception, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
