"""One run of some work, shared by any number of waiters. Knows nothing about tokens.

Theory of operation
-------------------
The work runs in a task of its own, in an empty context, held by a strong reference (asyncio's own
references are weak). No one awaits that task: waiters wait for an event. So no waiter's cancellation
can reach the work, however it comes (`task.cancel()`, `wait_for`, `asyncio.timeout`, an anyio scope, a
dying task group), and a cancelled waiter leaves nothing behind.

Mutable state: `_result` and `_error`. The task writes one of them just before it sets the event; waiters
read them after it is set. One event loop, no lock. A shared task that is `done` must not be joined:
`done` and the result change in the same step, so a caller that sees `done` false still gets the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Generic, TypeVar, cast

from ..errors import TokenSessionError, TokenUnavailable

__all__ = ["SharedTask", "SharedTasks"]

T = TypeVar("T")


class SharedTask(Generic[T]):
    """Work that starts in the running event loop when you make this object.

    `on_done` is called when the work is over, before any waiter runs. Keep a reference: see `SharedTasks`.
    """

    __slots__ = ("_error", "_event", "_loop", "_name", "_on_done", "_pid", "_result", "_task")

    def __init__(
        self,
        work: Coroutine[Any, Any, T],
        *,
        name: str,
        on_done: Callable[[SharedTask[T]], None] | None = None,
    ) -> None:
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._event = asyncio.Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._name = name
        self._task: asyncio.Task[None] | None = None
        # An empty context: otherwise the work sees the first caller's variables and keeps them alive.
        task = self._loop.create_task(self._run(work), name=name, context=Context())
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
            self._error = _stopped()
            if not isinstance(error, asyncio.CancelledError):  # its traceback would keep this object alive
                self._error.__cause__ = error
            raise
        finally:
            self._finish()

    def _cancelled_early(self, work: Coroutine[Any, Any, T]) -> None:
        if not self.done:
            work.close()
            self._error = _stopped()
            self._finish()

    def _finish(self) -> None:
        self._task = None
        with contextlib.suppress(RuntimeError):  # the loop is closed, so there are no waiters to wake
            self._event.set()
        if self._on_done is not None:
            self._on_done(self)

    @property
    def done(self) -> bool:
        """Whether the work is over. Do not join a task that is done."""
        return self._event.is_set()

    @property
    def orphaned(self) -> bool:
        """Whether it can never finish: its event loop is closed, or stayed in the parent of a fork."""
        return self._loop.is_closed() or self._pid != os.getpid()

    @property
    def in_other_loop(self) -> bool:
        """Whether it runs in another event loop than the running one."""
        return self._loop is not asyncio.get_running_loop()

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
        error = self._error
        if error is None:
            return cast(T, self._result)
        if isinstance(error, TokenSessionError):
            raise error.again()
        raise TokenSessionError(f"The refresh failed unexpectedly ({type(error).__name__}).") from error

    async def drain(self) -> None:
        """Wait until it is over, and ignore the outcome."""
        await self._event.wait()

    def cancel(self) -> None:
        """Stop the work. It still cleans up before it is `done`."""
        if self._task is not None:
            self._task.cancel()

    def __repr__(self) -> str:
        return f"<SharedTask {self._name} {'done' if self.done else 'running'}>"


def _stopped() -> TokenUnavailable:
    return TokenUnavailable("The refresh was stopped: its event loop or session is closing.")


class SharedTasks:
    """Keeps shared tasks alive until they are done. At rest it holds nothing."""

    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: frozenset[SharedTask[Any]] = frozenset()

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> SharedTask[T]:
        """Start this work."""
        task = SharedTask(work, name=name, on_done=self._discard)
        # `running` drops the tasks of a closed event loop. A task that an eager task factory has already
        # run to its end is never added.
        self._tasks = self.running if task.done else self.running | {task}
        return task

    def _discard(self, task: SharedTask[Any]) -> None:
        self._tasks -= {task}

    @property
    def running(self) -> frozenset[SharedTask[Any]]:
        """The tasks that can still finish."""
        return frozenset(task for task in self._tasks if not (task.done or task.orphaned))

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
