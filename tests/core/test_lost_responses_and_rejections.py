"""Answers that were lost, and what a rejection after them means."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
from typing import Any

import pytest
from _moments import asking_after_a_killed_holder, beside, holding, keep_failing, lost, refused, state_in
from _rig import LIFETIME, Rig, invalid_grant, let_tasks_run, run, seconds_until_done, success

from tokensession import (
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    Policy,
    TokenUnavailable,
)
from tokensession.events import RefreshHeld
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import MemoryStore
from tokensession.stores.protocol import Record, Store
from tokensession.testing import FakeClock, token_response


def test_after_a_lost_response_the_refresh_token_is_sent_once_more_and_then_left_alone() -> None:
    """Many servers accept one repetition. If its answer is lost too, the access token is used to its end."""

    async def main() -> None:
        rig = await holding(lost, lost, success(2), age=LIFETIME - 299)
        await ask_in_background(rig)
        rig.clock.advance(1)
        await ask_in_background(rig)
        assert rig.token_requests == 2  # the first request may still be on its way
        rig.clock.advance(1)
        await ask_in_background(rig)
        assert rig.token_requests == 3
        for _ in range(3):
            rig.clock.advance(60)
            await ask_in_background(rig)
        assert rig.token_requests == 3
        rig.clock.advance(60)
        assert await rig.access() == "access-2"
        assert {rig.sent(index) for index in (1, 2, 3)} == {rig.sent()}

    run(main)


async def ask_in_background(rig: Rig) -> None:
    """A caller gets the first token at once. Whatever it started has ended."""
    assert await rig.access() == "access-1"
    await rig.refreshed()


def test_a_response_that_is_lost_early_in_a_tokens_life_leaves_the_refresh_token_alone() -> None:
    """With much life left nothing is gained by sending it again: not in any process, before the end."""

    async def main() -> None:
        clock = FakeClock()
        store = MemoryStore(clock=clock)
        rig, other = (Rig(success(1), lost, success(2), store=store, clock=clock) for _ in range(2))
        await rig.access()
        await other.access()
        clock.advance(600)
        for _ in range(3):
            assert (await rig.source.refresh()).access_token == "access-1"
            assert (await other.source.refresh()).access_token == "access-1"
            clock.advance(600)
        assert isinstance(rig.events[-1], RefreshHeld)
        assert isinstance(other.events[-1], RefreshHeld)
        assert rig.token_requests + other.token_requests == 2
        restarted = Rig(lost, store=store, clock=clock)
        clock.advance(LIFETIME - 2400 - 299)  # DUE
        for each in (rig, other, restarted, restarted):
            await ask_in_background(each)
        assert rig.token_requests + other.token_requests + restarted.token_requests == 2
        clock.advance(240)  # ENDING
        assert await rig.access() == "access-2"
        assert await other.access() == "access-2"
        assert rig.token_requests + other.token_requests == 3

    run(main)


@pytest.mark.parametrize("times", [1, 2, 3, 10, 11, 40])
def test_f53_k03_any_number_of_lost_responses_ends_with_the_first_answer(times: int) -> None:
    """Nothing counts to two: without an access token, giving up would protect nothing."""

    async def main() -> None:
        rig = await holding(*[lost] * times, success(2), age=LIFETIME)
        pauses = await pauses_until_access(rig, "access-2")
        assert rig.token_requests == times + 2
        assert len(pauses) == times
        assert 1.5 <= pauses[0] <= 2
        assert pauses == sorted(pauses)
        assert max(pauses[:10]) <= 30
        assert max(pauses) <= 300

    run(main)


async def pauses_until_access(rig: Rig, token: str) -> list[float]:
    """Ask again after each error, as soon as it says so. Returns the pauses that the errors asked for."""
    pauses: list[float] = []
    while True:
        with contextlib.suppress(OutcomeUnknown):
            assert await rig.access() == token
            return pauses
        pauses.append(rig.source.snapshot().retry_after or 0)
        rig.clock.advance(pauses[-1])


def test_f53_an_outage_of_hours_is_tried_every_five_minutes_and_ends_with_the_first_answer() -> None:
    """After ten tries the pause grows to five minutes, and stays there."""

    async def main() -> None:
        rig = await holding(*[lost] * 150, success(2), age=LIFETIME)
        began = rig.clock.boot()
        pauses = await pauses_until_access(rig, "access-2")
        assert rig.clock.boot() - began > 6 * 3600
        assert {round(pause) for pause in pauses[-50:]} == {225}  # 300, times the smallest draw

    run(main)


def test_f53_the_first_ten_tries_are_at_most_half_a_minute_apart_however_long_it_lasts() -> None:
    """Callers who ask seldom find the end of the outage as soon as the others."""

    async def main() -> None:
        rig = Rig(*[lost] * 10)
        for _ in range(10):
            error = await refused(OutcomeUnknown, rig.access())
            assert 0 < (error.retry_after or 0) <= 30
            rig.clock.advance(300)
        assert rig.token_requests == 10

    run(main)


def test_f53_k03_a_storm_of_resets_costs_no_sign_in() -> None:
    """A load balancer resets every connection for 5 s: all twenty sign-ins are back within 2 s of its end."""

    async def main() -> None:
        clock = FakeClock(jitter=0.5)
        store = MemoryStore(clock=clock)
        began = clock.boot() + LIFETIME

        def answer(request: TokenRequest) -> TokenResponse:
            if began <= clock.boot() < began + 5:
                return lost(request)
            return success(2 if clock.boot() >= began else 1)

        rigs = [
            Rig(*[answer] * 10, store=store, clock=clock, key=f"account-{number}", policy=Policy())
            for number in range(20)
        ]
        await asyncio.gather(*(rig.access() for rig in rigs))
        clock.advance(LIFETIME)
        callers = asyncio.gather(*(rig.access() for rig in rigs))
        assert await seconds_until_done(callers, clock) <= 7
        assert set(await callers) == {"access-2"}
        assert max(rig.token_requests for rig in rigs) <= 6

    run(main)


def test_k26_the_error_after_a_lost_response_is_true() -> None:
    """It neither says that the credential is intact nor that it is lost, however often the answer is lost."""

    async def main() -> None:
        rig = Rig(*[lost] * 3)
        other = beside(rig)
        for _ in range(3):
            for asking in (rig, rig, other):
                error = await refused(
                    OutcomeUnknown, asking.access(), match="got no whole answer.* is not known"
                )
                assert not re.search("unchanged|ign in", str(error))
            rig.clock.advance(5)
        assert (rig.token_requests, other.token_requests) == (3, 0)

    run(main)


@pytest.mark.parametrize(
    "line",
    [NotSent("No route."), token_response(b"", status=500), token_response({}, status=429)],
    ids=["not sent", "500", "429"],
)
def test_k26_an_error_after_a_lost_response_promises_nothing(line: Any) -> None:
    """What is known about the later request does not make the earlier one known."""

    async def main() -> None:
        rig = Rig(lost, line)
        for _ in range(3):
            caught = await refused(TokenUnavailable, rig.access(), match="is not known")
            assert "unchanged" not in str(caught)
            rig.clock.advance(1)
        assert rig.token_requests == 2

    run(main)


def test_f53_a_rejection_after_a_lost_response_is_grant_lost_and_says_why() -> None:
    """Here, in another process and after a restart, and the credential is not sent again."""

    async def main() -> None:
        rig = await holding(lost, lost, invalid_grant(), age=LIFETIME)
        await keep_failing(OutcomeUnknown, rig, times=2, pause=5)
        says_why = "invalid_grant.*got no whole answer.*Sign in again"
        error = await refused(GrantLost, rig.access(), match=says_why)
        assert isinstance(error, GrantRejected)
        assert (error.code, error.certain) == ("invalid_grant", True)
        other = beside(rig)
        await keep_failing(GrantLost, rig, other, times=3, pause=60, match=says_why)
        assert (rig.token_requests, other.token_requests) == (4, 0)

    run(main)


def test_inside_a_documented_leeway_the_repetition_is_immediate() -> None:
    """The provider permits sending the same refresh token again, so a token is replaced early."""

    async def main() -> None:
        rig = await holding(lost, success(2), leeway=10, policy=Policy())
        caller = asyncio.create_task(rig.source.refresh())
        assert await seconds_until_done(caller, rig.clock) <= 2
        assert (await caller).access_token == "access-2"
        assert rig.token_requests == 3

    run(main)


def test_without_rotation_a_lost_response_is_retried() -> None:
    """It is retried after each back-off, as often as necessary, also while the access token is valid."""

    async def main() -> None:
        rig = Rig(lost, lost, lost, success(1), lost, success(2), rotates=False)
        await keep_failing(OutcomeUnknown, rig, times=3, pause=30)
        assert await rig.access() == "access-1"
        await refused(OutcomeUnknown, rig.source.refresh())
        rig.clock.advance(30)
        assert (await rig.source.refresh()).access_token == "access-2"

    run(main)


def test_without_rotation_a_rejection_after_a_lost_response_is_a_rejection() -> None:
    """A refresh token that can be used again is not spent by a request without an answer."""

    async def main() -> None:
        rig = Rig(lost, invalid_grant(), rotates=False)
        await refused(OutcomeUnknown, rig.access())
        rig.clock.advance(30)
        for _ in range(2):
            caught = await refused(GrantRejected, rig.access())
            assert not isinstance(caught, GrantLost)
            rig.clock.advance(30)

    run(main)


def test_k26_an_error_500_before_a_rejection_is_told() -> None:
    """The server may have processed the request that it answered 500, and another process says so too."""

    async def main() -> None:
        one = Rig(token_response(b"", status=500))
        await refused(TokenUnavailable, one.access(), match="500")
        one.clock.advance(30)
        other = beside(one, invalid_grant())
        told = "invalid_grant.*may have processed it.*answered 500"
        assert not isinstance(await refused(GrantRejected, other.access(), match=told), GrantLost)

    run(main)


@pytest.mark.parametrize(
    "answer",
    [
        *(token_response(b"", status=status) for status in (502, 504, 408)),
        *map(
            token_response,
            [
                {"token_type": "Bearer"},
                b'{"access_token": "a", "access_token": "b"}',
                b'["access_token", "a"]',
                b"access_token=a&expires_in=3600",
                b"<OAuth><access_token>a</access_token></OAuth>",
                gzip.compress(b'{"access_token": "a"}'),
            ],
        ),
    ],
    ids=["502", "504", "408", "no token", "a repeated key", "a list", "a form", "XML", "compressed"],
)
def test_an_answer_that_may_have_come_with_a_token_is_treated_as_a_lost_one(answer: TokenResponse) -> None:
    """A gateway's error, or a 200 that nobody can read: the refresh token is left alone until the end."""

    async def main() -> None:
        rig = await holding(answer, success(2))
        for _ in range(3):
            rig.clock.advance(600)
            assert (await rig.source.refresh()).access_token == "access-1"
        assert rig.token_requests == 2
        rig.clock.advance(LIFETIME - 1800)
        assert await rig.access() == "access-2"

    run(main)


