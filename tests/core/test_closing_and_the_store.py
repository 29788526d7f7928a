"""Closing saves what is unsaved, within one deadline, and keeps in memory what it could not save."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from pathlib import Path

import pytest
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, seconds_until_done, success, until_sleeping
from _scripted_store import Hanging, ScriptedStore, fail, hang, scripted

from tokensession import (
    AuthedSession,
    Policy,
    SignedOut,
    StoreUnavailable,
    TokenUnavailable,
)
from tokensession.providers import Priava
from tokensession.stores import SQLiteStore
from tokensession.testing import FakeClock, Paused, PriavaServer

BOUND = Policy().close_timeout


async def closed(rig: Rig) -> float:
    """Close, and return how long it took. Raises what closing raises."""
    closing = asyncio.create_task(rig.source.aclose())
    seconds = await seconds_until_done(closing, rig.clock)
    await closing
    return seconds


async def close_in_vain(rig: Rig) -> float:
    """Close although nothing can be saved, and return how long it took."""
    closing = asyncio.create_task(rig.source.aclose())
    seconds = await seconds_until_done(closing, rig.clock)
    with pytest.raises(StoreUnavailable, match="before the session closed"):
        await closing
    return seconds


# -- saving ------------------------------------------------------------------------------------------


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
        assert await closed(rig) == 0
        assert await rig.stored_access() == "access-1"

    run(main)


def test_mutant_6_closing_tries_once_more_to_save_what_it_had_to_cut_off() -> None:
    """A write that hangs is stopped at last, and the store may work again by then."""

    async def main() -> None:
        steps = iter((hang, fail))

        async def commit() -> None:
            await next(steps, let_tasks_run)()

        paused = Paused(success(1))
        rig, store, clock = scripted(paused)
        store.steps["commit"] = commit
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        clock.advance(15)
        paused.release()
        assert await seconds_until_done(closing, clock) <= BOUND
        await closing
        await asyncio.gather(caller, return_exceptions=True)
        assert await rig.stored_access() == "access-1"
        assert not store.has_claims()

    run(main)


def test_f18_closing_that_could_not_save_releases_its_claim() -> None:
    """Closing raises, and other processes can refresh."""

    async def main() -> None:
        rig, store, clock = scripted(success(1))
        store.steps["commit"] = fail
        await rig.access()
        await close_in_vain(rig)
        store.steps.clear()
        assert await Rig(success(2), store=store, clock=clock).access() == "access-2"

    run(main)


def test_f27_closing_raises_if_a_token_could_not_be_stored() -> None:
    """The old refresh token is spent, so closing without storing the new one is an error."""

    async def main() -> None:
        rig, store, _ = scripted(success(1))
        store.steps |= {"commit": fail, "put": fail}
        await rig.access()
        await close_in_vain(rig)

    run(main)


def test_f18_closing_raises_if_a_hanging_store_has_not_stored_the_new_token() -> None:
    """A commit that never ends is not reported as a clean end."""

    async def main() -> None:
        paused = Paused(success(1))
        rig, store, clock = scripted(paused)
        store.steps["commit"] = hang
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        clock.advance(18)  # a slow token endpoint
        paused.release()
        await seconds_until_done(closing, clock)
        with pytest.raises(StoreUnavailable, match="before the session closed"):
            await closing
        await seconds_until_done(caller, clock)
        with pytest.raises(TokenUnavailable):
            await caller

    run(main)


def test_f18_a_sign_in_that_is_stopped_unsaved_releases_an_older_claim() -> None:
    """Two things are unsaved at the end, and no claim stays held."""

    async def main() -> None:
        paused = Paused(success(2))
        rig, store, clock = scripted(success(1), paused)
        store.steps |= {"commit": fail, "put": hang}
        await rig.access()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await seconds_until_done(asyncio.create_task(paused.arrived.wait()), clock)
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        clock.advance(19)
        paused.release()
        assert await seconds_until_done(closing, clock) <= BOUND
        with pytest.raises(StoreUnavailable):
            await closing
        await seconds_until_done(signing_in, clock)
        with pytest.raises(TokenUnavailable):
            await signing_in
        assert not store._holders

    run(main)


# -- entered again -----------------------------------------------------------------------------------


def test_k09_a_source_whose_closing_could_not_save_goes_on_with_its_token() -> None:
    """The refresh token in the store is spent. The one in memory is served, stored and used next."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2), success(3))
        async with rig.source:
            await rig.access()
        clock.advance(LIFETIME)
        store.steps |= {"commit": fail, "put": fail}
        assert await rig.access() == "access-2"
        await close_in_vain(rig)
        store.steps.clear()
        async with rig.source:
            assert await rig.access() == "access-2"
            clock.advance(LIFETIME)
            assert await rig.access() == "access-3"
            assert "refresh_token=refresh-2" in rig.sent()
        assert await rig.stored_access() == "access-3"

    run(main)


def test_k09_closing_again_saves_what_the_first_closing_could_not() -> None:
    """Without any request in between."""

    async def main() -> None:
        rig, store, _ = scripted(success(1))
        store.steps |= {"commit": fail, "put": fail}
        await rig.access()
        await close_in_vain(rig)
        store.steps.clear()
        await closed(rig)
        assert await rig.stored_access() == "access-1"
        assert not rig.source.snapshot().unsaved

    run(main)


