"""The connections to a Redis or Valkey server: one pool for each process and event loop.

A connection belongs to the event loop in which it was opened. A forked child must neither use nor close it:
closing it there would take it out of the selector that the child shares with its parent. So there is another
`Server` in each process and event loop. If the client is borrowed, that is an error instead.

The connections are closed by `aclose`, or by the end of the event loop: see `_remote/ending.py`. From the
first time that a caller waits, a task listens for wake-ups on a connection of its own.

Messages get lost, across a reconnect for example. So each confirmation of the subscription wakes every
waiter, and each waiter looks from time to time anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from hiredis import pack_command
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from ...clock import Bound, Clock, bounded
from ...errors import StoreUnavailable
from .._remote.ending import Ending
from .failures import DRIVER_ERRORS, code_of, translated
from .scripts import Script

if TYPE_CHECKING:
    from redis.asyncio import RedisCluster

__all__ = ["SCHEMES", "Listener", "Server", "new_client"]

_log = logging.getLogger("tokensession.stores")

_TIMEOUT = 2.0  # seconds for a call
# Seconds for the confirmation of a write; less than _TIMEOUT, which includes it. With `appendfsync everysec`
# the server syncs once a second, and a sync takes time: on a busy disk, 2 of 110 writes took longer than
# 1.0 s, and none longer than 1.19 s.
_CONFIRM = 1.8
_CONNECTIONS = 32
_SILENCE = 15.0  # seconds without a message, after which the subscription is tried
_OLDEST = (6, 2)
_WITH_WAITAOF = (7, 2)

SCHEMES = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "unix": "unix"}
"""The schemes of a URL, and what the driver calls them."""

_inherited: list[object] = []  # connections of a parent process, kept so that they are never closed here


class _Connections(ConnectionPool):
    """A pool that waits for a free connection, and does not look first whether the server has closed it.

    That look costs the driver's own pools a third of a round trip. Here a call finds out by itself. It is
    repeated then, and gets the same connection, which has been closed and is opened again.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._free = asyncio.Semaphore(_CONNECTIONS)

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        await self._free.acquire()
        connection = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            if not connection.is_connected:
                await connection.connect()
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: Any) -> None:
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)
        self._free.release()

    async def drop_free(self) -> None:
        """Close the connections that no one uses: others are made when they are needed."""
        dropped, self._available_connections = self._available_connections, []
        for connection in dropped:
            await connection.disconnect(nowait=True)


