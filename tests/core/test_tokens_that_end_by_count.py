"""`Strategy.max_requests`: access tokens that end after so many requests, whatever is left of their life."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from _event_loop import in_event_loop
from _rig import Rig, let_tasks_run, success

from tokensession import ConfigurationError, OutcomeUnknown, Policy, TokenUnavailable
from tokensession._refresh.uses import _uses, due_after
from tokensession.providers import OAuth2, Strategy
from tokensession.testing import FakeClock, Paused

LIMIT = 10
DUE = 8
"""With a `due_fraction` of 0.2 and no jitter."""


@pytest.fixture(autouse=True)
def _nothing_counted() -> None:
    """The tokens of all these tests have the same names."""
    gc.collect()
    _uses.clear()


def counting(limit: int | None = LIMIT) -> OAuth2:
    provider = OAuth2(
        token_url="https://id.example.com/token",
        client_id="client",
        client_secret="client-secret",
        refresh_token="configured-token",
    )
    provider.strategy = replace(provider.strategy, max_requests=limit)
    return provider


def counted(*script: Any, limit: int | None = LIMIT, **options: Any) -> Rig:
    return Rig(*script, provider=counting(limit), **options)


async def asked(rig: Rig, times: int) -> Counter[str]:
    """The tokens that so many callers get, one after the other."""
    return Counter([await rig.access() for _ in range(times)])


@in_event_loop
async def test_a_token_is_due_and_then_ending_by_the_number_of_its_requests() -> None:
    rig = counted(success(1))
    assert await asked(rig, DUE - 1) == {"access-1": DUE - 1}
    assert rig.source.snapshot().freshness.value == "fresh"
    assert await asked(rig, 1) == {"access-1": 1}
    assert rig.source.snapshot().freshness.value == "due"
    assert rig.token_requests == 1
    paused = Paused(success(2))
    rig.transport.script(paused)
    assert await asked(rig, LIMIT - DUE) == {"access-1": LIMIT - DUE}
    assert rig.source.snapshot().freshness.value == "ending"
    late = rig.ask()
    await paused.arrived.wait()
    assert not late.done()
    paused.release()
    assert await late == "access-2"
    assert rig.source.snapshot().freshness.value == "fresh"


@in_event_loop
async def test_a_token_that_is_due_by_count_is_refreshed_while_callers_use_it() -> None:
    rig = counted(success(1), success(2))
    await asked(rig, DUE)
    rig.clock.advance(30)  # the shortest pause between two refreshes
    assert await rig.access() == "access-1"
    await rig.refreshed()
    assert await asked(rig, DUE) == {"access-2": DUE}
    assert rig.token_requests == 2


@pytest.mark.parametrize("limit", [1, 3, LIMIT])
@in_event_loop
async def test_no_token_is_given_to_more_callers_than_the_server_allows(limit: int) -> None:
    """Also if all of them have waited for it."""
    callers = 3 * limit
    rig = counted(limit=limit)
    paused, first = await rig.in_flight(success(0))
    rig.transport.script(*(success(number) for number in range(1, 9)))
    waiting = [rig.ask() for _ in range(callers - 1)]
    await let_tasks_run()
    paused.release()
    got = Counter([await first, *await asyncio.gather(*waiting)])
    assert max(got.values()) <= limit
    assert rig.token_requests == len(got) <= 4


@in_event_loop
async def test_sources_of_one_process_count_together() -> None:
    """The server counts the token's requests, whichever source has sent them."""
    first = counted(success(1))
    second = first.peer(success(2), provider=counting())
    assert await asked(first, DUE - 1) == {"access-1": DUE - 1}
    assert await asked(second, 2) == {"access-1": 2}
    await second.refreshed()
    assert await asked(first, 2) == {"access-1": 1, "access-2": 1}
    assert await asked(second, 1) == {"access-2": 1}
    assert first.token_requests == second.token_requests == 1


@in_event_loop
async def test_if_the_refresh_fails_callers_get_the_old_token() -> None:
    """It may have been counted too high: the server decides."""
    rig = counted(success(1), TokenUnavailable("down"))
    await asked(rig, LIMIT)
    assert await asked(rig, 3) == {"access-1": 3}
    assert rig.token_requests == 2
    rig.clock.advance(60)
    rig.transport.script(success(2))
    assert await rig.access() == "access-2"


@in_event_loop
async def test_a_used_up_token_is_not_held_after_a_lost_response() -> None:
    """While a token lives, its refresh token is left alone after a lost response. This one is over."""
    rig = counted(success(1), OutcomeUnknown("lost"))
    await asked(rig, DUE)
    rig.clock.advance(90)
    await rig.access()
    await rig.refreshed()
    assert await asked(rig, 1) == {"access-1": 1}
    assert rig.token_requests == 2
    rig.clock.advance(90)
    rig.transport.script(success(2))
    assert await rig.access() == "access-2"


@in_event_loop
async def test_a_request_that_is_sent_again_after_a_401_counts_too() -> None:
    rig = counted(*(success(number) for number in (1, 2, 3)), limit=2)
    token = await rig.source.token()
    renewed = await rig.source.refresh(token)
    assert renewed.access_token == "access-2"
    assert await asked(rig, 2) == {"access-2": 1, "access-3": 1}


@in_event_loop
async def test_a_count_is_forgotten_with_the_last_source_that_serves_its_token() -> None:
    rig = counted(success(1))
    token = await rig.source.token()
    assert token.fingerprint in _uses
    await rig.source.sign_out()
    gc.collect()
    assert token.fingerprint not in _uses


@in_event_loop
async def test_without_a_limit_nothing_is_counted() -> None:
    rig = counted(success(1), limit=None, clock=FakeClock(boot_counts_sleep=True))
    token = await rig.source.token()
    assert token.fingerprint not in _uses
    assert rig.source._fresh() == (token, token.authorization)
    counting_too = counted(success(1), clock=FakeClock(boot_counts_sleep=True))
    await counting_too.source.token()
    assert counting_too.source._fresh() is None


@pytest.mark.parametrize(
    ("limit", "jitter", "due"), [(1, 0, 1), (2, 0, 1), (10, 0, 8), (10, 1, 7), (1000, 1, 760)]
)
def test_as_much_is_left_of_a_due_token_as_of_one_that_ends_by_time(
    limit: int, jitter: float, due: int
) -> None:
    assert due_after(limit, Policy(), jitter) == due


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "10"])
def test_a_limit_that_cannot_be_counted_is_an_error(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="'acme': max_requests must be a whole number above 0"):
        Strategy(name="acme", grants={}, max_requests=wrong)
