"""The token endpoint or the store is down: nothing is lost, nobody is stormed, everybody is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from _rig import LIFE, Rig, asleep, run, token_reply, turns

from tokensession import (
    ClientRejected,
    MalformedReply,
    NotSent,
    RateLimited,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession.events import RefreshFailed, Saved, SaveFailed
from tokensession.stores import MemoryStore
from tokensession.stores.base import ANY, Record
from tokensession.testing import FakeClock, reply


def test_an_early_refresh_that_fails_is_an_event_and_no_error() -> None:
    """The token is good; the callers hear nothing of it."""

    async def scene() -> None:
        rig = Rig(token_reply(1), NotSent("down"), clock=FakeClock(jitter=0.5))
        await rig.access()
        rig.clock.advance(LIFE - 299)
        assert await rig.access() == "access-1"
        await rig.landed()
        assert await rig.access() == "access-1"
        assert isinstance(rig.events[-1], RefreshFailed)
        assert rig.events[-1].still_usable > 0

    run(scene)


def test_ten_thousand_callers_during_an_outage_cause_a_bounded_number_of_requests() -> None:
    """A minute without a token endpoint: those inside the back-off get the remembered error at once."""

    async def scene() -> None:
        rig = Rig(*(NotSent("down") for _ in range(1000)), clock=FakeClock(jitter=0.5))
        errors: list[BaseException] = []
        for _ in range(60):
            found = await asyncio.gather(*(rig.access() for _ in range(170)), return_exceptions=True)
            errors += [error for error in found if isinstance(error, BaseException)]
            rig.clock.advance(1)
        assert len(errors) == 60 * 170
        assert all(isinstance(e, NotSent) and e.retry_after is not None for e in errors)
        assert rig.posts <= 12

    run(scene)


def test_a_failure_changes_no_credentials() -> None:
    """After the outage the same refresh token works."""

    async def scene() -> None:
        rig = Rig(token_reply(1), reply(b"<html>", 502), reply(b"", 503), token_reply(2))
        await rig.access()
        rig.clock.advance(LIFE)
        for _ in range(2):
            with pytest.raises(TokenUnavailable):
                await rig.access()
            rig.clock.advance(60)
        assert await rig.access() == "access-2"
        assert "refresh_token=refresh-1" in rig.sent()

    run(scene)


@pytest.mark.parametrize(
    ("header", "pause"), [("120", 120.0), ("0", 1.0), ("99999", 3600.0), (None, 60.0), ("soon", 60.0)]
)
def test_retry_after_is_honoured_within_bounds(header: str | None, pause: float) -> None:
    """From 1 s to an hour, and a minute if there is none."""

    async def scene() -> None:
        headers = (("retry-after", header),) if header else ()
        rig = Rig(reply({}, 429, headers), token_reply(1))
        with pytest.raises(RateLimited) as limited:
            await rig.access()
        assert limited.value.retry_after == pause
        rig.clock.advance(pause - 0.5)
        with pytest.raises(RateLimited) as limited:
            await rig.access()
        assert limited.value.retry_after == 0.5
        rig.clock.advance(0.5)
        assert await rig.access() == "access-1"

    run(scene)


def test_a_configuration_that_is_refused_is_not_hammered() -> None:
    """One request a minute at most, and the error says what to look at."""

    async def scene() -> None:
        rig = Rig(reply({"error": "invalid_client"}, 401), token_reply(1))
        for _ in range(20):
            with pytest.raises(ClientRejected, match="credentials"):
                await rig.access()
            rig.clock.advance(2)
        assert rig.posts == 1
        rig.clock.advance(60)
        assert await rig.access() == "access-1"

    run(scene)


def test_nonsense_from_the_provider_leaves_the_token_alone() -> None:
    """A typed error, and the grant stays."""

    async def scene() -> None:
        rig = Rig(token_reply(1), reply(["not", "a", "token"]), token_reply(2))
        await rig.access()
        rig.clock.advance(LIFE)
        with pytest.raises(MalformedReply):
            await rig.access()
        rig.clock.advance(60)
        assert await rig.access() == "access-2"

    run(scene)


def test_until_its_real_end_a_token_is_served_if_no_other_can_be_had() -> None:
    """EXPIRED comes a minute early, for latency; an outage is worse than latency."""

    async def scene() -> None:
        rig = Rig(token_reply(1), NotSent("down"), NotSent("down"))
        await rig.access()
        rig.clock.advance(LIFE - 30)
        assert await rig.access() == "access-1"
        rig.clock.advance(30)
        with pytest.raises(NotSent):
            await rig.access()

    run(scene)


class FaultyStore(MemoryStore):
    """A store that can be broken and mended."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.broken: set[str] = set()

    def _check(self, what: str) -> None:
        if what in self.broken:
            raise StoreUnavailable(f"The disk is on fire ({what}).")

    async def load(self, key: str) -> Record | None:
        self._check("load")
        return await super().load(key)

    async def put(self, key: str, data: bytes, *, expect: Any = ANY) -> Record:
        self._check("put")
        return await super().put(key, data, expect=expect)

    def _write(self, key: str, record: Record, expect: Any) -> Record:
        self._check("write")
        return super()._write(key, record, expect)


