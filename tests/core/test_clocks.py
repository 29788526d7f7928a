"""Clocks that stop, step or are wrong, and lives of any length: through the whole source."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from _rig import LIFE, Rig, run, success
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession import Freshness, NotSent, TokenUnavailable
from tokensession._refresh.schedule import deadlines
from tokensession.policy import Policy
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, Paused, token_response
from tokensession.token import Token

DAY = 86_400.0
STEPS = [-10_000_000.0, -DAY, -3600.0, -1.0, 1.0, 3600.0, DAY, 10_000_000.0]


class Watched(FakeClock):
    """Writes down how long anybody sleeps."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.slept_for: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept_for.append(seconds)
        await super().sleep(seconds)


def at_once(rig: Rig) -> str:
    """The token that a caller gets without giving up the processor."""
    coroutine = rig.access()
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return str(done.value.value)


@pytest.mark.parametrize("noticed", [0.0, 0.5, 1.0], ids=["not at all", "in part", "wholly"])
@pytest.mark.parametrize("shared", [False, True], ids=["own token", "adopted"])
def test_f34_a_token_that_expired_while_the_machine_slept_is_not_served(noticed: float, shared: bool) -> None:
    """Wall clock or boot clock: whichever ends the token's life first counts, whatever the other says."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        one = Rig(success(1), store=store, clock=clock)
        await one.access()
        rig = Rig(success(2), store=store, clock=clock) if shared else one
        one.transport.script(success(2))
        assert await rig.access() == "access-1"
        clock.advance(LIFE)  # the lid was closed for so long
        clock.step_wall(-LIFE * (1 - noticed))  # and so much of it the wall clock has noticed
        assert rig.source.snapshot().freshness is Freshness.EXPIRED
        assert await rig.access() == "access-2"

    run(scene)


def test_f34_f35_a_clock_that_counts_sleep_is_read_alone_and_the_wall_clock_once_a_second() -> None:
    """Asleep for an hour: noticed at once. A step of the wall clock: noticed within a second of use."""

    async def scene() -> None:
        clock = FakeClock(jitter=0.5, boot_counts_sleep=True)
        looks: list[str] = []

        def wall() -> float:
            looks.append("wall")
            return FakeClock.wall(clock)

        rig = Rig(success(1), success(2), success(3), clock=clock)
        await rig.access()
        clock.wall = wall  # type: ignore[method-assign]
        for _ in range(100):
            assert await rig.access() == "access-1"
        assert not looks, "one clock is enough"
        clock.advance(0.5)
        clock.step_wall(LIFE)
        assert await rig.access() == "access-1", "nobody has looked yet"
        clock.advance(0.5)
        assert await rig.access() == "access-2"
        clock.advance(LIFE)
        clock.step_wall(-LIFE)  # it slept, and the wall clock has not noticed
        assert await rig.access() == "access-3"

    run(scene)


def test_f34_a_boot_clock_that_stood_still_while_the_machine_slept_is_no_excuse_either() -> None:
    """Where the monotonic clock does not count sleep, the wall clock alone ends the token's life."""

    async def scene() -> None:
        rig = Rig(success(1), success(2))
        await rig.access()
        rig.clock.step_wall(LIFE)
        assert rig.source.snapshot().freshness is Freshness.EXPIRED
        assert await rig.access() == "access-2"

    run(scene)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["fresh", "due", "in the request", "in the cool-down", "unsaved"])
