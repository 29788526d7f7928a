"""Single flight: however many ask, and whatever becomes of them, one token request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import anyio
import pytest
from _rig import LIFE, Rig, asleep, invalid_grant, run, success, turns

from tokensession import ClaimTimeout, Freshness, NotSent, OutcomeUnknown, SignInRequired
from tokensession.events import Adopted, Refreshed, RefreshFailed, RefreshStarted
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, Paused


@pytest.mark.parametrize("expired", [False, True], ids=["no token", "expired token"])
def test_f05_ten_thousand_tasks_that_find_no_token_cause_one_request(expired: bool) -> None:
    """Ten thousand tasks that find no token, or a spent one, cause one request, and all are served by it."""

    async def scene() -> None:
        rig = Rig(success(1), success(2))
        if expired:
            await rig.access()
            rig.clock.advance(LIFE)
        tokens = await asyncio.gather(*(rig.access() for _ in range(10_000)))
        assert set(tokens) == {f"access-{1 + expired}"}
        assert rig.posts == 1 + expired

    run(scene)


def test_a_fresh_token_is_served_without_looking_anywhere() -> None:
    """No flight, no store, no request, and not even a turn of the event loop."""

    async def scene() -> None:
        rig = Rig(success(1))
        await rig.access()
        coroutine = rig.source.token()
        with pytest.raises(StopIteration) as done:
            coroutine.send(None)
        assert done.value.value.access_token == "access-1"

    run(scene)


@pytest.mark.parametrize("way", ["cancel", "wait_for", "timeout", "anyio scope", "task group"])
def test_f01_a_cancelled_first_caller_disturbs_nobody(way: str) -> None:
    """However the first caller is cancelled: the flight goes on, its token is stored, the others get it."""

    async def scene() -> None:
        held = Paused(success(1))
        rig = Rig(held)

        async def first() -> None:
            if way == "wait_for":
                await asyncio.wait_for(rig.source.token(), 3600)
            elif way == "timeout":
                async with asyncio.timeout(3600):
                    await rig.source.token()
            elif way == "anyio scope":
                with anyio.CancelScope(shield=True):
                    await rig.source.token()
            elif way == "task group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(rig.source.token())
            else:
                await rig.source.token()

        leader = asyncio.create_task(first())
        await held.arrived.wait()
        others = [asyncio.create_task(rig.access()) for _ in range(5)]
        await turns(5)
        leader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leader
        held.release()
        assert set(await asyncio.gather(*others)) == {"access-1"}
        assert rig.posts == 1
        stored = await rig.stored()
        assert stored is not None
        assert stored.token is not None
        assert stored.token.refresh_token == "refresh-1"

    run(scene)


def test_f01_the_rotated_token_is_stored_although_every_caller_was_cancelled() -> None:
    """Nobody waits any more, and still the token is stored, and the task that does it is not collected."""

    async def scene() -> None:
        held = Paused(success(1))
        rig = Rig(held)
        callers = [asyncio.create_task(rig.access()) for _ in range(3)]
        await held.arrived.wait()
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        gc.collect()
        held.release()
        await rig.landed()
        assert await rig.access() == "access-1"
        assert (rig.posts, rig.source.snapshot().refreshes) == (1, 1)

    run(scene)


def test_a_token_that_is_due_is_served_while_one_refresh_runs() -> None:
    """Nobody waits for a refresh ahead."""

    async def scene() -> None:
        held = Paused(success(2))
        rig = Rig(success(1), held)
        await rig.access()
        rig.clock.advance(LIFE - 299)
        assert rig.source.snapshot().freshness is Freshness.DUE
        for _ in range(100):
            assert await rig.access() == "access-1"
        await held.arrived.wait()
        assert await rig.access() == "access-1"
        held.release()
        await rig.landed()
        assert await rig.access() == "access-2"
        assert rig.posts == 2
        assert "refresh_token=refresh-1" in rig.sent()

    run(scene)


def test_callers_that_come_when_it_is_spent_wait_for_the_refresh_under_way() -> None:
    """A refresh ahead that takes too long becomes the one that everybody waits for."""

    async def scene() -> None:
        held = Paused(success(2))
        rig = Rig(success(1), held)
        await rig.access()
        rig.clock.advance(LIFE - 299)
        await rig.access()
        await held.arrived.wait()
        rig.clock.advance(10)  # not past the deadline of the request
        waiting = [asyncio.create_task(rig.access()) for _ in range(3)]
        await turns()
        held.release()
        await asyncio.gather(*waiting)
        assert rig.posts == 2

    run(scene)


def test_f04_a_caller_that_comes_after_a_flight_has_failed_gets_a_new_one_not_its_error() -> None:
    """A flight that has landed is not joined: after its back-off the next caller starts a new one."""

    async def scene() -> None:
        rig = Rig(NotSent("no route"), success(1))
        with pytest.raises(NotSent):
            await rig.access()
        rig.clock.advance(1)
        assert await rig.access() == "access-1"

    run(scene)


def test_waiters_get_an_error_each_with_the_original_as_its_cause() -> None:
    """One exception object in many tasks would collect all their tracebacks."""

    async def scene() -> None:
        rig = Rig(NotSent("no route"))
        errors = await asyncio.gather(*(rig.access() for _ in range(3)), return_exceptions=True)
        assert all(isinstance(error, NotSent) for error in errors)
        assert len({id(error) for error in errors}) == 3
        causes = {id(error.__cause__) for error in errors if isinstance(error, NotSent)}
        assert len(causes) == 1

    run(scene)


def test_f03_f10_a_request_that_never_ends_is_ended_by_its_deadline() -> None:
    """If the endpoint keeps no time-out of its own, the flight does, and the next caller starts afresh."""

    async def scene() -> None:
        rig = Rig(Paused(success(1)), success(2), rotates=False)
        caller = asyncio.create_task(rig.access())
        await asleep(rig.clock, 20)
        rig.clock.advance(20)
        with pytest.raises(OutcomeUnknown):
            await caller
        rig.clock.advance(1)
        assert await rig.access() == "access-2"

    run(scene)


def test_two_processes_on_one_store_make_one_request() -> None:
    """The second finds the first one's token and adopts it."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        held = Paused(success(1))
        one, other = Rig(held, store=store, clock=clock), Rig(store=store, clock=clock)
        first = asyncio.create_task(one.access())
        await held.arrived.wait()
        second = asyncio.create_task(other.access())
        await turns()
        held.release()
        assert [await first, await second] == ["access-1", "access-1"]
        assert (one.posts, other.posts) == (1, 0)
        assert any(isinstance(event, Adopted) for event in other.events)

    run(scene)


