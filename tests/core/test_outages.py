"""The token endpoint or the store is down: no token is lost, retries are spaced, and errors are typed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from _moments import (
    beside,
    corrupt,
    holding,
    keep_failing,
    let_pass,
    refresh_token_in,
    refused,
    reset,
    state_in,
    under_way,
    wait_in_vain_for_the_claim,
)
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, success, until_sleeping
from _scripted_store import Step, fail, hang, scripted

from tokensession import (
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    SignInRequired,
    StoreCorrupt,
    StoreUnavailable,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession.events import RefreshFailed, Saved, SaveFailed
from tokensession.providers.protocol import TokenResponse
from tokensession.stores import FileStore, SQLiteStore
from tokensession.testing import FakeClock, Paused, token_response

FAILURES: dict[str, Any] = {
    **{str(status): token_response(b"", status) for status in (502, 503, 504, 408)},
    "not sent": NotSent("no route"),
    "no response": OutcomeUnknown("lost"),
    "unreadable": token_response(["not", "a", "token"]),
}


@pytest.mark.parametrize("rotates", [False, True], ids=["permanent", "rotating"])
@pytest.mark.parametrize("failure", FAILURES)
def test_f24_no_temporary_failure_changes_the_stored_credentials(failure: str, rotates: bool) -> None:
    """A 5xx, a 408, no connection or no response leaves the stored token and refresh token as they are.

    What other processes have to know, a pause, is noted beside them. No connection may be this machine's own.
    """

    async def main() -> None:
        rig = await holding(FAILURES[failure], success(2), rotates=rotates)
        before, token = await rig.store.load("account"), (await state_in(rig)).token
        rig.clock.advance(LIFETIME)
        await refused(InvalidTokenResponse if failure == "unreadable" else TokenUnavailable, rig.access())
        assert (await state_in(rig)).token == token
        assert (await rig.store.load("account") == before) is (failure == "not sent")
        rig.clock.advance(60)
        assert await rig.access() == "access-2"
        assert "refresh_token=refresh-1" in rig.sent()

    run(main)


def limited(header: str | None) -> TokenResponse:
    """A 429 with this Retry-After."""
    return token_response({}, 429, (("retry-after", header),) if header else ())


@pytest.mark.parametrize(
    ("header", "pause"), [("120", 120.0), ("0", 1.0), ("99999", 3600.0), (None, 0.5), ("soon", 0.5)]
)
def test_f23_retry_after_is_honoured_within_bounds(header: str | None, pause: float) -> None:
    """A 429 is followed by the pause it asks for, from 1 s to an hour, or by that of any other failure."""

    async def main() -> None:
        rig = Rig(limited(header), success(1))
        for left in (pause, pause / 2):
            assert (await refused(RateLimited, rig.access())).retry_after == left
            rig.clock.advance(pause / 2)
        assert rig.token_requests == 1
        assert await rig.access() == "access-1"

    run(main)


@pytest.mark.parametrize(("header", "pause"), [(None, 60.0), ("7", 7.0)])
def test_f23_a_429_while_the_token_is_usable_pauses_for_a_minute_if_it_names_no_time(
    header: str | None, pause: float
) -> None:
    """No caller is waiting, and a minute is the shortest window of common rate limits."""

    async def main() -> None:
        rig = await holding(limited(header), success(2), age=LIFETIME - 299)
        for waited, requests in ((0.0, 2), (pause - 1, 2), (1.0, 3)):
            rig.clock.advance(waited)
            assert await rig.access() == "access-1"
            await rig.refreshed()
            assert rig.token_requests == requests
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


NO_READS: dict[str, Step] = {"load": fail, "claim": fail}
NO_WRITES: dict[str, Step] = {"put": fail, "commit": fail}


def test_f26_an_unreadable_store_does_not_clear_the_token_in_memory() -> None:
    """The token is served while it is valid, and then callers get our error. The store stays as it is."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        await rig.access()
        before = await store.load("account")
        store.steps |= NO_READS
        clock.advance(LIFETIME - 299)
        assert await rig.access() == "access-1"
        await rig.refreshed()
        assert await rig.access() == "access-1"
        clock.advance(LIFETIME)
        await refused(StoreUnavailable, rig.access())
        assert rig.token_requests == 1
        store.steps.clear()
        assert await store.load("account") == before, "nothing must be cleared"
        clock.advance(60)
        assert await rig.access() == "access-2"

    run(main)


