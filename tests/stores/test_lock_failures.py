"""Failures about locks: who holds one, since when, and who waits for it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _store_helpers import Local, cancelled, descriptors, failing, run, source, success

from tokensession.clock import SystemClock
from tokensession.errors import ClaimTimeout, StoreUnavailable
from tokensession.stores import Record
from tokensession.stores._local.claims import Claims, Records
from tokensession.stores._local.lock import Mark
from tokensession.stores._local.worker import Worker
from tokensession.stores.protocol import Claim
from tokensession.testing import FakeClock, ScriptedTransport
from tokensession.testing.conformance.backend import Backend, claimed, is_free, newer, ticks


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


class WrittenBeforeTheLock(CountedRecords):
    """Records: another process stores one, once, between a caller's look and its lock."""

    def prepare(self, key: str) -> Path:
        path = super().prepare(key)
        if self.tries == 1:
            self._records.write(key, Record("newer", b"rotated"), None)
        return path


def test_f08_a_record_is_read_again_under_the_lock(store: Local) -> None:
    """If a refresh ends between a caller's look and its lock, the caller gets that record and no claim."""
    records, worker = WrittenBeforeTheLock(store._claims._records), Worker("test")
    found = run(Claims(records, worker, SystemClock()).claim("k", seen=None, timeout=30))
    assert (found, records.tries) == (Record("newer", b"rotated"), 1)
    assert run(is_free(store, "k", "newer"))
    run(worker.aclose())


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


@pytest.mark.parametrize("mark", ["in the future", "unreadable"])
def test_f15_times_in_the_future_block_no_claim(
    mark: str, backend: Backend, store: Local, clock: FakeClock
) -> None:
    """Lock marks and file times may be in the future after a clock step; no caller waits for them to pass."""
    assert backend.lock_file is not None
    assert backend.root is not None
    with backend.peers() as [victim]:
        victim.ask("claim", key="k", seen=None)
        victim.ask("sending")
        victim.kill()
    content = Mark(SystemClock.boot() + 1e9, "v").encode() if mark == "in the future" else b"tomorrow"
    backend.lock_file("k").write_bytes(content)
    transport = ScriptedTransport(success(1), success(2))
    for number in (1, 2):
        for path in (backend.root, *backend.root.rglob("*")):
            os.utime(path, (4_102_444_800, 4_102_444_800))  # the year 2100
        work = source(store, transport, clock)  # the clock does not move, so waiting for it never ends
        caller = run.start(work.token() if number == 1 else work.refresh())
        if mark == "unreadable" and number == 1:
            while 2.0 not in clock.sleepers:  # it counts as left just now: only `orphan_wait`
                run(store.load("other"))  # a job behind the one that the caller waits for
            clock.advance(2)
        assert run(caller).access_token == f"access-{number}"
        assert run(work.token()) == caller.result()
        run(store.aclose())
    assert (len(transport.requests), transport.unexpected_requests) == (2, 0)


# 10,000 in all. The SQLite store uses the same lock, so a fifth of them is enough there.
TIMES = {"tokens": 1250, "database": 250}


def test_f16_eight_processes_never_hold_one_claim_at_once(backend: Backend, tmp_path: Path) -> None:
    """In thousands of claims by eight processes, no two are held at once."""
    assert backend.root is not None
    times = TIMES[backend.root.name]
    with replace(backend, patience=600).peers(8) as contenders:  # thousands of claims before an answer
        for contender in contenders:
            contender.send("contend", key="k", times=times, arena=str(tmp_path / "arena"), commits=False)
        assert [contender.read() for contender in contenders] == [{"granted": times, "overlaps": 0}] * 8


def test_f16_a_lock_file_keeps_its_name_and_its_inode(backend: Backend, store: Local) -> None:
    """It is never unlinked. Otherwise one process could lock the old file, and another the new one."""
    assert backend.lock_file is not None
    lock = backend.lock_file("k")
    claim = run(claimed(store, "k"))
    inodes = [lock.stat().st_ino]
    run(claim.abandon())
    inodes.append(lock.stat().st_ino)
    record = run(run(claimed(store, "k")).commit(b"data"))
    inodes.append(lock.stat().st_ino)
    run(store.put("k", b"more", expect=record.version))
    run(store.delete("k"))
    assert [*inodes, lock.stat().st_ino] == inodes[:1] * 4


def test_f30_two_hundred_waiters_hold_no_descriptor_and_no_connection(backend: Backend, store: Local) -> None:
    """200 tasks that wait for 50 keys of another process have no more files open than one reader."""
    keys = [f"key-{n}" for n in range(50)]
    with backend.peers() as [holder]:
        assert holder.ask("claim_all", keys=keys) == 50
        run(store.load("k"))
        before = run(descriptors(store))
        waiters = [run.start(newer(store, key)) for key in keys * 4]
        for _ in range(3):
            run(ticks())
            assert run(descriptors(store)) <= before
        assert not any(waiter.done() for waiter in waiters)
        versions = holder.ask("commit_all")
        found = run(asyncio.gather(*waiters))
        assert [record.version for record in found] == [versions[key] for key in keys * 4]
        assert run(descriptors(store)) <= before


