"""One place for records, and new store objects over it, as each new process makes its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tokensession._refresh.state import TokenState, decode
from tokensession.stores import FileStore, MemoryStore, SQLiteStore
from tokensession.stores.protocol import Record, Store
from tokensession.testing import FakeClock

STORES = pytest.mark.parametrize("kind", ["memory", "file", "sqlite"])


class Shelf:
    """The records of one kind of store under `path`, which is made. Memory has one object for all."""

    def __init__(self, kind: str, path: Path, clock: FakeClock) -> None:
        self.kind = kind
        self.clock = clock
        path.mkdir(exist_ok=True)
        memory = MemoryStore(clock=clock)
        self._kinds: dict[str, Callable[[], Store]] = {
            "memory": lambda: memory,
            "file": lambda: FileStore(path / "tokens", clock=clock),
            "sqlite": lambda: SQLiteStore(path / "tokens.db", clock=clock),
        }

    def open(self) -> Store:
        """A store object of one's own."""
        return self._kinds[self.kind]()

    async def stored(self) -> TokenState | None:
        """What is stored, read by a store object that has never seen it."""
        store = self.open()
        record = await store.load("account")
        await store.aclose()
        return decode(record.data) if record else None

    async def mark(self) -> float | None:
        """The mark of a holder that never ended. Raises ClaimTimeout if the claim is not free, now."""
        store = self.open()
        record = await store.load("account")
        claim = await store.claim("account", seen=record.version if record else None, timeout=0)
        assert not isinstance(claim, Record)
        interrupted = claim.interrupted
        await claim.abandon()
        await store.aclose()
        return interrupted
