"""One store object holds a limited number of claims. The other keys wait in order, and none is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tokensession.errors import ClaimTimeout, StoreUnavailable, Superseded
from tokensession.stores import FileStore, MemoryStore, Record, SQLiteStore
from tokensession.stores._local import slots
from tokensession.stores._local.claims import Records
from tokensession.stores._local.slots import Slots
from tokensession.stores._local.worker import Busy
from tokensession.testing import FakeClock
from tokensession.testing.conformance.backend import claimed, is_free, newer, ticks

Limited = MemoryStore | FileStore | SQLiteStore
LIMIT = 3


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MAX_CLAIMS", LIMIT)


@pytest.fixture(params=["memory", "file", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Limited]:
    made: dict[str, Callable[[], Limited]] = {
        "memory": MemoryStore,
        "file": lambda: FileStore(tmp_path / "tokens"),
        "sqlite": lambda: SQLiteStore(tmp_path / "tokens.db"),
    }
    return made[request.param]


@pytest.fixture
def store(make: Callable[[], Limited]) -> Iterator[Limited]:
    store = make()
    yield store
    asyncio.run(store.aclose())


def slots_of(store: Limited) -> Slots:
    return store._slots if isinstance(store, MemoryStore) else store._claims._slots


async def fill_all_slots(store: Limited) -> list[Any]:
    return [await claimed(store, f"held-{n}") for n in range(LIMIT)]


async def let_jobs_run(store: Limited) -> None:
    """Let the loop and the worker thread finish what they have to do. Our job is queued behind theirs."""
    await asyncio.sleep(0)
    await store.load("other")


async def queued(store: Limited, count: int) -> None:
    """Return when so many callers wait for a slot."""
    while slots_of(store).waiting < count:
        await let_jobs_run(store)


def run(work: Any) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


def test_the_next_key_waits_until_a_claim_is_released(store: Limited) -> None:
    """Keys get their claims in the order in which they came."""

    async def main() -> None:
        claims = await fill_all_slots(store)
        waiters = []
        for count in range(1, 6):
            waiters.append(asyncio.ensure_future(claimed(store, f"k{count}")))
            await queued(store, count)
        assert slots_of(store).in_use == LIMIT
        for waiter, release in zip(
            waiters, [claims[0].abandon, lambda: claims[1].commit(b"data")], strict=False
        ):
            await release()
            await waiter
            assert sum(w.done() for w in waiters) == waiters.index(waiter) + 1
        for count, waiter in enumerate(waiters):
            if count >= 2:
                await waiters[count - 2].result().abandon()
            await waiter
        assert slots_of(store).in_use == LIMIT

    run(main())


def test_waiting_for_a_slot_ends_with_a_claim_timeout(store: Limited) -> None:
    async def main() -> None:
        claims = await fill_all_slots(store)
        for timeout in (0, 0.05):
            with pytest.raises(ClaimTimeout, match=f"holds its maximum of {LIMIT} claims"):
                await store.claim("k", seen=None, timeout=timeout)
        assert slots_of(store).waiting == 0
        await claims[0].abandon()
        assert await is_free(store, "k")

    run(main())


def test_a_newer_record_needs_no_slot(store: Limited) -> None:
    """It may be stored already, or appear during the wait."""

    async def main() -> None:
        before = await store.put("k", b"before")
        await fill_and_keep(store)
        assert await newer(store, "k", None, timeout=0) == before
        waiter = asyncio.ensure_future(newer(store, "k", before.version))
        await queued(store, 1)
        after = await store.put("k", b"after")
        assert await waiter == after
        assert (slots_of(store).in_use, slots_of(store).waiting) == (LIMIT, 0)

    claims: list[Any] = []

    async def fill_and_keep(store: Limited) -> None:
        claims.extend(await fill_all_slots(store))

    run(main())


def test_waiting_for_a_holder_needs_no_slot(store: Limited) -> None:
    async def main() -> None:
        claim = await claimed(store, "k")
        waiters = [asyncio.ensure_future(claimed(store, "k")) for _ in range(20)]
        await ticks(200)
        assert (slots_of(store).in_use, slots_of(store).waiting) == (1, 0)
        assert await is_free(store, "another")
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
        await claim.abandon()

    run(main())


def test_a_waiter_that_finds_its_key_claimed_passes_its_slot_on(store: Limited) -> None:
    async def main() -> None:
        claims = await fill_all_slots(store)
        waiters = []
        for count, key in enumerate(["k", "k", "another"], 1):
            waiters.append(asyncio.ensure_future(claimed(store, key)))
            await queued(store, count)
        await claims[0].abandon()
        first = await waiters[0]
        await claims[1].abandon()
        await waiters[2]
        assert not waiters[1].done()
        await claims[2].abandon()
        assert await is_free(store, "a third")
        await first.abandon()
        await waiters[1]

    run(main())


def test_waiting_for_a_holder_in_another_store_object_needs_no_slot(tmp_path: Path) -> None:
    async def main() -> None:
        store, other = FileStore(tmp_path / "t"), FileStore(tmp_path / "t")
        claims = await fill_all_slots(other)
        waiters = [asyncio.ensure_future(newer(store, f"held-{n % LIMIT}")) for n in range(20)]
        for _ in range(20):
            assert await is_free(store, "another")
        for claim in claims:
            await claim.commit(b"data")
        await asyncio.gather(*waiters)
        assert (slots_of(store).in_use, slots_of(store).waiting) == (0, 0)
        await store.aclose()
        await other.aclose()

    run(main())


def test_cancelled_waiters_leak_no_slot(store: Limited) -> None:
    """They are cancelled in the queue, just after the wake-up, or just before they take the claim."""

    async def main() -> None:
        for count in range(60):
            claims = await fill_all_slots(store)
            waiters = [asyncio.ensure_future(claimed(store, f"k{n}")) for n in range(6)]
            await queued(store, 6)
            for waiter in waiters[::2]:
                waiter.cancel()
            await claims[0].abandon()
            await ticks(count)
            waiters[1].cancel()  # perhaps it has just got its slot
            waiters[3].cancel()
            await asyncio.wait([w for n, w in enumerate(waiters) if n != 5])
            for waiter in waiters[:5]:
                if not waiter.cancelled():
                    await waiter.result().abandon()
            await (await waiters[5]).abandon()
            for claim in claims[1:]:
                await claim.abandon()
        await assert_all_slots_free(store)

    run(main())


async def assert_all_slots_free(store: Limited) -> None:
    """A cancelled claim is released a moment later."""
    while slots_of(store).in_use or slots_of(store).waiting:
        await let_jobs_run(store)
    await asyncio.gather(*[abandoned(store, f"free-{n}") for n in range(2 * LIMIT)])
    assert repr(slots_of(store)) == f"<Slots 0 of {LIMIT} in use, 0 waiting>"


async def abandoned(store: Limited, key: str) -> None:
    await (await claimed(store, key)).abandon()


def test_no_slot_leaks_however_a_claim_ends(store: Limited) -> None:
    """A thousand claims end in seven ways."""

    async def one(number: int) -> None:
        key = f"k{number}"
        end = number % 7
        if end == 0:
            task = asyncio.ensure_future(claimed(store, key))
            await ticks(number % 20)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await task.result().abandon()
            return
        claim = await claimed(store, key)
        if end == 1:
            await claim.commit(b"data")
        elif end == 2:
            await store.put(key, b"newer")
            with pytest.raises(Superseded):
                await claim.commit(b"data")
        elif end == 3:
            await claim.abandon()
            await claim.abandon()
        elif end == 4:
            task = asyncio.ensure_future(claim.commit(b"data"))
            await ticks(number % 5 + 1)
            task.cancel()
            await asyncio.wait([task])
        elif end == 5:
            await claim.abandon()
            await claim.commit(b"late")
        elif isinstance(store, MemoryStore):
            await claim.abandon()
        else:
            del claim  # collected, so it can no longer be ended

    async def main() -> None:
        for start in range(0, 1000, 50):
            await asyncio.gather(*[one(number) for number in range(start, start + 50)])
            gc.collect()
        await assert_all_slots_free(store)

    run(main())


class BusyUnderTheLock:
    """Records: the look under the lock, by a caller that has waited for its slot, is busy once."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.prepared: list[str] = []
        self.busy = 0

    def read(self, key: str) -> Record | None:
        if self.prepared.count(key) == 2 and not self.busy:
            self.busy += 1
            raise Busy("Another process is writing.")
        return self._records.read(key)

    def prepare(self, key: str) -> Path:
        self.prepared.append(key)
        return self._records.prepare(key)

    def write(self, key: str, record: Record, expect: str | None) -> Record:
        return self._records.write(key, record, expect)


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_repeated_job_still_has_its_slot(kind: str, tmp_path: Path) -> None:
    """Without it, the job would wait for a slot until its time is over."""
    store = FileStore(tmp_path / "tokens") if kind == "file" else SQLiteStore(tmp_path / "tokens.db")

    async def main() -> None:
        claims = await fill_all_slots(store)
        records = store._claims._records = BusyUnderTheLock(store._claims._records)
        waiter = asyncio.ensure_future(claimed(store, "w", timeout=10))
        await queued(store, 1)
        await claims[0].abandon()
        claim = await waiter
        assert records.busy == 1
        assert slots_of(store).in_use == LIMIT
        for each in (claim, *claims):
            await each.abandon()
        await assert_all_slots_free(store)
        await store.aclose()

    run(main())