class Waiting:
    """Waiters for the claim on "k", in a worker of their own, with a clock that stands still.

    So no pause between two looks ever ends, and only a change of the lock file is noticed.
    """

    def __init__(self, store: Any) -> None:
        self.clock, self.worker = FakeClock(), Worker("test")
        self.records = CountedRecords(store._claims._records)
        self.claims = Claims(self.records, self.worker, self.clock)

    async def start(self, count: int = 1, timeout: float = 30) -> list[asyncio.Task[Any]]:
        """Return when so many wait, after their first look."""
        tries = self.records.tries
        tasks = [
            asyncio.ensure_future(self.claims.claim("k", seen=None, timeout=timeout)) for _ in range(count)
        ]
        while self.records.tries < tries + count:
            await asyncio.sleep(0)
        await self.worker.run(lambda: None)  # the last of these looks is over
        self.records.looks = self.records.tries = 0
        return tasks

    async def rounds(self, count: int = 3) -> None:
        """Return after so many rounds of the worker."""
        for _ in range(count):
            before = self.worker._next_round
            while self.worker._next_round == before:
                await asyncio.sleep(0)


@pytest.fixture
def waiting(store: Local) -> Iterator[Waiting]:
    waiting = Waiting(store)
    yield waiting
    run(waiting.worker.aclose())


@pytest.mark.parametrize("count", [1, 10, 200])
def test_f31_each_waiter_needs_one_look_however_many_there_are(
    count: int, store: Local, waiting: Waiting
) -> None:
    """After a commit, each of up to 200 waiters looks once and tries no lock."""
    holder = run(claimed(store, "k"))
    waiters = run(waiting.start(count))
    record = run(holder.commit(b"data"))
    assert run(asyncio.gather(*waiters)) == [record] * count
    assert (waiting.records.looks, waiting.records.tries) == (count, 0)


def test_f31_an_abandoned_claim_goes_to_one_waiter_and_the_others_keep_watching(
    store: Local, waiting: Waiting
) -> None:
    """Waiters do not queue: one that does not get the lock looks again, and the next commit serves it."""
    holder = run(claimed(store, "k"))
    waiters = set(run(waiting.start(50)))
    run(holder.abandon())
    done, waiters = run(asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED))
    claim: Claim = done.pop().result()
    assert (len(done), isinstance(claim, Record)) == (0, False)
    run(waiting.rounds())
    assert not any(waiter.done() for waiter in waiters)
    record = run(claim.commit(b"data"))
    assert run(asyncio.gather(*waiters)) == [record] * 49


def test_a_sign_in_during_a_claim_is_found_by_the_next_look(store: Local, waiting: Waiting) -> None:
    """It does not change the lock file. Looks are at most a tenth of a second apart, by the given clock."""
    holder = run(claimed(store, "k"))
    [waiter] = run(waiting.start())
    record = run(store.put("k", b"signed in"))
    run(waiting.rounds())
    assert (waiting.records.looks, waiter.done()) == (0, False)
    waiting.clock.advance(0.1)
    assert run(waiter) == record
    run(holder.abandon())


def test_a_wait_ends_by_the_given_clock(store: Local, waiting: Waiting) -> None:
    """And not before. The lock has been tried once more then."""
    holder = run(claimed(store, "k"))
    [waiter] = run(waiting.start(timeout=30))
    waiting.clock.advance(29.9)
    run(waiting.rounds())
    assert not waiter.done()
    waiting.records.tries = 0
    waiting.clock.advance(0.1)
    with pytest.raises(ClaimTimeout, match="After 30 s the claim was still held by process"):
        run(waiter)
    assert waiting.records.tries == 1
    run(holder.abandon())


def test_k46_the_event_loop_makes_no_file_system_call(store: Local, other: Local) -> None:
    """On a hung mount, even an `lstat` does not return, and would stop the whole program."""
    made = list[str]()

    def watch(_frame: Any, event: str, function: Any) -> None:
        name = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"
        own = name.startswith(("posix.", "fcntl.", "_io.", "sqlite3.")) and name not in OF_THE_LOOP
        if event == "c_call" and (own or type(getattr(function, "__self__", None)).__name__ in OF_A_DRIVER):
            made.append(name)

    async def main() -> None:
        holder = await claimed(store, "k")
        waiters = [asyncio.ensure_future(newer(other, "k")) for _ in range(3)]
        while [job.busy_since for job in other._worker._waiting.copy()] != [None] * 3:
            await asyncio.sleep(0)
        await cancelled(asyncio.ensure_future(other.claim("k", seen=None, timeout=30)))
        with pytest.raises(ClaimTimeout):
            await other.claim("k", seen=None, timeout=0.03)
        await holder.sending()
        record = await holder.commit(b"data")
        assert await asyncio.gather(*waiters) == [record] * 3
        await other.put("k", b"more")
        assert await other.keys() == ["k"]
        await (await claimed(other, "j")).abandon()
        assert await other.delete("k")
        await other.aclose()
        await store.aclose()

    sys.setprofile(watch)
    try:
        run(main())
    finally:
        sys.setprofile(None)
    assert made == []


