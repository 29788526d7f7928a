"""A store that goes back to an older record, or loses it: a process puts back what it knows."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from _moments import beside, holding, refresh_token_in, refused, state_in, under_way
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, seconds_until_done, success
from _scripted_store import fail, scripted
from _shared_store import STORES, SharedStore
from _steps import Provider

from tokensession import (
    GrantLost,
    GrantRejected,
    Policy,
    RateLimited,
    SignedOut,
    SignInRequired,
    StoreUnavailable,
    TokenUnavailable,
)
from tokensession.events import Restored
from tokensession.stores import FileStore, MemoryStore
from tokensession.testing import FakeClock, Paused, token_response

WEEK = 7 * 86400


def numbered(first: int, last: int) -> list[Any]:
    """The responses with the tokens `first` to `last`."""
    return [success(number) for number in range(first, last + 1)]


def restored(rig: Rig) -> list[str]:
    """What this process has found in the store each time it put its own state back."""
    return [event.found for event in rig.events if isinstance(event, Restored)]


def refresh_tokens(rig: Rig) -> list[str]:
    """The refresh tokens that were sent, in order."""
    return [rig.sent(index).split("refresh_token=")[1] for index in range(rig.token_requests)]


async def close(*rigs: Rig) -> None:
    """Close these processes."""
    for rig in rigs:
        await rig.source.aclose()
        await rig.store.aclose()


@STORES
@pytest.mark.parametrize("generation", [0, 1, 2])
def test_f51_k08_an_older_record_is_not_adopted_and_ours_is_put_back(
    tmp_path: Path, kind: str, generation: int
) -> None:
    """A restored backup, a failover. The token is used on, the refresh token left alone until its end."""

    async def main() -> None:
        clock = FakeClock()
        shared = SharedStore(kind, tmp_path, clock)
        rig = Rig(*numbered(0, 4), store=shared.open(), clock=clock)
        await rig.access()
        copies = [await shared.copy()]
        for _ in range(3):
            await rig.source.refresh()
            copies.append(await shared.copy())
        await shared.go_back(copies[generation])
        for _ in range(3):
            assert (await rig.source.refresh()).access_token == "access-3"
            clock.advance(60)
        assert await rig.stored_access() == "access-3"
        assert restored(rig) == ["an older record"]
        clock.advance(LIFETIME)
        assert await rig.access() == "access-4"
        assert refresh_tokens(rig) == ["configured-token", "refresh-0", "refresh-1", "refresh-2", "refresh-3"]
        await close(rig)

    run(main)


@STORES
def test_f51_an_older_record_is_not_adopted_after_our_token_has_expired(tmp_path: Path, kind: str) -> None:
    """The only refresh token that can still work is the one in memory."""

    async def main() -> None:
        clock = FakeClock()
        shared = SharedStore(kind, tmp_path, clock)
        rig = Rig(*numbered(1, 3), store=shared.open(), clock=clock)
        await rig.access()
        copy = await shared.copy()
        await rig.source.refresh()
        clock.advance(LIFETIME)
        await shared.go_back(copy)
        assert await rig.access() == "access-3"
        assert refresh_tokens(rig) == ["configured-token", "refresh-1", "refresh-2"]
        assert await rig.stored_access() == "access-3"
        await close(rig)

    run(main)


def test_f51_an_older_file_that_is_copied_back_is_not_adopted(tmp_path: Path) -> None:
    """`rsync` of an old file, a snapshot of the volume: the record comes back with its version."""

    async def main() -> None:
        clock = FakeClock()
        rig = Rig(*numbered(1, 4), store=FileStore(tmp_path, clock=clock), clock=clock)
        await rig.access()
        (file,) = tmp_path.glob("*.token")
        copy = file.read_bytes()
        for _ in range(2):
            await rig.source.refresh()
        (tmp_path / "restored").write_bytes(copy)
        (tmp_path / "restored").chmod(0o600)
        (tmp_path / "restored").rename(file)
        assert (await rig.source.refresh()).access_token == "access-3"
        clock.advance(LIFETIME)
        assert await rig.access() == "access-4"
        assert refresh_tokens(rig)[-1] == "refresh-3"
        await close(rig)

    run(main)


def test_f51_a_rejection_after_the_store_went_back_says_why() -> None:
    """The record that was lost may have been a newer one, of another process."""

    async def main() -> None:
        rig = await holding(success(2), invalid_grant())
        before = await rig.store.load(rig.source.key)
        assert before is not None
        await rig.source.refresh()
        rig.clock.advance(LIFETIME)
        await rig.store.put(rig.source.key, before.data)
        await refused(GrantLost, rig.access(), match=r"invalid_grant.*The store went back")
        assert rig.token_requests == 3

    run(main)


def test_f51_every_process_puts_back_what_it_knows_and_the_highest_stays() -> None:
    """One that knows less writes first, and adopts the other's. Neither writes again and again."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        less, more = (Rig(*numbered(1, 4), store=store, clock=clock) for _ in range(2))
        await less.access()
        oldest = await store.load("account")
        assert oldest is not None
        await less.source.refresh()
        await more.access()
        await more.source.refresh()  # access-1 of its own script
        newest = await more.access()
        await store.put("account", oldest.data)
        for _ in range(5):
            await less.source.refresh()
            await more.source.refresh()
            clock.advance(60)
        assert await less.access() == await more.access() == newest
        assert (len(restored(less)), len(restored(more))) == (1, 1)
        assert less.token_requests + more.token_requests == 3

    run(main)


