"""The token endpoint or the store is down: no token is lost, retries are spaced, and errors are typed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from _moments import holding, keep_failing, let_pass, refresh_token_in, refused, state_in, under_way
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, success, until_sleeping
from _scripted_store import fail, scripted

from tokensession import (
    ClientRejected,
    GrantLost,
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
from tokensession.testing import FakeClock, Paused, token_response


def test_f25_a_background_refresh_that_fails_is_an_event_and_not_an_error() -> None:
    """Callers go on getting the valid token."""

    async def main() -> None:
        rig = await holding(NotSent("down"), clock=FakeClock(jitter=0.5), age=LIFETIME - 299)
        assert await rig.access() == "access-1"
        await rig.refreshed()
        assert await rig.access() == "access-1"
        assert isinstance(rig.events[-1], RefreshFailed)
        assert rig.events[-1].still_usable > 0

    run(main)


def test_f22_a_caller_during_the_back_off_gets_the_error_with_the_remaining_pause() -> None:
    """A minute without a token endpoint costs two dozen requests, and each error says when to try again."""

    async def main() -> None:
        rig = Rig(*(NotSent("down") for _ in range(1000)), clock=FakeClock(jitter=0.5))
        errors: list[BaseException] = []
        for _ in range(60):
            found = await asyncio.gather(*(rig.access() for _ in range(170)), return_exceptions=True)
            errors += [error for error in found if isinstance(error, BaseException)]
            rig.clock.advance(1)
        assert len(errors) == 60 * 170
        assert all(isinstance(e, NotSent) and e.retry_after is not None for e in errors)
        assert rig.token_requests <= 25

    run(main)


def test_f24_a_5xx_changes_no_credentials() -> None:
    """After a 502 and a 503 the same refresh token works."""

    async def main() -> None:
        rig = await holding(
            token_response(b"<html>", 502), token_response(b"", 503), success(2), age=LIFETIME
        )
        await keep_failing(TokenUnavailable, rig, times=2, pause=60)
        assert await rig.access() == "access-2"
        assert "refresh_token=refresh-1" in rig.sent()

    run(main)


@pytest.mark.parametrize("rotates", [False, True], ids=["permanent", "rotating"])
@pytest.mark.parametrize("failure_kind", [502, 503, 504, 408, "not sent", "no response"])
def test_f24_no_temporary_failure_changes_the_stored_credentials(failure_kind: Any, rotates: bool) -> None:
    """A 5xx, a 408, no connection or no response leaves the stored token and refresh token as they are.

    What other processes have to know, a pause, is noted beside them. No connection may be this machine's own.
    """

    async def main() -> None:
        failure = {"not sent": NotSent("no route"), "no response": OutcomeUnknown("lost")}
        answer = failure[failure_kind] if isinstance(failure_kind, str) else token_response(b"", failure_kind)
        rig = await holding(answer, success(2), rotates=rotates)
        before = await rig.store.load("account")
        before_state = await rig.stored()
        rig.clock.advance(LIFETIME)
        await refused(TokenUnavailable, rig.access())
        stored = await state_in(rig)
        assert before_state is not None
        assert stored.token == before_state.token
        assert (await rig.store.load("account") == before) is (failure_kind == "not sent")
        rig.clock.advance(60)
        assert await rig.access() == "access-2"
        assert "refresh_token=refresh-1" in rig.sent()

    run(main)


@pytest.mark.parametrize(
    ("header", "pause"), [("120", 120.0), ("0", 1.0), ("99999", 3600.0), (None, 0.5), ("soon", 0.5)]
)
def test_f23_retry_after_is_honoured_within_bounds(header: str | None, pause: float) -> None:
    """A 429 is followed by the pause it asks for, from 1 s to an hour, or by that of any other failure."""

    async def main() -> None:
        headers = (("retry-after", header),) if header else ()
        rig = Rig(token_response({}, 429, headers), success(1))
        limited = await refused(RateLimited, rig.access())
        assert limited.retry_after == pause
        rig.clock.advance(pause / 2)
        limited = await refused(RateLimited, rig.access())
        assert limited.retry_after == pause / 2
        assert rig.token_requests == 1
        rig.clock.advance(pause / 2)
        assert await rig.access() == "access-1"

    run(main)


@pytest.mark.parametrize(("header", "pause"), [(None, 60.0), ("7", 7.0)])
def test_f23_a_429_while_the_token_is_usable_pauses_for_a_minute_if_it_names_no_time(
    header: str | None, pause: float
) -> None:
    """No caller is waiting, and a minute is the shortest window of common rate limits."""

    async def main() -> None:
        headers = (("retry-after", header),) if header else ()
        rig = await holding(token_response({}, 429, headers), success(2), age=LIFETIME - 299)
        for waited, requests in ((0.0, 2), (pause - 1, 2), (1.0, 3)):
            rig.clock.advance(waited)
            assert await rig.access() == "access-1"
            await rig.refreshed()
            assert rig.token_requests == requests
        assert await rig.access() == "access-2"

    run(main)


def test_a_rejected_client_sends_one_request_a_minute() -> None:
    """The error says what to check."""

    async def main() -> None:
        rig = Rig(token_response({"error": "invalid_client"}, 401), success(1))
        await keep_failing(ClientRejected, rig, times=20, pause=2, match="credentials")
        assert rig.token_requests == 1
        rig.clock.advance(60)
        assert await rig.access() == "access-1"

    run(main)


def test_an_invalid_token_response_leaves_the_stored_token_alone() -> None:
    """It is a typed error, and the next refresh works."""

    async def main() -> None:
        rig = await holding(token_response(["not", "a", "token"]), success(2), age=LIFETIME)
        await refused(InvalidTokenResponse, rig.access())
        rig.clock.advance(60)
        assert await rig.access() == "access-2"

    run(main)


def test_f25_in_an_outage_a_token_is_served_until_it_expires() -> None:
    """ENDING begins a minute early: if the refresh fails, callers get the old token until its real end."""

    async def main() -> None:
        rig = await holding(NotSent("down"), NotSent("down"), age=LIFETIME - 30)
        assert await rig.access() == "access-1"
        rig.clock.advance(30)
        await refused(NotSent, rig.access())

    run(main)


class FaultyStore(MemoryStore):
    """A store that fails at the steps in `broken`: "load" is any reading, and "write" any writing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.broken: set[str] = set()

    def _check(self, what: str) -> None:
        if what in self.broken:
            raise StoreUnavailable(f"The disk is on fire ({what}).")

    async def load(self, key: str) -> Record | None:
        self._check("load")
        return await super().load(key)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        self._check("load")
        self._check("claim")
        return await super().claim(key, seen=seen, timeout=timeout)

    async def put(self, key: str, data: bytes, *, expect: Any = ANY) -> Record:
        self._check("put")
        return await super().put(key, data, expect=expect)

    def _write(self, key: str, record: Record, expect: Any) -> Record:
        self._check("write")
        return super()._write(key, record, expect)


