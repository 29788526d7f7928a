"""google-auth's asynchronous session, and gcloud-aio-auth."""

from __future__ import annotations

import io
import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp

from .base import Peer, redeem

__all__ = ["GcloudAio", "GoogleAuth"]


class GoogleAuth(Peer):
    """google-auth: its asynchronous session over its OAuth 2 credentials, which are synchronous.

    It has no public asynchronous credentials with a refresh token. The session runs these in threads, one
    refresh at a time. The token expires by the credentials' `expiry`, 225 seconds early.
    """

    name = "google-auth"
    transport = "aiohttp"
    needs = ("google-auth", "requests")

    async def open(self, stack: AsyncExitStack) -> None:
        from google.auth.aio.transport.sessions import AsyncAuthorizedSession
        from google.oauth2.credentials import Credentials

        self._credentials = Credentials(
            token=None,
            refresh_token=self.credentials["refresh_token"],
            token_uri=self.credentials["token_url"],
            client_id=self.credentials["client_id"],
            client_secret=self.credentials["client_secret"],
        )
        self._session = AsyncAuthorizedSession(self._credentials)
        stack.push_async_callback(self._session.close)

    async def prime(self) -> None:
        await self.get("/ping")  # the session has no other way to get a token

    async def get(self, path: str) -> int:
        response = await self._session.get(self.url(path))
        await response.read()
        return response.status_code

    def expire(self) -> None:
        self._credentials.expiry = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)

    def holds(self) -> str | None:
        token: str | None = self._credentials.refresh_token
        return token


class GcloudAio(Peer):
    """gcloud-aio-auth: its token, awaited before each request, as its documentation does.

    One task refreshes, and all callers await that task. It sends its configured refresh token each time, so
    with one that rotates its second refresh fails: here the newest is put into its configuration, by a token
    request written for this. It begins to refresh after half of a token's life, and at 95 % callers wait.
    """

    name = "gcloud-aio-auth"
    transport = "aiohttp"
    needs = ("gcloud-aio-auth",)

    async def open(self, stack: AsyncExitStack) -> None:
        from gcloud.aio.auth import Token
        from gcloud.aio.auth.token import TokenResponse

        peer = self

        class Rotating(Token):
            async def refresh(self, *, timeout: int) -> Any:
                answer = await redeem(peer, self.service_data["refresh_token"], peer._client)
                self.service_data["refresh_token"] = answer["refresh_token"]
                return TokenResponse(value=answer["access_token"], expires_in=answer["expires_in"])

        self._client = await stack.enter_async_context(aiohttp.ClientSession())
        names = ("client_id", "client_secret", "refresh_token")
        configured = {name: self.credentials[name] for name in names}
        document = {"type": "authorized_user", "token_uri": self.credentials["token_url"], **configured}
        self._token = Rotating(io.StringIO(json.dumps(document)), session=self._client)

    async def prime(self) -> None:
        await self._token.get()

    async def get(self, path: str) -> int:
        headers = {"Authorization": f"Bearer {await self._token.get()}"}
        async with self._client.get(self.url(path), headers=headers) as response:
            await response.read()
            return response.status

    def expire(self) -> None:
        self._token.access_token_refresh_after = 0

    def holds(self) -> str | None:
        token: str | None = self._token.service_data["refresh_token"]
        return token
