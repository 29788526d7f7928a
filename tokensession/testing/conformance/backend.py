"""`Backend`, which describes a store to the conformance suite, and the helpers of the suite's tests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ...errors import ClaimTimeout, Superseded
from ...stores.protocol import Claim, Record, Store
from ..clock import FakeClock
from .peer import OPENER, Peer, peers

__all__ = [
    "Backend",
    "cancelled",
    "claimed",
    "interruption",
    "is_free",
    "needs",
    "newer",
    "outlast",
    "promise",
    "started",
    "stored",
    "superseded",
    "taking",
    "ticks",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Backend:
    """A set of records, empty at first, and what the tests can do to it from outside.

    Only `open` is required. If another field is None, the tests that need it are skipped.

    - `open()` returns a new store object over these records. If it accepts `clock=`, set `takes_clock`.
    - `url`: another process opens the same records with `opener(url)`. `opener` is "module:callable".
    - `root`: the directory that holds all files of the store, and nothing else.
    - `record_file(key)` is the file that holds the key's record; `lock_file(key)`, the one that its claim
      locks.
    - `damage(key)` makes the stored record unreadable.
    - `move(source, target)` puts the stored bytes of one key under another, in place of what is there.
    - `second_names()` gives the records other names, such as a hard link of their file or a link to their
      directory, and returns a store object for each.
    - `blocked(key)`: while this context is open, another program keeps the key's record locked against
      writing.
    - `names_holder`: a `ClaimTimeout` says which process holds the claim.
    - `patience`: seconds after which a test counts as hung.
    """

    open: Callable[..., Store]
    takes_clock: bool = False
    url: str | None = None
    opener: str = OPENER
    root: Path | None = None
    record_file: Callable[[str], Path] | None = None
    lock_file: Callable[[str], Path] | None = None
    damage: Callable[[str], None] | None = None
    move: Callable[[str, str], None] | None = None
    second_names: Callable[[], Sequence[Store]] | None = None
    blocked: Callable[[str], AbstractContextManager[None]] | None = None
    names_holder: bool = False
    patience: float = 60.0

    def run(self, promise: Callable[[Store], Awaitable[T]], *, store: Store | None = None) -> T:
        """Run the body of a test on a store, in a new event loop, and close the store."""

        async def guarded() -> T:
            async with asyncio.timeout(self.patience):
                async with self.opened(store) as other:
                    return await promise(other)

        return asyncio.run(guarded())

    @contextlib.asynccontextmanager
    async def opened(self, store: Store | None = None) -> AsyncIterator[Store]:
        """This store object, or a new one over the same records. Closed at the end."""
        store = store or self.open()
        try:
            yield store
        finally:
            await store.aclose()

    def timed(self) -> tuple[FakeClock, Store]:
        """A new store object over the same records, and its clock."""
        needs(self.takes_clock or None, "opened with a clock of the caller")
        clock = FakeClock()
        return clock, self.open(clock=clock)

    @contextlib.contextmanager
    def peers(self, count: int = 1) -> Iterator[list[Peer]]:
        """Other processes that have opened these records."""
        url = needs(self.url, "shared between processes")
        with peers(count, url, opener=self.opener, patience=self.patience) as started:
            yield started

    def names(self) -> set[str]:
        """The names of all files, relative to `root`."""
        root = needs(self.root, "kept in files")
        return {str(path.relative_to(root)) for path in root.rglob("*")}


def promise(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run this test in a new event loop, on a new `store` over the backend, closed at the end.

    `other` is one more store object, if the test takes it, and `clock` is the store's. pytest sees a plain
    function of the backend and of fixtures.
    """
    wanted = inspect.signature(test).parameters

    @functools.wraps(test)
    def run(self: object, backend: Backend, **fixtures: Any) -> None:
        async def body(store: Store) -> None:
            async with backend.opened() as other:
                given = {"backend": backend, "store": store, "other": other, "clock": clock} | fixtures
                await test(self, **{name: given[name] for name in wanted if name in given})

        clock, timed = backend.timed() if "clock" in wanted else (None, None)
        backend.run(body, store=timed)

    return taking(run, "backend", wanted)


def taking(
    run: Callable[..., None], first: str, wanted: Mapping[str, inspect.Parameter]
) -> Callable[..., None]:
    """Show this function to pytest as a method that takes `first` and the wanted fixtures."""
    names = ["self", first, *(name for name in wanted if name not in _PROVIDED)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    vars(run)["__signature__"] = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    return run


_PROVIDED = ("self", "backend", "store", "other", "clock", "disk")


def needs(what: T | None, capability: str) -> T:
    """The value, or a skip that names the missing capability."""
    if what is None:
        pytest.skip(f"this store is not {capability}")
    return what


async def ticks(count: int = 20) -> None:
    """Let the other tasks of this loop run for some steps."""
    for _ in range(count):
        await asyncio.sleep(0)


async def started(work: Awaitable[T], steps: int = 20) -> asyncio.Future[T]:
    """This work in a task of its own, after so many steps."""
    task = asyncio.ensure_future(work)
    await ticks(steps)
    return task


async def cancelled(work: Awaitable[T], steps: int = 20) -> asyncio.Future[T]:
    """This work, cancelled after so many steps. It has ended."""
    task = await started(work, steps)
    task.cancel()
    await asyncio.wait([task])
    return task


async def superseded(work: Awaitable[object]) -> Record | None:
    """The record with which this work is superseded."""
    with pytest.raises(Superseded) as caught:
        await work
    record: Record | None = caught.value.record
    return record


async def stored(store: Store, key: str) -> Record:
    """The record that is stored. Fails if there is none."""
    record = await store.load(key)
    assert record is not None
    return record


async def outlast(clock: FakeClock, work: Awaitable[T]) -> T:
    """The outcome of this work, while its clock runs fast."""
    task = asyncio.ensure_future(work)
    while not task.done():
        clock.advance(0.1)
        await ticks(1)
    return await task


async def claimed(store: Store, key: str, seen: str | None = None, timeout: float = 30.0) -> Claim:
    """The claim. Fails if there is a record that is newer than `seen`."""
    found = await store.claim(key, seen=seen, timeout=timeout)
    assert not isinstance(found, Record), f"a claim was expected, not {found!r}"
    return found


async def newer(store: Store, key: str, seen: str | None = None, timeout: float = 30.0) -> Record:
    """The record that is newer than `seen`. Fails if there is a claim instead."""
    found = await store.claim(key, seen=seen, timeout=timeout)
    assert isinstance(found, Record), f"a newer record was expected, not {found!r}"
    return found


async def interruption(store: Store, seen: str | None = None) -> float | None:
    """What the next holder of "k" learns of an interrupted one. It abandons its claim."""
    claim = await claimed(store, "k", seen)
    await claim.abandon()
    return claim.interrupted


async def is_free(store: Store, key: str, seen: str | None = None) -> bool:
    """Whether the claim is free: it is granted without waiting, and abandoned again."""
    try:
        found = await store.claim(key, seen=seen, timeout=0)
    except ClaimTimeout:
        return False
    assert not isinstance(found, Record), f"a claim was expected, not {found!r}"
    await found.abandon()
    return True
