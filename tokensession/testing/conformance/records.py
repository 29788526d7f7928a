"""Promises about records. A part of `StoreConformance`."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
import unicodedata
from pathlib import Path

import pytest

from ...errors import ClaimTimeout, ConfigurationError, StoreCorrupt, StoreError, Superseded
from ...stores.protocol import Record, Store
from ..clock import FakeClock
from .backend import (
    Backend,
    cancelled,
    claimed,
    is_free,
    needs,
    newer,
    promise,
    started,
    stored,
    superseded,
    ticks,
)
from .peer import UNPICKLE, peers

__all__ = ["RecordPromises"]

SECRET = b"s3cr3t-refresh-token"

# Each must be a separate key. File systems reject, shorten or fold some of them, or confuse them.
HOSTILE_KEYS = [
    "plain",
    "Plain",
    " plain",
    "plain ",
    "plain.",
    "pläin",
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    "ß",
    "ss",
    "🔑" * 100,
    "..",
    ".",
    "/",
    "../../etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "a",
    "a\n",
    "CON",
    "con",
    "*",
    "%",
    "'; DROP TABLE tokens; --",
    "k" * 10_240,
    "k" * 10_239 + "K",
    "k" * 255,
    "k" * 256,
]


class RecordPromises:
    """Reading, writing, versions, keys and closing."""

    @promise
    async def test_load_returns_what_was_put(self, backend: Backend, store: Store, other: Store) -> None:
        """True for the same store object and for another; before the put there is None."""
        assert await store.load("k") is None
        record = await store.put("k", b"data")
        assert record.data == b"data"
        assert await store.load("k") == await other.load("k") == record
        assert 0 <= (await newer(store, "k")).age < backend.patience

    @promise
    async def test_a_record_says_how_old_it_is(self, store: Store, clock: FakeClock) -> None:
        """In seconds, wherever it is read; 0 when it is written. The age does not count in a comparison."""
        first = await store.put("k", b"1")
        assert first.age == 0
        clock.advance(7)
        found = await store.load("k")
        assert found == first
        claim = await claimed(store, "k", first.version)
        with pytest.raises(Superseded) as caught:
            await store.put("k", b"2", expect=None)
        read = [found, await newer(store, "k"), claim.current, caught.value.record]
        assert [record and record.age for record in read] == [pytest.approx(7)] * 4
        second = await claim.commit(b"2")
        assert second.age == 0
        clock.advance(3)
        assert (await newer(store, "k")).age == pytest.approx(3)

    def test_no_clock_makes_a_record_younger(self, backend: Backend) -> None:
        """The wall clock may be set back, and the boot clock starts again. Never is an age negative."""
        needs(backend.takes_clock or None, "opened with a clock of the caller")
        wall, boot = 1_750_000_000.0, 5_000.0

        def at(wall: float, boot: float) -> Store:
            return backend.open(clock=FakeClock(wall=wall, boot=boot))

        async def write(store: Store) -> None:
            await store.put("k", b"data")

        async def read(store: Store) -> float:
            return (await newer(store, "k")).age

        backend.run(write, store=at(wall, boot))
        assert backend.run(read, store=at(wall - 3600, boot + 7)) == pytest.approx(7)
        assert backend.run(read, store=at(wall + 9, 1.0)) == pytest.approx(9)
        assert backend.run(read, store=at(wall - 3600, 1.0)) == 0

    @promise
    async def test_put_replaces_only_the_expected_version(self, store: Store) -> None:
        """`expect` is a version, None for "no record", or ANY; the error carries the stored record."""
        first = await store.put("k", b"1", expect=None)
        assert await superseded(store.put("k", b"2", expect=None)) == first
        second = await store.put("k", b"2", expect=first.version)
        assert await superseded(store.put("k", b"3", expect=first.version)) == second
        assert await store.load("k") == second
        assert await superseded(store.put("other", b"1", expect=first.version)) is None

    @promise
    async def test_delete_removes_only_the_expected_version(self, store: Store) -> None:
        """True if there was a record, False if there was none, `Superseded` if it is another version."""
        assert await store.delete("k") is False
        first = await store.put("k", b"1")
        second = await store.put("k", b"2")
        assert await superseded(store.delete("k", expect=first.version)) == second == await store.load("k")
        assert await store.delete("k", expect=second.version) is True
        assert await store.load("k") is None
        assert await store.delete("k", expect=second.version) is False

    @promise
    async def test_one_of_many_concurrent_deletes_returns_true(self, store: Store, other: Store) -> None:
        """The others raise nothing, whether or not they expect a version."""
        for round_ in range(5):
            record = await store.put("k", b"data")
            expected = {"expect": record.version} if round_ % 2 else {}
            deleted = await asyncio.gather(*(each.delete("k", **expected) for each in (store, other) * 4))
            assert sorted(deleted) == [False] * 7 + [True]

    @promise
    async def test_no_version_is_used_twice(self, backend: Backend, store: Store) -> None:
        """Not for the same data, not for another key, not after a delete or a restart."""
        versions = []
        for _ in range(3):
            versions.append((await store.put("k", b"same")).version)
            await store.delete("k")
            versions.append((await store.put("j", b"same")).version)
            claim = await claimed(store, "k")
            versions.append((await claim.commit(b"same")).version)
            await store.delete("k")
            await store.aclose()
            async with backend.opened() as restarted:
                versions.append((await restarted.put("k", b"same")).version)
                await restarted.delete("k")
        assert len(set(versions)) == len(versions)
        assert all(isinstance(version, str) and version for version in versions)

    @promise
    async def test_every_text_except_the_empty_one_is_a_separate_key(self, store: Store) -> None:
        """With slashes, dots, NUL, upper case, normal forms, reserved names or ten thousand characters."""
        for number, key in enumerate(HOSTILE_KEYS):
            await store.put(key, b"%d" % number)
        assert await store.keys() == sorted(HOSTILE_KEYS)
        for number, key in enumerate(HOSTILE_KEYS):
            record = await stored(store, key)
            assert record.data == b"%d" % number
            claim = await claimed(store, key, record.version)
            await claim.abandon()
        assert await store.delete(HOSTILE_KEYS[0])
        assert await store.keys() == sorted(HOSTILE_KEYS[1:])

    @promise
    async def test_an_empty_key_is_a_value_error(self, store: Store) -> None:
        """All callers that forgot to set a key would share it."""
        with pytest.raises(ValueError):
            await store.load("")
        with pytest.raises(ValueError):
            await store.put("", b"data")
        with pytest.raises(ValueError):
            await store.claim("", seen=None, timeout=0)

    @promise
    async def test_a_key_that_is_not_valid_unicode_is_a_configuration_error(self, store: Store) -> None:
        """An environment variable that is not UTF-8 gives such text. No file, database or server takes it."""
        key = "tenant\udcff"
        with pytest.raises(ConfigurationError):
            await store.load(key)
        with pytest.raises(ConfigurationError):
            await store.claim(key, seen=None, timeout=0)
        with pytest.raises(ConfigurationError):
            await store.put(key, b"data")
        with pytest.raises(ConfigurationError):
            await store.delete(key)
        assert await store.keys() == []

    @promise
    async def test_data_may_have_from_no_byte_to_one_mebibyte(self, store: Store) -> None:
        """Every byte value is stored, by put and by commit."""
        seen = None
        for data in (b"", b"\0", bytes(range(256)), b"\xff" * 65_537, bytes(range(256)) * 4096):
            claim = await claimed(store, "committed", seen)
            seen = (await claim.commit(data)).version
            await store.put("put", data)
            for key in ("put", "committed"):
                assert (await stored(store, key)).data == data

    @promise
    async def test_put_finishes_although_its_caller_is_cancelled(self, store: Store, other: Store) -> None:
        """Once it has begun, a sign-in is not lost."""
        for count in range(1, 20):
            await cancelled(store.put("k", b"%d" % count), count)
            await store.aclose()  # waits for the write that has begun
            assert (await stored(other, "k")).data == b"%d" % count

    @promise
    async def test_damaged_data_is_an_error_until_the_next_put(self, backend: Backend, store: Store) -> None:
        """`load` and `claim` raise `StoreCorrupt`, and other keys still work."""
        damage = needs(backend.damage, "damageable")
        await store.put("other", b"whole")
        record = await store.put("k", b"data" * 100)
        damage("k")
        with pytest.raises(StoreCorrupt):
            await store.load("k")
        with pytest.raises(StoreCorrupt):
            await store.claim("k", seen=record.version, timeout=0)
        other = await store.load("other")
        assert other is not None
        assert other.data == b"whole"
        repaired = await store.put("k", b"new")
        assert await store.load("k") == repaired
        await (await claimed(store, "k", repaired.version)).abandon()

    @pytest.mark.parametrize("stored", [True, False])
    @promise
    async def test_a_record_that_was_moved_to_another_key_is_not_read(
        self, backend: Backend, store: Store, stored: bool
    ) -> None:
        """`StoreCorrupt`, and never the data of another account. The next put replaces it."""
        move = needs(backend.move, "one whose records can be moved")
        seen = (await store.put("bob", b"bob's")).version if stored else None
        alices = await store.put("alice", b"alice's")
        move("alice", "bob")
        async with backend.opened() as other:
            for each in (store, other):
                for version in (seen, alices.version, None):
                    with pytest.raises(StoreCorrupt):
                        await each.claim("bob", seen=version, timeout=0)
                with pytest.raises(StoreCorrupt):
                    await each.load("bob")
        signed_in = await store.put("bob", b"bob's again")
        assert await store.load("bob") == signed_in
        await (await claimed(store, "bob", signed_in.version)).abandon()
        assert await store.load("alice") in (alices, None)

    @promise
    async def test_a_pickled_store_is_a_new_one_over_the_same_records(
        self, backend: Backend, store: Store
    ) -> None:
        """A pickle holds the configuration only. A store of one process raises TypeError, which says why."""
        record = await store.put("k", SECRET)
        claim = await claimed(store, "k", record.version)
        content = pickled(store)
        if isinstance(content, TypeError):
            assert backend.url is None, f"a spawned process cannot have this store: {content}"
            assert not str(content).startswith("cannot pickle"), "Python's own words, which do not say why"
            await claim.abandon()
            return
        assert SECRET not in content
        assert record.version.encode() not in content
        before = threading.active_count(), _descriptors()
        copied: Store = pickle.loads(content)  # noqa: S301 - our own
        assert (threading.active_count(), _descriptors()) == before, "the copy is open"
        async with backend.opened(copied):
            assert await copied.load("k") == record
            assert not await is_free(copied, "k", record.version)
        if backend.url is not None:
            with peers(1, content.hex(), opener=UNPICKLE, patience=backend.patience) as [spawned]:
                refused = spawned.ask("claim", key="k", seen=record.version, timeout=0)
                assert refused.get("error") == "ClaimTimeout"
                await claim.abandon()
                spawned.ask("claim", key="k", seen=record.version)
                committed = spawned.ask("commit", data="data")
                assert (await newer(store, "k", record.version)).version == committed["version"]

    def test_one_store_object_works_in_several_event_loops_in_turn(self, backend: Backend) -> None:
        """It is not bound to the loop of its first use, whether or not it was closed in between."""
        store = backend.open()

        async def first() -> Record:
            record = await store.put("k", b"1")
            claim = await claimed(store, "k", record.version)
            waiter = await started(newer(store, "k", record.version))
            committed = await claim.commit(b"2")
            assert await waiter == committed
            return committed

        record = asyncio.run(first())
        for _ in range(2):  # the second time, the store was closed before

            async def again(store: Store, record: Record = record) -> None:
                assert await store.load("k") == record
                claim = await claimed(store, "k", record.version)
                waiter = await started(claimed(store, "k", record.version))
                await claim.abandon()
                await (await waiter).abandon()

            backend.run(again, store=store)

    @promise
    async def test_closing_twice_is_safe_and_a_later_call_reopens(self, store: Store, other: Store) -> None:
        """A store that was never used can be closed too."""
        await store.aclose()
        record = await store.put("k", b"data")
        await store.aclose()
        await store.aclose()
        assert await other.load("k") == record
        assert await store.load("k") == record

    @promise
    async def test_closing_leaves_no_task_thread_or_descriptor(self, backend: Backend, store: Store) -> None:
        """True after every kind of call, and after a cancelled claim."""

        async def use() -> None:
            async with backend.opened() as used:
                await used.put("k", b"data")
                claim = await claimed(used, "j")
                await cancelled(used.claim("j", seen=None, timeout=30))
                await claim.commit(b"data")
                await used.keys()
                await used.delete("j")
                await used.delete("k")

        await use()  # the first use of a driver may leave something in the process
        before = threading.active_count(), _descriptors()
        await use()
        assert (threading.active_count(), _descriptors()) == before
        await ticks()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def test_data_appears_in_no_repr_error_log_or_file_name(self, backend: Backend) -> None:
        """True for every error that a store raises about a record."""
        shown: list[str] = []
        handler = _Collector(shown)

        async def promise(store: Store) -> None:
            record = await store.put("k", SECRET)
            claim = await claimed(store, "k", record.version)
            shown.extend(map(repr, (store, record, claim)))
            with pytest.raises(Superseded) as put:
                await store.put("k", SECRET, expect="other")
            with pytest.raises(Superseded) as delete:
                await store.delete("k", expect="other")
            with pytest.raises(ClaimTimeout) as wait:
                await store.claim("k", seen=record.version, timeout=0)
            await store.put("k", SECRET)
            with pytest.raises(Superseded) as commit:
                await claim.commit(SECRET)
            for error in (put.value, delete.value, wait.value, commit.value):
                shown.extend((str(error), repr(error)))
            shown.extend((repr(claim), repr(store)))
            if backend.root is not None:
                shown.extend(backend.names())
            if backend.damage is not None:
                backend.damage("k")
                with pytest.raises(StoreError) as damaged:
                    await store.load("k")
                shown.append(str(damaged.value))

        logging.getLogger().addHandler(handler)
        try:
            backend.run(promise)
        finally:
            logging.getLogger().removeHandler(handler)
        secret = SECRET.decode()
        assert not [text for text in shown if secret in text or SECRET.hex() in text]


class _Collector(logging.Handler):
    """Collects every log line."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(0)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


def pickled(store: Store) -> bytes | TypeError:
    """The pickle of this store, or why there is none."""
    try:
        return pickle.dumps(store)
    except TypeError as error:
        return error


def _descriptors() -> int:
    """The number of open file descriptors, or 0 where the system does not say."""
    listing = Path("/proc/self/fd")
    return len(list(listing.iterdir())) if listing.is_dir() else 0