@pytest.mark.parametrize(
    ("status", "page", "kind"),
    [
        (500, b"", TokenUnavailable),
        (503, b"", TokenUnavailable),
        (200, b"<html>Please log in</html>", InvalidTokenResponse),
    ],
)
def test_after_an_answer_that_spent_nothing_the_refresh_token_stays_in_use(
    status: int, page: bytes, kind: type[Exception]
) -> None:
    """A server that failed, or a captive portal: it is sent again while the access token is valid."""

    async def main() -> None:
        rig = await holding(token_response(page, status=status), success(2), age=600)
        await refused(kind, rig.source.refresh())
        assert await rig.access() == "access-1"
        rig.clock.advance(60)
        assert (await rig.source.refresh()).access_token == "access-2"

    run(main)


def test_a_502_after_the_server_has_rotated_ends_in_grant_lost_and_a_token_used_to_its_end() -> None:
    """The gateway lost the answer, and the server rejects the spent token: after the access token's end."""

    async def main() -> None:
        rig = await holding(token_response(b"", status=502), invalid_grant(), age=1800)
        await rig.source.refresh()
        rig.clock.advance(1739)
        assert await rig.access() == "access-1"
        assert rig.token_requests == 2
        rig.clock.advance(1)
        assert await rig.access() == "access-1"  # ENDING: it is rejected, and the access token is still valid
        rig.clock.advance(60)
        await refused(GrantLost, rig.access(), match="answered 502")
        assert rig.token_requests == 3

    run(main)


