"""Stores that break one promise each. They test the conformance suite, which must reject all of them.

Each table says which promises a store breaks, and `test_conformance_rejects_broken_stores.py` checks that the
suite notices. The stores here are about records, and are made from `MemoryStore`. Those in `claims` are
about claims; those in `files` need files, those in `databases` an SQLite database, and those in `processes`
several processes.

Each docstring names a mistake that a token store could make.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokensession.clock import Clock
from tokensession.errors import StoreUnavailable
from tokensession.stores.memory import MemoryClaim, MemoryStore
from tokensession.stores.protocol import ANY, AnyVersion, Record, new_version
from tokensession.testing.conformance.backend import Backend

__all__ = ["BROKEN_RECORDS", "Broken", "in_memory"]

Expect = str | AnyVersion | None


@dataclass(frozen=True)
class Broken:
    """A broken store, and the names of the tests that must fail on it."""

    name: str
    make_backend: Callable[[Path], Backend]
    promises: tuple[str, ...]


class VersionsAreCounters(MemoryStore):
    """Each key has a counter, which starts again when its record is deleted."""

    def _write(self, key: str, record: Record, expect: Expect) -> Record:
        stored = self._records.get(key)
        number = int(stored.version) + 1 if stored else 1
        return super()._write(key, Record(str(number), record.data), expect)


class PutIgnoresExpect(MemoryStore):
    """Of two concurrent sign-ins, neither learns of the other."""

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        return await super().put(key, data)


class DeleteIgnoresExpect(MemoryStore):
    """The loser of a race deletes the winner's record."""

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        return await super().delete(key)


class EveryDeleteReturnsTrue(MemoryStore):
    """Every caller gets True, as if it had deleted the record."""

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        await super().delete(key, expect=expect)
        return True


class _Renaming(MemoryStore):
    """Keys become names, and two keys can get the same name."""

    def name(self, key: str) -> str:
        return key

    async def load(self, key: str) -> Record | None:
        return await super().load(self.name(key))

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        return await super().put(self.name(key), data, expect=expect)


class KeysIgnoreCase(_Renaming):
    """`Tenant` and `tenant` share a token."""

    def name(self, key: str) -> str:
        return key.lower()


class KeysAreTruncated(_Renaming):
    """Keys are cut at the length of a file name."""

    def name(self, key: str) -> str:
        return key[:255]


class KeysAreUnsorted(MemoryStore):
    """`keys` returns them in the order of insertion."""

    async def keys(self) -> list[str]:
        return list(self._records)


class EmptyKeysAreAccepted(_Renaming):
    """All callers that forgot to set a key share a token."""

    def name(self, key: str) -> str:
        return key or "default"


class DataIsTruncated(MemoryStore):
    """Data is cut at the size of a column."""

    def _write(self, key: str, record: Record, expect: Expect) -> Record:
        return super()._write(key, Record(record.version, record.data[:65_535]), expect)


class ReprShowsTheData(MemoryStore):
    """A token can appear in every traceback."""

    def __repr__(self) -> str:
        return f"<MemoryStore { ({key: record.data for key, record in self._records.items()}) }>"


class BoundToItsFirstLoop(MemoryStore):
    """Its lock was made in one event loop, and fails in the next."""

    _bound: asyncio.AbstractEventLoop | None = None

    async def _wait_for_change(self, key: str, seconds: float) -> None:
        self._bound = self._bound or asyncio.get_running_loop()
        if self._bound is not asyncio.get_running_loop():
            raise RuntimeError("the lock is bound to a different event loop")
        await super()._wait_for_change(key, seconds)


class CannotReopen(MemoryStore):
    """A closed store cannot be used again, although its session can."""

    _closed = False

    async def aclose(self) -> None:
        self._closed = True

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        return await super().put(key, data, expect=expect)


