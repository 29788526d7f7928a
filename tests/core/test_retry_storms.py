"""While the token endpoint is down, callers cause only the requests that the policy permits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from _moments import holding, refused
from _rig import IMPATIENT, LIFETIME, Rig, run, success
from _scripted_store import ScriptedStore

from tokensession import (
    AiohttpTransport,
    ManagedSource,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, Fault, OAuth2Server, Reset, Response, Truncate, token_response

MINUTE = 60.0
WAVES, CALLERS = 200, 50  # ten thousand callers in one minute
USABLE = 239.0  # seconds until the token is ENDING, when it has been DUE for a second
LOOKS = 2 * MINUTE  # about one look at the store in a second, and at most two

FAILURES: dict[str, Callable[[], Any]] = {
    "not sent": lambda: NotSent("no route"),
    "500": lambda: token_response({}, 500),
    "503": lambda: token_response(b"", 503),
    "429": lambda: token_response(b"", 429),
}


def at_most(failure: str, jitter: float, *, usable: bool) -> int:
    """How many requests docs/concepts/life-of-a-token.md permits in one minute.

    Without a usable token, a pause is a second, or a fraction of 0.15 of the time since the first failure, up
    to 30 s. While the token is usable, it is 30 s at first and doubles up to 5 min, but is at most a third of
    the usable time left; after a 429 without a Retry-After it is a minute. Jitter makes it shorter by up to
    a half, except that minute. The first request is sent at once.
    """
    draw = (1 + jitter) / 2
    moment, requests = 0.0, 0
    while moment < MINUTE and requests < WAVES:
        if not usable:
            moment += min(max(1.0, 0.15 * moment), 30.0) * draw
        elif failure == "429":
            moment += MINUTE
        else:
            moment += min(30.0 * 2**requests, 300.0, (USABLE - moment) / 3) * draw
        requests += 1
    return requests


def at_once(rig: Rig) -> str | TokenUnavailable:
    """What a caller gets without suspending."""
    coroutine = rig.access()
    try:
        coroutine.send(None)
    except StopIteration as done:
        return str(done.value)
    except TokenUnavailable as error:
        return error
    raise AssertionError("the caller had to wait")


# (failure, jitter, whether refresh tokens rotate)
STORMS = [
    ("not sent", 0.0, True),
    ("not sent", 0.5, True),
    ("not sent", 0.999, True),
    ("not sent", 0.5, False),
    ("500", 0.0, False),
    ("500", 0.5, True),
    ("500", 0.999, False),
    ("503", 0.0, True),
    ("429", 0.0, True),
    ("429", 0.999, False),
]


@pytest.mark.parametrize(("failure", "jitter", "rotates"), STORMS)
def test_f22_ten_thousand_callers_with_an_expired_token_cause_the_requests_that_the_policy_permits(
    failure: str, jitter: float, rotates: bool
) -> None:
    """A minute's outage costs a few token requests and about one look at the store in a second."""

    async def main() -> None:
        clock = FakeClock(jitter=jitter)
        store, looks = ScriptedStore(clock=clock), list[float]()
        script = [FAILURES[failure]() for _ in range(WAVES)]
        rig = await holding(*script, clock=clock, rotates=rotates, store=store)

        async def look() -> None:
            looks.append(clock.boot())

        store.steps |= {"load": look, "claim": look}
        clock.advance(LIFETIME)
        for _ in range(WAVES):
            found = await asyncio.gather(*(rig.access() for _ in range(CALLERS)), return_exceptions=True)
            again = at_once(rig)  # until the next look, callers get the error without waiting
            pauses = [error.retry_after for error in (*found, again) if isinstance(error, TokenUnavailable)]
            assert len(pauses) == CALLERS + 1
            assert all(pause is not None and 0 < pause <= 30 for pause in pauses)
            clock.advance(MINUTE / WAVES)
        token_requests = rig.token_requests - 1
        assert 1 <= token_requests <= at_most(failure, jitter, usable=False)
        assert len(looks) <= LOOKS + 2 * token_requests
        clock.advance(MINUTE)
        rig.transport._lines.clear()
        rig.transport.script(success(2))
        assert await rig.access() == "access-2", "the outage is over"

    run(main)


