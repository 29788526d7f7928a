"""A store that goes back to an older record, or loses it: a process puts back what it knows."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from _moments import (
    beside,
    close,
    holding,
    keep_failing,
    process,
    processes,
    refresh_token_in,
    refresh_tokens,
    refused,
    requests_of,
    state_in,
    under_way,
)
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, seconds_until_done, success
from _scripted_store import Gate, ScriptedStore, fail, scripted
from _shared_store import SharedStore
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
from tokensession.providers import OAuth2
from tokensession.stores import FileStore
from tokensession.testing import FakeClock, Paused, token_response


def numbered(first: int, last: int) -> list[Any]:
    """The responses with the tokens `first` to `last`."""
    return [success(number) for number in range(first, last + 1)]


def restored(rig: Rig) -> list[str]:
    """What this process has found in the store each time it put its own state back."""
    return [event.found for event in rig.events if isinstance(event, Restored)]


async def copy_of(rig: Rig) -> bytes:
    """What is stored now, as a backup keeps it."""
    record = await rig.store.load(rig.source.key)
    assert record is not None
    return record.data


WAYS = pytest.mark.parametrize("way", ["lost", "older"])


async def lose(rig: Rig, way: str, older: bytes) -> None:
    """The record is lost, or an older one is back."""
    if way == "lost":
        await rig.store.delete("account")
    else:
        await rig.store.put("account", older)


@pytest.fixture(params=["memory", "file", "sqlite"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> SharedStore:
    return SharedStore(request.param, tmp_path, FakeClock())


@pytest.mark.parametrize("expired", [False, True], ids=["valid", "expired"])
@pytest.mark.parametrize("generation", [0, 1, 2])
def test_f51_k08_an_older_record_is_not_adopted_and_ours_is_put_back(
    shared: SharedStore, generation: int, expired: bool
) -> None:
    """A restored backup, a failover. The token is used on, the refresh token left alone until its end."""

    async def main() -> None:
        rig = process(shared, *numbered(0, 4))
        await rig.access()
        copies = [await shared.copy()]
        for _ in range(3):
            await rig.source.refresh()
            copies.append(await shared.copy())
        rig.clock.advance(LIFETIME if expired else 0)
        await shared.go_back(copies[generation])
        if not expired:
            for _ in range(3):
                assert (await rig.source.refresh()).access_token == "access-3"
                rig.clock.advance(60)
            assert await rig.stored_access() == "access-3"
            assert restored(rig) == ["an older record"]
            rig.clock.advance(LIFETIME)
        assert await rig.access() == await rig.stored_access() == "access-4"
        assert refresh_tokens(rig) == ["configured-token", "refresh-0", "refresh-1", "refresh-2", "refresh-3"]
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
        older = await copy_of(rig)
        await rig.source.refresh()
        rig.clock.advance(LIFETIME)
        await lose(rig, "older", older)
        await refused(GrantLost, rig.access(), match="invalid_grant.*The store went back")
        assert rig.token_requests == 3

    run(main)


def test_f51_every_process_puts_back_what_it_knows_and_the_highest_stays() -> None:
    """One that knows less writes first, and adopts the other's. Neither writes again and again."""

    async def main() -> None:
        less, more = rigs = processes(2, *numbered(1, 4))
        await less.access()
        oldest = await copy_of(less)
        await less.source.refresh()
        await more.access()
        await more.source.refresh()  # access-1 of its own script
        newest = await more.access()
        await lose(less, "older", oldest)
        for _ in range(5):
            await less.source.refresh()
            await more.source.refresh()
            less.clock.advance(60)
        assert await less.access() == await more.access() == newest
        assert [len(restored(rig)) for rig in rigs] == [1, 1]
        assert requests_of(rigs) == 3

    run(main)


def test_f52_k08_a_record_that_is_lost_is_put_back_and_the_spent_credential_is_not_sent(
    shared: SharedStore,
) -> None:
    """A process with a valid token writes its state back, and goes on from there."""

    async def main() -> None:
        rig = process(shared, *numbered(1, 4))
        await rig.access()
        await rig.source.refresh()
        for number in (2, 3):
            await shared.lose()
            assert (await rig.source.refresh()).access_token == f"access-{number}"
            assert await rig.stored_access() == f"access-{number}"
            rig.clock.advance(LIFETIME)
            assert await rig.access() == f"access-{number + 1}"
        assert restored(rig) == ["nothing", "nothing"]
        assert refresh_tokens(rig) == ["configured-token", "refresh-1", "refresh-2", "refresh-3"]
        await close(rig)

    run(main)


