"""Contestants that use httpx or its successor httpx2. Most of their time is spent in that transport.

Both open 100 connections at most, as aiohttp does, and hold 20 of them open. Holding all 100 open costs them
more than it saves, so that default is not changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from .base import TIMEOUT, Peer, redeem

__all__ = ["Authlib", "HttpxAuth", "Mcp", "SingleflightAuth"]

_LONG_AGO = 1  # seconds since 1970


class Authlib(Peer):
    """Authlib: AsyncOAuth2Client with `token_endpoint`, so that it refreshes by itself, and `update_token`.

    The token expires by its `expires_at`, 60 seconds early. It does not look at a 401.
    """

    name = "authlib"
    transport = "httpx2"
    needs = ("authlib", "httpx2")

    async def open(self, stack: AsyncExitStack) -> None:
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        self._saved: dict[str, Any] = {}
        self._client = await stack.enter_async_context(
            AsyncOAuth2Client(
                client_id=self.credentials["client_id"],
                client_secret=self.credentials["client_secret"],
                token_endpoint_auth_method="client_secret_post",
                token_endpoint=self.credentials["token_url"],
                token={
                    "access_token": "none yet",
                    "token_type": "Bearer",
                    "expires_at": _LONG_AGO,
                    "refresh_token": self.credentials["refresh_token"],
                },
                update_token=self._save,
                leeway=60 if self.margin is None else self.margin,
                timeout=TIMEOUT,
            )
        )

    async def _save(self, token: dict[str, Any], **_: Any) -> None:
        """Where a program would store it."""
        self._saved = dict(token)

    async def prime(self) -> None:
        await self._client.ensure_active_token(self._client.token)

    async def get(self, path: str) -> int:
        status: int = (await self._client.get(self.url(path))).status_code
        return status

    def expire(self) -> None:
        self._client.token["expires_at"] = _LONG_AGO

    def holds(self) -> str | None:
        token: str | None = self._client.token.get("refresh_token")
        return token


class SingleflightAuth(Peer):
    """singleflight-auth: AsyncSingleFlightAuth with our own functions to get and to refresh the token.

    It knows no expiry: it refreshes on a 401. So every caller's first request with an expired token gets a
    401, by design, and that is part of its time.
    """

    name = "singleflight-auth"
    transport = "httpx"
    needs = ("singleflight-auth", "httpx")

    async def open(self, stack: AsyncExitStack) -> None:
        import httpx
        from singleflight_auth import AsyncSingleFlightAuth

        self._access_token = "none yet"
        self._refresh_token: str | None = self.credentials["refresh_token"]
        auth = AsyncSingleFlightAuth(get_token=lambda: self._access_token, refresh=self._refresh)
        # A separate client for the refresh, as its documentation demands. Made once: that takes 20 ms.
        self._tokens = await stack.enter_async_context(httpx.AsyncClient(timeout=TIMEOUT))
        self._client = await stack.enter_async_context(httpx.AsyncClient(auth=auth, timeout=TIMEOUT))

    async def _refresh(self) -> str:
        response = await self._tokens.post(self.credentials["token_url"], data=self.form(self._refresh_token))
        response.raise_for_status()
        token = response.json()
        self._access_token = token["access_token"]
        self._refresh_token = token.get("refresh_token", self._refresh_token)
        return self._access_token

    async def prime(self) -> None:
        await self._refresh()

    async def get(self, path: str) -> int:
        status: int = (await self._client.get(self.url(path))).status_code
        return status

    def expire(self) -> None:
        self._access_token = "expired"

    def holds(self) -> str | None:
        return self._refresh_token


class Mcp(Peer):
    """mcp: OAuthClientProvider as the `auth` of a client, with tokens of an earlier run in its storage.

    The token expires by the provider's `token_expiry_time`. It holds its lock during the API request, so its
    requests run one after another.
    """

    name = "mcp"
    transport = "httpx2"
    needs = ("mcp", "httpx2")
    cannot: ClassVar[Mapping[str, str]] = {
        "revoked": "on a 401 it signs in again, with a person at a browser; it does not refresh"
    }

    async def open(self, stack: AsyncExitStack) -> None:
        import httpx2
        from mcp.client.auth import OAuthClientProvider
        from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata

        logging.getLogger("mcp").setLevel(logging.CRITICAL)  # it logs a traceback for each failure
        described = {"redirect_uris": ["http://127.0.0.1/callback"], "client_name": "benchmark"}
        method = {"token_endpoint_auth_method": "client_secret_post"}
        self._storage = _Storage(
            OAuthClientInformationFull(
                client_id=self.credentials["client_id"],
                client_secret=self.credentials["client_secret"],
                **described,
                **method,
            )
        )
        self._auth = OAuthClientProvider(
            # Its token endpoint is /token at this origin, as ours is.
            server_url=self.credentials["token_url"].removesuffix("/token"),
            client_metadata=OAuthClientMetadata(**described, **method),
            storage=self._storage,
        )
        self._client = await stack.enter_async_context(httpx2.AsyncClient(auth=self._auth, timeout=TIMEOUT))

    async def prime(self) -> None:
        from mcp.shared.auth import OAuthToken

        await self._storage.set_tokens(OAuthToken(**await redeem(self, self.credentials["refresh_token"])))
        await self.get("/ping")  # it reads its storage at the first request

    async def get(self, path: str) -> int:
        status: int = (await self._client.get(self.url(path))).status_code
        return status

    def expire(self) -> None:
        self._auth.context.token_expiry_time = _LONG_AGO

    def holds(self) -> str | None:
        tokens = self._auth.context.current_tokens
        return tokens.refresh_token if tokens else None


class _Storage:
    """mcp's TokenStorage, in memory."""

    def __init__(self, client_info: Any) -> None:
        self._client_info = client_info
        self._tokens: Any = None

    async def get_tokens(self) -> Any:
        return self._tokens

    async def set_tokens(self, tokens: Any) -> None:
        self._tokens = tokens

    async def get_client_info(self) -> Any:
        return self._client_info

    async def set_client_info(self, client_info: Any) -> None:
        self._client_info = client_info


