"""However many ask while the token endpoint is down, they cause a number of requests that the policy sets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from _rig import LIFE, Rig, run, success

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
USABLE = 239.0  # seconds until the token is EXPIRED, when it has been DUE for a second

TROUBLES: dict[str, Callable[[], Any]] = {
    "not sent": lambda: NotSent("no route"),
    "500": lambda: token_response({}, 500),
    "503": lambda: token_response(b"", 503),
}


def at_most(trouble: str, jitter: float, *, usable: bool) -> int:
    """The requests in one minute that docs/life-of-a-token.md permits, from its words and the numbers.

    A 503 without Retry-After pauses a minute. Otherwise the pause is `jitter` of a cap that doubles: from
    30 s to 5 min while the token is usable, but a third of what is left of it at most, from 1 s to 30 s when
    it is not; and it is never less than a tenth of that. The first request is at once.
    """
    if trouble == "503":
        return 1
    first, longest = (30.0, 300.0) if usable else (1.0, 30.0)
    moment, requests = 0.0, 0
    while moment < MINUTE and requests < WAVES:
        third = (USABLE - moment) / 3 if usable else longest
        moment += min(first * 2**requests, longest, third) * max(jitter, 0.1)
        requests += 1
    return requests


def at_once(rig: Rig) -> str | TokenUnavailable:
    """What a caller gets without giving up the processor even once."""
    coroutine = rig.access()
    try:
        coroutine.send(None)
    except StopIteration as done:
        return str(done.value)
    except TokenUnavailable as error:
        return error
    raise AssertionError("the caller has to wait")


# (trouble, what is drawn, whether refresh tokens rotate)
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


@pytest.mark.parametrize(("trouble", "jitter", "rotates"), STORMS)
def test_f22_ten_thousand_callers_with_a_spent_token_cause_the_requests_that_the_policy_sets(
    trouble: str, jitter: float, rotates: bool
) -> None:
    """In a minute's outage 10,000 callers cause a few POSTs; inside a pause all get the error at once."""

    async def scene() -> None:
        clock = FakeClock(jitter=jitter)
        rig = Rig(success(1), *(TROUBLES[trouble]() for _ in range(WAVES)), clock=clock, rotates=rotates)
        await rig.access()
        clock.advance(LIFE)
        answered = 0
        for _ in range(WAVES):
            left = rig.source.snapshot().retry_after
            if left is None:  # nothing is remembered, or no longer: one flight for all of them
                found = await asyncio.gather(*(rig.access() for _ in range(CALLERS)), return_exceptions=True)
                assert all(isinstance(error, TokenUnavailable) for error in found)
                assert all(error.retry_after >= 0 for error in found)  # type: ignore[union-attr, operator]
            else:
                told = [at_once(rig) for _ in range(CALLERS)]
                assert all(isinstance(error, TokenUnavailable) for error in told)
                assert {error.retry_after for error in told} == {left}  # type: ignore[union-attr]
                assert 0 < left <= 60
                answered += CALLERS
            clock.advance(MINUTE / WAVES)
            if left is not None and (now := rig.source.snapshot().retry_after) is not None:
                assert now == pytest.approx(left - MINUTE / WAVES), "it counts down"
        posts = rig.posts - 1
        assert 1 <= posts <= at_most(trouble, jitter, usable=False)
        assert answered == (WAVES - posts) * CALLERS
        clock.advance(MINUTE)
        rig.transport._lines.clear()
        rig.transport.script(success(2))
        assert await rig.access() == "access-2", "and then it is over"

    run(scene)


@pytest.mark.parametrize(("trouble", "jitter", "rotates"), STORMS)
def test_f22_f25_ten_thousand_callers_with_a_usable_token_hear_nothing_of_the_outage(
    trouble: str, jitter: float, rotates: bool
) -> None:
    """While the token is usable all 10,000 get it in the same turn, and refreshes ahead are spaced."""

    async def scene() -> None:
        clock = FakeClock(jitter=jitter)
        rig = Rig(success(1), *(TROUBLES[trouble]() for _ in range(WAVES)), clock=clock, rotates=rotates)
        await rig.access()
        clock.advance(LIFE - 299)
        for _ in range(WAVES):
            assert {at_once(rig) for _ in range(CALLERS)} == {"access-1"}
            await rig.landed()
            clock.advance(MINUTE / WAVES)
        assert 1 <= rig.posts - 1 <= at_most(trouble, jitter, usable=True)

    run(scene)


def test_f22_whatever_is_drawn_an_outage_costs_a_few_requests_a_minute() -> None:
    """With chance as it is, and callers every 20 ms: never more than 20 token requests in a minute."""

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
        return rig.posts

    async def scene() -> None:
        posts = [await outage(seed) for seed in range(12)]
        assert max(posts) <= 20
        assert min(posts) >= 3, "and it is tried again"

    run(scene)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "header",
    ["90", formatdate(1_750_000_000 + 90, usegmt=True)],
    ids=["seconds", "HTTP date"],
)
def test_f23_no_request_is_sent_before_the_time_that_the_provider_asked_for(header: str, status: int) -> None:
    """Retry-After, in seconds or as a date: not one POST before it, whoever asks, and one after it."""

    async def scene() -> None:
        clock = FakeClock(jitter=0.0)
        limited = token_response(
            {}, status, (("retry-after", header), ("date", formatdate(clock.wall(), usegmt=True)))
        )
        rig = Rig(success(1), limited, success(2), clock=clock)
        token = await rig.source.token()
        clock.advance(LIFE)
        clock.step_wall(-LIFE)  # so that the date is 90 s from now
        with pytest.raises(RateLimited) as caught:
            await rig.access()
        assert caught.value.retry_after == 90
        for left in range(89, 0, -1):
            clock.advance(1)
            told = at_once(rig)
            assert isinstance(told, RateLimited)
            assert told.retry_after == left
            with pytest.raises(RateLimited):
                await rig.source.refresh(token)  # a 401 is no way around it
            with pytest.raises(RateLimited):
                await rig.source.refresh()
        assert rig.posts == 2
        clock.advance(1)
        assert await rig.access() == "access-2"
        assert rig.posts == 3

    run(scene)


FAULTS: dict[str, Fault] = {
    **{str(status): Response(status, b"") for status in (408, 429, 500, 502, 503, 504)},
    "reset": Reset(spent=False),
    "reset, spent": Reset(spent=True),
    "truncated": Truncate(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_f23_f39_no_layer_below_repeats_a_token_request_that_failed(fault: str) -> None:
    """Over real HTTP a 429, a 5xx or a reset after sending costs exactly one POST, however many ask."""

    async def scene() -> None:
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

    run(scene)
