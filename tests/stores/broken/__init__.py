"""Stores that break one promise each. They test the conformance suite, which must reject all of them.

`breaks` says which promises a store breaks, and `test_conformance_rejects_broken_stores.py` checks that the
suite notices. The stores here are about records, and are made from `MemoryStore`. Those in `claims` are
about claims; those in `files` need files, those in `databases` an SQLite database, and those in `processes`
several processes.

Each docstring names a mistake that a token store could make.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import _backends

from tokensession.errors import StoreUnavailable
from tokensession.stores.memory import MemoryClaim, MemoryStore
from tokensession.stores.protocol import ANY, AnyVersion, Record, Store, new_version
from tokensession.testing.conformance.backend import Backend

Expect = str | AnyVersion | None
T = TypeVar("T")

BROKEN: list[tuple[Any, str]] = []
"""Each broken store, and the name of a test that must fail on it."""


def breaks(*promises: str) -> Callable[[type[T]], type[T]]:
    """Tests that must fail on this store."""

    def register(kind: type[T]) -> type[T]:
        BROKEN.extend((kind, promise) for promise in promises)
        return kind

    return register


def opened_by_peers(backend: Backend, kind: type[Store], path: Path) -> Backend:
    """The backend of a store at this path. A peer opens it with `open_broken`."""
    url = f"{kind.__module__}:{kind.__name__}:{path}"
    return dataclasses.replace(backend, url=url, opener="broken:open_broken")


def open_broken(url: str) -> Store:
    """The store that "module:ClassName:/path" names."""
    module, name, directory = url.split(":", 2)
    kind: Callable[[Path], Store] = getattr(import_module(module), name)
    return kind(Path(directory))


class BrokenMemoryStore(MemoryStore):
    """A `MemoryStore` that can have another class for its claims."""

    Claim: type[MemoryClaim] = MemoryClaim

    @classmethod
    def make_backend(cls, directory: Path) -> Backend:
        return dataclasses.replace(_backends.memory(directory, cls), patience=0.5)

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        found = await super().claim(key, seen=seen, timeout=timeout)
        if isinstance(found, MemoryClaim):
            found.__class__ = self.Claim
        return found


@breaks("test_no_version_is_used_twice")
class VersionsAreCounters(BrokenMemoryStore):
    """Each key has a counter, which starts again when its record is deleted."""

    def _write(self, key: str, record: Record, expect: Expect) -> Record:
        stored = self._records.get(key)
        number = int(stored.version) + 1 if stored else 1
        return super()._write(key, Record(str(number), record.data), expect)


@breaks("test_put_replaces_only_the_expected_version")
class PutIgnoresExpect(BrokenMemoryStore):
    """Of two concurrent sign-ins, neither learns of the other."""

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        return await super().put(key, data)


@breaks("test_delete_removes_only_the_expected_version")
class DeleteIgnoresExpect(BrokenMemoryStore):
    """The loser of a race deletes the winner's record."""

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        return await super().delete(key)


@breaks("test_one_of_many_concurrent_deletes_returns_true")
class EveryDeleteReturnsTrue(BrokenMemoryStore):
    """Every caller gets True, as if it had deleted the record."""

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        await super().delete(key, expect=expect)
        return True


class _Renaming(BrokenMemoryStore):
    """Keys become names, and two keys can get the same name."""

    def name(self, key: str) -> str:
        return key

    async def load(self, key: str) -> Record | None:
        return await super().load(self.name(key))

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        return await super().put(self.name(key), data, expect=expect)


@breaks("test_every_text_except_the_empty_one_is_a_separate_key")
class KeysIgnoreCase(_Renaming):
    """`Tenant` and `tenant` share a token."""

    def name(self, key: str) -> str:
        return key.lower()


@breaks("test_every_text_except_the_empty_one_is_a_separate_key")
class KeysAreTruncated(_Renaming):
    """Keys are cut at the length of a file name."""

    def name(self, key: str) -> str:
        return key[:255]


@breaks("test_every_text_except_the_empty_one_is_a_separate_key")
class KeysAreUnsorted(BrokenMemoryStore):
    """`keys` returns them in the order of insertion."""

    async def keys(self) -> list[str]:
        return list(self._records)