def test_f08_when_a_shared_token_expires_the_second_process_adopts_the_first_ones() -> None:
    """A process whose refresh token another has rotated looks again under the claim, and adopts the token."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        one = Rig(success(1), success(2), store=store, clock=clock)
        other = Rig(store=store, clock=clock)
        await one.access()
        await other.access()
        clock.advance(LIFE)
        assert await asyncio.gather(one.access(), other.access()) == ["access-2", "access-2"]
        assert one.posts + other.posts == 2

    run(scene)


def test_f28_waiting_for_another_holder_ends_in_a_typed_error_and_never_in_a_request() -> None:
    """Contention is ClaimTimeout, after its time and no sooner; nothing is redeemed without the claim."""

    async def scene() -> None:
        rig = Rig()
        claim = await rig.store.claim("account", seen=None, timeout=1)
        caller = asyncio.create_task(rig.access())
        await asleep(rig.clock, 30)
        rig.clock.advance(30)
        with pytest.raises(ClaimTimeout):
            await caller
        assert rig.posts == 0
        del claim

    run(scene)


def test_f19_the_third_refresh_after_restarts_uses_the_third_refresh_token() -> None:
    """A rotated refresh token is written where the next start reads it: second and third refresh work."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        for number in (1, 2, 3):
            rig = Rig(success(number), store=store, clock=clock)
            assert await rig.access() == f"access-{number}"
            clock.advance(LIFE)
        assert "refresh_token=refresh-2" in rig.sent()

    run(scene)


