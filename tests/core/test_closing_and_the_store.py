"""Closing saves what is unsaved, within one deadline, and keeps in memory what it could not save."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _moments import let_pass
from _rig import (
    LIFETIME,
    Rig,
    begun,
    expired,
    failed_after,
    invalid_grant,
    let_tasks_run,
    run,
    seconds_until_done,
    success,
    took,
    until_sleeping,
)
from _scripted_store import Hanging, ScriptedStore, fail, hang, scripted

from tokensession import AuthedSession, GrantRejected, Policy, SignedOut, StoreUnavailable, TokenUnavailable
from tokensession.providers import Priava
from tokensession.stores import SQLiteStore
from tokensession.testing import FakeClock, Paused, PriavaServer

BOUND = Policy().close_timeout
DOWN = {"commit": fail, "put": fail}


async def close_in_vain(rig: Rig) -> float:
    """Close although nothing can be saved, and return how long it took."""
    closing = rig.source.aclose()
    return await failed_after(StoreUnavailable, closing, rig.clock, match="before the session closed")


def test_f18_closing_saves_pending_writes_at_once() -> None:
    """The pause before the next try may be longer than `close_timeout`, and the store may work again."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps["commit"] = fail
        await rig.access()
        await until_sleeping(clock, 1)
        clock.advance(3600)
        await until_sleeping(clock, 30)
        store.steps.clear()
        assert await took(rig.source.aclose(), clock) == 0
        assert await rig.stored_access() == "access-1"

    run(main)


def test_mutant_6_closing_tries_once_more_to_save_what_it_had_to_cut_off() -> None:
    """A write that hangs is stopped at last, and the store may work again by then."""

    async def main() -> None:
        steps = iter((hang, fail))

        async def commit() -> None:
            await next(steps, let_tasks_run)()

        rig, store, clock = scripted()
        store.steps["commit"] = commit
        paused, caller = await rig.in_flight(success(1))
        closing = await begun(rig.source.aclose())
        clock.advance(15)
        paused.release()
        assert await took(closing, clock) <= BOUND
        await asyncio.gather(caller, return_exceptions=True)
        assert await rig.stored_access() == "access-1"
        assert not store.has_claims()

    run(main)


def test_f18_closing_raises_if_a_hanging_store_has_not_stored_the_new_token() -> None:
    """A commit that never ends is not reported as a clean end."""

    async def main() -> None:
        rig, store, clock = scripted()
        store.steps["commit"] = hang
        paused, caller = await rig.in_flight(success(1))
        closing = await begun(rig.source.aclose())
        clock.advance(18)  # a slow token endpoint
        paused.release()
        await failed_after(StoreUnavailable, closing, clock, match="before the session closed")
        await failed_after(TokenUnavailable, caller, clock)

    run(main)


def test_f18_a_sign_in_that_is_stopped_unsaved_releases_an_older_claim() -> None:
    """Two things are unsaved at the end, and no claim stays held."""

    async def main() -> None:
        paused = Paused(success(2))
        rig, store, clock = scripted(success(1), paused)
        store.steps |= {"commit": fail, "put": hang}
        await rig.access()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await took(paused.arrived.wait(), clock)
        closing = await begun(rig.source.aclose())
        clock.advance(19)
        paused.release()
        assert await failed_after(StoreUnavailable, closing, clock) <= BOUND
        await failed_after(TokenUnavailable, signing_in, clock)
        assert not store._holders

    run(main)


async def unsaved_at_closing(*script: Any) -> tuple[Rig, ScriptedStore, FakeClock]:
    """A process whose closing could not save access-2. The store has access-1, and works again."""
    rig, store, clock = scripted(success(1), success(2), *script)
    async with rig.source:
        await rig.access()
    clock.advance(LIFETIME)
    store.steps |= DOWN
    assert await rig.access() == "access-2"
    await close_in_vain(rig)
    store.steps.clear()
    return rig, store, clock


def test_k09_a_source_whose_closing_could_not_save_goes_on_with_its_token() -> None:
    """The refresh token in the store is spent. The one in memory is served, stored and used next."""

    async def main() -> None:
        rig, _, clock = await unsaved_at_closing(success(3))
        async with rig.source:
            assert await rig.access() == "access-2"
            clock.advance(LIFETIME)
            assert await rig.access() == "access-3"
            assert "refresh_token=refresh-2" in rig.sent()
        assert await rig.stored_access() == "access-3"

    run(main)


