"""The demo's servers, in a process of their own: `python -m tokensession.cli.demo_servers`.

Two of each provider: one for the load through tokensession, one for the naive load, so that their
counters are apart. It also owns the directory that the loads share, because it is the last to leave,
whatever becomes of the parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from ..testing.servers import OtoServer, PriavaServer, TokenServer
from .child_process import messages, say
from .report import LOADS

__all__ = ["main"]

_EVERY = 0.1  # seconds between two reports
_TRIES = 25  # to remove the directory, while somebody who is about to die still writes into it

Servers = dict[str, dict[str, TokenServer]]


async def main() -> None:
    """Serve until the parent leaves."""
    directory = await asyncio.to_thread(tempfile.mkdtemp, prefix="tokensession-demo-")  # 0700
    try:
        orders = messages()
        lifetime = (await anext(orders))["lifetime"]
        async with contextlib.AsyncExitStack() as stack:
            servers: Servers = {}
            for load in LOADS:
                pair: dict[str, TokenServer] = {
                    "oto": OtoServer(lifetime=lifetime),
                    "priava": PriavaServer(lifetime=lifetime),
                }
                servers[load] = {
                    name: await stack.enter_async_context(server) for name, server in pair.items()
                }
            credentials = {load: _credentials(pair) for load, pair in servers.items()}
            say(directory=directory, credentials=credentials)
            reporter = asyncio.ensure_future(_report(servers))
            async for _ in orders:  # the parent's "now": what the counters say when all have stopped
                _say_counters(servers, final=True)
            reporter.cancel()
    finally:
        await _remove(Path(directory))


def _credentials(pair: dict[str, TokenServer]) -> dict[str, dict[str, object]]:
    return {name: server.credentials for name, server in pair.items()}


async def _report(servers: Servers) -> None:
    while True:
        _say_counters(servers, final=False)
        await asyncio.sleep(_EVERY)


def _say_counters(servers: Servers, *, final: bool) -> None:
    counters = {
        load: {name: asdict(server.stats) for name, server in pair.items()} for load, pair in servers.items()
    }
    say(counters=counters, final=final)


async def _remove(directory: Path) -> None:
    for _ in range(_TRIES):
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        if not await asyncio.to_thread(directory.exists):
            return
        await asyncio.sleep(_EVERY)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, StopAsyncIteration):
        asyncio.run(main())
