"""Writes that must not be lost: what `PendingWrites` makes of each answer of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from _loop import iterations, run
from _states import FRESH, NOW, state

from tokensession._refresh.pending_writes import Pending, PendingWrites, Stored, Superseded
from tokensession._refresh.state import TokenState
from tokensession._refresh.store_access import StoreAccess
from tokensession.errors import ClaimTimeout, StoreUnavailable
from tokensession.events import Event, SaveFailed
from tokensession.policy import Policy
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import ANY, AnyVersion, Claim, Record
from tokensession.testing import FakeClock

KEY = "account"
Before = Callable[[], Awaitable[None]]


async def full() -> None:
    raise StoreUnavailable("The disk is full.")


async def works() -> None:
    """The write takes place."""


class Disk(MemoryStore):
    """A store that awaits the `next` of these before each write."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.next: list[Before] = []

    async def write(self, work: Callable[[], Coroutine[Any, Any, Record]]) -> Record:
        if self.next:
            await self.next.pop(0)()
        return await work()

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        put = super().put
        return await self.write(lambda: put(key, data, expect=expect))

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        found = await super().claim(key, seen=seen, timeout=timeout)
        if not isinstance(found, Record):
            commit = found.commit
            found.commit = lambda data: self.write(lambda: commit(data))  # type: ignore[method-assign]
        return found


class Desk:
    """The pending writes of one process, and what another process does at the same store."""

    def __init__(self) -> None:
        self.clock = FakeClock(wall=NOW.wall, boot=NOW.boot, jitter=1.0)
        self.disk = Disk(self.clock)
        self.access = StoreAccess(KEY, self.disk, Policy(), self.clock)
        self.events: list[Event] = []
        self.writes = PendingWrites(self.access, self.events.append)

    async def claim(self, *, over: TokenState | None = None) -> tuple[Claim, str | None]:
        """The claim, and the version under it. `over`: another process stores this before."""
        if over is not None:
            await self.other(over)
        record = await self.disk.load(KEY)
        version = record.version if record is not None else None
        found = await self.disk.claim(KEY, seen=version, timeout=0)
        assert not isinstance(found, Record)
        return found, version

    async def other(self, known: TokenState | bytes) -> None:
        """Another process stores this."""
        next_ones, self.disk.next = self.disk.next, []
        if isinstance(known, bytes):
            await self.disk.put(KEY, known)
        else:
            await self.access.put(known)
        self.disk.next = next_ones

    async def stored(self) -> TokenState | None:
        seen = await self.access.load()
        return seen.state if seen is not None else None

    async def is_claimed(self) -> bool:
        try:
            claim, _ = await self.claim()
        except ClaimTimeout:
            return True
        await claim.abandon()
        return False

    async def stores(self, known: TokenState) -> None:
        """A retry stores this, and then nothing is left."""
        assert isinstance(await self.writes.retry(), Stored)
        assert await self.stored() == known
        assert self.writes.pending is None
        assert not await self.is_claimed()
        assert self.reported()[-1] == "Saved"

    def reported(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


def at(number: int, generation: int = 0, **changes: Any) -> TokenState:
    """A state of this order, with a token of its own."""
    name = changes.pop("name", f"at-{number}-{generation}")
    return state(FRESH, name=name, number=number, generation=generation, **changes)


def tombstone(number: int) -> TokenState:
    return TokenState(number=number, signed_out=True)


async def pending(desk: Desk, what: TokenState, **options: Any) -> None:
    """Save this while the disk is full."""
    desk.disk.next.append(full)
    assert isinstance(await desk.writes.save(what, **options), Pending)


class Held:
    """A write that waits for good, or until `going_on` is set."""

    def __init__(self) -> None:
        self.arrived, self.going_on = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.arrived.set()
        await self.going_on.wait()


async def cancelled(work: Coroutine[Any, Any, object], *at_each: Held) -> None:
    """It is cancelled at each of these writes, and raises that in the end."""
    task = asyncio.create_task(work)
    for held in at_each:
        await held.arrived.wait()
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("there", "mine_is_stored"),
    [
        (at(1, 2), False),
        (at(2), False),
        (tombstone(2), False),
        (at(1, 1, name="at-another"), False),  # a tie: others may have seen it
        (at(1), True),  # the store went back
        (tombstone(0), True),
    ],
)
@pytest.mark.parametrize("claimed", [True, False])
def test_f12_of_two_states_the_higher_one_is_stored_in_the_end(
    there: TokenState, mine_is_stored: bool, claimed: bool
) -> None:
    """Whether or not the claim is still ours. On a tie the stored one counts."""

    async def main() -> None:
        desk = Desk()
        claim, version = await desk.claim()
        await desk.other(there)
        result = await desk.writes.save(at(1, 1), claim=claim if claimed else None, expect=version)
        assert isinstance(result, Stored if mine_is_stored else Superseded)
        assert result.seen.state == await desk.stored() == (at(1, 1) if mine_is_stored else there)
        assert desk.writes.pending is None
        if claimed:
            assert not await desk.is_claimed()

    run(main())


