"""Writes that must not be lost: what `PendingWrites` makes of each answer of the store."""

from __future__ import annotations

import asyncio
import contextlib
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
from tokensession.events import Event, Saved, SaveFailed
from tokensession.policy import Policy
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import ANY, AnyVersion, Claim, Record
from tokensession.testing import FakeClock

KEY = "account"
Before = Callable[[], Awaitable[None]]


class Disk(MemoryStore):
    """A store whose next writes do what the test says.

    "full": it fails. "silent": it writes, and then fails. A function is awaited before the write.
    """

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.next: list[str | Before] = []

    async def write(self, work: Callable[[], Coroutine[Any, Any, Record]]) -> Record:
        what = self.next.pop(0) if self.next else ""
        if what == "full":
            raise StoreUnavailable("The disk is full.")
        if callable(what):
            await what()
        record = await work()
        if what == "silent":
            raise StoreUnavailable("There was no answer.")
        return record

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        put = super().put
        return await self.write(lambda: put(key, data, expect=expect))

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        found = await super().claim(key, seen=seen, timeout=timeout)
        return found if isinstance(found, Record) else DiskClaim(self, found)


class DiskClaim:
    """A claim whose commit is one of the disk's writes."""

    def __init__(self, disk: Disk, claim: Claim) -> None:
        self._disk, self._claim = disk, claim
        self.current, self.interrupted, self.listening = claim.current, claim.interrupted, claim.listening

    async def commit(self, data: bytes) -> Record:
        return await self._disk.write(lambda: self._claim.commit(data))

    async def sending(self, *, listening: float = 0.0) -> None:
        await self._claim.sending(listening=listening)

    async def abandon(self) -> None:
        await self._claim.abandon()


class Desk:
    """The pending writes of one process, and what another process does at the same store."""

    def __init__(self) -> None:
        self.clock = FakeClock(wall=NOW.wall, boot=NOW.boot, jitter=1.0)
        self.disk = Disk(self.clock)
        self.access = StoreAccess(KEY, self.disk, Policy(), self.clock)
        self.events: list[Event] = []
        self.writes = PendingWrites(self.access, self.events.append)

    async def claim(self) -> tuple[Claim, str | None]:
        """The claim, and the version under it."""
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
    desk.disk.next.append("full")
    assert isinstance(await desk.writes.save(what, **options), Pending)


# -- one write --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("claimed", [True, False])
def test_a_state_is_stored_and_its_claim_ended(claimed: bool) -> None:
    async def main() -> None:
        desk = Desk()
        await desk.other(at(1))
        claim, version = await desk.claim()
        options: dict[str, Any] = {"claim": claim} if claimed else {}
        result = await desk.writes.save(at(1, 1), expect=version, **options)
        assert isinstance(result, Stored)
        assert result.seen.state == await desk.stored() == at(1, 1)
        assert desk.writes.pending is None
        assert await desk.is_claimed() is not claimed
        assert desk.events == []

    run(main())


def test_f27_what_cannot_be_stored_is_pending_and_its_claim_stays_held() -> None:
    """The refresh token in the store is spent, so no process must redeem it."""

    async def main() -> None:
        desk = Desk()
        await desk.other(at(1))
        claim, version = await desk.claim()
        desk.disk.next = ["full"]
        result = await desk.writes.save(at(1, 1), claim=claim, expect=version)
        assert isinstance(result, Pending)
        assert "The disk is full." in str(result.error)
        assert desk.writes.pending == at(1, 1)
        assert desk.writes.holds(claim)
        assert await desk.is_claimed()
        assert desk.events == [SaveFailed(KEY, "StoreUnavailable", str(result.error), 1)]
        assert isinstance(await desk.writes.retry(), Stored)
        assert await desk.stored() == at(1, 1)
        assert desk.writes.pending is None
        assert not await desk.is_claimed()
        assert desk.events[1:] == [Saved(KEY, at(1, 1).token.fingerprint)]
        assert await desk.writes.retry() is None

    run(main())


def test_a_repeated_failure_leaves_it_pending() -> None:
    async def main() -> None:
        desk = Desk()
        await pending(desk, at(1))
        desk.disk.next = ["full", "full"]
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await desk.writes.retry()
        assert desk.writes.pending == at(1)
        assert desk.reported() == ["SaveFailed"], "whoever asks for the retry reports it"

    run(main())


