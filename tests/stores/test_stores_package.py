"""`tokensession.stores`: its public names, and when it imports a driver."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from _store_helpers import Local, cancelled, gated, run

from tokensession import stores
from tokensession.stores import FileStore, MemoryStore, SQLiteStore, Store
from tokensession.testing.conformance.backend import claimed, newer, ticks

DRIVERS = {"sqlite3", "sqlite_utils", "redis", "psycopg", "asyncpg", "keyring", "cryptography"}


@pytest.mark.parametrize(
    ("statement", "drivers"),
    [
        ("", set()),
        ("stores.MemoryStore()", set()),
        ("stores.FileStore('tokens')", set()),
        ("stores.open_store('memory:')", set()),
        ("stores.open_store('file:///tokens')", set()),
        ("stores.open_store('sqlite:///tokens.db')", {"sqlite3"}),
        ("stores.SQLiteStore('tokens.db')", {"sqlite3"}),
    ],
)
def test_a_driver_is_imported_with_the_first_use_of_its_store(statement: str, drivers: set[str]) -> None:
    program = f"import sys, json; from tokensession import stores; {statement or 'pass'}"
    program += "; print(json.dumps(list(sys.modules)))"
    # Coverage would import sqlite3.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert DRIVERS & set(json.loads(done.stdout)) == drivers


def test_the_public_names_are_sorted_and_exist() -> None:
    assert stores.__all__ == sorted(stores.__all__) == dir(stores)
    for name in stores.__all__:
        assert getattr(stores, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'OtherStore'"):
        _ = stores.OtherStore  # type: ignore[attr-defined]


MAKE = {
    "memory": lambda path: MemoryStore(),
    "file": lambda path: FileStore(path / "tokens"),
    "sqlite": lambda path: SQLiteStore(path / "tokens"),
}


@pytest.fixture(params=MAKE)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    store = MAKE[request.param](tmp_path)
    yield store
    run(store.aclose())


with_a_thread = pytest.mark.parametrize("store", ["file", "sqlite"], indirect=True)


def test_making_a_store_and_reading_create_nothing(store: Store, tmp_path: Path) -> None:
    assert isinstance(store, Store)
    assert run(store.load("k")) is None
    assert run(store.keys()) == []
    assert list(tmp_path.iterdir()) == []


def test_every_store_works_under_uvloop_and_asyncio_in_turn(store: Store) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def use(seen: str | None) -> str:
        claim = await claimed(store, "k", seen)
        waiters = [asyncio.ensure_future(newer(store, "k", seen)) for _ in range(10)]
        cancelled = asyncio.ensure_future(store.claim("k", seen=seen, timeout=30))
        await ticks()
        cancelled.cancel()
        record = await claim.commit(b"data")
        assert await asyncio.gather(*waiters) == [record] * 10
        return record.version

    seen = None
    for factory in (uvloop.new_event_loop, None, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            seen = runner.run(asyncio.wait_for(use(seen), 60))


def test_async_with_enters_the_store_itself_and_closes_it(store: Any) -> None:
    """Leaving it ends the thread of the store, also with an error. A later call reopens the store."""

    async def fail_inside() -> None:
        async with store:
            await store.load("k")
            raise RuntimeError("the caller's")

    async def main() -> None:
        before = set(threading.enumerate())
        async with store as entered:
            assert entered is store
            record = await store.put("k", b"data")
        assert set(threading.enumerate()) <= before
        with pytest.raises(RuntimeError, match="the caller's"):
            await fail_inside()
        assert set(threading.enumerate()) <= before
        assert await store.load("k") == record

    run(main())


@with_a_thread
def test_a_cancelled_scope_does_not_cut_closing_short(store: Local) -> None:
    """The store closes after its last job."""

    async def main() -> None:
        done = list[str]()
        await store.put("k", b"data")
        gate = gated(store._worker)
        store._worker.post(lambda: done.append("last job"))

        async def open_gate() -> None:
            await ticks(50)
            gate.set()

        opening = asyncio.create_task(open_gate())
        with anyio.move_on_after(0) as scope:
            async with store:
                await anyio.sleep_forever()
        await opening
        assert scope.cancelled_caught
        assert done == ["last job"]
        assert repr(store).endswith(" closed>")

    run(main())


@with_a_thread
def test_closing_after_a_native_cancellation_continues(store: Local) -> None:
    """`task.cancel()` may cut closing short, and a second call finishes it."""
    done = list[str]()
    run(store.put("k", b"data"))
    gate = gated(store._worker)
    store._worker.post(lambda: done.append("last job"))
    closing = run.start(store.aclose())
    run(cancelled(closing))
    assert done == []
    gate.set()
    run(store.aclose())
    assert done == ["last job"]
    assert repr(store).endswith(" closed>")


def test_a_store_without_async_with_is_a_store() -> None:
    """A third-party store needs only the methods of the `Store` protocol."""

    class Plain:
        def __init__(self, inner: MemoryStore) -> None:
            self.load, self.claim, self.put = inner.load, inner.claim, inner.put
            self.delete, self.keys, self.aclose = inner.delete, inner.keys, inner.aclose

    assert not hasattr(Plain, "__aenter__")
    assert isinstance(Plain(MemoryStore()), Store)
