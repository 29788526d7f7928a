"""The one reader of clocks, and a deadline by any clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from tokensession.clock import Clock, SystemClock, within
from tokensession.testing import FakeClock


def run(main: Coroutine[Any, Any, None]) -> None:
    async def guarded() -> None:
        async with asyncio.timeout(60):  # an upper bound for a hang, never waited for
            await main

    asyncio.run(guarded())


def test_the_system_clock_is_a_clock_that_reads_the_machine_s() -> None:
    clock: Clock = SystemClock()
    before = time.time()
    assert before <= clock.wall() <= time.time()
    first = clock.boot()
    assert first <= clock.boot()
    assert 0 <= clock.jitter() < 1
    assert repr(clock) == "SystemClock()"
    run(clock.sleep(0))


def test_f34_the_boot_clock_counts_suspended_time_where_there_is_one_that_does() -> None:
    """The boot clock is CLOCK_BOOTTIME, which counts suspended time, wherever the platform has it."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert before <= SystemClock().boot() <= time.clock_gettime(time.CLOCK_BOOTTIME)
    else:
        assert SystemClock().boot() <= time.monotonic()


def test_work_in_time_is_handed_back_and_its_timer_is_gone() -> None:
    async def main() -> None:
        clock = FakeClock()

        async def work() -> str:
            await clock.sleep(5)
            return "done"

        task = asyncio.create_task(within(clock, 10, work()))
        await clock.slept(2)
        clock.advance(9)
        assert await task == "done"
        assert clock.sleepers == ()

    run(main())


def test_f03_f10_work_that_is_late_is_over_when_the_time_out_is_raised() -> None:
    """Work past its deadline is stopped, has ended when the time-out is raised, and leaves no timer."""

    async def main() -> None:
        clock = FakeClock()
        ended: list[str] = []

        async def work() -> None:
            try:
                await clock.sleep(1000)
            finally:
                await asyncio.sleep(0)
                ended.append("over")

        task = asyncio.create_task(within(clock, 10, work()))
        await clock.slept(2)
        clock.advance(9.999)
        await asyncio.sleep(0)
        assert not task.done()
        clock.advance(0.001)
        with pytest.raises(TimeoutError):
            await task
        assert ended == ["over"]
        assert clock.sleepers == ()

    run(main())


def test_only_this_clock_counts() -> None:
    """Ten seconds that never pass: the work may take as many turns of the loop as it likes."""

    async def main() -> None:
        async def work() -> str:
            for _ in range(1000):
                await asyncio.sleep(0)
            return "done"

        assert await within(FakeClock(), 10, work()) == "done"

    run(main())


def test_what_the_work_raises_comes_out_as_it_is() -> None:
    async def main() -> None:
        clock = FakeClock()
        error = KeyError("x")

        async def work() -> None:
            raise error

        with pytest.raises(KeyError) as caught:
            await within(clock, 10, work())
        assert caught.value is error
        assert clock.sleepers == ()

    run(main())


def test_a_cancelled_caller_takes_the_work_and_the_timer_along() -> None:
    async def main() -> None:
        clock = FakeClock()
        ended: list[str] = []

        async def work() -> None:
            try:
                await clock.sleep(1000)
            finally:
                ended.append("over")

        task = asyncio.create_task(within(clock, 10, work()))
        await clock.slept(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["over"]
        assert clock.sleepers == ()

    run(main())


def test_a_result_that_arrives_with_the_deadline_is_not_thrown_away() -> None:
    """A rotated token that came in the last instant is a token."""

    async def main() -> None:
        clock = FakeClock()

        async def work() -> str:
            await clock.sleep(10)
            return "done"

        task = asyncio.create_task(within(clock, 10, work()))
        await clock.slept(2)
        clock.advance(10)
        assert await task == "done"

    run(main())


def test_a_caller_who_is_cancelled_when_the_result_is_there_gets_it_and_is_cancelled_once() -> None:
    """The result may be the only copy of something; and a time-out around it counts one cancellation."""

    async def scene() -> None:
        results: list[str] = []
        done = asyncio.get_running_loop().create_future()

        async def work() -> str:
            await done
            caller.cancel("enough")  # in the very turn in which it ends
            return "the only copy"

        async def call() -> None:
            results.append(await within(FakeClock(), 10, work()))
            await asyncio.sleep(0)
            raise AssertionError("the cancellation is lost")

        caller = asyncio.ensure_future(call())
        await asyncio.sleep(0)
        done.set_result(None)
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await caller
        assert (results, caller.cancelling()) == (["the only copy"], 1)

    asyncio.run(scene())