class HttpxAuth(Peer):
    """httpx-auth: the password grant, with a token of an earlier run in its cache.

    That grant refreshes without a browser, and no password is needed here. Its token request is synchronous
    and blocks the event loop. The token expires by the cache's expiry, 30 seconds early. It does not look at
    a 401.
    """

    name = "httpx-auth"
    transport = "httpx"
    needs = ("httpx-auth", "httpx")
    cannot: ClassVar[Mapping[str, str]] = {
        "cancelled": "its token request blocks the event loop, so no task can be cancelled or wait",
    }

    async def open(self, stack: AsyncExitStack) -> None:
        import httpx
        from httpx_auth import OAuth2, OAuth2ResourceOwnerPasswordCredentials

        self._cache = OAuth2.token_cache
        tokens = stack.enter_context(httpx.Client(timeout=TIMEOUT))
        self._auth = OAuth2ResourceOwnerPasswordCredentials(
            self.credentials["token_url"],
            username="unused",
            password="unused",
            client=tokens,
            early_expiry=self.margin,
            client_id=self.credentials["client_id"],
            client_secret=self.credentials["client_secret"],
        )
        stack.callback(self._cache.tokens.pop, self._auth.state, None)
        self._client = await stack.enter_async_context(httpx.AsyncClient(auth=self._auth, timeout=TIMEOUT))

    async def prime(self) -> None:
        token = await redeem(self, self.credentials["refresh_token"])
        expiry = time.time() + token["expires_in"]
        self._cache_token(token["access_token"], expiry, token.get("refresh_token"))

    def _cache_token(self, access_token: str, expiry: float, refresh_token: str | None) -> None:
        self._cache.tokens[self._auth.state] = (access_token, expiry, refresh_token)

    async def get(self, path: str) -> int:
        status: int = (await self._client.get(self.url(path))).status_code
        return status

    def expire(self) -> None:
        cached = self._cache.tokens.get(self._auth.state)
        if cached is not None:
            self._cache_token(cached[0], _LONG_AGO, cached[2])

    def holds(self) -> str | None:
        cached = self._cache.tokens.get(self._auth.state)
        return None if cached is None else cached[2]
