"""The system clock, and deadlines by any clock."""

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


def test_the_system_clock_reads_the_machine_s_clocks() -> None:
    clock: Clock = SystemClock()
    before = time.time()
    assert before <= clock.wall() <= time.time()
    first = clock.boot()
    assert first <= clock.boot()
    assert 0 <= clock.jitter() < 1
    assert repr(clock) == "SystemClock()"
    run(clock.sleep(0))


def test_f34_the_boot_clock_counts_suspended_time_if_the_platform_has_such_a_clock() -> None:
    """The boot clock is CLOCK_BOOTTIME, which counts suspended time, if the platform has it."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert before <= SystemClock().boot() <= time.clock_gettime(time.CLOCK_BOOTTIME)
    else:
        assert SystemClock().boot() <= time.monotonic()


def test_work_in_time_returns_its_result_and_leaves_no_timer() -> None:
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


def test_f03_f10_late_work_is_over_when_the_time_out_is_raised() -> None:
    """Work past its deadline is cancelled, has ended when the time-out is raised, and leaves no timer."""

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


def test_only_the_given_clock_counts() -> None:
    """The clock stands still, so the work may take any number of iterations of the event loop."""

    async def main() -> None:
        async def work() -> str:
            for _ in range(1000):
                await asyncio.sleep(0)
            return "done"

        assert await within(FakeClock(), 10, work()) == "done"

    run(main())


def test_an_error_of_the_work_is_raised_unchanged() -> None:
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


def test_cancelling_the_caller_ends_the_work_and_the_timer() -> None:
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


def test_a_result_that_arrives_with_the_deadline_is_returned() -> None:
    """It may be a rotated token."""

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


def test_a_caller_cancelled_when_the_result_is_there_gets_it_and_is_cancelled_once() -> None:
    """The result may be the only copy of a token. A time-out around the caller counts one cancellation."""

    async def scene() -> None:
        results: list[str] = []
        done = asyncio.get_running_loop().create_future()

        async def work() -> str:
            await done
            caller.cancel("enough")  # in the same step in which the work ends
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
