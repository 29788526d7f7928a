"""Clocks that stop, step or are wrong, and tokens of any lifetime, through the whole source."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from _rig import LIFETIME, Rig, run, success
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession import Freshness, NotSent, OutcomeUnknown, TokenUnavailable
from tokensession._refresh.schedule import deadlines
from tokensession.policy import Policy
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, Paused, token_response
from tokensession.token import Token

DAY = 86_400.0
STEPS = [-10_000_000.0, -DAY, -3600.0, -1.0, 1.0, 3600.0, DAY, 10_000_000.0]


class RecordingClock(FakeClock):
    """Records how long each sleep is."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.slept_for: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept_for.append(seconds)
        await super().sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.Future[None]:
        self.slept_for.append(seconds)
        return super().call_later(seconds, callback)


def at_once(rig: Rig) -> str:
    """The token that a caller gets without suspending."""
    coroutine = rig.access()
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return str(done.value.value)


@pytest.mark.parametrize("noticed", [0.0, 0.5, 1.0], ids=["not at all", "in part", "fully"])
@pytest.mark.parametrize("shared", [False, True], ids=["own token", "adopted"])
def test_f34_a_token_that_expired_while_the_machine_slept_is_not_served(noticed: float, shared: bool) -> None:
    """Whichever clock ends the token's lifetime first counts: the wall clock or the boot clock."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        one = Rig(success(1), store=store, clock=clock)
        await one.access()
        rig = Rig(success(2), store=store, clock=clock) if shared else one
        one.transport.script(success(2))
        assert await rig.access() == "access-1"
        clock.advance(LIFETIME)  # the machine slept this long
        clock.step_wall(-LIFETIME * (1 - noticed))  # and the wall clock has noticed this part of it
        assert rig.source.snapshot().freshness is Freshness.EXPIRED
        assert await rig.access() == "access-2"

    run(main)


def test_f34_f35_with_a_boot_clock_that_counts_sleep_the_wall_clock_is_read_once_a_second() -> None:
    """An hour of sleep is noticed at once, and a step of the wall clock within a second of use."""

    async def main() -> None:
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
        clock.step_wall(LIFETIME)
        assert await rig.access() == "access-1", "no look has been due yet"
        clock.advance(0.5)
        assert await rig.access() == "access-2"
        clock.advance(LIFETIME)
        clock.step_wall(-LIFETIME)  # it slept, and the wall clock has not noticed
        assert await rig.access() == "access-3"

    run(main)


def test_f34_the_wall_clock_ends_a_token_if_the_boot_clock_stood_still() -> None:
    """Where the boot clock does not count sleep, the wall clock alone ends the token's lifetime."""

    async def main() -> None:
        rig = Rig(success(1), success(2))
        await rig.access()
        rig.clock.step_wall(LIFETIME)
        assert rig.source.snapshot().freshness is Freshness.EXPIRED
        assert await rig.access() == "access-2"

    run(main)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["fresh", "due", "in the request", "in the back-off", "unsaved"])
def test_f35_the_wall_clock_may_step_at_any_moment(moment: str, step: float) -> None:
    """Forwards or back, by a second or by months: no exception, no negative sleep, at most one refresh."""

    async def main() -> None:
        clock = RecordingClock(jitter=0.5)
        paused = Paused(success(2))
        rig = Rig(success(1), clock=clock)
        await rig.access()
        if moment == "fresh":
            rig.transport.script(success(2))
            clock.step_wall(step)
        elif moment == "due":
            rig.transport.script(success(2))
            clock.advance(LIFETIME - 299)
            clock.step_wall(step)
        elif moment == "in the request":
            rig.transport.script(paused)
            clock.advance(LIFETIME)
            caller = asyncio.create_task(rig.access())
            await paused.arrived.wait()
            clock.step_wall(step)
            paused.release()
            await caller
        elif moment == "in the back-off":
            rig.transport.script(NotSent("no route"), success(2))
            clock.advance(LIFETIME)
            with pytest.raises(NotSent):
                await rig.access()
            clock.step_wall(step)
            with pytest.raises(TokenUnavailable) as caught:
                await rig.access()
            assert caught.value.retry_after == 0.75, "pauses do not depend on the wall clock"
            clock.advance(1)
        else:
            rig.transport.script(success(2))
            clock.advance(LIFETIME - 299)
            await rig.access()
            clock.step_wall(step)
        before = rig.token_requests
        rig.transport.script(success(3))
        for _ in range(20):
            await rig.access()
            await rig.refreshed()
        assert rig.token_requests <= before + 1
        assert rig.token_requests <= 3
        assert all(seconds >= 0 for seconds in clock.slept_for)
        left = rig.source.snapshot().seconds_left
        assert left is not None
        assert left <= LIFETIME, "a token must not outlive its lifetime"

    run(main)


