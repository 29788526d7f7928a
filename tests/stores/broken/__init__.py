"""Stores that break one promise each. The conformance suite must reject every one of them.

A test that nothing fails proves nothing. Each table says which promise each of its stores breaks, and
tests/stores/test_conformance_rejects_broken_stores.py that the suite notices. These are about
records, and made of `MemoryStore`; `broken_claims` has those about claims, `broken_files` those that
need files, and `broken_processes` those that need several processes.

Each docstring is a mistake that somebody's token store has made, or would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokensession.errors import StoreUnavailable
from tokensession.stores._local.slots import Slot
from tokensession.stores.protocol import ANY, AnyVersion, Record, new_version
from tokensession.stores.memory import MemoryClaim, MemoryStore
from tokensession.testing.conformance.backend import Backend

__all__ = ["BROKEN_RECORDS", "Broken", "in_memory"]

Expect = str | AnyVersion | None


@dataclass(frozen=True)
class Broken:
    """A broken store, and the promises (names of tests) that it breaks."""

    name: str
    make_backend: Callable[[Path], Backend]
    promises: tuple[str, ...]


class VersionsCount(MemoryStore):
    """A counter per key, which begins again when its record is deleted."""

    def _write(self, key: str, record: Record, expect: Expect) -> Record:
        stored = self._records.get(key)
        number = int(stored.version) + 1 if stored else 1
        return super()._write(key, Record(str(number), record.data), expect)


class PutIgnoresExpect(MemoryStore):
    """Of two who sign in at once, neither learns of the other."""

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        return await super().put(key, data)


class DeleteIgnoresExpect(MemoryStore):
    """The loser of a race deletes the winner's record."""

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        return await super().delete(key)


class DeletionIsATruth(MemoryStore):
    """Everybody who deletes is told that he did it."""

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        await super().delete(key, expect=expect)
        return True


class _Renaming(MemoryStore):
    """Keys become names, and two keys one name."""

    def name(self, key: str) -> str:
        return key

    async def load(self, key: str) -> Record | None:
        return await super().load(self.name(key))

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        return await super().put(self.name(key), data, expect=expect)


class KeysLoseTheirCase(_Renaming):
    """`Tenant` and `tenant` share a token."""

    def name(self, key: str) -> str:
        return key.lower()


class KeysAreCut(_Renaming):
    """At the length of a file name."""

    def name(self, key: str) -> str:
        return key[:255]


class KeysAreUnordered(MemoryStore):
    """In the order of their hashes, say."""

    async def keys(self) -> list[str]:
        return list(self._records)


class EmptyKeysAreKeys(_Renaming):
    """Everybody who forgot to set one shares a token."""

    def name(self, key: str) -> str:
        return key or "default"


class DataIsCut(MemoryStore):
    """At the size of a column."""

    def _write(self, key: str, record: Record, expect: Expect) -> Record:
        return super()._write(key, Record(record.version, record.data[:65_535]), expect)


class ReprShowsTheData(MemoryStore):
    """A token in every traceback."""

    def __repr__(self) -> str:
        return f"<MemoryStore { ({key: record.data for key, record in self._records.items()}) }>"


class BoundToItsFirstLoop(MemoryStore):
    """Its lock was made in one event loop, and fails in the next."""

    _bound: asyncio.AbstractEventLoop | None = None

    async def _changed(self, key: str, seconds: float, slot: Slot | None = None) -> None:
        self._bound = self._bound or asyncio.get_running_loop()
        if self._bound is not asyncio.get_running_loop():
            raise RuntimeError("the lock is bound to a different event loop")
        await super()._changed(key, seconds, slot)


class ClosedForGood(MemoryStore):
    """What was closed cannot be used again, though its session is."""

    _closed = False

    async def aclose(self) -> None:
        self._closed = True

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        return await super().put(key, data, expect=expect)


class TasksStayBehind(MemoryStore):
    """A heartbeat that nobody stops."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        found = await super().claim(key, seen=seen, timeout=timeout)
        self._heartbeat = asyncio.ensure_future(asyncio.sleep(3600))
        return found


class PutLosesTheRecord(MemoryStore):
    """It says that it has stored it."""

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        return Record(new_version(), data)


def in_memory(kind: type[MemoryStore], *promises: str) -> Broken:
    """This kind of store, which breaks these promises."""

    def make(directory: Path) -> Backend:
        store = kind()
        return Backend(open=lambda: store, patience=0.5)

    return Broken(kind.__name__, make, promises)


_TABLE: list[tuple[type[MemoryStore], tuple[str, ...]]] = [
    (VersionsCount, ("test_no_version_is_ever_used_again",)),
    (PutIgnoresExpect, ("test_a_put_replaces_only_what_it_expects",)),
    (DeleteIgnoresExpect, ("test_a_delete_forgets_only_what_it_expects",)),
    (DeletionIsATruth, ("test_of_many_who_delete_at_once_one_did_it",)),
    (KeysLoseTheirCase, ("test_every_text_but_the_empty_one_is_a_key_of_its_own",)),
    (KeysAreCut, ("test_every_text_but_the_empty_one_is_a_key_of_its_own",)),
    (KeysAreUnordered, ("test_every_text_but_the_empty_one_is_a_key_of_its_own",)),
    (EmptyKeysAreKeys, ("test_an_empty_key_is_refused",)),
    (DataIsCut, ("test_data_is_kept_from_no_byte_to_a_mebibyte",)),
    (ReprShowsTheData, ("test_nothing_that_is_shown_has_the_data_in_it",)),
    (BoundToItsFirstLoop, ("test_one_store_object_serves_one_event_loop_after_another",)),
    (ClosedForGood, ("test_closing_twice_is_safe_and_a_later_call_reopens",)),
    (TasksStayBehind, ("test_closing_leaves_no_task_no_thread_and_no_handle",)),
    (PutLosesTheRecord, ("test_what_was_put_is_what_is_loaded",)),
]

BROKEN_RECORDS = [in_memory(kind, *promises) for kind, promises in _TABLE]
