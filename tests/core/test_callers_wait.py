"""Callers without a usable token wait through a short failure, and a remembered failure hides no token."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest
from _moments import refused
from _rig import IMPATIENT, LIFETIME, Rig, begun, expired, invalid_grant, let_tasks_run, limited, run, success
from _scripted_store import fail, scripted

from tokensession import (
    ClientRejected,
    GrantRejected,
    NotSent,
    OutcomeUnknown,
    Policy,
    RateLimited,
    SignedOut,
    StoreUnavailable,
    TokenSessionError,
    TokenUnavailable,
    UnexplainedRefusal,
)
from tokensession.events import AttemptFailed
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, Paused, ScriptedTransport, token_response


def patient(*script: Any, **options: Any) -> Rig:
    """A rig whose callers wait through failures, as they do by default."""
    return Rig(*script, **({"policy": Policy(), "clock": FakeClock(jitter=0.5)} | options))


def ask(rig: Rig, callers: int = 1) -> list[asyncio.Task[str]]:
    """Callers that ask for a token at the same time."""
    return [rig.ask() for _ in range(callers)]


async def elapse(clock: FakeClock, seconds: float) -> None:
    """Let this much time pass. Each sleeper wakes at its own moment."""
    end = clock.boot() + seconds
    await let_tasks_run()
    while clock.sleepers and clock.boot() + clock.sleepers[0] <= end:
        clock.advance(clock.sleepers[0])
        await let_tasks_run()
    clock.advance(end - clock.boot())
    await let_tasks_run()


def errors_of(tasks: list[asyncio.Task[str]]) -> list[BaseException | None]:
    """What each caller got. All of them must have their answer."""
    assert all(task.done() for task in tasks)
    return [task.exception() for task in tasks]


def assert_served(tasks: list[asyncio.Task[str]], token: str) -> None:
    """All callers have this token."""
    assert errors_of(tasks) == [None] * len(tasks)
    assert {task.result() for task in tasks} == {token}


# What passes by itself, and how long it takes at most until the second token request.
SHORT: dict[str, tuple[Any, float]] = {
    "500": (token_response({}, 500), 1),
    "503": (token_response({}, 503), 1),
    "429 without a time": (token_response({}, 429), 1),
    "429 with 2 s": (limited(2), 2),
    "503 with 15 s": (limited(15, status=503), 15),
    "not sent": (NotSent("no route"), 1),
    "502": (token_response(b"", 502), 2),
    "no response": (OutcomeUnknown("lost"), 2),
    "not JSON": (token_response(b"<html>"), 2),
}


@pytest.mark.parametrize("failure", SHORT)
def test_f66_k20_two_hundred_callers_are_served_after_one_short_failure(failure: str) -> None:
    """One 500, or a 429 that asks for two seconds, costs a second request and no caller an error."""

    async def main() -> None:
        answer, seconds = SHORT[failure]
        rig = await expired(answer, success(2), policy=Policy(), clock=FakeClock(jitter=0.5))
        callers = ask(rig, 200)
        await elapse(rig.clock, seconds)
        assert_served(callers, "access-2")
        assert rig.token_requests == 3

    run(main)


def test_f66_k20_the_callers_of_several_processes_are_served_after_one_failure() -> None:
    """Sixteen processes with ten callers each: two requests, and all 160 get the token."""

    async def main() -> None:
        first = patient(transport=ScriptedTransport(token_response({}, 500), success(1)))
        rigs = [first, *(first.peer(transport=first.transport, policy=Policy()) for _ in range(15))]
        callers = [task for rig in rigs for task in ask(rig, 10)]
        await elapse(first.clock, 1)
        assert_served(callers, "access-1")
        assert first.token_requests == 2

    run(main)


def test_f66_a_caller_that_comes_during_the_pause_waits_for_the_same_attempt() -> None:
    """It does not get the remembered error, because the next attempt is soon."""

    async def main() -> None:
        rig = patient(limited(10), success(1))
        callers = ask(rig)
        for _ in range(9):
            await elapse(rig.clock, 1)
            callers += ask(rig)
        await elapse(rig.clock, 1)
        assert_served(callers, "access-1")
        assert rig.token_requests == 2

    run(main)


@pytest.mark.parametrize("seconds", [20, 21, 30])
def test_f66_a_failure_that_lasts_too_long_for_its_callers_is_theirs_at_once(seconds: int) -> None:
    """They wait less than 20 s: an attempt at their very bound has no time for its request."""

    async def main() -> None:
        rig = patient(limited(seconds), success(1))
        callers = ask(rig, 3)
        await let_tasks_run()
        for error in errors_of(callers):
            assert isinstance(error, RateLimited)
            assert error.retry_after == seconds
        await elapse(rig.clock, seconds - 20)
        with pytest.raises(RateLimited):
            await rig.access()
        await elapse(rig.clock, 1)
        late = ask(rig, 3)
        await elapse(rig.clock, 19)
        assert_served(late, "access-1")
        assert rig.token_requests == 2

    run(main)


@pytest.mark.parametrize("failure", [token_response({}, 500), NotSent("no route")], ids=["500", "not sent"])
def test_f22_f66_no_caller_waits_longer_than_its_bound(failure: Any) -> None:
    """In an outage each caller has an error within 20 s of its call, and it says what is wrong."""

    async def main() -> None:
        rig = patient(*[failure] * 1000)
        kind = NotSent if isinstance(failure, NotSent) else TokenUnavailable
        asked: list[tuple[float, list[asyncio.Task[str]]]] = []
        for _ in range(60):
            asked.append((rig.clock.boot(), ask(rig, 2)))
            await elapse(rig.clock, 1)
            for since, callers in asked:
                assert rig.clock.boot() - since <= 20 or all(task.done() for task in callers)
        for _, callers in asked[:40]:
            assert all(type(error) is kind for error in errors_of(callers))
        assert rig.token_requests <= 31
        await asyncio.gather(rig.source.aclose(), elapse(rig.clock, 30))

    run(main)


REFUSALS: dict[str, tuple[TokenResponse, type[TokenSessionError]]] = {
    "invalid_grant": (invalid_grant(), GrantRejected),
    "invalid_client": (token_response({"error": "invalid_client"}, 401), ClientRejected),
    "an empty 400": (token_response(b"", 400), UnexplainedRefusal),
}


@pytest.mark.parametrize("before", ["", "500"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_f57_f66_no_caller_waits_through_a_refusal(refusal: str, before: str) -> None:
    """Waiting does not help, so all of them get it as soon as it is there."""

    async def main() -> None:
        answer, kind = REFUSALS[refusal]
        rig = patient(*([token_response({}, 500)] if before else []), answer, success(1))
        callers = ask(rig, 5)
        await elapse(rig.clock, 1 if before else 0)
        assert all(type(error) is kind for error in errors_of(callers))
        assert rig.token_requests == (2 if before else 1)

    run(main)


def test_f28_f66_no_caller_waits_through_a_store_that_is_down() -> None:
    """Its failure is fast, and not one of the token endpoint."""

    async def main() -> None:
        rig, store, _ = scripted(success(1), policy=Policy())
        store.steps["claim"] = fail
        callers = ask(rig, 3)
        await let_tasks_run()
        assert all(isinstance(error, StoreUnavailable) for error in errors_of(callers))
        assert rig.token_requests == 0

    run(main)


def test_f25_f66_while_the_old_token_is_valid_callers_get_it_and_do_not_wait() -> None:
    """ENDING comes a minute before the end: after a failure the old token is served at once."""

    async def main() -> None:
        rig = patient(success(1), token_response({}, 500))
        await rig.access()
        rig.clock.advance(LIFETIME - 30)
        callers = ask(rig, 3)
        await let_tasks_run()
        assert_served(callers, "access-1")

    run(main)


async def waiting(*script: Any) -> tuple[Rig, list[asyncio.Task[str]]]:
    """Callers that wait for the attempt in ten seconds."""
    rig = patient(limited(10), *script)
    callers = ask(rig, 3)
    await let_tasks_run()
    assert not any(task.done() for task in callers)
    return rig, callers


@pytest.mark.parametrize("how", ["closing", "sign-in", "sign-out"])
def test_f18_f41_f66_closing_a_sign_in_or_a_sign_out_ends_the_wait_at_once(how: str) -> None:
    """Closing makes no further attempt, and the pause was for the old credential. Nothing more is sent."""

    async def main() -> None:
        rig, callers = await waiting(success(2))
        if how == "closing":
            await rig.source.aclose()
        elif how == "sign-in":
            await rig.source.sign_in(refresh_token="new")
        else:
            await rig.source.sign_out()
        await let_tasks_run()
        if how == "sign-in":
            assert_served(callers, "access-2")
        else:
            kind = RateLimited if how == "closing" else SignedOut
            assert all(isinstance(error, kind) for error in errors_of(callers))
            await elapse(rig.clock, 30)
            assert rig.token_requests == 1

    run(main)


def test_f01_f66_a_caller_that_is_cancelled_while_it_waits_disturbs_no_other() -> None:
    """The first one is cancelled, and the others get the token."""

    async def main() -> None:
        rig, callers = await waiting(success(1))
        callers[0].cancel()
        await elapse(rig.clock, 10)
        assert callers[0].cancelled()
        assert_served(callers[1:], "access-1")

    run(main)


def test_f66_a_failure_that_is_waited_through_is_an_event_and_no_error() -> None:
    """AttemptFailed has the refresh's id and says when the next attempt is."""

    async def main() -> None:
        rig, callers = await waiting(success(1))
        await elapse(rig.clock, 10)
        assert_served(callers, "access-1")
        started, attempt, refreshed = rig.events
        assert isinstance(attempt, AttemptFailed)
        assert (attempt.error, attempt.next_attempt) == ("RateLimited", 10)
        assert {started.id, refreshed.id} == {attempt.id}  # type: ignore[attr-defined]

    run(main)


