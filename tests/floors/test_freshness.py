"""Every threshold of a token's life: just before, at, and after; and what holds for any life."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession.errors import ConfigurationError
from tokensession.freshness import (
    NO_TOKEN,
    Deadlines,
    Policy,
    Verdict,
    back_off,
    deadlines,
    forced_pause,
    judge,
    spacing,
)
from tokensession.token import Token

FRESH, DUE, EXPIRED = Verdict.FRESH, Verdict.DUE, Verdict.EXPIRED
POLICY = Policy()
T0 = 1_750_000_000.0
BOOT = 5_000.0
DAY = 86_400.0
EPSILON = 1e-3


def token(lifetime: float | None, obtained_at: float = T0) -> Token:
    return Token("at-1", obtained_at, lifetime)


# -- thresholds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime", "due", "expired"),
    [
        # lifetime, DUE this long before the end, EXPIRED this long before the end
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
def test_due_and_expired_begin_where_the_table_says(lifetime: float, due: float, expired: float) -> None:
    end = T0 + lifetime
    for moment, verdict in (
        (T0, FRESH),
        (end - due - EPSILON, FRESH),
        (end - due + EPSILON, DUE),
        (end - expired - EPSILON, DUE),
        (end - expired + EPSILON, EXPIRED),
        (end, EXPIRED),
        (end + 10 * DAY, EXPIRED),
    ):
        assert judge(token(lifetime), POLICY, moment) is verdict, moment - end


def test_the_thresholds_themselves_belong_to_what_follows() -> None:
    """Chosen so that all numbers are exact."""
    for moment, verdict in ((3299, FRESH), (3300, DUE), (3539, DUE), (3540, EXPIRED), (3600, EXPIRED)):
        assert judge(token(3600, obtained_at=0), POLICY, moment) is verdict


@pytest.mark.parametrize(
    ("jitter", "due_from"), [(0.0, 3300.0), (0.5, 3270.0), (1.0, 3240.0)], ids=["none", "half", "full"]
)
def test_jitter_makes_due_earlier_by_up_to_a_fifth_of_its_lead_and_leaves_expired(
    jitter: float, due_from: float
) -> None:
    limits = deadlines(token(3600, 0), POLICY, 0, 0, jitter=jitter)
    assert limits.due_wall == pytest.approx(due_from)
    assert limits.expired_wall == 3540
    assert judge(token(3600, 0), POLICY, due_from - EPSILON, jitter=jitter) is FRESH
    assert judge(token(3600, 0), POLICY, due_from + EPSILON, jitter=jitter) is DUE


def test_a_token_without_a_stated_life_is_fresh_until_a_401() -> None:
    for moment in (0.0, T0, T0 + 1000 * DAY):
        assert judge(token(None), POLICY, moment) is FRESH
    limits = deadlines(token(None), POLICY, T0, BOOT)
    assert limits.alive(1e18, 1e18)
    assert limits.usable_for(T0, BOOT) == math.inf


@pytest.mark.parametrize("lifetime", [0.0, -0.0, -1.0, -3600.0, -1e9])
def test_a_life_of_nothing_is_expired_from_the_start(lifetime: float) -> None:
    for wall in (T0, T0 + 1, T0 - 10, T0 - 2 * DAY):
        limits = deadlines(token(lifetime), POLICY, wall, BOOT)
        assert limits.verdict(wall, BOOT) is EXPIRED
        assert not limits.alive(wall, BOOT)
        assert limits.usable_for(wall, BOOT) == 0


def test_no_token_is_expired_and_dead_always() -> None:
    for wall, boot in ((0.0, 0.0), (-1e18, -1e18), (T0, BOOT)):
        assert NO_TOKEN.verdict(wall, boot) is EXPIRED
        assert not NO_TOKEN.alive(wall, boot)
        assert NO_TOKEN.usable_for(wall, boot) == 0


def test_alive_lasts_to_the_end_and_usable_to_expired() -> None:
    limits = deadlines(token(3600, 0), POLICY, 0, BOOT)
    assert limits.usable_for(0, BOOT) == 3540
    assert limits.usable_for(3539, BOOT + 3539) == 1
    assert limits.usable_for(3540, BOOT + 3540) == 0
    assert limits.usable_for(9999, BOOT + 9999) == 0
    assert limits.alive(3599.5, BOOT + 3599.5)
    assert not limits.alive(3600, BOOT + 3599.5)
    assert not limits.alive(3599.5, BOOT + 3600)


def test_a_shorter_policy_is_followed() -> None:
    policy = Policy(due_lead=10, expired_lead=1)
    for moment, verdict in ((3589, FRESH), (3590, DUE), (3598, DUE), (3599, EXPIRED)):
        assert judge(token(3600, 0), policy, moment) is verdict


def test_expired_is_never_before_due_even_if_the_policy_says_so() -> None:
    policy = Policy(due_lead=1, expired_lead=60)
    limits = deadlines(token(3600, 0), policy, 0, 0)
    assert limits.due_wall == limits.expired_wall == 3540


# -- for any life -------------------------------------------------------------------------------

lives = st.floats(1, 30 * DAY)
jitters = st.floats(0, 1)


@settings(deadline=None, max_examples=200)
@given(lives, jitters)
def test_f36_for_lives_from_1_s_to_30_days_the_windows_never_exceed_their_part(
    life: float, jitter: float
) -> None:
    """From 1 s to 30 days: DUE is at most a fifth of the life, spread by a fifth, EXPIRED at most a tenth."""
    limits = deadlines(token(life, 0), POLICY, 0, 0, jitter=jitter)
    due, expired = life - limits.due_wall, life - limits.expired_wall
    slack = life * 1e-9
    assert 0 < expired <= life / 10 + slack
    assert expired <= 60 + slack
    assert due <= life / 5 * 1.2 + slack
    assert due <= 300 * 1.2 + slack
    assert 0 < limits.due_wall < limits.expired_wall < limits.over_wall == life


@settings(deadline=None, max_examples=200)
@given(lives, jitters)
def test_a_new_token_is_fresh_and_then_due_and_then_expired(life: float, jitter: float) -> None:
    limits = deadlines(token(life, 0), POLICY, 0, 0, jitter=jitter)
    order = {FRESH: 0, DUE: 1, EXPIRED: 2}
    turns = (limits.due_wall, limits.expired_wall, life)
    moments = sorted([0, life / 2, life * 0.75, *turns, *(turn - life * 1e-6 for turn in turns), life * 2])
    seen = [order[limits.verdict(moment, moment)] for moment in moments]
    assert seen == sorted(seen)
    assert set(seen) == {0, 1, 2}
    assert limits.verdict(life * 0.75, life * 0.75) is FRESH, "three quarters of any life"


@settings(deadline=None, max_examples=200)
@given(lives, jitters)
def test_f36_no_life_makes_a_refresh_loop(life: float, jitter: float) -> None:
    """A token obtained by a refresh is not due at once, and the spacing ends before it is due."""
    limits = deadlines(token(life, T0), POLICY, T0, BOOT, jitter=jitter)
    assert limits.verdict(T0, BOOT) is FRESH
    assert spacing(life, POLICY) <= life / 4 * (1 + 1e-9)
    assert spacing(life, POLICY) < limits.due_wall - T0


clocks = st.floats(-10 * DAY, 10 * DAY)


@settings(deadline=None, max_examples=300)
@given(lives, jitters, clocks, st.floats(0, 40 * DAY), clocks)
def test_f35_no_step_of_the_wall_clock_raises_or_lengthens_a_life(
    life: float, jitter: float, before: float, elapsed: float, step: float
) -> None:
    """No step of the wall clock raises, gives a negative time, or makes a token outlive its grant."""
    limits = deadlines(token(life, T0), POLICY, T0 + before, BOOT, jitter=jitter)
    wall, boot = T0 + before + elapsed + step, BOOT + elapsed
    verdict = limits.verdict(wall, boot)
    left = limits.usable_for(wall, boot)
    assert 0 <= left <= life
    assert left == 0 or verdict is not EXPIRED
    if elapsed >= life:
        assert verdict is EXPIRED
        assert not limits.alive(wall, boot)


def test_f34_the_earlier_of_both_clocks_counts() -> None:
    """Wall clock and boot-time clock: whichever makes a token DUE or EXPIRED first counts."""
    limits = deadlines(token(3600), POLICY, T0, BOOT)
    assert limits.verdict(T0 + 10, BOOT + 10) is FRESH
    assert limits.verdict(T0 + 10 - 3600, BOOT + 10) is FRESH
    assert limits.verdict(T0 + 10 - 3600, BOOT + 3400) is DUE
    assert limits.verdict(T0 + 10 - 3600, BOOT + 3590) is EXPIRED
    assert limits.verdict(T0 + 3400, BOOT + 10) is DUE
    assert limits.verdict(T0 + 3590, BOOT + 10) is EXPIRED


@pytest.mark.parametrize(
    ("wall", "boot", "verdict", "alive"),
    [
        (9.5, 9.5, FRESH, True),
        (10, 9.5, DUE, True),
        (9.5, 10, DUE, True),
        (19.5, 19.5, DUE, True),
        (20, 19.5, EXPIRED, True),
        (19.5, 20, EXPIRED, True),
        (29.5, 29.5, EXPIRED, True),
        (30, 29.5, EXPIRED, False),
        (29.5, 30, EXPIRED, False),
    ],
)
def test_f34_a_threshold_is_reached_on_either_clock_alone(
    wall: float, boot: float, verdict: Verdict, alive: bool
) -> None:
    """Each threshold is reached on the wall clock alone and on the boot-time clock alone."""
    limits = Deadlines(10, 10, 20, 20, 30, 30)
    assert limits.verdict(wall, boot) is verdict
    assert limits.alive(wall, boot) is alive


def test_a_token_from_the_future_lives_no_longer_than_it_was_granted() -> None:
    limits = deadlines(token(3600, T0 + DAY), POLICY, T0, BOOT)
    assert limits.over_boot == BOOT + 3600
    assert limits.verdict(T0 + 3590, BOOT + 3590) is EXPIRED


def test_a_token_adopted_late_has_only_the_rest_of_its_life() -> None:
    limits = deadlines(token(3600, T0 - 3000), POLICY, T0, BOOT)
    assert limits.over_boot == BOOT + 600
    assert limits.verdict(T0, BOOT) is FRESH
    assert limits.verdict(T0 + 301, BOOT + 301) is DUE


# -- pauses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime", "pause"),
    [(None, 30), (3600, 30), (121, 30), (120, 30), (119, 29.75), (60, 15), (1, 0.25), (0, 0), (-5, 0)],
)
def test_the_spacing_is_30_s_or_a_quarter_of_the_life(lifetime: float | None, pause: float) -> None:
    assert spacing(lifetime, POLICY) == pause


@pytest.mark.parametrize(
    ("forced", "pause"),
    [(0, 0), (1, 30), (2, 60), (3, 120), (7, 1920), (8, 3600), (9, 3600), (13, 3600), (10**6, 3600)],
)
def test_the_first_401_is_believed_and_each_further_one_half_as_soon(forced: int, pause: float) -> None:
    assert forced_pause(forced, 3600, POLICY) == pause


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**9), st.none() | st.floats(-DAY, 30 * DAY))
def test_a_forced_pause_is_bounded_and_never_shrinks(forced: int, life: float | None) -> None:
    pause = forced_pause(forced, life, POLICY)
    assert 0 <= pause <= 3600
    assert pause <= forced_pause(forced + 1, life, POLICY)


@pytest.mark.parametrize(
    ("failures", "usable_for", "cap"),
    [
        # the token is still good: 30 s, doubled each time, at most 5 min, at most a third of what is left
        (1, 3600, 30),
        (2, 3600, 60),
        (4, 3600, 240),
        (5, 3600, 300),
        (99, 3600, 300),
        (5, 900.5, 300),
        (5, 899.4, 299.8),
        (1, 90, 30),
        (1, 89.7, 29.9),
        (9, 3, 1),
        # it is spent: 1 s, doubled each time, at most 30 s
        (1, 0, 1),
        (2, 0, 2),
        (5, 0, 16),
        (6, 0, 30),
        (10**9, 0, 30),
        (0, 0, 1),
    ],
)
def test_the_back_off_has_the_documented_caps(failures: int, usable_for: float, cap: float) -> None:
    assert back_off(failures, usable_for, POLICY, 1.0) == pytest.approx(cap)
    assert back_off(failures, usable_for, POLICY, 0.5) == pytest.approx(cap / 2)
    assert back_off(failures, usable_for, POLICY, 0.0) == pytest.approx(cap / 10), "never no pause at all"


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**9), st.just(0.0) | st.floats(0, 30 * DAY), jitters)
def test_a_back_off_is_bounded_and_its_cap_never_shrinks(
    failures: int, usable_for: float, jitter: float
) -> None:
    pause = back_off(failures, usable_for, POLICY, jitter)
    assert 0 <= pause <= (min(300, usable_for / 3) if usable_for else 30) * (1 + 1e-9)
    assert pause <= back_off(failures, usable_for, POLICY, 1.0)
    assert back_off(failures, usable_for, POLICY, 1.0) <= back_off(failures + 1, usable_for, POLICY, 1.0)


# -- the policy ---------------------------------------------------------------------------------

NAMES = [setting.name for setting in fields(Policy)]
FRACTIONS = [name for name in NAMES if name.endswith(("_fraction", "_jitter"))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wrong", [-1, -1e-9, math.nan, math.inf, -math.inf, "30", None, True, [], 1j], ids=repr
)
def test_a_setting_that_is_no_finite_duration_is_refused_by_name(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"Policy\.{name} is "):
        Policy(**{name: wrong})


@pytest.mark.parametrize("name", FRACTIONS)
def test_a_fraction_beyond_one_is_refused(name: str) -> None:
    assert getattr(Policy(**{name: 1}), name) == 1
    assert getattr(Policy(**{name: 0}), name) == 0
    with pytest.raises(ConfigurationError, match="give a fraction, 0 to 1"):
        Policy(**{name: 1.0001})


def test_fractions_are_checked_where_there_are_fractions() -> None:
    assert set(FRACTIONS) == {
        "due_fraction",
        "due_jitter",
        "expired_fraction",
        "spacing_fraction",
        "usable_back_off_fraction",
    }


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FRACTIONS)))
def test_durations_may_be_long_or_zero(name: str) -> None:
    for value in (0, 1.5, 10**6):
        assert getattr(Policy(**{name: value}), name) == value


def test_a_policy_is_a_frozen_value_with_names_only() -> None:
    assert Policy() == POLICY
    assert replace(POLICY, due_lead=1).due_lead == 1
    with pytest.raises(TypeError):
        Policy(300)  # type: ignore[misc]


def test_every_setting_says_what_it_is() -> None:
    for setting in fields(Policy):
        assert setting.metadata["what"]
        assert "why" in setting.metadata


def test_the_defaults_fit_together() -> None:
    """A waiter outlasts a token request, and closing outlasts both."""
    assert POLICY.connect_timeout < POLICY.post_timeout < POLICY.grace <= POLICY.claim_timeout
    assert POLICY.retry_after_min < POLICY.retry_after_default < POLICY.retry_after_max
    assert POLICY.expired_lead < POLICY.due_lead
    assert POLICY.expired_fraction < POLICY.due_fraction