def test_a_damaged_record_is_written_over() -> None:
    async def main() -> None:
        desk = Desk()
        claim, version = await desk.claim(over=at(1))
        await desk.other(b"\xc1 damaged")
        assert isinstance(await desk.writes.save(at(1, 1), claim=claim, expect=version), Stored)
        assert await desk.stored() == at(1, 1)

    run(main())


@pytest.mark.parametrize(("changes", "kind"), [(7, Stored), (8, Pending)])
def test_a_record_that_keeps_changing_does_not_hold_a_write_up_for_good(changes: int, kind: type) -> None:
    """After eight changes it is pending, and tried again later."""

    async def main() -> None:
        desk = Desk()

        async def change() -> None:
            await desk.other(at(0, len(desk.disk.next)))

        desk.disk.next = [change] * changes
        assert isinstance(await desk.writes.save(at(1), expect=None), kind)

    run(main())


# -- sign-ins ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "number"),
    [
        (at(3, 7), 4),  # a refresh, or another sign-in, that was stored meanwhile
        (at(2, 1), 3),
        (tombstone(2), 3),  # it had been signed out before this sign-in began
        (tombstone(3), None),  # and since
    ],
)
def test_f41_a_sign_in_is_stored_over_whatever_is_there_but_a_sign_out_that_came_after_it(
    there: TokenState, number: int | None
) -> None:
    """The last sign-in to be stored counts. It takes a higher number, so all processes adopt it."""

    async def main() -> None:
        desk = Desk()
        _, version = await desk.claim(over=at(2))
        await desk.other(there)
        result = await desk.writes.save(at(3), expect=version, signs_in=2)
        stored = await desk.stored()
        if number is None:
            assert isinstance(result, Superseded)
            assert result.seen.state == stored == there
        else:
            assert isinstance(result, Stored)
            assert result.seen.state == stored == replace(at(3), number=number)

    run(main())


@pytest.mark.parametrize(
    ("there", "stays"),
    [
        (at(4), True),
        (at(3, 1), True),
        (at(3, name="at-another"), True),
        (at(2, 9), False),
        (tombstone(4), True),
    ],
)
def test_mutant_8_a_sign_in_that_is_stored_late_does_not_replace_a_higher_state(
    there: TokenState, stays: bool
) -> None:
    """It has returned long ago. What people have done since counts."""

    async def main() -> None:
        desk = Desk()
        _, version = await desk.claim(over=at(2))
        await pending(desk, at(3), expect=version, signs_in=2)
        await desk.other(there)
        result = await desk.writes.retry()
        assert isinstance(result, Superseded if stays else Stored)
        assert await desk.stored() == (there if stays else at(3))
        assert desk.writes.pending is None

    run(main())


