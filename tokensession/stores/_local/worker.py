"""One worker thread for a store that must block.

Theory of operation
-------------------
* A store's blocking work is a series of *jobs*: plain callables that run one at a time and in order in one
  thread. So what only jobs touch (a connection) needs no lock.
* A job that writes always runs to its end. Its caller may be cancelled; the job does not notice. If the
  result needs an owner, `run(on_abandoned=...)` says who takes it then.
* A job that only reads, or takes a claim, is *droppable*: it does not run if its caller is gone.
* A job never waits for another process. It raises `Busy`, and is tried again when the other jobs have had
  their turn, so one contended key does not delay the others. After a few seconds it gives up. (We do not use
  a blocking flock: in an abandoned thread it gets the lock later, and leaks it. Nor anyio's shared limiter:
  forty blocked jobs would stop everyone else's.)
* A job that waits for something that may take long, and that only a look can notice, raises `TryLater`. Such
  jobs are tried again in rounds, about every four milliseconds, for as long as their callers wait. So no
  file is looked at in an event loop (on a hung mount that would stop the whole program), and a loop is woken
  only when there is something to report.
* The thread starts with the first job. It ends with `aclose` or with the interpreter, and always after its
  last job, because that may be writing a rotated refresh token. A job that waits does not delay that end.
* A fork waits for the running job, see `fork.py`. The child starts a thread of its own.

Mutable state, guarded by `_state`: the queues, `_pending`, `_pause`, `_next_round`, `_renewal`, `_draining`
and `_executor`. And `_closed`, whether the job that ran last was one that closes, written under `_running`,
which is held while a job runs; and `_stopped`, whether a fork holds `_running`, which only the forking thread
uses.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...clock import Clock, SystemClock
from ...errors import StoreUnavailable
from . import fork

__all__ = ["LONGEST_PATIENCE", "Busy", "TryLater", "Worker"]

T = TypeVar("T")

# All in seconds.
_FIRST_PAUSE = 0.001  # between two tries of busy jobs: a writer holds its lock for about as long
_LONGEST_PAUSE = 0.008  # each pause is twice as long as the one before
_READ_PATIENCE = 2.0  # a droppable job is tried for so long: callers wait for it, and nothing is lost
_WRITE_PATIENCE = 5.0  # any other job
LONGEST_PATIENCE = 8.0  # many writers; shorter than `Policy.store_timeout`, so that callers learn the reason
_ROUND = 0.004  # between two rounds of the jobs that wait; longer if there are many
_RENEWAL = 0.1  # how long the thread may go on without asking the interpreter whether it ends
_ROUND_SPACING = 0.00025  # for each of them, so that they leave time to the others


class Busy(Exception):
    """Another program has locked `path`: try this job again. Never leaves the worker.

    `patience`: seconds to try it for, if that is more than usual. `progress`: a value that changes whenever
    the lock has had another holder. Then no program *keeps* it locked: there are many writers.
    """

    def __init__(self, path: Path, *, patience: float = 0.0, progress: int | None = None) -> None:
        super().__init__(path)
        self.path = path
        self.patience = patience
        self.progress = progress


class TryLater(Exception):
    """There is nothing to report yet: try this job in the next round, and the one after that, without end."""


class _Job(Generic[T]):
    """A callable, and who waits for it: `loop` is that of its caller, if it has one."""

    __slots__ = (
        *(
            "busy_since",
            "closing",
            "droppable",
            "future",
            "loop",
            "progress",
            "stuck_since",
            "wanted",
            "work",
        ),
    )

    def __init__(self, work: Callable[[], T], *, droppable: bool = False, closing: bool = False) -> None:
        self.work = work
        self.droppable = droppable
        self.closing = closing
        self.wanted = True
        self.future: Future[T] = Future()
        self.busy_since: float | None = None  # by the boot clock, and so is `stuck_since`
        self.stuck_since = 0.0
        self.progress: int | None = None  # that of the last `Busy`
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def dropped(self) -> bool:
        """Whether it must not run, because its caller is gone."""
        return self.droppable and (not self.wanted or (self.loop is not None and self.loop.is_closed()))


def _nothing() -> None:
    pass


class Worker(fork.AtFork):
    """Runs jobs one after another in a thread of its own. `name` is the thread's name.

    `clock` decides when a busy job gives up. `before_fork` closes what a child process must not inherit. It
    runs in the forking thread, while no job runs. `after_fork_in_child` forgets what could not be closed in
    time.
    """

    def __init__(
        self,
        name: str,
        *,
        clock: Clock | None = None,
        before_fork: Callable[[], None] = _nothing,
        after_fork_in_child: Callable[[], None] = _nothing,
    ) -> None:
        self._name = name
        self._clock: Clock = clock or SystemClock()
        self._before_fork = before_fork
        self._after_fork_in_child = after_fork_in_child
        self._reset()
        fork.register(self)

    def _reset(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._thread: threading.Thread | None = None  # that of the executor
        self._draining = False  # whether some thread runs the jobs
        self._ready: deque[_Job[Any]] = deque()
        self._busy: deque[_Job[Any]] = deque()  # to be tried again
        self._waiting: deque[_Job[Any]] = deque()  # to be tried in the next round
        self._closing: deque[_Job[Any]] = deque()  # to be run when no others are ready or busy
        self._pending = 0  # jobs that are not done, whichever queue they are in
        self._next_round = 0.0  # boot clock of the machine, because the pause before it is a real one
        self._renewal = 0.0  # likewise
        self._pause = _FIRST_PAUSE
        self._closed = True
        self._stopped = False
        self._state = threading.Condition()
        self._running = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether there is a thread now."""
        return self._executor is not None

    def post(self, work: Callable[[], T]) -> Future[T]:
        """Queue a job, which runs whether or not anything waits for it."""
        job = _Job(work)
        self._queue(job)
        return job.future

    async def run(
        self,
        work: Callable[[], T],
        *,
        droppable: bool = False,
        on_abandoned: Callable[[Future[T]], None] | None = None,
    ) -> T:
        """The job's result.

        If the caller is cancelled, a droppable job that has not begun does not run. Any other job still runs
        to its end. Then `on_abandoned` is called with its outcome, in whichever thread.
        """
        return await self._run(_Job(work, droppable=droppable), on_abandoned)

    async def _run(self, job: _Job[T], on_abandoned: Callable[[Future[T]], None] | None = None) -> T:
        loop = asyncio.get_running_loop()
        wake = loop.create_future()
        job.loop = loop
        job.future.add_done_callback(lambda _: _notify(loop, wake))
        self._queue(job)
        try:
            # A future of this loop: cancelling it reaches neither the queue nor the job.
            await wake
        except BaseException as error:
            # Cancelled, or collected with its loop. The job may be done already: a cancellation can also
            # arrive between a result and its awaiter.
            job.wanted = False
            if on_abandoned is not None:
                collected = isinstance(error, GeneratorExit)
                job.future.add_done_callback(partial(_elsewhere, on_abandoned) if collected else on_abandoned)
            raise
        return job.future.result()

    async def aclose(self, last: Callable[[], None] = _nothing) -> None:
        """Run what is queued, then `last`, then end the thread. A later job starts another.

        A busy job gives up after a few seconds, so this does not take longer, unless a job hangs. A job that
        waits, and whose caller still waits for it, goes on, and the thread with it.
        """
        # A job may also have run without a thread, if none could be started.
        while self.open or not self._closed:
            await self._run(_Job(last, closing=True))
            with self._state:
                self._drop_waiting()
                if self._pending > len(self._waiting) or not self._closed:  # a job has come since
                    continue
                if self._waiting:
                    return
                executor, self._executor = self._executor, None
                thread = self._thread
            if executor is not None and thread is not None:
                executor.shutdown(wait=False)
                pause = 0.0
                # It has nothing left to do. A join would block the event loop, and its end sets no event.
                while thread.is_alive():
                    await SystemClock.sleep(pause)
                    pause = _FIRST_PAUSE

    def _queue(self, job: _Job[Any]) -> None:
        with self._state:
            self._pending += 1
            (self._closing if job.closing else self._ready).append(job)
            self._state.notify()
            if self._draining:
                return
            self._draining = True
            if self._submit():
                return
        self._drain()

    def _submit(self) -> bool:
        """Have the thread drain, and start one if need be. Returns whether there is one."""
        executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix=self._name)
        try:
            executor.submit(self._drain_in_thread)
        except RuntimeError:
            return False  # the interpreter is ending, or no thread can be started
        self._executor = executor
        return True

    def _drain_in_thread(self) -> None:
        self._thread = threading.current_thread()
        self._drain()

    def _drain(self) -> None:
        """Run jobs until there are none, or until the next round."""
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Run a job. Returns whether to go on."""
        # In a call of its own, so that no job is referenced here once it is done: a claim that is collected
        # releases its lock.
        with self._state:
            if self._busy and not self._ready:
                self._state.wait(self._pause)  # or until there is another job, which then comes first
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                self._ready.extend(self._busy)
                self._busy.clear()
            if self._waiting and not (self._ready or self._closing):
                self._state.wait(max(0.0, self._next_round - SystemClock.boot()))
            if self._waiting and SystemClock.boot() >= self._next_round and self._begin_round():
                return False
            queue = self._ready or self._closing
            if not queue:
                self._draining = bool(self._waiting)
                return self._draining
            job = queue.popleft()
        if job.dropped:
            self._forget()
        else:
            self._attempt(job)
        return True

    def _begin_round(self) -> bool:
        """Make the waiting jobs ready. Returns whether the thread drains them again."""
        now = SystemClock.boot()
        self._next_round = now + max(_ROUND, _ROUND_SPACING * len(self._waiting))
        waiting, self._waiting = self._waiting, deque()
        # In each round, asking would cost as much as the round. Without an executor, this thread ends.
        ask = self._executor is None or now >= self._renewal
        if not ask or self._submit():
            if ask:
                self._renewal = now + _RENEWAL
            self._ready.extend(waiting)
            return ask
        for job in waiting:
            self._forget()
            job.future.set_exception(
                StoreUnavailable("There is no thread to wait in.", todo="Try again, or end some threads.")
            )
        return False

    def _drop_waiting(self) -> None:
        """Forget the waiting jobs whose callers are gone, before the next round does."""
        wanted = deque(job for job in self._waiting if not job.dropped)
        self._pending -= len(self._waiting) - len(wanted)
        self._waiting = wanted
        self._state.notify()

    def _attempt(self, job: _Job[Any]) -> None:
        try:
            with self._running:
                self._closed = job.closing
                result = job.work()
        except Busy as busy:
            tried = self._busy_for(job, busy)
            if tried is None:
                with self._state:
                    self._busy.append(job)
                return
            error = StoreUnavailable(
                f"Another program keeps {busy.path} locked. It was tried for {tried:.1f} s.",
                todo="Find that program (for example with fuser or lsof) and end it, or try again.",
            )
            self._forget()
            job.future.set_exception(error)
        except TryLater:
            with self._state:
                job.busy_since = None
                self._waiting.append(job)
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, not to this thread
            self._forget()
            job.future.set_exception(error)
        else:
            self._forget()
            job.future.set_result(result)

    def _busy_for(self, job: _Job[Any], busy: Busy) -> float | None:
        """Seconds that this job has been busy, if it must give up. None if it is to be tried again."""
        now = self._clock.boot()
        if job.busy_since is None:
            job.busy_since = job.stuck_since = now
        elif busy.progress != job.progress:
            job.stuck_since = now
        job.progress = busy.progress
        patience = max(_READ_PATIENCE if job.droppable else _WRITE_PATIENCE, busy.patience)
        tried = now - job.busy_since
        return tried if now - job.stuck_since >= patience or tried >= LONGEST_PATIENCE else None

    def _forget(self) -> None:
        with self._state:
            self._pending -= 1
            self._pause = _FIRST_PAUSE

    def before_fork(self, seconds: float) -> None:
        """Wait until no job runs, and close what a child must not inherit."""
        self._stopped = self._running.acquire(timeout=seconds)
        if self._stopped:
            self._before_fork()

    def after_fork_in_parent(self) -> None:
        """Let jobs run again."""
        if self._stopped:
            self._stopped = False
            self._running.release()

    def after_fork_in_child(self) -> None:
        """Forget the thread and its callers, which are in the parent."""
        self._reset()
        self._after_fork_in_child()

    def __repr__(self) -> str:
        return f"<Worker {self._name} {'open' if self.open else 'closed'}, {self._pending} pending>"


def _elsewhere(call: Callable[[Future[T]], None], outcome: Future[T]) -> None:
    """Call it in a thread of its own.

    Python may collect a caller at any moment, also while this thread starts another one or submits a job. The
    locks of `threading` and `concurrent.futures` cannot be taken twice, and this function takes none.
    """
    with contextlib.suppress(RuntimeError):  # the interpreter is ending
        _thread.start_new_thread(call, (outcome,))


def _notify(loop: asyncio.AbstractEventLoop, wake: asyncio.Future[None]) -> None:
    # RuntimeError: the loop is closed and its tasks are gone, so `on_abandoned` cleans up.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_wake, wake)


def _wake(wake: asyncio.Future[None]) -> None:
    if not wake.done():
        wake.set_result(None)
