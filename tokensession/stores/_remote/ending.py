"""Work that the end of the event loop does not cut short, and what closes at that end.

`asyncio.run` ends in two steps: it cancels all tasks and waits for them, and then it closes the async
generators. So what tasks need until their end (connections) is closed in the second step. A task could not do
that: it is cancelled together with those, and not at all if it was made later, by one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["Ending", "begin"]

T = TypeVar("T")


def begin(work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
    """A task that does this work, even if it is cancelled before its first step.

    Python does not enter a coroutine that is cancelled before it has begun. So this one has: it waits inside.
    That is not left to the event loop's task factory: one that wraps coroutines cannot await it.
    """
    begun = _begun(work)
    begun.send(None)
    return asyncio.Task(begun, loop=asyncio.get_running_loop())


async def _begun(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        await _pause()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None:
            raise
        task.uncancel()
        del task  # an error of the work would keep it
    return await work()


@types.coroutine
def _pause() -> Generator[None, None, None]:
    yield


class Ending:
    """Calls `close` once: when told to, or when the running event loop ends.

    Mutable state: the generator that the event loop closes at its end, and the task that closes it earlier.
    """

    def __init__(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._generator = _closing(close)
        self._task: asyncio.Task[None] | None = None
        with contextlib.suppress(StopIteration):
            self._generator.__anext__().send(None)  # up to its `yield`: from now on the event loop knows it

    def begin(self) -> asyncio.Task[None]:
        """Close, in a task of its own."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._generator.aclose())
        return self._task

    async def aclose(self) -> None:
        """Close, and wait until that is done. Safe to call twice, also at once."""
        await asyncio.wait([self.begin()])


async def _closing(close: Callable[[], Coroutine[Any, Any, None]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await close()
