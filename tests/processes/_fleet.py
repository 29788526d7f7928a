"""Real processes that share a store, each on a leash: what it is told, and when, is the test's choice.

They are forked from one that has imported everything, so that sixty-four of them cost little.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from tokensession.testing.conformance.peer import Nursery, nursery

PROGRAM = str(Path(__file__).with_name("_worker.py"))


class Worker:
    """One process. `await worker.ask("token")` gives the set of answers its tasks got.

    `stop`, `watch` and `at` take the stages of `worker`.
    """

    def __init__(self, home: Nursery, pid: int, connection: socket.socket) -> None:
        self._home = home
        self._pid = pid
        self._connection = connection
        self._alive = True

    async def connect(self) -> None:
        self._lines, self._writer = await asyncio.open_connection(sock=self._connection)

    async def _send(self, **order: Any) -> None:
        self._writer.write(json.dumps(order).encode() + b"\n")
        await self._writer.drain()

    async def said(self) -> Any:
        return json.loads(await self._lines.readline())

    async def tell(self, order: str, count: int = 1, **arguments: str) -> None:
        """Begin; `answer` waits for the end."""
        await self._send(do=order, count=count, **arguments)

    async def answer(self) -> list[str]:
        answers: list[str] = await self.said()
        assert isinstance(answers, list), f"an answer was expected, not {answers}"
        return answers

    async def ask(self, order: str, count: int = 1, **arguments: str) -> list[str]:
        await self.tell(order, count, **arguments)
        return await self.answer()

    async def stop(self, stage: str) -> None:
        """It is to stop there, once, until `go`."""
        await self._send(do="stop", at=stage)

    async def watch(self, stage: str) -> None:
        """It is to say when it comes by, once."""
        await self._send(do="watch", at=stage)

    async def at(self, stage: str) -> None:
        """Wait until it is there."""
        assert await self.said() == {"at": stage}

    async def go(self, stage: str) -> None:
        await self._send(do="go", at=stage)

    async def tell_and_wait(self, order: str, count: int = 1) -> None:
        """Begin, and return when it waits for somebody else's claim."""
        await self.watch("waiting")
        await self.tell(order, count)
        await self.at("waiting")

    def kill(self) -> None:
        """SIGKILL; it has ended when this returns."""
        if self._alive:
            self._alive = False
            self._home.signal("kill", self._pid)

    def freeze(self) -> None:
        """SIGSTOP; it stands still when this returns."""
        self._home.signal("stop", self._pid)

    def thaw(self) -> None:
        """SIGCONT."""
        self._home.signal("resume", self._pid)

    def end(self) -> None:
        self.kill()
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def fleet(size: int, provider: dict[str, Any], store: str) -> AsyncIterator[list[Worker]]:
    """So many processes, started and ready. Whatever happens, none is left behind."""
    home = nursery(PROGRAM)
    with contextlib.ExitStack() as stack:
        workers = []
        for _ in range(size):
            ours, theirs = socket.socketpair()
            with theirs:
                worker = Worker(home, home.start({"provider": provider, "store": store}, theirs), ours)
            await worker.connect()
            stack.callback(worker.end)
            workers.append(worker)
        for worker in workers:
            assert await worker.said() == "ready"
        yield workers


def run(scene: Callable[[], Awaitable[None]]) -> None:
    """Run a scene, bounded in case it hangs."""

    async def bounded() -> None:
        async with asyncio.timeout(120):
            await scene()

    asyncio.run(bounded())


def url(scheme: str, where: Path) -> str:
    """An absolute store URL."""
    return f"file://{where}/tokens" if scheme == "file" else f"sqlite:///{where}/tokens.db"
