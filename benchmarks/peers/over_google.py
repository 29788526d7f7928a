"""google-auth's asynchronous session."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

from .base import Peer

__all__ = ["GoogleAuth"]


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
