"""One store's records, and a new store object for each process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from _rig import state_of

from tokensession._refresh.state import TokenState
from tokensession.clock import Clock
from tokensession.stores import FileStore, MemoryStore, SQLiteStore
from tokensession.stores.protocol import Record, Store

STORES = pytest.mark.parametrize("kind", ["memory", "file", "sqlite"])


class SharedStore:
    """The records of one kind of store in the directory `path`, which it makes.

    All processes share the one memory store.
    """

    def __init__(self, kind: str, path: Path, clock: Clock) -> None:
        self.kind = kind
        self.clock = clock
        path.mkdir(exist_ok=True)
        memory = MemoryStore(clock=clock)
        self._open: dict[str, Callable[[], Store]] = {
            "memory": lambda: memory,
            "file": lambda: FileStore(path / "tokens", clock=clock),
            "sqlite": lambda: SQLiteStore(path / "tokens.db", clock=clock),
        }

    def open(self) -> Store:
        """A new store object."""
        return self._open[self.kind]()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Store, Record | None]]:
        """A new store object inside a block, and the record that it has."""
        async with aclosing(self.open()) as store:
            yield store, await store.load("account")

    async def stored(self) -> TokenState | None:
        """The stored state, read by a new store object."""
        async with self.opened() as (_, record):
            return state_of(record, self.clock) if record else None

    async def interrupted(self) -> float | None:
        """How long ago a holder began that never ended its claim, in seconds.

        Raises `ClaimTimeout` if the claim is not free.
        """
        async with self.opened() as (store, record):
            claim = await store.claim("account", seen=record.version if record else None, timeout=0)
            assert not isinstance(claim, Record)
            interrupted = claim.interrupted
            await claim.abandon()
            return interrupted

    async def copy(self) -> bytes:
        """What is stored now, as a backup keeps it."""
        async with self.opened() as (_, record):
            assert record is not None
            return record.data

    async def go_back(self, copy: bytes) -> None:
        """Put an older copy of the record back: a restored backup, a failover to a replica."""
        async with self.opened() as (store, _):
            await store.put("account", copy)

    async def lose(self) -> None:
        """Lose the record: a cache without persistence restarts, a volume is replaced."""
        async with self.opened() as (store, _):
            await store.delete("account")