@pytest.mark.parametrize("offset", [-3600.0, 3600.0, -10_000_000.0])
def test_f35_a_clock_that_is_wrong_by_an_hour_changes_nothing(offset: float) -> None:
    """A lifetime is a duration: whatever the wall clock says, the token requests come at the same moments."""

    async def moments(offset: float) -> list[float]:
        clock = FakeClock(wall=1_750_000_000.0 + offset, jitter=0.0)
        rig = Rig(*(success(number) for number in range(1, 20)), clock=clock)
        moments_of_requests = []
        for _ in range(360):
            token_requests = rig.token_requests
            await rig.access()
            await rig.refreshed()
            if rig.token_requests > token_requests:
                moments_of_requests.append(clock.boot())
            clock.advance(100)
        return moments_of_requests

    async def main() -> None:
        right = await moments(0.0)
        assert await moments(offset) == right
        assert 10 <= len(right) <= 12

    run(main)


def test_f35_a_store_whose_clock_stands_still_makes_no_token_younger() -> None:
    """A process knows when it got its token, whatever the store says about the age of the record."""

    async def main() -> None:
        store = MemoryStore(clock=FakeClock())
        rig = Rig(success(1), OutcomeUnknown("reset"), store=store)
        await rig.access()
        rig.clock.advance(LIFETIME)
        with pytest.raises(OutcomeUnknown):
            await rig.access()

    run(main)


def test_f35_a_pause_ends_although_the_clock_of_the_store_stands_still() -> None:
    """It is counted from when the process first sees it."""

    async def main() -> None:
        store = MemoryStore(clock=FakeClock())
        rig = Rig(OutcomeUnknown("reset"), success(1), store=store)
        with pytest.raises(OutcomeUnknown):
            await rig.access()
        rig.clock.advance(2)
        assert await rig.access() == "access-1"

    run(main)


@settings(deadline=None, max_examples=60)
@given(
    lifetime=st.integers(1, 30 * 86_400),
    jitter=st.sampled_from([0.0, 0.5, 0.999]) | st.floats(0, 0.999),
    pace=st.floats(0.003, 0.09),
)
def test_f36_no_lifetime_from_1_s_to_30_days_causes_a_refresh_loop(
    lifetime: int, jitter: float, pace: float
) -> None:
    """A token is refreshed after three quarters of its lifetime at the earliest, and no caller waits."""
    # Callers come more often than the window between DUE and ENDING is long.
    step = min(lifetime * pace, 239.0)

    async def main() -> None:
        clock = FakeClock(jitter=jitter)
        rig = Rig(*(success(number, expires_in=lifetime) for number in range(1, 9)), clock=clock)
        await rig.access()
        began = clock.boot()
        while clock.boot() - began < 3 * lifetime:
            obtained, token_requests = clock.boot(), rig.token_requests
            quiet = max(0.75 * lifetime, lifetime - 400)
            for _ in range(20):
                clock.advance(quiet / 20 * (1 - 1e-9))
                assert at_once(rig) == f"access-{token_requests}"
            await rig.refreshed()
            assert rig.token_requests == token_requests
            while rig.token_requests == token_requests:
                assert clock.boot() - obtained < lifetime
                assert at_once(rig) == f"access-{token_requests}"
                await rig.refreshed()
                clock.advance(step if rig.token_requests == token_requests else 0)
        assert rig.token_requests <= 1 + 4

    run(main)


@settings(deadline=None, max_examples=200)
@given(st.floats(1, 30 * DAY), st.floats(0, 1))
def test_f36_the_refresh_window_is_at_most_a_fifth_of_the_lifetime_before_jitter(
    lifetime: float, jitter: float
) -> None:
    """For any lifetime L, DUE comes at most L/5 before the end, or 1.2 L/5 with full jitter."""
    limits = deadlines(Token("a", 0.0, lifetime), 0.0, Policy(), jitter=jitter)
    spread = 1 + 0.2 * jitter
    assert lifetime - limits.due_wall <= lifetime / 5 * spread * (1 + 1e-9)
    assert lifetime - limits.due_wall <= 300 * spread * (1 + 1e-9)


def test_f35_f36_a_wrong_expires_in_cannot_cause_a_refresh_loop() -> None:
    """With an expires_in of 1, 0 or less, every caller is served, and every token request has a caller."""

    async def main() -> None:
        lifetimes: list[Any] = [1, 0, -5, 1, 0.5, 1]
        responses = [
            token_response({"access_token": f"access-{n}", "expires_in": lifetime})
            for n, lifetime in enumerate(lifetimes)
        ]
        rig = Rig(*responses)
        for number in range(len(lifetimes)):
            assert await rig.access() == f"access-{number}"
            rig.clock.advance(1)
        assert rig.token_requests == len(lifetimes)

    run(main)
