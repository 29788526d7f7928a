"""The only module that reads a clock, draws a random number, or sleeps.

All others get a `Clock`, so a test can move time itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

__all__ = ["Bound", "Clock", "SystemClock", "Timer", "bounded", "within"]

T = TypeVar("T")

_CLEANUP_TIMEOUT = 2.0  # seconds; work that was cancelled may have a connection to close
_LAST_ITERATIONS = 16  # of the event loop; reading a response from the socket's buffer takes about five


class Clock(Protocol):
    """Reads time, draws random numbers and sleeps. All durations are in seconds.

    Set `boot_counts_sleep = True` on your clock if its `boot` always counts suspended time. A fresh token
    is then checked against that clock alone, and the wall clock is read once a second.

    A clock may have a method `call_later(seconds, callback)` that returns an object with `cancel()`. It saves
    one task for each deadline.
    """

    def wall(self) -> float:
        """Seconds since the Unix epoch. May jump either way."""
        ...

    def boot(self) -> float:
        """Seconds since some fixed moment, including suspended time. Never goes back."""
        ...

    def jitter(self) -> float:
        """A random number from [0, 1), uniformly distributed."""
        ...

    def sleep(self, seconds: float, /) -> Coroutine[Any, Any, None]:
        """Wait for this many seconds (an `async def` method)."""
        ...


_COUNTS_SLEEP = hasattr(time, "CLOCK_BOOTTIME")

# A partial: calling a Python function would cost as much as the clock itself.
_BOOT: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if _COUNTS_SLEEP else time.monotonic
)


class SystemClock:
    """The machine's clocks.

    `boot` counts while a laptop sleeps (CLOCK_BOOTTIME). On a platform without that clock it is the
    monotonic one, and only the wall clock notices that the machine was suspended.
    """

    __slots__ = ()

    boot_counts_sleep: ClassVar[bool] = _COUNTS_SLEEP
    # Plain functions as class attributes: the hot path reads a clock on every request.
    wall: staticmethod[[], float] = staticmethod(time.time)
    boot: staticmethod[[], float] = staticmethod(_BOOT)
    jitter: staticmethod[[], float] = staticmethod(random.random)  # spreads load; not for secrets
    sleep: staticmethod[[float], Coroutine[Any, Any, None]] = staticmethod(asyncio.sleep)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Call it after this many seconds, in the running event loop."""
        return asyncio.get_running_loop().call_later(seconds, callback)

    def __repr__(self) -> str:
        return "SystemClock()"


class Timer:
    """Calls `callback` once, in the running event loop, after this many seconds of the clock."""

    __slots__ = ("_handle",)

    def __init__(self, clock: Clock, seconds: float, callback: Callable[[], object]) -> None:
        call_later = getattr(clock, "call_later", None)
        if call_later is not None:
            self._handle: Any = call_later(seconds, callback)
        else:  # a clock that can only sleep: that takes a task
            self._handle = asyncio.ensure_future(_call_after(clock, seconds, callback))

    @property
    def running(self) -> bool:
        """Whether it can still call. If it takes a task, that may have been cancelled with all others."""
        task = self._handle
        return not isinstance(task, asyncio.Task) or not (task.done() or task.cancelling())

    def cancel(self) -> None:
        """Do not call it any more."""
        with contextlib.suppress(RuntimeError):  # its event loop is closed
            self._handle.cancel()


async def _call_after(clock: Clock, seconds: float, callback: Callable[[], object]) -> None:
    await clock.sleep(seconds)
    callback()


