"""100,000 keys: the cost of one does not depend on the others. Counted, never timed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _rig import Rig, run, success

from tokensession import AiohttpTransport, ManagedSource
from tokensession._refresh.state import Now, TokenState, encode
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import FileStore, MemoryStore, SQLiteStore
from tokensession.stores.protocol import Record, Store, new_version
from tokensession.testing import FakeClock
from tokensession.token import Token

MANY = 100_000


def lines_of(work: Callable[[Any], Any], argument: Any) -> int:
    """How many lines and calls of Python this runs. A loop over all keys would show."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    gc.collect()
    gc.disable()  # otherwise finalisers of other objects would run here and be counted
    sys.settrace(trace)
    try:
        work(argument)
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def drive(coroutine: Any) -> Any:
    """Run a coroutine that never suspends."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return done.value.value


async def use(store: Store, key: str) -> None:
    """The store calls of one refresh."""
    record = await store.load(key)
    assert record is not None
    claim = await store.claim(key, seen=record.version, timeout=0)
    assert not isinstance(claim, Record)
    await claim.commit(record.data)


def test_f44_memory_finds_a_key_in_the_same_number_of_steps_among_100_000() -> None:
    """Loading, claiming and committing run the same lines with 100,000 keys as with ten."""
    steps = []

    async def main() -> None:
        for keys in (10, MANY):
            store = MemoryStore(clock=FakeClock())
            for number in range(keys):
                await store.put(f"tenant-{number}", b"data")
            await store.put("tenant-last", b"data")
            drive(use(store, "tenant-last"))  # what is done only once is done now
            steps.append(lines_of(drive, use(store, "tenant-last")))

    run(main)
    assert steps[0] == steps[1] > 20


def test_f44_sqlite_finds_a_key_by_its_index_among_100_000(tmp_path: Path) -> None:
    """Each statement of a refresh searches the index, with 100,000 keys in about as many steps as ten."""
    steps: list[int] = []

    async def main() -> None:
        store = SQLiteStore(tmp_path / "tokens.db", clock=FakeClock())
        for keys in (10, MANY):
            await store.put("tenant-7", b"data")
            with contextlib.closing(sqlite3.connect(tmp_path / "tokens.db")) as direct:
                rows = ((f"tenant-{number}", new_version(), b"data") for number in range(keys))
                direct.executemany("INSERT OR IGNORE INTO tokens (key, version, data) VALUES (?, ?, ?)", rows)
                direct.commit()
            await use(store, "tenant-7")
            counted, statements = await watched(store, "tenant-7")
            steps.append(counted)
            with contextlib.closing(sqlite3.connect(tmp_path / "tokens.db")) as direct:
                for statement in statements:
                    if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
                        plan = direct.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                        assert not any("SCAN" in str(row) for row in plan), (statement, plan)
            assert any("SELECT" in statement for statement in statements)
        await store.aclose()

    run(main)
    assert 0 < steps[1] <= steps[0] * 1.2, "the index is one or two levels deeper"


async def watched(store: SQLiteStore, key: str) -> tuple[int, list[str]]:
    """The steps of SQLite's virtual machine for one refresh, and its statements about tokens."""
    count, statements = 0, list[str]()
    connection: Any = store._database._connection

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    connection.set_progress_handler(step, 1)
    connection.set_trace_callback(lambda text: statements.append(text) if "tokens" in text else None)
    await use(store, key)
    connection.set_progress_handler(None, 0)
    connection.set_trace_callback(None)
    return count, [text for text in statements if "sqlite_master" not in text]


def test_f44_the_file_store_opens_only_the_file_of_the_key(tmp_path: Path) -> None:
    """Reading one key runs the same lines with 300 files in the directory as with ten."""
    steps: list[int] = []

    async def main() -> None:
        store = FileStore(tmp_path / "tokens", clock=FakeClock())
        for number in range(10):
            await store.put(f"tenant-{number}", b"data")
            await use(store, f"tenant-{number}")
        steps.append(lines_of(store._files.read, "tenant-7"))
        for number in range(290):  # as the files of other keys
            (tmp_path / "tokens" / f"{number:064x}.token").write_bytes(b"")
        steps.append(lines_of(store._files.read, "tenant-7"))
        await store.aclose()

    run(main)
    assert steps[0] == steps[1] > 5


def test_f44_a_refresh_leaves_only_its_record_in_the_store() -> None:
    """After ten thousand refreshes under as many keys, no claim, waiter or mark is left."""

    async def main() -> None:
        store = MemoryStore(clock=FakeClock())
        for number in range(10_000):
            claim = await store.claim(f"tenant-{number}", seen=None, timeout=0)
            assert not isinstance(claim, Record)
            await claim.commit(b"data")
        assert repr(store) == "<MemoryStore 10000 records, 0 claims>"
        assert not store._waiters
        assert not store._interrupted

    run(main)


@pytest.mark.parametrize(
    ("serving", "few", "many"), [(False, 1000, 10_000), (True, 200, 2000)], ids=["new", "serving"]
)
def test_f44_each_of_many_sources_costs_at_most_2_5_kib(serving: bool, few: int, many: int) -> None:
    """Each of 1,000 or 10,000 idle sources costs at most 2.5 KiB, its token included."""

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        store = MemoryStore(clock=clock)
        rig = Rig(store=store, clock=clock)
        assert rig.provider.credential is not None
        token = Token("a" * 40, clock.wall(), 3600.0, "r" * 40)
        state = TokenState(configured=rig.provider.credential.fingerprint, token=token, obtained=clock.boot())
        data = encode(state, Now(clock.wall(), clock.boot()))
        keys = [f"tenant-{number}" for number in range(few + many)]
        for key in keys if serving else []:
            await store.put(key, data)

        async def cost(names: list[str]) -> float:
            gc.collect()
            tracemalloc.start()
            sources = [
                ManagedSource(rig.provider, rig.transport, store=store, key=key, clock=clock) for key in names
            ]
            for source in sources if serving else []:
                await source.token()
            gc.collect()
            each = tracemalloc.get_traced_memory()[0] / len(names)
            tracemalloc.stop()
            assert (sources[-1].snapshot().token is not None) is serving
            return each

        first, then = await cost(keys[:few]), await cost(keys[few:])
        assert then <= 2560, f"{then:.0f} bytes"
        assert then <= first * 1.1, f"{first:.0f} bytes each, and then {then:.0f}"

    run(main)


class SlowServer(AiohttpTransport):
    """Takes ten seconds for each token request. What is reserved is what the real transport reserves."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock
        self.running = 0

    async def send(self, request: TokenRequest, *, on_sending: Any = None, **_times: float) -> TokenResponse:
        await on_sending()
        self.running += 1
        assert self.running <= 100
        await self._clock.sleep(10)
        self.running -= 1
        return success(1)


def test_f28_f44_k31_a_thousand_cold_keys_get_their_tokens_from_a_slow_server() -> None:
    """A hundred at a time. Waiting for a connection is not waiting for a claim, and costs callers no time."""

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        transport, store = SlowServer(clock), MemoryStore(clock=clock)
        rig = Rig(store=store, clock=clock)
        sources = [
            ManagedSource(rig.provider, transport, store=store, key=f"tenant-{number}", clock=clock)
            for number in range(1000)
        ]
        callers = asyncio.gather(*(source.token() for source in sources))
        for _ in range(10):
            while transport.running < 100:
                await asyncio.sleep(0)
            clock.advance(10)
            await asyncio.sleep(0)
        assert {token.access_token for token in await callers} == {"access-1"}
        assert len(await store.keys()) == 1000

    run(main)