@pytest.mark.parametrize("down", [NO_READS, {"claim": fail}], ids=["reading", "claiming"])
def test_f28_a_store_that_is_down_fails_at_once_and_is_not_taken_for_contention(
    down: dict[str, Step],
) -> None:
    """An outage is StoreUnavailable at once; only waiting for another holder ends in ClaimTimeout."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps |= down
        caller = asyncio.create_task(rig.access())
        await let_tasks_run()
        assert caller.done(), "the answer must come without any time passing"
        error = await refused(StoreUnavailable, caller)
        assert not isinstance(error, TokenUnavailable), "a ClaimTimeout is one"
        assert rig.token_requests == 0
        store.steps.clear()
        clock.advance(1)
        assert await rig.access() == "access-1"

    run(main)


@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
def test_f28_a_store_on_a_disk_that_is_gone_fails_without_waiting(
    tmp_path: Path, kind: type[FileStore | SQLiteStore]
) -> None:
    async def main() -> None:
        clock = FakeClock()
        rig = Rig(success(1), store=kind(tmp_path / "unmounted" / "tokens", clock=clock), clock=clock)
        await refused(StoreUnavailable, rig.access())
        assert rig.token_requests == 0
        await rig.store.aclose()

    run(main)


@pytest.mark.parametrize("way", ["refresh", "sign in"])
def test_f27_a_token_that_cannot_be_stored_is_served_and_stored_later(way: str) -> None:
    """It is served from memory and written again until it is stored, with an event for each failure."""

    async def main() -> None:
        paused = Paused(success(1))
        rig, store, clock = scripted(paused)
        call = rig.source.token() if way == "refresh" else rig.source.sign_in(code="once")
        caller = await under_way(call, paused)
        store.steps |= NO_WRITES
        paused.release()
        assert (await caller).access_token == "access-1"
        for _ in range(3):
            assert rig.source.snapshot().unsaved
            await clock.slept()
            await let_pass(clock, 31)
        assert sum(isinstance(event, SaveFailed) for event in rig.events) >= 3
        assert await rig.access() == "access-1"
        store.steps.clear()
        await clock.slept()
        await let_pass(clock, 31)
        assert isinstance(rig.events[-1], Saved)
        assert not rig.source.snapshot().unsaved
        assert await refresh_token_in(rig) == "refresh-1"

    run(main)


@pytest.mark.parametrize(
    ("end", "kind", "pause"),
    [(invalid_grant(), GrantRejected, 10_000.0), (limited("600"), RateLimited, 600.0)],
    ids=["rejected", "limited"],
)
def test_f21_f23_a_note_that_cannot_be_stored_is_kept_in_memory_and_holds_no_claim(
    end: Any, kind: type[Exception], pause: float
) -> None:
    """This process sends nothing more, and any other one may find out for itself with one request."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), end)
        await rig.access()
        clock.advance(LIFETIME)
        store.steps |= NO_WRITES
        await keep_failing(kind, rig, times=20, pause=pause / 40)
        assert rig.token_requests == 2
        assert not rig.source.snapshot().unsaved
        assert not store.has_claims()
        store.steps.clear()
        other = beside(rig, end)
        await keep_failing(kind, other, rig, times=2, pause=2)
        assert (rig.token_requests, other.token_requests) == (2, 1)
        assert not any(isinstance(event, Saved | SaveFailed) for event in rig.events)

    run(main)


