"""The worker thread: jobs run in order and to their end, and no cancellation reaches them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import Future
from functools import partial

import pytest

from tokensession.errors import StoreUnavailable
from tokensession.stores._local import worker
from tokensession.stores._local.worker import Busy, Worker


def nothing() -> None:
    pass


def collect(results: list[str], outcome: Future[str]) -> None:
    results.append(outcome.result())


def gated(worker: Worker) -> threading.Event:
    """Keep the worker busy until the returned event is set."""
    gate, begun = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        assert gate.wait(30)

    worker.post(job)
    assert begun.wait(30)
    return gate


def test_a_queued_job_runs_although_its_caller_was_cancelled() -> None:
    async def main() -> None:
        worker, done = Worker("test"), []
        gate = gated(worker)
        task = asyncio.ensure_future(worker.run(lambda: done.append("job")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert done == []
        gate.set()
        await worker.aclose(nothing)
        assert done == ["job"]

    asyncio.run(main())


def test_a_result_that_its_cancelled_caller_missed_is_handed_over_exactly_once() -> None:
    """True for a job that is queued, running, or done with its result on the way to the caller."""

    async def main() -> None:
        worker = Worker("test")
        for moment in ("queued", "done", "awaited"):
            results: list[str] = []
            gate = gated(worker)
            task = asyncio.ensure_future(worker.run(str, on_abandoned=partial(collect, results)))
            await asyncio.sleep(0)
            if moment != "queued":
                gate.set()
                worker.post(nothing).result(30)  # the job before it is done; this loop has not noticed
            if moment == "awaited":
                assert await task == ""
            task.cancel()
            gate.set()
            await asyncio.wait([task])
            await worker.run(nothing)
            assert results == ([] if moment == "awaited" else [""]), moment
        await worker.aclose(nothing)

    asyncio.run(main())


def test_a_busy_job_lets_the_others_run_first() -> None:
    async def main() -> None:
        worker, order = Worker("test"), []
        others_done = threading.Event()

        def busy() -> None:
            if not others_done.is_set():
                raise Busy("Another process is writing.")
            order.append("busy")

        def other() -> None:
            order.append("other")
            others_done.set()

        await asyncio.gather(worker.run(busy), worker.run(other))
        assert order == ["other", "busy"]
        await worker.aclose(nothing)

    asyncio.run(main())


def test_a_job_that_stays_busy_ends_in_store_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_TRIES", 3)
    tries = []

    def busy() -> None:
        tries.append(1)
        raise Busy("Another process is writing.")

    async def main() -> None:
        worker = Worker("test")
        with pytest.raises(StoreUnavailable, match="Another process is writing"):
            await worker.run(busy)
        await worker.aclose(nothing)

    asyncio.run(main())
    assert len(tries) == 3


def test_closing_waits_for_a_busy_job_and_ends_after_it() -> None:
    async def main() -> None:
        worker, order, closing = Worker("test"), [], threading.Event()

        def busy() -> None:
            if not closing.is_set():
                raise Busy("Another process is writing.")
            order.append("busy")

        def last() -> None:
            order.append("last")
            closing.set()

        job = asyncio.ensure_future(worker.run(busy))
        await asyncio.sleep(0)
        await worker.aclose(last)
        await job
        assert order[-2:] == ["busy", "last"], "what the busy job reopened is closed"
        assert not worker.open

    asyncio.run(main())


def test_a_loop_closed_before_its_job_is_done_does_no_harm() -> None:
    worker, done = Worker("test"), threading.Event()
    gate = gated(worker)

    async def leave() -> None:
        task = asyncio.ensure_future(worker.run(done.set))
        await asyncio.sleep(0)
        del task

    asyncio.run(leave())
    gate.set()
    assert done.wait(30)
    asyncio.run(worker.aclose(nothing))


PROGRAM_ENDS = """
import asyncio, sys, threading, time
from tokensession.stores._local.worker import Busy, Worker
worker, tries = Worker("test"), []
def write():
    tries.append(1)
    if len(tries) < 5:
        raise Busy("Another process is writing.")
    print("written", flush=True)
async def main():
    asyncio.ensure_future(worker.run(write))
    await asyncio.sleep(0)
asyncio.run(main())
"""


def test_a_job_runs_once_although_its_thread_could_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread the job runs at once, and not a second time: it may be a write."""

    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        worker, done = Worker("test"), list[str]()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            await worker.run(lambda: done.append("sign-out"))
            await worker.aclose(lambda: done.append("closed"))  # the job may have opened a connection
        await worker.run(lambda: done.append("sign-in"))
        assert done == ["sign-out", "closed", "sign-in"]
        assert repr(worker) == "<Worker test open, 0 pending>"
        await worker.aclose(nothing)
        assert not worker.open

    asyncio.run(asyncio.wait_for(main(), 30))


def test_it_can_be_closed_by_several_callers_at_the_same_time() -> None:
    """Each passes a bound method of its own, and all of these are the same job."""

    class Connection:
        def close(self) -> None:
            pass

    async def main() -> None:
        worker, connection = Worker("test"), Connection()
        await worker.run(nothing)
        await asyncio.gather(*(worker.aclose(connection.close) for _ in range(5)))
        assert repr(worker) == "<Worker test closed, 0 pending>"

    asyncio.run(asyncio.wait_for(main(), 10))


def test_the_interpreter_ends_after_the_last_job() -> None:
    """That job may be busy, and may be writing a rotated refresh token."""
    done = subprocess.run([sys.executable, "-c", PROGRAM_ENDS], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("written\n", "", 0)


PROGRAM_FORKS = """
import os, signal, threading
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
    done = subprocess.run([sys.executable, "-c", PROGRAM_FORKS], capture_output=True, text=True, timeout=60)
    assert done.stdout == "['job', 'closed'] 0\n", done.stderr


def test_its_repr_shows_its_state() -> None:
    worker = Worker("test")
    assert repr(worker) == "<Worker test closed, 0 pending>"
    gate = gated(worker)
    assert repr(worker) == "<Worker test open, 1 pending>"
    gate.set()
    asyncio.run(worker.aclose(nothing))
    assert repr(worker) == "<Worker test closed, 0 pending>"
