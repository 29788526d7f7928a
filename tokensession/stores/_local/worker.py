"""One worker thread for a store that must block.

Theory of operation
-------------------
* A store's blocking work is a series of *jobs*: plain callables that run one at a time and in order in one
  thread. So what only jobs touch (a connection) needs no lock.
* A job always runs to its end. Its caller may be cancelled; the job does not notice. If the result needs an
  owner, `run(on_abandoned=...)` says who takes it then.
* A job never waits for another process. It raises `Busy` and goes back to the end of the queue, so one
  contended key does not delay the others. (We do not use a blocking flock: in an abandoned thread it gets
  the lock later, and leaks it. Nor anyio's shared limiter: forty blocked jobs would stop everyone else's.)
* The thread starts with the first job. It ends with `aclose` or with the interpreter, and always after its
  last job, because that may be writing a rotated refresh token.
* A fork waits for the running job. So no file is half open in the child, and `before_fork` can close what a
  child must not inherit (an SQLite connection). The child starts a thread of its own.

Mutable state: `_executor` and `_pending`, guarded by `_state`; `_latest`, the job that ran last, written
under `_running`, which is held while a job runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ...errors import StoreUnavailable

__all__ = ["Busy", "Worker"]

T = TypeVar("T")

_PAUSE = 0.005  # seconds between two tries of a busy job
_TRIES = 1000  # about five seconds: a writer holds its lock for a millisecond or two
_FORK_WAIT = 15.0  # seconds; longer than any job that is not stuck in the kernel


class Busy(Exception):
    """Another process is writing: try this job again. Never leaves the worker."""


def _nothing() -> None:
    pass


class Worker:
    """Runs jobs one after another in a thread of its own. `name` is the thread's name.

    `before_fork` closes what a child process must not inherit. It runs in the forking thread, while no job
    runs. `after_fork_in_child` forgets what could not be closed in time.
    """

    def __init__(
        self,
        name: str,
        *,
        before_fork: Callable[[], None] = _nothing,
        after_fork_in_child: Callable[[], None] = _nothing,
    ) -> None:
        self._name = name
        self._before_fork = before_fork
        self._after_fork_in_child = after_fork_in_child
        self._reset()
        _workers[id(self)] = self

    def _reset(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._pending = 0
        self._latest: Callable[[], Any] | None = None
        self._state = threading.Lock()
        self._running = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether there is a thread now."""
        return self._executor is not None

    def post(self, job: Callable[[], T]) -> Future[T]:
        """Queue a job, which runs whether or not anything waits for it."""
        future: Future[T] = Future()
        with self._state:
            self._pending += 1
        self._queue(job, future, _TRIES)
        return future

    async def run(
        self,
        job: Callable[[], T],
        *,
        on_abandoned: Callable[[Future[T]], None] | None = None,
        on_done: Callable[[Future[T]], None] | None = None,
    ) -> T:
        """The job's result.

        If the caller is cancelled, the job still runs to its end. Then `on_abandoned` is called with its
        outcome, in the worker's thread or in the caller's. `on_done` is called in any case, before the
        caller gets the outcome.
        """
        loop = asyncio.get_running_loop()
        wake = loop.create_future()
        outcome = self.post(job)
        if on_done is not None:
            outcome.add_done_callback(on_done)
        outcome.add_done_callback(lambda _: _notify(loop, wake))
        try:
            # A future of this loop: cancelling it reaches neither the queue nor the job.
            await wake
        except BaseException:
            # Cancelled, or collected with its loop. The job may be done already: a cancellation can also
            # arrive between a result and its awaiter.
            if on_abandoned is not None:
                outcome.add_done_callback(on_abandoned)
            raise
        return outcome.result()

    async def aclose(self, last: Callable[[], None] = _nothing) -> None:
        """Run what is queued, then `last`, then end the thread. A later job starts another."""
        # A job may also have run without a thread, if none could be started.
        while self.open or self._latest not in (None, last):
            await self.run(last)
            with self._state:
                # A busy job may have been queued behind `last`, and have reopened what that closed.
                # Equal, not identical: every access to a bound method makes another object.
                if self._pending or self._latest != last:
                    continue
                executor, self._executor, self._latest = self._executor, None, None
            if executor is not None:
                executor.shutdown()  # its queue is empty, so this joins an idle thread

    def _queue(self, job: Callable[[], T], future: Future[T], tries: int) -> None:
        with self._state:
            executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix=self._name)
            try:
                executor.submit(self._try, job, future, tries)
            except RuntimeError:
                # The interpreter is ending, or no thread can be started. An executor that could not start
                # its thread still has the job in its queue and would run it a second time: drop it.
                pass
            else:
                self._executor = executor
                return
        while not self._attempt(job, future, tries):
            tries -= 1
            time.sleep(_PAUSE)

    def _try(self, job: Callable[[], T], future: Future[T], tries: int) -> None:
        if not self._attempt(job, future, tries):
            time.sleep(_PAUSE)  # in our own thread; Clock.sleep is for event loops
            self._queue(job, future, tries - 1)

    def _attempt(self, job: Callable[[], T], future: Future[T], tries: int) -> bool:
        """Run the job. Returns whether its future is done now."""
        try:
            with self._running:
                self._latest = job
                result = job()
        except Busy as busy:
            if tries > 1:
                return False
            error = StoreUnavailable(f"{busy} It has been busy for some seconds.", todo="Try again.")
            self._finish(future.set_exception, error)
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, not to this thread
            self._finish(future.set_exception, error)
        else:
            self._finish(future.set_result, result)
        return True

    def _finish(self, set_outcome: Callable[[Any], None], outcome: Any) -> None:
        with self._state:
            self._pending -= 1
        set_outcome(outcome)

    def __repr__(self) -> str:
        return f"<Worker {self._name} {'open' if self.open else 'closed'}, {self._pending} pending>"


def _notify(loop: asyncio.AbstractEventLoop, wake: asyncio.Future[None]) -> None:
    # RuntimeError: the loop is closed and its tasks are gone, so `on_abandoned` cleans up.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_wake, wake)


def _wake(wake: asyncio.Future[None]) -> None:
    if not wake.done():
        wake.set_result(None)


# A fork concerns the whole process, and its hooks cannot be removed: the only module globals here.
_workers: weakref.WeakValueDictionary[int, Worker] = weakref.WeakValueDictionary()
_stopped: list[Worker] = []


def _live_workers() -> list[Worker]:
    # The references are copied in one step, because other threads make stores at the same time.
    return [worker for reference in _workers.valuerefs() if (worker := reference()) is not None]


def _before_fork() -> None:
    for worker in _live_workers():
        if worker._running.acquire(timeout=_FORK_WAIT):
            _stopped.append(worker)
            worker._before_fork()


def _after_fork_in_parent() -> None:
    while _stopped:
        _stopped.pop()._running.release()


def _after_fork_in_child() -> None:
    _stopped.clear()
    for worker in _live_workers():
        worker._reset()  # the thread and its callers are in the parent
        worker._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