def test_f17_any_number_of_killed_holders_ends_with_the_first_answer() -> None:
    """A process that crashes at each refresh has spent the refresh token at most once, or never."""

    async def main() -> None:
        rig = Rig(*[lost] * 4, success(1))
        for _ in range(4):
            caller = await after_a_killed_holder(rig)
            await refused(OutcomeUnknown, caller)
            rig.clock.advance(60)
        assert await (await after_a_killed_holder(rig)) == "access-1"

    run(main)


def test_f17_a_rejection_after_a_killed_holder_says_what_may_have_happened() -> None:
    async def main() -> None:
        caller = await after_a_killed_holder(Rig(invalid_grant()))
        await refused(GrantLost, caller, match="invalid_grant.*Its process ended")

    run(main)


@pytest.mark.parametrize(("ago", "pause"), [(0, 2), (100, 2), (121, 1), (122, 0), (1e6, 0)])
def test_f17_a_holder_killed_during_a_refresh_is_an_answer_that_was_lost(ago: float, pause: float) -> None:
    """The next holder waits until the end of its request's time-out, and sends the same refresh token."""

    async def main() -> None:
        rig = Rig(success(1))
        await killed_while_sending(rig.store)
        rig.clock.advance(ago)
        caller = asyncio.create_task(rig.access())
        await let_tasks_run()
        if pause:
            assert (pause in rig.clock.sleepers, rig.token_requests) == (True, 0)
            rig.clock.advance(pause)
        assert await caller == "access-1"
        assert rig.sent().endswith("refresh_token=configured-token")
        assert rig.token_requests == 1

    run(main)


