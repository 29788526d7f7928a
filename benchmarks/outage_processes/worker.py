"""One process of the experiment: `python -m benchmarks.outage_processes.worker`.

It gets a token, which expires. Told to begin, its callers ask for one again and again until each has one, and
it reports when that was. A caller gives up if a person must sign in, or when its time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

from tokensession import ManagedSource, Policy, SignInRequired, TokenSessionError
from tokensession.cli.child_process import messages, say
from tokensession.providers import OAuth2

CALLERS = 5
_PAUSE = 0.1  # seconds between two calls of one caller


@dataclass(slots=True)
class _Callers:
    """What happened to the callers of this process."""

    source: ManagedSource
    failed: int = 0
    lost: bool = False  # a person would have to sign in

    async def run(self, limit: float) -> float | None:
        """When the last of them had a token, or None if one has none after this many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await asyncio.gather(*(self._ask() for _ in range(CALLERS)))
                return None if self.lost else time.monotonic()
        return None

    async def _ask(self) -> None:
        while not self.lost:
            try:
                await self.source.token()
                return
            except SignInRequired:
                self.failed += 1
                self.lost = True
            except TokenSessionError:
                self.failed += 1
                await asyncio.sleep(_PAUSE)


async def _work() -> None:
    orders = messages()
    setup = await anext(orders)
    provider, policy = OAuth2(**setup["credentials"]), Policy(**setup["policy"])
    async with ManagedSource(provider, store=setup["store"], policy=policy) as source:
        await source.token()
        say()
        order = await anext(orders)
        callers = _Callers(source)
        served = await callers.run(order["limit"])
        say(served=served, failed=callers.failed, lost=callers.lost)
        await anext(orders, None)  # until the experiment is over


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, StopAsyncIteration, KeyboardInterrupt):
        asyncio.run(_work())
