"""One run of some work, shared by any number of waiters. Knows nothing about tokens.

Theory of operation
-------------------
The work runs in a task of its own, in an empty context, held by a strong reference (asyncio's own
references are weak). No one awaits that task: waiters wait for an event. So no waiter's cancellation
can reach the work, however it comes (`task.cancel()`, `wait_for`, `asyncio.timeout`, an anyio scope, a
dying task group), and a cancelled waiter leaves nothing behind.

A waiter may bound its wait. All bounds have the same length, so the waiters' deadlines are in order and one
timer serves ten thousand of them. While the work is `queued` (it waits for its turn, and not for an answer),
the deadlines move on with the clock.

Ten thousand waiters cost what each of them holds and what all of them allocate at once. So each holds one
future, which its caller awaits itself, and a hundred wake in each turn of the loop: the first are through
with their requests before the last begin.

Mutable state: `_result` and `_error`. The task writes one of them just before it sets the event; waiters
read them after it is set. One event loop, no lock. A shared task that is `done` must not be joined:
`done` and the result change in the same step, so a caller that sees `done` false still gets the result.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from typing import Any, Generic, TypeVar, cast

from ..clock import Clock, Timer
from ..errors import TokenSessionError, TokenUnavailable

__all__ = ["SharedTask", "SharedTasks", "Waiters"]

T = TypeVar("T")

_LONGEST_QUEUE = 120.0  # seconds
_A_TURN = 100  # waiters: as many as aiohttp has connections


class Waiters:
    """Callers that wait for a shared task, each for at most `bound` seconds of the clock.

    Knows when the last of them joined, so that the work can tell for whom it is worth going on.
    """

    __slots__ = ("_bound", "_clock", "_deadlines", "_futures", "_paused", "_paused_at", "_timer", "latest")

    def __init__(self, clock: Clock, bound: float) -> None:
        self._clock = clock
        self._bound = bound
        # Side by side: a pair for each would be one more object for the garbage collector to visit.
        self._deadlines: deque[float] = deque()
        self._futures: deque[asyncio.Future[bool]] = deque()
        self._timer: Timer | None = None
        self._paused = 0.0  # seconds that do not count
        self._paused_at: float | None = None
        self.latest: float = float("-inf")
        """When the last of those who wait through failures joined (boot clock)."""

    @contextlib.contextmanager
    def queued(self) -> Iterator[None]:
        """In this block the waiters' time does not run, for at most `_LONGEST_QUEUE` seconds."""
        self._paused_at = self._clock.boot()
        try:
            yield
        finally:
            self._paused += min(self._clock.boot() - self._paused_at, _LONGEST_QUEUE)
            self._paused_at = None
            if self._timer is not None:
                self._timer.cancel()
                with contextlib.suppress(RuntimeError):  # its event loop is gone
                    self._arm()

    def _now(self) -> float:
        """The clock, without the seconds that do not count."""
        now, paused = self._clock.boot(), self._paused
        if self._paused_at is not None:
            paused += min(now - self._paused_at, _LONGEST_QUEUE)
        return now - paused

    def join(self, *, patient: bool) -> asyncio.Future[bool]:
        """A future for one waiter. Its result is True after `release`, or False when the time is over."""
        if patient:
            self.latest = self._clock.boot()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._deadlines.append(self._now() + self._bound)
        self._futures.append(future)
        if self._timer is None:
            self._arm()
        return future

    def _next(self) -> asyncio.Future[bool]:
        self._deadlines.popleft()
        return self._futures.popleft()

    def _arm(self) -> None:
        while self._futures and self._futures[0].done():
            self._next()
        if not self._futures:
            self._timer = None
            return
        left = self._deadlines[0] - self._now()
        if self._paused_at is not None:  # time stands still, for so long at most
            left += max(0.0, self._paused_at + _LONGEST_QUEUE - self._clock.boot())
        self._timer = Timer(self._clock, max(left, 0.001), self._expire)

    def _expire(self) -> None:
        now = self._now()
        while self._futures and (self._deadlines[0] <= now or self._futures[0].done()):
            future = self._next()
            if not future.done():
                future.set_result(False)
        self._arm()

    def release(self) -> None:
        """Wake all of them, so many in each turn of the loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        woken = 0
        while self._futures and woken < _A_TURN:
            future = self._next()
            if not future.done():
                future.set_result(True)
                woken += 1
        if self._futures:
            self._futures[0].get_loop().call_soon(self.release)

    @property
    def waiting(self) -> bool:
        """Whether some have not been woken yet."""
        return bool(self._futures)


class SharedTask(Generic[T]):
    """Work that starts in the running event loop when you make this object.

    `on_done` is called when the work is over, before any waiter runs. `on_stopped` makes the error for the
    waiters if the work is stopped. `waiters` bounds the waits of those who `join`. Keep a reference: see
    `SharedTasks`.
    """

    __slots__ = (
        "_error",
        "_event",
        "_loop",
        "_name",
        "_on_done",
        "_on_stopped",
        "_result",
        "_task",
        "released",
        "waiters",
    )

    def __init__(
        self,
        work: Coroutine[Any, Any, T],
        *,
        name: str,
        on_done: Callable[[SharedTask[T]], None] | None = None,
        on_stopped: Callable[[], TokenSessionError] | None = None,
        waiters: Waiters | None = None,
    ) -> None:
        self._on_done = on_done
        self._on_stopped = on_stopped or _stopped
        self.waiters = waiters
        self.released = False
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._name = name
        self._task: asyncio.Task[None] | None = None
        # An empty context: otherwise the work sees the first caller's variables and keeps them alive.
        # (Not by `create_task(context=..., name=...)`: some task factories know neither.)
        task = Context().run(self._loop.create_task, self._run(work))
        if hasattr(task, "set_name"):  # it may be any future that a factory has made
            task.set_name(name)
        if not self.done:
            self._task = task
            # A task that is cancelled before its first step never enters `_run`.
            task.add_done_callback(lambda _: self._cancelled_early(work))

    async def _run(self, work: Coroutine[Any, Any, T]) -> None:
        try:
            self._result = await work
        except Exception as error:  # noqa: BLE001 - the waiters handle it, each in its own task
            self._error = error
        except BaseException as error:
            # Only three things get here: a closing event loop, the end of the interpreter, and a close()
            # that has run out of time. A waiter's cancellation does not.
            self._error = self._on_stopped()
            if not isinstance(error, asyncio.CancelledError):  # its traceback would keep this object alive
                self._error.__cause__ = error
            raise
        finally:
            self._finish()

    def _cancelled_early(self, work: Coroutine[Any, Any, T]) -> None:
        if not self.done:
            work.close()
            self._error = self._on_stopped()
            self._finish()

    def _finish(self) -> None:
        self._task = None
        with contextlib.suppress(RuntimeError):  # the loop is closed, so there are no waiters to wake
            self._event.set()
            if self.waiters is not None:
                self.waiters.release()
        if self._on_done is not None:
            self._on_done(self)

    @property
    def done(self) -> bool:
        """Whether the work is over. Do not join a task that is done."""
        return self._event.is_set()

    @property
    def orphaned(self) -> bool:
        """Whether it can never finish: its event loop is closed. (A forked child has forgotten it.)"""
        return self._loop.is_closed()

    @property
    def in_other_loop(self) -> bool:
        """Whether it runs in another event loop than the running one."""
        return self._loop is not asyncio.get_running_loop()

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task of the work, until it is over."""
        return self._task

    @property
    def current(self) -> bool:
        """Whether this code runs inside it."""
        try:
            return self._task is not None and asyncio.current_task() is self._task
        except RuntimeError:  # no running loop: the coroutine is being thrown away
            return False

    async def wait(self) -> T:
        """The result. Raises a fresh copy of the error, with the original as its cause.

        One exception object raised in a thousand tasks would collect all their tracebacks.
        """
        await self._event.wait()
        return self.outcome()

    def join(self, *, patient: bool = False) -> asyncio.Future[bool]:
        """A future for one more waiter. Its result says whether the work was over in time: see `outcome`.

        `patient`: this waiter waits through failures, see `Waiters.latest`.
        """
        if not self.done and self.waiters is not None:
            return self.waiters.join(patient=patient)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        future.set_result(self.done)
        return future

    def outcome(self) -> T:
        """The result, once the work is over. Raises as `wait` does."""
        error = self._error
        if error is None:
            return cast(T, self._result)
        if isinstance(error, TokenSessionError):
            raise error.again()
        raise TokenSessionError(f"The refresh failed unexpectedly ({type(error).__name__}).") from error

    def release(self, error: TokenSessionError) -> None:
        """Give its waiters this error now. The work goes on without them: do not join it any more."""
        self._error, self.released = error, True
        if self.waiters is not None:
            self.waiters.release()

    async def drain(self) -> None:
        """Wait until it is over and all waiters are awake, and ignore the outcome."""
        await self._event.wait()
        while self.waiters is not None and self.waiters.waiting:  # noqa: ASYNC110 - each turn wakes some
            await asyncio.sleep(0)

    def cancel(self) -> None:
        """Stop the work. It still cleans up before it is `done`."""
        if self._task is not None:
            self._task.cancel()

    def __repr__(self) -> str:
        return f"<SharedTask {self._name} {'done' if self.done else 'running'}>"


