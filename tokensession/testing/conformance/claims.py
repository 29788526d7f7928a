"""Promises about getting a claim, in one process. A part of `StoreConformance`."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from ...errors import ClaimTimeout, StoreUnavailable
from ...stores.protocol import Record, Store
from ..clock import FakeClock
from .backend import (
    Backend,
    cancelled,
    claimed,
    interruption,
    is_free,
    needs,
    newer,
    outlast,
    promise,
    started,
    ticks,
)

__all__ = ["ClaimPromises"]


class ClaimPromises:
    """Exclusion and waiting."""

    @promise
    async def test_one_task_at_a_time_holds_the_claim(self, store: Store, other: Store) -> None:
        """True for many tasks, over one store object or two."""
        inside: list[int] = []

        async def contend(own: Store, name: int) -> None:
            seen, granted = None, 0
            while granted < 5:
                found = await own.claim("k", seen=seen, timeout=30)
                if isinstance(found, Record):
                    seen = found.version
                    continue
                granted += 1
                inside.append(name)
                await ticks(3)
                assert inside == [name], "two holders at once"
                inside.remove(name)
                if granted % 2:
                    seen = (await found.commit(b"data")).version
                else:
                    await found.abandon()

        await asyncio.gather(*(contend((store, other)[n % 2], n) for n in range(12)))

    @promise
    async def test_a_claim_excludes_every_other_store_object(self, store: Store, other: Store) -> None:
        """It does so until it is committed or abandoned."""
        claim = await claimed(store, "k")
        assert not await is_free(store, "k")
        assert not await is_free(other, "k")
        await claim.abandon()
        assert await is_free(other, "k")
        claim = await claimed(other, "k")
        record = await claim.commit(b"data")
        assert await is_free(store, "k", record.version)

    @promise
    async def test_a_claim_does_not_block_other_keys(self, store: Store) -> None:
        """Nor do the waiters for it."""
        claim = await claimed(store, "k")
        waiter = await started(newer(store, "k"))
        for key in ("other", "K", "k ", "kk"):
            assert (await (await claimed(store, key)).commit(b"data")).data == b"data"
        record = await claim.commit(b"data")
        assert await waiter == record

    @promise
    async def test_load_never_waits_for_a_claim(self, store: Store) -> None:
        """It returns the stored record while another holder is about to replace it."""
        record = await store.put("k", b"old")
        claim = await claimed(store, "k", record.version)
        assert await store.load("k") == record
        assert await store.keys() == ["k"]
        await claim.abandon()

    @promise
    async def test_seen_decides_between_a_newer_record_and_the_claim(self, store: Store) -> None:
        """None means that nothing was stored; after a deletion there is no newer record."""
        await (await claimed(store, "k", None)).abandon()
        await (await claimed(store, "k", "never-stored")).abandon()  # seen, and deleted since
        first = await store.put("k", b"1")
        assert await newer(store, "k", None) == first
        assert await newer(store, "k", "never-stored") == first
        claim = await claimed(store, "k", first.version)
        assert claim.current == first
        await claim.abandon()
        second = await store.put("k", b"2")
        assert await newer(store, "k", first.version) == second
        await store.delete("k")
        claim = await claimed(store, "k", second.version)
        assert claim.current is None
        await claim.abandon()

    @promise
    async def test_a_newer_record_is_returned_while_another_holds_the_claim(self, store: Store) -> None:
        """It is returned at once, and its receiver holds nothing."""
        first = await store.put("k", b"1")
        claim = await claimed(store, "k", first.version)
        second = await store.put("k", b"2")
        assert await newer(store, "k", first.version, timeout=0) == second
        await claim.abandon()
        assert await newer(store, "k", first.version) == second
        assert await is_free(store, "k", second.version)

    @promise
    async def test_one_commit_serves_all_waiters(self, store: Store, other: Store) -> None:
        """Each of them gets the record, and none gets a claim and spends the refresh token again."""
        first = await store.put("k", b"1")
        claim = await claimed(store, "k", first.version)
        waiters = [asyncio.ensure_future(newer((store, other)[n % 2], "k", first.version)) for n in range(32)]
        await ticks()
        second = await claim.commit(b"2")
        assert await asyncio.gather(*waiters) == [second] * 32
        assert await is_free(store, "k", second.version)

    @promise
    async def test_a_sign_in_serves_all_waiters(self, store: Store) -> None:
        """A put without a claim reaches them too, while the claim is still held."""
        claim = await claimed(store, "k")
        waiters = [asyncio.ensure_future(newer(store, "k")) for _ in range(8)]
        await ticks()
        record = await store.put("k", b"signed in")
        assert await asyncio.gather(*waiters) == [record] * 8
        await claim.abandon()

    @promise
    async def test_fifty_keys_can_be_waited_for_at_once(self, store: Store, other: Store) -> None:
        """Two waiters for each key, and one more key can still be claimed."""
        keys = [f"key-{n}" for n in range(50)]
        claims = [await claimed(store, key) for key in keys]
        waiters = [asyncio.ensure_future(newer(other, key)) for key in keys * 2]
        await ticks()
        assert await is_free(other, "another")
        committed = [await claim.commit(key.encode()) for key, claim in zip(keys, claims, strict=True)]
        assert await asyncio.gather(*waiters) == committed * 2

    @promise
    async def test_waiting_ends_with_a_claim_timeout(self, store: Store) -> None:
        """Afterwards the claim is free."""
        claim = await claimed(store, "k")
        for timeout in (0, 0.01):
            with pytest.raises(ClaimTimeout):
                await store.claim("k", seen=None, timeout=timeout)
        await claim.abandon()
        assert await is_free(store, "k")

    @promise
    async def test_a_claim_timeout_says_who_holds_the_claim(self, backend: Backend, store: Store) -> None:
        """It names the process, so that you can find out what it is doing."""
        needs(backend.names_holder or None, "telling who holds a claim")
        with backend.peers() as [holder]:
            holder.ask("claim", key="k", seen=None)
            with pytest.raises(ClaimTimeout, match=rf"\b{holder.pid}\b"):
                await store.claim("k", seen=None, timeout=0)

    @promise
    async def test_a_locked_store_fails_the_claim(
        self, backend: Backend, store: Store, clock: FakeClock
    ) -> None:
        """So no refresh token is spent. Reading works, and no claim is held."""
        blocked = needs(backend.blocked, "locked by other programs")
        record = await store.put("k", b"data")
        with blocked("k"):
            with pytest.raises(StoreUnavailable, match="lock") as caught:
                await outlast(clock, store.claim("k", seen=record.version, timeout=3600))
            assert str(backend.root or "") in str(caught.value)
            assert await store.load("k") == record
        assert await interruption(store, record.version) is None

    @promise
    async def test_a_write_to_a_locked_store_ends_and_can_be_repeated(
        self, backend: Backend, store: Store, clock: FakeClock
    ) -> None:
        """After some seconds a commit, a put and a delete raise an error. The claim stays held."""
        blocked = needs(backend.blocked, "locked by other programs")
        record = await store.put("k", b"data")
        claim = await claimed(store, "k", record.version)
        with blocked("k"):
            for write in (
                partial(claim.commit, b"new"),
                partial(store.put, "k", b"other"),
                partial(store.delete, "k"),
            ):
                with pytest.raises(StoreUnavailable, match="lock"):
                    await outlast(clock, write())
            assert await store.load("k") == record
        assert not await is_free(store, "k", record.version)
        assert (await claim.commit(b"new")).data == b"new"

    @promise
    async def test_a_write_to_a_locked_store_delays_no_reader(
        self, backend: Backend, store: Store, clock: FakeClock
    ) -> None:
        """The write is stored when the lock is gone. The time stands still, so it does not give up."""
        blocked = needs(backend.blocked, "locked by other programs")
        record = await store.put("k", b"old")
        with blocked("k"):
            put = await started(store.put("k", b"new"))
            for _ in range(10):
                assert await store.load("k") == record
                assert await store.keys() == ["k"]
            assert not put.done()
        assert await store.load("k") in (record, await put)

    @promise
    async def test_closing_ends_although_the_store_is_locked(
        self, backend: Backend, store: Store, clock: FakeClock
    ) -> None:
        """A write that is still waiting gets its error, and the store can be used again."""
        blocked = needs(backend.blocked, "locked by other programs")
        record = await store.put("k", b"old")
        with blocked("k"):
            put = await started(store.put("k", b"new"))
            await outlast(clock, store.aclose())
            with pytest.raises(StoreUnavailable, match="lock"):
                await put
        assert await store.load("k") == record

    @promise
    async def test_closing_does_not_wait_for_a_claim_that_was_cancelled(
        self, backend: Backend, store: Store, clock: FakeClock
    ) -> None:
        """If its caller is gone, a claim of a locked store is not tried again."""
        blocked = needs(backend.blocked, "locked by other programs")
        record = await store.put("k", b"data")
        with blocked("k"):
            await cancelled(store.claim("k", seen=record.version, timeout=3600))
            await store.aclose()

    @promise
    async def test_an_abandoned_claim_goes_to_one_waiter(self, store: Store) -> None:
        """In the end each of the waiters gets it."""
        claim = await claimed(store, "k")
        waiters = {asyncio.ensure_future(claimed(store, "k")) for _ in range(5)}
        while waiters:
            await ticks()
            await claim.abandon()
            done, waiters = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1, "two holders at once"
            claim = done.pop().result()
        await claim.abandon()

    @promise
    async def test_a_claim_cancelled_at_any_point_holds_nothing(self, store: Store, other: Store) -> None:
        """Five hundred cancellations, of free and of contended claims: the next caller gets the claim."""
        for count in range(500):
            blocking = await claimed(other, "k") if count % 5 == 0 else None
            task = asyncio.ensure_future(claimed(store, "k"))
            await ticks(count % 50)
            if blocking is not None:
                await blocking.abandon()
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await task.result().abandon()
            await (await claimed(other, "k")).abandon()
