"""Two processes race for one record, on every local store: what the slower one may do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from _moments import (
    beside,
    close,
    holding,
    let_pass,
    process,
    refresh_token_in,
    refresh_tokens,
    refused,
    under_way,
)
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, state_of, success
from _shared_store import SharedStore

from tokensession import ClaimTimeout, Policy
from tokensession._refresh.state import Now, TokenState, encode
from tokensession.clock import Clock
from tokensession.errors import Superseded
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import Claim, Record, Store
from tokensession.testing import FakeClock, Paused


class GatedStore:
    """A store that stops between the first look at the record and the claim, as a process may."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.load, self.put, self.delete = store.load, store.put, store.delete
        self.keys, self.aclose = store.keys, store.aclose
        self.looked, self.go_on = asyncio.Event(), asyncio.Event()

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        self.looked.set()
        await self.go_on.wait()
        self.claimed = await self._store.claim(key, seen=seen, timeout=timeout)
        return self.claimed


def a_state(configured: str, clock: Clock) -> bytes:
    """The bytes of a state with a mark of its own."""
    return encode(TokenState(configured=configured), Now(clock.wall(), clock.boot()))


@pytest.fixture(params=["memory", "file", "sqlite"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> SharedStore:
    return SharedStore(request.param, tmp_path, FakeClock())


@pytest.mark.parametrize("expires_in", [LIFETIME, 0], ids=["usable", "expired"])
def test_f08_a_refresh_token_that_was_read_before_the_claim_is_not_sent(
    shared: SharedStore, expires_in: int
) -> None:
    """If another process rotates between reading and claiming, its token is adopted or its successor sent."""

    async def main() -> None:
        one = process(shared, success(1), success(2, expires_in=expires_in))
        paused = GatedStore(shared.open())
        other = Rig(success(3), store=paused, clock=one.clock)
        await one.access()
        one.clock.advance(LIFETIME)
        caller = asyncio.create_task(other.access())
        await paused.looked.wait()  # it has seen refresh-1, and has no claim yet
        assert await one.access() == "access-2"
        paused.go_on.set()
        assert await caller == ("access-2" if expires_in else "access-3")
        assert refresh_tokens(other) == ([] if expires_in else ["refresh-2"])
        await close(one, other)

    run(main)


def test_f09_the_claim_is_held_from_the_second_look_to_the_commit(shared: SharedStore) -> None:
    """No other process gets the claim during a token request, and once it is free, the record is there."""

    async def main() -> None:
        paused = Paused(success(2))
        rig = process(shared, success(1), paused)
        await rig.access()
        rig.clock.advance(LIFETIME)
        other = shared.open()
        record = await other.load("account")
        assert record is not None
        caller = await under_way(rig.access(), paused)
        await refused(ClaimTimeout, other.claim("account", seen=record.version, timeout=0))
        paused.release()
        assert await caller == "access-2"
        newer = await other.claim("account", seen=record.version, timeout=0)
        assert isinstance(newer, Record)
        token = state_of(newer, rig.clock).token
        assert token is not None
        assert token.refresh_token == "refresh-2"
        await close(rig)
        await other.aclose()

    run(main)


def test_f12_a_commit_compares_versions_and_not_owners_of_the_claim(shared: SharedStore) -> None:
    """A result whose claim is gone is stored if nothing newer is, and changes nothing otherwise."""

    async def main() -> None:
        store, other = shared.open(), shared.open()
        late_claim = await store.claim("account", seen=None, timeout=1)
        assert not isinstance(late_claim, Record)
        await late_claim.abandon()  # as if its lease had lapsed
        other_claim = await other.claim("account", seen=None, timeout=1)
        assert not isinstance(other_claim, Record)
        record = await late_claim.commit(a_state("late", shared.clock))
        assert await other.load("account") == record
        await refused(Superseded, other_claim.commit(a_state("between", shared.clock)))
        assert await other.load("account") == record
        newer = await other.put("account", b"newer")
        await refused(Superseded, late_claim.commit(a_state("later", shared.clock)))
        assert await other.load("account") == newer
        await store.aclose()
        await other.aclose()

    run(main)


@pytest.mark.parametrize("newer", [False, True], ids=["nothing newer", "a newer generation"])
def test_f12_a_refresh_that_loses_its_claim_stores_its_token_or_adopts_the_newer(
    shared: SharedStore, newer: bool
) -> None:
    """If the claim is lost during the request, the token is stored unless a newer one is there."""

    async def main() -> None:
        paused = Paused(success(2))
        store = GatedStore(shared.open())
        store.go_on.set()
        rig = Rig(success(1), paused, store=store, clock=shared.clock)
        other = process(shared, success(7))
        await rig.access()
        rig.clock.advance(LIFETIME)
        caller = await under_way(rig.access(), paused)
        assert not isinstance(store.claimed, Record)
        await store.claimed.abandon()
        if newer:
            assert await other.access() == "access-7"
        paused.release()
        assert await caller == ("access-7" if newer else "access-2")
        assert await refresh_token_in(shared) == ("refresh-7" if newer else "refresh-2")
        await close(rig, other)

    run(main)


def test_f20_the_loser_of_a_race_leaves_the_winners_record_as_it_is(shared: SharedStore) -> None:
    """invalid_grant for an older version changes no byte, and the loser adopts the winner's token."""

    async def main() -> None:
        paused = Paused(invalid_grant())
        loser = process(shared, success(1), paused)
        at_once = Policy(retry_within=0, sign_in_wait=0)  # the loser's request holds the claim
        winner = process(shared, success(7), policy=at_once)
        await loser.access()
        loser.clock.advance(LIFETIME)
        caller = await under_way(loser.access(), paused)
        await winner.source.sign_in(code="new-code")
        before = await winner.store.load("account")
        paused.release()
        assert await caller == "access-7"
        await let_tasks_run()
        assert await winner.store.load("account") == before
        assert await winner.access() == "access-7"
        await close(loser, winner)

    run(main)


class LapsedStore(MemoryStore):
    """A store with leases: the claim of a holder that is paused goes to the next one, who is told so."""

    def lapse(self, key: str) -> None:
        """The lease of the holder, who has sent a request, runs out."""
        holder = self._holders.pop(key)
        assert holder.sent is not None
        self._interrupted[key] = holder.sent

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        claim = await super().claim(key, seen=seen, timeout=timeout)
        return claim if isinstance(claim, Record) else LapsedClaim(claim)


class LapsedClaim:
    """A claim of a `LapsedStore`. The holder before listens for 30 s."""

    def __init__(self, claim: Claim) -> None:
        self.current, self.interrupted = claim.current, claim.interrupted
        self.listening = 0.0 if claim.interrupted is None else 30.0 - claim.interrupted
        self.sending, self.commit, self.abandon = claim.sending, claim.commit, claim.abandon


@pytest.mark.parametrize("arrives", [True, False], ids=["in time", "never"])
def test_f12_who_takes_over_a_lapsed_claim_waits_for_its_holders_answer(arrives: bool) -> None:
    """The holder was only paused. What it stores during the wait is adopted, and the spent token not sent."""

    async def main() -> None:
        clock = FakeClock()
        store = LapsedStore(clock=clock)
        paused = Paused(success(2))
        holder = await holding(paused, store=store, clock=clock, age=LIFETIME)
        other = beside(holder, success(3), policy=Policy(retry_within=0, caller_timeout=100))
        first = await under_way(holder.access(), paused)
        store.lapse("account")
        second = asyncio.create_task(other.access())
        await let_tasks_run()
        await let_pass(clock, 15)
        assert other.token_requests == 0
        if arrives:
            paused.release()
            assert await first == "access-2"
        clock.advance(15)
        assert await second == ("access-2" if arrives else "access-3")
        assert other.token_requests == (0 if arrives else 1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    run(main)
