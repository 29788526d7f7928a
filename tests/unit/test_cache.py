"""What one process remembers of a key: a small state machine, stepped by hand."""

from __future__ import annotations

import dataclasses

import pytest

from tokensession._refresh.cache import Snapshot, TokenCache
from tokensession._refresh.schedule import NO_TOKEN
from tokensession.errors import (
    ClientRejected,
    GrantRejected,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    SignedOut,
    StoreUnavailable,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession.policy import Freshness, Policy
from tokensession.token import Token

POLICY = Policy()
WALL, BOOT = 1_750_000_000.0, 5_000.0


def token(name: str = "at-1", lifetime: float | None = 3600) -> Token:
    return Token(name, WALL, lifetime, "rt-1")


def serving(lifetime: float | None = 3600, *, requested: bool = True, forced: bool = False) -> TokenCache:
    cache = TokenCache()
    serve(cache, token(lifetime=lifetime), requested=requested, forced=forced)
    return cache


def serve(
    cache: TokenCache,
    served: Token,
    *,
    requested: bool = True,
    forced: bool = False,
    jitter: float = 0,
    at: float = 0,
) -> None:
    cache.serve(served, POLICY, WALL + at, BOOT + at, jitter=jitter, forced=forced, requested=requested)


def failed(cache: TokenCache, error: TokenSessionError, *, after: float = 0, jitter: float = 1) -> float:
    return cache.fail(error, POLICY, WALL + after, BOOT + after, jitter=jitter)


def test_a_new_cache_has_no_token_and_no_failure() -> None:
    cache = TokenCache()
    assert cache.token is None
    assert cache.deadlines is NO_TOKEN
    assert cache.remembered(BOOT) is None
    assert cache.not_before == float("-inf")
    assert cache.should_force_refresh(POLICY, BOOT)


def test_serving_a_token_sets_its_deadlines() -> None:
    cache = serving()
    assert cache.token == token()
    assert cache.deadlines.freshness(WALL, BOOT) is Freshness.FRESH
    assert cache.deadlines.freshness(WALL + 3300, BOOT + 3300) is Freshness.DUE


def test_a_requested_token_delays_the_next_background_refresh() -> None:
    assert serving(requested=True).not_before == BOOT + 30
    assert serving(60, requested=True).not_before == BOOT + 15


def test_an_adopted_token_does_not_delay_it() -> None:
    assert serving(requested=False).not_before == BOOT


def test_jitter_is_drawn_once_when_the_token_is_served() -> None:
    early, late = TokenCache(), TokenCache()
    for cache, jitter in ((early, 1.0), (late, 0.0)):
        serve(cache, token(), jitter=jitter)
    assert early.deadlines.due_wall < late.deadlines.due_wall
    assert early.deadlines.ending_wall == late.deadlines.ending_wall


# -- failing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (NotSent("x"), 1),
        (OutcomeUnknown("x"), 1),
        (TokenUnavailable("x"), 1),
        (TokenUnavailable("x", retry_after=7), 7),
        (TokenUnavailable("x", retry_after=0.2), 1),
        (TokenUnavailable("x", retry_after=1e9), 3600),
        (RateLimited("x"), 60),
        (RateLimited("x", retry_after=0), 1),
        (RateLimited("x", retry_after=-5), 1),
        (RateLimited("x", retry_after=3600), 3600),
        (RateLimited("x", retry_after=3601), 3600),
        (GrantRejected("x"), 1),
        (SignedOut("x"), 1),
        (ClientRejected("x"), 60),
        (InvalidTokenResponse("x"), 1),
        (StoreUnavailable("x"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_failure_has_its_pause_without_a_token(error: TokenSessionError, pause: float) -> None:
    cache = TokenCache()
    assert failed(cache, error) == pause
    assert cache.error_until == cache.not_before == BOOT + pause


def test_failures_in_a_row_back_off_and_longer_with_a_usable_token() -> None:
    spent, good = TokenCache(), serving()
    assert [failed(spent, NotSent("x")) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert [failed(good, NotSent("x")) for _ in range(6)] == [30, 60, 120, 240, 300, 300]


def test_jitter_spreads_a_back_off_but_not_a_requested_delay() -> None:
    assert failed(TokenCache(), NotSent("x"), jitter=0.25) == 0.25
    assert failed(TokenCache(), RateLimited("x", retry_after=9), jitter=0.25) == 9


def test_the_back_off_shrinks_with_the_time_left_of_the_token() -> None:
    cache = serving()
    assert failed(cache, NotSent("x"), after=3480) == pytest.approx(20)
    assert failed(cache, NotSent("x"), after=3540) == 2


def test_a_failure_is_remembered_until_its_pause_is_over() -> None:
    cache = TokenCache()
    failed(cache, NotSent("x", retry_after=10))
    assert isinstance(cache.remembered(BOOT), NotSent)
    assert isinstance(cache.remembered(BOOT + 9.999), NotSent)
    assert cache.remembered(BOOT + 10) is None


def test_f22_each_caller_gets_a_copy_that_says_what_is_left_of_the_pause() -> None:
    """A remembered failure is raised as a copy whose retry_after counts down."""
    cache = TokenCache()
    original = RateLimited("x", retry_after=10)
    failed(cache, original)
    first, second = cache.remembered(BOOT + 4), cache.remembered(BOOT + 9)
    assert isinstance(first, RateLimited)
    assert isinstance(second, RateLimited)
    assert first is not second
    assert first.__cause__ is second.__cause__ is original
    assert (first.retry_after, second.retry_after, original.retry_after) == (6, 1, 10)


def test_an_error_without_retry_after_is_remembered_too() -> None:
    cache = TokenCache()
    failed(cache, ClientRejected("x", code="invalid_client"))
    again = cache.remembered(BOOT + 59)
    assert isinstance(again, ClientRejected)
    assert again.code == "invalid_client"
    assert not hasattr(again, "retry_after")


def test_the_token_survives_a_failure() -> None:
    cache = serving()
    failed(cache, GrantRejected("x"))
    assert cache.token == token()
    assert cache.deadlines.freshness(WALL, BOOT) is Freshness.FRESH


def test_a_new_token_ends_a_row_of_failures() -> None:
    cache = TokenCache()
    for _ in range(5):
        failed(cache, NotSent("x"))
    serve(cache, token())
    assert cache.remembered(BOOT) is None
    cache.forget()
    assert failed(cache, NotSent("x")) == 1, "the row of failures is over"


def test_f35_a_step_of_the_wall_clock_changes_no_pause() -> None:
    """Pauses are counted on the boot clock: a step of the wall clock by a day changes none of them."""
    cache = serving()
    for step in (-86_400, 86_400):
        pause = cache.fail(RateLimited("x", retry_after=5), POLICY, WALL + step, BOOT, jitter=1)
        assert pause == 5
        assert cache.error_until == BOOT + 5


# -- holding and forgetting ---------------------------------------------------------------------


def test_holding_a_token_starts_no_refresh_until_it_is_ending() -> None:
    cache = serving()
    failed(cache, OutcomeUnknown("x"))
    cache.hold_until_ending(WALL + 3300, BOOT + 3300)
    assert cache.token == token()
    assert cache.not_before == BOOT + 3540
    assert cache.remembered(BOOT + 3300) is None


def test_forgetting_serves_nothing() -> None:
    cache = serving()
    failed(cache, NotSent("x"))
    cache.forget()
    assert cache.token is None
    assert cache.deadlines.freshness(WALL, BOOT) is Freshness.EXPIRED
    assert cache.remembered(BOOT) is None


# -- 401s ---------------------------------------------------------------------------------------


def test_the_first_401_on_a_token_from_a_normal_refresh_forces_a_refresh_at_once() -> None:
    cache = serving()
    assert cache.should_force_refresh(POLICY, BOOT)
    assert cache.should_force_refresh(POLICY, BOOT), "and so do all other requests that got one"


def test_a_401_on_a_token_from_a_forced_refresh_forces_another_after_a_pause() -> None:
    cache = serving(forced=True)
    assert not cache.should_force_refresh(POLICY, BOOT)
    assert not cache.should_force_refresh(POLICY, BOOT + 29.999)
    assert cache.should_force_refresh(POLICY, BOOT + 30)


def test_an_api_that_answers_401_to_every_token_forces_refreshes_at_growing_intervals() -> None:
    cache, now = serving(), 0.0
    for pause in (0, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600):
        if pause:
            assert not cache.should_force_refresh(POLICY, BOOT + now + pause - 0.001)
        now += pause
        assert cache.should_force_refresh(POLICY, BOOT + now)
        serve(cache, token(f"at-{now}", lifetime=30 * 86400), forced=True, at=now)


def test_a_token_that_worked_for_a_while_starts_a_new_row_of_401s() -> None:
    """Tokens that are revoked every ten minutes are replaced at once each time."""
    cache = serving()
    for now in (600.0, 1200.0, 1800.0):
        assert cache.should_force_refresh(POLICY, BOOT + now)
        serve(cache, token(f"at-{now}"), forced=True, at=now)
        assert cache.forced == 1


def test_a_token_from_a_normal_refresh_ends_the_row_of_401s() -> None:
    cache = serving(forced=True)
    assert not cache.should_force_refresh(POLICY, BOOT)
    serve(cache, token("at-2"))
    assert (cache.forced, cache.in_vain) == (0, False)
    assert cache.should_force_refresh(POLICY, BOOT)


# -- what people see ----------------------------------------------------------------------------


def shown(cache: TokenCache, *, after: float = 0, step: float = 0) -> Snapshot:
    return cache.snapshot("key-1", WALL + after + step, BOOT + after, refreshing=True, unsaved=False)


def test_a_snapshot_without_a_token() -> None:
    assert shown(TokenCache()) == Snapshot(
        key="key-1",
        freshness=Freshness.EXPIRED,
        token=None,
        seconds_left=None,
        refreshing=True,
        unsaved=False,
        last_error=None,
        retry_after=None,
        refreshes=0,
        token_requests=0,
        adopted=0,
        unauthorized=0,
        failures=0,
    )


def test_a_snapshot_shows_the_token_s_fingerprint_and_the_seconds_left() -> None:
    cache = serving()
    now = shown(cache, after=600)
    assert (now.token, now.freshness, now.seconds_left) == (token().fingerprint, Freshness.FRESH, 3000)
    assert shown(cache, after=600, step=60).seconds_left == 2940
    assert shown(cache, after=600, step=-60).seconds_left == 3000
    assert shown(cache, after=3400).freshness is Freshness.DUE
    assert shown(cache, after=4000).seconds_left == -400
    assert shown(serving(None)).seconds_left is None


def test_a_snapshot_shows_the_remembered_failure_and_counts_all_failures() -> None:
    cache = TokenCache()
    failed(cache, NotSent("x", retry_after=10))
    failed(cache, RateLimited("at-1 rt-1", retry_after=10))
    now = shown(cache, after=4)
    assert (now.last_error, now.retry_after, now.failures) == ("RateLimited", 6, 2)
    assert "at-1" not in repr(now)
    later = shown(cache, after=10)
    assert (later.last_error, later.retry_after, later.failures) == (None, None, 2)


def test_each_cache_has_its_own_counters_and_they_outlive_tokens() -> None:
    cache, other = serving(), serving()
    cache.counters.refreshes += 3
    cache.counters.adopted += 1
    serve(cache, token("at-2"))
    cache.forget()
    assert (shown(cache).refreshes, shown(cache).adopted) == (3, 1)
    assert shown(other).refreshes == 0


def test_a_snapshot_has_no_field_for_a_secret() -> None:
    """It is frozen, and its only texts are a key, a fingerprint and the name of a type."""
    texts = {field.name for field in dataclasses.fields(Snapshot) if "str" in str(field.type)}
    assert texts == {"key", "token", "last_error"}
    assert Snapshot.__dataclass_params__.frozen  # type: ignore[attr-defined]
