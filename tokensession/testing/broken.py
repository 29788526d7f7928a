"""Stores that break one promise each. The conformance suite must reject every one of them.

A test that nothing fails proves nothing: `BROKEN_IN_MEMORY` says which promise each of these breaks, and
tests/stores/test_conformance_rejects_broken_stores.py that the suite notices. These are made of
`MemoryStore`; those that need files or processes are in `broken_files`.

Each docstring is a mistake that somebody's token store has made, or would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import StoreUnavailable
from ..stores.base import ANY, AnyVersion, Record, check_key, new_version
from ..stores.memory import MemoryClaim, MemoryStore, _Holder
from .backend import Backend

__all__ = ["BROKEN_IN_MEMORY", "Broken"]

Expect = str | AnyVersion | None


@dataclass(frozen=True)
class Broken:
    """A broken store, and the promises (names of tests) that it breaks."""

    name: str
    make_backend: Callable[[Path], Backend]
    promises: tuple[str, ...]


class _Claim(MemoryClaim):
    """A claim that passes everything on to a store that may be broken."""

    def __init__(self, claim: MemoryClaim) -> None:
        super().__init__(claim._store, claim._key, claim._current, claim._holder)


class CommitIgnoresVersions(MemoryStore):
    """The last one to commit wins: a sign-in is lost, and so is a rotated refresh token."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        class Overwriting(_Claim):
            async def commit(self, data: bytes) -> Record:
                self._current = await self._store.load(self._key)
                return await super().commit(data)

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Overwriting(found)


class CommitNeedsTheLease(MemoryStore):
    """Who has lost the claim may not commit: the only copy of a rotated refresh token is thrown away."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        class Fussy(_Claim):
            async def commit(self, data: bytes) -> Record:
                if self._store._holders.get(self._key) is not self._holder:
                    raise StoreUnavailable("The lease was lost.")
                return await super().commit(data)

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Fussy(found)


class CommitIsNotRepeatable(MemoryStore):
    """A new version for each try: the second finds the first, and takes it for somebody else's."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        class Forgetful(_Claim):
            async def commit(self, data: bytes) -> Record:
                self._version = new_version()
                return await super().commit(data)

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Forgetful(found)


class CommitDiesWithItsCaller(MemoryStore):
    """The write waits where its caller can be cancelled: after the grant was spent."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        class Mortal(_Claim):
            async def commit(self, data: bytes) -> Record:
                for _ in range(5):
                    await asyncio.sleep(0)
                return await super().commit(data)

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Mortal(found)


class AbandonDiesWithItsCaller(MemoryStore):
    """The claim stays held when the one who lets go of it is cancelled."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        class Mortal(_Claim):
            async def abandon(self) -> None:
                for _ in range(5):
                    await asyncio.sleep(0)
                await super().abandon()

        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else Mortal(found)


class PutDiesWithItsCaller(MemoryStore):
    """A sign-in that its caller's cancellation undoes."""

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        for _ in range(5):
            await asyncio.sleep(0)
        return await super().put(key, data, expect=expect)


class ClaimLeaksWhenCancelled(MemoryStore):
    """A claim is taken, and its caller cancelled before he has it: nobody can let go of it."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        found = await super().claim(key, seen=seen, timeout=timeout)
        await asyncio.sleep(0)
        return found


class ReleasesWhatOthersHold(MemoryStore):
    """To end a claim twice ends the next one's, too."""

    def _release(self, key: str, holder: _Holder, *, resolved: bool) -> None:
        super()._release(key, self._holders.get(key, holder), resolved=resolved)


class ExclusionIsMissing(MemoryStore):
    """Everybody gets the claim."""

    def _free(self, key: str) -> bool:
        return True


class OneClaimForAllKeys(MemoryStore):
    """A refresh of one tenant's token stops all the others."""

    def _free(self, key: str) -> bool:
        return super()._free(key) and not self._holders


class PutWaitsForTheClaim(MemoryStore):
    """A sign-in waits for a refresh that may take for ever."""

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        while not self._free(check_key(key)):
            await self._changed(key, 3600)
        return await super().put(key, data, expect=expect)


class LoadWaitsForTheClaim(MemoryStore):
    """Nobody can use the token that is still good while it is being refreshed."""

    async def load(self, key: str) -> Record | None:
        while not self._free(check_key(key)):
            await self._changed(key, 3600)
        return await super().load(key)


class WaitersQueue(MemoryStore):
    """Who waited gets the claim, and does not look whether there is a new record: each refreshes again."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        if check_key(key) in self._holders:
            await self._changed(key, timeout)
            seen = self._records[key].version if key in self._records else None
        return await super().claim(key, seen=seen, timeout=timeout)


class SeenNoneMeansAnything(MemoryStore):
    """Somebody who has seen nothing is not told that there is a record."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        record = self._records.get(key)
        return await super().claim(
            key, seen=record.version if seen is None and record else seen, timeout=timeout
        )


class DeletionLooksNewer(MemoryStore):
    """Who has seen a record that is gone waits for one that never comes."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        while seen is not None and check_key(key) not in self._records:
            await self._changed(key, timeout)
        return await super().claim(key, seen=seen, timeout=timeout)


class NewerRecordNeedsTheClaim(MemoryStore):
    """The lock comes first, the look at the record second."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        stored = self._records.get(key)
        found = await super().claim(key, seen=stored.version if stored else None, timeout=timeout)
        if stored is not None and stored.version != seen and not isinstance(found, Record):
            await found.abandon()
            return stored
        return found


