"""The least that a call to a server can take: one bare round trip with the store's driver."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from . import Remote
from .redis_server import RedisServer

__all__ = ["round_trip"]


@contextlib.asynccontextmanager
async def round_trip(found: Remote, times: int) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """A function that takes as many in a row, and returns the seconds of one: PING, or SELECT 1."""
    async with contextlib.AsyncExitStack() as stack:
        ask: Callable[[], Awaitable[object]]
        if isinstance(found.server, RedisServer):
            from redis.asyncio import Redis

            client = Redis(port=found.server.port, single_connection_client=True)
            stack.push_async_callback(client.aclose)
            ask = client.ping
        else:
            import asyncpg

            connection = await asyncpg.connect(found.address)
            stack.push_async_callback(connection.close)
            ask = partial(connection.execute, "SELECT 1")  # not prepared: a pooler may be between

        async def timed() -> float:
            await ask()
            began = time.perf_counter()
            for _ in range(times):
                await ask()
            return (time.perf_counter() - began) / times

        yield timed