@pytest.mark.parametrize("claimed", [True, False])
def test_mutant_11_a_write_whose_answer_was_lost_knows_its_own_record(claimed: bool) -> None:
    """Otherwise our own token would count as another process's, which is newer."""

    async def main() -> None:
        desk = Desk()
        await desk.other(at(1))
        claim, version = await desk.claim()
        options: dict[str, Any] = {"claim": claim} if claimed else {}
        desk.disk.next = ["silent"]
        assert isinstance(await desk.writes.save(at(1, 1), expect=version, **options), Pending)
        desk.clock.advance(10)
        result = await desk.writes.retry()
        assert isinstance(result, Stored)
        assert result.seen.state.order == (1, 1)
        assert desk.reported() == ["SaveFailed", "Saved"]

    run(main())


def test_a_write_whose_answer_was_lost_and_that_was_refreshed_since_is_superseded() -> None:
    async def main() -> None:
        desk = Desk()
        desk.disk.next = ["silent"]
        assert isinstance(await desk.writes.save(at(1), expect=None), Pending)
        await desk.other(at(1, 1))
        result = await desk.writes.retry()
        assert isinstance(result, Superseded)
        assert result.seen.state == at(1, 1)
        assert desk.writes.pending is None
        assert desk.reported() == ["SaveFailed"], "it was not stored, and need not be"

    run(main())


# -- something else is stored -----------------------------------------------------------------------------


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
        options: dict[str, Any] = {"claim": claim} if claimed else {}
        result = await desk.writes.save(at(1, 1), expect=version, **options)
        assert isinstance(result, Stored if mine_is_stored else Superseded)
        assert result.seen.state == await desk.stored() == (at(1, 1) if mine_is_stored else there)
        assert desk.writes.pending is None
        if claimed:
            assert not await desk.is_claimed()

    run(main())


@pytest.mark.parametrize("claimed", [True, False])
def test_f52_a_token_is_not_thrown_away_with_its_record(claimed: bool) -> None:
    """The record disappeared while the request was on the wire."""

    async def main() -> None:
        desk = Desk()
        await desk.other(at(1))
        claim, version = await desk.claim()
        await desk.disk.delete(KEY)
        options: dict[str, Any] = {"claim": claim} if claimed else {}
        assert isinstance(await desk.writes.save(at(1, 1), expect=version, **options), Stored)
        assert await desk.stored() == at(1, 1)

    run(main())


def test_a_damaged_record_is_written_over() -> None:
    async def main() -> None:
        desk = Desk()
        await desk.other(at(1))
        claim, version = await desk.claim()
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
        await desk.other(at(2))
        _, version = await desk.claim()
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
        await desk.other(at(2))
        _, version = await desk.claim()
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


# -- several pending writes -------------------------------------------------------------------------------


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
        assert isinstance(await desk.writes.retry(), Stored)
        assert await desk.stored() == kept
        assert desk.writes.pending is None
        assert not await desk.is_claimed()

    run(main())


def test_a_later_write_that_is_stored_ends_an_earlier_one_that_is_pending() -> None:
    """A sign-in, say, after a refresh that could not be stored."""

    async def main() -> None:
        desk = Desk()
        claim, version = await desk.claim()
        await pending(desk, at(1, 1), claim=claim, expect=version)
        assert isinstance(await desk.writes.save(at(2), expect=version), Stored)
        assert desk.writes.pending is None
        assert not await desk.is_claimed()
        assert await desk.writes.retry() is None

    run(main())


def test_mutant_12_a_write_that_was_replaced_while_it_was_tried_again_reports_nothing() -> None:
    """The one that replaced it is still pending."""

    async def main() -> None:
        desk = Desk()
        await pending(desk, at(1), expect=None)
        going_on = asyncio.Event()

        async def gate() -> None:
            await going_on.wait()

        desk.disk.next = [gate]
        retrying = asyncio.create_task(desk.writes.retry())
        await iterations()
        await pending(desk, at(2), expect=None)
        going_on.set()
        assert isinstance(await retrying, Stored)
        assert desk.writes.pending == at(2)
        assert "Saved" not in desk.reported()
        assert isinstance(await desk.writes.retry(), Stored)
        assert await desk.stored() == at(2)
        assert desk.reported()[-1] == "Saved"

    run(main())


def test_f18_closing_lets_others_refresh_and_keeps_what_is_pending() -> None:
    """Rule 6: a session that is entered again goes on from there."""

    async def main() -> None:
        desk = Desk()
        await desk.other(at(1))
        claim, version = await desk.claim()
        await pending(desk, at(1, 1), claim=claim, expect=version)
        await desk.writes.release_claims()
        assert not await desk.is_claimed()
        assert desk.writes.pending == at(1, 1)
        assert isinstance(await desk.writes.retry(), Stored)
        assert await desk.stored() == at(1, 1)

    run(main())


