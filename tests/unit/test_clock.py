"""The system clock, and deadlines by any clock."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
import weakref
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any

import pytest
from _loop import iterations, run

from tokensession.clock import Bound, Clock, SystemClock, Timer, bounded, within
from tokensession.testing import FakeClock


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


class SleepingClock(FakeClock):
    """A clock of your own: it has no `call_later`."""

    call_later = None  # type: ignore[assignment]


async def until_cancelled(ended: list[str], outcome: str | Exception | None = None) -> str:
    """Work that waits until it is cancelled, and then has this outcome instead, if there is one."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        ended.append("over")
        if isinstance(outcome, Exception):
            raise outcome from None
        if outcome is None:
            raise
    return outcome or ""


@pytest.mark.parametrize("kind", [FakeClock, SleepingClock])
def test_a_timer_calls_back_once_after_its_seconds(kind: type[FakeClock]) -> None:
    async def main() -> None:
        clock, calls = kind(), list[str]()
        Timer(clock, 10, lambda: calls.append("called"))
        await clock.slept()
        clock.advance(9.999)
        await iterations()
        assert calls == []
        for _ in range(3):
            clock.advance(10)
            await iterations()
        assert calls == ["called"]

    run(main())


@pytest.mark.parametrize("kind", [FakeClock, SleepingClock])
def test_a_cancelled_timer_calls_nothing_and_leaves_nothing(kind: type[FakeClock]) -> None:
    async def main() -> None:
        clock, calls = kind(), list[str]()
        timer = Timer(clock, 10, lambda: calls.append("called"))
        await clock.slept()
        timer.cancel()
        timer.cancel()
        await iterations()
        assert (clock.sleepers, len(asyncio.all_tasks())) == ((), 1), "only this test"
        clock.advance(100)
        await iterations()
        assert calls == []

    run(main())


def test_a_timer_takes_a_task_only_if_the_clock_can_do_nothing_but_sleep() -> None:
    async def main() -> None:
        for clock, tasks in ((SystemClock(), 0), (FakeClock(), 0), (SleepingClock(), 1)):
            before = asyncio.all_tasks()
            timer = Timer(clock, 1000, print)
            assert len(asyncio.all_tasks() - before) == tasks
            timer.cancel()

    run(main())


def test_the_system_clock_calls_back_in_the_running_loop() -> None:
    async def main() -> None:
        called = asyncio.Event()
        Timer(SystemClock(), 0, called.set)
        await called.wait()

    run(main())


@pytest.mark.parametrize("kind", [SystemClock, FakeClock, SleepingClock])
def test_a_timer_whose_loop_is_closed_can_be_cancelled(kind: Callable[[], Any]) -> None:
    timers: list[Timer] = []

    async def main() -> None:
        timers.append(Timer(kind(), 1000, print))
        await asyncio.sleep(0)

    asyncio.run(main())
    timers[0].cancel()
    timers[0].cancel()


def test_bounded_work_runs_in_this_task_and_leaves_no_timer() -> None:
    async def main() -> None:
        clock, before = FakeClock(), asyncio.all_tasks()

        async def work() -> str:
            assert asyncio.all_tasks() == before
            assert clock.sleepers == (10,)
            return "done"

        assert await bounded(clock, 10, work()) == "done"
        assert clock.sleepers == ()

    run(main())


@pytest.mark.parametrize("outcome", [None, KeyError("x"), "done"], ids=["cancelled", "error", "result"])
def test_bounded_work_is_cancelled_when_its_time_is_up_and_no_cancellation_is_left_counted(
    outcome: str | KeyError | None,
) -> None:
    """Whatever it ends in. A later time-out or task group around it would take it for its own."""

    async def main() -> None:
        clock, ended = FakeClock(), list[str]()

        async def call() -> None:
            if isinstance(outcome, str):
                assert await bounded(clock, 10, until_cancelled(ended, outcome)) == outcome
            else:
                with pytest.raises(TimeoutError if outcome is None else KeyError):
                    await bounded(clock, 10, until_cancelled(ended, outcome))
            caller = asyncio.current_task()
            assert caller is not None
            assert caller.cancelling() == 0
            await asyncio.sleep(0)  # and none arrives later

        task = asyncio.create_task(call())
        await clock.slept()
        clock.advance(9.999)
        await iterations()
        assert ended == []
        clock.advance(0.001)
        await task
        assert ended == ["over"]

    run(main())


