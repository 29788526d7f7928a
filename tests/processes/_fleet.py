"""Real processes that share a store. The test decides what each of them does, and when.

They are forked from one that has imported everything, so that sixty-four of them cost little.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tokensession.testing.conformance.peer import ForkServer, fork_server


class Worker:
    """One process. `await worker.ask("token", 10)` returns the distinct answers that its ten tasks got.

    `_worker.py` lists the stages for `stop`, `watch`, `at` and `go`.
    """

    def __init__(self, server: ForkServer, pid: int, connection: socket.socket) -> None:
        self._server = server
        self._pid = pid
        self._connection = connection
        self._alive = True

    async def connect(self) -> None:
        self._lines, self._writer = await asyncio.open_connection(sock=self._connection)

    async def _send(self, **order: Any) -> None:
        self._writer.write(json.dumps(order).encode() + b"\n")
        await self._writer.drain()

    async def read(self) -> Any:
        return json.loads(await self._lines.readline())

    async def begin(self, order: str, count: int = 1, **arguments: str) -> None:
        """Begin an order. `answer` waits for its end."""
        await self._send(do=order, count=count, **arguments)

    async def answer(self) -> list[str]:
        answers: list[str] = await self.read()
        assert isinstance(answers, list), f"an answer was expected, not {answers}"
        return answers

    async def ask(self, order: str, count: int = 1, **arguments: str) -> list[str]:
        await self.begin(order, count, **arguments)
        return await self.answer()

    async def served_after(self, refusal: str, count: int = 1) -> None:
        """Make requests until it has a token. It looks again after up to a second of the same refusal."""
        while (answers := await self.ask("get", count)) != ["200"]:
            assert set(answers) <= {refusal, "200"}, answers

    async def stop(self, stage: str) -> None:
        """Make it stop at this stage, once, until `go`."""
        await self._send(do="stop", at=stage)

    async def watch(self, stage: str) -> None:
        """Make it report when it reaches this stage, once."""
        await self._send(do="watch", at=stage)

    async def at(self, stage: str) -> None:
        """Wait until it has reached this stage."""
        assert await self.read() == {"at": stage}

    async def go(self, stage: str) -> None:
        await self._send(do="go", at=stage)

    async def begin_and_wait(self, order: str, count: int = 1) -> None:
        """Begin an order, and return when the process waits for another holder's claim."""
        await self.watch("waiting")
        await self.begin(order, count)
        await self.at("waiting")

    def kill(self) -> None:
        """Send SIGKILL. The process has ended when this returns."""
        if self._alive:
            self._alive = False
            self._server.signal("kill", self._pid)

    def pause(self) -> None:
        """Send SIGSTOP. The process is stopped when this returns."""
        self._server.signal("stop", self._pid)

    def resume(self) -> None:
        """Send SIGCONT."""
        self._server.signal("resume", self._pid)

    def end(self) -> None:
        self.kill()
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def fleet(size: int, provider: dict[str, Any], store: str) -> AsyncIterator[list[Worker]]:
    """So many processes, started and ready. All of them end with the context."""
    server = fork_server(str(Path(__file__).with_name("_worker.py")))
    with contextlib.ExitStack() as stack:
        workers = []
        for _ in range(size):
            ours, theirs = socket.socketpair()
            with theirs:
                worker = Worker(server, server.start({"provider": provider, "store": store}, theirs), ours)
            await worker.connect()
            stack.callback(worker.end)
            workers.append(worker)
        for worker in workers:
            assert await worker.read() == "ready"
        yield workers


async def ready(*workers: Worker) -> None:
    """Each of them has a token."""
    for worker in workers:
        assert await worker.ask("get") == ["200"]