def new_client(url: str) -> Redis:
    """A client with a pool, not connected. Raises ValueError or TypeError for what the driver rejects."""
    scheme, _, rest = url.partition(":")
    pool = _Connections.from_url(
        f"{SCHEMES[scheme.lower()]}:{rest}",
        socket_timeout=None,  # `_TIMEOUT` counts for the whole call: one more here costs a task
        socket_connect_timeout=_TIMEOUT,
        retry=Retry(NoBackoff(), 0),  # every call is repeated by `Leases`
        driver_info=None,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    pool.make_connection()  # type: ignore[no-untyped-call]  # it checks the options
    client = Redis(connection_pool=pool)
    client.auto_close_connection_pool = True
    return client


class Listener(Protocol):
    """Who is told about messages."""

    def changed(self, name: bytes, version: str | None) -> None:
        """The hash of this name has another version, or (None) a claim was abandoned."""
        ...

    def may_have_missed(self) -> None:
        """Messages may have been lost."""
        ...

    async def settle(self) -> None:
        """Return when no operation runs any more."""
        ...


class Server:
    """The connections of one process in one event loop.

    Mutable state: whether the version was checked, the task that listens, and whether it is closed.
    """

    def __init__(
        self,
        client: Redis | RedisCluster,
        *,
        owned: bool,
        where: str,
        channel: bytes,
        durability: str,
        clock: Clock,
        listener: Listener,
    ) -> None:
        self.client: Any = client
        self._owned = owned
        self._where = where
        self._channel = channel
        self._durability = durability
        self._clock = clock
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._bound = Bound(clock, _TIMEOUT)
        self._checked = False
        self._closed = False
        self._listening: asyncio.Task[None] | None = None
        self._ending = Ending(self._close)

    def usable(self) -> bool:
        """Whether it belongs to this process and the running event loop, and is open."""
        return self._pid == os.getpid() and self._loop is asyncio.get_running_loop() and not self._closed

    def in_use(self) -> bool:
        """Whether another event loop of this process is using it at this moment."""
        loop = self._loop
        return self._pid == os.getpid() and loop is not asyncio.get_running_loop() and loop.is_running()

    def leave(self) -> None:
        """Forget it, in another process or event loop."""
        if self._pid != os.getpid():
            _inherited.append(self)

    async def aclose(self) -> None:
        """Close the connections, after the operations that have begun."""
        await self._ending.aclose()

    async def _close(self) -> None:
        await self._listener.settle()
        self._closed = True
        self._bound.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        if self._owned:
            with contextlib.suppress(*DRIVER_ERRORS):
                await self.client.aclose()

    def listen(self) -> None:
        """Listen for wake-ups from now on."""
        if self._listening is None or self._listening.done():
            self._listening = self._loop.create_task(self._serve())

    def run(self, script: Script, name: bytes, *arguments: object) -> Coroutine[Any, Any, Any]:
        """What the script returns. Raises one of our errors, or `NoAnswer`."""
        return self.call(self._run, script, name, *arguments)

    def write(self, script: Script, name: bytes, *arguments: object) -> Coroutine[Any, Any, Any]:
        """The same, and what it has written is as durable as `durability` says."""
        call = self._run if self._durability == "server" else self._run_durably
        return self.call(call, script, name, *arguments)

    async def call(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call of the driver. Raises one of our errors, or `NoAnswer`."""
        try:
            return await self._bound.run(call(*arguments))
        except (*DRIVER_ERRORS, RuntimeError) as error:  # the latter if a client is used in two event loops
            cause = error
        if self._owned and code_of(cause) == "READONLY":
            # It may have been the primary. Then its address leads to another one now, and it closes nothing.
            await self.client.connection_pool.drop_free()
        # The server's own words stay out of the traceback: they may contain data.
        raise translated(cause, self._where) from (None if isinstance(cause, ResponseError) else cause)

    async def _run(self, script: Script, name: bytes, *arguments: object) -> Any:
        if not self._checked:
            await self._check()
        try:
            return await self._execute("EVALSHA", script.sha, 1, name, *arguments)
        except NoScriptError:  # a new server, or one that was told to forget its scripts
            return await self._execute("EVAL", script.source, 1, name, *arguments)

    async def _execute(self, *command: Any) -> Any:
        """The answer to this command, as bytes."""
        if not self._owned:
            return await self.client.execute_command(*command, NEVER_DECODE=True)
        # On a connection itself, because what the client does beside it (repeating, measuring, looking for
        # callbacks) takes half as long as the round trip.
        pool = self.client.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(pack_command(command))
            return await connection.read_response(disable_decoding=True)
        finally:
            await pool.release(connection)

    async def _run_durably(self, script: Script, name: bytes, *arguments: object) -> Any:
        if not self._checked:
            await self._check()
        replica = self._durability == "replica"
        for command in (("EVALSHA", script.sha), ("EVAL", script.source)):
            # WAIT counts what its own connection has written, so both go over one, in one round trip.
            pipeline = self.client.pipeline(transaction=False)
            pipeline.execute_command(*command, 1, name, *arguments, NEVER_DECODE=True)
            pipeline.execute_command(*(("WAIT", 1) if replica else ("WAITAOF", 1, 0)), int(_CONFIRM * 1000))
            result, confirmed = await pipeline.execute(raise_on_error=False)
            if not isinstance(result, NoScriptError):
                break
        for answer in (result, confirmed):
            if isinstance(answer, Exception):
                raise answer
        if (confirmed if replica else confirmed[0]) < 1:
            raise StoreUnavailable(
                f"{self._where} has taken the data, but {'no replica' if replica else 'its disk'} has "
                f"{'confirmed' if replica else 'not confirmed'} it.",
                intact="The data is stored there, and a failover may lose it.",
                todo="Check the server's replicas and disk, or choose a lower durability.",
            )
        return result

    async def _check(self) -> None:
        try:
            info = await self.client.info()
        except NoPermissionError:
            self._checked = True
            return
        if not isinstance(info.get("redis_version"), str):  # a cluster: an answer for each node
            info = next(iter(info.values()))
        version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
        wanted = _WITH_WAITAOF if self._durability == "fsync" else _OLDEST
        if version < wanted:
            raise StoreUnavailable(
                f"{self._where} runs version {info['redis_version']}, and {wanted[0]}.{wanted[1]} is needed"
                f"{' for durability fsync' if self._durability == 'fsync' else ''}.",
                todo="Upgrade it, or use Valkey.",
            )
        if str(info.get("maxmemory_policy", "")).startswith("allkeys") and info.get("maxmemory"):
            _log.warning(
                "%s evicts keys when it is full (maxmemory-policy %s), and so may lose tokens. Set "
                "maxmemory-policy to noeviction or to a volatile policy.",
                self._where,
                info["maxmemory_policy"],
            )
        self._checked = True

    async def _serve(self) -> None:
        while True:
            with contextlib.suppress(*DRIVER_ERRORS, RuntimeError):
                await self._listen()
            await self._clock.sleep(0.25)

    async def _listen(self) -> None:
        """Listen until the connection fails."""
        pubsub = self.client.pubsub()
        try:
            await bounded(self._clock, _TIMEOUT, pubsub.subscribe(self._channel))
            silent = False
            while True:
                message = await pubsub.get_message(timeout=_TIMEOUT if silent else _SILENCE)
                if message is None:
                    if silent:
                        return  # it is dead: subscribe again
                    await pubsub.ping()
                    silent = True
                    continue
                silent = False
                if message["type"] == "subscribe":
                    self._listener.may_have_missed()
                elif message["type"] == "message":
                    data = message["data"]
                    version, _, name = (data.encode() if isinstance(data, str) else data).partition(b" ")
                    self._listener.changed(name, version.decode(errors="replace") or None)
        finally:
            with contextlib.suppress(*DRIVER_ERRORS):
                await pubsub.aclose()
