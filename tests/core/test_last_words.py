"""What came of a token request is not lost: not by closing, cancelling, signing in or out meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from _rig import Rig, asleep, run, success, turns
from _scripted_store import Gate, OddStore, down, hang

from tokensession import ConfigurationError, SignedOut, StoreUnavailable, TokenUnavailable
from tokensession._refresh.single_flight import SharedTask
from tokensession._refresh.state import TokenState, encode
from tokensession.clock import within
from tokensession.events import RefreshFailed, Saved
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, Paused


def odd(*script: Any, **options: Any) -> tuple[Rig, OddStore, FakeClock]:
    clock = FakeClock(jitter=1.0)
    store = OddStore(clock=clock)
    return Rig(*script, store=store, clock=clock, **options), store, clock


def flight_of(rig: Rig) -> SharedTask[Any]:
    """The one that is under way."""
    (flight,) = rig.source._coordinator._tasks.running
    return flight


async def stored(rig: Rig) -> str | None:
    grant = await rig.stored()
    return grant.token.access_token if grant is not None and grant.token is not None else None


# -- signing in and out -----------------------------------------------------------------------------


def test_f41_a_sign_out_while_a_sign_in_lets_go_of_an_old_claim_is_not_undone() -> None:
    """A sign-out that comes while a sign-in tidies up wins, in the store and in memory."""

    async def scene() -> None:
        rig, store, _ = odd(success(1), success(2))
        store.steps["commit"] = down
        assert await rig.access() == "access-1", "unsaved, and the claim is kept"
        gate = store.steps["abandon"] = Gate()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        await gate.arrived.wait()
        signing_out = asyncio.create_task(rig.source.sign_out())
        await turns()
        gate.open.set()
        await asyncio.gather(signing_in, signing_out)
        with pytest.raises(SignedOut):
            await rig.access()

    run(scene)


def test_f41_a_refresh_that_was_stored_before_a_sign_out_is_not_served_after_it() -> None:
    """A refresh that learns of its own success after a sign-out publishes nothing."""

    async def scene() -> None:
        rig, store, _ = odd(success(1))
        gate = store.steps["committed"] = Gate()
        asking = asyncio.create_task(rig.access())
        await gate.arrived.wait()
        await rig.source.sign_out()
        gate.open.set()
        with pytest.raises(SignedOut):
            await asking
        with pytest.raises(SignedOut):
            await rig.access()
        assert rig.posts == 1

    run(scene)


def test_f41_a_sign_out_during_the_first_refresh_from_the_seed_stays() -> None:
    """The seed's own first token does not outlive a sign-out that came while it was on its way."""

    async def scene() -> None:
        held = Paused(success(1))
        rig = Rig(held)
        asking = asyncio.create_task(rig.access())
        await held.arrived.wait()
        await rig.source.sign_out()
        held.release()
        with pytest.raises(SignedOut):
            await asking
        grant = await rig.stored()
        assert grant is not None
        assert grant.signed_out

    run(scene)


def test_f27_a_sign_in_that_could_not_be_stored_is_not_forgotten_by_a_flight_that_saves_an_older_token() -> (
    None
):
    """A sign-in while an older token is being saved: the sign-in is what is served and stored."""

    async def scene() -> None:
        rig, store, _ = odd(success(1), success(2), success(3))
        store.steps["commit"] = down
        await rig.access()
        gate = store.steps["commit"] = Gate()
        asked = asyncio.create_task(rig.source.refresh())
        await gate.arrived.wait()
        store.steps["put"] = down
        assert (await rig.source.sign_in(refresh_token="new")).access_token == "access-2"
        store.steps.clear()
        gate.open.set()
        await asyncio.gather(asked, return_exceptions=True)
        await turns()
        assert "refresh_token=refresh-1" not in "".join(r.body.decode() for r in rig.transport.requests)
        assert await stored(rig) == await rig.access()
        await rig.source.aclose()

    run(scene)


@pytest.mark.parametrize("who", ["a sign-in", "another process"])
def test_f20_without_rotation_a_late_refresh_does_not_replace_a_newer_token(who: str) -> None:
    """Every generation has the same refresh token then, and still the newer access token stays."""

    async def scene() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        held = Paused(success(1, refresh=None))
        rig = Rig(held, success(2, refresh=None), rotates=False, store=store, clock=clock)
        asking = asyncio.create_task(rig.access())
        await held.arrived.wait()
        if who == "a sign-in":
            await rig.source.sign_in(refresh_token="seed-token")
        else:
            store._holders.clear()  # a lease that has lapsed
            other = Rig(success(2, refresh=None), rotates=False, store=store, clock=clock)
            assert await other.access() == "access-2"
        held.release()
        await asking
        assert await stored(rig) == "access-2"
        assert await rig.access() == "access-2"

    run(scene)


# -- closing ----------------------------------------------------------------------------------------