@pytest.mark.parametrize("later", ["sign-in", "sign-out"])
def test_k09_a_later_sign_in_or_sign_out_counts_more_than_what_closing_could_not_save(later: str) -> None:
    """Another process has stored it in between, and the token in memory is given up."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        await rig.access()
        clock.advance(LIFETIME)
        store.steps |= {"commit": fail, "put": fail}
        assert await rig.access() == "access-2"
        await close_in_vain(rig)
        store.steps.clear()
        clock.advance(LIFETIME - 100)
        other = Rig(success(7), store=store, clock=clock)
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
        stored = await rig.stored()
        assert stored is not None
        assert stored.signed_out is (later == "sign-out")
        assert rig.token_requests == 2

    run(main)


def test_k09_a_rejection_of_the_spent_refresh_token_does_not_end_the_sign_in() -> None:
    """Another process has sent it in between, and noted what came of it."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2), success(3))
        await rig.access()
        clock.advance(LIFETIME)
        store.steps |= {"commit": fail, "put": fail}
        await rig.access()
        await close_in_vain(rig)
        store.steps.clear()
        other = Rig(invalid_grant(), store=store, clock=clock)  # it sends refresh-1, which is spent
        await asyncio.gather(other.access(), return_exceptions=True)
        async with rig.source:
            clock.advance(LIFETIME)
            assert await rig.access() == "access-3"
        assert await other.stored_access() == "access-3"
        clock.advance(1)
        assert await other.access() == "access-3"

    run(main)


class FlakyStore(ScriptedStore):
    """A store for a session with the real clock, which fails while `down`."""

    def down(self, down: bool) -> None:
        self.steps = {"commit": fail, "put": fail} if down else {}


def test_k09_a_session_that_is_entered_again_never_sends_a_spent_refresh_token() -> None:
    """With a server that detects the reuse of a refresh token."""

    async def main() -> None:
        store = FlakyStore()
        async with PriavaServer() as server:
            session = AuthedSession(
                Priava(**server.credentials), store=store, policy=Policy(close_timeout=0.01)
            )
            async with session:
                await session.source.token()
            store.down(True)
            with pytest.raises(StoreUnavailable, match="use this session again"):
                async with session:
                    await session.source.refresh()
            store.down(False)
            async with session:
                for _ in range(2):
                    async with session.get("/echo") as response:
                        assert response.status == 200
                    await session.source.refresh()
            assert (server.stats.reuse_detections, server.stats.rejections) == (0, 0)
            assert server.stats.token_requests == 4

    run(main)


# -- one deadline ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stubborn", [False, True], ids=["hangs", "ignores its cancellation"])
@pytest.mark.parametrize("where", ["", "aclose", "commit", "commit put", "commit put abandon aclose"])
@pytest.mark.parametrize("close_timeout", [25, 3])
def test_f68_closing_is_over_by_its_timeout_wherever_the_store_hangs(
    where: str, stubborn: bool, close_timeout: float
) -> None:
    """Waiting for the request, the write, the claim and the store's own closing share one deadline."""

    async def main() -> None:
        paused, hanging = Paused(success(1)), Hanging(stubborn=stubborn)
        rig, store, clock = scripted(paused, policy=Policy(retry_within=0, close_timeout=close_timeout))
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        store.steps |= dict.fromkeys(where.split(), hanging)
        # As `aclose` of a source that owns its store.
        closing = asyncio.create_task(rig.source._coordinator.close(lambda: store.step("aclose")))
        await let_tasks_run()
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
        paused, hanging = Paused(success(1)), Hanging(stubborn=False)
        rig, store, _ = scripted(paused)
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        store.steps["aclose"] = hanging
        closing = asyncio.create_task(rig.source._coordinator.close(lambda: store.step("aclose")))
        await let_tasks_run()
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
        paused = Paused(success(2))
        rig = Rig(success(1), paused, success(3), store=store, clock=clock)
        await rig.access()
        clock.advance(LIFETIME)
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            paused.release()
            assert await close_in_vain(rig) <= BOUND
            assert (await asyncio.gather(caller, return_exceptions=True))[0] == "access-2"
            other.execute("ROLLBACK")
        clock.advance(LIFETIME)
        assert await rig.access() == "access-3"
        assert "refresh_token=refresh-2" in rig.sent()
        await closed(rig)
        await store.aclose()

    run(main)


# -- the log -----------------------------------------------------------------------------------------


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What closing has logged."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.INFO and record.getMessage().startswith("Closing")
    ]


def test_f18_closing_that_waits_for_more_than_a_second_says_so_with_its_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Otherwise a second Ctrl-C, which ends it, looks like the thing to do."""

    async def main() -> None:
        paused = Paused(success(1))
        rig = Rig(paused)
        caller = asyncio.create_task(rig.access())
        await paused.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        rig.clock.advance(0.999)
        await let_tasks_run()
        assert notices(caplog) == []
        rig.clock.advance(0.001)
        await let_tasks_run()
        (notice,) = notices(caplog)
        assert "account" in notice
        assert "at most 25 s" in notice
        rig.clock.advance(10)
        paused.release()
        await closing
        await caller
        rig.clock.advance(100)
        await let_tasks_run()
        assert len(notices(caplog)) == 1

    with caplog.at_level(logging.INFO, logger="tokensession"):
        run(main)


def test_f18_closing_in_less_than_a_second_logs_nothing_and_leaves_no_timer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither at once nor later."""

    async def main() -> None:
        rig = Rig(success(1))
        await rig.access()
        await rig.source.aclose()
        assert rig.clock.sleepers == ()

    with caplog.at_level(logging.INFO, logger="tokensession"):
        run(main)
    assert notices(caplog) == []
