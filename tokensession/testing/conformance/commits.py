"""What every store promises about the end of a claim, in one process. A part of `StoreConformance`."""

from __future__ import annotations

import asyncio
import gc

import pytest

from ...errors import Superseded
from ...stores.protocol import Claim, Store
from .backend import Backend, claimed, is_free, newer, ticks

__all__ = ["CommitPromises"]


class CommitPromises:
    """Committing, abandoning, being cancelled, and being interrupted."""

    def test_ending_a_claim_twice_is_safe(self, backend: Backend) -> None:
        """It never releases what somebody else holds by then."""

        async def promise(store: Store) -> None:
            ended = await claimed(store, "k")
            await ended.abandon()
            await ended.abandon()
            committed = await claimed(store, "k")
            record = await committed.commit(b"data")
            await committed.abandon()
            held = await claimed(store, "k", record.version)
            await ended.abandon()
            await committed.abandon()
            assert await committed.commit(b"data") == record
            assert not await is_free(store, "k", record.version)
            await held.abandon()

        backend.run(promise)

    def test_a_commit_that_is_made_again_returns_the_same_record(self, backend: Backend) -> None:
        """Its answer may have been lost; other data is not the same commit."""

        async def promise(store: Store) -> None:
            claim = await claimed(store, "k")
            record = await claim.commit(b"data")
            assert await claim.commit(b"data") == record
            with pytest.raises(Superseded) as caught:
                await claim.commit(b"other data")
            assert caught.value.record == record == await store.load("k")
            newest = await store.put("k", b"data")
            with pytest.raises(Superseded) as caught:
                await claim.commit(b"data")
            assert caught.value.record == newest == await store.load("k")

        backend.run(promise)

    def test_a_late_commit_is_kept_if_nobody_was_faster(self, backend: Backend) -> None:
        """It may hold the only copy of a rotated refresh token, whatever became of the claim."""

        async def promise(store: Store) -> None:
            before = await store.put("k", b"before")
            late = await claimed(store, "k", before.version)
            await late.abandon()
            record = await late.commit(b"rotated")
            assert await store.load("k") == record
            late = await claimed(store, "k", record.version)
            await late.abandon()
            between = await claimed(store, "k", record.version)  # held by somebody else, idle as yet
            record = await late.commit(b"rotated again")
            assert await store.load("k") == record
            with pytest.raises(Superseded):
                await between.commit(b"data")

        backend.run(promise)

    def test_a_late_commit_replaces_nothing_newer(self, backend: Backend) -> None:
        """The error carries what is there now; the claim is free again."""

        async def promise(store: Store) -> None:
            late = await claimed(store, "k")
            await late.abandon()
            newest = await (await claimed(store, "k")).commit(b"newest")
            with pytest.raises(Superseded) as caught:
                await late.commit(b"late")
            assert caught.value.record == newest == await store.load("k")
            assert await is_free(store, "k", newest.version)

        backend.run(promise)

    @pytest.mark.parametrize("stored", [True, False])
    def test_a_sign_in_during_a_claim_wins(self, backend: Backend, stored: bool) -> None:
        """It waits for nobody; the commit under way is superseded, and ends its claim."""

        async def promise(store: Store) -> None:
            async with backend.handle() as other:
                before = await store.put("k", b"before") if stored else None
                claim = await claimed(store, "k", before.version if before else None)
                signed_in = await other.put("k", b"signed in")
                with pytest.raises(Superseded) as caught:
                    await claim.commit(b"refreshed")
                assert caught.value.record == signed_in == await store.load("k")
                assert await is_free(other, "k", signed_in.version)

        backend.run(promise)

    def test_a_deletion_during_a_claim_wins(self, backend: Backend) -> None:
        """A late refresh does not bring back what was forgotten."""

        async def promise(store: Store) -> None:
            before = await store.put("k", b"before")
            claim = await claimed(store, "k", before.version)
            assert await store.delete("k", expect=before.version)
            with pytest.raises(Superseded) as caught:
                await claim.commit(b"refreshed")
            assert caught.value.record is None
            assert await store.load("k") is None
            assert await is_free(store, "k")

        backend.run(promise)

    def test_a_commit_whose_caller_is_cancelled_is_stored_and_frees_the_claim(self, backend: Backend) -> None:
        """Wherever it was cancelled once it had begun."""

        async def promise(store: Store) -> None:
            async with backend.handle() as other:
                seen = None
                for count in range(1, 60):
                    claim = await claimed(store, "k", seen)
                    task = asyncio.ensure_future(claim.commit(b"%d" % count))
                    await ticks(count)
                    task.cancel()
                    await asyncio.wait([task])
                    record = await newer(other, "k", seen)
                    assert record.data == b"%d" % count
                    seen = record.version
                    await (await claimed(other, "k", seen)).abandon()  # free, or a moment later

        backend.run(promise)

    def test_an_abandonment_that_is_cancelled_frees_the_claim(self, backend: Backend) -> None:
        """Once it had begun."""

        async def promise(store: Store) -> None:
            for count in range(1, 30):
                claim = await claimed(store, "k")
                task = asyncio.ensure_future(claim.abandon())
                await ticks(count)
                task.cancel()
                await asyncio.wait([task])
                await (await claimed(store, "k")).abandon()

        backend.run(promise)

    def test_a_clean_end_is_no_interruption(self, backend: Backend) -> None:
        """Neither after a commit, nor after an abandonment, a supersession, a cancelled claim."""

        async def promise(store: Store) -> None:
            claim = await claimed(store, "k")
            assert claim.interrupted is None
            record = await claim.commit(b"1")
            claim = await claimed(store, "k", record.version)
            assert claim.interrupted is None
            await claim.abandon()
            claim = await claimed(store, "k", record.version)
            assert claim.interrupted is None
            record = await store.put("k", b"2")
            with pytest.raises(Superseded):
                await claim.commit(b"3")
            claim = await claimed(store, "k", record.version)
            assert claim.interrupted is None
            waiter = asyncio.ensure_future(claimed(store, "k", record.version))
            await ticks()
            waiter.cancel()
            await asyncio.wait([waiter])
            await claim.abandon()
            claim = await claimed(store, "k", record.version)
            assert claim.interrupted is None
            await claim.abandon()

        backend.run(promise)

    def test_a_holder_whose_event_loop_is_gone_was_interrupted(self, backend: Backend) -> None:
        """Nobody can end its claim any more: the next one gets it, and is told."""
        store = backend.open()

        async def leave() -> Claim:
            claim = await claimed(store, "k")
            await store.aclose()
            return claim

        orphaned = asyncio.run(leave())  # referenced: it is not its collection that frees the key
        gc.collect()

        async def promise(store: Store) -> None:
            claim = await claimed(store, "k")
            assert claim.interrupted is not None
            assert claim.interrupted >= 0
            await claim.abandon()
            claim = await claimed(store, "k")
            assert claim.interrupted is not None, "it abandoned, and knew no more than before"
            record = await claim.commit(b"data")
            await orphaned.abandon()
            claim = await claimed(store, "k", record.version)
            assert claim.interrupted is None
            await claim.abandon()

        backend.run(promise, store=store)
