"""One thread of its own for a store that must block.

Theory of operation
-------------------
* A store's blocking work is a series of *jobs*: plain callables, run one at a time and in order in
  one thread. So what only jobs touch (a connection) needs no lock.
* A job always runs to its end. Whoever awaits it may be cancelled; the job does not learn of it. If
  what it made has an owner only while somebody waits, `run(lost=...)` says who cleans up.
* A job never waits for another process: it raises `Busy`, and is put back at the end of the queue, so
  that one contended key does not keep the others waiting. (The road not taken: a blocking flock in an
  abandoned thread takes the lock later, and leaks it. And the road to anyio's shared limiter: forty
  blocked jobs would stop everybody else's.)
* The thread comes with the first job and goes with `aclose`, or when the interpreter ends: only after
  its last job, because a job may be writing a rotated refresh token.
* A fork waits for the job at hand. So no file is half open in the child, and `before_fork` can close
  what must not be carried over (an SQLite connection). The child starts a thread of its own.

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
    """Runs jobs one after another in a thread of its own. `name` names the thread.

    `before_fork` closes what a child process must not inherit; it runs when no job does, in the
    forking thread. `after_fork_in_child` forgets what could not be closed in time.
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
        """Queue a job that runs whoever waits for it, or nobody."""
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
        settled: Callable[[Future[T]], None] | None = None,
    ) -> T:
        """The job's result.

        If the caller is cancelled meanwhile, the job still runs to its end, and its outcome is then
        handed to `lost`, in the worker's thread or in the caller's. In any case it is handed to
        `settled`, before the caller learns of it.
        """
        loop = asyncio.get_running_loop()
        wake = loop.create_future()
        outcome = self.post(job)
        if settled is not None:
            outcome.add_done_callback(settled)
        outcome.add_done_callback(lambda _: _notify(loop, wake))
        try:
            # A future of this loop's own: cancelling it reaches neither the queue nor the job.
            await wake
        except BaseException:
            # Cancelled, or thrown away with its loop. The job may be done already: a cancellation
            # also arrives between a result and its awaiter.
            if on_abandoned is not None:
                outcome.add_done_callback(on_abandoned)
            raise
        return outcome.result()

    async def aclose(self, last: Callable[[], None]) -> None:
        """Run what is queued, then `last`, then end the thread. A later job starts another."""
        while self.open or self._latest not in (None, last):  # or a job ran although no thread could be had
            await self.run(last)
            with self._state:
                # A busy job may have gone behind `last`, and opened again what that had closed.
                if self._pending or self._latest is not last:
                    continue
                executor, self._executor, self._latest = self._executor, None, None
            if executor is not None:
                executor.shutdown()  # its queue is empty: this joins an idle thread

    def _queue(self, job: Callable[[], T], future: Future[T], tries: int) -> None:
        with self._state:
            executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix=self._name)
            try:
                executor.submit(self._try, job, future, tries)
            except RuntimeError:
                # The interpreter is ending, or no thread can be had. An executor that could not start its
                # thread has the job in its queue all the same, and would run it once more: it is not kept.
                pass
            else:
                self._executor = executor
                return
        while not self._attempt(job, future, tries):
            tries -= 1
            time.sleep(_PAUSE)

    def _try(self, job: Callable[[], T], future: Future[T], tries: int) -> None:
        if not self._attempt(job, future, tries):
            time.sleep(_PAUSE)  # in our own thread; Clock.sleep belongs to an event loop
            self._queue(job, future, tries - 1)

    def _attempt(self, job: Callable[[], T], future: Future[T], tries: int) -> bool:
        """Run the job; whether its future is settled now."""
        try:
            with self._running:
                self._latest = job
                result = job()
        except Busy as busy:
            if tries > 1:
                return False
            error = StoreUnavailable(f"{busy} It has been so for some seconds.", todo="Try again.")
            self._settle(future.set_exception, error)
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits, not to this thread
            self._settle(future.set_exception, error)
        else:
            self._settle(future.set_result, result)
        return True

    def _settle(self, settle: Callable[[Any], None], outcome: Any) -> None:
        with self._state:
            self._pending -= 1
        settle(outcome)

    def __repr__(self) -> str:
        return f"<Worker {self._name} {'open' if self.open else 'closed'}, {self._pending} pending>"


def _notify(loop: asyncio.AbstractEventLoop, wake: asyncio.Future[None]) -> None:
    # A RuntimeError says that the loop is closed: whoever waited is gone, and `lost` cleans up.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_wake, wake)


def _wake(wake: asyncio.Future[None]) -> None:
    if not wake.done():
        wake.set_result(None)


# A fork concerns the whole process, and its hooks cannot be taken back: the one module global here.
_workers: weakref.WeakValueDictionary[int, Worker] = weakref.WeakValueDictionary()
_stopped: list[Worker] = []


def _alive() -> list[Worker]:
    # By the references, which are copied in one step: other threads make stores meanwhile.
    return [worker for reference in _workers.valuerefs() if (worker := reference()) is not None]


def _before_fork() -> None:
    for worker in _alive():
        if worker._running.acquire(timeout=_FORK_WAIT):
            _stopped.append(worker)
            worker._before_fork()


def _after_fork_in_parent() -> None:
    while _stopped:
        _stopped.pop()._running.release()


def _after_fork_in_child() -> None:
    _stopped.clear()
    for worker in _alive():
        worker._reset()  # the thread stayed in the parent, and so did whoever waits for its jobs
        worker._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