FAILURES: dict[str, Any] = {
    "not sent": NotSent("no route"),
    "500": token_response({}, 500),
    "429 with an hour": limited(3600),
    "no response": OutcomeUnknown("lost"),
    "not JSON": token_response(b"<html>"),
    "an empty 400": token_response(b"", 400),
    "invalid_client": REFUSALS["invalid_client"][0],
    "invalid_grant": invalid_grant(),
}


@pytest.mark.parametrize("policy", [Policy(), IMPATIENT], ids=["patient", "impatient"])
@pytest.mark.parametrize("failure", FAILURES)
def test_f65_a_token_that_another_process_stores_is_seen_within_a_second(
    failure: str, policy: Policy
) -> None:
    """Whatever failure is remembered, however long its pause: the next look at the store finds the token."""

    async def main() -> None:
        rig = await expired(FAILURES[failure], clock=FakeClock(jitter=1.0), policy=policy)
        caller = await begun(rig.access())
        await rig.peer(success(2)).source.sign_in(refresh_token="new")
        await elapse(rig.clock, 1)
        if caller.done() and isinstance(caller.exception(), TokenSessionError):  # it is not worth waiting
            caller = await begun(rig.access())
        assert await caller == "access-2"
        assert rig.token_requests == 2

    run(main)


@pytest.mark.parametrize("failure", FAILURES)
def test_f26_f65_a_store_that_fails_the_look_leaves_the_remembered_failure_in_place(failure: str) -> None:
    """It says more than "the store is down", and its pause holds: nothing is sent."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), FAILURES[failure])
        await rig.access()
        clock.advance(LIFETIME)
        with pytest.raises(TokenSessionError) as caught:
            await rig.access()
        before = rig.source.snapshot()
        store.steps |= {"load": fail, "claim": fail}
        lasts = 8 if isinstance(caught.value, GrantRejected) else min(before.retry_after or 0, 8)
        passed = 0.0
        while passed + 0.4 < lasts:
            clock.advance(0.4)
            passed += 0.4
            with pytest.raises(type(caught.value)):
                await rig.access()
            assert rig.source.snapshot().last_error == before.last_error
        assert passed > 0
        assert rig.token_requests == 2
        store.steps.clear()

    run(main)


class Outage:
    """A token endpoint that fails for `seconds`, and processes that share a store and ask all the time."""

    def __init__(self, processes: int, seconds: float, failure: Any, jitter: float | Iterator[float]) -> None:
        self.clock = FakeClock(jitter=jitter)
        self.store = MemoryStore(clock=self.clock)
        self.failure = failure
        self.seconds = seconds
        self.end = 0.0
        self.issued = 0
        self.requests = 0
        self.rigs = [
            patient(*[self._respond] * 2000, store=self.store, clock=self.clock) for _ in range(processes)
        ]
        self.served: list[float] = []

    async def run(self) -> int:
        """Everyone finds the token expired as the outage begins. Returns the token requests until its end."""
        for rig in self.rigs:
            await rig.access()
        before = self.requests
        self.clock.advance(LIFETIME)
        self.end = self.clock.boot() + self.seconds
        callers = [asyncio.create_task(self._ask(rig)) for rig in self.rigs]
        await elapse(self.clock, self.seconds - 0.001)
        requests = self.requests - before
        while not all(task.done() for task in callers):
            await elapse(self.clock, 0.5)
        await asyncio.gather(*callers)
        return requests

    @property
    def late(self) -> list[float]:
        """How many seconds after the end each process had a token, the first one first."""
        return sorted(at - self.end for at in self.served)

    async def _ask(self, rig: Rig) -> None:
        while True:
            try:
                await rig.access()
            except TokenUnavailable:
                await self.clock.sleep(1)
            else:
                self.served.append(self.clock.boot())
                return

    async def _respond(self, _request: TokenRequest) -> TokenResponse:
        self.requests += 1
        await asyncio.sleep(0)
        if self.clock.boot() < self.end:
            if isinstance(self.failure, BaseException):
                raise self.failure
            assert isinstance(self.failure, TokenResponse)
            return self.failure
        self.issued += 1
        return success(self.issued)


SHARED: dict[str, Any] = {
    "500": FAILURES["500"],
    "503 with 1 s": limited(1, status=503),
    "no response": FAILURES["no response"],
}


@pytest.mark.parametrize(
    ("failure", "jitter", "seconds"),
    [
        *[(failure, jitter, 10) for failure in SHARED for jitter in (0.0, 0.5, 0.999)],
        ("500", 0.999, 300),
        ("no response", 0.999, 300),
    ],
)
def test_f64_k21_sixteen_processes_send_at_most_one_request_each_more_than_one_process(
    failure: str, jitter: float, seconds: int
) -> None:
    """Through an outage of 10 s or of 5 min. Afterwards one of them refreshes, and all are served at once."""

    async def main() -> None:
        alone = Outage(1, seconds, SHARED[failure], jitter)
        many = Outage(16, seconds, SHARED[failure], jitter)
        expected = await alone.run()
        assert await many.run() <= expected + 15
        assert many.late[-1] - many.late[0] <= 1
        if seconds == 10:
            assert many.late[-1] <= 2
        assert many.late[-1] <= 31, "the longest pause, and a second until the caller asks again"
        assert many.issued == 2

    run(main)


def test_f64_f65_k21_after_ten_seconds_every_process_is_back_within_two_whatever_the_draws() -> None:
    """With random jitter for each pause and each look."""

    async def main() -> None:
        for seed in range(5):
            draws = random.Random(seed)
            outage = Outage(16, 10, SHARED["500"], iter(draws.random, 1.0))
            requests = await outage.run()
            assert requests <= 16 + 16, seed
            assert outage.late[-1] <= 2, seed

    run(main)


@pytest.mark.parametrize("failure", ["not sent", "invalid_client"])
def test_f22_f64_failures_that_may_be_local_are_each_processs_own(failure: str) -> None:
    """One broken host must not silence the others: the first one has no route, and the second one a token."""

    async def main() -> None:
        broken = await expired(FAILURES[failure], clock=FakeClock(jitter=0.5))
        before = await broken.state()
        with pytest.raises(TokenSessionError):
            await broken.access()
        after = await broken.state()
        assert (after.failures, after.rejections) == (before.failures, before.rejections)
        assert await broken.peer(success(2)).access() == "access-2"
        broken.clock.advance(1)
        assert await broken.access() == "access-2"

    run(main)


@pytest.mark.parametrize("failure", ["500", "429 with an hour", "no response", "not JSON", "an empty 400"])
def test_f23_f64_a_pause_holds_in_every_process(failure: str) -> None:
    """A process that starts during the pause sends nothing, and gets an error that says why."""

    async def main() -> None:
        first = await expired(FAILURES[failure], success(2), clock=FakeClock(jitter=0.5))
        clock = first.clock
        with pytest.raises(TokenSessionError):
            await first.access()
        started = first.peer(success(2))
        clock.advance(0.25)
        with pytest.raises(TokenUnavailable, match="paused") as caught:
            await started.access()
        assert caught.value.retry_after is not None
        assert started.token_requests == 0
        clock.advance(max(1, caught.value.retry_after))
        assert await started.access() == "access-2"

    run(main)


@pytest.mark.parametrize("before", ["the store was down", "there was no network"])
@pytest.mark.parametrize("policy", [IMPATIENT, Policy()], ids=["impatient", "patient"])
def test_f23_f64_callers_are_told_of_the_pause_that_lasts_and_not_of_what_failed_before(
    before: str, policy: Policy
) -> None:
    """Another process was asked to wait for an hour. What had failed here is over, and says nothing true."""

    async def main() -> None:
        rig, store, clock = scripted(success(1), policy=policy)
        await rig.access()
        clock.advance(LIFETIME)
        rig.transport.script(NotSent("No route."))
        if before == "the store was down":
            store.steps["claim"] = fail
        caller = await begun(rig.access())
        store.steps.clear()
        await refused(RateLimited, rig.peer(limited(3600)).access())
        await elapse(clock, 2)
        assert isinstance(caller.exception(), StoreUnavailable | NotSent | RateLimited)
        for _ in range(3):
            told = await refused(RateLimited, rig.access(), match="answered 429")
            assert told.retry_after is not None
            assert told.retry_after > 3500
            clock.advance(2)

    run(main)


@pytest.mark.parametrize("way", ["sign_in", "configured"])
def test_f23_f64_a_pause_is_bound_to_its_credential_and_a_sign_in_clears_it(way: str) -> None:
    """Another refresh token is sent at once, and what is noted about the old one is gone."""

    async def main() -> None:
        rig = await expired(limited(3600), clock=FakeClock(jitter=0.5))
        with pytest.raises(RateLimited):
            await rig.access()
        other = rig.peer(success(2), success(3), configured="another")
        if way == "sign_in":
            await other.source.sign_in(refresh_token="new")
        else:
            assert await other.access() == "access-2"
        assert (await other.state()).failures is None
        assert (await other.source.refresh()).access_token == "access-3"

    run(main)


def test_f64_f65_a_pause_hides_no_token() -> None:
    """While requests are paused for an hour, the valid token is served, to processes that start too."""

    async def main() -> None:
        rig = Rig(success(1), limited(3600), clock=FakeClock(jitter=0.5))
        await rig.access()
        await rig.refresh_when_due()
        started = rig.peer()
        for _ in range(5):
            assert [await rig.access(), await started.access()] == ["access-1"] * 2
            await let_tasks_run()
            rig.clock.advance(10)
        assert started.token_requests == 0

    run(main)


@pytest.mark.parametrize("change", ["sign-out", "sign-in", "401"])
def test_a_caller_of_a_crowd_that_wakes_after_a_change_gets_no_former_token(change: str) -> None:
    """A crowd wakes in turns, and the first to wake may sign out, sign in, or report a 401."""

    async def main() -> None:
        rig = Rig(success(1), success(2))
        after: list[str] = []
        changed = asyncio.Event()

        async def first() -> None:
            token = await rig.source.token()
            if change == "sign-out":
                await rig.source.sign_out()
            elif change == "sign-in":
                await rig.source.sign_in(refresh_token="another account's")
            else:
                await rig.source.refresh(token)
            changed.set()

        async def other() -> None:
            try:
                token = (await rig.source.token()).access_token
            except SignedOut:
                token = "signed out"
            if changed.is_set():
                after.append(token)

        await asyncio.gather(first(), *(other() for _ in range(20_000)))
        assert set(after) == {"signed out" if change == "sign-out" else "access-2"}

    run(main)


def test_a_caller_that_joins_a_background_refresh_waits_no_longer_than_with_its_own() -> None:
    """One that no one waits for is repeated after half a minute or more."""

    async def main() -> None:
        failing = Paused(token_response({}, 500))
        rig = patient(success(1), failing, success(2))
        assert await rig.access() == "access-1"
        token = await rig.source.token()
        rig.clock.advance(0.92 * LIFETIME)
        assert await rig.access() == "access-1"  # it is DUE: a refresh begins in the background
        await failing.arrived.wait()
        caller = asyncio.ensure_future(rig.source.refresh(token))  # after a 401
        await let_tasks_run()
        failing.release()
        await elapse(rig.clock, 3)
        assert (await caller).access_token == "access-2"

    run(main)
