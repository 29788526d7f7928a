"""What a store's own test file tells the conformance suite, and what the suite's tests are made of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from ...errors import ClaimTimeout
from ...stores.protocol import Claim, Record, Store
from .peer import OPENER, Peer, peers

__all__ = ["Backend", "claimed", "is_free", "needs", "newer", "ticks"]

T = TypeVar("T")


@dataclass(frozen=True)
class Backend:
    """One place where records are kept, empty at first, and what can be done to it from outside.

    What is None cannot be done to this kind of store; the tests that need it are skipped, and say so.

    `open`         makes a handle: a store over this place. If it takes `clock=`, say `takes_clock`.
    `url`          by which `opener` ("module:callable") opens the same place in another process
    `root`         the directory in which all its files are, and nothing else is
    `record_file`  the file in which a key's record is; `lock_file` the one that its claim locks
    `damage`       makes what is stored under a key unreadable
    `patience`     seconds after which a test counts as hung; no test measures time
    """

    open: Callable[..., Store]
    takes_clock: bool = False
    url: str | None = None
    opener: str = OPENER
    root: Path | None = None
    record_file: Callable[[str], Path] | None = None
    lock_file: Callable[[str], Path] | None = None
    damage: Callable[[str], None] | None = None
    patience: float = 60.0

    def run(self, promise: Callable[[Store], Awaitable[T]], *, store: Store | None = None) -> T:
        """Run a test's body on a store, in an event loop of its own. Closes the store."""

        async def guarded() -> T:
            async with asyncio.timeout(self.patience):
                async with self.handle(store) as opened:
                    return await promise(opened)

        return asyncio.run(guarded())

    @contextlib.asynccontextmanager
    async def handle(self, store: Store | None = None) -> AsyncIterator[Store]:
        """One more handle, closed at the end."""
        store = store or self.open()
        try:
            yield store
        finally:
            await store.aclose()

    @contextlib.contextmanager
    def peers(self, count: int = 1) -> Iterator[list[Peer]]:
        """So many other processes that have opened this place."""
        url = needs(self.url, "shared between processes")
        with peers(count, url, opener=self.opener, patience=self.patience) as started:
            yield started

    def names(self) -> set[str]:
        """The files that there are now, relative to `root`."""
        root = needs(self.root, "kept in files")
        return {str(path.relative_to(root)) for path in root.rglob("*")}


def needs(what: T | None, capability: str) -> T:
    """What it is, or a skip that names the missing capability."""
    if what is None:
        pytest.skip(f"this store is not {capability}")
    return what


async def ticks(count: int = 20) -> None:
    """Let the other tasks of this loop run until they wait."""
    for _ in range(count):
        await asyncio.sleep(0)


async def claimed(store: Store, key: str, seen: str | None = None, timeout: float = 30.0) -> Claim:
    """The claim, which nothing newer than `seen` forestalls."""
    found = await store.claim(key, seen=seen, timeout=timeout)
    assert not isinstance(found, Record), f"a claim was expected, not {found!r}"
    return found


async def newer(store: Store, key: str, seen: str | None = None, timeout: float = 30.0) -> Record:
    """The record that is newer than `seen`, without a claim."""
    found = await store.claim(key, seen=seen, timeout=timeout)
    assert isinstance(found, Record), f"a newer record was expected, not {found!r}"
    return found


async def is_free(store: Store, key: str, seen: str | None = None) -> bool:
    """Whether nobody holds the claim: it is granted without waiting, and abandoned again."""
    try:
        found = await store.claim(key, seen=seen, timeout=0)
    except ClaimTimeout:
        return False
    assert not isinstance(found, Record), f"a claim was expected, not {found!r}"
    await found.abandon()
    return True
