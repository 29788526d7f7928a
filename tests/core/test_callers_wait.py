"""Callers without a usable token wait through a short failure, and a remembered failure hides no token."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from _rig import IMPATIENT, LIFETIME, Rig, invalid_grant, let_tasks_run, run, success
from _scripted_store import ScriptedStore, fail

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
from tokensession.testing import FakeClock, Paused, token_response

PATIENT = Policy()
SECONDS = 20.0  # Policy.retry_within and Policy.caller_timeout


def limited(seconds: int) -> TokenResponse:
    """A 429 that asks for a pause."""
    return token_response({}, 429, (("retry-after", str(seconds)),))


def patient(*script: Any, **options: Any) -> Rig:
    """A rig whose callers wait through failures, as they do by default."""
    settings: dict[str, Any] = {"policy": PATIENT, "clock": FakeClock(jitter=0.5)}
    return Rig(*script, **(settings | options))


def ask(rig: Rig, callers: int = 1) -> list[asyncio.Task[str]]:
    """Callers that ask for a token at the same time."""
    return [asyncio.create_task(rig.access()) for _ in range(callers)]


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


# -- waiting through a failure (rule 20) -------------------------------------------------------------

# What passes by itself, and how long it takes at most until the second token request.
SHORT: dict[str, tuple[Callable[[], Any], float]] = {
    "500": (lambda: token_response({}, 500), 1),
    "503": (lambda: token_response({}, 503), 1),
    "429 without a time": (lambda: token_response({}, 429), 1),
    "429 with 2 s": (lambda: limited(2), 2),
    "503 with 15 s": (lambda: token_response({}, 503, (("retry-after", "15"),)), 15),
    "not sent": (lambda: NotSent("no route"), 1),
    "502": (lambda: token_response(b"", 502), 2),
    "no response": (lambda: OutcomeUnknown("lost"), 2),
    "not JSON": (lambda: token_response(b"<html>"), 2),
}


@pytest.mark.parametrize("failure", SHORT)
def test_f66_k20_two_hundred_callers_are_served_after_one_short_failure(failure: str) -> None:
    """One 500, or a 429 that asks for two seconds, costs a second request and no caller an error."""

    async def main() -> None:
        answer, seconds = SHORT[failure]
        rig = patient(success(1), answer(), success(2))
        await rig.access()
        rig.clock.advance(LIFETIME)
        callers = ask(rig, 200)
        await elapse(rig.clock, seconds)
        assert errors_of(callers) == [None] * 200
        assert {task.result() for task in callers} == {"access-2"}
        assert rig.token_requests == 3

    run(main)


def test_f66_k20_the_callers_of_several_processes_are_served_after_one_failure() -> None:
    """Sixteen processes with ten callers each: two requests, and all 160 get the token."""

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        store = ScriptedStore(clock=clock)
        script = [token_response({}, 500), success(1)]
        rigs = [patient(*[lambda _: script.pop(0)] * 2, store=store, clock=clock) for _ in range(16)]
        callers = [task for rig in rigs for task in ask(rig, 10)]
        await elapse(clock, 1)
        assert errors_of(callers) == [None] * 160
        assert sum(rig.token_requests for rig in rigs) == 2

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
        assert errors_of(callers) == [None] * 10
        assert rig.token_requests == 2

    run(main)


def test_f66_a_failure_that_lasts_too_long_for_its_callers_is_theirs_at_once() -> None:
    """The next attempt is 30 s away and they wait at most 20 s, so they get the error now."""

    async def main() -> None:
        rig = patient(limited(30), success(1))
        callers = ask(rig, 3)
        await let_tasks_run()
        assert all(isinstance(error, RateLimited) and error.retry_after == 30 for error in errors_of(callers))
        await elapse(rig.clock, 9)
        with pytest.raises(RateLimited):
            await rig.access()
        await elapse(rig.clock, 2)
        late = ask(rig, 3)  # now it is 19 s away
        await elapse(rig.clock, 19)
        assert {task.result() for task in late} == {"access-1"}
        assert rig.token_requests == 2

    run(main)


def test_f66_with_retry_within_zero_callers_get_the_first_failure_at_once() -> None:
    """For programs that have a retry of their own."""

    async def main() -> None:
        rig = Rig(token_response({}, 500), success(1), policy=IMPATIENT)
        (error,) = await asyncio.gather(*ask(rig), return_exceptions=True)
        assert isinstance(error, TokenUnavailable)
        assert rig.token_requests == 1

    run(main)


@pytest.mark.parametrize("seconds", [20, 21])
def test_f66_no_caller_waits_in_vain_for_an_attempt_at_its_very_bound(seconds: int) -> None:
    """There would be no time for the request, so callers get the error at once."""

    async def main() -> None:
        rig = patient(limited(seconds))
        with pytest.raises(RateLimited):
            await rig.access()

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
                assert rig.clock.boot() - since <= SECONDS or all(task.done() for task in callers)
        for _, callers in asked[:40]:
            assert all(type(error) is kind for error in errors_of(callers))
        assert rig.token_requests <= 31
        await asyncio.gather(rig.source.aclose(), elapse(rig.clock, 30))

    run(main)


REFUSALS: dict[str, tuple[Callable[[], Any], type[TokenSessionError]]] = {
    "invalid_grant": (invalid_grant, GrantRejected),
    "invalid_client": (lambda: token_response({"error": "invalid_client"}, 401), ClientRejected),
    "an empty 400": (lambda: token_response(b"", 400), UnexplainedRefusal),
}


@pytest.mark.parametrize("before", ["", "500"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_f57_f66_no_caller_waits_through_a_refusal(refusal: str, before: str) -> None:
    """Waiting does not help, so all of them get it as soon as it is there."""

    async def main() -> None:
        answer, kind = REFUSALS[refusal]
        rig = patient(*([token_response({}, 500)] if before else []), answer(), success(1))
        callers = ask(rig, 5)
        await elapse(rig.clock, 1 if before else 0)
        assert all(type(error) is kind for error in errors_of(callers))
        assert rig.token_requests == (2 if before else 1)

    run(main)


def test_f28_f66_no_caller_waits_through_a_store_that_is_down() -> None:
    """Its failure is fast, and not one of the token endpoint."""

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        store = ScriptedStore(clock=clock)
        rig = patient(success(1), store=store, clock=clock)
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
        assert errors_of(callers) == [None] * 3
        assert {task.result() for task in callers} == {"access-1"}

    run(main)


# -- what ends the wait --------------------------------------------------------------------------


async def waiting(*script: Any) -> tuple[Rig, list[asyncio.Task[str]]]:
    """Callers that wait for the attempt in ten seconds."""
    rig = patient(limited(10), *script)
    callers = ask(rig, 3)
    await let_tasks_run()
    assert not any(task.done() for task in callers)
    return rig, callers


def test_f18_f66_closing_ends_the_wait_at_once() -> None:
    """There will be no further attempt, so callers get the failure that they wait through."""

    async def main() -> None:
        rig, callers = await waiting()
        await rig.source.aclose()
        await let_tasks_run()
        assert all(isinstance(error, RateLimited) for error in errors_of(callers))
        assert rig.token_requests == 1

    run(main)


def test_f66_a_sign_in_ends_the_wait_at_once() -> None:
    """It has a token, and the pause was for the old credential."""

    async def main() -> None:
        rig, callers = await waiting(success(2))
        await rig.source.sign_in(refresh_token="new")
        await let_tasks_run()
        assert errors_of(callers) == [None] * 3
        assert {task.result() for task in callers} == {"access-2"}

    run(main)


def test_f41_f66_a_sign_out_ends_the_wait_at_once() -> None:
    """Callers get SignedOut, and nothing more is sent."""

    async def main() -> None:
        rig, callers = await waiting()
        await rig.source.sign_out()
        await let_tasks_run()
        assert all(isinstance(error, SignedOut) for error in errors_of(callers))
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
        assert {task.result() for task in callers[1:]} == {"access-1"}

    run(main)


def test_f66_a_failure_that_is_waited_through_is_an_event_and_no_error() -> None:
    """AttemptFailed has the refresh's id and says when the next attempt is."""

    async def main() -> None:
        rig, callers = await waiting(success(1))
        await elapse(rig.clock, 10)
        assert errors_of(callers) == [None] * 3
        started, attempt, refreshed = rig.events
        assert isinstance(attempt, AttemptFailed)
        assert (attempt.error, attempt.next_attempt) == ("RateLimited", 10)
        assert {started.id, refreshed.id} == {attempt.id}  # type: ignore[attr-defined]

    run(main)


