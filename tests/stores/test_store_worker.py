"""The worker thread: jobs run in order and to their end, and no cancellation reaches them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from _store_helpers import cancelled, gated, printed, run

from tokensession.errors import StoreUnavailable
from tokensession.stores._local import fork
from tokensession.stores._local.worker import Busy, TryLater, Worker
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import ticks

LOCKED = Path("/var/lib/tokens.db")
CLOSED = "<Worker test closed, 0 pending>"


def nothing() -> None:
    pass


@pytest.fixture
def worker(clock: FakeClock) -> Iterator[Worker]:
    worker = Worker("test", clock=clock)
    yield worker
    run(worker.aclose(nothing))
    assert repr(worker) == CLOSED


@pytest.mark.parametrize(("moment", "handed_over"), [("queued", [""]), ("done", [""]), ("awaited", [])])
def test_a_result_that_its_cancelled_caller_missed_is_handed_over_exactly_once(
    moment: str, handed_over: list[str], worker: Worker
) -> None:
    """True for a job that is queued, running, or done with its result on the way to the caller."""
    results = list[str]()

    def collect(outcome: Future[str]) -> None:
        results.append(outcome.result())

    gate = gated(worker)
    task = run.start(worker.run(str, on_abandoned=collect))
    run(asyncio.sleep(0))
    if moment != "queued":
        gate.set()
        worker.post(nothing).result(30)  # the job before it is done; this loop has not noticed
    if moment == "awaited":
        assert run(task) == ""
    task.cancel()
    gate.set()
    run(asyncio.wait([task]))
    run(worker.run(nothing))
    assert results == handed_over


class BusyJob:
    """A job that is busy until it is released, or has another reason. It counts its tries."""

    def __init__(self, reason: Callable[[], Exception] | None = None) -> None:
        self.reason = reason or partial(Busy, LOCKED)
        self.tries = 0
        self.released = threading.Event()

    def __call__(self) -> str:
        self.tries += 1
        if not self.released.is_set():
            raise self.reason()
        return "done"

    async def tried(self) -> None:
        """Return when a try that begins from now on is over."""
        until = self.tries + 2
        while self.tries < until:
            await asyncio.sleep(0)


def test_a_busy_job_is_tried_again_although_others_keep_coming(worker: Worker) -> None:
    busy = BusyJob()
    waiting = run.start(worker.run(busy))
    while busy.tries < 20:
        run(worker.run(nothing))
    busy.released.set()
    while not waiting.done():
        run(worker.run(nothing))


@pytest.mark.parametrize(("droppable", "patience"), [(True, 2.0), (False, 5.0)])
def test_a_busy_job_gives_up_after_some_seconds(
    droppable: bool, patience: float, clock: FakeClock, worker: Worker
) -> None:
    """Looks and claims after two, writes after five. They count from the first try, not from the queue."""
    busy, gate = BusyJob(), gated(worker)
    waiting = run.start(worker.run(busy, droppable=droppable))
    run(asyncio.sleep(0))
    clock.advance(100)
    gate.set()
    run(busy.tried())
    clock.advance(patience - 0.01)
    run(busy.tried())
    assert not waiting.done()
    clock.advance(0.01)
    with pytest.raises(StoreUnavailable, match=f"Another program keeps {LOCKED} locked") as caught:
        run(waiting)
    assert f"tried for {patience:.1f} s" in str(caught.value)


@pytest.mark.parametrize(("patience", "writers", "seconds"), [(0, 1, 2), (0, 4, 5), (0, 100, 8), (8, 1, 8)])
def test_a_lock_that_many_share_or_that_is_known_to_take_longer_is_waited_for_longer(
    patience: float, writers: int, seconds: int, clock: FakeClock, worker: Worker
) -> None:
    """If many write, no one keeps it locked. The first start of a database takes longer. But both end."""
    tries = list[float]()

    def busy() -> None:
        tries.append(clock.boot())
        clock.advance(1)
        raise Busy(LOCKED, patience=patience, progress=min(len(tries), writers))

    with pytest.raises(StoreUnavailable, match=rf"tried for {seconds}\.0 s"):
        run(worker.run(busy, droppable=True))
    assert [moment - tries[0] for moment in tries] == list(range(seconds + 1))


def test_a_droppable_job_does_not_run_if_its_caller_is_gone(worker: Worker) -> None:
    """Not from the queue, and not again if it was busy. Any other job does, however often it takes."""
    ran, gate = list[str](), gated(worker)
    queued = [
        run.start(worker.run(partial(ran.append, "look"), droppable=True)),
        run.start(worker.run(partial(ran.append, "write"))),
    ]
    run(cancelled(*queued))
    assert ran == []
    assert repr(worker) == "<Worker test open, 3 pending>"
    gate.set()
    run(worker.run(nothing))
    assert ran == ["write"]
    look, write = BusyJob(), BusyJob()
    retried = [run.start(worker.run(look, droppable=True)), run.start(worker.run(write))]
    run(look.tried())
    run(cancelled(*retried))
    run(write.tried())
    tries = look.tries
    run(write.tried())
    assert look.tries == tries
    write.released.set()


def test_a_result_is_not_kept(worker: Worker) -> None:
    """A claim that nothing references any more is collected, and that releases it."""

    class Claim:
        pass

    claim = run(worker.run(Claim))
    left = weakref.ref(claim)
    busy = BusyJob()
    waiting = run.start(worker.run(busy))  # so that the thread does not end its work
    run(busy.tried())
    del claim
    gc.collect()
    assert left() is None
    busy.released.set()
    run(waiting)


def test_a_job_may_be_posted_in_the_middle_of_another_post(worker: Worker) -> None:
    """The garbage collector runs anywhere, and a claim that it collects posts its end."""
    with worker._state:
        future = worker.post(lambda: "the end of a claim")
    assert future.result(30) == "the end of a claim"


def test_closing_waits_for_a_busy_job_and_ends_after_it(worker: Worker) -> None:
    """What the busy job has reopened is closed, once."""
    busy, order = BusyJob(), list[str]()
    job = run.start(worker.run(busy))
    job.add_done_callback(lambda _: order.append("busy"))
    run(busy.tried())
    closing = run.start(worker.aclose(partial(order.append, "closed")))
    run(busy.tried())
    assert order == []
    busy.released.set()
    run(closing)
    assert run(job) == "done"
    assert sorted(order) == ["busy", "closed"]
    assert not worker.open


def test_closing_blocks_no_event_loop_although_a_job_comes_meanwhile(worker: Worker) -> None:
    """That job is waited for, and what it has opened is closed too."""
    gate, posted = threading.Event(), list[Future[bool]]()

    def close() -> None:
        if not posted:
            posted.append(worker.post(lambda: gate.wait(10)))

    run(worker.run(nothing))
    closing = run.start(worker.aclose(close))
    while not posted:
        run(asyncio.sleep(0))
    run(ticks(1000))  # until it would end the thread
    gate.set()
    run(closing)
    assert posted[0].result(0)
    assert repr(worker) == CLOSED


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No thread can be started, until this is undone."""

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        yield patch


