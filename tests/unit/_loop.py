"""Runs an async test, and lets tasks run."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run it, with an upper bound in case it hangs."""

    async def guarded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(guarded())


async def iterations(count: int = 20) -> None:
    """Let every task that can run take this many steps."""
    for _ in range(count):
        await asyncio.sleep(0)
