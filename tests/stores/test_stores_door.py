"""The door of the stores, and what passes through it when."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokensession import stores
from tokensession.stores import FileStore, MemoryStore, SQLiteStore, Store, open_store
from tokensession.testing.conformance.backend import claimed, newer, ticks

DRIVERS = {"sqlite3", "sqlite_utils", "redis", "psycopg", "asyncpg", "keyring", "cryptography"}


def loaded_by(statement: str) -> set[str]:
    program = f"import sys, json; from tokensession import stores; {statement or 'pass'}"
    program += "; print(json.dumps(list(sys.modules)))"
    # Coverage would begin with a database of its own.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env
    )
    return DRIVERS & set(json.loads(done.stdout))


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
def test_a_driver_is_loaded_when_its_store_is_mentioned(statement: str, drivers: set[str]) -> None:
    assert loaded_by(statement) == drivers


def test_the_door_is_sorted_and_true() -> None:
    assert stores.__all__ == sorted(stores.__all__) == dir(stores)
    for name in stores.__all__:
        assert getattr(stores, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'RedStore'"):
        _ = stores.RedStore  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["memory", "file", "sqlite"])
def test_every_store_is_a_store_and_touches_nothing_when_it_is_made(name: str, tmp_path: Path) -> None:
    url = {"memory": "memory:", "file": f"file://{tmp_path}/t", "sqlite": f"sqlite:///{tmp_path}/t.db"}[name]
    store = open_store(url)
    assert isinstance(store, Store)
    asyncio.run(store.aclose())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["memory", "file", "sqlite"])
def test_every_store_works_under_uvloop_and_asyncio_in_turn(name: str, tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")
    made = {
        "memory": MemoryStore,
        "file": lambda: FileStore(tmp_path / "t"),
        "sqlite": lambda: SQLiteStore(tmp_path / "t.db"),
    }
    store = made[name]()

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
    asyncio.run(store.aclose())
