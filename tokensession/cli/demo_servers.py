"""The demo's servers, in their own process: `python -m tokensession.cli.demo_servers`.

There are two of each provider, one for each load, so that their counters are separate. This process also
owns the directory that the clients share, because it exits last, whatever happens to the parent.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

import anyio

from ..testing.servers import OtoServer, PriavaServer, TokenServer
from .child_process import messages, say
from .report import LOADS

__all__ = ["main"]

_REPORT_INTERVAL = 0.1  # seconds
_TRIES = 25  # to remove the directory, while a client that is ending may still write to it

Servers: TypeAlias = dict[str, dict[str, TokenServer]]
"""By load, then by provider."""


def main() -> None:
    """Serve until the parent closes the pipe or ends, then remove the directory."""
    directory = Path(tempfile.mkdtemp(prefix="tokensession-demo-"))  # mode 0700
    try:
        anyio.run(_serve, directory)
    except* (BrokenPipeError, StopAsyncIteration):  # the parent has ended
        pass
    finally:
        _remove(directory)


async def _serve(directory: Path) -> None:
    orders = messages()
    lifetime = (await anext(orders))["lifetime"]
    async with contextlib.AsyncExitStack() as stack:
        servers: Servers = {}
        for load in LOADS:
            servers[load] = {"oto": OtoServer(lifetime=lifetime), "priava": PriavaServer(lifetime=lifetime)}
            for server in servers[load].values():
                await stack.enter_async_context(server)
        credentials = {
            load: {name: server.credentials for name, server in pair.items()}
            for load, pair in servers.items()
        }
        say(directory=str(directory), credentials=credentials)
        async with anyio.create_task_group() as reporting:
            reporting.start_soon(_report, servers)
            async for _ in orders:  # the one order is "report": all clients have stopped
                _say_counters(servers, final=True)
            reporting.cancel_scope.cancel()


async def _report(servers: Servers) -> None:
    while True:
        _say_counters(servers, final=False)
        await anyio.sleep(_REPORT_INTERVAL)


def _say_counters(servers: Servers, *, final: bool) -> None:
    counters = {
        load: {name: asdict(server.stats) for name, server in pair.items()} for load, pair in servers.items()
    }
    say(counters=counters, final=final)


def _remove(directory: Path) -> None:
    for _ in range(_TRIES):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
