"""Whatever hangs, the flight does not: its parts have deadlines, and the next caller starts afresh."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from _rig import Rig, run, success, turns

from tokensession import OutcomeUnknown, StoreUnavailable, TokenSessionError
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import Record
from tokensession.testing import FakeClock

LONGEST = 10 + 30 + 20 + 10 + 20
"""Seconds: a refresh whose parts all take as long as they may, and some more."""


async def ended(rig: Rig, caller: asyncio.Task[str]) -> float:
    """After how many seconds of the rig's clock the caller has its answer, at most LONGEST."""
    for second in range(LONGEST + 1):
        await turns(200)  # more than the last look at a request whose time is up takes
        if caller.done():
            return second
        rig.clock.advance(1)
    raise AssertionError(f"no end after {LONGEST} s")


async def never(_request: TokenRequest) -> TokenResponse:
    """Hangs."""
    await asyncio.Event().wait()
    raise AssertionError


async def tidies_up(_request: TokenRequest) -> TokenResponse:
    """Hangs, and when it is stopped takes a few turns to close its connection."""
    try:
        await asyncio.Event().wait()
    finally:
        for _ in range(10):
            await asyncio.sleep(0)
    raise AssertionError


async def answers_when_stopped(_request: TokenRequest) -> TokenResponse:
    """Takes its cancellation for a reason to hurry."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return success(1)
    raise AssertionError


async def fails_when_stopped(_request: TokenRequest) -> TokenResponse:
    """Raises something of its own when it is stopped."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ConnectionResetError from None
    raise AssertionError


async def busy(_request: TokenRequest) -> TokenResponse:
    """Does something all the time, and comes to nothing."""
    while True:
        await asyncio.sleep(0)


TRANSPORTS: list[Any] = [never, tidies_up, answers_when_stopped, fails_when_stopped, busy]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=lambda transport: transport.__name__)
@pytest.mark.parametrize("rotates", [False, True], ids=["permanent", "rotating"])
def test_f03_f10_the_token_request_is_over_by_its_deadline_whatever_the_endpoint_does(
    transport: Callable[..., Any], rotates: bool
) -> None:
    """A request that never ends is ended after Policy.request_timeout, and the next caller starts afresh."""

    async def scene() -> None:
        rig = Rig(transport, success(2), rotates=rotates)
        callers = [asyncio.create_task(rig.access()) for _ in range(10)]
        assert await ended(rig, callers[0]) == rig.source._transaction.policy.request_timeout == 20
        for caller in callers:
            with pytest.raises(OutcomeUnknown):
                await caller
        assert rig.transport.timeouts == [(5, 20)], "the endpoint is told of it, too"
        stored = await rig.stored()
        assert (stored is not None and stored.attempt is not None) is rotates
        rig.clock.advance(1)
        assert await rig.access() == "access-2"
        assert rig.posts == 2

    run(scene)


def test_f03_f10_an_endpoint_that_cannot_be_stopped_does_not_hold_up_the_flight() -> None:
    """An endpoint that swallows its cancellation is left to itself, and the deadline holds all the same."""

    async def scene() -> None:
        stopped = asyncio.Event()

        async def deaf(_request: TokenRequest) -> TokenResponse:
            while not stopped.is_set():
                try:
                    await stopped.wait()
                except asyncio.CancelledError:
                    continue
            raise ConnectionError

        rig = Rig(deaf, success(2), rotates=False)
        caller = asyncio.create_task(rig.access())
        try:
            assert await ended(rig, caller) <= 22
        finally:
            stopped.set()
            await asyncio.gather(caller, return_exceptions=True)

    run(scene)


class Stuck(MemoryStore):
    """A store of somebody's whose `where` hangs, until it is mended."""

    def __init__(self, where: str, **options: Any) -> None:
        super().__init__(**options)
        self.where = where
        self.mended = asyncio.Event()

    async def _pass(self, where: str) -> None:
        if self.where == where:
            await self.mended.wait()

    async def load(self, key: str) -> Record | None:
        await self._pass("load")
        return await super().load(key)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        await self._pass("claim")
        claim = await super().claim(key, seen=seen, timeout=timeout)
        return claim if isinstance(claim, Record) else StuckClaim(self, claim)


class StuckClaim:
    """Its claim."""

    def __init__(self, store: Stuck, claim: Any) -> None:
        self._store, self._claim = store, claim
        self.current, self.interrupted = claim.current, claim.interrupted

    async def commit(self, data: bytes) -> Record:
        await self._store._pass("commit")
        record: Record = await self._claim.commit(data)
        return record

    async def abandon(self) -> None:
        await self._store._pass("abandon")
        await self._claim.abandon()


@pytest.mark.parametrize("where", ["load", "claim", "commit", "abandon"])
def test_f03_a_store_that_hangs_anywhere_does_not_hold_up_the_flight(where: str) -> None:
    """Reading, claiming, writing and letting go each have an end: callers get an answer in bounded time."""

    async def scene() -> None:
        clock = FakeClock(jitter=0.5)
        store = Stuck(where, clock=clock)
        bad = RuntimeError("a reader that fails") if where == "abandon" else success(1)
        rig = Rig(bad, success(2), store=store, clock=clock, rotates=False)
        caller = asyncio.create_task(rig.access())
        try:
            await ended(rig, caller)
            if where == "commit":
                assert await caller == "access-1", "a new token is served from memory"
            else:
                with pytest.raises(StoreUnavailable if where != "abandon" else TokenSessionError):
                    await caller
            assert not rig.source.snapshot().refreshing
        finally:
            store.mended.set()
            await asyncio.gather(caller, return_exceptions=True)
        if where == "abandon":  # the claim is the store's problem now
            return
        clock.advance(31)
        await turns()
        assert await rig.access() in ("access-1", "access-2")
        await rig.source.aclose()

    run(scene)
