"""Failures about locks: who holds one, since when, and who waits for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import _backends
import pytest
from _store_helpers import descriptors, files, opened, run, source, success

from tokensession.clock import SystemClock
from tokensession.stores import Record
from tokensession.stores._local.claims import Claims, Records
from tokensession.stores._local.lock import Mark
from tokensession.stores._local.worker import Worker
from tokensession.stores.protocol import Claim
from tokensession.testing import FakeClock, ScriptedTransport
from tokensession.testing.conformance.backend import Backend, claimed, is_free, newer, ticks


@pytest.fixture(params=["file", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    made: Backend = getattr(_backends, request.param)(tmp_path)
    return made


class WrittenBeforeTheLock:
    """Records: another process stores one, once, between a caller's look and its lock."""

    def __init__(self, records: Records, record: Record) -> None:
        self._records = records
        self._record = record
        self.written = 0

    def read(self, key: str) -> Record | None:
        return self._records.read(key)

    def prepare(self, key: str) -> Path:
        path = self._records.prepare(key)
        if not self.written:
            self.written += 1
            self._records.write(key, self._record, None)
        return path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)


def test_f08_a_record_is_read_again_under_the_lock(backend: Backend) -> None:
    """If a refresh ends between a caller's look and its lock, the caller gets that record and no claim."""

    async def main() -> None:
        async with opened(backend) as store:
            records = WrittenBeforeTheLock(store._claims._records, Record("newer", b"rotated"))
            worker = Worker("test")
            claims = Claims(records, worker, SystemClock())
            found = await claims.claim("k", seen=None, timeout=30)
            assert (found, records.written) == (Record("newer", b"rotated"), 1)
            assert await is_free(store, "k", "newer")
            await worker.aclose(lambda: None)

    run(main())


def test_f13_a_holder_releases_only_its_own_lock(backend: Backend) -> None:
    """If its lock file was replaced and locked by another process, its end does not free that claim."""
    assert backend.lock_file is not None
    lock = backend.lock_file("k")
    with backend.peers(3) as [first, second, third]:
        first.ask("claim", key="k", seen=None)
        lock.unlink()
        second.ask("claim", key="k", seen=None)
        for _ in range(2):
            first.ask("abandon")
            assert third.ask("claim", key="k", seen=None, timeout=0)["error"] == "ClaimTimeout"
        second.ask("abandon")
        assert third.ask("claim", key="k", seen=None, timeout=0)["current"] is None
        for late in (first, second):
            late.ask("abandon")
            assert first.ask("load", key="k") is None
            assert second.ask("claim", key="k", seen=None, timeout=0)["error"] == "ClaimTimeout"
        version = third.ask("commit", data="data")["version"]
        third.ask("abandon")
        assert first.ask("claim", key="k", seen=version, timeout=0)["interrupted"] is None


FUTURE = 4_102_444_800  # the year 2100


@pytest.mark.parametrize("mark", ["in the future", "unreadable"])
def test_f15_times_in_the_future_block_no_claim(backend: Backend, mark: str) -> None:
    """Lock marks and file times may be in the future after a clock step; no caller waits for them to pass."""
    assert backend.lock_file is not None
    with backend.peers() as [victim]:
        victim.ask("claim", key="k", seen=None)
        victim.ask("sending")
        victim.kill()
    content = Mark(SystemClock.boot() + 1e9, "v").encode() if mark == "in the future" else b"tomorrow"
    backend.lock_file("k").write_bytes(content)

    async def main() -> None:
        clock = FakeClock()  # it does not move, so waiting for it never ends
        transport = ScriptedTransport(success(1), success(2))
        for number in (1, 2):
            for path in files(backend):
                os.utime(path, (FUTURE, FUTURE))
            async with opened(backend) as store:
                work = source(store, transport, clock)
                caller = asyncio.ensure_future(work.token() if number == 1 else work.refresh())
                if mark == "unreadable" and number == 1:
                    while 2.0 not in clock.sleepers:  # it counts as left just now: only `orphan_wait`
                        await asyncio.sleep(0)
                        await store.load("other")  # a job behind the one that the caller waits for
                    clock.advance(2)
                assert (await caller).access_token == f"access-{number}"
                assert await work.token() == caller.result()
        assert (len(transport.requests), transport.unexpected_requests) == (2, 0)

    run(main())


# 10,000 in all. The SQLite store uses the same lock, so a fifth of them is enough there.
TIMES = {"file": 1250, "sqlite": 250}


