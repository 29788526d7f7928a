"""Every part of a refresh has a deadline, so a hanging transport or store does not hang the callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from _rig import Rig, let_tasks_run, run, success

from tokensession import OutcomeUnknown, StoreUnavailable, TokenSessionError
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import Record
from tokensession.testing import FakeClock

LONGEST = 10 + 30 + 20 + 10 + 20
"""Seconds. A refresh whose parts all take as long as they may is over by then."""


async def ended(rig: Rig, caller: asyncio.Task[str]) -> float:
    """After how many seconds of the rig's clock the caller has its answer. At most LONGEST."""
    for second in range(LONGEST + 1):
        await let_tasks_run(200)  # more than the last look after a time-out takes
        if caller.done():
            return second
        rig.clock.advance(1)
    raise AssertionError(f"no end after {LONGEST} s")


async def never(_request: TokenRequest) -> TokenResponse:
    """Hangs."""
    await asyncio.Event().wait()
    raise AssertionError


async def cleans_up(_request: TokenRequest) -> TokenResponse:
    """Hangs, and when it is cancelled takes some turns of the event loop to close its connection."""
    try:
        await asyncio.Event().wait()
    finally:
        for _ in range(10):
            await asyncio.sleep(0)
    raise AssertionError


async def answers_when_cancelled(_request: TokenRequest) -> TokenResponse:
    """Returns a response when it is cancelled."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return success(1)
    raise AssertionError


async def fails_when_cancelled(_request: TokenRequest) -> TokenResponse:
    """Raises another exception when it is cancelled."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ConnectionResetError from None
    raise AssertionError


async def spins(_request: TokenRequest) -> TokenResponse:
    """Never ends, and never really waits."""
    while True:
        await asyncio.sleep(0)


TRANSPORTS: list[Any] = [never, cleans_up, answers_when_cancelled, fails_when_cancelled, spins]


@pytest.mark.parametrize("transport", TRANSPORTS, ids=lambda transport: transport.__name__)
@pytest.mark.parametrize("rotates", [False, True], ids=["permanent", "rotating"])
def test_f03_f10_the_token_request_is_over_by_its_deadline_whatever_the_transport_does(
    transport: Callable[..., Any], rotates: bool
) -> None:
    """A token request ends after Policy.request_timeout, and the next caller starts a new refresh."""

    async def main() -> None:
        rig = Rig(transport, success(2), rotates=rotates)
        callers = [asyncio.create_task(rig.access()) for _ in range(10)]
        assert await ended(rig, callers[0]) == rig.source._transaction.policy.request_timeout == 20
        for caller in callers:
            with pytest.raises(OutcomeUnknown):
                await caller
        assert rig.transport.timeouts == [(5, 20)], "the transport gets the time-outs too"
        stored = await rig.stored()
        assert (stored is not None and stored.attempt is not None) is rotates
        rig.clock.advance(1)
        assert await rig.access() == "access-2"
        assert rig.token_requests == 2

    run(main)


def test_f03_f10_a_transport_that_ignores_cancellation_does_not_hold_up_the_refresh() -> None:
    """A transport that ignores its cancellation is abandoned, and the deadline holds."""

    async def main() -> None:
        stopped = asyncio.Event()

        async def ignores_cancellation(_request: TokenRequest) -> TokenResponse:
            while not stopped.is_set():
                try:
                    await stopped.wait()
                except asyncio.CancelledError:
                    continue
            raise ConnectionError

        rig = Rig(ignores_cancellation, success(2), rotates=False)
        caller = asyncio.create_task(rig.access())
        try:
            assert await ended(rig, caller) <= 22
        finally:
            stopped.set()
            await asyncio.gather(caller, return_exceptions=True)

    run(main)


class StuckStore(MemoryStore):
    """A third-party store whose method `where` hangs until `repaired` is set."""

    def __init__(self, where: str, **options: Any) -> None:
        super().__init__(**options)
        self.where = where
        self.repaired = asyncio.Event()

    async def _pass(self, where: str) -> None:
        if self.where == where:
            await self.repaired.wait()

    async def load(self, key: str) -> Record | None:
        await self._pass("load")
        return await super().load(key)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        await self._pass("claim")
        claim = await super().claim(key, seen=seen, timeout=timeout)
        return claim if isinstance(claim, Record) else StuckClaim(self, claim)


class StuckClaim:
    """A claim of a `StuckStore`."""

    def __init__(self, store: StuckStore, claim: Any) -> None:
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
def test_f03_a_store_that_hangs_anywhere_does_not_hold_up_the_refresh(where: str) -> None:
    """Reading, claiming, writing and abandoning each have a deadline, so callers get an answer in time."""

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        store = StuckStore(where, clock=clock)
        response = RuntimeError("a provider that fails") if where == "abandon" else success(1)
        rig = Rig(response, success(2), store=store, clock=clock, rotates=False)
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
            store.repaired.set()
            await asyncio.gather(caller, return_exceptions=True)
        if where == "abandon":  # the claim stays held: only the store can release it
            return
        clock.advance(31)
        await let_tasks_run()
        assert await rig.access() in ("access-1", "access-2")
        await rig.source.aclose()

    run(main)