def faulty(*script: Any) -> tuple[Rig, FaultyStore, FakeClock]:
    """A rig over a `FaultyStore`."""
    clock = FakeClock(jitter=0.5)
    store = FaultyStore(clock=clock)
    return Rig(*script, store=store, clock=clock), store, clock


def test_f26_an_unreadable_store_does_not_clear_the_token_in_memory() -> None:
    """The token is served while it is valid, and then callers get our error. The store stays as it is."""

    async def main() -> None:
        clock = FakeClock()
        store = FaultyStore(clock=clock)
        rig = await holding(success(2), store=store, clock=clock)
        before = await store.load("account")
        store.broken = {"load"}
        clock.advance(LIFETIME - 299)
        assert await rig.access() == "access-1"
        await rig.refreshed()
        assert await rig.access() == "access-1"
        clock.advance(LIFETIME)
        await refused(StoreUnavailable, rig.access())
        assert rig.token_requests == 1
        store.broken = set()
        assert await store.load("account") == before, "nothing must be cleared"
        clock.advance(60)
        assert await rig.access() == "access-2"

    run(main)


@pytest.mark.parametrize("where", ["load", "claim"])
def test_f28_a_store_that_is_down_fails_at_once_and_is_not_taken_for_contention(where: str) -> None:
    """An outage is StoreUnavailable at once; only waiting for another holder ends in ClaimTimeout."""

    async def main() -> None:
        clock = FakeClock()
        store = FaultyStore(clock=clock)
        rig = Rig(success(1), store=store, clock=clock)
        store.broken = {where}
        caller = asyncio.create_task(rig.access())
        await let_tasks_run()
        assert caller.done(), "the answer must come without any time passing"
        error = caller.exception()
        assert isinstance(error, StoreUnavailable)
        assert not isinstance(error, TokenUnavailable), "a ClaimTimeout is one"
        assert rig.token_requests == 0
        store.broken = set()
        clock.advance(1)
        assert await rig.access() == "access-1"

    run(main)