@STORES
def test_f52_k08_a_record_that_is_lost_is_put_back_and_the_spent_credential_is_not_sent(
    tmp_path: Path, kind: str
) -> None:
    """A process with a valid token writes its state back, and goes on from there."""

    async def main() -> None:
        clock = FakeClock()
        shared = SharedStore(kind, tmp_path, clock)
        rig = Rig(*numbered(1, 4), store=shared.open(), clock=clock)
        await rig.access()
        await rig.source.refresh()
        for number in (2, 3):
            await shared.lose()
            assert (await rig.source.refresh()).access_token == f"access-{number}"
            assert await rig.stored_access() == f"access-{number}"
            clock.advance(LIFETIME)
            assert await rig.access() == f"access-{number + 1}"
        assert restored(rig) == ["nothing", "nothing"]
        assert refresh_tokens(rig) == ["configured-token", "refresh-1", "refresh-2", "refresh-3"]
        await close(rig)

    run(main)


@pytest.mark.parametrize("way", ["lost", "older"])
def test_f51_f52_a_refresh_token_that_may_be_spent_is_left_alone_until_the_end(way: str) -> None:
    """Another process may have refreshed since. While the access token is valid, it has time to look."""

    async def main() -> None:
        behind = Rig(success(1))
        newest = beside(behind, success(2), success(3))
        await behind.access()
        before = await behind.store.load("account")
        assert before is not None
        behind.clock.advance(LIFETIME - 299)
        await newest.source.refresh()
        if way == "lost":
            await behind.store.delete("account")
        else:
            await behind.source.check()  # has seen access-2, and access-1 comes back
            await newest.source.refresh()
            await behind.store.put("account", before.data)
        for _ in range(3):
            await behind.access()
            await behind.refreshed()
            await behind.source.refresh()
            behind.clock.advance(60)
        assert behind.token_requests == 1
        with contextlib.suppress(RateLimited):
            await newest.source.refresh()
        assert (await behind.source.refresh()).access_token == await newest.access()
        assert behind.token_requests == 1

    run(main)


@STORES
def test_f52_k08_a_record_that_is_lost_during_the_request_loses_no_token(tmp_path: Path, kind: str) -> None:
    """The grant is spent, so the new token is stored all the same."""

    async def main() -> None:
        clock = FakeClock()
        shared = SharedStore(kind, tmp_path, clock)
        paused = Paused(success(2))
        rig = await holding(paused, store=shared.open(), clock=clock)
        caller = await under_way(rig.source.refresh(), paused)
        await shared.lose()
        paused.release()
        assert (await caller).access_token == "access-2"
        assert await refresh_token_in(shared) == "refresh-2"
        assert not rig.source.snapshot().unsaved
        await close(rig)

    run(main)