def test_f27_k09_a_source_that_is_entered_again_saves_its_token_without_a_refresh() -> None:
    """The refresh token in the store is spent, and this process may be killed before the token is due."""

    async def main() -> None:
        rig, _, clock = await unsaved_at_closing()
        async with rig.source:
            await let_tasks_run()
            await let_pass(clock, 1)
            assert await rig.stored_access() == "access-2"
            assert not rig.source.snapshot().unsaved

    run(main)


def test_f27_the_next_event_loop_goes_on_saving_what_the_last_one_could_not() -> None:
    """Nothing was closed in between. Until it is stored, the claim keeps other processes from refreshing."""
    rig, store, clock = scripted(success(1))
    store.steps |= DOWN
    asyncio.run(rig.access())
    assert store.has_claims()
    store.steps.clear()

    async def main() -> None:
        assert await rig.access() == "access-1"
        await let_tasks_run()
        await let_pass(clock, 1)
        assert await rig.stored_access() == "access-1"
        assert not store.has_claims()

    run(main)


def test_f27_k09_closing_raises_what_it_could_not_save_and_closing_again_saves_it() -> None:
    """The old refresh token is spent, so the new one must be stored. No request is made in between."""

    async def main() -> None:
        rig, _, clock = await unsaved_at_closing()
        await took(rig.source.aclose(), clock)
        assert await rig.stored_access() == "access-2"
        assert not rig.source.snapshot().unsaved

    run(main)


@pytest.mark.parametrize("later", ["sign-in", "sign-out"])
def test_k09_a_later_sign_in_or_sign_out_counts_more_than_what_closing_could_not_save(later: str) -> None:
    """Another process has stored it in between, and the token in memory is given up."""

    async def main() -> None:
        rig, _, clock = await unsaved_at_closing()
        clock.advance(LIFETIME - 100)
        other = rig.peer(success(7))
        if later == "sign-in":
            await other.source.sign_in(refresh_token="new")
        else:
            await other.source.sign_out()
        async with rig.source:
            await rig.access()  # due: it looks
            await rig.refreshed()
            if later == "sign-in":
                assert await rig.access() == "access-7"
            else:
                with pytest.raises(SignedOut):
                    await rig.access()
        assert (await rig.state()).signed_out is (later == "sign-out")
        assert rig.token_requests == 2

    run(main)


def test_f18_k09_a_rejection_of_the_spent_refresh_token_does_not_end_the_sign_in() -> None:
    """Closing has released its claim: another process has sent it since, and noted what came of it."""

    async def main() -> None:
        rig, _, clock = await unsaved_at_closing(success(3))
        other = rig.peer(invalid_grant())  # it sends refresh-1, which is spent
        with pytest.raises(GrantRejected):
            await other.access()
        async with rig.source:
            clock.advance(LIFETIME)
            assert await rig.access() == "access-3"
        assert await other.stored_access() == "access-3"
        clock.advance(1)
        assert await other.access() == "access-3"

    run(main)


def test_k09_a_session_that_is_entered_again_never_sends_a_spent_refresh_token() -> None:
    """With a server that detects the reuse of a refresh token."""

    async def main() -> None:
        store = ScriptedStore()
        async with PriavaServer() as server:
            session = AuthedSession(
                Priava(**server.credentials), store=store, policy=Policy(close_timeout=0.01)
            )
            async with session:
                await session.source.token()
            store.steps |= DOWN
            with pytest.raises(StoreUnavailable, match="use this session again"):
                async with session:
                    await session.source.refresh()
            store.steps.clear()
            async with session:
                for _ in range(2):
                    async with session.get("/echo") as response:
                        assert response.status == 200
                    await session.source.refresh()
            assert (server.stats.reuse_detections, server.stats.rejections) == (0, 0)
            assert server.stats.token_requests == 4

    run(main)