class Bound:
    """At most so many seconds for each piece of work. One timer serves all of them.

    Like `asyncio.timeout`, with a clock that a test can move. For work that may be cancelled at any point, in
    one event loop. A task does one piece at a time.

    Mutable state: the tasks and when their time is over, the earliest first; those whose time was over; and
    the timer and when it is due. It may run out when no work is left, because starting one for each piece
    costs more.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._over: set[asyncio.Task[Any]] = set()
        self._timer: Timer | None = None
        self._due = 0.0

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of the work, done in this task. Raises TimeoutError when its time is over."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("Bounded work needs a task.")
        earlier = task.cancelling()
        end = self._clock.boot() + self._seconds
        if self._timer is None or not self._timer.running:
            self._start_timer(end, self._seconds)
        try:
            self._ends[task] = end
            return await work
        except asyncio.CancelledError:
            if task in self._over and task.cancelling() - 1 <= earlier:
                raise TimeoutError from None
            raise
        finally:
            if task in self._over:
                self._over.remove(task)
                task.uncancel()
            else:
                self._ends.pop(task, None)

    def _start_timer(self, due: float, seconds: float) -> None:
        self._due = due
        # In a context of its own: a caller's would stay in memory with all it holds, from timer to timer.
        self._timer = Context().run(Timer, self._clock, seconds, self._end_late_work)

    def _end_late_work(self) -> None:
        self._timer, now = None, self._clock.boot()
        for task, end in list(self._ends.items()):
            if end <= self._due:
                del self._ends[task]
                self._over.add(task)
                task.cancel()
            else:
                # The time by which the timer is late counts for no one: the machine was suspended, or the
                # event loop was blocked.
                self._ends[task] = min(end + now - self._due, now + self._seconds)
        if self._ends:
            earliest = next(iter(self._ends.values()))
            self._start_timer(earliest, earliest - now)

    def close(self) -> None:
        """Leave no timer behind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def bounded(clock: Clock, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, done in this task. Raises TimeoutError after that many seconds: see `Bound`."""
    bound = Bound(clock, seconds)
    try:
        return await bound.run(work)
    finally:
        bound.close()


async def within(
    clock: Clock,
    seconds: float,
    work: Coroutine[Any, Any, T],
    *,
    on_abandoned: Callable[[T], Awaitable[None]] | None = None,
    cleanup: float = _CLEANUP_TIMEOUT,
) -> T:
    """The result of the work, done in a task of its own. Raises TimeoutError after that many seconds.

    The work is over when this returns, unless it ignores its cancellation for `cleanup` seconds: then it
    keeps running.

    A result must not be lost: it may be the only copy of a rotated refresh token.

    - When the time is up, the work gets a few more iterations of the event loop. After a suspension all
      timers run out at once, while the response waits in the socket.
    - If the caller is cancelled when the work already has a result, the caller gets the result, and is
      cancelled again at its next await.
    - With `on_abandoned`, the caller is cancelled at once (or gets the TimeoutError), and `on_abandoned` is
      awaited with the result.
    """
    task = asyncio.ensure_future(work)
    try:
        await _until(clock, seconds, task)
        for _ in range(_LAST_ITERATIONS):
            if task.done():
                break
            await asyncio.sleep(0)
        else:
            raise TimeoutError
    except GeneratorExit:
        raise  # the event loop is gone, and its tasks with it
    except BaseException as stopped:
        task.add_done_callback(_retrieve_exception)
        if not task.done():
            task.cancel()
            await _until(clock, cleanup, task)
        if not task.done() or task.cancelled() or task.exception() is not None:
            raise
        if on_abandoned is not None:
            await on_abandoned(task.result())
            raise
        if isinstance(stopped, TimeoutError):
            return task.result()  # the work has finished as it was cancelled
        if not isinstance(stopped, asyncio.CancelledError) or (caller := asyncio.current_task()) is None:
            raise
        caller.uncancel()  # it is the same cancellation once more, and counts once
        caller.cancel(*stopped.args)
    if task.cancelled():
        raise RuntimeError("The work cancelled itself.")  # our own task was not cancelled
    return task.result()


async def _until(clock: Clock, seconds: float, task: asyncio.Future[Any]) -> None:
    """Wait until the task is over, for at most this many seconds."""
    over = asyncio.Event()
    timer = Timer(clock, seconds, over.set)
    task.add_done_callback(lambda _: over.set())
    try:
        await over.wait()
    finally:
        timer.cancel()


def _retrieve_exception(task: asyncio.Future[Any]) -> None:
    """Retrieve the exception, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