@STORES
def test_f51_a_store_that_goes_back_during_the_request_loses_no_token(tmp_path: Path, kind: str) -> None:
    """The older record under the commit is one that our state is higher than."""

    async def main() -> None:
        clock = FakeClock()
        shared = SharedStore(kind, tmp_path, clock)
        paused = Paused(success(3))
        rig = await holding(success(2), paused, store=shared.open(), clock=clock)
        copy = await shared.copy()
        await rig.source.refresh()
        caller = await under_way(rig.source.refresh(), paused)
        await shared.go_back(copy)
        paused.release()
        assert (await caller).access_token == "access-3"
        assert await rig.stored_access() == "access-3"
        await close(rig)

    run(main)


def test_f52_a_rejection_that_arrives_after_the_record_was_lost_is_remembered() -> None:
    """Its note goes into the record that is written back."""

    async def main() -> None:
        paused = Paused(invalid_grant())
        rig = await holding(paused, age=LIFETIME)
        caller = await under_way(rig.access(), paused)
        await rig.store.delete("account")
        paused.release()
        await refused(GrantRejected, caller)
        for _ in range(3):
            rig.clock.advance(60)
            await refused((GrantRejected, TokenUnavailable), rig.access())
        await refused(GrantRejected, rig.access())
        assert rig.token_requests == 2

    run(main)


def test_f52_a_process_whose_token_has_expired_first_waits_a_minute_for_a_newer_one() -> None:
    """Another process may have refreshed since, and then its refresh token is spent."""

    async def main() -> None:
        rig = await holding(success(2), age=LIFETIME)
        await rig.store.delete("account")
        for left in (60, 40, 20, 1):
            caught = await refused(TokenUnavailable, rig.access(), match="record is gone")
            assert caught.retry_after == left
            rig.clock.advance(20 if left > 20 else 19 if left > 1 else 1)
        assert await rig.access() == "access-2"
        assert refresh_tokens(rig) == ["configured-token", "refresh-1"]
        assert await rig.stored_access() == "access-2"

    run(main)


def test_f52_while_it_waits_for_a_newer_one_it_adopts_it() -> None:
    """The process with the newest token writes it back when it looks, and nothing spent is sent."""

    async def main() -> None:
        behind = Rig(success(1), policy=Policy())
        newest = beside(behind, success(2))
        await behind.access()
        behind.clock.advance(LIFETIME)
        await newest.access()
        await behind.store.delete("account")
        await refused(TokenUnavailable, behind.access())
        assert restored(behind) == []
        behind.clock.advance(5)
        await newest.source.refresh()  # looks, and writes its state back
        behind.clock.advance(1)
        assert await behind.access() == "access-2"
        assert behind.token_requests == 1

    run(main)


def test_f52_a_caller_with_patience_gets_the_token_that_is_written_back_meanwhile() -> None:
    """It waits, and looks about once a second."""

    async def main() -> None:
        behind = Rig(success(1), policy=Policy(retry_within=90, caller_timeout=90))
        newest = beside(behind, success(2))
        await behind.access()
        behind.clock.advance(LIFETIME)
        await newest.access()
        await behind.store.delete("account")
        caller = asyncio.create_task(behind.access())
        await let_tasks_run()
        assert not caller.done()
        await newest.source.refresh()
        assert await seconds_until_done(caller, behind.clock) <= 1
        assert await caller == "access-2"
        assert behind.token_requests == 1

    run(main)


