"""Token requests over a real connection, as a provider builds them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import anyio

from tokensession.providers import Credential, TokenRequest, TokenResponse
from tokensession.testing import TokenServer

TIMEOUT = 60.0  # seconds; only a test that hangs takes that long


def run(main: Callable[[], Awaitable[None]]) -> None:
    """`anyio.run`, with a timeout."""

    async def bounded() -> None:
        with anyio.fail_after(TIMEOUT):
            await main()

    anyio.run(bounded)


def refresh(secret: str) -> Credential:
    return Credential("refresh_token", secret)


def code(secret: str) -> Credential:
    return Credential("authorization_code", secret)


class Client:
    """Sends requests to one server. Repeats nothing and follows no redirect."""

    def __init__(self, server: TokenServer, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.http = http

    async def send(self, request: TokenRequest) -> TokenResponse:
        async with self.http.post(
            request.url, data=request.body, headers=request.headers, allow_redirects=False
        ) as response:
            headers = tuple((name.lower(), value) for name, value in response.headers.items())
            return TokenResponse(response.status, headers, await response.read())

    async def redeem(self, provider: Any, credential: Credential) -> dict[str, Any]:
        """The response's JSON document, with its status as "status"."""
        response = await self.send(provider.request(credential))
        return json.loads(response.body) | {"status": response.status}

    async def api(self, path: str, token: str) -> int:
        """The status of an API request."""
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.get(self.server.base_url + path, headers=headers) as response:
            await response.read()
            return response.status


@contextlib.asynccontextmanager
async def connected(server: TokenServer) -> AsyncIterator[Client]:
    """Start the server, and connect a client."""
    async with server, aiohttp.ClientSession() as http:
        yield Client(server, http)
