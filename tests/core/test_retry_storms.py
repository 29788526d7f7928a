"""While the token endpoint is down, callers cause only the requests that the policy permits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from _rig import LIFETIME, Rig, run, success

from tokensession import (
    AiohttpTransport,
    ManagedSource,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    TokenUnavailable,
)
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock, Fault, OAuth2Server, Reset, Response, Truncate, token_response

MINUTE = 60.0
WAVES, CALLERS = 200, 50  # ten thousand callers in one minute
USABLE = 239.0  # seconds until the token is ENDING, when it has been DUE for a second

FAILURES: dict[str, Callable[[], Any]] = {
    "not sent": lambda: NotSent("no route"),
    "500": lambda: token_response({}, 500),
    "503": lambda: token_response(b"", 503),
}


def at_most(failure: str, jitter: float, *, usable: bool) -> int:
    """How many requests docs/concepts/life-of-a-token.md permits in one minute.

    A 503 without Retry-After pauses for a minute. Otherwise the pause is `jitter` times a cap that doubles,
    and at least a tenth of the cap. While the token is usable, the cap is 30 s to 5 min, and at most a third
    of the usable time left. Without a usable token it is 1 s to 30 s. The first request is sent at once.
    """
    if failure == "503":
        return 1
    first, longest = (30.0, 300.0) if usable else (1.0, 30.0)
    moment, requests = 0.0, 0
    while moment < MINUTE and requests < WAVES:
        third = (USABLE - moment) / 3 if usable else longest
        moment += min(first * 2**requests, longest, third) * max(jitter, 0.1)
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
    ("503", 0.999, False),
]


@pytest.mark.parametrize(("failure", "jitter", "rotates"), STORMS)
def test_f22_ten_thousand_callers_with_an_expired_token_cause_the_requests_that_the_policy_permits(
    failure: str, jitter: float, rotates: bool
) -> None:
    """A minute's outage costs a few token requests, and during a pause all callers get the error at once."""

    async def main() -> None:
        clock = FakeClock(jitter=jitter)
        rig = Rig(success(1), *(FAILURES[failure]() for _ in range(WAVES)), clock=clock, rotates=rotates)
        await rig.access()
        clock.advance(LIFETIME)
        answered = 0
        for _ in range(WAVES):
            left = rig.source.snapshot().retry_after
            if left is None:  # no failure is remembered, so all of them share one refresh
                found = await asyncio.gather(*(rig.access() for _ in range(CALLERS)), return_exceptions=True)
                assert all(isinstance(error, TokenUnavailable) for error in found)
                assert all(error.retry_after >= 0 for error in found)  # type: ignore[union-attr, operator]
            else:
                errors = [at_once(rig) for _ in range(CALLERS)]
                assert all(isinstance(error, TokenUnavailable) for error in errors)
                assert {error.retry_after for error in errors} == {left}  # type: ignore[union-attr]
                assert 0 < left <= 60
                answered += CALLERS
            clock.advance(MINUTE / WAVES)
            if left is not None and (now := rig.source.snapshot().retry_after) is not None:
                assert now == pytest.approx(left - MINUTE / WAVES), "it must count down"
        token_requests = rig.token_requests - 1
        assert 1 <= token_requests <= at_most(failure, jitter, usable=False)
        assert answered == (WAVES - token_requests) * CALLERS
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
        rig = Rig(success(1), *(FAILURES[failure]() for _ in range(WAVES)), clock=clock, rotates=rotates)
        await rig.access()
        clock.advance(LIFETIME - 299)
        for _ in range(WAVES):
            assert {at_once(rig) for _ in range(CALLERS)} == {"access-1"}
            await rig.refreshed()
            clock.advance(MINUTE / WAVES)
        assert 1 <= rig.token_requests - 1 <= at_most(failure, jitter, usable=True)

    run(main)


def test_f22_with_any_jitter_an_outage_costs_a_few_requests_a_minute() -> None:
    """With random jitter and callers every 20 ms: never more than 20 token requests in a minute."""

    async def outage(seed: int) -> int:
        draws = random.Random(seed)
        clock = FakeClock(jitter=iter(draws.random, 1.0))
        rig = Rig(*(NotSent("no route") for _ in range(100)), clock=clock)
        while clock.boot() < 1000.0 + MINUTE:
            if rig.source.snapshot().retry_after is None:
                with pytest.raises(NotSent):
                    await rig.access()
            else:
                assert isinstance(at_once(rig), NotSent)
            clock.advance(0.02)
        return rig.token_requests

    async def main() -> None:
        token_requests = [await outage(seed) for seed in range(12)]
        assert max(token_requests) <= 20
        assert min(token_requests) >= 3, "it must be tried again"

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
        with pytest.raises(RateLimited) as caught:
            await rig.access()
        assert caught.value.retry_after == 90
        for left in range(89, 0, -1):
            clock.advance(1)
            limit = at_once(rig)
            assert isinstance(limit, RateLimited)
            assert limit.retry_after == left
            with pytest.raises(RateLimited):
                await rig.source.refresh(token)  # a 401 does not get around it
            with pytest.raises(RateLimited):
                await rig.source.refresh()
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
                clock=FakeClock(jitter=0.5),
            )
            found = await asyncio.gather(*(source.token() for _ in range(100)), return_exceptions=True)
            found += await asyncio.gather(*(source.token() for _ in range(100)), return_exceptions=True)
            kind = TokenUnavailable if fault.isdigit() else OutcomeUnknown
            assert all(isinstance(error, kind) for error in found)
            assert server.stats.token_requests == 1
            await source.aclose()

    run(main)