class TimeoutIsIgnored(MemoryStore):
    """Waiting has no end."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        return await super().claim(key, seen=seen, timeout=3600)


class NobodyIsWoken(MemoryStore):
    """Waiters find out by their time-out."""

    def _wake(self, key: str) -> None:
        pass


class CommitWakesOne(MemoryStore):
    """The others wait on, for a claim that is free."""

    def _wake(self, key: str) -> None:
        for waiter in list(self._waiters.get(key, ()))[:1]:
            if not waiter.done():
                waiter.set_result(None)


class InterruptionIsNotReported(MemoryStore):
    """The next holder sends its request while the dead one's is still on the wire."""

    def _free(self, key: str) -> bool:
        free = super()._free(key)
        self._interrupted.pop(key, None)
        return free


class InterruptionIsToldOnce(MemoryStore):
    """If the one who was told gives up, nobody will ever know."""

    def _release(self, key: str, holder: _Holder, *, resolved: bool) -> None:
        super()._release(key, holder, resolved=True)


class EveryEndIsAnInterruption(MemoryStore):
    """Each refresh waits for a dead one that never was."""

    def _release(self, key: str, holder: _Holder, *, resolved: bool) -> None:
        super()._release(key, holder, resolved=resolved)
        self._interrupted[key] = holder.began


class TheDeadHoldOn(MemoryStore):
    """A holder whose event loop has gone keeps its claim for ever."""

    def _free(self, key: str) -> bool:
        return key not in self._holders


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

    async def _changed(self, key: str, seconds: float) -> None:
        self._bound = self._bound or asyncio.get_running_loop()
        if self._bound is not asyncio.get_running_loop():
            raise RuntimeError("the lock is bound to a different event loop")
        await super()._changed(key, seconds)


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


def _backend(kind: type[MemoryStore]) -> Callable[[Path], Backend]:
    def make(directory: Path) -> Backend:
        store = kind()
        return Backend(open=lambda: store, patience=0.5)

    return make


_LATE = "test_a_late_commit_replaces_nothing_newer"
_SIGN_IN = "test_a_sign_in_during_a_claim_wins"

_TABLE: list[tuple[type[MemoryStore], tuple[str, ...]]] = [
    (CommitIgnoresVersions, (_LATE, "test_a_deletion_during_a_claim_wins")),
    (CommitNeedsTheLease, ("test_a_late_commit_is_kept_if_nobody_was_faster",)),
    (CommitIsNotRepeatable, ("test_a_commit_that_is_made_again_returns_the_same_record",)),
    (
        CommitDiesWithItsCaller,
        ("test_a_commit_whose_caller_is_cancelled_is_stored_and_frees_the_claim",),
    ),
    (AbandonDiesWithItsCaller, ("test_an_abandonment_that_is_cancelled_frees_the_claim",)),
    (PutDiesWithItsCaller, ("test_a_put_whose_caller_is_cancelled_is_done_once_it_began",)),
    (ClaimLeaksWhenCancelled, ("test_a_claim_that_is_cancelled_at_any_point_holds_nothing",)),
    (ReleasesWhatOthersHold, ("test_ending_a_claim_twice_is_safe",)),
    (
        ExclusionIsMissing,
        ("test_one_task_at_a_time_holds_the_claim", "test_a_claim_excludes_every_other_handle"),
    ),
    (OneClaimForAllKeys, ("test_a_claim_keeps_nobody_from_other_keys",)),
    (PutWaitsForTheClaim, (_SIGN_IN, "test_all_who_wait_are_served_by_a_sign_in")),
    (LoadWaitsForTheClaim, ("test_load_never_waits_for_a_claim",)),
    (WaitersQueue, ("test_all_who_wait_are_served_by_one_commit",)),
    (SeenNoneMeansAnything, ("test_seen_decides_between_a_newer_record_and_the_claim",)),
    (DeletionLooksNewer, ("test_seen_decides_between_a_newer_record_and_the_claim",)),
    (NewerRecordNeedsTheClaim, ("test_a_newer_record_needs_no_claim",)),
    (TimeoutIsIgnored, ("test_waiting_ends_with_a_claim_timeout",)),
    (
        NobodyIsWoken,
        ("test_an_abandoned_claim_goes_to_one_who_waits", "test_a_hundred_keys_can_be_waited_for_at_once"),
    ),
    (CommitWakesOne, ("test_all_who_wait_are_served_by_one_commit",)),
    (InterruptionIsNotReported, ("test_a_holder_whose_event_loop_is_gone_was_interrupted",)),
    (InterruptionIsToldOnce, ("test_a_holder_whose_event_loop_is_gone_was_interrupted",)),
    (EveryEndIsAnInterruption, ("test_a_clean_end_is_no_interruption",)),
    (TheDeadHoldOn, ("test_a_holder_whose_event_loop_is_gone_was_interrupted",)),
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

BROKEN_IN_MEMORY = [Broken(kind.__name__, _backend(kind), promises) for kind, promises in _TABLE]