@breaks("test_a_key_that_is_not_valid_unicode_is_a_configuration_error")
class KeysAreRepaired(_Renaming):
    """What is not Unicode is replaced, and two keys share a token."""

    def name(self, key: str) -> str:
        return key.encode("utf-8", "replace").decode()


@breaks("test_an_empty_key_is_a_value_error")
class EmptyKeysAreAccepted(_Renaming):
    """All callers that forgot to set a key share a token."""

    def name(self, key: str) -> str:
        return key or "default"


@breaks("test_data_may_have_from_no_byte_to_one_mebibyte")
class DataIsTruncated(BrokenMemoryStore):
    """Data is cut at the size of a column."""

    def _write(self, key: str, record: Record, expect: Expect) -> Record:
        return super()._write(key, Record(record.version, record.data[:65_535]), expect)


@breaks("test_data_appears_in_no_repr_error_log_or_file_name")
class ReprShowsTheData(BrokenMemoryStore):
    """A token can appear in every traceback."""

    def __repr__(self) -> str:
        return f"<MemoryStore { ({key: record.data for key, record in self._records.items()}) }>"


@breaks("test_one_store_object_works_in_several_event_loops_in_turn")
class BoundToItsFirstLoop(BrokenMemoryStore):
    """Its lock was made in one event loop, and fails in the next."""

    _bound: asyncio.AbstractEventLoop | None = None

    async def _wait_for_change(self, key: str, seconds: float) -> None:
        self._bound = self._bound or asyncio.get_running_loop()
        if self._bound is not asyncio.get_running_loop():
            raise RuntimeError("the lock is bound to a different event loop")
        await super()._wait_for_change(key, seconds)


@breaks("test_closing_twice_is_safe_and_a_later_call_reopens")
class CannotReopen(BrokenMemoryStore):
    """A closed store cannot be used again, although its session can."""

    _closed = False

    async def aclose(self) -> None:
        self._closed = True

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        if self._closed:
            raise StoreUnavailable("The store is closed.")
        return await super().put(key, data, expect=expect)


@breaks("test_closing_leaves_no_task_thread_or_descriptor")
class ClosingLeavesTasks(BrokenMemoryStore):
    """A heartbeat task keeps running."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        found = await super().claim(key, seen=seen, timeout=timeout)
        self._heartbeat = asyncio.ensure_future(asyncio.sleep(3600))
        return found


@breaks("test_load_returns_what_was_put")
class PutStoresNothing(BrokenMemoryStore):
    """It returns a record that it has not stored."""

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        return Record(new_version(), data)


@breaks("test_a_record_says_how_old_it_is")
class AgeIsUnknown(BrokenMemoryStore):
    """A pause that was stored for a minute begins again with each process that reads it."""

    def _read(self, key: str) -> Record | None:
        return self._records.get(key)


@breaks("test_no_clock_makes_a_record_younger")
class AgeFollowsTheWallClock(BrokenMemoryStore):
    """When the wall clock is set back, the record gets younger than it is."""

    def _read(self, key: str) -> Record | None:
        record = self._records.get(key)
        return record and Record(record.version, record.data, self._clock.wall() - self._written[key].wall)


@breaks("test_no_clock_makes_a_record_younger")
class AgeFollowsTheBootClock(BrokenMemoryStore):
    """After a restart of the machine, an old record is new again."""

    def _read(self, key: str) -> Record | None:
        record = self._records.get(key)
        return record and Record(
            record.version, record.data, max(self._clock.boot() - self._written[key].boot, 0)
        )


@breaks("test_a_pickled_store_is_a_new_one_over_the_same_records")
class APickleHasTheRecords(BrokenMemoryStore):
    """A copy of the tokens goes wherever the pickle does, and a copied store grants claims of its own."""

    def __reduce__(self) -> Any:
        return type(self), (), {"_records": self._records, "_written": self._written}


@breaks("test_a_pickled_store_is_a_new_one_over_the_same_records")
class NoReasonForNoPickle(BrokenMemoryStore):
    """You learn that a lock cannot be pickled, and not what to do."""

    def __reduce__(self) -> Any:
        return type(self), (), {"_lock": threading.Lock()}