def test_a_job_runs_once_although_its_thread_could_not_start(
    worker: Worker, no_thread: pytest.MonkeyPatch
) -> None:
    """Without a thread the job runs at once, and not a second time: it may be a write."""
    done = list[str]()
    run(worker.run(lambda: done.append("sign-out")))
    run(worker.aclose(lambda: done.append("closed")))  # the job may have opened a connection
    no_thread.undo()
    run(worker.run(lambda: done.append("sign-in")))
    assert done == ["sign-out", "closed", "sign-in"]
    assert repr(worker) == "<Worker test open, 0 pending>"


def test_a_job_cannot_wait_without_a_thread(worker: Worker, no_thread: pytest.MonkeyPatch) -> None:
    """It would block the event loop, in which it runs then."""
    with pytest.raises(StoreUnavailable, match="no thread to wait in"):
        run(worker.run(BusyJob(TryLater), droppable=True))


PROGRAM_ENDS = """
import asyncio
from pathlib import Path
from tokensession.stores._local.worker import Busy, Worker
worker, tries = Worker("test"), []
def write():
    tries.append(1)
    if len(tries) < 5:
        raise Busy(Path("/tokens.db"))
    print("written", flush=True)
async def main():
    asyncio.ensure_future(worker.run(write))
    await asyncio.sleep(0)
asyncio.run(main())
"""


def test_the_interpreter_ends_after_the_last_job() -> None:
    """That job may be busy, and may be writing a rotated refresh token."""
    assert printed(PROGRAM_ENDS) == "written\n"


