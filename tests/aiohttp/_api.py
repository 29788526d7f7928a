"""APIs on loopback whose answers a test writes itself, and a source of numbered tokens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from tokensession import Token

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Expect = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scene()

    asyncio.run(bounded())


class Numbered:
    """A source whose tokens are `token-0`, `token-1`, … A refresh makes the next one."""

    def __init__(self) -> None:
        self.number = 0
        self.refreshes = 0

    async def token(self) -> Token:
        return Token(f"token-{self.number}", obtained_at=0.0)

    async def refresh(self, unauthorized: Token | None = None) -> Token:
        for _ in range(5):  # as a token request takes its time
            await asyncio.sleep(0)
        self.refreshes += 1
        self.number += 1
        return await self.token()


def has_token(request: web.Request, number: int) -> bool:
    """Whether this request carries the token of this number."""
    return request.headers.get("Authorization") == f"Bearer token-{number}"


@contextlib.asynccontextmanager
async def api(handle: Handler, *, expect: Expect | None = None) -> AsyncIterator[str]:
    """An API that answers every request with `handle`. Yields its base URL."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return await handle(request)

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", answer, expect_handler=expect)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
