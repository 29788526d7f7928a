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
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock

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


@pytest.mark.parametrize(
    ("boot", "wall"),
    [(1, 0.0), (1, 0.5), (1, 1.0), (0, 1.0)],
    ids=["boot clock only", "wall clock in part", "both", "wall clock only"],
)
@pytest.mark.parametrize("shared", [False, True], ids=["own token", "adopted"])
def test_f34_a_token_that_expired_while_the_machine_slept_is_not_served(
    boot: int, wall: float, shared: bool
) -> None:
    """Whichever clock ends the token's lifetime first counts: the wall clock or the boot clock."""

    async def main() -> None:
        one = Rig(success(1), success(2))
        await one.access()
        rig = one.peer(success(2)) if shared else one
        assert await rig.access() == "access-1"
        rig.clock.advance(LIFETIME * boot)
        rig.clock.step_wall(LIFETIME * (wall - boot))
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


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["fresh", "due", "refreshing", "in the request", "in the back-off"])
def test_f35_the_wall_clock_may_step_at_any_moment(moment: str, step: float) -> None:
    """Forwards or back, by a second or by months: no exception, no negative sleep, at most one refresh."""

    async def main() -> None:
        clock = RecordingClock(jitter=0.5)
        rig = Rig(success(1), clock=clock)
        await rig.access()
        if moment == "in the request":
            clock.advance(LIFETIME)
            paused, caller = await rig.in_flight(success(2))
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
            clock.advance(0 if moment == "fresh" else LIFETIME - 299)
            if moment == "refreshing":
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
        requested: dict[int, float] = {}
        for _ in range(360):
            await rig.access()
            await rig.refreshed()
            requested.setdefault(rig.token_requests, clock.boot())
            clock.advance(100)
        return list(requested.values())

    async def main() -> None:
        right = await moments(0.0)
        assert await moments(offset) == right
        assert 10 <= len(right) <= 12

    run(main)


def test_f35_a_store_whose_clock_stands_still_makes_no_token_younger_and_no_pause_longer() -> None:
    """A process knows when it got its token and first saw the pause, whatever age the store gives them."""

    async def main() -> None:
        rig = Rig(success(1), OutcomeUnknown("reset"), success(2), store=MemoryStore(clock=FakeClock()))
        await rig.access()
        rig.clock.advance(LIFETIME)
        with pytest.raises(OutcomeUnknown):
            await rig.access()
        rig.clock.advance(2)
        assert await rig.access() == "access-2"

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


def test_f35_f36_a_wrong_expires_in_cannot_cause_a_refresh_loop() -> None:
    """With an expires_in of 1, 0 or less, every caller is served, and every token request has a caller."""

    async def main() -> None:
        lifetimes = [1, 0, -5, 1, 0.5, 1]
        rig = Rig(*(success(number, expires_in=lifetime) for number, lifetime in enumerate(lifetimes)))
        for number in range(len(lifetimes)):
            assert await rig.access() == f"access-{number}"
            rig.clock.advance(1)
        assert rig.token_requests == len(lifetimes)

    run(main)
