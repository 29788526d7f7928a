"""A token response that comes late has the next refresh token: it is awaited, kept and stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from _moments import let_pass, refused, under_way
from _rig import (
    IMPATIENT,
    LIFETIME,
    Rig,
    begun,
    failed_after,
    invalid_grant,
    let_tasks_run,
    run,
    run_in_every_turn,
    success,
    took,
)
from _scripted_store import Gate, ScriptedClaim, ScriptedStore, scripted

from tokensession import (
    AuthorizationPending,
    ClaimTimeout,
    GrantRejected,
    OutcomeUnknown,
    Policy,
    SignedOut,
    TokenUnavailable,
)
from tokensession.events import Adopted, Refreshed, RefreshFailed
from tokensession.policy import LOOK_INTERVAL
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.testing import FakeClock, Paused, ScriptedTransport, token_response

CALLER, RESPONSE = 20, 120
"""Seconds: `Policy.caller_timeout` and `Policy.response_timeout`."""


async def late(*script: Any, after: float = CALLER, **options: Any) -> tuple[Rig, Paused]:
    """A rig whose request has got no answer for so long, and whose caller has the error by then."""
    rig = Rig(**options)
    paused, caller = await rig.in_flight(success(1))
    rig.transport.script(*script)
    assert await failed_after(OutcomeUnknown, caller, rig.clock, match="The refresh goes on") == CALLER
    rig.clock.advance(after - CALLER)
    await let_tasks_run()
    return rig, paused


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


@pytest.mark.parametrize("policy", [IMPATIENT, Policy()], ids=["impatient", "patient"])
def test_f54_f66_callers_that_come_while_a_late_answer_is_awaited_share_it(policy: Policy) -> None:
    """They send nothing themselves, and each waits for its own twenty seconds at most."""

    async def main() -> None:
        rig, paused = await late(after=30, policy=policy)
        assert await failed_after(OutcomeUnknown, rig.access(), rig.clock) == CALLER
        second = await begun(rig.access())
        rig.clock.advance(10)
        paused.release()
        assert await second == "access-1"
        assert (rig.token_requests, await rig.stored_access()) == (1, "access-1")

    run(main)


def test_f54_a_valid_token_is_served_while_a_late_answer_is_awaited() -> None:
    """Its callers notice nothing."""

    async def main() -> None:
        rig, paused = Rig(success(1)), Paused(success(2))
        rig.transport.script(paused)
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
        others = [rig.peer() for _ in range(2)]
        assert await failed_after(TokenUnavailable, others[0].access(), rig.clock) == CALLER
        waiting = others[1].ask()
        await let_tasks_run()
        with pytest.raises(ClaimTimeout):
            await rig.store.claim("account", seen=None, timeout=0)
        paused.release()
        assert await waiting == "access-1"
        assert any(isinstance(event, Adopted) for event in others[1].events)
        assert sum(other.token_requests for other in others) == 0

    run(main)


@pytest.mark.parametrize(
    ("policy", "bound"), [(IMPATIENT, RESPONSE), (Policy(retry_within=0, response_timeout=30), 30)]
)
def test_f54_after_two_minutes_or_the_policys_time_the_outcome_is_unknown(policy: Policy, bound: int) -> None:
    """Then the request is over, its outcome is noted, and the same refresh token is sent once more."""

    async def main() -> None:
        rig, _ = await late(success(2), policy=policy)
        assert CALLER + await took(rig.refreshed(), rig.clock) == bound
        assert await rig.unknown_outcomes() == 1
        assert any(isinstance(event, RefreshFailed) for event in rig.events)
        rig.clock.advance(2)
        assert await rig.access() == "access-2"
        assert "refresh_token=configured-token" in rig.sent()

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


def test_f41_f54_a_refresh_that_a_sign_in_has_overtaken_awaits_the_answer_for_the_new_sign_in() -> None:
    """It sends the refresh token of the sign-in, whose token has ended already."""

    async def main() -> None:
        answer, gate = Paused(success(3)), Gate()
        rig, store, clock = scripted(success(1), success(2, expires_in=5), answer)
        await rig.access()
        clock.advance(LIFETIME)
        store.steps["claim"] = gate
        caller = await under_way(rig.source.token(), gate)
        store.steps.clear()
        assert (await rig.source.sign_in(code="new")).access_token == "access-2"
        clock.advance(6)
        gate.open.set()
        await answer.arrived.wait()
        assert "refresh_token=refresh-2" in rig.sent()
        await failed_after(OutcomeUnknown, caller, clock)
        await let_pass(clock, CALLER)
        answer.release()
        await rig.refreshed()
        assert await rig.stored_access() == "access-3"

    run(main)


@pytest.mark.parametrize("how", ["closing", "sign-in", "sign-out"])
def test_f18_f41_f54_closing_a_sign_in_or_a_sign_out_ends_the_wait_for_a_late_answer(
    how: str,
) -> None:
    """No caller waits for it any more, or another credential needs the claim. A sign-out stays."""

    async def main() -> None:
        rig, _ = await late(success(2))
        if how == "closing":
            assert await took(rig.source.aclose(), rig.clock) == 0
            assert await rig.unknown_outcomes() == 1
        elif how == "sign-in":
            signing_in = asyncio.create_task(rig.source.sign_in(refresh_token="new"))
            assert await took(signing_in, rig.clock) == 0
            assert signing_in.result().access_token == "access-2"
            assert "refresh_token=new" in rig.sent()
            assert await rig.access() == "access-2"
        else:
            assert await took(rig.source.sign_out(), rig.clock) == 0
            await rig.refreshed()
            with pytest.raises(SignedOut):
                await rig.access()
            assert (await rig.state()).signed_out

    run(main)


@pytest.mark.parametrize("after", [CALLER, CALLER - 1], ids=["late", "late during the poll"])
def test_f54_asking_whether_a_device_is_approved_loses_no_late_answer(after: int) -> None:
    """The person may never approve it. Until then, the answer has the only copy of the next refresh token."""

    async def main() -> None:
        rig, store, clock = scripted(configured="configured-token")
        paused, caller = await rig.in_flight(success(1))
        clock.advance(after)
        await let_tasks_run()
        rig.transport.script(token_response({"error": "authorization_pending"}, 400))
        polling = asyncio.create_task(rig.source.sign_in(device_code="shown"))
        await failed_after(AuthorizationPending, polling, clock)
        paused.release()
        await rig.refreshed()
        assert await rig.stored_access() == await rig.access() == "access-1"
        await asyncio.gather(caller, return_exceptions=True)
        rig.transport.script(success(2))
        await rig.source.sign_in(device_code="shown")
        assert await rig.access() == "access-2"
        assert not store.has_claims()

    run(main)


def test_f18_f54_a_request_that_is_not_late_at_closing_has_the_close_timeout() -> None:
    """It is late only after twenty seconds: up to then its callers may get the answer."""

    async def main() -> None:
        rig = Rig()
        paused, caller = await rig.in_flight(success(1))
        rig.clock.advance(19)
        closing = await begun(rig.source.aclose())
        rig.clock.advance(15)
        await let_tasks_run()
        assert not closing.done()
        paused.release()
        await closing
        assert await rig.stored_access() == "access-1"
        with pytest.raises(OutcomeUnknown):
            await caller

    run(main)


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
        policy = Policy(retry_within=0, response_timeout=10)
        rig = Rig(answers_when_cancelled(turns, success(1)), policy=policy)
        assert await took(rig.access(), rig.clock) == 10
        assert await rig.access() == "access-1"
        assert await rig.stored_access() == "access-1"

    run(main)


@pytest.mark.parametrize("turns", [0, 1, 30])
def test_f18_f54_mutant_33_an_answer_that_arrives_as_closing_cuts_it_off_is_stored(turns: int) -> None:
    """What was cancelled gets the time to end."""

    async def main() -> None:
        rig = Rig(answers_when_cancelled(turns, success(1)))
        caller = await begun(rig.access())
        await took(rig.source.aclose(), rig.clock)
        await asyncio.gather(caller, return_exceptions=True)
        assert await rig.stored_access() == "access-1"
        assert await rig.unknown_outcomes() == 0

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
            assert await rig.unknown_outcomes() == 1
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
        await failed_after(OutcomeUnknown, rig.access(), rig.clock)
        work = rig.source.sign_out() if change == "sign-out" else rig.source.sign_in(refresh_token="new")
        await took(work, rig.clock)
        await rig.refreshed()
        await let_tasks_run()
        if change == "sign-out":
            with pytest.raises(SignedOut):
                await rig.access()
        else:
            assert await rig.access() == "access-2"
            assert await rig.stored_access() == "access-2"
        assert (await rig.state()).signed_out is (change == "sign-out")

    run(main)


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
        transport = OneAtATime(paused, success(2), success(3))
        one = Rig(transport=transport, key="one")
        other, third = (one.peer(transport=transport, key=key) for key in ("other", "third"))
        hanging = one.ask()
        await paused.arrived.wait()
        queued = await begun(other.access())
        assert transport.sent == 1
        assert await took(queued, one.clock) == CALLER
        assert queued.result() == "access-2"
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
    """If the last holder's answer comes, it is used at once, and no spent refresh token is sent."""

    async def main() -> None:
        clock = FakeClock(jitter=0.0)
        store = LapsedLease(clock=clock)
        rig = Rig(success(1), store=store, clock=clock)
        await failed_after(OutcomeUnknown, rig.access(), clock)
        assert rig.token_requests == 0
        if answered:
            last = Rig(success(7), clock=clock)
            await last.access()
            record = await last.store.load("account")
            assert record is not None
            await store.put("account", record.data, expect=None)
        waited = CALLER + await took(rig.refreshed(), clock)
        assert waited == pytest.approx(CALLER + LOOK_INTERVAL if answered else 40)
        assert await rig.access() == ("access-7" if answered else "access-1")
        assert rig.token_requests == (0 if answered else 1)

    run(main)