@WAYS
def test_f51_f52_a_refresh_token_that_may_be_spent_is_left_alone_until_the_end(way: str) -> None:
    """Another process may have refreshed since. While the access token is valid, it has time to look."""

    async def main() -> None:
        behind = await holding(age=LIFETIME - 299)
        newest = beside(behind, success(2), success(3))
        older = await copy_of(behind)
        await newest.source.refresh()
        if way == "older":
            await behind.source.check()  # has seen access-2, and access-1 comes back
            await newest.source.refresh()
        await lose(behind, way, older)
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


@WAYS
def test_f51_f52_k08_a_record_that_is_lost_or_goes_back_during_the_request_loses_no_token(
    shared: SharedStore, way: str
) -> None:
    """The grant is spent, so the new token is stored all the same: it is higher than what is there."""

    async def main() -> None:
        paused = Paused(success(3))
        rig = process(shared, success(1), success(2), paused)
        await rig.access()
        older = await shared.copy()
        await rig.source.refresh()
        caller = await under_way(rig.source.refresh(), paused)
        await (shared.lose() if way == "lost" else shared.go_back(older))
        paused.release()
        assert (await caller).access_token == "access-3"
        assert await refresh_token_in(shared) == "refresh-3"
        assert not rig.source.snapshot().unsaved
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
        rig.clock.advance(60)
        await keep_failing((GrantRejected, TokenUnavailable), rig, times=3, pause=60)
        await refused(GrantRejected, rig.access())
        assert rig.token_requests == 2

    run(main)


def test_f52_a_process_whose_token_has_expired_first_waits_a_minute_for_a_newer_one() -> None:
    """Another process may have refreshed since, and then its refresh token is spent."""

    async def main() -> None:
        rig = await holding(success(2), age=LIFETIME)
        await rig.store.delete("account")
        for left, pause in ((60, 20), (40, 20), (20, 19), (1, 1)):
            error = await refused(TokenUnavailable, rig.access(), match="record is gone")
            assert error.retry_after == left
            rig.clock.advance(pause)
        assert await rig.access() == "access-2"
        assert refresh_tokens(rig) == ["configured-token", "refresh-1"]
        assert await rig.stored_access() == "access-2"

    run(main)


async def behind_a_loss(policy: Policy) -> tuple[Rig, Rig]:
    """A process whose token has expired, and one that has a newer token, after the record was lost."""
    behind = await holding(age=LIFETIME, policy=policy)
    newest = beside(behind, success(2))
    await newest.access()
    await behind.store.delete("account")
    return behind, newest


def test_f52_while_it_waits_for_a_newer_one_it_adopts_it() -> None:
    """The process with the newest token writes it back when it looks, and nothing spent is sent."""

    async def main() -> None:
        behind, newest = await behind_a_loss(Policy())
        await refused(TokenUnavailable, behind.access())
        assert restored(behind) == []
        behind.clock.advance(5)
        await newest.source.refresh()  # looks, and writes its state back
        behind.clock.advance(1)
        assert await behind.access() == "access-2"
        assert behind.token_requests == 1

    run(main)


