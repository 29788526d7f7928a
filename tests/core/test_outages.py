"""The token endpoint or the store is down: nothing is lost, nobody is stormed, everybody is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from _rig import LIFE, Rig, asleep, invalid_grant, run, success, turns

from tokensession import (
    ClientRejected,
    GrantRejected,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession.events import RefreshFailed, Saved, SaveFailed
from tokensession.stores import FileStore, MemoryStore, SQLiteStore
from tokensession.stores.protocol import ANY, Record
from tokensession.testing import FakeClock, token_response


def test_f25_an_early_refresh_that_fails_is_an_event_and_no_error() -> None:
    """A refresh ahead that fails while the token is valid is an event; the callers hear nothing of it."""

    async def scene() -> None:
        rig = Rig(success(1), NotSent("down"), clock=FakeClock(jitter=0.5))
        await rig.access()
        rig.clock.advance(LIFE - 299)
        assert await rig.access() == "access-1"
        await rig.landed()
        assert await rig.access() == "access-1"
        assert isinstance(rig.events[-1], RefreshFailed)
        assert rig.events[-1].still_usable > 0

    run(scene)


def test_f22_a_caller_in_the_cool_down_gets_a_copy_of_the_error_with_the_pause_that_is_left() -> None:
    """A minute without a token endpoint: a dozen requests, and each caller is told when to come again."""

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


def test_f24_a_5xx_changes_no_credentials() -> None:
    """After a 502 and a 503 the same refresh token works: a failure that passes signs nobody out."""

    async def scene() -> None:
        rig = Rig(success(1), token_response(b"<html>", 502), token_response(b"", 503), success(2))
        await rig.access()
        rig.clock.advance(LIFE)
        for _ in range(2):
            with pytest.raises(TokenUnavailable):
                await rig.access()
            rig.clock.advance(60)
        assert await rig.access() == "access-2"
        assert "refresh_token=refresh-1" in rig.sent()

    run(scene)


@pytest.mark.parametrize("rotates", [False, True], ids=["permanent", "rotating"])
@pytest.mark.parametrize("trouble", [502, 503, 504, 408, "not sent", "no answer"])
def test_f24_no_passing_failure_touches_the_stored_credentials(trouble: Any, rotates: bool) -> None:
    """A 5xx, a 408, no connection or no answer signs nobody out: the stored token and refresh token stay."""

    async def scene() -> None:
        failure = {"not sent": NotSent("no route"), "no answer": OutcomeUnknown("lost")}
        answer = failure[trouble] if isinstance(trouble, str) else token_response(b"", trouble)
        rig = Rig(success(1), answer, success(2), rotates=rotates)
        await rig.access()
        before = await rig.store.load("account")
        kept = await rig.stored()
        rig.clock.advance(LIFE)
        with pytest.raises(TokenUnavailable):
            await rig.access()
        stored = await rig.stored()
        assert stored is not None
        assert kept is not None
        assert stored.token == kept.token
        if not (rotates and trouble == "no answer"):  # that is noted beside the token
            assert await rig.store.load("account") == before
        rig.clock.advance(60)
        assert await rig.access() == "access-2"
        assert "refresh_token=refresh-1" in rig.sent()

    run(scene)


@pytest.mark.parametrize(
    ("header", "pause"), [("120", 120.0), ("0", 1.0), ("99999", 3600.0), (None, 60.0), ("soon", 60.0)]
)
def test_f23_retry_after_is_honoured_within_bounds(header: str | None, pause: float) -> None:
    """A 429 is followed by the pause that it asks for, from 1 s to an hour; by a minute if it names none."""

    async def scene() -> None:
        headers = (("retry-after", header),) if header else ()
        rig = Rig(token_response({}, 429, headers), success(1))
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
        rig = Rig(token_response({"error": "invalid_client"}, 401), success(1))
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
        rig = Rig(success(1), token_response(["not", "a", "token"]), success(2))
        await rig.access()
        rig.clock.advance(LIFE)
        with pytest.raises(InvalidTokenResponse):
            await rig.access()
        rig.clock.advance(60)
        assert await rig.access() == "access-2"

    run(scene)


def test_f25_until_its_real_end_a_token_is_served_if_no_other_can_be_had() -> None:
    """EXPIRED comes a minute early, for latency: in an outage the token is served to its real end."""

    async def scene() -> None:
        rig = Rig(success(1), NotSent("down"), NotSent("down"))
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


def test_f26_a_store_that_cannot_be_read_does_not_take_the_token_from_memory() -> None:
    """The store is unreadable: the valid token is served, then a typed error, and nothing is cleared."""

    async def scene() -> None:
        clock = FakeClock()
        store = FaultyStore(clock=clock)
        rig = Rig(success(1), success(2), store=store, clock=clock)
        await rig.access()
        before = await store.load("account")
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
        assert await store.load("account") == before, "nothing was cleared"
        clock.advance(60)
        assert await rig.access() == "access-2"

    run(scene)


@pytest.mark.parametrize("where", ["load", "claim"])
def test_f28_a_store_that_is_down_fails_at_once_and_is_not_taken_for_contention(where: str) -> None:
    """A store outage is StoreUnavailable, at once; only another holder is waited for, and is ClaimTimeout."""

    class Down(FaultyStore):
        async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
            self._check("claim")
            return await super().claim(key, seen=seen, timeout=timeout)

    async def scene() -> None:
        clock = FakeClock()
        store = Down(clock=clock)
        rig = Rig(success(1), store=store, clock=clock)
        store.broken = {where}
        caller = asyncio.create_task(rig.access())
        await turns()
        assert caller.done(), "no time has passed, and it has its answer"
        error = caller.exception()
        assert isinstance(error, StoreUnavailable)
        assert not isinstance(error, TokenUnavailable), "which a ClaimTimeout is"
        assert rig.posts == 0
        store.broken = set()
        clock.advance(1)
        assert await rig.access() == "access-1"

    run(scene)


@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
def test_f28_a_store_on_a_disk_that_is_gone_fails_without_waiting(
    tmp_path: Path, kind: type[FileStore] | type[SQLiteStore]
) -> None:
    """A real directory that is not there is StoreUnavailable, without a look at the clock or a request."""

    async def scene() -> None:
        clock = FakeClock()
        store = kind(tmp_path / "unmounted" / "tokens", clock=clock)
        rig = Rig(success(1), store=store, clock=clock)
        with pytest.raises(StoreUnavailable):
            await rig.access()
        assert rig.posts == 0
        await store.aclose()

    run(scene)


def test_f27_a_rotated_token_that_cannot_be_stored_is_served_and_stored_later() -> None:
    """A rotated token that cannot be written is served from memory, and saved again, loudly, until it is."""

    async def scene() -> None:
        rig, store, clock = faulty(success(1))
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


@pytest.mark.parametrize(
    ("end", "kind"), [(invalid_grant(), GrantRejected), (OutcomeUnknown("lost"), OutcomeUnknown)]
)
def test_f21_f27_what_became_of_a_request_is_not_forgotten_when_it_cannot_be_stored(
    end: Any, kind: type[Exception]
) -> None:
    """A refusal or a lost reply that could not be noted is noted later; meanwhile nothing is sent."""

    async def scene() -> None:
        rig, store, clock = faulty(success(1), end, success(3))
        await rig.access()
        clock.advance(LIFE)
        store.broken = {"write"}
        with pytest.raises(kind):
            await rig.access()
        assert rig.source.snapshot().unsaved
        for _ in range(5):
            clock.advance(5)
            with pytest.raises(TokenSessionError):
                await rig.access()
        assert rig.posts == 2
        store.broken = set()
        clock.advance(60)
        while rig.source.snapshot().unsaved:
            await turns()
        assert [event.token for event in rig.events if isinstance(event, Saved)] == [None]
        stored = await rig.stored()
        assert stored is not None
        assert (stored.rejection is None) is (kind is OutcomeUnknown)
        assert (stored.attempt is None) is (kind is GrantRejected)
        await rig.source.aclose()

    run(scene)


def test_a_token_that_could_not_be_stored_gives_way_to_a_newer_sign_in() -> None:
    """The late save is superseded, and the newer token is served."""

    async def scene() -> None:
        rig, store, clock = faulty(success(1))
        other = Rig(success(9), store=store, clock=clock)
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


def test_f27_closing_says_so_if_a_token_could_not_be_stored() -> None:
    """Closing with a token that is still not stored is an error: the old refresh token is spent."""

    async def scene() -> None:
        rig, store, clock = faulty(success(1))
        store.broken = {"write"}
        await rig.access()
        closing = asyncio.create_task(rig.source.aclose())
        for _ in range(60):
            await turns(20)
            clock.advance(1)
        with pytest.raises(StoreUnavailable, match="before the session closed"):
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
        rig, store, clock = faulty(success(1))
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
        rig = Rig(success(1), store=store, clock=clock)
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
        rig = Rig(success(1))
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
        rig = Rig(success(1), store=Damaged())
        with pytest.raises(StoreCorrupt):
            await rig.access()
        await rig.source.sign_in(refresh_token="new")
        assert await rig.access() == "access-1"

    run(scene)


@pytest.mark.parametrize("what", ["raises", "hangs"])
def test_f27_a_foreign_store_that_breaks_the_contract_on_commit_loses_no_rotated_token(what: str) -> None:
    """Whatever a store raises on commit, and if it never answers: the token is served, and saved later."""
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
        rig = Rig(success(1), store=store, clock=clock)
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


def test_f03_a_store_that_never_answers_is_a_typed_error_in_time() -> None:
    """A store that hangs is StoreUnavailable in time, and not a flight that everybody joins for ever."""

    class Deaf(MemoryStore):
        async def load(self, key: str) -> Record | None:
            await asyncio.Event().wait()
            return None

    async def scene() -> None:
        rig = Rig(store=Deaf())
        caller = asyncio.create_task(rig.access())
        await asleep(rig.clock, 10)
        rig.clock.advance(10)
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await caller

    run(scene)


def test_f27_f42_a_token_that_could_not_be_stored_is_stored_by_the_next_event_loop() -> None:
    """An unsaved token outlives its event loop: the next flight, in whatever loop, saves it first."""
    clock = FakeClock(jitter=0.5)
    store = FaultyStore(clock=clock)
    rig = Rig(success(1), success(2), store=store, clock=clock)
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
        again = token_response({"access_token": "access-1", "expires_in": LIFE, "refresh_token": "refresh-1"})
        rig = Rig(success(1), again)
        await rig.access()
        rig.clock.advance(LIFE)
        for _ in range(20):
            assert await rig.access() == "access-1"
        assert rig.posts == 2

    run(scene)


def test_a_refresh_ahead_that_failed_does_not_keep_a_caller_who_needs_a_token_waiting() -> None:
    """Its long back-off is for refreshes that nobody waits for; a 401 or an order is tried sooner."""

    async def scene() -> None:
        rig = Rig(success(1, life=100_000), NotSent("down"), success(2), clock=FakeClock(jitter=0.9))
        token = await rig.source.token()
        rig.clock.advance(100_000 - 310)
        await rig.access()
        await rig.landed()
        rig.clock.advance(1)
        assert (await rig.source.refresh(token)).access_token == "access-2"

    run(scene)