@pytest.mark.parametrize("stubborn", [False, True], ids=["hangs", "ignores its cancellation"])
@pytest.mark.parametrize("where", ["", "aclose", "commit", "commit put", "commit put abandon aclose"])
@pytest.mark.parametrize("close_timeout", [25, 3])
def test_f68_closing_is_over_by_its_timeout_wherever_the_store_hangs(
    where: str, stubborn: bool, close_timeout: float
) -> None:
    """Waiting for the request, the write, the claim and the store's own closing share one deadline."""

    async def main() -> None:
        hanging = Hanging(stubborn=stubborn)
        rig, store, clock = scripted(policy=Policy(retry_within=0, close_timeout=close_timeout))
        paused, caller = await rig.in_flight(success(1))
        store.steps |= dict.fromkeys(where.split(), hanging)
        # As `aclose` of a source that owns its store.
        closing = await begun(rig.source._coordinator.close(lambda: store.step("aclose")))
        clock.advance(close_timeout / 2)
        if where:
            paused.release()
        try:
            assert close_timeout / 2 + await seconds_until_done(closing, clock) <= close_timeout
        finally:
            hanging.end.set()
            await asyncio.gather(closing, caller, return_exceptions=True)

    run(main)


def test_f67_f68_closing_that_is_cancelled_does_not_wait_for_a_store_that_hangs() -> None:
    """It ends at once. The next call closes the store."""

    async def main() -> None:
        hanging = Hanging(stubborn=False)
        rig, store, _ = scripted()
        paused, caller = await rig.in_flight(success(1))
        store.steps["aclose"] = hanging
        closing = await begun(rig.source._coordinator.close(lambda: store.step("aclose")))
        closing.cancel()
        await let_tasks_run()
        assert closing.cancelled()
        hanging.end.set()
        paused.release()
        await rig.source._coordinator.close(lambda: store.step("aclose"))
        assert await caller == "access-1"

    run(main)


def test_f68_k10_a_database_that_another_program_locks_does_not_hold_up_closing(tmp_path: Path) -> None:
    """A new token waits for the lock within the close timeout, and the session goes on with it later."""

    async def main() -> None:
        path = tmp_path / "tokens.db"
        clock = FakeClock(jitter=1.0)
        store = SQLiteStore(path, clock=clock)
        rig = await expired(store=store, clock=clock)
        paused, caller = await rig.in_flight(success(2))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            paused.release()
            assert await close_in_vain(rig) <= BOUND
            assert (await asyncio.gather(caller, return_exceptions=True))[0] == "access-2"
            other.execute("ROLLBACK")
        clock.advance(LIFETIME)
        rig.transport.script(success(3))
        assert await rig.access() == "access-3"
        assert "refresh_token=refresh-2" in rig.sent()
        await took(rig.source.aclose(), rig.clock)
        await store.aclose()

    run(main)


Notices = Callable[[], list[str]]


@pytest.fixture
def notices(caplog: pytest.LogCaptureFixture) -> Notices:
    """What closing has logged."""
    caplog.set_level(logging.INFO, "tokensession")
    return lambda: [
        record.message
        for record in caplog.records
        if record.levelno == logging.INFO and record.message.startswith("Closing")
    ]


def test_f18_closing_that_waits_for_more_than_a_second_says_so_with_its_bound(notices: Notices) -> None:
    """Otherwise a second Ctrl-C, which ends it, looks like the thing to do."""

    async def main() -> None:
        rig = Rig()
        paused, caller = await rig.in_flight(success(1))
        closing = await begun(rig.source.aclose())
        rig.clock.advance(0.999)
        await let_tasks_run()
        assert notices() == []
        rig.clock.advance(0.001)
        await let_tasks_run()
        (notice,) = notices()
        assert "account" in notice
        assert "at most 25 s" in notice
        rig.clock.advance(10)
        paused.release()
        await closing
        await caller
        rig.clock.advance(100)
        await let_tasks_run()
        assert len(notices()) == 1

    run(main)


def test_f18_closing_in_less_than_a_second_logs_nothing_and_leaves_no_timer(notices: Notices) -> None:
    """Neither at once nor later."""

    async def main() -> None:
        rig = Rig(success(1))
        await rig.access()
        await rig.source.aclose()
        assert rig.clock.sleepers == ()
        assert notices() == []

    run(main)
