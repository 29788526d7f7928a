"""Stores that break a promise about claims: see `broken`."""

from __future__ import annotations

import asyncio

from broken import BrokenMemoryStore, Expect, breaks
from tokensession.errors import StoreUnavailable, Superseded
from tokensession.stores.memory import MemoryClaim, _Holder
from tokensession.stores.protocol import ANY, Record, check_key, new_version
from tokensession.testing.conformance.backend import ticks


@breaks("test_a_late_commit_replaces_nothing_newer", "test_a_deletion_during_a_claim_supersedes_its_commit")
class CommitIgnoresVersions(BrokenMemoryStore):
    """The last commit wins: a sign-in or a rotated refresh token is lost."""

    class Claim(MemoryClaim):
        async def commit(self, data: bytes) -> Record:
            self._current = await self._store.load(self._key)
            return await super().commit(data)


@breaks("test_a_late_commit_is_stored_if_nothing_newer_is")
class CommitNeedsTheClaim(BrokenMemoryStore):
    """A holder that has lost its claim cannot commit, so the only copy of a rotated refresh token is lost."""

    class Claim(MemoryClaim):
        async def commit(self, data: bytes) -> Record:
            if self._store._holders.get(self._key) is not self._holder:
                raise StoreUnavailable("The lease was lost.")
            return await super().commit(data)


@breaks("test_a_sign_in_during_a_claim_supersedes_its_commit")
class SupersededCommitsEndTheClaim(BrokenMemoryStore):
    """Another holder sends what has just been spent, before the new token can be stored."""

    class Claim(MemoryClaim):
        async def commit(self, data: bytes) -> Record:
            try:
                return await super().commit(data)
            except Superseded:
                await self.abandon()
                raise


@breaks("test_a_repeated_commit_returns_the_same_record")
class CommitIsNotRepeatable(BrokenMemoryStore):
    """Each try gets a new version, so the second takes the first for the commit of another holder."""

    class Claim(MemoryClaim):
        async def commit(self, data: bytes) -> Record:
            self._version = new_version()
            return await super().commit(data)


@breaks("test_commit_finishes_although_its_caller_is_cancelled")
class CommitIsCancelledWithItsCaller(BrokenMemoryStore):
    """The write can be cancelled after the refresh token was spent."""

    class Claim(MemoryClaim):
        async def commit(self, data: bytes) -> Record:
            await ticks(5)
            return await super().commit(data)


@breaks("test_abandon_finishes_although_its_caller_is_cancelled")
class AbandonIsCancelledWithItsCaller(BrokenMemoryStore):
    """The claim stays held when the caller of `abandon` is cancelled."""

    class Claim(MemoryClaim):
        async def abandon(self) -> None:
            await ticks(5)
            await super().abandon()


@breaks("test_put_finishes_although_its_caller_is_cancelled")
class PutIsCancelledWithItsCaller(BrokenMemoryStore):
    """A sign-in is lost when its caller is cancelled."""

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        await ticks(5)
        return await super().put(key, data, expect=expect)


@breaks("test_a_claim_cancelled_at_any_point_holds_nothing")
class ClaimLeaksWhenCancelled(BrokenMemoryStore):
    """A caller that is cancelled just after the grant leaves a claim that is never released."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        found = await super().claim(key, seen=seen, timeout=timeout)
        await asyncio.sleep(0)
        return found


@breaks("test_ending_a_claim_twice_is_safe")
class ReleasesOtherHolders(BrokenMemoryStore):
    """Ending a claim twice ends the next holder's claim too."""

    def _release(self, key: str, holder: _Holder, *, resolved: bool) -> None:
        super()._release(key, self._holders.get(key, holder), resolved=resolved)


@breaks("test_one_task_at_a_time_holds_the_claim", "test_a_claim_excludes_every_other_store_object")
class NoExclusion(BrokenMemoryStore):
    """Every caller gets the claim."""

    def _free(self, key: str) -> bool:
        return True


@breaks("test_a_claim_does_not_block_other_keys")
class OneClaimForAllKeys(BrokenMemoryStore):
    """A refresh of one tenant's token stops all the others."""

    def _free(self, key: str) -> bool:
        return super()._free(key) and not self._holders


@breaks("test_a_sign_in_during_a_claim_supersedes_its_commit", "test_a_sign_in_serves_all_waiters")
class PutWaitsForTheClaim(BrokenMemoryStore):
    """A sign-in waits for a refresh, which may never end."""

    async def put(self, key: str, data: bytes, *, expect: Expect = ANY) -> Record:
        while not self._free(check_key(key)):
            await self._wait_for_change(key, 3600)
        return await super().put(key, data, expect=expect)


@breaks("test_load_never_waits_for_a_claim")
class LoadWaitsForTheClaim(BrokenMemoryStore):
    """While a token is refreshed, the old one cannot be used although it is still valid."""

    async def load(self, key: str) -> Record | None:
        while not self._free(check_key(key)):
            await self._wait_for_change(key, 3600)
        return await super().load(key)


@breaks("test_one_commit_serves_all_waiters")
class WaitersQueue(BrokenMemoryStore):
    """A waiter gets the claim without looking for a new record, so each of them refreshes again."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        if check_key(key) in self._holders:
            await self._wait_for_change(key, timeout)
            seen = self._records[key].version if key in self._records else None
        return await super().claim(key, seen=seen, timeout=timeout)


@breaks("test_seen_decides_between_a_newer_record_and_the_claim")
class SeenNoneMeansAnything(BrokenMemoryStore):
    """A caller that has seen nothing does not get the record that is stored."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        record = self._records.get(key)
        return await super().claim(
            key, seen=record.version if seen is None and record else seen, timeout=timeout
        )