@pytest.mark.parametrize(("failure", "jitter", "rotates"), STORMS)
def test_f22_f25_ten_thousand_callers_with_a_usable_token_do_not_notice_the_outage(
    failure: str, jitter: float, rotates: bool
) -> None:
    """All 10,000 get the token without waiting, and background refreshes are spaced."""

    async def main() -> None:
        clock = FakeClock(jitter=jitter)
        rig = await holding(*(FAILURES[failure]() for _ in range(WAVES)), clock=clock, rotates=rotates)
        clock.advance(LIFETIME - 299)
        for _ in range(WAVES):
            assert {at_once(rig) for _ in range(CALLERS)} == {"access-1"}
            await rig.refreshed()
            clock.advance(MINUTE / WAVES)
        assert 1 <= rig.token_requests - 1 <= at_most(failure, jitter, usable=True)

    run(main)


def test_f22_with_any_jitter_the_requests_of_a_minute_have_a_bound() -> None:
    """With random jitter and a caller every 20 ms, there are no more than with the shortest draws."""

    async def outage(seed: int) -> int:
        draws = random.Random(seed)
        clock = FakeClock(jitter=iter(draws.random, 1.0))
        rig = Rig(*(NotSent("no route") for _ in range(100)), clock=clock)
        while clock.boot() < 1000.0 + MINUTE:
            await refused(NotSent, rig.access())
            clock.advance(0.02)
        return rig.token_requests

    async def main() -> None:
        token_requests = [await outage(seed) for seed in range(8)]
        assert max(token_requests) <= at_most("not sent", 0.0, usable=False)
        assert min(token_requests) >= at_most("not sent", 1.0, usable=False) - 5, "it must be tried again"

    run(main)


@pytest.mark.parametrize(
    "failure",
    [token_response({}, 429, (("retry-after", "3600"),)), token_response({"error": "invalid_grant"}, 400)],
    ids=["limited", "rejected"],
)
def test_f22_an_error_that_is_repeated_for_an_hour_does_not_grow(failure: Any) -> None:
    """Each caller gets a copy of the first error, not a copy of the copy before it."""

    async def main() -> None:
        rig = Rig(failure)
        for _ in range(100):
            caught = await refused(TokenSessionError, rig.access())
            rig.clock.advance(2)
        error: BaseException | None = caught
        depth = 0
        while error is not None:
            error, depth = error.__cause__ or error.__context__, depth + 1
        assert depth <= 3

    run(main)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "header",
    ["90", formatdate(1_750_000_000 + 90, usegmt=True)],
    ids=["seconds", "HTTP date"],
)
def test_f23_no_request_is_sent_before_retry_after_has_passed(header: str, status: int) -> None:
    """In seconds or as a date: no caller causes a token request before then, and one is sent after."""

    async def main() -> None:
        clock = FakeClock(jitter=0.0)
        limited = token_response(
            {}, status, (("retry-after", header), ("date", formatdate(clock.wall(), usegmt=True)))
        )
        rig = Rig(success(1), limited, success(2), clock=clock)
        token = await rig.source.token()
        clock.advance(LIFETIME)
        clock.step_wall(-LIFETIME)  # so that the date is 90 s from now
        caught = await refused(RateLimited, rig.access())
        assert caught.retry_after == 90
        for left in range(89, 0, -1):
            clock.advance(1)
            caught = await refused(RateLimited, rig.access())
            assert caught.retry_after == left
            await refused(RateLimited, rig.source.refresh(token))  # a 401 does not get around it
            await refused(RateLimited, rig.source.refresh())
        assert rig.token_requests == 2
        clock.advance(1)
        assert await rig.access() == "access-2"
        assert rig.token_requests == 3

    run(main)


FAULTS: dict[str, Fault] = {
    **{str(status): Response(status, b"") for status in (408, 429, 500, 502, 503, 504)},
    "reset": Reset(spent=False),
    "reset, spent": Reset(spent=True),
    "truncated": Truncate(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_f23_f39_no_lower_layer_repeats_a_failed_token_request(fault: str) -> None:
    """Over HTTP a 429, a 5xx or a reset costs exactly one token request, however many callers there are."""

    async def main() -> None:
        async with OAuth2Server() as server:
            server.script(*[FAULTS[fault]] * 5)
            source = ManagedSource(
                OAuth2(**server.credentials),
                AiohttpTransport(),
                store=MemoryStore(),
                policy=IMPATIENT,
                clock=FakeClock(jitter=0.5),
            )
            found = await asyncio.gather(*(source.token() for _ in range(100)), return_exceptions=True)
            found += await asyncio.gather(*(source.token() for _ in range(100)), return_exceptions=True)
            kind = TokenUnavailable if fault.isdigit() else OutcomeUnknown
            assert all(isinstance(error, kind) for error in found)
            assert server.stats.token_requests == 1
            await source.aclose()

    run(main)
