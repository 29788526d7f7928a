"""One client process of the demo: `python -m tokensession.cli.load`.

It waits for orders: `run` a load, `stop` it. Under way it says every quarter of a second what it has
counted so far, and after `stop` once more, for good. If the parent is gone, so is it, at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from .. import AuthedSession
from ..providers import Provider
from ..stores import SQLiteStore
from .baseline import BaselineClient, provider_for
from .child_process import messages, say
from .latency import Latencies

__all__ = ["main"]

_EVERY = 0.25  # seconds between two reports
_PATHS = {"oto": "/rest/v2/healthCheck", "priava": "/echo"}
"""What is asked for: Oto documents a health check, Priava's bundled server has its echo."""

Get = Callable[[], Awaitable[int]]


class Tally:
    """What this process has counted at one provider."""

    def __init__(self) -> None:
        self.requests = 0
        self.reasons: Counter[str] = Counter()
        self.latencies = Latencies()

    def as_message(self) -> dict[str, Any]:
        """For JSON."""
        return {"requests": self.requests, "reasons": self.reasons, "latencies": self.latencies.bins()}


class Load:
    """The tasks of one load in this process, from `start` to `stop`."""

    def __init__(self, load: str, settings: dict[str, Any], store: SQLiteStore) -> None:
        self._load = load
        self._store = store
        self._settings = settings
        self._tallies = {name: Tally() for name in settings["credentials"][load]}
        self._stopping = False
        self._resting: set[asyncio.Task[None]] = set()
        self._done = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Let requests under way finish, and say the last word."""
        self._stopping = True
        for task in self._resting:
            task.cancel()
        await self._done
        self._say(final=True)

    async def _run(self) -> None:
        reporter = asyncio.ensure_future(self._report())
        try:
            async with contextlib.AsyncExitStack() as stack:
                gets = {name: await stack.enter_async_context(self._clients(name)) for name in self._tallies}
                # All processes race for the first token with one request each; the crowd comes after.
                # Otherwise p99 would be the time that Python takes to import and connect.
                await asyncio.gather(*(_one(gets[name][0], self._tallies[name]) for name in gets))
                tasks = [
                    asyncio.ensure_future(self._task(get, self._tallies[name]))
                    for name in gets
                    for get in gets[name]
                ]
                await asyncio.wait(tasks)
        except Exception:  # noqa: BLE001 - the load itself is broken: the parent hears of it by our end
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        finally:
            reporter.cancel()

    def _clients(self, name: str) -> contextlib.AbstractAsyncContextManager[list[Get]]:
        provider = provider_for(name, self._settings["credentials"][self._load][name])
        count = self._settings["tasks"]
        if self._load == "shared":
            return _shared(provider, self._store, _PATHS[name], count)
        file = Path(self._settings["directory"]) / f"naive-{name}.json"
        return _naive(provider, file, _PATHS[name], count)

    async def _task(self, get: Get, tally: Tally) -> None:
        pace = self._settings["pace"]
        await self._rest(pace * random.random())  # noqa: S311 - spreads load; nothing secret
        while not self._stopping:
            await _one(get, tally)
            await self._rest(pace * (0.5 + random.random()))  # noqa: S311 - as above

    async def _rest(self, seconds: float) -> None:
        task = asyncio.current_task()
        if self._stopping or task is None:
            return
        self._resting.add(task)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._resting.discard(task)

    async def _report(self) -> None:
        while True:
            self._say(final=False)
            await asyncio.sleep(_EVERY)

    def _say(self, *, final: bool) -> None:
        tally = {name: tally.as_message() for name, tally in self._tallies.items()}
        say(load=self._load, tally=tally, final=final)


async def _one(get: Get, tally: Tally) -> None:
    started = time.perf_counter()
    try:
        status = await get()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a failure, and the table shows it
        tally.reasons[type(error).__name__] += 1
    else:
        if status != 200:
            tally.reasons[f"status {status}"] += 1
    tally.requests += 1
    tally.latencies.add(time.perf_counter() - started)


@contextlib.asynccontextmanager
async def _shared(provider: Provider, store: SQLiteStore, path: str, count: int) -> AsyncIterator[list[Get]]:
    """All tasks of this process share a session, all processes the database."""
    async with AuthedSession(provider, store=store) as session:

        async def get() -> int:
            async with session.get(path) as response:
                await response.read()
                return int(response.status)

        yield [get] * count


@contextlib.asynccontextmanager
async def _naive(provider: Provider, file: Path, path: str, count: int) -> AsyncIterator[list[Get]]:
    """Every task has a token of its own, and they share a file."""
    async with aiohttp.ClientSession() as http:
        clients = [BaselineClient(provider, http, file) for _ in range(count)]
        yield [_bound(client, path) for client in clients]


def _bound(client: BaselineClient, path: str) -> Get:
    return lambda: client.get(path)


async def main() -> None:
    """Take orders until the parent leaves."""
    orders = messages()
    settings = await anext(orders)
    load: Load | None = None
    async with contextlib.aclosing(SQLiteStore(Path(settings["directory"]) / "tokens.db")) as store:
        say(ready=True)
        async for order in orders:
            if order["do"] == "run":
                load = Load(order["load"], settings, store)
            elif load is not None:
                await load.stop()
                load = None
        if load is not None:
            # The parent died under way. Draining what it ordered would only keep this process alive.
            os._exit(1)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, StopAsyncIteration):
        asyncio.run(main())