def faulty(*script: Any) -> tuple[Rig, FaultyStore, FakeClock]:
    """A source over a store that can be broken."""
    clock = FakeClock(jitter=0.5)
    store = FaultyStore(clock=clock)
    return Rig(*script, store=store, clock=clock), store, clock


def test_a_store_that_cannot_be_read_does_not_take_the_token_from_memory() -> None:
    """Served while it lives; then a typed error, at once, and no request."""

    async def scene() -> None:
        clock = FakeClock()
        store = FaultyStore(clock=clock)
        rig = Rig(token_reply(1), token_reply(2), store=store, clock=clock)
        await rig.access()
        store.broken = {"load"}
        clock.advance(LIFE - 299)
        assert await rig.access() == "access-1"
        await rig.landed()
        assert await rig.access() == "access-1"
        clock.advance(LIFE)
        with pytest.raises(StoreUnavailable):
            await rig.access()
        assert rig.posts == 1
        store.broken = set()
        clock.advance(60)
        assert await rig.access() == "access-2"

    run(scene)


def test_a_rotated_token_that_cannot_be_stored_is_served_and_stored_later() -> None:
    """Kept in memory, saved again and again, loudly, until it is there."""

    async def scene() -> None:
        rig, store, clock = faulty(token_reply(1))
        store.broken = {"write"}
        assert await rig.access() == "access-1"
        assert rig.source.snapshot().unsaved
        for _ in range(3):
            await clock.slept()
            clock.advance(31)
            await turns()
        assert sum(isinstance(event, SaveFailed) for event in rig.events) >= 3
        assert await rig.access() == "access-1"
        store.broken = set()
        await clock.slept()
        clock.advance(31)
        await turns()
        assert isinstance(rig.events[-1], Saved)
        assert not rig.source.snapshot().unsaved
        stored = await rig.stored()
        assert stored is not None
        assert stored.token is not None
        assert stored.token.refresh_token == "refresh-1"

    run(scene)


def test_a_token_that_could_not_be_stored_gives_way_to_a_newer_sign_in() -> None:
    """The late save is superseded, and the newer token is served."""

    async def scene() -> None:
        rig, store, clock = faulty(token_reply(1))
        other = Rig(token_reply(9), store=store, clock=clock)
        store.broken = {"write"}
        await rig.access()
        store.broken = set()
        await other.source.sign_in(refresh_token="new")
        await clock.slept()
        clock.advance(31)
        await turns()
        assert await rig.access() == "access-9"
        assert not rig.source.snapshot().unsaved

    run(scene)


def test_closing_says_so_if_a_token_could_not_be_stored() -> None:
    """Not in silence: the old refresh token is spent, and the new one is gone with this process."""

    async def scene() -> None:
        rig, store, clock = faulty(token_reply(1))
        store.broken = {"write"}
        await rig.access()
        closing = asyncio.create_task(rig.source.aclose())
        for _ in range(60):
            await turns(20)
            clock.advance(1)
        with pytest.raises(StoreUnavailable, match="before closing"):
            await closing

    run(scene)


def test_a_code_is_not_spent_when_the_store_is_down() -> None:
    """Signing in looks at the store first."""

    async def scene() -> None:
        clock = FakeClock()
        store = FaultyStore(clock=clock)
        rig = Rig(store=store, clock=clock)
        store.broken = {"load"}
        with pytest.raises(StoreUnavailable):
            await rig.source.sign_in(code="once")
        assert rig.posts == 0

    run(scene)


def test_a_sign_in_that_cannot_be_stored_is_served_and_stored_later() -> None:
    """A code works once, so its token is kept."""

    async def scene() -> None:
        rig, store, clock = faulty(token_reply(1))
        store.broken = {"put"}
        await rig.source.sign_in(code="once")
        assert await rig.access() == "access-1"
        store.broken = set()
        await clock.slept()
        clock.advance(31)
        await turns()
        assert (await rig.stored()) is not None

    run(scene)


def test_a_sign_out_that_cannot_be_stored_signs_nobody_out_and_says_so() -> None:
    """Half a sign-out would look like one."""

    async def scene() -> None:
        clock = FakeClock()
        store = FaultyStore(clock=clock)
        rig = Rig(token_reply(1), store=store, clock=clock)
        await rig.access()
        store.broken = {"put"}
        with pytest.raises(StoreUnavailable):
            await rig.source.sign_out()
        assert await rig.access() == "access-1"

    run(scene)


def test_a_foreign_store_that_raises_anything_is_reported_as_a_typed_error() -> None:
    """And what it raised is the cause."""

    class Rude(MemoryStore):
        async def load(self, key: str) -> Record | None:
            raise ConnectionResetError("by peer")

    async def scene() -> None:
        rig = Rig(store=Rude())
        with pytest.raises(TokenSessionError, match="ConnectionResetError") as error:
            await rig.access()
        causes = []
        cause: BaseException | None = error.value
        while cause is not None:
            causes.append(type(cause))
            cause = cause.__cause__
        assert ConnectionResetError in causes

    run(scene)