def test_a_life_of_zero_serves_those_who_waited_and_is_not_kept() -> None:
    """Used once: no loop, and the next caller asks again."""

    async def scene() -> None:
        rig = Rig(success(1, life=0), success(2, life=0))
        assert await asyncio.gather(rig.access(), rig.access()) == ["access-1", "access-1"]
        assert await rig.access() == "access-2"
        assert rig.posts == 2

    run(scene)


def test_a_token_without_a_stated_life_is_kept_until_it_is_refused() -> None:
    """No expires_in, no default: only a 401 tells."""

    async def scene() -> None:
        rig = Rig(success(1, life=None), success(2, life=None))
        token = await rig.source.token()
        rig.clock.advance(10_000_000)
        assert await rig.access() == "access-1"
        assert (await rig.source.refresh(token)).access_token == "access-2"

    run(scene)


def test_f50_a_reply_without_a_refresh_token_keeps_the_old_one() -> None:
    """A reply without refresh_token, or with an empty one, leaves the old one in use (RFC 6749, 6)."""

    async def scene() -> None:
        rig = Rig(success(1, refresh=None), success(2, refresh=""), success(3))
        for _ in range(3):
            await rig.access()
            rig.clock.advance(LIFE)
        assert all("refresh_token=seed-token" in rig.sent(index) for index in range(3))

    run(scene)


def test_f50_a_rotated_refresh_token_is_kept_over_a_reply_that_brings_none() -> None:
    """A reply without refresh_token keeps the one that came before it, across a restart as well."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        for number, refresh in enumerate(("rotating", None, None, "rotating", None), 1):
            rig = Rig(success(number, refresh=refresh), store=store, clock=clock)
            assert await rig.access() == f"access-{number}"
            sent = ("seed-token", "refresh-1", "refresh-1", "refresh-1", "refresh-4")[number - 1]
            assert f"refresh_token={sent}" in rig.sent()
            clock.advance(LIFE)

    run(scene)


def test_f34_a_suspended_machine_does_not_serve_a_dead_token() -> None:
    """The boot clock counts while the machine sleeps, the wall clock may be wrong: the earlier end counts."""

    async def scene() -> None:
        rig = Rig(success(1), success(2))
        await rig.access()
        rig.clock.advance(LIFE)
        rig.clock.step_wall(-LIFE)  # as if the wall clock had not noticed
        assert await rig.access() == "access-2"

    run(scene)


@pytest.mark.parametrize("step", [-3600.0, 3600.0, -10_000_000.0, 10_000_000.0])
def test_f35_a_step_of_the_wall_clock_costs_at_most_one_refresh(step: float) -> None:
    """A wall clock that steps by an hour or by months: no exception, no refresh loop, no eternal token."""

    async def scene() -> None:
        rig = Rig(success(1), success(2), success(3))
        await rig.access()
        rig.clock.step_wall(step)
        for _ in range(5):
            await rig.access()
        await rig.landed()
        assert rig.posts <= 2
        rig.clock.advance(LIFE)
        await rig.access()
        assert rig.posts <= 3

    run(scene)


def test_f42_the_same_source_works_in_two_event_loops_one_after_the_other() -> None:
    """A source is bound to no event loop when it is made; a flight that a closed one left is dropped."""
    rig = Rig(Paused(success(1)), success(2), rotates=False)

    async def leave_a_flight_behind() -> None:
        caller = asyncio.create_task(rig.access())
        await turns()
        caller.cancel()

    asyncio.run(leave_a_flight_behind())
    rig.clock.advance(60)
    assert asyncio.run(rig.access()) == "access-2"
    assert asyncio.run(rig.access()) == "access-2"


def test_f17_a_loop_that_closes_in_mid_request_leaves_word_of_it() -> None:
    """If an event loop ends while the request is on the wire, the record says so before it is closed."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    rig = Rig(Paused(success(1)), store=store, clock=clock)

    async def die_in_mid_request() -> None:
        caller = asyncio.create_task(rig.access())
        await turns()
        caller.cancel()

    asyncio.run(die_in_mid_request())
    stored = asyncio.run(rig.stored())
    assert stored is not None
    assert stored.attempt is not None
    assert stored.attempt.replays == 0