def _stopped() -> TokenUnavailable:
    return TokenUnavailable("The refresh was stopped: its event loop or session is closing.")


class SharedTasks:
    """Keeps shared tasks alive until they are done, in the order of their start. At rest it holds nothing."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: tuple[SharedTask[Any], ...] = ()

    def start(
        self,
        work: Coroutine[Any, Any, T],
        *,
        name: str,
        on_stopped: Callable[[], TokenSessionError] | None = None,
        waiters: Waiters | None = None,
    ) -> SharedTask[T]:
        """Start this work."""
        task = SharedTask(work, name=name, on_done=self._discard, on_stopped=on_stopped, waiters=waiters)
        # `running` drops the tasks of a closed event loop. A task that an eager task factory has already
        # run to its end is never added.
        self._tasks = self.running if task.done else (*self.running, task)
        return task

    def _discard(self, task: SharedTask[Any]) -> None:
        self._tasks = tuple(each for each in self._tasks if each is not task)

    @property
    def running(self) -> tuple[SharedTask[Any], ...]:
        """The tasks that can still finish."""
        return tuple(task for task in self._tasks if not (task.done or task.orphaned))

    async def drain(self) -> None:
        """Wait until all of them are over, those that they start included."""
        while tasks := self.running:
            for task in tasks:
                await task.drain()

    async def cancel(self) -> None:
        """Cancel all of them, and wait until they have cleaned up."""
        tasks = self.running
        for task in tasks:
            task.cancel()
        for task in tasks:
            await task.drain()

    def __repr__(self) -> str:
        return f"<SharedTasks {len(self.running)} running>"
