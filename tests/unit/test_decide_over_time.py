"""What single decisions add up to over minutes and hours: how many token requests are made."""

from __future__ import annotations

from itertools import pairwise

import pytest
from _states import (
    BAD,
    DAY,
    DUE,
    EXPIRED,
    FRESH,
    LIFETIME,
    NOW,
    ORDER,
    after,
    later,
    sends,
    state,
    step,
    waits,
)

from tokensession._refresh.decide import Hold, Redeem, Serve, Wait
from tokensession._refresh.outcomes import noted
from tokensession._refresh.schedule import request_limit
from tokensession.errors import OutcomeUnknown
from tokensession.policy import Policy

POLICY = Policy()


def no_answers(age: float, seconds: float, jitter: float = 0.5) -> list[float]:
    """When requests are sent if none is ever answered, by a process that asks each second."""
    stored, sent, now = state(age), list[float](), 0.0
    while now < seconds:
        result = step(stored, have=ORDER, now=later(now))
        if isinstance(result, Redeem):
            sent.append(now)
            stored = noted(
                result.state, OutcomeUnknown("It got no answer."), result.sent, POLICY, NOW.boot + now, jitter
            )
        else:
            assert isinstance(result, Wait | Hold), "it never gives up"
        now += 1
    return sent


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_f53_a_refresh_token_whose_responses_are_lost_is_sent_until_there_is_an_answer(jitter: float) -> None:
    """Two per minute at first, after ten tries one in five minutes, for as long as it lasts."""
    sent = no_answers(EXPIRED, 4 * 3600, jitter)
    pauses = [after_it - before for before, after_it in pairwise(sent)]
    assert pauses[0] == 2
    assert max(pauses[:9]) <= 30
    assert sent[-1] > 4 * 3600 - 301
    assert 220 <= pauses[-1] <= 300


def test_f53_with_a_due_token_there_is_one_repetition_and_then_none_until_the_token_is_ending() -> None:
    """Two requests close together, and the next ones after the 140 s that are left."""
    sent = no_answers(DUE, 200)
    assert sent[:2] == [0, 2]
    assert min(sent[2:]) == 140


def test_f59_a_server_that_always_answers_like_this_is_asked_less_and_less() -> None:
    """The pause doubles each time, up to an hour."""
    stored, pauses, now = state(EXPIRED), [], 0.0
    for _ in range(9):
        result = sends(step(stored, now=later(now)))
        stored = after(result, problem=BAD, lifetime=0.0, refresh=f"rt-{now}", now=later(now))
        until = waits(step(stored, now=later(now))).until
        pauses.append(until - NOW.boot - now)
        now += pauses[-1]
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def unauthorized_run(processes: int, *, seconds: int = 600, every: int = 1) -> list[int]:
    """When tokens are requested if the API answers 401 to all of them. Each process asks every so often."""
    stored = after(sends(step(None)), name="at-0", lifetime=30 * DAY)
    has = [stored] * processes
    sent = [0]
    for now in range(0, seconds, every):
        for process in range(processes):
            mine = has[process].token
            assert mine is not None
            result = step(stored, have=has[process].order, unauthorized=mine.fingerprint, now=later(now))
            if isinstance(result, Redeem):
                sent.append(now)
                refresh = f"rt-{len(sent)}"
                stored = after(result, f"at-{len(sent)}", refresh=refresh, now=later(now), lifetime=30 * DAY)
                has[process] = stored
            else:
                assert isinstance(result, Serve)
                has[process] = result.state
    return sent


@pytest.mark.parametrize("processes", [1, 4, 16])
def test_f33_an_api_that_answers_401_to_everything_costs_six_requests_in_ten_minutes(processes: int) -> None:
    """With one process or many: the count is in the state, and an adopted token inherits it."""
    assert unauthorized_run(processes) == [0, 0, 30, 90, 210, 450]


def test_f33_in_the_end_it_costs_one_request_an_hour() -> None:
    """Up to then, each pause is twice the one before."""
    sent = unauthorized_run(2, seconds=int(DAY), every=10)
    pauses = [after_it - before for before, after_it in pairwise(sent)]
    assert pauses[-5:] == [3600] * 5


def test_a_token_that_served_for_the_spacing_ends_the_row_of_401s() -> None:
    """Tokens that are revoked every ten minutes are replaced at once each time."""
    stored = state(FRESH)
    for turn in range(1, 6):
        assert stored.token is not None
        ours = stored.token.fingerprint
        result = sends(step(stored, have=stored.order, unauthorized=ours, now=later(600 * turn)))
        stored = after(result, f"at-{turn}", now=later(600 * turn))
        assert stored.forced == 1


def test_the_first_401_after_an_ordinary_refresh_is_answered_at_once() -> None:
    """Mutant 30: a refresh that no 401 has caused does not count as forced."""
    new = after(sends(step(state(DUE), have=ORDER)), "at-2")
    assert new.forced == 0
    assert new.token is not None
    assert sends(step(new, have=new.order, unauthorized=new.token.fingerprint)).unauthorized


def requests_made(seconds: int, policy: Policy, lifetime: float, clock: float = 1) -> list[float]:
    """When tokens are requested if a caller asks for a new one all the time."""
    stored, sent, now = state(FRESH, lifetime=lifetime), list[float](), 0.0
    while now < seconds:
        result = step(stored, have=stored.order, now=later(now), policy=policy)
        if isinstance(result, Redeem):
            sent.append(now)
            stored = after(result, f"at-{now}", now=later(now), lifetime=lifetime, policy=policy)
        else:
            assert isinstance(result, Wait)
            assert result.limit
        now += clock
    return sent


@pytest.mark.parametrize(("limit", "lifetime"), [(300, LIFETIME), (20, LIFETIME), (300, 20.0)])
def test_there_are_never_more_requests_in_an_hour_than_the_limit(limit: float, lifetime: float) -> None:
    policy = Policy(requests_per_hour=limit)
    sent = requests_made(2 * 3600, policy, lifetime)
    most = max(sum(start <= moment < start + 3600 for moment in sent) for start in range(0, 3601, 60))
    allowed = request_limit(lifetime, policy)
    assert allowed / 2 <= most <= allowed + 1