def test_a_failure_leaks_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        for store in (FileStore(tmp_path / "no" / "t"), SQLiteStore(tmp_path / "no" / "t.db")):
            for _ in range(2 * LIMIT):
                with pytest.raises(StoreUnavailable):
                    await store.claim("k", seen=None, timeout=0)
            assert (slots_of(store).in_use, slots_of(store).waiting) == (0, 0)
            await store.aclose()

    run(main())


def test_claims_of_a_closed_loop_hold_no_slot(store: Limited) -> None:
    """Neither do its waiters, even if all of them are still referenced."""
    loop = asyncio.new_event_loop()
    orphaned = loop.run_until_complete(fill_all_slots(store))
    waiting = [loop.create_task(claimed(store, f"w{n}")) for n in range(4)]
    loop.run_until_complete(queued(store, 4))
    left = asyncio.all_tasks(loop)
    loop.close()
    run(use_all_slots(store))
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    for timer in left.difference(waiting):
        timer.get_coro().close()  # type: ignore[union-attr] - else Python may warn about one that had not begun
    run(asyncio.wait_for(abandoned(store, "held-0"), 30))
    for claim in orphaned:
        run(claim.abandon())
    assert slots_of(store).in_use == 0


async def use_all_slots(store: Limited) -> None:
    await asyncio.gather(*[abandoned(store, f"free-{n}") for n in range(2 * LIMIT)])