class ClosingLeavesTasks(MemoryStore):
    """A heartbeat task keeps running."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        found = await super().claim(key, seen=seen, timeout=timeout)
        self._heartbeat = asyncio.ensure_future(asyncio.sleep(3600))
        return found


class PutStoresNothing(MemoryStore):
    """It returns a record that it has not stored."""

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        return Record(new_version(), data)


class AgeIsUnknown(MemoryStore):
    """A pause that was stored for a minute begins again with each process that reads it."""

    def _read(self, key: str) -> Record | None:
        return self._records.get(key)


class AgeFollowsTheWallClock(MemoryStore):
    """When the wall clock is set back, the record gets younger than it is."""

    def _read(self, key: str) -> Record | None:
        record = self._records.get(key)
        return record and Record(record.version, record.data, self._clock.wall() - self._written[key].wall)


class AgeFollowsTheBootClock(MemoryStore):
    """After a restart of the machine, an old record is new again."""

    def _read(self, key: str) -> Record | None:
        record = self._records.get(key)
        return record and Record(
            record.version, record.data, max(self._clock.boot() - self._written[key].boot, 0)
        )


class APickleHasTheRecords(MemoryStore):
    """A copy of the tokens goes wherever the pickle does, and a copied store grants claims of its own."""

    def __reduce__(self) -> Any:
        return type(self), (), {"_records": self._records, "_written": self._written}


class NoReasonForNoPickle(MemoryStore):
    """You learn that a lock cannot be pickled, and not what to do."""

    def __reduce__(self) -> Any:
        return type(self), (), {"_lock": threading.Lock()}


def in_memory(kind: type[MemoryStore], *promises: str) -> Broken:
    """A broken store of this class, and the promises that it breaks."""

    def make(directory: Path) -> Backend:
        store = kind()

        def open_with(clock: Clock | None = None) -> MemoryStore:
            store._clock = clock or store._clock
            return store

        return Backend(open=open_with, takes_clock=True, patience=0.5)

    return Broken(kind.__name__, make, promises)


_TABLE: list[tuple[type[MemoryStore], tuple[str, ...]]] = [
    (VersionsAreCounters, ("test_no_version_is_used_twice",)),
    (PutIgnoresExpect, ("test_put_replaces_only_the_expected_version",)),
    (DeleteIgnoresExpect, ("test_delete_removes_only_the_expected_version",)),
    (EveryDeleteReturnsTrue, ("test_one_of_many_concurrent_deletes_returns_true",)),
    (KeysIgnoreCase, ("test_every_text_except_the_empty_one_is_a_separate_key",)),
    (KeysAreTruncated, ("test_every_text_except_the_empty_one_is_a_separate_key",)),
    (KeysAreUnsorted, ("test_every_text_except_the_empty_one_is_a_separate_key",)),
    (EmptyKeysAreAccepted, ("test_an_empty_key_is_a_value_error",)),
    (DataIsTruncated, ("test_data_may_have_from_no_byte_to_one_mebibyte",)),
    (ReprShowsTheData, ("test_data_appears_in_no_repr_error_log_or_file_name",)),
    (BoundToItsFirstLoop, ("test_one_store_object_works_in_several_event_loops_in_turn",)),
    (CannotReopen, ("test_closing_twice_is_safe_and_a_later_call_reopens",)),
    (ClosingLeavesTasks, ("test_closing_leaves_no_task_thread_or_descriptor",)),
    (PutStoresNothing, ("test_load_returns_what_was_put",)),
    (AgeIsUnknown, ("test_a_record_says_how_old_it_is",)),
    (AgeFollowsTheWallClock, ("test_no_clock_makes_a_record_younger",)),
    (AgeFollowsTheBootClock, ("test_no_clock_makes_a_record_younger",)),
    (NoReasonForNoPickle, ("test_a_pickled_store_is_a_new_one_over_the_same_records",)),
    (APickleHasTheRecords, ("test_a_pickled_store_is_a_new_one_over_the_same_records",)),
]

BROKEN_RECORDS = [in_memory(kind, *promises) for kind, promises in _TABLE]
