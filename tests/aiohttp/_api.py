"""APIs on loopback whose answers a test writes itself, a source of numbered tokens, and clients of both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
from aiohttp import web

from tokensession import AuthedSession, BearerAuth, Token
from tokensession.providers import ClientAuth, OAuth2, Oto, Priava
from tokensession.testing import OAuth2Server, OtoServer, PriavaServer, ScriptedTransport, token_response

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Expect = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
Answer = AbstractAsyncContextManager[aiohttp.ClientResponse]


async def rounds(count: int = 50) -> None:
    """Let the event loop go round this often."""
    for _ in range(count):
        await asyncio.sleep(0)


async def status(answer: Answer) -> int:
    async with answer as response:
        return response.status


async def echo(answer: Answer) -> dict[str, Any]:
    """The JSON of a response that must be a 200."""
    async with answer as response:
        assert response.status == 200
        return dict(await response.json())


class Numbered:
    """A source whose tokens are `token-0`, `token-1`, … A refresh makes the next one."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.refreshes = 0

    async def token(self) -> Token:
        return Token(f"token-{self.number}", obtained_at=0.0)

    async def refresh(self, unauthorized: Token | None = None) -> Token:
        await rounds(5)  # as a token request takes its time
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


def client_of(base: str, source: Any = None, **options: Any) -> aiohttp.ClientSession:
    """A client of this API whose middleware has a numbered token, or another source."""
    bearer = BearerAuth(source or Numbered(), origins=[base])
    return aiohttp.ClientSession(base, middlewares=(bearer,), **options)


@contextlib.asynccontextmanager
async def calling(
    handle: Handler, source: Any = None, *, expect: Expect | None = None, **options: Any
) -> AsyncIterator[aiohttp.ClientSession]:
    """An API that answers with `handle`, and a client of it."""
    async with api(handle, expect=expect) as base, client_of(base, source, **options) as client:
        yield client


PROVIDERS: dict[type, Any] = {OtoServer: Oto, PriavaServer: Priava, OAuth2Server: OAuth2}


def session_of(server: OtoServer | PriavaServer | OAuth2Server, **options: Any) -> AuthedSession:
    return AuthedSession(PROVIDERS[type(server)](**server.credentials), **options)


def scripted_session(base: str, *tokens: str, **options: Any) -> AuthedSession:
    """A session of this API that gets these tokens, one after the other."""
    known = {"token_url": f"{base}/token", "client_id": "c", "refresh_token": "r", "auth": ClientAuth.none()}
    answers = (token_response({"access_token": token, "expires_in": 3600}) for token in tokens)
    return AuthedSession(
        OAuth2(**known, base_url=base),  # type: ignore[arg-type]
        store="memory:",
        transport=ScriptedTransport(*answers),
        **options,
    )


async def open_websocket(request: web.Request) -> web.WebSocketResponse:
    """Answer with a websocket that is closed at once."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    await socket.close()
    return socket