def test_an_orphaned_claim_is_taken_over_and_counts_as_interrupted(
    store: Limited, make: Callable[[], Limited]
) -> None:
    """Its loop was closed by hand, and it is still referenced; this store object takes over, or another."""
    loop = asyncio.new_event_loop()
    orphaned = loop.run_until_complete(claimed(store, "k"))
    other = store if isinstance(store, MemoryStore) else make()
    assert other is store or not loop.is_closed()
    run(not_free(other))  # while its loop could still run
    loop.close()

    async def main() -> None:
        claim = await claimed(other, "k", timeout=0)
        assert slots_of(other).in_use == 1
        assert claim.interrupted is not None
        await orphaned.abandon()
        assert not await is_free(other, "k"), "an orphaned claim does not release the next one"
        record = await claim.commit(b"data")
        with pytest.raises(Superseded):
            await orphaned.commit(b"late")
        claim = await claimed(store, "k", record.version)
        assert claim.interrupted is None
        await claim.abandon()
        await other.aclose()

    run(main())


async def not_free(store: Limited) -> None:
    assert not await is_free(store, "k")


def test_two_loops_in_sequence_wait_for_slots(store: Limited) -> None:
    async def main() -> None:
        await asyncio.gather(*[abandoned(store, f"k{n}") for n in range(30)])

    run(main())
    run(main())


def test_waiting_for_a_slot_is_timed_by_the_given_clock() -> None:
    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        await fill_all_slots(store)
        waiter = asyncio.ensure_future(store.claim("k", seen=None, timeout=30))
        await clock.slept()
        clock.advance(30.1)
        with pytest.raises(ClaimTimeout):
            await waiter
        assert slots_of(store).waiting == 0
        assert store._waiters == {}

    run(main())


def test_the_child_of_a_fork_has_none_of_its_parents_slots(store: Limited) -> None:
    async def main() -> int:
        claims = await fill_all_slots(store)
        waiter = asyncio.ensure_future(claimed(store, "w"))
        await queued(store, 1)
        child = os.fork()
        if child == 0:
            ok = (slots_of(store).in_use, slots_of(store).waiting) == (0, 0)
            os._exit(0 if ok else 1)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        for claim in claims:
            await claim.abandon()
        await (await waiter).abandon()
        return os.waitstatus_to_exitcode(status)

    assert run(main()) == 0


def test_a_release_during_another_release_is_not_lost() -> None:
    """For example when a claim's `__del__` runs while a slot is granted."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        some = Slots()
        granted = [some.enqueue(loop) for _ in range(LIMIT)]
        waiting = [some.enqueue(loop) for _ in range(LIMIT)]
        with some._lock:  # held by another caller
            for slot in granted:
                slot.release()
            assert not waiting[0].granted
        some.enqueue(loop).release()
        assert [slot.granted for slot in (*granted, *waiting)] == [False] * LIMIT + [True] * LIMIT
        assert repr(waiting[0]) == "<Slot granted>"

    run(main())


PROGRAM = """
import asyncio, resource, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from tokensession.stores import open_store
async def one(store, key):
    claim = await store.claim(key, seen=None, timeout=120)
    await asyncio.sleep(0)
    await claim.commit(b"data")
async def main():
    store = open_store(sys.argv[1])
    await asyncio.gather(*[one(store, f"k{n}") for n in range(2000)])
    print(len(await store.keys()))
    await store.aclose()
asyncio.run(main())
"""


@pytest.mark.parametrize("name", ["memory", "file", "sqlite"])
def test_two_thousand_keys_at_once_need_few_descriptors(name: str, tmp_path: Path) -> None:
    url = {"memory": "memory:", "file": f"file://{tmp_path}/t", "sqlite": f"sqlite:///{tmp_path}/t.db"}[name]
    command = [sys.executable, "-c", PROGRAM, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert (done.stdout, done.stderr) == ("2000\n", "")