def test_f35_the_wall_clock_may_step_at_any_moment(moment: str, step: float) -> None:
    """Forwards or back, by a second or by months: no exception, no negative sleep, one refresh at most."""

    async def scene() -> None:
        clock = Watched(jitter=0.5)
        held = Paused(success(2))
        rig = Rig(success(1), clock=clock)
        await rig.access()
        if moment == "fresh":
            rig.transport.script(success(2))
            clock.step_wall(step)
        elif moment == "due":
            rig.transport.script(success(2))
            clock.advance(LIFE - 299)
            clock.step_wall(step)
        elif moment == "in the request":
            rig.transport.script(held)
            clock.advance(LIFE)
            caller = asyncio.create_task(rig.access())
            await held.arrived.wait()
            clock.step_wall(step)
            held.release()
            await caller
        elif moment == "in the cool-down":
            rig.transport.script(NotSent("no route"), success(2))
            clock.advance(LIFE)
            with pytest.raises(NotSent):
                await rig.access()
            clock.step_wall(step)
            with pytest.raises(TokenUnavailable) as caught:
                await rig.access()
            assert caught.value.retry_after == 0.5, "pauses do not depend on the wall clock"
            clock.advance(1)
        else:
            rig.transport.script(success(2))
            clock.advance(LIFE - 299)
            await rig.access()
            clock.step_wall(step)
        before = rig.posts
        rig.transport.script(success(3))
        for _ in range(20):
            await rig.access()
            await rig.landed()
        assert rig.posts <= before + 1
        assert rig.posts <= 3
        assert all(seconds >= 0 for seconds in clock.slept_for)
        left = rig.source.snapshot().seconds_left
        assert left is not None
        assert left <= LIFE, "and no token lives longer than it was granted"

    run(scene)


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0, -10_000_000.0])
def test_f35_a_clock_that_is_wrong_by_an_hour_changes_nothing(wrong: float) -> None:
    """A life is a duration: by whatever wall clock, over ten lives the requests come at the same moments."""

    async def moments(offset: float) -> list[float]:
        clock = FakeClock(wall=1_750_000_000.0 + offset, jitter=0.0)
        rig = Rig(*(success(number) for number in range(1, 20)), clock=clock)
        asked = []
        for _ in range(360):
            posts = rig.posts
            await rig.access()
            await rig.landed()
            if rig.posts > posts:
                asked.append(clock.boot())
            clock.advance(100)
        return asked

    async def scene() -> None:
        right = await moments(0.0)
        assert await moments(wrong) == right
        assert 10 <= len(right) <= 12

    run(scene)


@settings(deadline=None, max_examples=60)
@given(
    life=st.integers(1, 30 * 86_400),
    jitter=st.sampled_from([0.0, 0.5, 0.999]) | st.floats(0, 0.999),
    pace=st.floats(0.003, 0.09),
)
def test_f36_for_lives_from_1_s_to_30_days_no_window_becomes_a_refresh_loop(
    life: int, jitter: float, pace: float
) -> None:
    """A token of any life is refreshed after three quarters of it at the earliest, and no caller waits."""
    step = min(life * pace, 239.0)  # callers come more often than the window between DUE and EXPIRED is long

    async def scene() -> None:
        clock = FakeClock(jitter=jitter)
        rig = Rig(*(success(number, life=life) for number in range(1, 9)), clock=clock)
        await rig.access()
        began = clock.boot()
        while clock.boot() - began < 3 * life:
            obtained, posts = clock.boot(), rig.posts
            quiet = max(0.75 * life, life - 400)
            for _ in range(20):
                clock.advance(quiet / 20 * (1 - 1e-9))
                assert at_once(rig) == f"access-{posts}"
            await rig.landed()
            assert rig.posts == posts
            while rig.posts == posts:
                assert clock.boot() - obtained < life
                assert at_once(rig) == f"access-{posts}"
                await rig.landed()
                clock.advance(step if rig.posts == posts else 0)
        assert rig.posts <= 1 + 4

    run(scene)


@settings(deadline=None, max_examples=200)
@given(st.floats(1, 30 * DAY), st.floats(0, 1))
def test_f36_the_refresh_window_is_at_most_a_fifth_of_the_life_before_it_is_spread(
    life: float, jitter: float
) -> None:
    """For any life L from 1 s to 30 days: DUE at most L/5 before the end, 1.2 times that with full jitter."""
    limits = deadlines(Token("a", 0.0, life), Policy(), 0, 0, jitter=jitter)
    spread = 1 + 0.2 * jitter
    assert life - limits.due_wall <= life / 5 * spread * (1 + 1e-9)
    assert life - limits.due_wall <= 300 * spread * (1 + 1e-9)


def test_f35_f36_a_life_that_the_provider_misstates_cannot_make_a_loop() -> None:
    """Lives of 1 s, 0 and less, again and again: each caller is served, and each request has a caller."""

    async def scene() -> None:
        lives: list[Any] = [1, 0, -5, 1, 0.5, 1]
        responses = [
            token_response({"access_token": f"access-{n}", "expires_in": life})
            for n, life in enumerate(lives)
        ]
        rig = Rig(*responses)
        for number in range(len(lives)):
            assert await rig.access() == f"access-{number}"
            rig.clock.advance(1)
        assert rig.posts == len(lives)

    run(scene)