def test_f52_a_newer_record_is_known_as_soon_as_it_prevents_ours_from_being_put_back() -> None:
    """The store says what it is. The look after that may be cut short, or find nothing any more."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(9))
        await rig.access()
        record = await store.load("account")
        assert record is not None
        other = Rig(success(2), store=store, clock=clock)
        await other.source.refresh()
        newer = await store.load("account")
        assert newer is not None
        await store.delete("account")

        async def overtaken() -> None:
            del store.steps["put"]
            await store.put("account", newer.data)
            store.steps["load"] = Gate()

        store.steps["put"] = overtaken
        clock.advance(3500)  # it is due
        await rig.access()
        await let_tasks_run()
        assert rig.source._cache.state is not None
        assert rig.source._cache.state.token is not None
        assert rig.source._cache.state.token.access_token == "access-2"
        store.steps["load"].open.set()  # type: ignore[attr-defined]
        await close(rig, other)

    run(main)


def test_f52_a_caller_with_patience_gets_the_token_that_is_written_back_meanwhile() -> None:
    """It waits, and looks about once a second."""

    async def main() -> None:
        behind, newest = await behind_a_loss(Policy(retry_within=90, caller_timeout=90))
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
        rigs = processes(8, *numbered(1, 3), policy=Policy(retry_within=90, caller_timeout=90))
        clock = rigs[0].clock
        await asyncio.gather(*(rig.access() for rig in rigs))
        clock.advance(LIFETIME if expired else 600)
        await rigs[0].store.delete("account")
        refreshes = asyncio.gather(*(rig.source.refresh() for rig in rigs))
        assert await seconds_until_done(refreshes, clock) <= (61 if expired else 0)
        assert len({token.access_token for token in await refreshes}) == 1
        assert requests_of(rigs) == 1 + expired
        assert sum(len(restored(rig)) for rig in rigs) == 1
        clock.advance(LIFETIME)
        await asyncio.gather(*(rig.access() for rig in rigs))
        assert requests_of(rigs) == 2 + expired

    run(main)


@pytest.mark.parametrize("expired", [False, True], ids=["valid", "expired"])
@pytest.mark.parametrize(
    ("refresh", "sent"), [("rotating", "refresh-1"), (None, "configured-token")], ids=["with", "without"]
)
def test_f52_without_rotation_the_record_is_put_back_at_once(
    refresh: str | None, sent: str, expired: bool
) -> None:
    """With or without a refresh token in it: no other process spends what is sent, so no one waits."""

    async def main() -> None:
        rig = Rig(success(1, refresh=refresh), success(2, refresh=refresh), rotates=False)
        await rig.access()
        rig.clock.advance(LIFETIME if expired else 0)
        await rig.store.delete("account")
        token = await (rig.source.token() if expired else rig.source.refresh())
        assert token.access_token == "access-2"
        assert restored(rig) == ["nothing"]
        assert refresh_tokens(rig) == ["configured-token", sent]

    run(main)


def test_f52_a_process_that_never_used_its_record_for_a_week_does_not_put_it_back() -> None:
    """It may have been deleted on purpose, and long ago."""

    async def main() -> None:
        rotating = Rig(success(1))
        reusable = Rig(success(1), success(2), rotates=False)
        for rig in (rotating, reusable):
            await rig.access()
            await rig.store.delete("account")
            rig.clock.advance(7 * 86400 + 1)
        await refused(SignInRequired, rotating.access(), match="week")
        assert await rotating.store.load("account") is None
        assert await reusable.access() == "access-2"
        assert "refresh_token=configured-token" in reusable.sent()
        assert restored(rotating) == restored(reusable) == []

    run(main)


@WAYS
def test_f41_a_sign_out_is_put_back_too(way: str) -> None:
    """A process that knows of it writes the tombstone again, and stays signed out."""

    async def main() -> None:
        rig = await holding()
        older = await copy_of(rig)
        await rig.source.sign_out()
        await lose(rig, way, older)
        rig.clock.advance(60)
        await keep_failing(SignedOut, rig, times=2, pause=60)
        assert (await state_in(rig)).signed_out
        assert rig.token_requests == 1

    run(main)


def test_f41_a_sign_out_is_not_a_loss_and_no_process_undoes_it() -> None:
    async def main() -> None:
        rig = await holding()
        await beside(rig).source.sign_out()
        await refused(SignedOut, rig.source.refresh())
        rig.clock.advance(LIFETIME)
        await refused(SignedOut, rig.access())
        assert (restored(rig), rig.token_requests) == ([], 1)

    run(main)


@WAYS
def test_f51_f52_a_sign_in_after_the_loss_counts_more_than_what_processes_remember(way: str) -> None:
    """An operator restores on purpose by signing in. A process that has just started knows no number."""

    async def main() -> None:
        rig = await holding(*numbered(2, 4))
        older = await copy_of(rig)
        for _ in range(3):
            await rig.source.refresh()
        await lose(rig, way, older)
        await beside(rig, success(9)).source.sign_in(refresh_token="of-a-person")
        rig.clock.advance(LIFETIME - 299)
        await rig.access()
        await rig.refreshed()
        assert await rig.access() == "access-9"
        assert (restored(rig), await rig.stored_access()) == ([], "access-9")

    run(main)


def test_f52_a_refusal_that_was_remembered_is_put_back_with_the_record() -> None:
    """The rejected refresh token is not sent once more, and neither is the configured one."""

    async def main() -> None:
        rig = await holding(invalid_grant())
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


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("count", [1, 3])
def test_f51_f52_whatever_the_store_loses_nothing_spent_is_sent(seed: int, count: int) -> None:
    """Lost and older records at random, as long as every process has looked at the record before its loss."""

    async def main() -> None:
        draw = random.Random(seed)
        server = Provider()
        rigs = processes(count, *[server.answer] * 100)
        older: list[bytes] = []
        for _ in range(30):
            rigs[0].clock.advance(draw.choice([1, 60, LIFETIME - 200, LIFETIME]))
            await asyncio.gather(*(answered(rig) for rig in rigs))
            record = await rigs[0].store.load("account")
            if record is not None:
                older.append(record.data)
                for rig in rigs:
                    await rig.source.check()  # looks
                await lose(rigs[0], draw.choice(["lost", "older"]), draw.choice(older))
            if draw.random() < 0.5:
                await asyncio.gather(*(renewed(rig) for rig in rigs[draw.randrange(count) :]))
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


def test_a_record_that_is_lost_as_soon_as_it_was_seen_keeps_a_code_from_being_sent() -> None:
    """Another process writes its token back just before our code is noted, and then it is gone again."""

    async def main() -> None:
        clock = FakeClock(jitter=0.0)
        store = ScriptedStore(clock=clock)
        rig = Rig(success(1), store=store, clock=clock, configured=None)
        await rig.source.sign_in(code="once")
        record = await store.load("account")
        assert record is not None
        await store.delete("account")

        async def lost() -> None:
            store.steps.clear()
            await store.delete("account")

        async def written_back() -> None:
            del store.steps["put"]
            await store.put("account", record.data)
            store.steps["load"] = lost

        store.steps["put"] = written_back
        coded = OAuth2(
            token_url="https://id.example.com/token",
            client_id="client",
            client_secret="client-secret",
            code="once",
        )
        other = Rig(success(2), success(3), store=store, clock=clock, provider=coded)
        assert await other.access() == "access-1"

    run(main)


def test_f51_what_a_sign_out_has_met_is_known_if_the_store_goes_back() -> None:
    """Another process has refreshed before the sign-out is stored, and then the store fails."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), success(3))
        await rig.access()
        older, gate = await copy_of(rig), Gate()
        store.steps["put"] = gate
        signing_out = await under_way(rig.source.sign_out(), gate)
        store.steps["load"] = fail
        await beside(rig, success(2)).source.refresh()
        gate.open.set()
        await refused(StoreUnavailable, signing_out)
        store.steps.clear()
        await store.put("account", older)
        clock.advance(LIFETIME)
        assert await rig.access() == "access-3"
        assert refresh_tokens(rig)[-1] == "refresh-2"

    run(main)


def test_f51_what_this_process_has_redeemed_is_not_sent_again_however_often_the_store_goes_back() -> None:
    """The records that say so are gone: one had to yield to another process's, which is set back as well."""

    async def main() -> None:
        one = await holding(success(2), age=LIFETIME)
        older = await copy_of(one)
        assert (await one.source.sign_in(refresh_token="by-a-person")).access_token == "access-2"
        newer = await copy_of(one)
        await one.store.put("account", older)
        other = beside(one, success(3), invalid_grant(), *[invalid_grant()] * 5, configured="deployed")
        assert await other.access() == "access-3"
        one.clock.advance(LIFETIME)
        one.transport.script(invalid_grant())
        await refused(GrantRejected, one.access())  # after it has put its sign-in back
        await refused(GrantRejected, other.access())
        await one.store.put("account", newer)
        one.clock.advance(LIFETIME)
        await refused(GrantRejected, other.access())
        assert refresh_tokens(other).count("deployed") == 1

    run(main)