def test_f18_closing_saves_at_once_what_waits_for_its_next_try() -> None:
    """The pause before the next try may be longer than the grace period: the store may be well again."""

    async def scene() -> None:
        rig, store, clock = odd(success(1))
        store.steps["commit"] = down
        await rig.access()
        for pause in (1, 2, 4, 8, 16):
            await asleep(clock, pause)
            clock.advance(pause)
            await turns()
        await asleep(clock, 30)
        store.steps.clear()
        await rig.source.aclose()
        assert await stored(rig) == "access-1"

    run(scene)


def test_f18_closing_that_could_not_save_lets_others_go_on() -> None:
    """The claim of what could not be stored ends with the closing, which says so."""

    async def scene() -> None:
        rig, store, clock = odd(success(1))
        store.steps["commit"] = down
        await rig.access()
        closing = asyncio.create_task(rig.source.aclose())
        await turns()
        clock.advance(25)
        with pytest.raises(StoreUnavailable, match="before the session closed"):
            await closing
        store.steps.clear()
        assert await Rig(success(2), store=store, clock=clock).access() == "access-2"

    run(scene)


def test_f18_closing_says_so_if_a_store_that_hangs_kept_a_new_token_from_being_stored() -> None:
    """A commit that never ends is not taken for an end in order."""

    async def scene() -> None:
        held = Paused(success(1))
        rig, store, clock = odd(held)
        store.steps["commit"] = hang
        asking = asyncio.create_task(rig.access())
        await held.arrived.wait()
        closing = asyncio.create_task(rig.source.aclose())
        await turns()
        clock.advance(18)  # a slow endpoint, within its time-out
        held.release()
        await turns()
        for _ in range(40):
            clock.advance(1)
            await turns()
        with pytest.raises(StoreUnavailable, match="before the session closed"):
            await closing
        with pytest.raises(TokenUnavailable):
            await asking

    run(scene)


def test_f18_when_the_grace_period_is_over_every_flight_is_stopped() -> None:
    """One that cannot be stopped does not keep the others from it."""

    async def scene() -> None:
        one, other = Paused(success(1)), Paused(success(2))
        rig, store, clock = odd(one, other)
        release = asyncio.Event()

        async def deaf() -> None:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        store.steps["commit"] = store.steps["put"] = deaf
        asking = asyncio.create_task(rig.access())
        await one.arrived.wait()
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="x"))
        await other.arrived.wait()
        one.release()
        other.release()
        await turns()
        flights = rig.source._coordinator._tasks.running
        assert len(flights) == 2
        closing = asyncio.create_task(rig.source.aclose())
        await turns()
        clock.advance(25)
        await turns()
        for flight in flights:
            assert flight.done or (flight._task is not None and flight._task.cancelling())
        release.set()
        for _ in range(30):
            clock.advance(1)
            await turns()
        await asyncio.gather(closing, asking, signing_in, return_exceptions=True)

    run(scene)


# -- cancellation, once and twice --------------------------------------------------------------------


def at_every_turn(scene: Callable[[int], Awaitable[None]], turns_of_it: int) -> None:
    for turn in range(turns_of_it):

        async def once(turn: int = turn) -> None:
            await scene(turn)

        run(once)


def test_f02_a_claim_that_is_granted_as_the_flight_is_cancelled_is_let_go() -> None:
    """Whichever turn of the loop a flight is cancelled in: nobody holds the claim for ever."""

    async def scene(turn: int) -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        rig = Rig(success(1), store=store, clock=clock)
        asking = asyncio.create_task(rig.access())
        for _ in range(turn + 1):
            await asyncio.sleep(0)
        if rig.source._coordinator._tasks.running:
            flight_of(rig).cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await turns()
        assert not store._holders, turn

    at_every_turn(scene, 60)


def test_f02_a_claim_that_somebody_abandons_as_closing_gives_up_is_not_kept() -> None:
    """The end of the grace period may be the moment at which the claim is granted."""

    async def scene(turn: int) -> None:
        clock = FakeClock(jitter=1.0)
        store = MemoryStore(clock=clock)
        other = await store.claim("account", seen=None, timeout=0)
        assert not isinstance(other, MemoryStore)
        rig = Rig(success(1), store=store, clock=clock)
        asking = asyncio.create_task(rig.access())
        await turns()
        closing = asyncio.create_task(rig.source.aclose())
        await turns()
        clock.advance(25)
        for _ in range(turn):
            await asyncio.sleep(0)
        await other.abandon()  # type: ignore[union-attr]
        await turns()
        await asyncio.gather(closing, asking, return_exceptions=True)
        assert not store._holders, turn

    at_every_turn(scene, 40)


def test_f01_a_reply_that_has_arrived_is_stored_although_the_flight_is_cancelled() -> None:
    """In whichever turn after its arrival: the token that was received is stored."""

    async def scene(turn: int) -> None:
        held = Paused(success(1))
        rig = Rig(held)
        asking = asyncio.create_task(rig.access())
        await held.arrived.wait()
        held.release()
        for _ in range(turn + 2):  # by then the endpoint has it
            await asyncio.sleep(0)
        if rig.source._coordinator._tasks.running:
            flight_of(rig).cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await turns()
        assert await stored(rig) == "access-1", turn

    at_every_turn(scene, 40)


