"""The one place that reads a clock, draws a random number, or sleeps.

Everything else is handed a `Clock`, so a test can move time by hand.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol, TypeVar

__all__ = ["Clock", "SystemClock", "within"]

T = TypeVar("T")

_TO_END = 2.0  # seconds; work that was cancelled may have a connection to close
_LAST_LOOK = 16  # turns of the event loop; a reply that is in the socket's buffer takes about five


class Clock(Protocol):
    """Time, chance and patience. All values are in seconds.

    A clock may also say `boot_counts_sleep = True`, if its `boot` surely counts suspended time: then a
    fresh token is served by that clock alone, and the wall clock is looked at once a second.
    """

    def wall(self) -> float:
        """Seconds since the Unix epoch. May jump either way."""
        ...

    def boot(self) -> float:
        """Seconds since some fixed moment, suspended time included. Never goes back."""
        ...

    def jitter(self) -> float:
        """A number drawn evenly from [0, 1)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


_COUNTS_SLEEP = hasattr(time, "CLOCK_BOOTTIME")

# A C-level partial: calling a Python function for it would cost as much as the clock itself.
_BOOT = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if _COUNTS_SLEEP else time.monotonic


class SystemClock:
    """The machine's own clocks.

    `boot` counts while a laptop sleeps (CLOCK_BOOTTIME); where a platform has no such clock it is
    the monotonic one, and the wall clock alone notices a suspension.
    """

    __slots__ = ()

    boot_counts_sleep = _COUNTS_SLEEP
    # Plain functions as class attributes: the hot path reads a clock on every request.
    wall = staticmethod(time.time)
    boot = staticmethod(_BOOT)
    jitter = staticmethod(random.random)  # spreads load; nothing secret is drawn from it
    sleep = staticmethod(asyncio.sleep)

    def __repr__(self) -> str:
        return "SystemClock()"


async def within(
    clock: Clock,
    seconds: float,
    work: Coroutine[Any, Any, T],
    *,
    on_abandoned: Callable[[T], Awaitable[None]] | None = None,
) -> T:
    """The result of the work, or TimeoutError after that many seconds of this clock.

    Like `asyncio.timeout`, except that a test's clock counts. The work is over when this returns, unless
    it ignores its cancellation: then it is left to itself.

    When time is up the work gets one last look at what has already arrived. A process that was stopped,
    or a laptop whose lid was closed, wakes with all its timers run out at once and the reply in its
    socket; and that reply may be the only copy of a rotated refresh token. For the same reason a caller
    who is cancelled when the work has come to its result is given that, and cancelled again at his next
    wait; but with `lost` he is cancelled at once, and `lost` is awaited with the result.
    """
    task = asyncio.ensure_future(work)
    try:
        await _until(clock, seconds, task)
        for _ in range(_LAST_LOOK):
            if task.done():
                break
            await asyncio.sleep(0)
        else:
            raise TimeoutError
    except GeneratorExit:
        raise  # the event loop is gone, and its tasks with it
    except BaseException as stopped:
        task.add_done_callback(_look_away)
        if not task.done():
            task.cancel()
            await _until(clock, _TO_END, task)
        if not task.done() or task.cancelled() or task.exception() is not None:
            raise
        if on_abandoned is not None:
            await on_abandoned(task.result())
            raise
        if not isinstance(stopped, asyncio.CancelledError) or (caller := asyncio.current_task()) is None:
            raise
        caller.uncancel()  # it is the same cancellation, once more: whoever counts them counts one
        caller.cancel(*stopped.args)
    if task.cancelled():
        raise RuntimeError("The work has cancelled itself.")  # nobody has cancelled us
    return task.result()


async def _until(clock: Clock, seconds: float, task: asyncio.Future[Any]) -> None:
    """Wait until the task is over, for at most so long."""
    timer = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((task, timer), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not timer.get_loop().is_closed():
            timer.cancel()


def _look_away(task: asyncio.Future[Any]) -> None:
    """Nobody asks any more what came of it."""
    if not task.cancelled():
        task.exception()