@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
def test_f28_a_store_on_a_disk_that_is_gone_fails_without_waiting(
    tmp_path: Path, kind: type[FileStore] | type[SQLiteStore]
) -> None:
    """A missing directory is StoreUnavailable, without waiting and without a token request."""

    async def main() -> None:
        clock = FakeClock()
        store = kind(tmp_path / "unmounted" / "tokens", clock=clock)
        rig = Rig(success(1), store=store, clock=clock)
        await refused(StoreUnavailable, rig.access())
        assert rig.token_requests == 0
        await store.aclose()

    run(main)


def test_f27_a_rotated_token_that_cannot_be_stored_is_served_and_stored_later() -> None:
    """It is served from memory and written again until it is stored, with an event for each failure."""

    async def main() -> None:
        rig, store, clock = faulty(success(1))
        store.broken = {"write"}
        assert await rig.access() == "access-1"
        assert rig.source.snapshot().unsaved
        for _ in range(3):
            await clock.slept()
            await let_pass(clock, 31)
        assert sum(isinstance(event, SaveFailed) for event in rig.events) >= 3
        assert await rig.access() == "access-1"
        store.broken = set()
        await clock.slept()
        await let_pass(clock, 31)
        assert isinstance(rig.events[-1], Saved)
        assert not rig.source.snapshot().unsaved
        assert await refresh_token_in(rig) == "refresh-1"

    run(main)


LIMITED = token_response({}, 429, (("retry-after", "600"),))


@pytest.mark.parametrize(
    ("end", "kind", "pause"),
    [(invalid_grant(), GrantRejected, 10_000.0), (LIMITED, RateLimited, 600.0)],
    ids=["rejected", "limited"],
)
def test_f21_f23_a_note_that_cannot_be_stored_is_kept_in_memory_and_holds_no_claim(
    end: Any, kind: type[Exception], pause: float
) -> None:
    """This process sends nothing more, and any other one may find out for itself with one request."""

    async def main() -> None:
        rig, store, clock = faulty(success(1), end)
        await rig.access()
        clock.advance(LIFETIME)
        store.broken = {"write"}
        await keep_failing(kind, rig, times=20, pause=pause / 40)
        assert rig.token_requests == 2
        assert not rig.source.snapshot().unsaved
        assert not store._holders
        store.broken = set()
        other = Rig(end, store=store, clock=clock)
        for _ in range(2):
            await refused(kind, other.access(), rig.access())
            clock.advance(2)
        assert (rig.token_requests, other.token_requests) == (2, 1)
        assert not any(isinstance(event, Saved | SaveFailed) for event in rig.events)

    run(main)


def test_f17_f27_a_lost_response_whose_note_cannot_be_stored_is_remembered_in_memory() -> None:
    """The pause holds, and a rejection afterwards says that the lost request has probably spent the token."""

    async def main() -> None:
        rig, store, clock = faulty(success(1), OutcomeUnknown("lost"), invalid_grant())
        await rig.access()
        clock.advance(LIFETIME)
        store.broken = {"write"}
        await refused(OutcomeUnknown, rig.access())
        assert not store._holders
        clock.advance(1)
        await refused(OutcomeUnknown, rig.access())
        assert rig.token_requests == 2, "it may still be on its way"
        clock.advance(1)
        await refused(GrantLost, rig.access())

    run(main)