def test_f10_closing_ends_the_wait_for_a_last_holder_that_may_be_listening() -> None:
    """This process has sent nothing, and its claim ends: the next one waits instead."""

    async def main() -> None:
        clock = FakeClock(jitter=0.0)
        store = LapsedLease(clock=clock)
        rig = Rig(store=store, clock=clock)
        caller = await begun(rig.access())
        assert await took(rig.source.aclose(), clock) == 0
        await refused(TokenUnavailable, caller)
        assert rig.token_requests == 0
        assert not store.has_claims()

    run(main)


@pytest.mark.parametrize("credential", ["code", "refresh_token"])
def test_f54_a_sign_in_with_what_was_redeemed_before_loses_no_late_answer(credential: str) -> None:
    """A user reloads the page that a code came with. Nothing is sent, so nothing has to make way."""

    async def main() -> None:
        rig = Rig(success(1), configured=None)
        await rig.source.sign_in(**{credential: "once"})
        rig.clock.advance(LIFETIME)
        paused, caller = await rig.in_flight(success(2))
        await failed_after(OutcomeUnknown, caller, rig.clock)
        again = await begun(rig.source.sign_in(**{credential: "once"}))
        paused.release()
        assert (await again).access_token == "access-2"
        assert await rig.access() == "access-2"
        assert rig.token_requests == 2

    run(main)
