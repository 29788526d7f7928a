"""A token response that comes late has the next refresh token: it is awaited, kept and stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from _rig import (
    LIFETIME,
    Rig,
    invalid_grant,
    let_tasks_run,
    run,
    run_in_every_turn,
    seconds_until_done,
    success,
)
from _scripted_store import ScriptedClaim, ScriptedStore, scripted

from tokensession import ClaimTimeout, GrantRejected, OutcomeUnknown, Policy, SignedOut, TokenUnavailable
from tokensession.events import Adopted, Refreshed, RefreshFailed
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, Paused, ScriptedTransport

CALLER, RESPONSE = 20, 120
"""Seconds: `Policy.caller_timeout` and `Policy.response_timeout`."""


async def late(*script: Any, after: float = CALLER, **options: Any) -> tuple[Rig, Paused]:
    """A rig whose request has got no answer for so long, and whose caller has the error by then."""
    paused = Paused(success(1))
    rig = Rig(paused, *script, **options)
    caller = asyncio.create_task(rig.access())
    assert await seconds_until_done(caller, rig.clock) == CALLER
    with pytest.raises(OutcomeUnknown, match="The refresh goes on"):
        await caller
    rig.clock.advance(after - CALLER)
    await let_tasks_run()
    return rig, paused


async def unknown_outcomes(rig: Rig) -> int:
    """How many token requests without an answer the store knows of."""
    stored = await rig.stored()
    return stored.failures.unknown if stored is not None and stored.failures is not None else 0


# -- kept --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [25, 30, 119])
def test_f54_k04_an_answer_that_comes_after_the_callers_have_given_up_is_stored_and_served(
    after: int,
) -> None:
    """The next callers get its token, and the next refresh sends its refresh token."""

    async def main() -> None:
        rig, paused = await late(success(2), after=after)
        assert rig.source.snapshot().refreshing
        paused.release()
        await rig.refreshed()
        assert await rig.stored_access() == "access-1"
        assert await rig.access() == "access-1"
        rig.clock.advance(LIFETIME)
        assert await rig.access() == "access-2"
        assert "refresh_token=refresh-1" in rig.sent()
        (refreshed, _) = [event for event in rig.events if isinstance(event, Refreshed)]
        assert refreshed.duration == after

    run(main)


def test_f54_callers_that_come_while_a_late_answer_is_awaited_share_it() -> None:
    """They send nothing themselves, and each waits for its own twenty seconds at most."""

    async def main() -> None:
        rig, paused = await late(after=30)
        first = asyncio.create_task(rig.access())
        assert await seconds_until_done(first, rig.clock) == CALLER
        with pytest.raises(OutcomeUnknown):
            await first
        second = asyncio.create_task(rig.access())
        await let_tasks_run()
        rig.clock.advance(10)
        paused.release()
        assert await second == "access-1"
        assert rig.token_requests == 1

    run(main)


def test_f54_a_valid_token_is_served_while_a_late_answer_is_awaited() -> None:
    """Its callers notice nothing."""

    async def main() -> None:
        paused = Paused(success(2))
        rig = Rig(success(1), paused)
        await rig.access()
        rig.clock.advance(LIFETIME - 299)  # due
        for _ in range(11):
            assert await rig.access() == "access-1"
            await let_tasks_run()
            rig.clock.advance(10)
        paused.release()
        await rig.refreshed()
        assert await rig.access() == "access-2"
        assert rig.token_requests == 2

    run(main)


def test_f10_f54_the_request_keeps_its_claim_while_a_late_answer_is_awaited() -> None:
    """No other process sends the same refresh token. They get the answer, too."""

    async def main() -> None:
        rig, paused = await late()
        others = [Rig(store=rig.store, clock=rig.clock) for _ in range(2)]
        early = asyncio.create_task(others[0].access())
        assert await seconds_until_done(early, rig.clock) == CALLER
        with pytest.raises(TokenUnavailable):
            await early
        waiting = asyncio.create_task(others[1].access())
        await let_tasks_run()
        with pytest.raises(ClaimTimeout):
            await rig.store.claim("account", seen=None, timeout=0)
        paused.release()
        assert await waiting == "access-1"
        assert any(isinstance(event, Adopted) for event in others[1].events)
        assert sum(other.token_requests for other in others) == 0

    run(main)


def test_f54_after_two_minutes_the_outcome_is_unknown() -> None:
    """Then the request is over, its outcome is noted, and the same refresh token is sent once more."""

    async def main() -> None:
        rig, _ = await late(success(2))
        over = asyncio.create_task(rig.refreshed())
        assert CALLER + await seconds_until_done(over, rig.clock) == RESPONSE
        assert await unknown_outcomes(rig) == 1
        assert any(isinstance(event, RefreshFailed) for event in rig.events)
        rig.clock.advance(2)
        assert await rig.access() == "access-2"
        assert "refresh_token=configured-token" in rig.sent()

    run(main)


def test_f54_an_answer_that_is_late_by_the_policy_is_awaited_as_long_as_the_policy_says() -> None:
    """`Policy.response_timeout` is the bound."""

    async def main() -> None:
        rig, _ = await late(policy=Policy(retry_within=0, response_timeout=30))
        over = asyncio.create_task(rig.refreshed())
        assert CALLER + await seconds_until_done(over, rig.clock) == 30

    run(main)


def test_f54_without_rotation_no_late_answer_is_awaited() -> None:
    """The refresh token works again, so another request is better than waiting."""

    async def main() -> None:
        rig = Rig(Paused(success(1)), success(2), rotates=False)
        caller = asyncio.create_task(rig.access())
        assert await seconds_until_done(caller, rig.clock) == CALLER
        with pytest.raises(OutcomeUnknown):
            await caller
        assert not rig.source.snapshot().refreshing
        rig.clock.advance(1)
        assert await rig.access() == "access-2"

    run(main)


def test_f54_a_late_rejection_is_noted() -> None:
    """The next caller is told to sign in, without another request."""

    async def main() -> None:
        rig, paused = await late()
        paused.line = invalid_grant()
        paused.release()
        await rig.refreshed()
        rig.clock.advance(1)
        with pytest.raises(GrantRejected):
            await rig.access()
        assert rig.token_requests == 1

    run(main)


# -- what ends the wait ------------------------------------------------------------------------------


def test_f18_f54_closing_ends_the_wait_for_a_late_answer_at_once() -> None:
    """No caller waits for it any more. Its outcome is noted as unknown."""

    async def main() -> None:
        rig, _ = await late()
        closing = asyncio.create_task(rig.source.aclose())
        assert await seconds_until_done(closing, rig.clock) == 0
        await closing
        assert await unknown_outcomes(rig) == 1

    run(main)


def test_f18_f54_a_request_that_is_not_late_at_closing_has_the_close_timeout() -> None:
    """It is late only after twenty seconds: up to then its callers may get the answer."""

    async def main() -> None:
        paused = Paused(success(1))
        rig = Rig(paused)
        caller = asyncio.create_task(rig.access())
        await let_tasks_run()
        rig.clock.advance(19)
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run()
        rig.clock.advance(15)
        await let_tasks_run()
        assert not closing.done()
        paused.release()
        await closing
        assert await rig.stored_access() == "access-1"
        with pytest.raises(OutcomeUnknown):
            await caller

    run(main)


def test_f54_a_sign_in_ends_the_wait_for_a_late_answer_at_once() -> None:
    """It needs the claim, and there is going to be another credential."""

    async def main() -> None:
        rig, _ = await late(success(2))
        signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
        assert await seconds_until_done(signing_in, rig.clock) == 0
        assert (await signing_in).access_token == "access-2"
        assert "refresh_token=new" in rig.sent()
        assert await rig.access() == "access-2"

    run(main)


def test_f41_f54_a_sign_out_ends_the_wait_for_a_late_answer_at_once() -> None:
    """And stays."""

    async def main() -> None:
        rig, _ = await late()
        signing_out = asyncio.create_task(rig.source.sign_out())
        assert await seconds_until_done(signing_out, rig.clock) == 0
        await rig.refreshed()
        with pytest.raises(SignedOut):
            await rig.access()
        stored = await rig.stored()
        assert stored is not None
        assert stored.signed_out

    run(main)


# -- an answer that has arrived when the wait ends ---------------------------------------------------


def answers_when_cancelled(turns: int, response: TokenResponse) -> Callable[[TokenRequest], Awaitable[Any]]:
    """A line of a script: the response comes so many turns of the event loop after the cancellation."""

    async def answer(_request: TokenRequest) -> TokenResponse:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await let_tasks_run(turns)
            return response
        raise AssertionError

    return answer


@pytest.mark.parametrize("turns", [0, 1, 30])
def test_f54_k04_an_answer_that_arrives_as_the_time_ends_is_used(turns: int) -> None:
    """A transport may finish what it has begun although it is cancelled."""

    async def main() -> None:
        rig = Rig(
            answers_when_cancelled(turns, success(1)), policy=Policy(retry_within=0, response_timeout=10)
        )
        caller = asyncio.create_task(rig.access())
        assert await seconds_until_done(caller, rig.clock) == 10
        assert await caller == "access-1"
        assert await rig.stored_access() == "access-1"

    run(main)


@pytest.mark.parametrize("turns", [0, 1, 30])
def test_f18_f54_mutant_33_an_answer_that_arrives_as_closing_cuts_it_off_is_stored(turns: int) -> None:
    """What was cancelled gets the time to end."""

    async def main() -> None:
        rig = Rig(answers_when_cancelled(turns, success(1)))
        caller = asyncio.create_task(rig.access())
        await let_tasks_run()
        closing = asyncio.create_task(rig.source.aclose())
        await seconds_until_done(closing, rig.clock)
        await closing
        await asyncio.gather(caller, return_exceptions=True)
        assert await rig.stored_access() == "access-1"
        assert await unknown_outcomes(rig) == 0

    run(main)


def test_f54_a_late_answer_that_arrives_at_any_turn_of_closing_is_stored_or_noted() -> None:
    """Nothing in between: the store has the new token, or knows that the outcome is unknown."""
    ends: set[str] = set()

    async def main(turn: int) -> None:
        rig, paused = await late()
        closing = asyncio.create_task(rig.source.aclose())
        await let_tasks_run(turn)
        paused.release()
        await closing
        if await rig.stored_access() == "access-1":
            ends.add("stored")
        else:
            assert await unknown_outcomes(rig) == 1
            ends.add("noted")

    run_in_every_turn(main, 15)
    assert "noted" in ends


@pytest.mark.parametrize("turns", [0, 1, 5])
@pytest.mark.parametrize("change", ["sign-in", "sign-out"])
def test_f41_f54_a_sign_in_or_sign_out_wins_over_an_answer_that_arrives_as_it_ends_the_wait(
    change: str, turns: int
) -> None:
    """Whichever is stored first."""

    async def main() -> None:
        rig = Rig(answers_when_cancelled(turns, success(1)), success(2))
        caller = asyncio.create_task(rig.access())
        await seconds_until_done(caller, rig.clock)
        await asyncio.gather(caller, return_exceptions=True)
        work = rig.source.sign_out() if change == "sign-out" else rig.source.sign_in(refresh_token="new")
        changing = asyncio.create_task(work)
        await seconds_until_done(changing, rig.clock)
        await changing
        await rig.refreshed()
        await let_tasks_run()
        if change == "sign-out":
            with pytest.raises(SignedOut):
                await rig.access()
        else:
            assert await rig.access() == "access-2"
            assert await rig.stored_access() == "access-2"
        stored = await rig.stored()
        assert stored is not None
        assert stored.signed_out is (change == "sign-out")

    run(main)


# -- other keys and other processes ------------------------------------------------------------------


class OneAtATime(ScriptedTransport):
    """Has one connection."""

    def __init__(self, *lines: Any) -> None:
        super().__init__(*lines)
        self.connections = asyncio.Semaphore(1)

    async def reserve(self, _url: str) -> Callable[[], None]:
        await self.connections.acquire()
        done: list[None] = []

        def release() -> None:
            if not done:
                done.append(None)
                self.connections.release()

        return release


def test_f54_a_request_whose_answer_is_late_takes_no_place_from_other_keys() -> None:
    """After twenty seconds its place is free, and the callers of the other keys lose none of their time."""

    async def main() -> None:
        paused = Paused(success(1))
        transport, clock = OneAtATime(paused, success(2), success(3)), FakeClock(jitter=0.0)
        store = MemoryStore(clock=clock)
        one, other, third = (
            Rig(transport=transport, clock=clock, store=store, key=key) for key in ("one", "other", "third")
        )
        hanging = asyncio.create_task(one.access())
        await paused.arrived.wait()
        queued = asyncio.create_task(other.access())
        await let_tasks_run()
        assert transport.sent == 1
        assert await seconds_until_done(queued, clock) == CALLER
        assert await queued == "access-2"
        with pytest.raises(OutcomeUnknown):
            await hanging
        assert await third.access() == "access-3"
        paused.release()
        await one.refreshed()
        assert await one.access() == "access-1"
        assert not transport.connections.locked()
        assert transport.connections._value == 1, "each place is given back once"

    run(main)


def test_f10_f54_the_mark_says_for_how_long_the_answer_is_awaited() -> None:
    """As a duration, for a store with leases: the next holder knows how long to wait."""

    async def main() -> None:
        for rotates, seconds in ((True, RESPONSE), (False, 20)):
            rig, store, _ = scripted(success(1), rotates=rotates)
            await rig.access()
            assert store.listening == [seconds]

    run(main)


class LapsedLease(ScriptedStore):
    """A store with leases. The last holder sent its request 5 s ago, and may be listening for 40 s more."""

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Any:
        found = await super().claim(key, seen=seen, timeout=timeout)
        if isinstance(found, ScriptedClaim):
            found.interrupted, found.listening = 5.0, 40.0
        return found


@pytest.mark.parametrize("answered", [False, True], ids=["it is lost", "it comes"])
def test_f10_f11_f54_a_new_holder_waits_while_the_last_one_may_be_listening(answered: bool) -> None:
    """If the last holder's answer comes, it is used, and no spent refresh token is sent."""

    async def main() -> None:
        clock = FakeClock(jitter=0.0)
        store = LapsedLease(clock=clock)
        rig = Rig(success(1), store=store, clock=clock)
        caller = asyncio.create_task(rig.access())
        await seconds_until_done(caller, clock)
        await asyncio.gather(caller, return_exceptions=True)
        assert rig.token_requests == 0
        if answered:
            last = Rig(success(7), clock=clock)
            await last.access()
            record = await last.store.load("account")
            assert record is not None
            await store.put("account", record.data, expect=None)
        over = asyncio.create_task(rig.refreshed())
        assert CALLER + await seconds_until_done(over, clock) == 40
        assert await rig.access() == ("access-7" if answered else "access-1")
        assert rig.token_requests == (0 if answered else 1)

    run(main)