@pytest.mark.parametrize("expired", [False, True], ids=["valid", "expired"])
def test_f52_several_processes_put_the_record_back_once(expired: bool) -> None:
    """All of them know the same state: one writes it back, and after its end one makes the token request."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        policy = Policy(retry_within=90, caller_timeout=90)
        rigs = [Rig(*numbered(1, 3), store=store, clock=clock, policy=policy) for _ in range(8)]
        await asyncio.gather(*(rig.access() for rig in rigs))
        clock.advance(LIFETIME if expired else 600)
        await store.delete("account")
        refreshes = asyncio.gather(*(rig.source.refresh() for rig in rigs))
        assert await seconds_until_done(refreshes, clock) <= (61 if expired else 0)
        assert len({token.access_token for token in await refreshes}) == 1
        assert sum(rig.token_requests for rig in rigs) == 1 + expired
        assert sum(len(restored(rig)) for rig in rigs) == 1
        clock.advance(LIFETIME)
        await asyncio.gather(*(rig.access() for rig in rigs))
        assert sum(rig.token_requests for rig in rigs) == 2 + expired

    run(main)


def test_f52_without_rotation_the_record_is_put_back_at_once() -> None:
    """The refresh token is not spent by another process's refresh, so there is nothing to wait for."""

    async def main() -> None:
        rig = await holding(success(2), rotates=False, age=LIFETIME)
        await rig.store.delete("account")
        assert await rig.access() == "access-2"
        assert restored(rig) == ["nothing"]

    run(main)


def test_f52_a_process_that_never_used_its_record_for_a_week_does_not_put_it_back() -> None:
    """It may have been deleted on purpose, and long ago."""

    async def main() -> None:
        rotating = Rig(success(1))
        reusable = Rig(success(1), success(2), rotates=False)
        for rig in (rotating, reusable):
            await rig.access()
            await rig.store.delete("account")
            rig.clock.advance(WEEK + 1)
        await refused(SignInRequired, rotating.access(), match="week")
        assert await rotating.store.load("account") is None
        assert await reusable.access() == "access-2"
        assert "refresh_token=configured-token" in reusable.sent()
        assert restored(rotating) == restored(reusable) == []

    run(main)


@pytest.mark.parametrize("way", ["lost", "older"])
def test_f41_a_sign_out_is_put_back_too(way: str) -> None:
    """A process that knows of it writes the tombstone again, and stays signed out."""

    async def main() -> None:
        rig = await holding()
        before = await rig.store.load("account")
        assert before is not None
        await rig.source.sign_out()
        if way == "lost":
            await rig.store.delete("account")
        else:
            await rig.store.put("account", before.data)
        for _ in range(2):
            rig.clock.advance(60)
            await refused(SignedOut, rig.access())
        stored = await state_in(rig)
        assert stored.signed_out
        assert rig.token_requests == 1

    run(main)