OF_THE_LOOP = {"posix.getpid", "posix.fspath", "posix.urandom", "posix.register_at_fork"}
OF_A_DRIVER = {"Connection", "Cursor", "FileIO"}


@pytest.mark.parametrize("hung", ["lstat", "open"])
def test_k46_a_hung_mount_stops_no_event_loop(
    hung: str, store: Local, other: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its waiter can be cancelled at once. What it had asked for is not taken later."""
    real, gate, reached = getattr(os, hung), threading.Event(), threading.Event()

    def hang(*args: Any, **options: Any) -> Any:
        if str(args[0]).endswith(".lock"):
            reached.set()
            assert gate.wait(30)
        return real(*args, **options)

    holder = run(claimed(store, "k"))
    waiter = run.start(other.claim("k", seen=None, timeout=30))
    run(ticks())
    monkeypatch.setattr(os, hung, hang)
    while not reached.is_set():
        run(asyncio.sleep(0))
    run(cancelled(waiter))
    gate.set()
    run(holder.abandon())
    for _ in range(2):  # its try goes on, and may have to give the claim back
        run(other._worker.run(lambda: None))
    assert run(is_free(store, "k"))


class StandingClock(SystemClock):
    """In place of the machine's, for the pause between two rounds: it stands still until it is moved."""

    now = SystemClock.boot()
    boot = staticmethod(lambda: StandingClock.now)


def test_a_hundred_keys_are_waited_for_in_one_round_and_delay_no_other_key(
    backend: Backend, store: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of other keys do not begin a round, however many there are. One of a hundred lasts 25 ms."""
    keys, worker, rounds = [f"key-{number}" for number in range(100)], store._worker, list[int]()
    monkeypatch.setattr("tokensession.stores._local.worker.SystemClock", StandingClock)
    begin = worker._begin_round

    def counted() -> bool:
        rounds.append(len(worker._waiting))
        return begin()

    def load(after: float, times: int = 100) -> None:
        StandingClock.now += after
        for _ in range(times):
            run(store.load("other"))

    monkeypatch.setattr(worker, "_begin_round", counted)
    with backend.peers() as [holder]:
        assert holder.ask("claim_all", keys=keys) == 100
        waiters = [run.start(newer(store, key)) for key in keys]
        load(0)  # jobs run in order: each of those has been tried
        rounds.clear()
        load(0.026)
        assert rounds == [100]
        load(0.024)
        assert rounds == [100]
        load(0.002)
        assert rounds == [100, 100]
        versions = holder.ask("commit_all")
        while not all(waiter.done() for waiter in waiters):
            load(0.026, 1)
        assert [waiter.result().version for waiter in waiters] == [versions[key] for key in keys]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_k42_a_file_system_without_locks_fails_the_claim_and_spends_nothing(
    number: int, store: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS without its lock service answers ENOLCK, some FUSE ones ENOSYS. The error says what helps."""
    transport = ScriptedTransport(success(1))
    monkeypatch.setattr(fcntl, "flock", failing(number))
    for work in (source(store, transport).token(), store.put("k", b"data")):
        with pytest.raises(StoreUnavailable, match=r"a file system that cannot lock it.*local file"):
            run(work)
    assert transport.requests == []


def test_k43_inode_numbers_that_change_end_in_a_clear_error(
    store: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some FUSE file systems make them up. Nothing spins, and no request is sent under such a claim."""
    lstat, looks = Path.lstat, list[Path]()

    def changing(path: Path) -> os.stat_result:
        status = lstat(path)
        if path.suffix != ".lock":
            return status
        looks.append(path)
        return os.stat_result((status.st_mode, len(looks) + 1_000_000, *status[2:]))

    transport = ScriptedTransport(success(1))
    run(store.put("other", b"data"))
    granted = run(claimed(store, "granted"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", changing)
        with pytest.raises(StoreUnavailable, match="inode number"):
            run(source(store, transport).token())
        assert len(looks) == 100
        with pytest.raises(StoreUnavailable, match="inode number"):
            run(granted.sending())
    assert transport.requests == []
    assert run(is_free(store, "k"))
    run(granted.sending())
