"""Contestants that use aiohttp: this library, the limit, and others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import ClassVar

import aiohttp

from tokensession import AiohttpTransport, AuthedSession, ManagedSource, Policy
from tokensession.clock import SystemClock
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore

from .base import Peer, redeem

__all__ = ["AiohttpCookbook", "AiohttpOAuth2Client", "RawAiohttp", "Tokensession"]

_LONG_AGO = 1  # seconds since 1970


class _MovableClock:
    """The machine's clocks, which can be moved ahead. Reading them costs 0.1 us more."""

    boot_counts_sleep = SystemClock.boot_counts_sleep
    jitter = staticmethod(SystemClock.jitter)
    sleep = staticmethod(SystemClock.sleep)

    def __init__(self) -> None:
        self._ahead = 0.0

    def wall(self) -> float:
        return SystemClock.wall() + self._ahead

    def boot(self) -> float:
        return SystemClock.boot() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


class Tokensession(Peer):
    """This library: an AuthedSession over a store in memory. Its token expires by its clock.

    Callers get the error of a failed refresh at once, as with the others, and do not wait for the next try.
    """

    name = "tokensession"
    transport = "aiohttp"

    async def open(self, stack: AsyncExitStack) -> None:
        self._clock = _MovableClock()
        store = MemoryStore(clock=self._clock)
        stack.push_async_callback(store.aclose)
        margin = {} if self.margin is None else {"ending_lead": self.margin, "ending_fraction": 1.0}
        self._source = ManagedSource(
            OAuth2(**self.credentials),
            AiohttpTransport(),
            store=store,
            policy=Policy(retry_within=0, **margin),
            clock=self._clock,
        )
        stack.push_async_callback(self._source.aclose)
        self._session = await stack.enter_async_context(AuthedSession(self._source))

    async def prime(self) -> None:
        await self._source.token()

    async def get(self, path: str) -> int:
        async with self._session.get(path) as response:
            await response.read()
            return response.status

    def expire(self) -> None:
        self._clock.advance((self._source.snapshot().seconds_left or 0.0) + 1.0)

    def holds(self) -> str | None:
        token = self._source._cache.token  # the same as in the store, without awaiting
        return token.refresh_token if token else self.credentials["refresh_token"]


class RawAiohttp(Peer):
    """The limit: aiohttp with a fixed header. `prime` gets a token, and nothing refreshes it."""

    name = "raw aiohttp"
    transport = "aiohttp"
    cannot: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("cancelled", "revoked", "outage", "steady", "hot-path"),
        "a fixed header: there is nothing to refresh",
    )

    async def open(self, stack: AsyncExitStack) -> None:
        self._client = await stack.enter_async_context(aiohttp.ClientSession())
        self._tokens = await stack.enter_async_context(aiohttp.ClientSession())  # without the token
        self._refresh_token: str | None = self.credentials["refresh_token"]

    async def prime(self) -> None:
        token = await redeem(self, self._refresh_token, self._tokens)
        self._client.headers["Authorization"] = f"Bearer {token['access_token']}"
        self._refresh_token = token.get("refresh_token", self._refresh_token)

    async def get(self, path: str) -> int:
        async with self._client.get(self.url(path)) as response:
            await response.read()
            return response.status

    def expire(self) -> None:
        """Do nothing: it checks no expiry."""

    def holds(self) -> str | None:
        return self._refresh_token


class _Refreshing:
    """A middleware as aiohttp's cookbook describes it for tokens.

    It has both of its forms: by the clock before a request, and by a 401 after it. It takes a lock, and then
    checks whether the token is still the same. A new refresh token replaces the old one.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._lock = asyncio.Lock()
        self.access_token = ""
        self.refresh_token: str | None = peer.credentials["refresh_token"]
        self.expires_at = 0.0
        self._margin = 30.0 if peer.margin is None else peer.margin

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        if time.time() >= self.expires_at:
            await self.refresh(request.session, self.access_token)
        response = await self._send(request, handler, used := self.access_token)
        if response.status == 401:
            response.release()
            await self.refresh(request.session, used)
            response = await self._send(request, handler, self.access_token)
        return response

    async def _send(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType, token: str
    ) -> aiohttp.ClientResponse:
        request.headers[aiohttp.hdrs.AUTHORIZATION] = f"Bearer {token}"
        return await handler(request)

    async def refresh(self, client: aiohttp.ClientSession, used: str) -> None:
        async with self._lock:
            if self.access_token != used:
                return
            form, url = self._peer.form(self.refresh_token), self._peer.credentials["token_url"]
            async with client.post(url, data=form, middlewares=()) as response:
                response.raise_for_status()
                token = await response.json()
            self.access_token = token["access_token"]
            self.refresh_token = token.get("refresh_token", self.refresh_token)
            self.expires_at = time.time() + token["expires_in"] - self._margin


class AiohttpCookbook(Peer):
    """aiohttp with a middleware from its cookbook. Its token expires by `expires_at`."""

    name = "aiohttp, cookbook's middleware"
    transport = "aiohttp"

    async def open(self, stack: AsyncExitStack) -> None:
        self._auth = _Refreshing(self)
        self._client = await stack.enter_async_context(aiohttp.ClientSession(middlewares=(self._auth,)))

    async def prime(self) -> None:
        await self._auth.refresh(self._client, self._auth.access_token)

    async def get(self, path: str) -> int:
        async with self._client.get(self.url(path)) as response:
            await response.read()
            return response.status

    def expire(self) -> None:
        self._auth.expires_at = _LONG_AGO

    def holds(self) -> str | None:
        return self._auth.refresh_token


class AiohttpOAuth2Client(Peer):
    """aiohttp-oauth2-client: its middleware, and a grant that starts with a token.

    It uses the password grant, because that one sends the client's credentials with a refresh. No password is
    needed here. The token expires by its `expires_at`, 30 seconds early. It does not look at a 401.
    """

    name = "aiohttp-oauth2-client"
    transport = "aiohttp"
    needs = ("aiohttp-oauth2-client",)

    async def open(self, stack: AsyncExitStack) -> None:
        from aiohttp_oauth2_client.grant.resource_owner_password_credentials import (
            ResourceOwnerPasswordCredentialsGrant,
        )
        from aiohttp_oauth2_client.middleware import OAuth2Middleware

        self._grant = await stack.enter_async_context(
            ResourceOwnerPasswordCredentialsGrant(
                token_url=self.credentials["token_url"],
                username="unused",
                password="unused",
                token={
                    "access_token": "none yet",
                    "token_type": "Bearer",
                    "expires_at": _LONG_AGO,
                    "refresh_token": self.credentials["refresh_token"],
                },
                client_id=self.credentials["client_id"],
                client_secret=self.credentials["client_secret"],
            )
        )
        client = aiohttp.ClientSession(middlewares=(OAuth2Middleware(self._grant),))
        self._client = await stack.enter_async_context(client)

    async def prime(self) -> None:
        await self._grant.prepare_headers()

    async def get(self, path: str) -> int:
        async with self._client.get(self.url(path)) as response:
            await response.read()
            return response.status

    def expire(self) -> None:
        self._grant.token.expires_at = _LONG_AGO

    def holds(self) -> str | None:
        token: str | None = self._grant.token.refresh_token
        return token