# -- trying again -----------------------------------------------------------------------------------------


def test_it_is_tried_again_with_back_off_until_it_is_stored() -> None:
    async def main() -> None:
        desk = Desk()
        await pending(desk, at(1))
        desk.disk.next = ["full"] * 4
        trying, pauses = asyncio.create_task(desk.writes.until_stored()), list[float]()
        while not trying.done():
            await desk.clock.slept()
            pauses.append(desk.clock.sleepers[0])
            desk.clock.advance(pauses[-1])
            await iterations()
        assert isinstance(await trying, Stored)
        assert pauses == [1, 1, 1, 1, 1], "callers are served from memory meanwhile"
        failed = [event for event in desk.events if isinstance(event, SaveFailed)]
        assert [event.tries for event in failed] == [1, 2, 3, 4, 5]
        assert desk.reported()[-1] == "Saved"
        assert await desk.writes.until_stored() is None

    run(main())


def test_the_pause_grows_with_the_outage_up_to_thirty_seconds() -> None:
    async def main() -> None:
        desk = Desk()
        await pending(desk, at(1))
        desk.disk.next = ["full"] * 100
        trying, pauses = asyncio.create_task(desk.writes.until_stored()), list[float]()
        for _ in range(60):
            await desk.clock.slept()
            pauses.append(desk.clock.sleepers[0])
            desk.clock.advance(pauses[-1])
            await iterations()
        assert pauses == sorted(pauses)
        assert (pauses[0], pauses[-1]) == (1, 30)
        trying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await trying

    run(main())


# -- cancellation -----------------------------------------------------------------------------------------


class Held:
    """A write that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.arrived, self.going_on = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.arrived.set()
        await self.going_on.wait()


def test_mutant_10_a_cancelled_write_is_made_once_more_before_the_cancellation_is_raised() -> None:
    """A closing event loop cancels all its tasks, and the write may not even have begun."""

    async def main() -> None:
        desk, held = Desk(), Held()
        claim, version = await desk.claim()
        desk.disk.next = [held]
        saving = asyncio.create_task(desk.writes.save(at(1), claim=claim, expect=version))
        await held.arrived.wait()
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert await desk.stored() == at(1)
        assert desk.writes.pending is None
        assert not await desk.is_claimed()

    run(main())


def test_a_write_that_is_cancelled_twice_stays_pending() -> None:
    """Closing, or the next refresh, goes on with it."""

    async def main() -> None:
        desk, first, second = Desk(), Held(), Held()
        claim, version = await desk.claim()
        desk.disk.next = [first, second]
        saving = asyncio.create_task(desk.writes.save(at(1), claim=claim, expect=version))
        for held in (first, second):
            await held.arrived.wait()
            saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert desk.writes.pending == at(1)
        assert desk.writes.holds(claim)
        assert isinstance(await desk.writes.retry(), Stored)
        assert await desk.stored() == at(1)

    run(main())


def test_a_write_that_is_cancelled_and_then_fails_stays_pending_and_says_so() -> None:
    async def main() -> None:
        desk, held = Desk(), Held()
        claim, version = await desk.claim()
        desk.disk.next = [held, "full"]
        saving = asyncio.create_task(desk.writes.save(at(1), claim=claim, expect=version))
        await held.arrived.wait()
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert desk.writes.pending == at(1)
        assert desk.reported() == ["SaveFailed"]
        assert await desk.is_claimed()

    run(main())


def test_f41_a_write_that_a_sign_out_has_beaten_never_replaces_it_though_it_is_cancelled() -> None:
    """It is cancelled just as it notes on the tombstone what it has redeemed, and then tried again."""

    async def main() -> None:
        desk, first, second = Desk(), Held(), Held()
        lost = at(1, redeemed=(("code", NOW.boot),))
        await pending(desk, lost, expect=None)
        await desk.other(tombstone(2))
        desk.disk.next = ["", first]
        trying = asyncio.create_task(desk.writes.retry())
        await first.arrived.wait()
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        desk.disk.next = ["", second]
        trying = asyncio.create_task(desk.writes.retry())
        await second.arrived.wait()
        second.going_on.set()
        assert isinstance(await trying, Superseded)
        stored = await desk.stored()
        assert stored is not None
        assert stored.signed_out
        assert stored.has_redeemed("code")

    run(main())