@breaks("test_seen_decides_between_a_newer_record_and_the_claim")
class DeletionLooksNewer(BrokenMemoryStore):
    """A caller that has seen a deleted record waits for one that never comes."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        while seen is not None and check_key(key) not in self._records:
            await self._wait_for_change(key, timeout)
        return await super().claim(key, seen=seen, timeout=timeout)


@breaks("test_a_newer_record_is_returned_while_another_holds_the_claim")
class NewerRecordNeedsTheClaim(BrokenMemoryStore):
    """It takes the lock first and looks at the record after that."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        stored = self._records.get(key)
        found = await super().claim(key, seen=stored.version if stored else None, timeout=timeout)
        if stored is not None and stored.version != seen and not isinstance(found, Record):
            await found.abandon()
            return stored
        return found


@breaks("test_waiting_ends_with_a_claim_timeout")
class TimeoutIsIgnored(BrokenMemoryStore):
    """Waiting does not end."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        return await super().claim(key, seen=seen, timeout=3600)


@breaks("test_an_abandoned_claim_goes_to_one_waiter", "test_fifty_keys_can_be_waited_for_at_once")
class NoWaiterIsWoken(BrokenMemoryStore):
    """Waiters notice a change only when their time is over."""

    def _wake(self, key: str) -> None:
        pass


@breaks("test_one_commit_serves_all_waiters")
class CommitWakesOne(BrokenMemoryStore):
    """The other waiters go on waiting for a claim that is free."""

    def _wake(self, key: str) -> None:
        for waiter in list(self._waiters.get(key, ()))[:1]:
            if not waiter.done():
                waiter.set_result(None)


@breaks("test_a_holder_with_a_closed_event_loop_loses_its_claim")
class InterruptionIsNotReported(BrokenMemoryStore):
    """The next holder sends its request while that of the interrupted one may still be on the way."""

    def _free(self, key: str) -> bool:
        free = super()._free(key)
        self._interrupted.pop(key, None)
        return free


@breaks("test_a_holder_with_a_closed_event_loop_loses_its_claim")
class InterruptionIsReportedOnce(BrokenMemoryStore):
    """If the holder that learned of it abandons its claim, the next one does not learn of it."""

    def _release(self, key: str, holder: _Holder, *, resolved: bool) -> None:
        super()._release(key, holder, resolved=True)


@breaks("test_a_clean_end_is_not_an_interruption")
class EveryEndIsAnInterruption(BrokenMemoryStore):
    """Each refresh waits for a dead holder that does not exist."""

    def _release(self, key: str, holder: _Holder, *, resolved: bool) -> None:
        super()._release(key, holder, resolved=resolved)
        self._interrupted[key] = holder.since


@breaks("test_a_holder_with_a_closed_event_loop_loses_its_claim")
class OrphanedHoldersKeepTheClaim(BrokenMemoryStore):
    """A holder with a closed event loop keeps its claim."""

    def _free(self, key: str) -> bool:
        return key not in self._holders


@breaks("test_a_holder_that_has_sent_nothing_is_no_interruption")
class MarksAtTheClaim(BrokenMemoryStore):
    """A holder that has sent nothing counts as interrupted, and two of them end the sign-in."""

    def _grant(self, key: str, record: Record | None, now: float) -> MemoryClaim:
        claim = super()._grant(key, record, now)
        claim._holder.sent = now
        return claim


@breaks("test_an_interruption_outlives_holders_that_send_nothing")
class InterruptionEndsWithTheNextHolder(BrokenMemoryStore):
    """If the holder that learned of it is killed before it sends, the next one does not learn of it."""

    def _free(self, key: str) -> bool:
        holder = self._holders.get(key)
        if holder is not None and holder.orphaned and holder.sent is None:
            del self._holders[key]
        return super()._free(key)


@breaks("test_an_interruption_is_as_old_as_the_last_request")
class InterruptionDatesFromTheClaim(BrokenMemoryStore):
    """The next holder takes the request for older than it is, and does not wait for its end."""

    def _free(self, key: str) -> bool:
        holder = self._holders.get(key)
        if holder is not None and holder.sent is not None:
            holder.sent = holder.since
        return super()._free(key)


@breaks("test_an_interruption_is_as_old_as_the_last_request")
class OnlyTheFirstRequestCounts(BrokenMemoryStore):
    """The next holder does not wait for the end of the second request."""

    class Claim(MemoryClaim):
        async def sending(self, *, listening: float = 0.0) -> None:
            if self._holder.sent is None:
                await super().sending(listening=listening)


@breaks("test_sending_finishes_although_its_caller_is_cancelled")
class SendingIsCancelledWithItsCaller(BrokenMemoryStore):
    """The mark may be missing although the request has left."""

    class Claim(MemoryClaim):
        async def sending(self, *, listening: float = 0.0) -> None:
            await ticks(5)
            await super().sending(listening=listening)


@breaks("test_a_claim_that_has_ended_sends_nothing")
class EndedClaimsMaySend(BrokenMemoryStore):
    """A holder that has lost its claim sends its request beside that of the next one."""

    class Claim(MemoryClaim):
        async def sending(self, *, listening: float = 0.0) -> None:
            self._holder.sent = self._store._clock.boot()