def test_f17_f27_a_lost_response_whose_note_cannot_be_stored_is_remembered_in_memory() -> None:
    """The pause holds, and a rejection afterwards says that the lost request has probably spent the token."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), OutcomeUnknown("lost"), invalid_grant())
        await rig.access()
        clock.advance(LIFETIME)
        store.steps |= NO_WRITES
        await keep_failing(OutcomeUnknown, rig, times=2, pause=1)
        assert not store.has_claims()
        assert rig.token_requests == 2, "it may still be on its way"
        clock.advance(1)
        await refused(GrantLost, rig.access())

    run(main)


def test_an_unsaved_token_gives_way_to_a_newer_sign_in() -> None:
    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps["commit"] = fail
        await rig.access()
        signing_in = asyncio.create_task(beside(rig, success(9)).source.sign_in(code="new"))
        await wait_in_vain_for_the_claim(clock)
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
        rig, store, _ = scripted(success(1))
        for step in ("load", "claim", "put"):
            store.steps = {step: fail}
            await refused(StoreUnavailable, rig.source.sign_in(code="once"))
        assert rig.transport.sent == 0
        store.steps.clear()
        assert (await rig.source.sign_in(code="once")).access_token == "access-1"

    run(main)


def test_a_sign_out_that_cannot_be_stored_fails_and_changes_nothing() -> None:
    async def main() -> None:
        rig, store, _ = scripted(success(1))
        await rig.access()
        store.steps["put"] = fail
        await refused(StoreUnavailable, rig.source.sign_out())
        assert await rig.access() == "access-1"

    run(main)


def test_any_exception_of_a_third_party_store_becomes_a_typed_error() -> None:
    """The original exception is its cause."""

    async def main() -> None:
        rig, store, _ = scripted()
        store.steps["claim"] = reset
        cause: BaseException | None = await refused(
            TokenSessionError, rig.access(), match="ConnectionResetError"
        )
        while cause is not None and not isinstance(cause, ConnectionResetError):
            cause = cause.__cause__
        assert cause is not None

    run(main)


@pytest.mark.parametrize("readable", [True, False], ids=["garbage", "the store cannot read it"])
def test_a_damaged_record_is_an_error_until_you_sign_in(readable: bool) -> None:
    """A refresh does not overwrite it, because you may be able to repair it. A sign-in replaces it."""

    async def main() -> None:
        rig, store, _ = scripted(success(1))
        if readable:
            await store.put("account", b"\x00garbage")
        else:

            async def replaced() -> None:
                store.steps.clear()

            store.steps |= {"load": corrupt, "claim": corrupt, "stored": replaced}
        await refused(StoreCorrupt, rig.access())
        assert rig.token_requests == 0
        await rig.source.sign_in(refresh_token="new")
        assert await rig.access() == "access-1"

    run(main)


def test_a_rejected_code_leaves_a_record_that_cannot_be_read_as_it_is() -> None:
    """A newer version, or another process with the right key, can read it. The code is not sent again."""

    async def main() -> None:
        rig, store, _ = scripted(invalid_grant())
        before = await store.put("account", b"of a newer version")
        await refused(GrantRejected, rig.source.sign_in(code="wrong"))
        await refused(SignInRequired, rig.source.sign_in(code="wrong"), match="redeemed already")
        assert await store.load("account") == before
        assert rig.transport.sent == 1

    run(main)


@pytest.mark.parametrize(("step", "seconds"), [("load", 10), ("claim", 40)])
def test_f03_a_store_that_never_answers_is_a_typed_error_in_time(step: str, seconds: int) -> None:
    """After `store_timeout`, and with the wait for a claim before it, the refresh ends."""

    async def main() -> None:
        rig, store, clock = scripted(configured=None if step == "load" else "configured-token")
        store.steps |= {"load": hang, "claim": hang}
        caller = asyncio.create_task(rig.access())
        await until_sleeping(clock, seconds)
        for _ in range(seconds):
            await let_pass(clock, 1)
        await refused(StoreUnavailable if step == "load" else OutcomeUnknown, caller)
        await rig.refreshed()
        assert any(isinstance(e, RefreshFailed) and e.error == "StoreUnavailable" for e in rig.events)

    run(main)


def test_f27_f42_a_token_that_could_not_be_stored_is_stored_by_the_next_event_loop() -> None:
    """An unsaved token outlives its event loop: the next refresh, in any loop, saves it first."""
    rig, store, clock = scripted(success(1), success(2))
    store.steps |= NO_WRITES
    assert asyncio.run(rig.access()) == "access-1"
    store.steps.clear()
    clock.advance(LIFETIME)
    assert asyncio.run(rig.access()) == "access-2"
    assert "refresh_token=refresh-1" in rig.sent()
    assert not rig.source.snapshot().unsaved


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
        assert (await caller).obtained_at == sent
        assert rig.source.snapshot().seconds_left == LIFETIME - 15
        assert (await state_in(rig)).obtained == rig.clock.boot() - 15
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