def test_a_job_that_waits_is_tried_as_long_as_it_takes(clock: FakeClock, worker: Worker) -> None:
    """It gives up neither by the clock nor by the number of tries: that is its own decision."""
    job = BusyJob(TryLater)
    waiting = run.start(worker.run(job, droppable=True))
    for _ in range(3):
        run(job.tried())
        clock.advance(3600)
    assert not waiting.done()
    job.released.set()
    assert run(waiting) == "done"


def test_a_job_that_waits_may_be_busy_in_between(clock: FakeClock, worker: Worker) -> None:
    """The time that it waited does not count as busy."""

    def turn() -> Exception:
        clock.advance(1.5)
        return Busy(LOCKED) if job.tries % 2 else TryLater()

    job = BusyJob(turn)
    waiting = run.start(worker.run(job, droppable=True))
    while job.tries < 8:
        run(asyncio.sleep(0))
    assert not waiting.done()
    job.released.set()
    assert run(waiting) == "done"


def test_a_job_that_waits_is_dropped_with_its_caller(worker: Worker) -> None:
    """A cancelled one, and one of a closed event loop. Closing need not wait for the next try."""
    first, second = BusyJob(TryLater), BusyJob(TryLater)
    loop = asyncio.new_event_loop()
    task = loop.create_task(worker.run(first, droppable=True))
    loop.run_until_complete(first.tried())
    loop.close()  # with its task, which is not cancelled
    tries = first.tries
    waiting = run.start(worker.run(second, droppable=True))
    run(second.tried())
    assert first.tries <= tries + 1  # perhaps it was in the middle of one
    run(cancelled(waiting))
    run(worker.aclose(nothing))
    assert not task.done()
    assert repr(worker) == CLOSED
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_closing_leaves_a_job_alone_whose_caller_waits(worker: Worker) -> None:
    """Another user of the store waits for it. The thread stays with it."""
    job, closed = BusyJob(TryLater), list[str]()
    waiting = run.start(worker.run(job, droppable=True))
    run(job.tried())
    run(worker.aclose(partial(closed.append, "closed")))
    assert closed[-1] == "closed"
    run(job.tried())
    assert not waiting.done()
    job.released.set()
    assert run(waiting) == "done"


def test_a_job_that_begins_to_wait_while_the_thread_ends_goes_on(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user of the store has closed it, and the thread has not ended yet: it passes the job on."""
    job, attempt, gate = BusyJob(TryLater), worker._attempt, threading.Event()

    def attempt_and_pause(each: Any) -> None:
        attempt(each)
        assert not each.closing or gate.wait(30)

    async def main() -> None:
        await worker.run(nothing)
        monkeypatch.setattr(worker, "_attempt", attempt_and_pause)
        closing = asyncio.ensure_future(worker.aclose(nothing))
        while worker.open:
            await asyncio.sleep(0)
        waiting = asyncio.ensure_future(worker.run(job, droppable=True))
        await ticks()
        gate.set()
        while not job.tries:
            await asyncio.sleep(0)
        job.released.set()
        assert await waiting == "done"
        await closing

    run(main())


PROGRAM_ENDS_WHILE_A_JOB_WAITS = """
import asyncio, logging
from tokensession.stores._local.worker import TryLater, Worker
logging.disable()  # asyncio says that a task is left
worker, tries = Worker("test"), []
def wait():
    tries.append(1)
    raise TryLater
async def main():
    asyncio.ensure_future(worker.run(wait, droppable=True))
    while len(tries) < 3:
        await asyncio.sleep(0)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
print("ends", flush=True)  # and does not close its event loop
"""


def test_the_interpreter_ends_although_a_job_waits() -> None:
    assert printed(PROGRAM_ENDS_WHILE_A_JOB_WAITS) == "ends\n"


def test_k46_closing_joins_no_thread_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A join would stop the event loop until the thread has ended."""
    loop_thread, join = threading.get_ident(), threading.Thread.join

    def forbidden(thread: threading.Thread, timeout: float | None = None) -> None:
        assert threading.get_ident() != loop_thread, "a join in the event loop"
        join(thread, timeout)

    for _ in range(20):
        before = set(threading.enumerate())
        worker = Worker("test")
        run(worker.run(nothing))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "join", forbidden)
            run(asyncio.gather(*(run.start(worker.aclose(partial(nothing))) for _ in range(2))))
        assert not worker.open
        assert set(threading.enumerate()) <= before