def test_f41_a_sign_out_is_not_a_loss_and_no_process_undoes_it() -> None:
    """A sign-out leaves a tombstone, so a process with a token in memory does not write it back."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        rig, other = Rig(success(1), store=store, clock=clock), Rig(store=store, clock=clock)
        await rig.access()
        await other.source.sign_out()
        await refused(SignedOut, rig.source.refresh())
        clock.advance(LIFETIME)
        await refused(SignedOut, rig.access())
        assert (restored(rig), rig.token_requests) == ([], 1)

    run(main)


@pytest.mark.parametrize("way", ["lost", "older"])
def test_f51_f52_a_sign_in_after_the_loss_counts_more_than_what_processes_remember(way: str) -> None:
    """An operator restores on purpose by signing in. A process that has just started knows no number."""

    async def main() -> None:
        rig = Rig(*numbered(1, 4))
        await rig.access()
        before = await rig.store.load("account")
        assert before is not None
        for _ in range(3):
            await rig.source.refresh()
        if way == "lost":
            await rig.store.delete("account")
        else:
            await rig.store.put("account", before.data)
        fresh = beside(rig, success(9))
        await fresh.source.sign_in(refresh_token="of-a-person")
        rig.clock.advance(LIFETIME - 299)
        await rig.access()
        await rig.refreshed()
        assert await rig.access() == "access-9"
        assert (restored(rig), await rig.stored_access()) == ([], "access-9")

    run(main)


def test_f52_a_refusal_that_was_remembered_is_put_back_with_the_record() -> None:
    """The rejected refresh token is not sent once more, and neither is the configured one."""

    async def main() -> None:
        rig = await holding(invalid_grant(), policy=Policy(retry_within=0))
        await refused(GrantRejected, rig.source.refresh())
        await rig.store.delete("account")
        rig.clock.advance(60)
        await refused(GrantRejected, rig.source.refresh())
        other = beside(rig)
        rig.clock.advance(LIFETIME)
        await refused(GrantRejected, other.access())
        assert (rig.token_requests, other.token_requests) == (2, 0)

    run(main)


def test_f52_a_pause_that_the_server_asked_for_is_kept_through_a_loss() -> None:
    """Retry-After counts for as long as a process remembers it."""

    async def main() -> None:
        limited = token_response({}, status=429, headers=(("retry-after", "600"),))
        rig = await holding(limited, success(2), rotates=False)
        await refused(RateLimited, rig.source.refresh())
        await rig.store.delete("account")
        for _ in range(9):
            rig.clock.advance(60)
            await refused(RateLimited, rig.source.refresh())
        assert rig.token_requests == 2
        rig.clock.advance(60)
        assert (await rig.source.refresh()).access_token == "access-2"

    run(main)


def test_f52_a_state_that_cannot_be_put_back_sends_nothing() -> None:
    """The refresh token would be spent, and the next one could not be stored."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(2))
        await rig.access()
        await store.delete("account")
        store.steps["put"] = fail
        for _ in range(3):
            await refused(StoreUnavailable, rig.source.refresh())
            clock.advance(2)
            assert await rig.access() == "access-1"
        assert rig.token_requests == 1
        del store.steps["put"]
        clock.advance(LIFETIME - 30)
        assert await rig.access() == "access-2"

    run(main)


def test_f52_a_token_without_a_refresh_token_is_put_back_too() -> None:
    """There is nothing to redeem but the configured credential, which works again and again."""

    async def main() -> None:
        rig = Rig(success(1, refresh=None), success(2, refresh=None), rotates=False)
        await rig.access()
        await rig.store.delete("account")
        assert (await rig.source.refresh()).access_token == "access-2"
        assert refresh_tokens(rig) == ["configured-token"] * 2

    run(main)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("processes", [1, 3])
def test_f51_f52_whatever_the_store_loses_nothing_spent_is_sent(seed: int, processes: int) -> None:
    """Lost and older records at random, as long as every process has looked at the record before its loss."""

    async def main() -> None:
        draw = random.Random(seed)
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        server = Provider()
        rigs = [Rig(*[server.answer] * 100, store=store, clock=clock) for _ in range(processes)]
        older: list[bytes] = []
        for _ in range(30):
            clock.advance(draw.choice([1, 60, LIFETIME - 200, LIFETIME]))
            await asyncio.gather(*(answered(rig) for rig in rigs))
            record = await store.load("account")
            if record is not None:
                older.append(record.data)
                for rig in rigs:
                    await rig.source.check()  # looks
                if draw.random() < 0.5:
                    await store.delete("account")
                else:
                    await store.put("account", draw.choice(older))
            if draw.random() < 0.5:
                await asyncio.gather(*(renewed(rig) for rig in rigs[draw.randrange(processes) :]))
        assert server.reused == 0
        assert server.issued > 5

    run(main)


async def answered(rig: Rig) -> None:
    """Ask until there is a token. What that has started is over then."""
    while True:
        try:
            await rig.access()
        except TokenUnavailable as error:
            rig.clock.advance(error.retry_after or 1)
        else:
            return await rig.refreshed()


async def renewed(rig: Rig) -> None:
    """Ask for a new token, which may be refused for now."""
    with contextlib.suppress(TokenUnavailable):
        await rig.source.refresh()