def test_an_unsaved_token_gives_way_to_a_newer_sign_in() -> None:
    """The late write is superseded, and the newer token is served."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps["commit"] = fail
        await rig.access()
        other = Rig(success(9), store=store, clock=clock)
        signing_in = asyncio.create_task(other.source.sign_in(code="new"))
        await let_tasks_run()
        clock.advance(5)  # sign_in_wait: it does without the claim
        await signing_in
        store.steps.clear()
        await let_pass(clock, 31)
        assert await rig.access() == "access-9"
        assert not rig.source.snapshot().unsaved
        assert not store.has_claims()
        assert not any(isinstance(event, Saved) for event in rig.events), "it was never stored"

    run(main)


def test_a_code_is_not_spent_when_the_store_is_down() -> None:
    """Signing in looks at the store first, and notes there that the code is being sent."""

    async def main() -> None:
        rig, store, _ = faulty(success(1))
        for step in ("load", "claim", "put"):
            store.broken = {step}
            await refused(StoreUnavailable, rig.source.sign_in(code="once"))
        assert rig.transport.sent == 0
        store.broken = set()
        assert (await rig.source.sign_in(code="once")).access_token == "access-1"

    run(main)


def test_a_sign_in_that_cannot_be_stored_is_served_and_stored_later() -> None:
    """A code works once, so its token must not be lost."""

    async def main() -> None:
        paused = Paused(success(1))
        rig, store, clock = faulty(paused)
        signing_in = await under_way(rig.source.sign_in(code="once"), paused)
        store.broken = {"put"}
        paused.release()
        await signing_in
        assert await rig.access() == "access-1"
        assert rig.source.snapshot().unsaved
        store.broken = set()
        await clock.slept()
        await let_pass(clock, 31)
        assert await rig.stored_access() == "access-1"

    run(main)


def test_a_sign_out_that_cannot_be_stored_fails_and_changes_nothing() -> None:
    """The token is served as before."""

    async def main() -> None:
        clock = FakeClock()
        store = FaultyStore(clock=clock)
        rig = await holding(store=store, clock=clock)
        store.broken = {"put"}
        await refused(StoreUnavailable, rig.source.sign_out())
        assert await rig.access() == "access-1"

    run(main)


def test_any_exception_of_a_third_party_store_becomes_a_typed_error() -> None:
    """The original exception is its cause."""

    class BrokenStore(MemoryStore):
        async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
            raise ConnectionResetError("by peer")

    async def main() -> None:
        rig = Rig(store=BrokenStore())
        error = await refused(TokenSessionError, rig.access(), match="ConnectionResetError")
        causes = []
        cause: BaseException | None = error.value
        while cause is not None:
            causes.append(type(cause))
            cause = cause.__cause__
        assert ConnectionResetError in causes

    run(main)


def test_a_corrupt_record_is_an_error_until_you_sign_in() -> None:
    """A refresh does not overwrite it, because you may be able to repair it."""

    async def main() -> None:
        rig = Rig(success(1))
        await rig.store.put("account", b"\x00garbage")
        await refused(StoreError, rig.access())
        assert rig.token_requests == 0
        await rig.source.sign_in(refresh_token="new")
        assert await rig.access() == "access-1"

    run(main)


def test_a_sign_in_replaces_a_record_that_the_store_cannot_read() -> None:
    """StoreCorrupt from the store does not stop a sign-in."""

    class DamagedStore(MemoryStore):
        async def load(self, key: str) -> Record | None:
            if not self._records:
                raise StoreCorrupt("The file is damaged.")
            return await super().load(key)

        async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
            await self.load(key)
            return await super().claim(key, seen=seen, timeout=timeout)

    async def main() -> None:
        rig = Rig(success(1), store=DamagedStore())
        await refused(StoreCorrupt, rig.access())
        await rig.source.sign_in(refresh_token="new")
        assert await rig.access() == "access-1"

    run(main)


@pytest.mark.parametrize("what", ["raises", "hangs"])
def test_f27_a_third_party_store_whose_commit_fails_or_hangs_loses_no_rotated_token(what: str) -> None:
    """The token is served from memory, and saved later."""
    hanging = asyncio.Event()

    class BrokenStore(MemoryStore):
        broken = True

        async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
            claim = await super().claim(key, seen=seen, timeout=timeout)
            commit = claim.commit if not isinstance(claim, Record) else None

            async def broken_commit(data: bytes) -> Record:
                if self.broken and what == "raises":
                    raise ConnectionResetError("by peer")
                if self.broken:
                    hanging.set()
                    await asyncio.Event().wait()
                assert commit is not None
                return await commit(data)

            if not isinstance(claim, Record):
                claim.commit = broken_commit  # type: ignore[method-assign]
            return claim

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        store = BrokenStore(clock=clock)
        rig = Rig(success(1), store=store, clock=clock)
        caller = asyncio.create_task(rig.access())
        if what == "hangs":
            await hanging.wait()
            await until_sleeping(clock, 10)
            clock.advance(10)
        assert await caller == "access-1"
        assert rig.source.snapshot().unsaved
        store.broken = False
        for _ in range(3):
            await let_tasks_run()
            clock.advance(31)
        await let_tasks_run()
        assert not rig.source.snapshot().unsaved
        assert await refresh_token_in(rig) == "refresh-1"

    run(main)


@pytest.mark.parametrize(("step", "seconds"), [("load", 10), ("claim", 40)])
def test_f03_a_store_that_never_answers_is_a_typed_error_in_time(step: str, seconds: int) -> None:
    """After `store_timeout`, and with the wait for a claim before it, the refresh ends."""

    class HangingStore(MemoryStore):
        async def load(self, key: str) -> Record | None:
            await asyncio.Event().wait()
            return None

        async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
            await asyncio.Event().wait()

    async def main() -> None:
        rig = Rig(store=HangingStore(), configured=None if step == "load" else "configured-token")
        caller = asyncio.create_task(rig.access())
        await until_sleeping(rig.clock, seconds)
        for _ in range(seconds):
            await let_pass(rig.clock, 1)
        await refused(StoreUnavailable if step == "load" else OutcomeUnknown, caller)
        await rig.refreshed()
        assert any(isinstance(e, RefreshFailed) and e.error == "StoreUnavailable" for e in rig.events)

    run(main)


def test_f27_f42_a_token_that_could_not_be_stored_is_stored_by_the_next_event_loop() -> None:
    """An unsaved token outlives its event loop: the next refresh, in any loop, saves it first."""
    clock = FakeClock(jitter=0.5)
    store = FaultyStore(clock=clock)
    rig = Rig(success(1), success(2), store=store, clock=clock)
    store.broken = {"write"}
    assert asyncio.run(rig.access()) == "access-1"
    store.broken = set()
    clock.advance(LIFETIME)
    assert asyncio.run(rig.access()) == "access-2"
    assert "refresh_token=refresh-1" in rig.sent()
    assert not rig.source.snapshot().unsaved


def test_the_same_access_token_with_a_new_lifetime_causes_no_refresh_loop() -> None:
    """Some servers return the token they have, with its remaining lifetime."""

    async def main() -> None:
        again = token_response(
            {"access_token": "access-1", "expires_in": LIFETIME, "refresh_token": "refresh-1"}
        )
        rig = await holding(again, age=LIFETIME)
        for _ in range(20):
            assert await rig.access() == "access-1"
        assert rig.token_requests == 2

    run(main)


def test_a_forced_refresh_does_not_wait_for_the_back_off_of_a_background_refresh() -> None:
    """That long back-off is only for refreshes that no caller waits for."""

    async def main() -> None:
        rig = Rig(success(1, expires_in=100_000), NotSent("down"), success(2), clock=FakeClock(jitter=0.9))
        token = await rig.source.token()
        rig.clock.advance(100_000 - 310)
        await rig.access()
        await rig.refreshed()
        rig.clock.advance(1)
        assert (await rig.source.refresh(token)).access_token == "access-2"

    run(main)


@pytest.mark.parametrize("way", ["refresh", "sign in"])
def test_f35_a_tokens_life_counts_from_when_its_request_left(way: str) -> None:
    """Not from when it was answered: the server may have issued it at any moment in between."""

    async def main() -> None:
        paused = Paused(success(1))
        rig = Rig(paused, success(2))
        sent = rig.clock.wall()
        call = rig.source.token() if way == "refresh" else rig.source.sign_in(refresh_token="new")
        caller = await under_way(call, paused)
        rig.clock.advance(15)
        paused.release()
        token = await caller
        assert token.obtained_at == sent
        assert rig.source.snapshot().seconds_left == LIFETIME - 15
        state = await state_in(rig)
        assert state.obtained == rig.clock.boot() - 15
        rig.clock.advance(LIFETIME - 15)
        assert await rig.access() == "access-2"

    run(main)


def test_f25_a_refresh_starts_when_the_token_is_due_although_the_wall_clock_is_read_once_a_second() -> None:
    """On a boot clock that counts sleep, a look at it is enough, and it knows when the token is due."""

    async def main() -> None:
        rig = await holding(success(2), clock=FakeClock(boot_counts_sleep=True), age=LIFETIME - 300.5)
        assert await rig.access() == "access-1"
        assert rig.token_requests == 1
        rig.clock.advance(0.5)
        assert await rig.access() == "access-1"
        await rig.refreshed()
        assert rig.token_requests == 2

    run(main)
