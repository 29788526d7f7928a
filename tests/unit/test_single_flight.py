"""`SharedTask`: one run of some work for any number of waiters, whose cancellation does not reach it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from _loop import iterations, run

from tokensession._refresh.single_flight import SharedTask, SharedTasks, Waiters
from tokensession.errors import TokenSessionError, TokenUnavailable
from tokensession.testing import FakeClock


class Gate:
    """Work that ends when the test opens the gate."""

    def __init__(self, outcome: str | Exception = "done") -> None:
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
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def share(self, waiters: Waiters | None = None) -> SharedTask[str]:
        return SharedTask(self.work(), name="test", waiters=waiters)


async def by_task_cancel(shared: SharedTask[str]) -> None:
    task = asyncio.create_task(shared.wait())
    await iterations()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_cancel_before_it_runs(shared: SharedTask[str]) -> None:
    task = asyncio.create_task(shared.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_wait_for(shared: SharedTask[str]) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(shared.wait(), 0)


async def by_asyncio_timeout(shared: SharedTask[str]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await shared.wait()


async def by_an_anyio_scope(shared: SharedTask[str]) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await shared.wait()
    assert scope.cancelled_caught


async def by_an_anyio_deadline(shared: SharedTask[str]) -> None:
    with anyio.move_on_after(0) as scope:
        await shared.wait()
    assert scope.cancelled_caught


async def fails() -> None:
    await iterations()
    raise LookupError


async def by_a_failing_task_group(shared: SharedTask[str]) -> None:
    async def group_of_two() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(shared.wait())
            group.create_task(fails())

    with pytest.raises(ExceptionGroup):
        await group_of_two()


async def by_a_failing_anyio_task_group(shared: SharedTask[str]) -> None:
    async def group_of_two() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(shared.wait)
            group.start_soon(fails)

    with pytest.raises(ExceptionGroup):
        await group_of_two()


WAYS: list[Callable[[SharedTask[str]], Awaitable[None]]] = [
    by_task_cancel,
    by_cancel_before_it_runs,
    by_wait_for,
    by_asyncio_timeout,
    by_an_anyio_scope,
    by_an_anyio_deadline,
    by_a_failing_task_group,
    by_a_failing_anyio_task_group,
]


@pytest.mark.parametrize("cancel", WAYS, ids=lambda way: way.__name__)
def test_f01_f02_a_cancelled_waiter_affects_neither_the_work_nor_other_waiters(
    cancel: Callable[[SharedTask[str]], Awaitable[None]],
) -> None:
    """A waiter cancelled in any of eight ways affects neither the work nor the other waiters."""

    async def main() -> None:
        gate = Gate()
        task = gate.share()
        others = [asyncio.create_task(task.wait()) for _ in range(3)]
        await gate.began.wait()
        await cancel(task)
        assert not task.done
        assert not gate.cancelled
        gate.opened.set()
        assert await asyncio.gather(*others) == ["done"] * 3
        assert (gate.runs, gate.cancelled) == (1, False)

    run(main())


def test_f01_the_starter_may_be_cancelled_before_the_work_has_begun() -> None:
    """If the caller that starts the work is cancelled before its first step, the work is still done."""

    async def main() -> None:
        gate = Gate()
        tasks: list[SharedTask[str]] = []

        async def starts() -> None:
            tasks.append(gate.share())
            await tasks[0].wait()

        starter = asyncio.create_task(starts())
        await asyncio.sleep(0)
        starter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starter
        gate.opened.set()
        assert await tasks[0].wait() == "done"

    run(main())


def test_f02_many_cancelled_waiters_leave_nothing_behind() -> None:
    """Two hundred cancelled waiters leave the running work, and no other task."""

    async def main() -> None:
        gate = Gate()
        task = gate.share()
        for _ in range(200):
            await by_task_cancel(task)
        before = len(asyncio.all_tasks())
        gate.opened.set()
        assert await task.wait() == "done"
        await iterations()
        assert before - len(asyncio.all_tasks()) == 1, "the task of the work, and no other"

    run(main())


BOUND = 20.0


def test_f03_a_bounded_waiter_gives_up_and_the_work_goes_on() -> None:
    """A later waiter still gets the result."""

    async def main() -> None:
        clock, gate = FakeClock(), Gate()
        task = gate.share(Waiters(clock, BOUND))
        first = task.join()
        await clock.slept()
        clock.advance(BOUND)
        assert await first is False
        assert not task.done
        assert not gate.cancelled
        second = task.join()
        await clock.slept()
        gate.opened.set()
        assert await second is True
        assert task.outcome() == "done"
        assert await task.join() is True, "it is over"
        assert clock.sleepers == ()

    run(main())


def test_an_unexpected_error_is_the_cause_of_a_tokensessionerror() -> None:
    async def main() -> None:
        original = LookupError("a bug, perhaps with a secret")
        gate = Gate(original)
        task = gate.share()
        gate.opened.set()
        with pytest.raises(TokenSessionError, match="unexpectedly \\(LookupError\\)") as caught:
            await task.wait()
        assert type(caught.value) is TokenSessionError
        assert caught.value.__cause__ is original
        assert "secret" not in str(caught.value)

    run(main())


def test_f04_done_and_the_result_change_in_the_same_step() -> None:
    """A caller that sees a task that is not done, and waits, gets its result, at any step of the loop."""

    async def main() -> None:
        gate = Gate()
        task = gate.share()
        seen: list[str] = []

        async def joins() -> None:
            if not task.done:
                seen.append(await task.wait())

        await gate.began.wait()
        joiners = [asyncio.create_task(joins())]
        await iterations()
        gate.opened.set()
        while not task.done:
            joiners.append(asyncio.create_task(joins()))
            await asyncio.sleep(0)
        await asyncio.gather(*joiners)
        assert seen
        assert set(seen) == {"done"}

    run(main())


def test_a_done_task_says_so_and_draining_it_returns_at_once() -> None:
    async def main() -> None:
        gate = Gate()
        task = gate.share()
        assert repr(task) == "<SharedTask test running>"
        draining = asyncio.create_task(task.drain())
        await iterations()
        assert not draining.done()
        gate.opened.set()
        await draining
        assert task.done
        assert repr(task) == "<SharedTask test done>"
        await task.drain()

    run(main())


@pytest.mark.parametrize("outcome", ["done", LookupError("x")])
def test_on_done_is_called_once_when_the_work_is_over(outcome: str | LookupError) -> None:
    async def main() -> None:
        gate, done = Gate(outcome), list[tuple[SharedTask[str], bool]]()

        def note(ended: SharedTask[str]) -> None:
            done.append((ended, ended.done))

        task = SharedTask(gate.work(), name="x", on_done=note)
        gate.opened.set()
        await task.drain()
        assert done == [(task, True)]

    run(main())


def test_a_cancelled_task_cleans_up_before_it_is_done() -> None:
    async def main() -> None:
        ended: list[str] = []
        began = asyncio.Event()

        async def work() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append("cleaned up")

        task = SharedTask(work(), name="x")
        waiter = asyncio.create_task(task.wait())
        await began.wait()
        task.cancel()
        await task.drain()
        assert ended == ["cleaned up"]
        assert task.done
        with pytest.raises(TokenUnavailable, match="event loop or session is closing"):
            await waiter

    run(main())


@pytest.mark.parametrize("outcome", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_a_task_stopped_by_the_interpreter_raises_and_never_returns_none(outcome: BaseException) -> None:
    """The exception ends the event loop. A later waiter gets an error."""
    tasks: list[SharedTask[None]] = []

    async def main() -> None:
        async def work() -> None:
            raise outcome

        tasks.append(SharedTask(work(), name="x"))
        await tasks[0].drain()

    with pytest.raises(type(outcome)):
        asyncio.run(main())
    with pytest.raises(TokenSessionError):
        asyncio.run(tasks[0].wait())


def test_drain_waits_for_tasks_that_tasks_have_started() -> None:
    async def main() -> None:
        tasks, done = SharedTasks(), list[str]()

        async def second() -> None:
            await iterations()
            done.append("second")

        async def first() -> None:
            await iterations()
            tasks.start(second(), name="second")
            done.append("first")

        tasks.start(first(), name="first")
        await tasks.drain()
        assert done == ["first", "second"]

    run(main())


def test_cancelling_all_tasks_waits_until_they_are_done() -> None:
    async def main() -> None:
        tasks, gates = SharedTasks(), [Gate(), Gate()]
        for gate in gates:
            tasks.start(gate.work(), name="x")
        await iterations()
        assert repr(tasks) == "<SharedTasks 2 running>"
        await tasks.cancel()
        assert all(gate.cancelled for gate in gates)
        assert tasks.running == ()
        await tasks.cancel()
        await tasks.drain()

    run(main())


def test_f42_tasks_of_a_closed_loop_are_not_running() -> None:
    """Tasks that a closed loop has left behind are dropped, and new ones run in the next loop."""
    tasks = SharedTasks()

    async def main() -> None:
        tasks.start(Gate().work(), name="x")
        await iterations()

    asyncio.run(main())
    assert tasks.running == ()

    async def another() -> None:
        gate = Gate()
        task = tasks.start(gate.work(), name="x")
        gate.opened.set()
        await tasks.drain()
        assert await task.wait() == "done"

    run(another())


def test_f42_a_task_of_a_closed_loop_is_orphaned() -> None:
    """A task of a closed loop can be told from one that may still finish, and waiting for it raises."""
    tasks: list[SharedTask[str]] = []

    async def main() -> None:
        gate = Gate()
        tasks.append(gate.share())
        await gate.began.wait()
        assert not tasks[0].orphaned
        assert not tasks[0].in_other_loop

    asyncio.run(main())
    assert tasks[0].orphaned
    assert tasks[0].done, "asyncio.run cancels what is left"

    async def another() -> None:
        assert tasks[0].in_other_loop
        with pytest.raises(TokenUnavailable):
            await tasks[0].wait()

    asyncio.run(another())


def test_a_task_left_behind_by_a_loop_without_cleanup_is_orphaned() -> None:
    loop = asyncio.new_event_loop()
    tasks: list[SharedTask[str]] = []

    async def main() -> None:
        tasks.append(Gate().share())

    loop.run_until_complete(main())
    task = next(iter(asyncio.all_tasks(loop)))
    assert not tasks[0].orphaned
    assert not tasks[0].done
    task.cancel()  # so that nothing warns about it; its loop is closed before it ends
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert tasks[0].orphaned


@pytest.mark.parametrize("kept_by", ["a reference", "the set of running tasks"])
def test_f43_running_work_is_not_garbage_collected(kept_by: str) -> None:
    """asyncio's references to tasks are weak, so a shared task has a strong one."""

    async def main() -> None:
        tasks, done, gates = SharedTasks(), list[str](), list[weakref.ref[asyncio.Future[None]]]()

        async def work() -> None:
            opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            gates.append(weakref.ref(opened))
            await opened
            done.append("done")

        if kept_by == "a reference":
            kept = SharedTask(work(), name="x")
        else:
            tasks.start(work(), name="x")
            kept = None
        await iterations()
        gc.collect()
        opened = gates[0]()
        assert opened is not None
        opened.set_result(None)
        await (kept or tasks).drain()
        assert done == ["done"]

    run(main())


def without_context(loop: asyncio.AbstractEventLoop, work: Any) -> asyncio.Task[Any]:
    """A task factory as some tracing agents set one (K38)."""
    return asyncio.Task(work, loop=loop)


@pytest.mark.parametrize("factory", [None, without_context])
def test_f73_the_work_runs_in_an_empty_context_whatever_the_task_factory(factory: Any) -> None:
    """It serves many callers, so it must not see or keep alive the variables of one (K38)."""
    variable = contextvars.ContextVar("variable", default="default")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        variable.set("the first caller's")

        async def work() -> tuple[str, int]:
            return variable.get(), len(contextvars.copy_context())

        assert await SharedTask(work(), name="x").wait() == ("default", 0)

    run(main())


def test_a_task_needs_a_running_event_loop() -> None:
    async def work() -> None: ...

    coroutine = work()
    with pytest.raises(RuntimeError, match="no running event loop"):
        SharedTask(coroutine, name="x")
    coroutine.close()
