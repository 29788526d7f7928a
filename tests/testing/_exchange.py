"""Token requests over a real connection, as a provider builds them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import aiohttp

from tokensession.providers import Credential, TokenRequest, TokenResponse
from tokensession.testing import TokenServer

GUARD = 60.0  # seconds; an upper bound for a hang, never waited for


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """asyncio.run with a guard against hanging."""

    async def guarded() -> None:
        async with asyncio.timeout(GUARD):
            await main()

    asyncio.run(guarded())


def refresh(secret: str) -> Credential:
    return Credential("refresh_token", secret)


def code(secret: str) -> Credential:
    return Credential("authorization_code", secret)


class Client:
    """Sends what it is told to, once."""

    def __init__(self, server: TokenServer, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.http = http

    async def send(self, request: TokenRequest) -> TokenResponse:
        async with self.http.post(
            request.url, data=request.body, headers=request.headers, allow_redirects=False
        ) as response:
            headers = tuple((name.lower(), value) for name, value in response.headers.items())
            return TokenResponse(response.status, headers, await response.read())

    async def altered(self, request: TokenRequest, **changes: Any) -> TokenResponse:
        """The request with headers, body or url replaced."""
        return await self.send(replace(request, **changes))

    async def redeem(self, provider: Any, credential: Credential) -> dict[str, Any]:
        """The document of the reply, with its status as "status"."""
        answer = await self.send(provider.request(credential))
        return json.loads(answer.body) | {"status": answer.status}

    async def api(self, path: str, token: str, **options: Any) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        url = self.server.base_url + path
        async with self.http.get(url, headers=headers, **options) as response:
            await response.read()
            return response.status


@contextlib.asynccontextmanager
async def talking_to(server: TokenServer) -> AsyncIterator[Client]:
    async with server, aiohttp.ClientSession() as http:
        yield Client(server, http)
