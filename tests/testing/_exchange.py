"""Token requests over a real connection, as a provider builds them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tokensession.providers import Credential, OAuth2, Oto, Priava, TokenRequest, TokenResponse
from tokensession.testing import OAuth2Server, OtoServer, PriavaServer, TokenServer

PROVIDERS = {OtoServer: Oto, PriavaServer: Priava, OAuth2Server: OAuth2}


def refresh(secret: str) -> Credential:
    return Credential("refresh_token", secret)


def code(secret: str) -> Credential:
    return Credential("authorization_code", secret)


class Client:
    """Sends requests to one server. Repeats nothing and follows no redirect.

    Its provider and its credential are the server's, unless a test says otherwise.
    """

    def __init__(self, server: Any, http: aiohttp.ClientSession, **changed: Any) -> None:
        self.server = server
        self.http = http
        self.provider: Any = PROVIDERS[type(server)](**server.credentials | changed)
        self.credential: Credential = self.provider.credential

    def request(self, credential: Credential | None = None) -> TokenRequest:
        return self.provider.request(credential or self.credential)

    async def send(self, request: TokenRequest | None = None) -> TokenResponse:
        request = request or self.request()
        async with self.http.post(
            request.url, data=request.body, headers=request.headers, allow_redirects=False
        ) as response:
            headers = tuple((name.lower(), value) for name, value in response.headers.items())
            return TokenResponse(response.status, headers, await response.read())

    async def redeem(self, credential: Credential | None = None) -> dict[str, Any]:
        """The response's JSON document, with its status as "status"."""
        response = await self.send(self.request(credential))
        return json.loads(response.body) | {"status": response.status}

    async def token(self) -> str:
        return str((await self.redeem())["access_token"])

    def get(
        self, path: str, token: str = ""
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """An API request, with this token if there is one."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self.http.get(self.server.base_url + path, headers=headers, allow_redirects=False)

    async def api(self, path: str, token: str = "") -> int:
        """The status of an API request."""
        async with self.get(path, token) as response:
            await response.read()
            return response.status


@contextlib.asynccontextmanager
async def connected(server: TokenServer, **changed: Any) -> AsyncIterator[Client]:
    """Start the server, and connect a client. `changed` are arguments of its provider."""
    async with server, aiohttp.ClientSession() as http:
        yield Client(server, http, **changed)
