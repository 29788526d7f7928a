"""A source with everything around it in the test's hands: clock, endpoint, store, events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tokensession import ManagedSource, Policy
from tokensession._refresh.state import TokenState, decode
from tokensession.events import Event
from tokensession.providers import OAuth2
from tokensession.providers.protocol import TokenResponse
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import Store
from tokensession.testing import FakeClock, ScriptedTransport, token_response

LIFE = 3600


def success(number: int, *, life: float | None = LIFE, refresh: str | None = "rotating") -> TokenResponse:
    """The reply that brings `access-N`, and `refresh-N` unless told otherwise."""
    document: dict[str, Any] = {"access_token": f"access-{number}", "token_type": "Bearer"}
    if life is not None:
        document["expires_in"] = life
    if refresh == "rotating":
        document["refresh_token"] = f"refresh-{number}"
    elif refresh is not None:
        document["refresh_token"] = refresh
    return token_response(document)


def invalid_grant() -> TokenResponse:
    """The provider's refusal of a refresh token."""
    return token_response({"error": "invalid_grant"}, status=400)


class Rig:
    """One process: a source over a store that others may share, with a scripted endpoint."""

    def __init__(
        self,
        *script: Any,
        store: Store | None = None,
        clock: FakeClock | None = None,
        seed: str | None = "seed-token",
        rotates: bool = True,
        key: str | None = "account",
        policy: Policy | None = None,
        leeway: float = 0,
    ) -> None:
        self.clock = clock or FakeClock(jitter=0.0)
        self.store = store if store is not None else MemoryStore(clock=self.clock)
        self.transport = ScriptedTransport(*script)
        self.events: list[Event] = []
        self.provider = OAuth2(
            token_url="https://id.example.com/token",
            client_id="client",
            client_secret="client-secret",
            refresh_token=seed,
            rotates=rotates,
        )
        if leeway:
            from dataclasses import replace

            self.provider.strategy = replace(self.provider.strategy, replay_leeway=leeway)
        self.source = ManagedSource(
            self.provider,
            self.transport,
            store=self.store,
            key=key,
            policy=policy,
            clock=self.clock,
            observer=self.events.append,
        )

    @property
    def posts(self) -> int:
        """Token requests so far."""
        return len(self.transport.requests)

    def sent(self, index: int = -1) -> str:
        """The body of a token request."""
        return self.transport.requests[index].body.decode()

    async def stored(self) -> TokenState | None:
        """What the store has under the key."""
        record = await self.store.load(self.source.key)
        return decode(record.data) if record else None

    async def access(self) -> str:
        """The access token that a caller gets now."""
        return (await self.source.token()).access_token

    async def landed(self) -> None:
        """Wait until no refresh is under way."""
        while self.source.snapshot().refreshing:
            await asyncio.sleep(0)


async def asleep(clock: FakeClock, seconds: float) -> None:
    """Wait until somebody sleeps for so long: the place of a race is known by its pause."""
    while seconds not in clock.sleepers:
        await asyncio.sleep(0)


async def turns(count: int = 50) -> None:
    """Let everything that can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run an async test, bounded in case it hangs."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())