def test_f01_a_write_that_is_cancelled_twice_leaves_word_of_the_request() -> None:
    """If a new token cannot be stored before the end, the claim's mark stays behind."""

    async def scene(turn: int) -> None:
        rig, store, clock = odd(success(1))
        gate = store.steps["commit"] = Gate()
        asking = asyncio.create_task(rig.access())
        await gate.arrived.wait()
        flight = flight_of(rig)
        flight.cancel()
        for _ in range(turn + 1):
            await asyncio.sleep(0)
        flight.cancel()
        await turns()
        clock.advance(10)  # the store's time-out, should the second have come before the second try
        await asyncio.gather(asking, return_exceptions=True)
        assert await stored(rig) is not None or store.held(), turn
        assert rig.source.snapshot().unsaved, "and closing will say so"

    at_every_turn(scene, 12)


def test_f01_a_cancelled_request_whose_note_is_superseded_makes_no_second_one() -> None:
    """A flight that is stopped stops, whatever it finds in the store."""

    async def scene() -> None:
        held = Paused(success(1))
        rig = Rig(held, success(2))
        asking = asyncio.create_task(rig.access())
        await held.arrived.wait()
        assert rig.provider.credential is not None
        await rig.store.put("account", encode(TokenState(configured=rig.provider.credential.fingerprint)))
        flight_of(rig).cancel()
        with pytest.raises(TokenUnavailable):
            await asking
        assert rig.posts == 1

    run(scene)


def test_f43_a_sign_in_that_is_stopped_as_the_store_fails_is_not_forgotten() -> None:
    """Its token is unsaved, which closing will say, and its caller hears that it was stopped."""

    async def scene() -> None:
        rig, store, _ = odd(success(1))
        gate = Gate()

        async def put() -> None:
            try:
                await gate()
            finally:
                store.steps["put"] = down

        store.steps["put"] = put
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="x"))
        await gate.arrived.wait()
        flight_of(rig).cancel()
        with pytest.raises(TokenUnavailable, match="stopped"):
            await signing_in
        assert rig.source.snapshot().unsaved
        store.steps.clear()
        await rig.source.aclose()
        assert await stored(rig) == "access-1"

    run(scene)


def test_f03_a_deadline_that_is_cancelled_twice_leaves_no_timer() -> None:
    """Nothing is left asleep, however impatient the caller and however stubborn the work."""

    async def scene() -> None:
        clock, release = FakeClock(), asyncio.Event()

        async def stubborn() -> None:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        task = asyncio.create_task(within(clock, 30, stubborn()))
        await turns()
        for _ in range(2):
            task.cancel()
            await turns()
        assert task.done()
        assert not clock.sleepers
        release.set()
        await turns()

    run(scene)


# -- what belongs to others --------------------------------------------------------------------------


async def cancels_itself() -> None:
    """As a driver's pool does that is being closed."""
    raise asyncio.CancelledError


async def misconfigured() -> None:
    """As a store that encrypts, and has lost its key."""
    raise ConfigurationError("No key to encrypt with.")


@pytest.mark.parametrize("trouble", [cancels_itself, misconfigured])
def test_f27_whatever_a_foreign_store_raises_a_rotated_token_is_served_and_kept(trouble: Any) -> None:
    """A commit that raises what it may not is one that has failed: the token is saved again."""

    async def scene() -> None:
        rig, store, clock = odd(success(1))
        store.steps["commit"] = trouble
        assert await rig.access() == "access-1"
        assert rig.source.snapshot().unsaved
        store.steps.clear()
        clock.advance(1)
        while rig.source.snapshot().unsaved:
            await turns()
        assert await stored(rig) == "access-1"

    run(scene)


def test_f43_an_endpoint_that_cancels_itself_is_one_that_has_failed() -> None:
    """It is told in an event, and remembered for the pause: nobody has cancelled the refresh."""

    async def scene() -> None:
        rig = Rig(asyncio.CancelledError(), clock=FakeClock(jitter=1.0))
        with pytest.raises(TokenUnavailable):
            await rig.access()
        assert any(isinstance(event, RefreshFailed) for event in rig.events)
        assert rig.source.snapshot().last_error == "OutcomeUnknown"

    run(scene)


def test_two_who_save_the_same_token_tell_it_once() -> None:
    """The next flight saves first; the try in the background was under way."""

    async def scene() -> None:
        rig, store, clock = odd(success(1), success(2))
        store.steps["commit"] = down
        await rig.access()
        gate = store.steps["commit"] = Gate()
        await asleep(clock, 1)
        clock.advance(1)
        await gate.arrived.wait()
        asked = asyncio.create_task(rig.source.refresh())
        await turns()
        store.steps.clear()
        gate.open.set()
        await asked
        await turns()
        assert sum(isinstance(event, Saved) for event in rig.events) == 1

    run(scene)