# -- a remembered failure hides no token (rule 19) -----------------------------------------------

FAILURES: dict[str, Callable[[], Any]] = {
    "not sent": lambda: NotSent("no route"),
    "500": lambda: token_response({}, 500),
    "429 with an hour": lambda: limited(3600),
    "no response": lambda: OutcomeUnknown("lost"),
    "not JSON": lambda: token_response(b"<html>"),
    "an empty 400": lambda: token_response(b"", 400),
    "invalid_client": REFUSALS["invalid_client"][0],
    "invalid_grant": invalid_grant,
}


@pytest.mark.parametrize("policy", [PATIENT, IMPATIENT], ids=["patient", "impatient"])
@pytest.mark.parametrize("failure", FAILURES)
def test_f65_a_token_that_another_process_stores_is_seen_within_a_second(
    failure: str, policy: Policy
) -> None:
    """Whatever failure is remembered, however long its pause: the next look at the store finds the token."""

    async def main() -> None:
        clock = FakeClock(jitter=1.0)
        rig = patient(success(1), FAILURES[failure](), clock=clock, policy=policy)
        other = Rig(success(2), store=rig.store, clock=clock)
        await rig.access()
        clock.advance(LIFETIME)
        caller = ask(rig)[0]
        await let_tasks_run()
        await other.source.sign_in(refresh_token="new")
        await elapse(clock, 1)
        if caller.done() and isinstance(caller.exception(), TokenSessionError):  # it is not worth waiting
            caller = ask(rig)[0]
            await let_tasks_run()
        assert await caller == "access-2"
        assert rig.token_requests == 2

    run(main)


