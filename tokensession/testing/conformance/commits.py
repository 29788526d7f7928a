"""Promises about the end of a claim, in one process. A part of `StoreConformance`."""

from __future__ import annotations

import asyncio
import gc

import pytest

from ...errors import StoreUnavailable
from ...stores.protocol import Claim, Store
from .backend import Backend, cancelled, claimed, is_free, newer, promise, superseded

__all__ = ["CommitPromises"]


class CommitPromises:
    """Committing, abandoning, cancellation and interruption."""

    @promise
    async def test_ending_a_claim_twice_is_safe(self, store: Store) -> None:
        """The second end does not release a claim that another holder has by then."""
        ended = await claimed(store, "k")
        await ended.abandon()
        await ended.abandon()
        committed = await claimed(store, "k")
        record = await committed.commit(b"data")
        await committed.abandon()
        current = await claimed(store, "k", record.version)
        await ended.abandon()
        await committed.abandon()
        assert await committed.commit(b"data") == record
        assert not await is_free(store, "k", record.version)
        await current.abandon()

    @promise
    async def test_a_repeated_commit_returns_the_same_record(self, store: Store) -> None:
        """The first result may have been lost; a commit of other data is not the same commit."""
        claim = await claimed(store, "k")
        record = await claim.commit(b"data")
        assert await claim.commit(b"data") == record
        assert await superseded(claim.commit(b"other data")) == record == await store.load("k")
        newest = await store.put("k", b"data")
        assert await superseded(claim.commit(b"data")) == newest == await store.load("k")

    @promise
    async def test_a_late_commit_is_stored_if_nothing_newer_is(self, store: Store) -> None:
        """It may hold the only copy of a rotated refresh token, even if the claim was lost."""
        before = await store.put("k", b"before")
        late = await claimed(store, "k", before.version)
        await late.abandon()
        record = await late.commit(b"rotated")
        assert await store.load("k") == record
        late = await claimed(store, "k", record.version)
        await late.abandon()
        between = await claimed(store, "k", record.version)  # another holder
        record = await late.commit(b"rotated again")
        assert await store.load("k") == record
        await superseded(between.commit(b"data"))

    @promise
    async def test_a_late_commit_replaces_nothing_newer(self, store: Store) -> None:
        """The error carries the stored record, and the claim is free."""
        late = await claimed(store, "k")
        await late.abandon()
        newest = await (await claimed(store, "k")).commit(b"newest")
        assert await superseded(late.commit(b"late")) == newest == await store.load("k")
        assert await is_free(store, "k", newest.version)

    @pytest.mark.parametrize("stored", [True, False])
    @promise
    async def test_a_sign_in_during_a_claim_supersedes_its_commit(
        self, store: Store, other: Store, stored: bool
    ) -> None:
        """The sign-in does not wait. The superseded commit keeps its claim until it is abandoned."""
        before = await store.put("k", b"before") if stored else None
        claim = await claimed(store, "k", before.version if before else None)
        signed_in = await other.put("k", b"signed in")
        assert await superseded(claim.commit(b"refreshed")) == signed_in == await store.load("k")
        assert not await is_free(other, "k", signed_in.version)
        await claim.abandon()
        assert await is_free(other, "k", signed_in.version)

    @promise
    async def test_a_deletion_during_a_claim_supersedes_its_commit(self, store: Store) -> None:
        """A late refresh does not bring a deleted record back."""
        before = await store.put("k", b"before")
        claim = await claimed(store, "k", before.version)
        assert await store.delete("k", expect=before.version)
        assert await superseded(claim.commit(b"refreshed")) is None
        assert await store.load("k") is None
        await claim.abandon()
        assert await is_free(store, "k")

    @promise
    async def test_commit_finishes_although_its_caller_is_cancelled(self, store: Store, other: Store) -> None:
        """Wherever it is cancelled once it has begun, the data is stored and the claim is free."""
        seen = None
        for count in range(1, 60):
            claim = await claimed(store, "k", seen)
            await cancelled(claim.commit(b"%d" % count), count)
            record = await newer(other, "k", seen)
            assert record.data == b"%d" % count
            seen = record.version
            await (await claimed(other, "k", seen)).abandon()  # it may take a moment

    @promise
    async def test_abandon_finishes_although_its_caller_is_cancelled(self, store: Store) -> None:
        """Wherever it is cancelled once it has begun, the claim is free."""
        for count in range(1, 30):
            claim = await claimed(store, "k")
            await cancelled(claim.abandon(), count)
            await (await claimed(store, "k")).abandon()

    @promise
    async def test_a_clean_end_is_not_an_interruption(self, store: Store) -> None:
        """True for a commit, an abandoned claim, a superseded commit and a cancelled claim."""

        async def sent(seen: str | None) -> Claim:
            claim = await claimed(store, "k", seen)
            assert claim.interrupted is None
            assert claim.listening == 0
            await claim.sending(listening=60)
            return claim

        record = await (await sent(None)).commit(b"1")
        await (await sent(record.version)).abandon()
        claim = await sent(record.version)
        record = await store.put("k", b"2")
        await superseded(claim.commit(b"3"))
        await claim.abandon()
        claim = await sent(record.version)
        await cancelled(claimed(store, "k", record.version))
        await claim.abandon()
        await (await sent(record.version)).abandon()

    def test_a_holder_with_a_closed_event_loop_loses_its_claim(self, backend: Backend) -> None:
        """It can no longer end it. If its request has left, the next ones learn of it until one commits."""
        store = backend.open()
        orphaned = leave(store, sending=True)

        async def promise(store: Store) -> None:
            claim = await claimed(store, "k")
            assert claim.interrupted is not None
            assert claim.interrupted >= 0
            assert claim.listening >= 0
            await claim.sending()
            await claim.abandon()
            claim = await claimed(store, "k")
            assert claim.interrupted is not None, "the claim before this one was abandoned"
            record = await claim.commit(b"data")
            await orphaned.abandon()
            claim = await claimed(store, "k", record.version)
            assert claim.interrupted is None
            assert claim.listening == 0
            await claim.abandon()

        backend.run(promise, store=store)

    def test_a_holder_that_has_sent_nothing_is_no_interruption(self, backend: Backend) -> None:
        """It was cancelled, or killed, while it looked up a name or opened its connection."""
        store = backend.open()
        orphaned = leave(store, sending=False)

        async def promise(store: Store) -> None:
            claim = await claimed(store, "k")
            assert claim.interrupted is None
            assert claim.listening == 0
            await claim.abandon()
            await orphaned.abandon()

        backend.run(promise, store=store)

    def test_an_interruption_outlives_holders_that_send_nothing(self, backend: Backend) -> None:
        """Each of them learned of it, and none has ended its claim."""
        store = backend.open()
        orphaned = [leave(store, sending=True), leave(store, sending=False), leave(store, sending=False)]

        async def promise(store: Store) -> None:
            claim = await claimed(store, "k")
            assert claim.interrupted is not None
            await claim.commit(b"data")
            for late in orphaned:
                await late.abandon()

        backend.run(promise, store=store)

    def test_an_interruption_is_as_old_as_the_last_request(self, backend: Backend) -> None:
        """It counts from the last call of `sending`, and not from the claim."""
        clock, timed = backend.timed()

        async def begin() -> Claim:
            claim = await claimed(timed, "k")
            clock.advance(5)
            await claim.sending()
            clock.advance(3)
            await claim.sending()
            await timed.aclose()
            return claim

        async def end(store: Store) -> None:
            claim = await claimed(store, "k")
            assert claim.interrupted == pytest.approx(2)
            await claim.abandon()
            await orphaned.abandon()

        orphaned = asyncio.run(begin())
        clock.advance(2)
        backend.run(end, store=timed)

    def test_sending_finishes_although_its_caller_is_cancelled(self, backend: Backend) -> None:
        """Wherever it is cancelled once it has begun, the mark is left."""

        async def begin(store: Store, count: int) -> Claim:
            claim = await claimed(store, "k")
            await cancelled(claim.sending(), count)
            await store.aclose()
            return claim

        async def interrupted(store: Store) -> float | None:
            claim = await claimed(store, "k")
            await claim.sending()
            record = await claim.commit(b"data")
            await store.delete("k", expect=record.version)
            return claim.interrupted

        for count in range(1, 20):
            store = backend.open()
            orphaned = asyncio.run(begin(store, count))
            assert backend.run(interrupted, store=store) is not None
            asyncio.run(orphaned.abandon())
            asyncio.run(store.aclose())

    @promise
    async def test_a_claim_that_has_ended_sends_nothing(self, store: Store) -> None:
        """Another holder may be sending by then."""
        abandoned = await claimed(store, "k")
        await abandoned.abandon()
        committed = await claimed(store, "k")
        record = await committed.commit(b"data")
        current = await claimed(store, "k", record.version)
        for ended in (abandoned, committed):
            with pytest.raises(StoreUnavailable):
                await ended.sending()
        await current.sending()
        await current.abandon()


def leave(store: Store, *, sending: bool) -> Claim:
    """A claim whose event loop is closed."""

    async def begin() -> Claim:
        claim = await claimed(store, "k")
        if sending:
            await claim.sending(listening=60)
        await store.aclose()
        return claim

    claim = asyncio.run(begin())
    gc.collect()  # it is referenced, so it is not freed by being collected
    return claim
