"""Tests that are coroutines."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")


def in_event_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run this test by `asyncio.run`, with a time limit that only a test that hangs needs."""

    async def bounded(*arguments: P.args, **named: P.kwargs) -> None:
        async with asyncio.timeout(120):
            await test(*arguments, **named)

    @functools.wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        asyncio.run(bounded(*arguments, **named))

    return run
