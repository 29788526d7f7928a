"""Promises of a store that several processes share. A part of `StoreConformance`.

The processes are real, and so are the signals that kill and stop them: see `peer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ...clock import SystemClock
from ...stores.protocol import Store
from ..clock import FakeClock
from .backend import (
    Backend,
    claimed,
    interruption,
    is_free,
    needs,
    newer,
    promise,
    stored,
    ticks,
)
from .peer import is_whole

__all__ = ["ProcessPromises"]


class ProcessPromises:
    """Exclusion, crashes, pauses and forks."""

    @promise
    async def test_a_killed_writer_leaves_a_whole_record(self, backend: Backend, store: Store) -> None:
        """The old record or the new one, and never an older one than was reported as stored."""
        with backend.peers(8) as writers:
            start = 0
            for count, writer in enumerate(writers):
                writer.send("churn", key="k", start=start)
                for _ in range(3 * count + 1):
                    reported = writer.read()["stored"]
                writer.kill()  # at some point of its next write
                record = await stored(store, "k")
                number = is_whole(record.data)
                assert number >= reported, "a record that was reported as stored is lost"
                start = number + 1

    @promise
    async def test_a_reader_never_sees_a_torn_record(self, backend: Backend, store: Store) -> None:
        """It reads thirty different records while they are written, and they never go back."""
        with backend.peers() as [writer]:
            writer.send("churn", key="k", start=0)
            writer.read()
            numbers: list[int] = []
            while len(set(numbers)) < 30:
                record = await stored(store, "k")
                numbers.append(is_whole(record.data))
            assert numbers == sorted(numbers)

    @promise
    async def test_what_is_stored_survives_its_killed_writer(self, backend: Backend, store: Store) -> None:
        """It is stored when `put` or `commit` returns, even if the process is killed right then."""
        with backend.peers(2) as [first, second]:
            put = first.ask("put", key="k", data="put")
            first.kill()
            record = await stored(store, "k")
            assert (record.version, record.data) == (put["version"], b"put")
            second.ask("claim", key="k", seen=record.version)
            committed = second.ask("commit", data="committed")
            second.kill()
            record = await stored(store, "k")
            assert (record.version, record.data) == (committed["version"], b"committed")
            assert await interruption(store, record.version) is None, "it had committed"

    def test_one_process_at_a_time_holds_the_claim(self, backend: Backend, tmp_path: Path) -> None:
        """Eight processes contend for it, two hundred times."""
        with backend.peers(8) as contenders:
            for contender in contenders:
                contender.send("contend", key="k", times=25, arena=str(tmp_path / "arena"))
            for contender in contenders:
                assert contender.read() == {"granted": 25, "overlaps": 0}

    @promise
    async def test_one_commit_serves_all_waiting_processes(self, backend: Backend, store: Store) -> None:
        """Each of them gets the record, and none gets a claim."""
        with backend.peers(6) as waiters:
            claim = await claimed(store, "k")
            for waiter in waiters:
                waiter.ask("begin_claim", key="k", seen=None)
            record = await claim.commit(b"data")
            for waiter in waiters:
                assert waiter.ask("granted") == {"version": record.version, "data": "data"}
            assert await is_free(store, "k", record.version)

    @promise
    async def test_a_hundred_keys_held_elsewhere_can_be_waited_for_at_once(
        self, backend: Backend, store: Store
    ) -> None:
        """One process has two waiters for each key, and can still claim one more key."""
        with backend.peers(2) as holders:
            keys = [[f"{number}-{n}" for n in range(50)] for number in range(2)]
            for holder, some in zip(holders, keys, strict=True):
                assert holder.ask("claim_all", keys=some) == 50
            wanted = [*keys[0], *keys[1]] * 2
            waiters = [asyncio.ensure_future(newer(store, key)) for key in wanted]
            await ticks()
            assert await is_free(store, "another")
            assert not any(waiter.done() for waiter in waiters)
            versions = holders[0].ask("commit_all") | holders[1].ask("commit_all")
            served = [record.version for record in await asyncio.gather(*waiters)]
            assert served == [versions[key] for key in wanted]

    def test_a_commit_is_noticed_although_its_process_is_killed_at_once(self, backend: Backend) -> None:
        """A waiter does not depend on a message that a dead process cannot send."""
        with backend.peers(2) as [holder, waiter]:
            holder.ask("claim", key="k", seen=None)
            waiter.ask("begin_claim", key="k", seen=None)
            committed = holder.ask("commit", data="data")
            holder.kill()
            assert waiter.ask("granted")["version"] == committed["version"]

    @promise
    async def test_a_killed_holder_loses_its_claim_and_the_next_one_learns_of_it(
        self, backend: Backend, store: Store
    ) -> None:
        """The claim goes to a waiter, which must know that a token request may still be on the way."""
        with backend.peers(2) as [holder, waiter]:
            granted = holder.ask("claim", key="k", seen=None)
            assert granted == {"current": None, "interrupted": None, "listening": 0}
            holder.ask("sending", listening=30)
            waiter.ask("begin_claim", key="k", seen=None)
            holder.kill()
            granted = waiter.ask("granted")
            assert granted["current"] is None
            assert granted["interrupted"] is not None
            assert 0 <= granted["interrupted"] < backend.patience
            assert 0 <= granted["listening"] <= 30
            waiter.ask("abandon")
            claim = await claimed(store, "k")
            assert claim.interrupted is not None, "the claim before this one was abandoned"
            record = await claim.commit(b"data")
            assert await interruption(store, record.version) is None

    @promise
    async def test_a_holder_killed_before_it_sends_leaves_nothing(
        self, backend: Backend, store: Store
    ) -> None:
        """It takes no mark with it either: an earlier interruption is still known."""
        with backend.peers(3) as [first, second, third]:
            first.ask("claim", key="k", seen=None)
            first.kill()
            assert second.ask("claim", key="k", seen=None)["interrupted"] is None
            second.ask("sending")
            second.kill()
            assert third.ask("claim", key="k", seen=None)["interrupted"] is not None
            third.kill()
            claim = await claimed(store, "k")
            assert claim.interrupted is not None
            await claim.commit(b"data")

    @promise
    async def test_a_killed_waiter_leaves_nothing_behind(self, backend: Backend, store: Store) -> None:
        """Its end is not an interruption, and it does not take the claim with it."""
        with backend.peers() as [waiter]:
            claim = await claimed(store, "k")
            waiter.ask("begin_claim", key="k", seen=None)
            waiter.kill()
            await claim.abandon()
            assert await interruption(store) is None

    def test_after_a_clock_reset_an_interruption_counts_as_old(self, backend: Backend) -> None:
        """A holder that began "in the future" began before a reboot, and no age is negative."""
        needs(backend.takes_clock or None, "opened with a clock of the caller")
        with backend.peers(2) as [first, second]:

            async def rebooted(store: Store) -> None:
                claim = await claimed(store, "k")
                assert claim.interrupted is not None
                assert claim.interrupted >= 3600
                await claim.commit(b"data")

            async def later(store: Store) -> None:
                record = await newer(store, "k")
                claim = await claimed(store, "k", record.version)
                assert claim.interrupted is not None
                assert 1000 <= claim.interrupted < 1000 + 2 * backend.patience
                await claim.abandon()

            first.ask("claim", key="k", seen=None)
            first.ask("sending")
            first.kill()
            backend.run(rebooted, store=backend.open(clock=FakeClock(wall=0.0, boot=1.0)))
            second.ask("claim", key="k", seen=second.ask("load", key="k")["version"])
            second.ask("sending")
            second.kill()
            # The wall clock, which is an hour behind now, does not count.
            clock = FakeClock(wall=SystemClock.wall() - 3600, boot=SystemClock.boot() + 1000)
            backend.run(later, store=backend.open(clock=clock))

    @promise
    async def test_a_paused_holder_overwrites_nothing_newer(self, backend: Backend, store: Store) -> None:
        """After SIGSTOP, a sign-in elsewhere and SIGCONT, its commit is superseded."""
        with backend.peers() as [holder]:
            holder.ask("claim", key="k", seen=None)
            holder.stop()
            assert await store.load("k") is None
            record = await store.put("k", b"signed in")
            assert (await store.put("other", b"not blocked")).data == b"not blocked"
            holder.resume()
            answer = holder.ask("commit", data="late")
            assert answer == {
                "error": "Superseded",
                "record": {"version": record.version, "data": "signed in"},
            }
            assert await store.load("k") == record
            holder.ask("abandon")
            assert await is_free(store, "k", record.version)

    @promise
    async def test_a_paused_holder_commits_if_nothing_newer_is_stored(
        self, backend: Backend, store: Store
    ) -> None:
        """After SIGSTOP and SIGCONT, its commit is stored."""
        with backend.peers() as [holder]:
            holder.ask("claim", key="k", seen=None)
            holder.stop()
            holder.resume()
            committed = holder.ask("commit", data="late")
            assert (await stored(store, "k")).version == committed["version"]

    @promise
    async def test_a_holder_with_a_blocked_event_loop_commits_if_nothing_newer_is_stored(
        self, backend: Backend, store: Store
    ) -> None:
        """It could not renew a lease, but its commit is stored, and it did not block other callers."""
        with backend.peers() as [holder]:
            holder.ask("claim", key="k", seen=None)
            assert holder.ask("block") == "blocked"
            assert (await store.put("other", b"not blocked")).data == b"not blocked"
            assert await store.load("k") is None
            holder.send("commit", data="late")
            assert holder.read() == "unblocked"
            committed = holder.read()
            assert (await stored(store, "k")).version == committed["version"]

    @promise
    async def test_sixteen_processes_may_start_at_once(self, backend: Backend, store: Store) -> None:
        """They all write to an empty backend, and nothing is lost."""
        with backend.peers(16) as starters:
            for number, starter in enumerate(starters):
                starter.send("put", key=f"key-{number}", data="data")
            for starter in starters:
                assert starter.read().get("data") == "data"
            assert await store.keys() == sorted(f"key-{number}" for number in range(16))

    @promise
    async def test_a_forked_child_keeps_no_claim_alive(self, backend: Backend, store: Store) -> None:
        """When the parent is killed and the child lives on, the next caller gets the claim."""
        with backend.peers() as [holder]:
            holder.ask("claim", key="k", seen=None)
            holder.ask("sending")
            child = holder.ask("fork")
            try:
                holder.kill()
                claim = await claimed(store, "k", timeout=backend.patience / 2)
                assert claim.interrupted is not None
                await claim.abandon()
            finally:
                os.kill(child, signal.SIGKILL)

    @promise
    async def test_a_forked_child_may_use_the_store_it_inherited(
        self, backend: Backend, store: Store
    ) -> None:
        """It opens what it needs itself, and the parent's claim survives the child."""
        with backend.peers() as [holder]:
            holder.ask("put", key="other", data="by the parent")
            holder.ask("claim", key="k", seen=None)
            assert holder.ask("fork_and_put", key="other", data="by the child") == 0
            assert (await stored(store, "other")).data == b"by the child"
            assert not await is_free(store, "k")
            committed = holder.ask("commit", data="data")
            assert (await newer(store, "k")).version == committed["version"]

    @promise
    async def test_the_next_writer_removes_what_a_killed_one_left(
        self, backend: Backend, store: Store
    ) -> None:
        """No half-written copy of a token stays on the disk."""
        with backend.peers(12) as [clean, *writers]:
            clean.ask("put", key="k", data="data")
            clean.ask("claim", key="k", seen=clean.ask("load", key="k")["version"])
            clean.ask("commit", data="data")
            clean.ask("aclose")
            before = backend.names()
            for count, writer in enumerate(writers):
                writer.send("churn", key="k", start=4080)  # so that its data is large
                for _ in range(1 + count % 2):  # then the next write is a put, or a commit
                    writer.read()
                for _ in range(4 * count):  # so each of them is killed later in its next write
                    clean.ask("hello")
                writer.kill()
                if not backend.names() <= before:  # this one left something
                    break
            await store.put("k", b"data")
            await store.aclose()
            assert backend.names() <= before

    @promise
    async def test_waiting_for_another_process_does_not_block_the_event_loop(
        self, backend: Backend, store: Store
    ) -> None:
        """Other tasks keep running during the wait."""
        with backend.peers() as [holder]:
            holder.ask("claim", key="k", seen=None)
            waiter = asyncio.ensure_future(newer(store, "k"))
            for number in range(20):  # the waiter looks again and again during this
                await store.put("other", b"%d" % number)
            assert not waiter.done()
            committed = holder.ask("commit", data="data")
            assert (await waiter).version == committed["version"]

    @promise
    async def test_a_backup_by_the_process_itself_breaks_nothing(
        self, backend: Backend, store: Store
    ) -> None:
        """It opens, reads and closes every file, which drops the POSIX locks of the whole process."""
        root = needs(backend.root, "kept in files")

        def back_up() -> None:
            for path in root.rglob("*"):
                if path.is_file():
                    path.read_bytes()

        with backend.peers() as [passing]:
            before = await store.put("k", b"1")
            async with backend.opened() as other:
                assert await other.load("k") == before
                claim = await claimed(store, "k", before.version)
                back_up()
                refused = passing.ask("claim", key="k", seen=before.version, timeout=0)
                assert refused.get("error") == "ClaimTimeout", "two holders at once"
                assert passing.ask("load", key="k")["version"] == before.version
                passing.ask("aclose")
                await claim.sending()
                back_up()
                record = await claim.commit(b"2")
                assert passing.ask("load", key="k") == {"version": record.version, "data": "2"}
                assert await other.load("k") == await store.load("k") == record
                passing.ask("aclose")
                back_up()
                late = passing.ask("put", key="k", data="3", expect=record.version)
                passing.ask("aclose")
                for each in (store, other):
                    assert (await newer(each, "k", record.version)).version == late["version"]
            async with backend.opened() as restarted:
                assert (await newer(restarted, "k")).version == late["version"]

    @promise
    async def test_no_file_is_touched_in_the_event_loops_thread(self, backend: Backend, store: Store) -> None:
        """Not for a wait, nor to close, nor for any other call: on a mount that hangs, the loop would stop.

        Nor does closing join a thread, which may be in such a call.
        """
        with backend.peers() as [holder]:

            async def use_and_close(store: Store) -> None:
                record = await store.put("k", b"data")
                holder.ask("claim", key="k", seen=record.version)
                waiter = asyncio.ensure_future(newer(store, "k", record.version))
                cancelled = asyncio.ensure_future(newer(store, "k", record.version))
                assert not await is_free(store, "k", record.version)
                for number in range(20):  # the waiters look again and again during this
                    await store.put("other", b"%d" % number)
                cancelled.cancel()
                await asyncio.wait([cancelled])
                assert not waiter.done()
                holder.ask("commit", data="data")
                claim = await claimed(store, "k", (await waiter).version)
                await claim.sending()
                record = await claim.commit(b"data")
                assert await is_free(store, "k", record.version)
                assert await store.load("k") == record
                assert await store.keys() == ["k", "other"]
                await store.delete("k")
                await store.aclose()

            await use_and_close(store)  # the first use imports modules
            with blocking_calls() as calls:
                await use_and_close(store)
            assert calls == []


_HARMLESS = frozenset({"fspath", "getegid", "geteuid", "getpid", "getppid", "getrandom", "uname", "urandom"})


@contextlib.contextmanager
def blocking_calls() -> Iterator[list[str]]:
    """Collects the calls of this thread that a file system can block, and those that wait for a thread.

    It sees the functions of the system (`posix` and `fcntl`), of SQLite, and `open`, whatever calls them.
    """
    found: list[str] = []

    def look(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call":
            name = function.__name__
            module = function.__module__ or type(function.__self__).__module__
            if (
                module in ("posix", "fcntl", "sqlite3", "_sqlite3") and name not in _HARMLESS
            ) or name == "open":
                found.append(f"{module}.{name}")
        elif event == "call" and frame.f_code is threading.Thread.join.__code__:
            found.append("threading.Thread.join")

    gc.collect()  # what earlier tests have left may close files
    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(before)