def test_f16_eight_processes_never_hold_one_claim_at_once(
    backend: Backend, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In thousands of claims by eight processes, no two are held at once."""
    times = TIMES[request.node.callspec.params["backend"]]
    with backend.peers(8) as contenders:
        for contender in contenders:
            contender.send("contend", key="k", times=times, arena=str(tmp_path / "arena"), commits=False)
        assert [contender.read() for contender in contenders] == [{"granted": times, "overlaps": 0}] * 8


def test_f16_a_lock_file_keeps_its_name_and_its_inode(backend: Backend) -> None:
    """It is never unlinked. Otherwise one process could lock the old file, and another the new one."""
    assert backend.lock_file is not None
    lock = backend.lock_file("k")

    async def main() -> None:
        async with opened(backend) as store:
            claim = await claimed(store, "k")
            inode = lock.stat().st_ino
            await claim.abandon()
            assert lock.stat().st_ino == inode
            record = await (await claimed(store, "k")).commit(b"data")
            assert lock.stat().st_ino == inode
            await store.put("k", b"more", expect=record.version)
            await store.delete("k")
            assert lock.stat().st_ino == inode

    run(main())


def test_f30_two_hundred_waiters_hold_no_descriptor_and_no_connection(backend: Backend) -> None:
    """200 tasks that wait for 50 keys of another process have no more files open than one reader."""
    keys = [f"key-{n}" for n in range(50)]
    with backend.peers() as [holder]:
        assert holder.ask("claim_all", keys=keys) == 50

        async def main() -> None:
            async with opened(backend) as store:
                await store.load("k")
                before = await descriptors(store)
                waiters = [asyncio.ensure_future(newer(store, key)) for key in keys * 4]
                for _ in range(3):
                    await ticks()
                    assert await descriptors(store) <= before
                assert not any(waiter.done() for waiter in waiters)
                versions = holder.ask("commit_all")
                found = await asyncio.gather(*waiters)
                assert [record.version for record in found] == [versions[key] for key in keys * 4]
                assert await descriptors(store) <= before

        run(main())


class CountedRecords:
    """Records that count the looks at them and the tries at the lock."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.looks = self.tries = 0

    def read(self, key: str) -> Record | None:
        self.looks += 1
        return self._records.read(key)

    def prepare(self, key: str) -> Path:
        self.tries += 1
        return self._records.prepare(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)


@pytest.mark.parametrize("count", [1, 10, 200])
def test_f31_each_waiter_needs_one_look_however_many_there_are(backend: Backend, count: int) -> None:
    """After a commit, each of up to 200 waiters looks once and tries no lock, all within one pause."""

    async def main() -> None:
        async with opened(backend) as store:
            clock, worker = FakeClock(), Worker("test")
            records = CountedRecords(store._claims._records)
            claims = Claims(records, worker, clock)
            holder = await claimed(store, "k")
            waiters = [asyncio.ensure_future(claims.claim("k", seen=None, timeout=30)) for _ in range(count)]
            for _ in range(10):  # then their pauses have reached the maximum
                await clock.slept(count)
                clock.advance(0.025)
            await clock.slept(count)
            record = await holder.commit(b"data")
            records.looks = records.tries = 0
            clock.advance(0.025)
            assert await asyncio.gather(*waiters) == [record] * count
            assert (records.looks, records.tries) == (count, 0)
            await worker.aclose(lambda: None)

    run(main())


def test_f31_an_abandoned_claim_goes_to_one_waiter_and_the_others_keep_watching(backend: Backend) -> None:
    """Waiters do not queue: one that does not get the lock looks again, and the next commit serves it."""

    async def main() -> None:
        async with opened(backend) as store:
            clock, worker = FakeClock(), Worker("test")
            claims = Claims(store._claims._records, worker, clock)
            holder = await claimed(store, "k")
            waiters: set[asyncio.Task[Any]] = {
                asyncio.ensure_future(claims.claim("k", seen=None, timeout=30)) for _ in range(50)
            }
            await clock.slept(50)
            await holder.abandon()
            clock.advance(0.025)
            done, waiters = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            claim: Claim = done.pop().result()
            assert (len(done), isinstance(claim, Record)) == (0, False)
            await clock.slept(49)
            record = await claim.commit(b"data")
            clock.advance(0.025)
            assert await asyncio.gather(*waiters) == [record] * 49
            await worker.aclose(lambda: None)

    run(main())


@pytest.mark.parametrize("end", ["commit", "abandon"])
def test_a_waiter_notices_a_release_long_before_its_next_look(backend: Backend, end: str) -> None:
    """After a long wait it looks ten times a second, but checks the stat signature more often."""

    async def main() -> None:
        async with opened(backend) as store:
            clock, worker = FakeClock(), Worker("test")
            records = CountedRecords(store._claims._records)
            holder = await claimed(store, "k")
            waiter = asyncio.ensure_future(Claims(records, worker, clock).claim("k", seen=None, timeout=30))
            for _ in range(60):  # then its pauses have reached the maximum
                await clock.slept()
                clock.advance(0.01)
            await clock.slept()
            records.looks = 0
            while not records.looks:
                clock.advance(0.01)
                await clock.slept()
            await (holder.commit(b"data") if end == "commit" else holder.abandon())
            clock.advance(0.01)  # its next look is ten times as far away
            asleep = asyncio.ensure_future(clock.slept())
            await asyncio.wait((waiter, asleep), return_when=asyncio.FIRST_COMPLETED)
            assert waiter.done()
            found = waiter.result()
            assert isinstance(found, Record) == (end == "commit")
            if not isinstance(found, Record):
                await found.abandon()
            await worker.aclose(lambda: None)
            asleep.cancel()

    run(main())
