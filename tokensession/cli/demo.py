"""`tokensession demo`: one token request per expiry, measured, next to a baseline without tokensession.

The servers run in one child process, the clients in several. This process starts, stops and displays them.
Both loads come from the same client processes, one after the other, each against servers of its own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import aiohttp
from anyio import CancelScope, create_task_group, sleep

from .baseline import provider_for, sign_in
from .child_process import Child
from .display import Display
from .report import Plan, Progress, Report

__all__ = ["run"]

_UPDATE_INTERVAL = 0.1  # seconds
_AFTER_LAST_EXPIRY = 0.4  # seconds for which the load goes on, so that the last token is used too


async def run(plan: Plan, display: Display) -> Report:
    """Run both loads. If it fails or is cancelled, it leaves no process and no file behind.

    Raises `ChildFailed`, in an exception group, if one of its processes ends early.
    """
    demo = _Demo(plan, display)
    display.begin(plan)
    report: Report | None = None
    try:
        report = await demo.run()
        return report
    finally:
        display.end(report)
        with CancelScope(shield=True):
            await demo.stop()


class _Demo:
    def __init__(self, plan: Plan, display: Display) -> None:
        self._plan = plan
        self._display = display
        self._progress = Progress()
        self._children: list[Child] = []  # the servers first

    async def run(self) -> Report:
        started = time.monotonic()
        await self._start()
        load_seconds = {"shared": await self._load("shared", None)}
        await self._sign_in_baseline()
        at_most = min(self._plan.baseline_seconds, load_seconds["shared"])
        load_seconds["baseline"] = await self._load("baseline", at_most)
        return Report(self._plan, self._progress.rows(), load_seconds, time.monotonic() - started)

    async def stop(self) -> None:
        """Stop the clients first: the servers' process removes the directory when it exits."""
        for children in (self._children[1:], self._children[:1]):
            async with create_task_group() as stopping:
                for child in children:
                    stopping.start_soon(child.stop)

    async def _start(self) -> None:
        self._children.append(await Child.start("server", "tokensession.cli.demo_servers"))
        for number in range(self._plan.processes):
            self._children.append(await Child.start(f"client {number + 1}", "tokensession.cli.load"))
        servers, *clients = self._children
        await servers.tell(lifetime=self._plan.lifetime)
        settings = await servers.hear()
        self._credentials: dict[str, dict[str, dict[str, Any]]] = settings["credentials"]
        self._directory = Path(settings["directory"])
        for child in clients:
            await child.tell(**settings, tasks=self._plan.tasks, pause=self._plan.pause)
        for child in clients:
            await child.hear()  # it is ready

    async def _load(self, load: str, seconds: float | None) -> float:
        """Run a load for `seconds`, or until there were enough expiries. Returns how long it took."""
        servers, *clients = self._children
        async with create_task_group() as server_reports:
            server_reports.start_soon(self._hear_servers)
            async with create_task_group() as client_reports:
                for number, child in enumerate(clients):
                    client_reports.start_soon(self._hear_client, number, child)
                    await child.tell(do="run", load=load)
                took = await self._watch(load, seconds)
                for child in clients:
                    await child.tell(do="stop")
            await servers.tell(do="report")
        return took

    async def _watch(self, load: str, seconds: float | None) -> float:
        began = time.monotonic()
        end = self._plan.longest if seconds is None else seconds
        enough = seconds is not None
        while (passed := time.monotonic() - began) < end:
            if not enough and self._progress.expiries(load) >= self._plan.expiries:
                enough, end = True, passed + _AFTER_LAST_EXPIRY
            self._display.update(load, passed, self._progress.rows())
            await sleep(_UPDATE_INTERVAL)
        return passed

    async def _hear_client(self, number: int, child: Child) -> None:
        final = False
        while not final:
            message = await child.hear()
            self._progress.tallies[message["load"], number] = message["tally"]
            final = message["final"]

    async def _hear_servers(self) -> None:
        final = False
        while not final:
            message = await self._children[0].hear()
            self._progress.servers = message["counters"]
            final = message["final"]

    async def _sign_in_baseline(self) -> None:
        """Get the first token of the baseline in one place, as a person would."""
        async with aiohttp.ClientSession() as http:
            for name, credentials in self._credentials["baseline"].items():
                await sign_in(
                    provider_for(name, credentials), http, self._directory / f"baseline-{name}.json"
                )