@pytest.mark.parametrize("time_is_up", [False, True])
def test_cancelling_the_caller_of_bounded_work_is_a_cancellation_also_when_its_time_is_up(
    time_is_up: bool,
) -> None:
    """It must not turn into a TimeoutError, which the caller would handle."""

    async def main() -> None:
        clock = FakeClock()
        task = asyncio.create_task(bounded(clock, 10, until_cancelled([])))
        await clock.slept()
        if time_is_up:
            clock.advance(10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert clock.sleepers == ()

    run(main())


@pytest.mark.parametrize(("inner", "outer", "raised"), [(5, 10, "inner"), (10, 5, "outer")])
def test_of_two_bounds_around_each_other_the_one_whose_time_is_up_ends(
    inner: float, outer: float, raised: str
) -> None:
    async def main() -> None:
        clock = FakeClock()

        async def bound(seconds: float, name: str, work: Coroutine[Any, Any, str]) -> str:
            try:
                return await bounded(clock, seconds, work)
            except TimeoutError:
                return name

        task = asyncio.create_task(bound(outer, "outer", bound(inner, "inner", until_cancelled([]))))
        await clock.slept(2)
        clock.advance(5)
        assert await task == raised

    run(main())


def test_one_timer_ends_each_piece_of_work_at_its_own_time() -> None:
    async def main() -> None:
        clock = FakeClock()
        bound, ended = Bound(clock, 10), list[str]()

        async def late(name: str) -> None:
            with pytest.raises(TimeoutError):
                await bound.run(until_cancelled([]))
            ended.append(name)

        tasks = set[asyncio.Task[None]]()
        for name in "abc":
            tasks.add(asyncio.create_task(late(name)))
            await iterations()
            clock.advance(3)
        for name, seconds in (("a", 1), ("b", 3), ("c", 3)):
            assert len(clock.sleepers) == 1
            clock.advance(seconds)
            await iterations()
            assert ended[-1] == name
            assert await bound.run(asyncio.sleep(0, "in time")) == "in time"
        await asyncio.gather(*tasks)
        clock.advance(10)
        assert clock.sleepers == (), "there is no work left to wait for"

    run(main())


def test_a_bound_lasts_although_all_other_tasks_are_cancelled() -> None:
    """The end of `asyncio.run` does that, and so the timer of a clock that can only sleep ends."""

    async def main() -> None:
        clock = SleepingClock()
        bound = Bound(clock, 10)

        async def repeated() -> None:
            for _ in range(2):
                with contextlib.suppress(asyncio.CancelledError):
                    await bound.run(until_cancelled([]))

        task = asyncio.create_task(repeated())
        await clock.slept()
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        await iterations()
        clock.advance(10)
        with pytest.raises(TimeoutError):
            await task
        bound.close()

    run(main())


def test_a_suspension_ends_only_the_work_whose_time_was_nearly_over() -> None:
    """The boot clock counts it, and the event loop's timers do not. An answer may be about to arrive."""

    async def main() -> None:
        clock = FakeClock()
        bound, over = Bound(clock, 10), asyncio.Event()
        early = asyncio.create_task(bound.run(until_cancelled([])))
        await clock.slept()
        clock.advance(9)
        late = asyncio.create_task(bound.run(over.wait()))
        await iterations()
        clock.advance(3600)
        with pytest.raises(TimeoutError):
            await early
        for seconds in (8.9, 0.2):  # nine were left to it
            await iterations()
            assert not late.done()
            clock.advance(seconds)
        with pytest.raises(TimeoutError):
            await late

    run(main())


def test_work_that_begins_after_a_suspension_gets_no_more_time_than_any() -> None:
    async def main() -> None:
        clock = FakeClock()
        bound = Bound(clock, 10)
        await bound.run(asyncio.sleep(0))

        async def call() -> None:
            clock.advance(3600)  # the timer is due, and runs in the next turn of the loop
            with pytest.raises(TimeoutError):
                await bound.run(until_cancelled([]))

        task = asyncio.create_task(call())
        await iterations()
        clock.advance(10)
        await task

    run(main())


def test_a_timer_of_shared_bounds_keeps_no_caller_s_context() -> None:
    """It may run for as long as the program is busy, and a context may hold a whole request."""

    class Request:
        pass

    async def main() -> None:
        clock, request, variable = FakeClock(), Request(), ContextVar[Request]("request")
        bound, kept = Bound(clock, 10), weakref.ref(request)
        context = Context()
        context.run(variable.set, request)
        await asyncio.create_task(bound.run(asyncio.sleep(0)), context=context)
        del context, request
        await asyncio.sleep(0)  # until this step, the event loop holds the task that ended before it
        gc.collect()
        assert (kept(), clock.sleepers) == (None, (10,))

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


def test_within_takes_one_task_and_no_second_one_for_its_deadline() -> None:
    async def main() -> None:
        before = asyncio.all_tasks()

        async def work() -> int:
            await iterations()
            return len(asyncio.all_tasks() - before)

        for clock in (SystemClock(), FakeClock()):
            assert await within(clock, 10, work()) == 1

    run(main())


@pytest.mark.parametrize(("steps", "used"), [(0, True), (5, True), (14, True), (200, False)])
def test_k04_a_response_that_waits_in_the_socket_when_the_time_is_up_is_used(steps: int, used: bool) -> None:
    """After a suspension all timers run out at once. Reading the response takes a few steps of the loop."""

    async def main() -> None:
        clock, readable = FakeClock(), asyncio.Event()

        async def work() -> str:
            await readable.wait()
            await iterations(steps)
            return "the only copy"

        task = asyncio.create_task(within(clock, 10, work()))
        await clock.slept()
        readable.set()
        clock.advance(1000)
        if used:
            assert await task == "the only copy"
        else:
            with pytest.raises(TimeoutError):
                await task

    run(main())


@pytest.mark.parametrize("how", ["time-out", "cancellation"])
def test_a_result_that_arrives_while_the_work_is_stopped_goes_to_on_abandoned(how: str) -> None:
    """A claim that is granted just then is given back."""

    async def main() -> None:
        clock, abandoned = FakeClock(), list[str]()

        async def give_back(result: str) -> None:
            abandoned.append(result)

        work = until_cancelled([], "a claim")
        task = asyncio.create_task(within(clock, 10, work, on_abandoned=give_back))
        await clock.slept()
        if how == "time-out":
            clock.advance(10)
        else:
            task.cancel()
        with pytest.raises(TimeoutError if how == "time-out" else asyncio.CancelledError):
            await task
        assert abandoned == ["a claim"]

    run(main())


def test_work_that_cancels_itself_is_an_error_and_not_a_cancellation_of_the_caller() -> None:
    async def main() -> None:
        async def work() -> None:
            raise asyncio.CancelledError

        with pytest.raises(RuntimeError, match="cancelled itself"):
            await within(FakeClock(), 10, work())

    run(main())


@pytest.mark.parametrize("limited", [bounded, within])
def test_an_error_of_the_work_is_raised_unchanged(limited: Any) -> None:
    async def main() -> None:
        clock, error = FakeClock(), KeyError("x")

        async def work() -> None:
            raise error

        with pytest.raises(KeyError) as caught:
            await limited(clock, 10, work())
        assert caught.value is error
        assert clock.sleepers == ()

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
