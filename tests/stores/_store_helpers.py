"""Helpers for tests of the file store and the SQLite store."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

from tokensession import ManagedSource
from tokensession.clock import Clock
from tokensession.providers import OAuth2
from tokensession.stores import FileStore, SQLiteStore, Store
from tokensession.stores._local.worker import Worker
from tokensession.testing import ScriptedTransport, token_response
from tokensession.testing.conformance.backend import ticks

Local = FileStore | SQLiteStore


class Loop:
    """The event loop of the running test. `conftest.py` closes it."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()

    def __call__(self, work: Awaitable[Any]) -> Any:
        """Run this to its end, after what was run before it."""

        async def limited() -> Any:
            async with asyncio.timeout(60):
                return await work

        return self.runner.run(limited())

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task. It goes on whenever something runs."""
        return self.runner.get_loop().create_task(work)


run = Loop()


def printed(program: str, *arguments: object) -> str:
    """What a program prints in a process of its own. It must end without an error or a warning."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def failing(number: int) -> Callable[..., NoReturn]:
    """A system call that fails with this error number."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


def sql(path: Path, statement: str, *values: object) -> list[Any]:
    """What this statement of another program returns."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement, values).fetchall()


def private(path: Path, script: str) -> bytes:
    """Make a private database of another program. Returns its bytes."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    path.chmod(0o600)
    return path.read_bytes()


def gated(worker: Worker) -> threading.Event:
    """Keep the worker busy until the returned event is set."""
    gate, begun = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        assert gate.wait(30)

    worker.post(job)
    assert begun.wait(30)
    return gate


def success(number: int) -> Any:
    """The response with the tokens `access-N` and `refresh-N`."""
    return token_response(
        {"access_token": f"access-{number}", "refresh_token": f"refresh-{number}", "expires_in": 3600}
    )


def source(store: Store, transport: ScriptedTransport, clock: Clock | None = None) -> ManagedSource:
    """A source with rotating refresh tokens, over this store, under the key "k"."""
    provider = OAuth2(
        token_url="https://id.example.com/token",
        client_id="client",
        client_secret="client-secret",
        refresh_token="configured",
        rotates=True,
    )
    return ManagedSource(provider, transport, store=store, key="k", clock=clock)


async def cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel these tasks, which have begun, and wait for their ends."""
    await ticks()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


async def descriptors(store: Local) -> int:
    """The number of open descriptors of this process while the store's thread does nothing else."""
    return await store._worker.run(lambda: len(list(Path("/proc/self/fd").iterdir())))
