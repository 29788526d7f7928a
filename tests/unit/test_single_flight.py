"""One run of some work for any number of waiters: nobody's cancellation reaches it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest

from tokensession._refresh.single_flight import SharedTask, SharedTasks
from tokensession.errors import RateLimited, TokenSessionError, TokenUnavailable


def run(main: Coroutine[Any, Any, None]) -> None:
    async def guarded() -> None:
        async with asyncio.timeout(60):  # an upper bound for a hang, never waited for
            await main

    asyncio.run(guarded())


class Gate:
    """Work that begins, and ends when the test says so."""

    def __init__(self, outcome: str | BaseException = "done") -> None:
        self.outcome = outcome
        self.began = asyncio.Event()
        self.opened = asyncio.Event()
        self.runs = 0
        self.cancelled = False

    async def work(self) -> str:
        self.runs += 1
        self.began.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def flight(self) -> SharedTask[str]:
        return SharedTask(self.work(), name="test flight")


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_all_waiters_get_the_result_of_the_one_run() -> None:
    async def main() -> None:
        gate = Gate()
        flight = gate.flight()
        waiters = [asyncio.create_task(flight.wait()) for _ in range(100)]
        await gate.began.wait()
        gate.opened.set()
        assert await asyncio.gather(*waiters) == ["done"] * 100
        assert gate.runs == 1
        assert await flight.wait() == "done"

    run(main())


# -- cancelling a waiter --------------------------------------------------------------------------


async def by_task_cancel(flight: SharedTask[str]) -> None:
    task = asyncio.create_task(flight.wait())
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_cancel_before_it_runs(flight: SharedTask[str]) -> None:
    task = asyncio.create_task(flight.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_wait_for(flight: SharedTask[str]) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(flight.wait(), 0)


async def by_asyncio_timeout(flight: SharedTask[str]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await flight.wait()


async def by_an_anyio_scope(flight: SharedTask[str]) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await flight.wait()
    assert scope.cancelled_caught


async def by_an_anyio_deadline(flight: SharedTask[str]) -> None:
    with anyio.move_on_after(0) as scope:
        await flight.wait()
    assert scope.cancelled_caught


async def dies() -> None:
    await turns()
    raise LookupError


async def by_a_dying_task_group(flight: SharedTask[str]) -> None:
    async def group_of_two() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(flight.wait())
            group.create_task(dies())

    with pytest.raises(ExceptionGroup):
        await group_of_two()


async def by_a_dying_anyio_task_group(flight: SharedTask[str]) -> None:
    async def group_of_two() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(flight.wait)
            group.start_soon(dies)

    with pytest.raises(ExceptionGroup):
        await group_of_two()


WAYS: list[Callable[[SharedTask[str]], Awaitable[None]]] = [
    by_task_cancel,
    by_cancel_before_it_runs,
    by_wait_for,
    by_asyncio_timeout,
    by_an_anyio_scope,
    by_an_anyio_deadline,
    by_a_dying_task_group,
    by_a_dying_anyio_task_group,
]


@pytest.mark.parametrize("cancel", WAYS, ids=lambda way: way.__name__)
def test_f01_f02_a_cancelled_waiter_leaves_the_work_and_the_others_alone(
    cancel: Callable[[SharedTask[str]], Awaitable[None]],
) -> None:
    """A waiter cancelled in any of eight ways reaches neither the work nor the other waiters."""

    async def main() -> None:
        gate = Gate()
        flight = gate.flight()
        others = [asyncio.create_task(flight.wait()) for _ in range(3)]
        await gate.began.wait()
        await cancel(flight)
        assert not flight.done
        assert not gate.cancelled
        gate.opened.set()
        assert await asyncio.gather(*others) == ["done"] * 3
        assert (gate.runs, gate.cancelled) == (1, False)

    run(main())


def test_f01_the_caller_that_started_it_may_die_before_the_work_has_begun() -> None:
    """A caller that dies before its flight has taken a step leaves a flight that lands for the others."""

    async def main() -> None:
        gate = Gate()
        flights: list[SharedTask[str]] = []

        async def starts() -> None:
            flights.append(gate.flight())
            await flights[0].wait()

        starter = asyncio.create_task(starts())
        await asyncio.sleep(0)
        starter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starter
        gate.opened.set()
        assert await flights[0].wait() == "done"

    run(main())


def test_f02_a_crowd_of_cancelled_waiters_leaves_nothing_behind() -> None:
    """Two hundred cancelled waiters leave one flight under way, and no other task."""

    async def main() -> None:
        gate = Gate()
        flight = gate.flight()
        for _ in range(200):
            await by_task_cancel(flight)
        before = len(asyncio.all_tasks())
        gate.opened.set()
        assert await flight.wait() == "done"
        await turns()
        assert before - len(asyncio.all_tasks()) == 1, "the flight's own task, and no other"

    run(main())


# -- errors ---------------------------------------------------------------------------------------


def test_each_waiter_gets_a_fresh_copy_of_the_error_with_the_original_as_its_cause() -> None:
    async def main() -> None:
        original = RateLimited("Too many.", retry_after=5)
        gate = Gate(original)
        flight = gate.flight()
        waiters = [asyncio.create_task(flight.wait()) for _ in range(3)]
        gate.opened.set()
        errors = await asyncio.gather(*waiters, return_exceptions=True)
        assert len({id(error) for error in errors}) == 3
        for error in errors:
            assert isinstance(error, RateLimited)
            assert error.__cause__ is original
            assert error.retry_after == 5

    run(main())


def test_tracebacks_do_not_pile_up_on_the_original() -> None:
    async def main() -> None:
        original = RateLimited("Too many.")
        gate = Gate(original)
        flight = gate.flight()
        gate.opened.set()
        await flight.drain()
        before = original.__traceback__
        for _ in range(50):
            with pytest.raises(RateLimited):
                await flight.wait()
        assert original.__traceback__ is before

    run(main())


def test_an_unexpected_error_becomes_one_of_ours_and_stays_as_the_cause() -> None:
    async def main() -> None:
        original = LookupError("a bug, with who knows what in it")
        gate = Gate(original)
        flight = gate.flight()
        gate.opened.set()
        with pytest.raises(TokenSessionError, match="unexpectedly \\(LookupError\\)") as caught:
            await flight.wait()
        assert type(caught.value) is TokenSessionError
        assert caught.value.__cause__ is original
        assert "who knows" not in str(caught.value)

    run(main())


def test_nobody_needs_to_look_at_an_error() -> None:
    """No "Task exception was never retrieved": warnings are errors here, and so is what the loop says."""

    async def main() -> None:
        said: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: said.append(context))
        gate = Gate(RateLimited("Too many."))
        flight = gate.flight()
        gate.opened.set()
        await flight.drain()
        del flight, gate
        await turns()
        gc.collect()
        assert said == []

    run(main())


# -- landing --------------------------------------------------------------------------------------


def test_f04_landed_and_the_result_change_in_the_same_step() -> None:
    """Whoever sees that a flight has not landed, and waits, gets its result, in whatever turn of the loop."""

    async def main() -> None:
        gate = Gate()
        flight = gate.flight()
        seen: list[str] = []

        async def joins() -> None:
            if not flight.done:
                seen.append(await flight.wait())

        await gate.began.wait()
        joiners = [asyncio.create_task(joins())]
        await turns()
        gate.opened.set()
        while not flight.done:
            joiners.append(asyncio.create_task(joins()))
            await asyncio.sleep(0)
        await asyncio.gather(*joiners)
        assert seen
        assert set(seen) == {"done"}

    run(main())


def test_a_landed_flight_says_so_and_draining_it_returns_at_once() -> None:
    async def main() -> None:
        gate = Gate()
        flight = gate.flight()
        assert repr(flight) == "<SharedTask test flight running>"
        draining = asyncio.create_task(flight.drain())
        await turns()
        assert not draining.done()
        gate.opened.set()
        await draining
        assert flight.done
        assert repr(flight) == "<SharedTask test flight done>"
        await flight.drain()

    run(main())


def test_draining_a_failed_flight_raises_nothing() -> None:
    async def main() -> None:
        gate = Gate(LookupError("x"))
        flight = gate.flight()
        gate.opened.set()
        await flight.drain()

    run(main())


def test_it_calls_back_once_when_it_has_landed() -> None:
    async def main() -> None:
        for outcome in ("done", LookupError("x")):
            gate = Gate(outcome)
            done: list[tuple[SharedTask[str], bool]] = []
            flight: SharedTask[str] = SharedTask(
                gate.work(), name="x", on_done=lambda it, seen=done: seen.append((it, it.done))
            )
            gate.opened.set()
            await flight.drain()
            assert done == [(flight, True)]

    run(main())


def test_aborting_waits_until_the_work_has_put_its_things_in_order() -> None:
    async def main() -> None:
        ended: list[str] = []
        began = asyncio.Event()

        async def work() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append("in order")

        flight = SharedTask(work(), name="x")
        waiter = asyncio.create_task(flight.wait())
        await began.wait()
        flight.cancel()
        await flight.drain()
        assert ended == ["in order"]
        assert flight.done
        with pytest.raises(TokenUnavailable, match="event loop or session is closing") as caught:
            await waiter
        assert caught.value.__cause__ is not None

    run(main())


def test_aborting_before_it_began_lands_it_too() -> None:
    async def main() -> None:
        gate = Gate()
        flight = gate.flight()
        await turns()
        flight.cancel()
        await flight.drain()
        with pytest.raises(TokenUnavailable):
            await flight.wait()

    run(main())


@pytest.mark.parametrize("outcome", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_a_flight_that_the_interpreter_stops_never_hands_out_nothing_for_a_result(
    outcome: BaseException,
) -> None:
    """The exception ends the loop, as it must; a waiter that is asked later must not get None."""
    flights: list[SharedTask[str]] = []

    async def main() -> None:
        async def work() -> str:
            raise outcome

        flights.append(SharedTask(work(), name="x"))
        await flights[0].drain()

    with contextlib.suppress(SystemExit, KeyboardInterrupt):
        asyncio.run(main())

    async def later() -> None:
        with pytest.raises(TokenSessionError):
            await flights[0].wait()

    asyncio.run(later())


# -- several flights ------------------------------------------------------------------------------


def test_flights_are_kept_until_they_land_and_not_longer() -> None:
    async def main() -> None:
        flights, gates = SharedTasks(), [Gate(), Gate(LookupError("x"))]
        for gate in gates:
            flights.start(gate.work(), name="x")
        assert len(flights.running) == 2
        assert repr(flights) == "<SharedTasks 2 running>"
        for gate in gates:
            gate.opened.set()
        await flights.drain()
        assert flights.running == frozenset()
        assert repr(flights) == "<SharedTasks 0 running>"

    run(main())


def test_f43_a_flight_that_nobody_else_refers_to_is_not_collected() -> None:
    """The set of flights under way keeps them alive although nobody waits for them."""

    async def main() -> None:
        flights = SharedTasks()
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done: list[str] = []

        async def work() -> None:
            await opened
            done.append("done")

        flights.start(work(), name="x")
        await turns()
        gc.collect()
        opened.set_result(None)
        await flights.drain()
        assert done == ["done"]

    run(main())


def test_draining_waits_for_flights_that_flights_have_started() -> None:
    async def main() -> None:
        flights, done = SharedTasks(), list[str]()

        async def second() -> None:
            await turns()
            done.append("second")

        async def first() -> None:
            await turns()
            flights.start(second(), name="second")
            done.append("first")

        flights.start(first(), name="first")
        await flights.drain()
        assert done == ["first", "second"]

    run(main())


def test_aborting_them_all_cancels_and_waits() -> None:
    async def main() -> None:
        flights, gates = SharedTasks(), [Gate(), Gate()]
        for gate in gates:
            flights.start(gate.work(), name="x")
        await turns()
        await flights.cancel()
        assert all(gate.cancelled for gate in gates)
        assert flights.running == frozenset()
        await flights.cancel()
        await flights.drain()

    run(main())


def test_f42_flights_of_a_closed_loop_are_no_longer_under_way() -> None:
    """SharedTasks that a closed loop has left behind are dropped, and new ones fly in the next loop."""
    flights = SharedTasks()

    async def main() -> None:
        flights.start(Gate().work(), name="x")
        await turns()

    asyncio.run(main())
    assert flights.running == frozenset()

    async def another() -> None:
        gate = Gate()
        flight = flights.start(gate.work(), name="x")
        gate.opened.set()
        await flights.drain()
        assert await flight.wait() == "done"

    run(another())


# -- loops, references, context -------------------------------------------------------------------


def test_f42_a_flight_of_a_closed_loop_is_stranded_or_landed() -> None:
    """A flight of a closed loop can be told from one that may land, and waiting for it raises."""
    flights: list[SharedTask[str]] = []

    async def main() -> None:
        gate = Gate()
        flights.append(gate.flight())
        await gate.began.wait()
        assert not flights[0].orphaned
        assert not flights[0].in_other_loop

    asyncio.run(main())
    assert flights[0].orphaned
    assert flights[0].done, "asyncio.run cancels what is left, and that lands it"

    async def another() -> None:
        assert flights[0].in_other_loop
        with pytest.raises(TokenUnavailable):
            await flights[0].wait()

    asyncio.run(another())


def test_a_flight_left_behind_by_a_loop_that_was_not_tidied_up_is_stranded() -> None:
    loop = asyncio.new_event_loop()
    flights: list[SharedTask[str]] = []

    async def main() -> None:
        flights.append(Gate().flight())

    loop.run_until_complete(main())
    task = next(iter(asyncio.all_tasks(loop)))
    assert not flights[0].orphaned
    assert not flights[0].done
    task.cancel()  # so that nothing warns about it; its loop is closed before it can land
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert flights[0].orphaned


def test_f43_the_garbage_collector_cannot_take_a_flight_that_is_referenced() -> None:
    """asyncio's references to tasks are weak: a flight is held by a strong one, and is not collected."""

    async def main() -> None:
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done: list[str] = []

        async def work() -> None:
            await opened
            done.append("done")

        flight = SharedTask(work(), name="x")
        await turns()
        for _ in range(3):
            gc.collect()
        opened.set_result(None)
        await flight.wait()
        assert done == ["done"]

    run(main())


def test_the_work_runs_in_an_empty_context() -> None:
    """It serves many callers, so it must see no one's variables, and keep none of them alive."""
    variable = contextvars.ContextVar("variable", default="nobody's")

    async def main() -> None:
        variable.set("the first caller's")

        async def work() -> tuple[str, int]:
            return variable.get(), len(contextvars.copy_context())

        assert await SharedTask(work(), name="x").wait() == ("nobody's", 0)

    run(main())


def test_a_waiter_s_cancel_scope_does_not_surround_the_work() -> None:
    """A flight that takes off inside somebody's scope outlives the scope."""

    async def main() -> None:
        gate = Gate()
        flights: list[SharedTask[str]] = []
        with anyio.CancelScope() as scope:
            flights.append(gate.flight())
            await gate.began.wait()
            scope.cancel()
            await flights[0].wait()
        gate.opened.set()
        assert await flights[0].wait() == "done"
        assert not gate.cancelled

    run(main())


def test_there_is_no_flight_without_a_running_loop() -> None:
    async def work() -> None: ...

    coroutine = work()
    with pytest.raises(RuntimeError, match="no running event loop"):
        SharedTask(coroutine, name="x")
    coroutine.close()
