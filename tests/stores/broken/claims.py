"""Broken stores that break a promise about claims: see `broken`."""

from __future__ import annotations

import asyncio

from tokensession.errors import StoreUnavailable
from tokensession.stores.protocol import ANY, AnyVersion, Record, check_key, new_version
from tokensession.stores.memory import MemoryClaim, MemoryStore, _Holder
from broken import in_memory

__all__ = ["BROKEN_CLAIMS"]

Expect = str | AnyVersion | None


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
        ("test_an_abandoned_claim_goes_to_one_who_waits", "test_fifty_keys_can_be_waited_for_at_once"),
    ),
    (CommitWakesOne, ("test_all_who_wait_are_served_by_one_commit",)),
    (InterruptionIsNotReported, ("test_a_holder_whose_event_loop_is_gone_was_interrupted",)),
    (InterruptionIsToldOnce, ("test_a_holder_whose_event_loop_is_gone_was_interrupted",)),
    (EveryEndIsAnInterruption, ("test_a_clean_end_is_no_interruption",)),
    (TheDeadHoldOn, ("test_a_holder_whose_event_loop_is_gone_was_interrupted",)),
]

BROKEN_CLAIMS = [in_memory(kind, *promises) for kind, promises in _TABLE]
