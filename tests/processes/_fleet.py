"""Real processes that share a store, each on a leash: what it is told, and when, is the test's choice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("_worker.py")


class Worker:
    """One process. `await worker.ask("token")` gives the set of answers its tasks got."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def tell(self, order: str, count: int = 1) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order} {count}\n".encode())
        await self.process.stdin.drain()

    async def answer(self) -> list[str]:
        assert self.process.stdout is not None
        answers: list[str] = json.loads(await self.process.stdout.readline())
        return answers

    async def ask(self, order: str, count: int = 1) -> list[str]:
        await self.tell(order, count)
        return await self.answer()

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@contextlib.asynccontextmanager
async def fleet(size: int, provider: dict[str, Any], store: str) -> AsyncIterator[list[Worker]]:
    """So many processes, started and ready. Whatever happens, none is left behind."""
    workers: list[Worker] = []
    setup = json.dumps({"provider": provider, "store": store}) + "\n"
    try:
        for _ in range(size):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(PROGRAM),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            workers.append(Worker(process))
            assert process.stdin is not None
            process.stdin.write(setup.encode())
        for worker in workers:
            assert worker.process.stdout is not None
            assert await worker.process.stdout.readline() == b"ready\n"
        yield workers
    finally:
        for worker in workers:
            if worker.process.returncode is None:
                worker.process.kill()
            await worker.process.wait()