@pytest.mark.parametrize("failure", FAILURES)
def test_f26_f65_a_store_that_fails_the_look_leaves_the_remembered_failure_in_place(failure: str) -> None:
    """It says more than "the store is down", and its pause holds: nothing is sent."""

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        store = ScriptedStore(clock=clock)
        rig = Rig(success(1), FAILURES[failure](), store=store, clock=clock)
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


# -- many processes in an outage (rule 18, K21) --------------------------------------------------


class Outage:
    """A token endpoint that fails for `seconds`, and processes that share a store and ask all the time."""

    def __init__(
        self, processes: int, seconds: float, failure: Callable[[], Any], jitter: float | Iterator[float]
    ) -> None:
        self.clock = FakeClock(jitter=jitter)
        self.store = ScriptedStore(clock=self.clock)
        self.failure = failure
        self.end = self.clock.boot() + LIFETIME + seconds
        self.issued = 1
        self.rigs = [
            patient(*[self._respond] * 2000, store=self.store, clock=self.clock) for _ in range(processes)
        ]
        self.served: list[float] = []

    async def run(self) -> int:
        """Everyone finds the token expired as the outage begins. Returns the token requests until its end."""
        self.issued = 0
        end, self.end = self.end, 0.0
        for rig in self.rigs:
            await rig.access()
        self.end = end
        before = self.requests
        self.clock.advance(LIFETIME)
        callers = [asyncio.create_task(self._ask(rig)) for rig in self.rigs]
        await elapse(self.clock, self.end - self.clock.boot() - 0.001)
        requests = self.requests - before
        while not all(task.done() for task in callers):
            await elapse(self.clock, 0.5)
        await asyncio.gather(*callers)
        return requests

    @property
    def requests(self) -> int:
        return sum(rig.token_requests for rig in self.rigs)

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

    def _respond(self, request: TokenRequest) -> Coroutine[Any, Any, TokenResponse]:
        return self._responds()

    async def _responds(self) -> TokenResponse:
        await asyncio.sleep(0)
        if self.clock.boot() < self.end:
            answer = self.failure()
            if isinstance(answer, BaseException):
                raise answer
            assert isinstance(answer, TokenResponse)
            return answer
        self.issued += 1
        return success(self.issued)