def test_f18_closing_waits_for_the_refresh_under_way() -> None:
    """Closing a source lets the refresh under way finish and store its token, which may be the only copy."""

    async def scene() -> None:
        held = Paused(success(1))
        rig = Rig(held)
        caller = asyncio.create_task(rig.access())
        await held.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await turns()
        assert not closing.done()
        held.release()
        await closing
        assert await caller == "access-1"
        assert (await rig.stored()) is not None

    run(scene)


def test_closing_ends_after_its_grace_period() -> None:
    """Bounded, and the outcome that nobody waited for is written down as unknown."""

    async def scene() -> None:
        from tokensession import Policy

        rig = Rig(Paused(success(1)), policy=Policy(close_timeout=5))
        caller = asyncio.create_task(rig.access())
        await asleep(rig.clock, 20)
        closing = asyncio.create_task(rig.source.aclose())
        await asleep(rig.clock, 5)
        rig.clock.advance(5)
        await closing
        with pytest.raises(Exception, match="closing"):
            await caller
        stored = await rig.stored()
        assert stored is not None
        assert stored.attempt is not None

    run(scene)


@pytest.mark.parametrize("outcome", [success(2), NotSent("no route")], ids=["token", "failure"])
def test_f43_a_refresh_that_nobody_waits_for_ends_and_is_told_of(outcome: Any) -> None:
    """A refresh in the background survives every garbage collection, and its end is an event, good or bad."""

    async def scene() -> None:
        held = Paused(outcome)
        rig = Rig(success(1), held)
        await rig.access()
        rig.clock.advance(LIFE - 299)
        assert await rig.access() == "access-1"
        await held.arrived.wait()
        for _ in range(3):
            gc.collect()
            await turns(3)
        assert rig.source.snapshot().refreshing
        held.release()
        await rig.landed()
        ended = RefreshFailed if isinstance(outcome, NotSent) else Refreshed
        assert [type(event) for event in rig.events[-2:]] == [RefreshStarted, ended]

    run(scene)


def test_f45_what_happened_is_told_in_events_without_secrets() -> None:
    """Events, snapshots and reprs of source and store tell of a refresh with fingerprints only."""

    async def scene() -> None:
        rig = Rig(success(1))
        await rig.access()
        assert [type(event) for event in rig.events] == [RefreshStarted, Refreshed]
        shown = repr(rig.events) + repr(rig.source) + repr(rig.source.snapshot()) + repr(rig.store)
        assert not any(secret in shown for secret in ("access-1", "refresh-1", "seed-token", "client-secret"))

    run(scene)


def test_f40_accounts_on_one_store_share_nothing() -> None:
    """Keys are identities: two seeds on one store have two records, two flights and two tokens."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        one = Rig(success(1), store=store, clock=clock, seed="seed-one", key=None)
        other = Rig(success(2), store=store, clock=clock, seed="seed-other", key=None)
        assert [await one.access(), await other.access()] == ["access-1", "access-2"]
        assert len(await store.keys()) == 2

    run(scene)


def test_f40_a_source_without_seed_or_name_is_refused() -> None:
    """An empty or missing key is refused: two accounts would share its record by accident."""
    with pytest.raises(ValueError, match="key"):
        Rig(seed=None, key=None)
    with pytest.raises(ValueError, match="key"):
        Rig(key="")


def test_without_a_seed_a_caller_is_asked_to_sign_in() -> None:
    """No request is made with nothing to redeem."""

    async def scene() -> None:
        rig = Rig(seed=None)
        with pytest.raises(SignInRequired, match="sign_in"):
            await rig.access()
        assert rig.posts == 0

    run(scene)


def test_f21_a_refusal_says_how_to_go_on_and_is_not_asked_for_again() -> None:
    """A refused refresh token is never sent twice, in this process or another; the error says what to do."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        rig = Rig(invalid_grant(), store=store, clock=clock)
        for _ in range(5):
            with pytest.raises(SignInRequired, match="Sign in again"):
                await rig.access()
            clock.advance(60)
        other = Rig(store=store, clock=clock)
        with pytest.raises(SignInRequired):
            await other.access()
        assert (rig.posts, other.posts) == (1, 0)

    run(scene)
