"""`tokensession demo`: the main job, measured, and the naive way beside it.

The servers run in one child process, the load in several; this process only gives orders and looks.
Both loads come from the same child processes, one after the other, each against servers of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any

import aiohttp

from .baseline import provider_for, sign_in
from .child_process import Child, ChildFailed
from .display import Display
from .report import Board, Plan, Report

__all__ = ["ChildFailed", "run"]

_LOOK = 0.1  # seconds between two looks at the numbers
_AFTER = 0.4  # seconds of load after the last expiry, so that its token is used too


async def run(plan: Plan, display: Display) -> Report:
    """Run both loads. Cancelled or failing, it leaves no process and no file behind.

    Raises `ChildFailed` if one of its processes ends early.
    """
    demo = _Demo(plan, display)
    display.begin(plan)
    report: Report | None = None
    try:
        report = await demo.run()
        return report
    finally:
        display.end(report)
        await demo.stop()


class _Demo:
    def __init__(self, plan: Plan, display: Display) -> None:
        self._plan = plan
        self._display = display
        self._board = Board()
        self._children: list[Child] = []  # the servers first
        self._listeners: list[asyncio.Task[None]] = []

    async def run(self) -> Report:
        started = time.monotonic()
        await self._start()
        lasted = {"shared": await self._load("shared", None)}
        await self._sign_in_naively()
        lasted["naive"] = await self._load("naive", min(self._plan.naive_for, lasted["shared"]))
        return Report(self._plan, self._board.rows(), lasted, time.monotonic() - started)

    async def stop(self) -> None:
        """The clients first: the servers' process removes the directory when it leaves."""
        for listener in self._listeners:
            listener.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)
        await asyncio.gather(*(child.stop() for child in self._children[1:]))
        await asyncio.gather(*(child.stop() for child in self._children[:1]))

    async def _start(self) -> None:
        """All at once: most of their start is Python's own."""
        self._children.append(await Child.start("server", "tokensession.cli.demo_servers"))
        for number in range(self._plan.processes):
            self._children.append(await Child.start(f"client {number + 1}", "tokensession.cli.load"))
        servers, *clients = self._children
        servers.tell(lifetime=self._plan.lifetime)
        told = await servers.hear()
        self._credentials: dict[str, dict[str, dict[str, Any]]] = told["credentials"]
        self._directory = Path(told["directory"])
        for child in clients:
            child.tell(**told, tasks=self._plan.tasks, pace=self._plan.pace)
        await asyncio.gather(*(child.hear() for child in clients))

    async def _load(self, load: str, seconds: float | None) -> float:
        """One load for so many seconds, or until the expiries are there. Returns how long it took."""
        servers, *clients = self._children
        hearing = [
            asyncio.ensure_future(self._hear_client(number, child)) for number, child in enumerate(clients)
        ]
        counters = asyncio.ensure_future(self._hear_servers())
        self._listeners = [*hearing, counters]
        for child in clients:
            child.tell(do="run", load=load)
        lasted = await self._watch(load, seconds)
        for child in clients:
            child.tell(do="stop")
        await self._or_failure(asyncio.gather(*hearing))
        servers.tell(do="now")
        await self._or_failure(counters)
        return lasted

    async def _watch(self, load: str, seconds: float | None) -> float:
        began = time.monotonic()
        last = self._plan.longest if seconds is None else seconds
        while (passed := time.monotonic() - began) < last:
            if seconds is None and self._board.expiries(load) >= self._plan.expiries:
                last, seconds = passed + _AFTER, passed
            self._display.update(load, passed, self._board.rows())
            await self._or_failure(asyncio.sleep(_LOOK))
        return passed

    async def _or_failure(self, work: Awaitable[Any]) -> None:
        """Wait for `work`, or raise what a listener has to say if that comes first."""
        task = asyncio.ensure_future(work)
        waiting: Iterable[asyncio.Future[Any]] = {task, *self._listeners}
        try:
            while not task.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    one.result()
        finally:
            task.cancel()

    async def _hear_client(self, number: int, child: Child) -> None:
        final = False
        while not final:
            message = await child.hear()
            self._board.tallies[message["load"], number] = message["tally"]
            final = message["final"]

    async def _hear_servers(self) -> None:
        final = False
        while not final:
            message = await self._children[0].hear()
            self._board.servers = message["counters"]
            final = message["final"]

    async def _sign_in_naively(self) -> None:
        """The first token of the naive load, from one place, as a person would get it."""
        async with aiohttp.ClientSession() as http:
            for name, credentials in self._credentials["naive"].items():
                await sign_in(provider_for(name, credentials), http, self._directory / f"naive-{name}.json")