SHARED: dict[str, Callable[[], Any]] = {
    "500": FAILURES["500"],
    "503 with 1 s": lambda: token_response({}, 503, (("retry-after", "1"),)),
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


def test_f22_f64_failures_that_may_be_local_are_each_processs_own() -> None:
    """One broken host must not silence the others: the first one has no route, and the second one a token."""

    async def main() -> None:
        for local in (NotSent("no route"), REFUSALS["invalid_client"][0]()):
            clock = FakeClock(jitter=0.5)
            broken = Rig(success(1), local, clock=clock)
            await broken.access()
            clock.advance(LIFETIME)
            before = await broken.store.load("account")
            with pytest.raises(TokenSessionError):
                await broken.access()
            assert await broken.store.load("account") == before
            works = Rig(success(2), store=broken.store, clock=clock)
            assert await works.access() == "access-2"
            clock.advance(1)
            assert await broken.access() == "access-2"

    run(main)


@pytest.mark.parametrize("failure", ["500", "429 with an hour", "no response", "not JSON", "an empty 400"])
def test_f23_f64_a_pause_holds_in_every_process(failure: str) -> None:
    """A process that starts during the pause sends nothing, and gets an error that says why."""

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        first = Rig(success(1), FAILURES[failure](), success(2), clock=clock)
        await first.access()
        clock.advance(LIFETIME)
        with pytest.raises(TokenSessionError):
            await first.access()
        started = Rig(success(2), store=first.store, clock=clock)
        clock.advance(0.25)
        with pytest.raises(TokenUnavailable, match="paused") as caught:
            await started.access()
        assert caught.value.retry_after is not None
        assert started.token_requests == 0
        clock.advance(max(1, caught.value.retry_after))
        assert await started.access() == "access-2"

    run(main)


@pytest.mark.parametrize("way", ["sign_in", "configured"])
def test_f23_f64_a_pause_is_bound_to_its_credential_and_a_sign_in_clears_it(way: str) -> None:
    """Another refresh token is sent at once, and what is noted about the old one is gone."""

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        rig = Rig(success(1), limited(3600), clock=clock)
        await rig.access()
        clock.advance(LIFETIME)
        with pytest.raises(RateLimited):
            await rig.access()
        other = Rig(success(2), success(3), store=rig.store, clock=clock, configured="another")
        if way == "sign_in":
            await other.source.sign_in(refresh_token="new")
        else:
            assert await other.access() == "access-2"
        state = await other.stored()
        assert state is not None
        assert state.failures is None
        assert (await other.source.refresh()).access_token == "access-3"

    run(main)


def test_f64_f65_a_pause_hides_no_token() -> None:
    """While requests are paused for an hour, the valid token is served, to processes that start too."""

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        rig = Rig(success(1), limited(3600), clock=clock)
        await rig.access()
        clock.advance(LIFETIME - 299)
        await rig.access()
        await rig.refreshed()
        started = Rig(store=rig.store, clock=clock)
        for _ in range(5):
            assert [await rig.access(), await started.access()] == ["access-1"] * 2
            await let_tasks_run()
            clock.advance(10)
        assert started.token_requests == 0

    run(main)


def test_f54_f66_a_response_that_comes_after_the_callers_have_given_up_is_kept() -> None:
    """They get an error after 20 s, and the next caller gets the token."""

    async def main() -> None:
        paused = Paused(success(1))
        rig = patient(paused)
        callers = ask(rig, 3)
        await elapse(rig.clock, SECONDS)
        assert all(isinstance(error, OutcomeUnknown) for error in errors_of(callers))
        late = ask(rig)
        await elapse(rig.clock, 5)
        paused.release()
        await let_tasks_run()
        assert late[0].result() == "access-1"
        assert (rig.token_requests, await rig.stored_access()) == (1, "access-1")

    run(main)
