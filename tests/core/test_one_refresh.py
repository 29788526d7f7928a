"""One token request, however many callers there are and whatever happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import anyio
import pytest
from _moments import (
    beside,
    held_claim,
    holding,
    processes,
    refresh_token_in,
    refresh_tokens,
    refused,
    requests_of,
    state_in,
    under_way,
)
from _rig import LIFETIME, Rig, let_tasks_run, run, seconds_until_done, success

from tokensession import ClaimTimeout, Freshness, NotSent, Policy, SignInRequired, TokenUnavailable
from tokensession.events import Adopted, Refreshed, RefreshFailed, RefreshStarted
from tokensession.testing import Paused, token_response


@pytest.mark.parametrize("expired", [False, True], ids=["no token", "expired token"])
def test_f05_ten_thousand_tasks_without_a_token_cause_one_request(expired: bool) -> None:
    async def main() -> None:
        rig = await holding(success(2), age=LIFETIME) if expired else Rig(success(1))
        tokens = await asyncio.gather(*(rig.access() for _ in range(10_000)))
        assert set(tokens) == {f"access-{1 + expired}"}
        assert rig.token_requests == 1 + expired

    run(main)


def test_a_fresh_token_is_returned_without_waiting() -> None:
    """It takes no refresh, no store, no request, and not even one turn of the event loop."""

    async def main() -> None:
        rig = await holding()
        coroutine = rig.source.token()
        with pytest.raises(StopIteration) as done:
            coroutine.send(None)
        assert done.value.value.access_token == "access-1"

    run(main)


@pytest.mark.parametrize("way", ["cancel", "wait_for", "timeout", "anyio scope", "task group"])
def test_f01_cancelling_the_first_caller_does_not_stop_the_refresh(way: str) -> None:
    """However the first caller is cancelled, the token is stored and the other callers get it."""

    async def main() -> None:
        paused = Paused(success(1))
        rig = Rig(paused)

        async def first() -> None:
            if way == "wait_for":
                await asyncio.wait_for(rig.source.token(), 3600)
            elif way == "timeout":
                async with asyncio.timeout(3600):
                    await rig.source.token()
            elif way == "anyio scope":
                with anyio.CancelScope(shield=True):
                    await rig.source.token()
            elif way == "task group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(rig.source.token())
            else:
                await rig.source.token()

        leader = await under_way(first(), paused)
        others = [asyncio.create_task(rig.access()) for _ in range(5)]
        await let_tasks_run(5)
        leader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leader
        paused.release()
        assert set(await asyncio.gather(*others)) == {"access-1"}
        assert rig.token_requests == 1
        assert await refresh_token_in(rig) == "refresh-1"

    run(main)


def test_f01_the_rotated_token_is_stored_although_every_caller_was_cancelled() -> None:
    """Without any waiter the token is still stored, and the task that does it is not garbage-collected."""

    async def main() -> None:
        paused = Paused(success(1))
        rig = Rig(paused)
        callers = [asyncio.create_task(rig.access()) for _ in range(3)]
        await paused.arrived.wait()
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        gc.collect()
        paused.release()
        await rig.refreshed()
        assert await rig.access() == "access-1"
        assert (rig.token_requests, rig.source.snapshot().refreshes) == (1, 1)

    run(main)


def test_callers_join_a_background_refresh_when_the_token_is_ending() -> None:
    """A background refresh that takes too long becomes the one that all callers wait for."""

    async def main() -> None:
        paused = Paused(success(2))
        rig = await holding(paused, age=LIFETIME - 70)
        assert await rig.access() == "access-1"
        await paused.arrived.wait()
        rig.clock.advance(15)  # ENDING, and not past the deadline of the request
        callers = [asyncio.create_task(rig.access()) for _ in range(3)]
        await let_tasks_run()
        assert not any(caller.done() for caller in callers)
        paused.release()
        assert set(await asyncio.gather(*callers)) == {"access-2"}
        assert rig.token_requests == 2

    run(main)


def test_f04_a_caller_after_a_failed_refresh_starts_a_new_one() -> None:
    """After the back-off, the next caller starts a new refresh and does not get the old error."""

    async def main() -> None:
        rig = Rig(NotSent("no route"), success(1))
        await refused(NotSent, rig.access())
        rig.clock.advance(1)
        assert await rig.access() == "access-1"

    run(main)


def test_each_waiter_gets_its_own_error_with_the_original_as_its_cause() -> None:
    """One exception object in many tasks would collect all their tracebacks."""

    async def main() -> None:
        rig = Rig(NotSent("no route"))
        errors = await asyncio.gather(*(rig.access() for _ in range(3)), return_exceptions=True)
        assert {type(error) for error in errors} == {NotSent}
        assert len({id(error) for error in errors}) == 3
        assert len({id(error.__cause__) for error in errors if isinstance(error, NotSent)}) == 1

    run(main)


def test_a_forced_refresh_returns_a_new_token_although_the_old_one_is_valid() -> None:
    """Many calls of `source.refresh()` at once share one token request."""

    async def main() -> None:
        rig = await holding(success(2))
        tokens = await asyncio.gather(*(rig.source.refresh() for _ in range(10)))
        assert {token.access_token for token in tokens} == {"access-2"}
        assert rig.token_requests == 2
        await let_tasks_run()

    run(main)


SAME = {"access_token": "the-same", "token_type": "Bearer", "expires_in": LIFETIME}


@pytest.mark.parametrize(
    ("access", "refresh"),
    [("access-{}", "refresh-{}"), ("the-same", "refresh-{}"), ("the-same", "the-same-too")],
    ids=["other bytes", "the same access token", "the same tokens"],
)
def test_f08_f60_k18_one_request_renews_the_token_of_eight_processes(access: str, refresh: str) -> None:
    """The others adopt the new token, even if the server returns the same bytes with a later expiry."""

    async def main() -> None:
        tokens = [{"access_token": access.format(n), "refresh_token": refresh.format(n)} for n in range(3)]
        first, *others = rigs = processes(8, *(token_response(SAME | token) for token in tokens))
        for number in range(3):
            served = await asyncio.gather(*(rig.access() for rig in rigs for _ in range(20)))
            assert set(served) == {access.format(number)}
            assert (first.token_requests, requests_of(others)) == (number + 1, 0)
            assert {rig.source.snapshot().freshness for rig in rigs} == {Freshness.FRESH}
            assert all(isinstance(rig.events[-1], Adopted) for rig in others)
            first.clock.advance(LIFETIME)

    run(main)


def test_f60_k18_the_same_token_with_a_later_end_is_adopted_one_after_the_other() -> None:
    """A process that looks later finds a higher generation, and serves it to its new end."""

    async def main() -> None:
        one = Rig(token_response(SAME), token_response(SAME), rotates=False)
        other = beside(one, rotates=False)
        await one.access()
        await other.access()
        one.clock.advance(LIFETIME)
        await one.access()
        one.clock.advance(60)
        await other.access()
        assert (other.token_requests, other.source.snapshot().seconds_left) == (0, LIFETIME - 60)

    run(main)


@pytest.mark.parametrize(
    ("claim_timeout", "seconds", "kind"), [(10, 10, ClaimTimeout), (30, 20, TokenUnavailable)]
)
def test_f28_a_caller_waits_for_a_claim_no_longer_than_for_anything_else(
    claim_timeout: float, seconds: float, kind: type[Exception]
) -> None:
    """It gets an error after `claim_timeout` or `caller_timeout`. Nothing is redeemed without the claim."""

    async def main() -> None:
        rig = Rig(policy=Policy(retry_within=0, claim_timeout=claim_timeout))
        claim = await held_claim(rig.store)
        caller = asyncio.create_task(rig.access())
        assert await seconds_until_done(caller, rig.clock) == seconds
        await refused(kind, caller)
        rig.clock.advance(claim_timeout - seconds)
        await rig.refreshed()
        ended = rig.events[-1]
        assert isinstance(ended, RefreshFailed)
        assert (ended.error, rig.token_requests) == ("ClaimTimeout", 0)
        del claim

    run(main)


def test_a_token_with_an_expires_in_of_0_serves_its_waiters_only() -> None:
    """There is no loop, and the next caller starts a new refresh."""

    async def main() -> None:
        rig = Rig(success(1, expires_in=0), success(2, expires_in=0))
        assert set(await asyncio.gather(rig.access(), rig.access())) == {"access-1"}
        assert await rig.access() == "access-2"
        assert rig.token_requests == 2

    run(main)


def test_a_token_without_expires_in_is_served_until_a_401() -> None:
    async def main() -> None:
        rig = Rig(success(1, expires_in=None), success(2, expires_in=None))
        token = await rig.source.token()
        rig.clock.advance(10_000_000)
        assert await rig.access() == "access-1"
        assert (await rig.source.refresh(token)).access_token == "access-2"

    run(main)


@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "restarts"])
def test_f19_f50_the_latest_refresh_token_is_used_after_a_restart_and_after_a_response_without_one(
    restarts: bool,
) -> None:
    """A missing or empty refresh_token leaves the one before it in use (RFC 6749, 6)."""

    async def main() -> None:
        brought = (None, "", "rotating", "rotating", None, "", "rotating", None)
        rig = Rig(*(success(number, refresh=refresh) for number, refresh in enumerate(brought, 1)))
        for number in range(1, 9):
            assert await rig.access() == f"access-{number}"
            rig.clock.advance(LIFETIME)
            rig = beside(rig, transport=rig.transport) if restarts else rig
        assert refresh_tokens(rig) == ["configured-token"] * 3 + [
            f"refresh-{number}" for number in (3, 4, 4, 4, 7)
        ]

    run(main)


def test_f34_after_a_suspend_no_expired_token_is_served() -> None:
    """The boot clock counts sleep and the wall clock may be wrong: the earlier end counts."""

    async def main() -> None:
        rig = await holding(success(2), age=LIFETIME)
        rig.clock.step_wall(-LIFETIME)  # the wall clock has not noticed
        assert await rig.access() == "access-2"

    run(main)


@pytest.mark.parametrize("step", [-3600.0, 3600.0, -10_000_000.0, 10_000_000.0])
def test_f35_a_step_of_the_wall_clock_costs_at_most_one_refresh(step: float) -> None:
    """A step by an hour or by months causes no exception, no refresh loop and no token that never ends."""

    async def main() -> None:
        rig = await holding(success(2), success(3))
        rig.clock.step_wall(step)
        for _ in range(5):
            await rig.access()
        await rig.refreshed()
        assert rig.token_requests <= 2
        rig.clock.advance(LIFETIME)
        await rig.access()
        assert rig.token_requests <= 3

    run(main)


def test_f42_the_same_source_works_in_two_event_loops_one_after_the_other() -> None:
    """A source is not bound to an event loop, and a refresh that a closed loop left behind is dropped."""
    paused = Paused(success(1))
    rig = Rig(paused, success(2), rotates=False)
    asyncio.run(under_way(rig.access(), paused))
    rig.clock.advance(60)
    assert asyncio.run(rig.access()) == "access-2"
    assert asyncio.run(rig.access()) == "access-2"


def test_f17_an_event_loop_that_closes_during_a_request_leaves_a_note() -> None:
    """The record says that the outcome is unknown."""
    paused = Paused(success(1))
    rig = Rig(paused)
    asyncio.run(under_way(rig.access(), paused))
    failures = asyncio.run(state_in(rig)).failures
    assert failures is not None
    assert failures.unknown == 1


@pytest.mark.parametrize("outcome", [success(2), NotSent("no route")], ids=["token", "failure"])
def test_f25_f43_a_token_that_is_due_is_served_while_one_refresh_runs_whose_end_is_an_event(
    outcome: Any,
) -> None:
    """It survives garbage collection. No caller waits for it, or gets its error if it fails."""

    async def main() -> None:
        paused = Paused(outcome)
        rig = await holding(paused, age=LIFETIME - 299)
        assert rig.source.snapshot().freshness is Freshness.DUE
        for _ in range(100):
            assert await rig.access() == "access-1"
        await paused.arrived.wait()
        for _ in range(3):
            gc.collect()
            await let_tasks_run(3)
        assert await rig.access() == "access-1"
        assert rig.source.snapshot().refreshing
        paused.release()
        await rig.refreshed()
        failed = isinstance(outcome, NotSent)
        started, ended = rig.events[-2:]
        assert (type(started), type(ended)) == (RefreshStarted, RefreshFailed if failed else Refreshed)
        assert await rig.access() == ("access-1" if failed else "access-2")
        assert refresh_tokens(rig) == ["configured-token", "refresh-1"]
        if isinstance(ended, RefreshFailed):
            assert ended.still_usable > 0

    run(main)


def test_f45_events_contain_no_secrets() -> None:
    """Events, snapshots and reprs of source and store show fingerprints only."""

    async def main() -> None:
        rig = await holding()
        assert [type(event) for event in rig.events] == [RefreshStarted, Refreshed]
        shown = repr([rig.events, rig.source, rig.source.snapshot(), rig.store])
        for secret in ("access-1", "refresh-1", "configured-token", "client-secret"):
            assert secret not in shown

    run(main)


def test_f40_a_source_without_a_credential_or_key_is_rejected() -> None:
    """Without a credential or key, two accounts would share one record by accident."""
    with pytest.raises(ValueError, match="key"):
        Rig(configured=None, key=None)
    with pytest.raises(ValueError, match="key"):
        Rig(key="")


def test_without_a_credential_the_error_says_to_sign_in() -> None:
    """No request is sent if there is nothing to redeem."""

    async def main() -> None:
        rig = Rig(configured=None)
        await refused(SignInRequired, rig.access(), match="sign_in")
        assert rig.token_requests == 0

    run(main)