PROGRAM_FORKS = """
import os, threading
from tokensession.stores._local.worker import Worker
order = []
worker = Worker("test", before_fork=lambda: order.append("closed"))
begun, gate = threading.Event(), threading.Event()
def job():
    begun.set()
    gate.wait(30)
    order.append("job")
worker.post(job)
begun.wait(30)
threading.Timer(0.05, gate.set).start()
child = os.fork()
if child == 0:
    # The parent's thread is not here, so a job starts a new one.
    ok = order == ["job", "closed"] and not worker.open and worker.post(lambda: 7).result(30) == 7
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
assert worker.post(lambda: 8).result(30) == 8
print(order, os.waitstatus_to_exitcode(status))
"""


def test_a_fork_waits_for_the_running_job_and_closes_what_a_child_must_not_inherit() -> None:
    assert printed(PROGRAM_FORKS) == "['job', 'closed'] 0\n"


FORKS_WITH_A_HUNG_JOB = """
import os, threading
from tokensession.stores._local import fork
from tokensession.stores._local.worker import Worker
fork._LONGEST_WAIT = 0.05
closed, forgotten, gate = [], [], threading.Event()
def worker(name):
    return Worker(
        name, before_fork=lambda: closed.append(name), after_fork_in_child=lambda: forgotten.append(name)
    )
hung, also_hung, idle = worker("hung"), worker("also hung"), worker("idle")
for one in (hung, also_hung):
    begun = threading.Event()
    one.post(lambda begun=begun: (begun.set(), gate.wait(30)))
    begun.wait(30)
child = os.fork()
if child == 0:
    ok = [closed, sorted(forgotten)] == [["idle"], ["also hung", "hung", "idle"]]
    ok = ok and [one.post(lambda: 7).result(30) for one in (hung, also_hung, idle)] == [7, 7, 7]
    os._exit(0 if ok else 1)
_, status = os.waitpid(child, 0)
gate.set()
print([one.post(lambda: 8).result(30) for one in (hung, also_hung, idle)], os.waitstatus_to_exitcode(status))
"""


def test_f73_a_fork_goes_on_although_jobs_hang() -> None:
    """On a hung mount. Child and parent can use the store, as far as the mount lets them."""
    assert printed(FORKS_WITH_A_HUNG_JOB) == "[8, 8, 8] 0\n"


class Forked(fork.AtFork):
    """Does something before each fork. Knows how long it may take."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self.seconds: list[float] = []
        fork.register(self)

    def before_fork(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._work()


def test_f73_a_fork_waits_15_s_at_most_however_many_jobs_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(fork, "SystemClock", clock)
    hung = [Forked(partial(clock.advance, 10)) for _ in range(3)]
    fork._before()
    fork._after_in_parent()
    assert [seconds for one in hung for seconds in one.seconds] == [15, 5, 0]


def test_f73_two_threads_fork_one_after_the_other() -> None:
    """Otherwise the end of the first fork would let the jobs run during the second."""
    order, threads = list[str](), list[threading.Thread]()

    def second() -> None:
        fork._before()
        fork._after_in_parent()

    def begin() -> None:
        order.append("begins")
        if not threads:
            threads.append(threading.Thread(target=second))
            threads[0].start()
            for _ in range(1000):  # time for the other thread
                time.sleep(0)
            order.append("ends")

    forked = Forked(begin)
    fork._before()
    fork._after_in_parent()
    threads[0].join(30)
    assert order == ["begins", "ends", "begins"]
    del forked


FORKS_IN_THREADS = """
import os, threading
from tokensession.stores._local.worker import Worker
workers = [Worker(str(number)) for number in range(3)]
statuses = []
def forks():
    for _ in range(5):
        child = os.fork()
        if child == 0:
            os._exit(0 if all(worker.post(lambda: 7).result(30) == 7 for worker in workers) else 1)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
threads = [threading.Thread(target=forks) for _ in range(3)]
for thread in threads: thread.start()
while any(thread.is_alive() for thread in threads):
    assert [worker.post(lambda: 8).result(30) for worker in workers] == [8, 8, 8]
print(statuses == [0] * 15)
"""


def test_f73_threads_may_fork_at_the_same_time_and_while_jobs_run() -> None:
    """Each fork has all workers stopped until it is over, and lets go of its own."""
    assert printed(FORKS_IN_THREADS) == "True\n"