@pytest.mark.parametrize(
    ("there", "stays"),
    [
        (b"\xc1 still damaged", False),
        (None, False),
        (at(2, 5), False),  # what this process knew when it began
        (at(4), True),
        (tombstone(4), True),
    ],
)
def test_a_late_sign_in_over_a_damaged_record_looks_what_is_there_by_now(
    there: TokenState | bytes | None, stays: bool
) -> None:
    async def main() -> None:
        desk = Desk()
        await desk.other(b"\xc1 damaged")
        await pending(desk, at(3), expect=ANY, signs_in=2)
        if there is None:
            await desk.disk.delete(KEY)
        else:
            await desk.other(there)
        result = await desk.writes.retry()
        assert isinstance(result, Superseded if stays else Stored)
        assert await desk.stored() == (there if stays else at(3))

    run(main())


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (at(1, 1), at(2), at(2)),
        (at(2), at(1, 1), at(2)),
        (at(1, 1), at(1, 1, name="at-x"), at(1, 1, name="at-x")),
    ],
)
def test_only_the_highest_state_is_pending_and_its_write_ends_all_claims(
    first: TokenState, second: TokenState, kept: TokenState
) -> None:
    async def main() -> None:
        desk = Desk()
        claim, version = await desk.claim()
        await pending(desk, first, claim=claim, expect=version)
        await pending(desk, second, expect=version)
        assert desk.writes.pending == kept
        assert await desk.is_claimed()
        await desk.stores(kept)

    run(main())


def test_mutant_12_a_write_that_was_replaced_while_it_was_tried_again_reports_nothing() -> None:
    """The one that replaced it is still pending."""

    async def main() -> None:
        desk = Desk()
        await pending(desk, at(1), expect=None)
        held = Held()
        desk.disk.next = [held]
        retrying = asyncio.create_task(desk.writes.retry())
        await held.arrived.wait()
        await pending(desk, at(2), expect=None)
        held.going_on.set()
        assert isinstance(await retrying, Stored)
        assert desk.writes.pending == at(2)
        assert "Saved" not in desk.reported()
        await desk.stores(at(2))

    run(main())


def test_it_is_tried_again_until_it_is_stored_with_a_pause_that_grows_to_thirty_seconds() -> None:
    async def main() -> None:
        desk = Desk()
        await pending(desk, at(1))
        desk.disk.next = [full] * 60
        trying, pauses = asyncio.create_task(desk.writes.until_stored()), list[float]()
        while not trying.done():
            await desk.clock.slept()
            pauses.append(desk.clock.sleepers[0])
            desk.clock.advance(pauses[-1])
            await iterations()
        assert isinstance(await trying, Stored)
        assert pauses == sorted(pauses)
        assert pauses[:5] == [1, 1, 1, 1, 1], "callers are served from memory meanwhile"
        assert pauses[-1] == 30
        failed = [event for event in desk.events if isinstance(event, SaveFailed)]
        assert [event.tries for event in failed] == list(range(1, 62))
        assert desk.reported()[-1] == "Saved"
        assert await desk.writes.until_stored() is None

    run(main())


def test_f41_a_write_that_a_sign_out_has_beaten_never_replaces_it_though_it_is_cancelled() -> None:
    """It is cancelled just as it notes on the tombstone what it has redeemed, and then tried again."""

    async def main() -> None:
        desk, first, second = Desk(), Held(), Held()
        lost = at(1, redeemed=(("code", NOW.boot),))
        await pending(desk, lost, expect=None)
        await desk.other(tombstone(2))
        desk.disk.next = [works, first]
        await cancelled(desk.writes.retry(), first)
        desk.disk.next = [works, second]
        trying = asyncio.create_task(desk.writes.retry())
        await second.arrived.wait()
        second.going_on.set()
        assert isinstance(await trying, Superseded)
        stored = await desk.stored()
        assert stored is not None
        assert stored.signed_out
        assert stored.has_redeemed("code")

    run(main())
