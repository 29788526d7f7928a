"""Two processes and one record: what each may do when the other was there first, on every local store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from _rig import LIFE, Rig, invalid_grant, run, success, turns
from _shared_store import STORES, Shelf

from tokensession import ClaimTimeout
from tokensession._refresh.state import TokenState, decode, encode
from tokensession.errors import Superseded
from tokensession.stores.protocol import Record, Store
from tokensession.testing import FakeClock, Paused


class GatedStore:
    """A store that stands still between the first look at the record and the claim, as a process may."""

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


@STORES
@pytest.mark.parametrize("life", [LIFE, 0], ids=["usable", "used up"])
def test_f08_a_refresh_token_that_was_read_before_the_claim_is_not_the_one_that_is_sent(
    tmp_path: Path, kind: str, life: int
) -> None:
    """If another process rotates between reading and claiming, its token is adopted or its successor sent."""

    async def scene() -> None:
        clock = FakeClock()
        shelf = Shelf(kind, tmp_path, clock)
        one = Rig(success(1), success(2, life=life), store=shelf.open(), clock=clock)
        paused = GatedStore(shelf.open())
        other = Rig(success(3), store=paused, clock=clock)
        await one.access()
        clock.advance(LIFE)
        caller = asyncio.create_task(other.access())
        await paused.looked.wait()  # it has seen refresh-1, and holds nothing yet
        assert await one.access() == "access-2"
        paused.go_on.set()
        if life:
            assert await caller == "access-2"
            assert other.posts == 0
        else:
            assert await caller == "access-3"
            assert "refresh_token=refresh-2" in other.sent()
        for rig in (one, other):
            await rig.source.aclose()
            await rig.store.aclose()

    run(scene)


@STORES
def test_f09_the_claim_is_held_from_the_second_look_over_the_request_to_the_commit(
    tmp_path: Path, kind: str
) -> None:
    """While a request is on the wire nobody else gets the claim; once it is free the record is there."""

    async def scene() -> None:
        clock = FakeClock()
        shelf = Shelf(kind, tmp_path, clock)
        held = Paused(success(2))
        rig = Rig(success(1), held, store=shelf.open(), clock=clock)
        await rig.access()
        clock.advance(LIFE)
        other = shelf.open()
        record = await other.load("account")
        assert record is not None
        caller = asyncio.create_task(rig.access())
        await held.arrived.wait()
        with pytest.raises(ClaimTimeout):
            await other.claim("account", seen=record.version, timeout=0)
        held.release()
        assert await caller == "access-2"
        newer = await other.claim("account", seen=record.version, timeout=0)
        assert isinstance(newer, Record)
        token = decode(newer.data).token
        assert token is not None
        assert token.refresh_token == "refresh-2"
        await rig.source.aclose()
        await rig.store.aclose()
        await other.aclose()

    run(scene)


@STORES
def test_f12_a_commit_counts_versions_and_not_who_owns_the_claim(tmp_path: Path, kind: str) -> None:
    """A result whose claim is gone is kept if nothing newer is stored, and changes nothing otherwise."""

    async def scene() -> None:
        shelf = Shelf(kind, tmp_path, FakeClock())
        store, other = shelf.open(), shelf.open()
        late = await store.claim("account", seen=None, timeout=1)
        assert not isinstance(late, Record)
        await late.abandon()  # as if its lease had run out
        between = await other.claim("account", seen=None, timeout=1)
        assert not isinstance(between, Record)
        record = await late.commit(encode(TokenState(configured="late")))
        assert await other.load("account") == record
        with pytest.raises(Superseded):
            await between.commit(encode(TokenState(configured="between")))
        assert await other.load("account") == record
        newer = await other.put("account", b"newer")
        with pytest.raises(Superseded):
            await late.commit(encode(TokenState(configured="later")))
        assert await other.load("account") == newer
        await store.aclose()
        await other.aclose()

    run(scene)


@pytest.mark.parametrize("newer", [False, True], ids=["nothing newer", "a newer generation"])
@STORES
def test_f12_a_refresh_that_loses_its_claim_in_mid_request_keeps_its_token_or_adopts_the_newer(
    tmp_path: Path, kind: str, newer: bool
) -> None:
    """If the claim is lost while the request is on the wire, its token is stored unless a newer one is."""

    async def scene() -> None:
        clock = FakeClock()
        shelf = Shelf(kind, tmp_path, clock)
        held = Paused(success(2))
        store = GatedStore(shelf.open())
        store.go_on.set()
        rig = Rig(success(1), held, store=store, clock=clock)
        other = Rig(success(7), store=shelf.open(), clock=clock)
        await rig.access()
        clock.advance(LIFE)
        caller = asyncio.create_task(rig.access())
        await held.arrived.wait()
        await store.claimed.abandon()
        if newer:
            assert await other.access() == "access-7"
        held.release()
        assert await caller == ("access-7" if newer else "access-2")
        stored = await shelf.stored()
        assert stored is not None
        assert stored.token is not None
        assert stored.token.refresh_token == ("refresh-7" if newer else "refresh-2")
        for each in (rig, other):
            await each.source.aclose()
            await each.store.aclose()

    run(scene)


@STORES
def test_f20_the_loser_of_a_race_leaves_the_winners_record_as_it_is(tmp_path: Path, kind: str) -> None:
    """invalid_grant for a version that has moved on changes no byte; the loser takes the winner's token."""

    async def scene() -> None:
        clock = FakeClock()
        shelf = Shelf(kind, tmp_path, clock)
        held = Paused(invalid_grant())
        loser = Rig(success(1), held, store=shelf.open(), clock=clock)
        winner = Rig(success(7), store=shelf.open(), clock=clock)
        await loser.access()
        clock.advance(LIFE)
        caller = asyncio.create_task(loser.access())
        await held.arrived.wait()
        await winner.source.sign_in(refresh_token="another-one")
        before = await winner.store.load("account")
        held.release()
        assert await caller == "access-7"
        await turns()
        assert await winner.store.load("account") == before
        assert await winner.access() == "access-7"
        for rig in (loser, winner):
            await rig.source.aclose()
            await rig.store.aclose()

    run(scene)