def test_a_corrupt_record_is_an_error_until_somebody_signs_in() -> None:
    """It is not overwritten by a refresh from the configured seed: it may be repaired."""

    async def scene() -> None:
        rig = Rig(token_reply(1))
        await rig.store.put("account", b"\x00garbage")
        with pytest.raises(StoreError):
            await rig.access()
        assert rig.posts == 0
        await rig.source.sign_in(refresh_token="new")
        assert await rig.access() == "access-1"

    run(scene)


def test_a_corrupt_record_does_not_stand_in_the_way_of_a_store_that_says_so() -> None:
    """A store that cannot read its own record lets a sign-in replace it."""

    class Damaged(MemoryStore):
        async def load(self, key: str) -> Record | None:
            if not self._records:
                raise StoreCorrupt("The file is damaged.")
            return await super().load(key)

    async def scene() -> None:
        rig = Rig(token_reply(1), store=Damaged())
        with pytest.raises(StoreCorrupt):
            await rig.access()
        await rig.source.sign_in(refresh_token="new")
        assert await rig.access() == "access-1"

    run(scene)


@pytest.mark.parametrize("what", ["raises", "hangs"])
def test_a_foreign_store_that_breaks_the_contract_on_commit_loses_no_rotated_token(what: str) -> None:
    """Whatever it raises, and if it never answers: the token is served, and saved again later."""
    hanging = asyncio.Event()

    class Rude(MemoryStore):
        broken = True

        async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
            claim = await super().claim(key, seen=seen, timeout=timeout)
            commit = claim.commit if not isinstance(claim, Record) else None

            async def rude(data: bytes) -> Record:
                if self.broken and what == "raises":
                    raise ConnectionResetError("by peer")
                if self.broken:
                    hanging.set()
                    await asyncio.Event().wait()
                assert commit is not None
                return await commit(data)

            if not isinstance(claim, Record):
                claim.commit = rude  # type: ignore[method-assign]
            return claim

    async def scene() -> None:
        clock = FakeClock(jitter=0.5)
        store = Rude(clock=clock)
        rig = Rig(token_reply(1), store=store, clock=clock)
        caller = asyncio.create_task(rig.access())
        if what == "hangs":
            await hanging.wait()
            await asleep(clock, 10)
            clock.advance(10)
        assert await caller == "access-1"
        assert rig.source.snapshot().unsaved
        store.broken = False
        for _ in range(3):
            await turns()
            clock.advance(31)
        await turns()
        assert not rig.source.snapshot().unsaved
        stored = await rig.stored()
        assert stored is not None
        assert stored.token is not None
        assert stored.token.refresh_token == "refresh-1"

    run(scene)


def test_a_store_that_never_answers_is_a_typed_error_in_time() -> None:
    """Not a flight that everybody joins for ever."""

    class Deaf(MemoryStore):
        async def load(self, key: str) -> Record | None:
            await asyncio.Event().wait()
            return None

    async def scene() -> None:
        rig = Rig(store=Deaf())
        caller = asyncio.create_task(rig.access())
        await asleep(rig.clock, 10)
        rig.clock.advance(10)
        with pytest.raises(StoreUnavailable, match="No answer"):
            await caller

    run(scene)


def test_a_token_that_could_not_be_stored_is_stored_by_the_next_event_loop() -> None:
    """The first loop is gone with its task; the refresh token that the store has is spent."""
    clock = FakeClock(jitter=0.5)
    store = FaultyStore(clock=clock)
    rig = Rig(token_reply(1), token_reply(2), store=store, clock=clock)
    store.broken = {"write"}
    assert asyncio.run(rig.access()) == "access-1"
    store.broken = set()
    clock.advance(LIFE)
    assert asyncio.run(rig.access()) == "access-2"
    assert "refresh_token=refresh-1" in rig.sent()
    assert not rig.source.snapshot().unsaved


def test_the_same_access_token_with_a_new_life_is_not_asked_for_again_and_again() -> None:
    """Some servers hand out the token they have, and say how long it still lives."""

    async def scene() -> None:
        again = reply({"access_token": "access-1", "expires_in": LIFE, "refresh_token": "refresh-1"})
        rig = Rig(token_reply(1), again)
        await rig.access()
        rig.clock.advance(LIFE)
        for _ in range(20):
            assert await rig.access() == "access-1"
        assert rig.posts == 2

    run(scene)


def test_a_refresh_ahead_that_failed_does_not_keep_a_caller_who_needs_a_token_waiting() -> None:
    """Its long back-off is for refreshes that nobody waits for; a 401 or an order is tried sooner."""

    async def scene() -> None:
        rig = Rig(token_reply(1, life=100_000), NotSent("down"), token_reply(2), clock=FakeClock(jitter=0.9))
        token = await rig.source.token()
        rig.clock.advance(100_000 - 310)
        await rig.access()
        await rig.landed()
        rig.clock.advance(1)
        assert (await rig.source.refresh(token)).access_token == "access-2"

    run(scene)
