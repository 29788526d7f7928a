"""A `ManagedSource` whose clock, transport, store and events the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tokensession import ManagedSource, Policy
from tokensession._refresh.state import Now, TokenState, decode
from tokensession.clock import Clock
from tokensession.events import Event
from tokensession.providers import OAuth2, StrategyProvider
from tokensession.providers.protocol import TokenResponse
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import Record, Store
from tokensession.testing import FakeClock, ScriptedTransport, token_response

LIFETIME = 3600
IMPATIENT = Policy(retry_within=0)
"""Callers get the first failure. Tests about waiting through failures pass a policy of their own."""


def success(
    number: int, *, expires_in: float | None = LIFETIME, refresh: str | None = "rotating"
) -> TokenResponse:
    """A token response with `access-N`, and with `refresh-N` unless `refresh` says otherwise."""
    document: dict[str, Any] = {"access_token": f"access-{number}", "token_type": "Bearer"}
    if expires_in is not None:
        document["expires_in"] = expires_in
    if refresh == "rotating":
        document["refresh_token"] = f"refresh-{number}"
    elif refresh is not None:
        document["refresh_token"] = refresh
    return token_response(document)


def invalid_grant() -> TokenResponse:
    """The provider rejects the refresh token."""
    return token_response({"error": "invalid_grant"}, status=400)


def state_of(record: Record, clock: Clock) -> TokenState:
    """The state in this record."""
    return decode(record.data, Now(clock.wall(), clock.boot()), age=record.age)


class Rig:
    """One process: a source over a store that may be shared, with a scripted transport."""

    def __init__(
        self,
        *script: Any,
        store: Store | None = None,
        clock: FakeClock | None = None,
        configured: str | None = "configured-token",
        rotates: bool = True,
        key: str | None = "account",
        policy: Policy | None = None,
        leeway: float = 0,
        provider: StrategyProvider | None = None,
        transport: ScriptedTransport | None = None,
    ) -> None:
        self.clock = clock or FakeClock(jitter=0.0)
        self.store = store if store is not None else MemoryStore(clock=self.clock)
        self.transport = transport or ScriptedTransport(*script)
        self.events: list[Event] = []
        self.provider: StrategyProvider = provider or OAuth2(
            token_url="https://id.example.com/token",
            client_id="client",
            client_secret="client-secret",
            refresh_token=configured,
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
            policy=policy or IMPATIENT,
            clock=self.clock,
            observer=self.events.append,
        )

    @property
    def token_requests(self) -> int:
        """How many token requests have been sent."""
        return len(self.transport.requests)

    def sent(self, index: int = -1) -> str:
        """The body of a token request."""
        return self.transport.requests[index].body.decode()

    async def stored(self) -> TokenState | None:
        """The state that is stored under the key."""
        record = await self.store.load(self.source.key)
        return state_of(record, self.clock) if record else None

    async def stored_access(self) -> str | None:
        """The access token that is stored, or None."""
        state = await self.stored()
        return state.token.access_token if state is not None and state.token is not None else None

    async def access(self) -> str:
        """The access token that a caller gets."""
        return (await self.source.token()).access_token

    async def refreshed(self) -> None:
        """Wait until no refresh is running."""
        while self.source.snapshot().refreshing:
            await asyncio.sleep(0)


async def until_sleeping(clock: FakeClock, seconds: float) -> None:
    """Wait until a task sleeps for exactly this long. Its pause identifies where it is."""
    while seconds not in clock.sleepers:
        await asyncio.sleep(0)


async def seconds_until_done(task: asyncio.Future[Any], clock: FakeClock, *, at_most: float = 300) -> float:
    """Let time pass until the task is done, and return how much. Each sleeper wakes at its own moment."""
    began = clock.boot()
    while True:
        await let_tasks_run(200)  # more than the last look after a time-out takes
        if task.done():
            return clock.boot() - began
        assert clock.boot() - began < at_most, "it does not end"
        clock.advance(clock.sleepers[0] if clock.sleepers else 0)


async def let_tasks_run(count: int = 50) -> None:
    """Give every task that can run `count` turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def run_in_every_turn(test: Callable[[int], Awaitable[None]], count: int) -> None:
    """Run it `count` times: with the turn of the event loop in which something is to happen, from 0."""
    for turn in range(count):

        async def main(turn: int = turn) -> None:
            await test(turn)

        run(main)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run an async test, with a time limit in case it hangs."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(bounded())