def test_f17_what_a_killed_holder_has_sent_does_not_count_for_the_sign_in_after_it() -> None:
    """The claim's mark outlives that sign-in. Its token is refreshed when it is due, all the same."""

    async def main() -> None:
        rig = Rig(success(1), success(2))
        await killed_while_sending(rig.store)
        rig.clock.advance(60)
        await rig.source.sign_in(code="new")
        await rig.refresh_when_due()
        assert await rig.access() == "access-2"
        assert not any(isinstance(each, RefreshHeld) for each in rig.events)

    run(main)


async def killed_while_sending(store: Store) -> None:
    """A holder whose event loop is gone, and who had sent its token request."""
    seen = await store.load("account")

    async def send() -> None:
        claim = await store.claim("account", seen=seen.version if seen else None, timeout=1)
        assert not isinstance(claim, Record)
        await claim.sending()

    await asyncio.to_thread(asyncio.run, send())


async def after_a_killed_holder(rig: Rig) -> asyncio.Task[str]:
    """A caller of a process that looks right after such a holder."""
    await killed_while_sending(rig.store)
    return await asking_after_a_killed_holder(rig)


@pytest.mark.parametrize(
    "page",
    [
        b"<html>Please log in</html>",
        b"\n<!-- portal --><HTML>",
        b'<?xml version="1.0"?><!DOCTYPE html>',
        b"\xef\xbb\xbf<!doctype html>",
        "<html>Please log in</html>".encode("utf-16"),
    ],
    ids=["html", "a comment first", "XHTML", "a byte order mark first", "UTF-16"],
)
def test_an_html_page_instead_of_a_token_response_spends_nothing(page: bytes) -> None:
    """A captive portal answers 200 to everything, and the provider has seen no request."""

    async def main() -> None:
        rig = Rig(*(token_response(page) for _ in range(3)), success(1))
        await keep_failing(InvalidTokenResponse, rig, times=3, pause=60)
        assert await rig.access() == "access-1"

    run(main)


def test_f21_a_rejection_without_a_message_is_remembered() -> None:
    """A provider of your own may raise a GrantRejected without a message, after a lost answer too."""

    class Silent(GrantRejected):
        def __init__(self) -> None:
            self.args, self.code, self.certain = (), "gone", True

        def __str__(self) -> str:
            return "no"

    async def main() -> None:
        rig = Rig(Silent())
        await refused(GrantRejected, await after_a_killed_holder(rig))
        assert [rejection.code for rejection in (await state_in(rig)).rejections] == ["gone"]

    run(main)


def test_f17_any_unexpected_error_of_a_transport_may_have_spent_the_refresh_token() -> None:
    """Such an error says nothing about what was sent. It is tried again, and a rejection says why."""

    async def main() -> None:
        rig = Rig(ConnectionResetError("by peer"), KeyError("status"), invalid_grant())
        await keep_failing(OutcomeUnknown, rig, times=2, pause=2, match="unexpectedly")
        await refused(GrantLost, rig.access(), match=r"invalid_grant.*KeyError")
        assert rig.token_requests == 3

    run(main)
