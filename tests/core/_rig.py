"""A `ManagedSource` whose clock, transport, store and events the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest

from tokensession import ManagedSource, Policy
from tokensession._refresh.state import Now, TokenState, decode
from tokensession.clock import Clock
from tokensession.events import Event
from tokensession.providers import OAuth2, StrategyProvider
from tokensession.providers.protocol import TokenResponse
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import Record, Store
from tokensession.testing import FakeClock, Paused, ScriptedTransport, token_response

LIFETIME = 3600
T = TypeVar("T")
IMPATIENT = Policy(retry_within=0)
"""Callers get the first failure. Tests about waiting through failures pass a policy of their own."""


def success(
    number: int, *, expires_in: float | None = LIFETIME, refresh: str | None = "rotating"
) -> TokenResponse:
    """A token response with `access-N`, and with `refresh-N` unless `refresh` says otherwise."""
    document: dict[str, Any] = {"access_token": f"access-{number}", "token_type": "Bearer"}
    if expires_in is not None:
        document["expires_in"] = expires_in
    if refresh is not None:
        document["refresh_token"] = f"refresh-{number}" if refresh == "rotating" else refresh
    return token_response(document)


def invalid_grant() -> TokenResponse:
    """The provider rejects the refresh token."""
    return token_response({"error": "invalid_grant"}, status=400)


def limited(seconds: int, status: int = 429) -> TokenResponse:
    """A refusal that asks for a pause."""
    return token_response({}, status, (("retry-after", str(seconds)),))


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

    def peer(self, *script: Any, **options: Any) -> Rig:
        """Another process over the same store, with the same clock."""
        return Rig(*script, store=self.store, clock=self.clock, **options)

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

    async def state(self) -> TokenState:
        """The state that is stored under the key. There must be one."""
        state = await self.stored()
        assert state is not None
        return state

    async def stored_access(self) -> str | None:
        """The access token that is stored, or None."""
        state = await self.stored()
        return state.token.access_token if state is not None and state.token is not None else None

    async def unknown_outcomes(self) -> int:
        """How many token requests without an answer the store knows of."""
        state = await self.stored()
        return state.failures.unknown if state is not None and state.failures is not None else 0

    async def access(self) -> str:
        """The access token that a caller gets."""
        return (await self.source.token()).access_token

    def ask(self) -> asyncio.Task[str]:
        """A caller who asks for a token."""
        return asyncio.create_task(self.access())

    async def in_flight(
        self, line: Any, work: Awaitable[Any] | None = None
    ) -> tuple[Paused, asyncio.Future[Any]]:
        """A caller, or this work, whose token request has arrived, and the answer that it waits for."""
        paused = Paused(line)
        self.transport.script(paused)
        caller = self.ask() if work is None else asyncio.ensure_future(work)
        await paused.arrived.wait()
        return paused, caller

    async def refresh_when_due(self) -> None:
        """Let the token's life go on until it is due, ask for it, and wait for the background refresh."""
        self.clock.advance(LIFETIME - 299)
        await self.access()
        await self.refreshed()

    async def refreshed(self) -> None:
        """Wait until no refresh is running."""
        while self.source.snapshot().refreshing:
            await asyncio.sleep(0)


async def expired(*script: Any, **options: Any) -> Rig:
    """A process whose token, access-1, has just expired."""
    rig = Rig(success(1), *script, **options)
    await rig.access()
    rig.clock.advance(LIFETIME)
    return rig


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


async def took(work: Awaitable[Any], clock: FakeClock) -> float:
    """Let time pass until this work is done, and return how much. Raises what the work raises."""
    task = asyncio.ensure_future(work)
    seconds = await seconds_until_done(task, clock)
    await task
    return seconds


async def failed_after(
    error: type[BaseException], work: Awaitable[Any], clock: FakeClock, *, match: str | None = None
) -> float:
    """Let time pass until this work has failed with the error, and return how much."""
    began = clock.boot()
    with pytest.raises(error, match=match):
        await took(work, clock)
    return clock.boot() - began


async def begun(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start this work, and let it come as far as it can."""
    task = asyncio.create_task(work)
    await let_tasks_run()
    return task


async def let_tasks_run(count: int = 50) -> None:
    """Give every task that can run `count` turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def run_in_every_turn(test: Callable[[int], Awaitable[None]], count: int) -> None:
    """Run it `count` times: with the turn of the event loop in which something is to happen, from 0."""
    for turn in range(count):
        run(partial(test, turn))


def run(test: Callable[[], Awaitable[T]]) -> T:
    """Run an async test, with a time limit in case it hangs."""

    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await test()

    return asyncio.run(bounded())
