"""Every threshold of a token's lifetime: just before, at and after it; and what holds for any lifetime."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession import policy as policy_module
from tokensession._refresh.schedule import (
    NO_TOKEN,
    Deadlines,
    back_off,
    deadlines,
    doubled,
    forced_refresh_delay,
    look_interval,
    refresh_interval,
    request_limit,
)
from tokensession.errors import ConfigurationError
from tokensession.policy import Freshness, Policy
from tokensession.token import Token

FRESH, DUE, ENDING, EXPIRED = Freshness
POLICY = Policy()
T0 = 1_750_000_000.0
BOOT = 5_000.0
DAY = 86_400.0
EPSILON = 1e-3


def token(lifetime: float | None, obtained_at: float = T0) -> Token:
    return Token("at-1", obtained_at, lifetime)


def judge(lifetime: float | None, age: float, policy: Policy = POLICY, *, jitter: float = 0.0) -> Freshness:
    """The freshness of a token that was obtained `age` seconds ago, on clocks that agree."""
    return deadlines(token(lifetime, 0), 0, policy, jitter=jitter).freshness(age, age)


@pytest.mark.parametrize(
    ("lifetime", "due", "ending"),
    [
        # lifetime, DUE this long before expiry, ENDING this long before expiry
        (30 * DAY, 300, 60),
        (21600, 300, 60),
        (3600, 300, 60),
        (1501, 300, 60),
        (1500, 300, 60),  # L/5 takes over
        (1499, 299.8, 60),
        (601, 120.2, 60),
        (600, 120, 60),  # L/10 takes over
        (599, 119.8, 59.9),
        (60, 12, 6),
        (5, 1, 0.5),
        (1, 0.2, 0.1),
    ],
)
def test_due_and_ending_begin_where_the_table_says(lifetime: float, due: float, ending: float) -> None:
    for age, freshness in (
        (0, FRESH),
        (lifetime - due - EPSILON, FRESH),
        (lifetime - due + EPSILON, DUE),
        (lifetime - ending - EPSILON, DUE),
        (lifetime - ending + EPSILON, ENDING),
        (lifetime, EXPIRED),
        (lifetime + 10 * DAY, EXPIRED),
    ):
        assert judge(lifetime, age) is freshness, age - lifetime


@pytest.mark.parametrize(
    ("policy", "due", "ending"),
    [(POLICY, 3300, 3540), (Policy(due_lead=10, ending_lead=1), 3590, 3599)],
    ids=["default", "shorter"],
)
def test_a_threshold_belongs_to_the_state_it_begins(policy: Policy, due: float, ending: float) -> None:
    """All these numbers are exact."""
    for begins, before, after in ((due, FRESH, DUE), (ending, DUE, ENDING), (3600, ENDING, EXPIRED)):
        assert (judge(3600, begins - 0.5, policy), judge(3600, begins, policy)) == (before, after)


@pytest.mark.parametrize(
    ("jitter", "due_from"), [(0.0, 3300.0), (0.5, 3270.0), (1.0, 3240.0)], ids=["none", "half", "full"]
)
def test_jitter_makes_due_earlier_by_up_to_a_fifth_of_its_lead_and_does_not_move_ending(
    jitter: float, due_from: float
) -> None:
    limits = deadlines(token(3600, 0), 0, POLICY, jitter=jitter)
    assert deadlines(token(3600, 0), 0, POLICY) == deadlines(token(3600, 0), 0, POLICY, jitter=0.0)
    assert limits.due_wall == limits.due_boot == pytest.approx(due_from)
    assert limits.ending_wall == limits.ending_boot == 3540
    assert judge(3600, due_from - EPSILON, jitter=jitter) is FRESH
    assert judge(3600, due_from + EPSILON, jitter=jitter) is DUE


def test_a_token_without_a_stated_lifetime_is_fresh_until_a_401() -> None:
    for age in (0.0, DAY, 1000 * DAY):
        assert judge(None, age) is FRESH
    limits = deadlines(token(None), BOOT, POLICY)
    assert limits.freshness(1e18, 1e18) is FRESH
    assert limits.usable_for(T0, BOOT) == math.inf


@pytest.mark.parametrize("lifetime", [0.0, -0.0, -1.0, -3600.0, -1e9])
def test_a_lifetime_of_zero_or_less_is_expired_from_the_start(lifetime: float) -> None:
    for wall in (T0, T0 + 1, T0 - 10, T0 - 2 * DAY):
        limits = deadlines(token(lifetime), BOOT, POLICY)
        assert limits.freshness(wall, BOOT) is EXPIRED
        assert limits.usable_for(wall, BOOT) == 0


def test_no_token_is_always_expired() -> None:
    for wall, boot in ((0.0, 0.0), (-1e18, -1e18), (T0, BOOT)):
        assert NO_TOKEN.freshness(wall, boot) is EXPIRED
        assert NO_TOKEN.usable_for(wall, boot) == 0


def test_a_token_is_usable_until_ending_and_valid_until_expired() -> None:
    limits = deadlines(token(3600, 0), BOOT, POLICY)
    assert limits.usable_for(0, BOOT) == 3540
    assert limits.usable_for(3539, BOOT + 3539) == 1
    assert limits.usable_for(3540, BOOT + 3540) == 0
    assert limits.usable_for(9999, BOOT + 9999) == 0
    assert limits.freshness(3599.5, BOOT + 3599.5) is ENDING
    assert limits.freshness(3600, BOOT + 3599.5) is EXPIRED
    assert limits.freshness(3599.5, BOOT + 3600) is EXPIRED
    assert [state.usable for state in (FRESH, DUE, ENDING, EXPIRED)] == [True, True, False, False]


def test_ending_is_never_before_due_even_if_the_policy_says_so() -> None:
    policy = Policy(due_lead=1, ending_lead=60)
    limits = deadlines(token(3600, 0), 0, policy)
    assert limits.due_wall == limits.ending_wall == 3540


lifetimes = st.floats(1, 30 * DAY)
jitters = st.floats(0, 1)


@settings(deadline=None, max_examples=200)
@given(lifetimes, jitters)
def test_f36_for_lifetimes_from_1_s_to_30_days_the_windows_never_exceed_their_part(
    lifetime: float, jitter: float
) -> None:
    """For 1 s to 30 days: DUE takes at most a fifth of the lifetime, spread by a fifth, ENDING a tenth."""
    limits = deadlines(token(lifetime, 0), 0, POLICY, jitter=jitter)
    due, ending = lifetime - limits.due_wall, lifetime - limits.ending_wall
    slack = lifetime * 1e-9
    assert 0 < ending <= lifetime / 10 + slack
    assert ending <= 60 + slack
    assert due <= lifetime / 5 * 1.2 + slack
    assert due <= 300 * 1.2 + slack
    assert 0 < limits.due_wall < limits.ending_wall < limits.expired_wall == lifetime


@settings(deadline=None, max_examples=200)
@given(lifetimes, jitters)
def test_f36_no_lifetime_causes_a_refresh_loop(lifetime: float, jitter: float) -> None:
    """A token from a refresh is not due at once, and the minimum refresh interval ends before it is due."""
    limits = deadlines(token(lifetime, T0), BOOT, POLICY, jitter=jitter)
    assert limits.freshness(T0, BOOT) is FRESH
    assert refresh_interval(lifetime, POLICY) <= lifetime / 4 * (1 + 1e-9)
    assert refresh_interval(lifetime, POLICY) < limits.due_wall - T0


clocks = st.floats(-10 * DAY, 10 * DAY)


@settings(deadline=None, max_examples=300)
@given(lifetimes, jitters, clocks, st.floats(0, 40 * DAY), clocks)
def test_f35_no_step_of_the_wall_clock_raises_or_lengthens_a_lifetime(
    lifetime: float, jitter: float, before: float, elapsed: float, step: float
) -> None:
    """No step of the wall clock raises, gives a negative time, or makes a token live longer than granted."""
    limits = deadlines(token(lifetime, T0 + before), BOOT, POLICY, jitter=jitter)
    wall, boot = T0 + before + elapsed + step, BOOT + elapsed
    freshness = limits.freshness(wall, boot)
    left = limits.usable_for(wall, boot)
    assert 0 <= left <= lifetime
    assert (left > 0) == freshness.usable
    if elapsed >= lifetime:
        assert freshness is EXPIRED


@pytest.mark.parametrize(
    ("wall", "boot", "freshness"),
    [
        (9.5, 9.5, FRESH),
        (10, 9.5, DUE),
        (9.5, 10, DUE),
        (19.5, 19.5, DUE),
        (20, 19.5, ENDING),
        (19.5, 20, ENDING),
        (29.5, 29.5, ENDING),
        (30, 29.5, EXPIRED),
        (29.5, 30, EXPIRED),
    ],
)
def test_f34_a_threshold_is_reached_on_either_clock_alone(
    wall: float, boot: float, freshness: Freshness
) -> None:
    """Each threshold is reached on the wall clock alone, and on the boot clock alone."""
    limits = Deadlines(10, 10, 20, 20, 30, 30)
    assert limits.freshness(wall, boot) is freshness


@pytest.mark.parametrize("wrong", [-DAY, 0.0, DAY])
def test_f35_a_wall_clock_that_is_wrong_when_the_token_is_obtained_does_not_lengthen_its_life(
    wrong: float,
) -> None:
    """Whatever the wall clock says then and later, the boot clock ends it in time."""
    limits = deadlines(token(3600, T0 + wrong), BOOT, POLICY)
    assert limits.expired_boot == BOOT + 3600
    for wall in (T0 + wrong, T0):
        assert limits.freshness(wall + 3590, BOOT + 3590) in (ENDING, EXPIRED)
        assert limits.freshness(wall + 3600, BOOT + 3600) is EXPIRED


@pytest.mark.parametrize(
    ("lifetime", "pause"),
    [(None, 30), (3600, 30), (121, 30), (120, 30), (119, 29.75), (60, 15), (1, 0.25), (0, 0), (-5, 0)],
)
def test_the_refresh_interval_is_30_s_or_a_quarter_of_the_lifetime(
    lifetime: float | None, pause: float
) -> None:
    assert refresh_interval(lifetime, POLICY) == pause


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**9), st.none() | st.floats(-DAY, 30 * DAY))
def test_the_delay_of_a_forced_refresh_is_bounded_and_never_shrinks(
    forced: int, lifetime: float | None
) -> None:
    pause = forced_refresh_delay(forced, lifetime, POLICY)
    assert 0 <= pause <= 3600
    assert pause <= forced_refresh_delay(forced + 1, lifetime, POLICY)


@pytest.mark.parametrize(
    ("failures", "lasting", "usable_for", "cap"),
    [
        # the token is usable: 30 s, doubled each time, at most 5 min, at most a third of what is left
        (1, 0, 3600, 30),
        (2, 0, 3600, 60),
        (4, 9999, 3600, 240),
        (5, 0, 3600, 300),
        (99, 0, 3600, 300),
        (5, 0, 900.5, 300),
        (5, 0, 899.4, 299.8),
        (1, 0, 90, 30),
        (1, 0, 89.7, 29.9),
        (9, 0, 3, 1),
        # callers are waiting: 0.15 of what the outage has lasted, at least 1 s and at most 30 s
        (1, 0, 0, 1),
        (5, 6.6, 0, 1),
        (5, 10, 0, 1.5),
        (1, 100, 0, 15),
        (2, 200, 0, 30),
        (10**9, 10**9, 0, 30),
        (0, -5, 0, 1),
    ],
)
def test_the_back_off_has_the_documented_caps(
    failures: int, lasting: float, usable_for: float, cap: float
) -> None:
    """And a jitter from half of it to all."""
    for jitter, part in ((1.0, 1.0), (0.5, 0.75), (0.0, 0.5)):
        assert back_off(failures, lasting, usable_for, POLICY, jitter) == pytest.approx(cap * part)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**9), st.floats(0, 1e9), st.just(0.0) | st.floats(0.01, 30 * DAY), jitters)
def test_a_back_off_is_bounded_and_its_cap_never_shrinks(
    failures: int, lasting: float, usable_for: float, jitter: float
) -> None:
    pause = back_off(failures, lasting, usable_for, POLICY, jitter)
    assert 0 < pause <= (min(300, usable_for / 3) if usable_for else 30) * (1 + 1e-9)
    most = back_off(failures, lasting, usable_for, POLICY, 1.0)
    assert most / 2 <= pause * (1 + 1e-9)
    assert most <= back_off(failures + 1, lasting + 1, usable_for, POLICY, 1.0)


@pytest.mark.parametrize(
    ("count", "pause"), [(-1, 60), (0, 60), (1, 60), (2, 120), (6, 1920), (7, 3600), (10**9, 3600)]
)
def test_a_doubled_pause_has_a_longest(count: int, pause: float) -> None:
    assert doubled(60, 3600, count) == pause


def test_the_store_is_looked_at_about_once_a_second() -> None:
    assert (look_interval(0.0), look_interval(0.5), look_interval(1.0)) == (0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("lifetime", "limit"),
    [(None, 300), (3600, 300), (36, 300), (30, 360), (20, 540), (1, 10_800), (0, 10_800), (-5, 10_800)],
)
def test_a_short_lived_token_may_be_requested_more_often(lifetime: float | None, limit: float) -> None:
    assert request_limit(lifetime, POLICY) == limit
    assert request_limit(lifetime, Policy(requests_per_hour=10**6)) == 10**6


@settings(deadline=None, max_examples=100)
@given(st.floats(1, 30 * DAY))
def test_the_limit_never_slows_down_ordinary_refreshes(lifetime: float) -> None:
    """A token is refreshed when it is due. Half of the limit comes back in an hour."""
    due = deadlines(token(lifetime, 0), 0, POLICY, jitter=1.0).due_boot
    assert 3600 / due <= request_limit(lifetime, POLICY) / 2


NAMES = [setting.name for setting in fields(Policy)]
FRACTIONS = [
    "due_fraction",
    "due_jitter",
    "ending_fraction",
    "min_refresh_interval_fraction",
    "usable_back_off_fraction",
    "waiting_back_off_fraction",
]
POSITIVE = [
    "caller_timeout",
    "connect_timeout",
    "request_timeout",
    "requests_per_hour",
    "response_timeout",
    "store_timeout",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wrong", [-1, -1e-9, math.nan, math.inf, -math.inf, "30", None, True, [], 1j], ids=repr
)
def test_an_invalid_setting_is_an_error_that_names_it(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"Policy\.{name} must be "):
        Policy(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "valid", "wrong", "said"),
    [(name, [0, 0.5, 1], 1.0001, "a fraction from 0 to 1") for name in FRACTIONS]
    + [(name, [0.1, 1.5, 10**6], 0, "more than 0") for name in POSITIVE]
    + [(name, [0, 1.5, 10**6], -1, "a finite number") for name in NAMES if name not in FRACTIONS + POSITIVE],
)
def test_each_setting_has_a_range(name: str, valid: list[float], wrong: float, said: str) -> None:
    """In aiohttp, a time-out of 0 means "no time-out". Here nothing could ever be done in time."""
    for value in valid:
        assert getattr(Policy(**{name: value}), name) == value
    with pytest.raises(ConfigurationError, match=rf"Policy\.{name} must be {said}"):
        Policy(**{name: wrong})


def test_a_policy_is_a_frozen_value_with_names_only() -> None:
    assert Policy() == POLICY
    assert replace(POLICY, due_lead=1).due_lead == 1
    with pytest.raises(TypeError):
        Policy(300)  # type: ignore[call-arg]


def test_every_setting_has_a_description_and_a_reason() -> None:
    for setting in fields(Policy):
        assert setting.metadata["what"]
        assert "why" in setting.metadata


def test_the_defaults_fit_together() -> None:
    """A token request takes no longer than its callers wait, unless its answer must not be lost."""
    assert POLICY.connect_timeout < POLICY.request_timeout <= POLICY.caller_timeout
    assert POLICY.caller_timeout < POLICY.response_timeout
    assert POLICY.retry_within <= POLICY.caller_timeout < 30, "the usual time-out of a caller"
    assert POLICY.close_timeout < 30, "the usual time before SIGKILL"
    assert POLICY.store_timeout < POLICY.close_timeout
    assert POLICY.retry_after_min < POLICY.retry_after_default < POLICY.retry_after_max
    assert POLICY.ending_lead < POLICY.due_lead
    assert POLICY.ending_fraction < POLICY.due_fraction


def test_every_constant_of_the_policy_module_says_why() -> None:
    """They are fixed, so the reason is all that a reader can get."""
    names = [name for name in vars(policy_module) if name.isupper() and not name.startswith("_")]
    source = inspect.getsource(policy_module)
    assert names
    for name in names:
        assert re.search(rf'^{name} = [^\n]+\n"""[A-Z]', source, re.M), name
