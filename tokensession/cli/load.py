"""One client process of the demo: `python -m tokensession.cli.load`.

The parent tells it to `run` a load and to `stop` it. In between it reports four times a second what it has
counted so far, and after `stop` once more. If the parent ends, it exits at once.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import anyio

from .. import AuthedSession
from ..providers import Provider
from ..stores import SQLiteStore
from .baseline import BaselineClient, provider_for
from .child_process import messages, say
from .latency import Latencies

__all__ = ["main"]

_REPORT_INTERVAL = 0.25  # seconds
_PATHS = {"oto": "/rest/v2/healthCheck", "priava": "/echo"}
"""Oto documents a health check. For Priava it is an endpoint of our test server."""

Get: TypeAlias = Callable[[], Awaitable[int]]
"""Makes one API request, and returns its status."""


class Tally:
    """What this process has counted at one provider."""

    def __init__(self) -> None:
        self.requests: int = 0
        self.reasons: Counter[str] = Counter()
        self.latencies: Latencies = Latencies()

    async def count(self, get: Get) -> None:
        """Make one request, and count it. Every error is a failure, and the table shows it."""
        started = time.perf_counter()
        try:
            status = await get()
        except Exception as error:  # noqa: BLE001 - see above
            self.reasons[type(error).__name__] += 1
        else:
            if status != 200:
                self.reasons[f"status {status}"] += 1
        self.requests += 1
        self.latencies.add(time.perf_counter() - started)

    def as_message(self) -> dict[str, Any]:
        """As JSON."""
        return {"requests": self.requests, "reasons": self.reasons, "latencies": self.latencies.bins()}


class Load:
    """The tasks of one load in this process."""

    def __init__(self, load: str, settings: dict[str, Any], store: SQLiteStore) -> None:
        self._load = load
        self._settings = settings
        self._store = store
        self._tallies = {name: Tally() for name in settings["credentials"][load]}
        self._stopping = anyio.Event()

    def stop(self) -> None:
        """Start no more requests."""
        self._stopping.set()

    async def run(self) -> None:
        """Make requests until `stop`, let open ones finish, and report the final numbers."""
        async with anyio.create_task_group() as reporting:
            reporting.start_soon(self._report)
            async with contextlib.AsyncExitStack() as stack:
                gets = {name: await stack.enter_async_context(self._clients(name)) for name in self._tallies}
                # All processes compete for the first token with one request each; the other tasks follow.
                # Otherwise p99 would be the time that Python takes to import and connect.
                async with anyio.create_task_group() as first_requests:
                    for name, tally in self._tallies.items():
                        first_requests.start_soon(tally.count, gets[name][0])
                async with anyio.create_task_group() as tasks:
                    for name, tally in self._tallies.items():
                        for get in gets[name]:
                            tasks.start_soon(self._task, get, tally)
            reporting.cancel_scope.cancel()
        self._say(final=True)

    def _clients(self, name: str) -> contextlib.AbstractAsyncContextManager[list[Get]]:
        provider = provider_for(name, self._settings["credentials"][self._load][name])
        count = self._settings["tasks"]
        if self._load == "shared":
            return _shared(provider, self._store, _PATHS[name], count)
        file = Path(self._settings["directory"]) / f"baseline-{name}.json"
        return _baseline(provider, file, _PATHS[name], count)

    async def _task(self, get: Get, tally: Tally) -> None:
        pause = self._settings["pause"]
        await self._rest(pause * random.random())  # noqa: S311 - spreads load; nothing secret
        while not self._stopping.is_set():
            await tally.count(get)
            await self._rest(pause * (0.5 + random.random()))  # noqa: S311 - as above

    async def _rest(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._stopping.wait()

    async def _report(self) -> None:
        while True:
            self._say(final=False)
            await anyio.sleep(_REPORT_INTERVAL)

    def _say(self, *, final: bool) -> None:
        tally = {name: tally.as_message() for name, tally in self._tallies.items()}
        say(load=self._load, tally=tally, final=final)


@contextlib.asynccontextmanager
async def _shared(provider: Provider, store: SQLiteStore, path: str, count: int) -> AsyncIterator[list[Get]]:
    """All tasks of this process share a session, and all processes share the database."""
    async with AuthedSession(provider, store=store) as session:

        async def get() -> int:
            async with session.get(path) as response:
                await response.read()
                return int(response.status)

        yield [get] * count


@contextlib.asynccontextmanager
async def _baseline(provider: Provider, file: Path, path: str, count: int) -> AsyncIterator[list[Get]]:
    """Every task has its own token, and all share a file."""
    async with aiohttp.ClientSession() as http:
        clients = [BaselineClient(provider, http, file) for _ in range(count)]
        yield [partial(client.get, path) for client in clients]


async def main() -> None:
    """Follow the parent's orders until it closes the pipe or ends."""
    orders = messages()
    settings = await anext(orders)
    load: Load | None = None
    store = SQLiteStore(Path(settings["directory"]) / "tokens.db")
    async with contextlib.aclosing(store), anyio.create_task_group() as loads:
        say(ready=True)
        async for order in orders:
            if order["do"] == "run":
                load = Load(order["load"], settings, store)
                loads.start_soon(load.run)
            elif load is not None:
                load.stop()
                load = None
        if load is not None:
            os._exit(1)  # the parent has ended during the load: do not wait for open requests


if __name__ == "__main__":
    try:
        anyio.run(main)
    except* (BrokenPipeError, StopAsyncIteration):  # the parent has ended
        pass
