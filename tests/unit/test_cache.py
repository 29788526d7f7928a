"""What one process holds of a key: a small state machine, stepped by hand."""

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
    held = TokenCache()
    serve(held, token(lifetime=lifetime), requested=requested, forced=forced)
    return held


def serve(
    held: TokenCache,
    served: Token,
    *,
    requested: bool = True,
    forced: bool = False,
    jitter: float = 0,
    at: float = 0,
) -> None:
    held.serve(served, POLICY, WALL + at, BOOT + at, jitter=jitter, forced=forced, requested=requested)


def failed(held: TokenCache, error: TokenSessionError, *, after: float = 0, jitter: float = 1) -> float:
    return held.fail(error, POLICY, WALL + after, BOOT + after, jitter=jitter)


def test_it_begins_with_nothing_and_no_grudge() -> None:
    held = TokenCache()
    assert held.token is None
    assert held.deadlines is NO_TOKEN
    assert held.remembered(BOOT) is None
    assert held.not_before == float("-inf")
    assert held.should_force_refresh(POLICY, BOOT)


def test_serving_a_token_sets_its_deadlines() -> None:
    held = serving()
    assert held.token == token()
    assert held.deadlines.freshness(WALL, BOOT) is Freshness.FRESH
    assert held.deadlines.freshness(WALL + 3300, BOOT + 3300) is Freshness.DUE


def test_a_requested_token_keeps_the_next_request_at_a_distance() -> None:
    assert serving(requested=True).not_before == BOOT + 30
    assert serving(60, requested=True).not_before == BOOT + 15


def test_an_adopted_token_does_not() -> None:
    assert serving(requested=False).not_before == BOOT


def test_jitter_is_drawn_once_when_the_token_is_served() -> None:
    early, late = TokenCache(), TokenCache()
    for held, jitter in ((early, 1.0), (late, 0.0)):
        serve(held, token(), jitter=jitter)
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
def test_each_failure_has_its_pause_when_there_is_no_token(error: TokenSessionError, pause: float) -> None:
    held = TokenCache()
    assert failed(held, error) == pause
    assert held.error_until == held.not_before == BOOT + pause


def test_failures_in_a_row_back_off_and_a_good_token_gives_time() -> None:
    spent, good = TokenCache(), serving()
    assert [failed(spent, NotSent("x")) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert [failed(good, NotSent("x")) for _ in range(6)] == [30, 60, 120, 240, 300, 300]


def test_jitter_spreads_a_back_off_and_not_a_pause_that_was_asked_for() -> None:
    assert failed(TokenCache(), NotSent("x"), jitter=0.25) == 0.25
    assert failed(TokenCache(), RateLimited("x", retry_after=9), jitter=0.25) == 9


def test_the_back_off_shrinks_with_what_is_left_of_the_token() -> None:
    held = serving()
    assert failed(held, NotSent("x"), after=3480) == pytest.approx(20)
    assert failed(held, NotSent("x"), after=3540) == 2


def test_a_failure_is_remembered_until_its_pause_is_over() -> None:
    held = TokenCache()
    failed(held, NotSent("x", retry_after=10))
    assert isinstance(held.remembered(BOOT), NotSent)
    assert isinstance(held.remembered(BOOT + 9.999), NotSent)
    assert held.remembered(BOOT + 10) is None


def test_f22_each_caller_gets_a_fresh_copy_that_says_what_is_left_of_the_pause() -> None:
    """A remembered failure is answered with a fresh copy whose retry_after counts down."""
    held = TokenCache()
    original = RateLimited("x", retry_after=10)
    failed(held, original)
    first, second = held.remembered(BOOT + 4), held.remembered(BOOT + 9)
    assert isinstance(first, RateLimited)
    assert isinstance(second, RateLimited)
    assert first is not second
    assert first.__cause__ is second.__cause__ is original
    assert (first.retry_after, second.retry_after, original.retry_after) == (6, 1, 10)


def test_an_error_that_is_not_about_time_is_remembered_too() -> None:
    held = TokenCache()
    failed(held, ClientRejected("x", code="invalid_client"))
    again = held.remembered(BOOT + 59)
    assert isinstance(again, ClientRejected)
    assert again.code == "invalid_client"
    assert not hasattr(again, "retry_after")


def test_the_token_survives_a_failure() -> None:
    held = serving()
    failed(held, GrantRejected("x"))
    assert held.token == token()
    assert held.deadlines.freshness(WALL, BOOT) is Freshness.FRESH


def test_a_new_token_forgives() -> None:
    held = TokenCache()
    for _ in range(5):
        failed(held, NotSent("x"))
    serve(held, token())
    assert held.remembered(BOOT) is None
    held.forget()
    assert failed(held, NotSent("x")) == 1, "the row of failures is over"


def test_f35_a_wall_clock_that_steps_changes_no_pause() -> None:
    """Pauses are counted on the boot clock: a step of the wall clock by a day changes none of them."""
    held = serving()
    for step in (-86_400, 86_400):
        pause = held.fail(RateLimited("x", retry_after=5), POLICY, WALL + step, BOOT, jitter=1)
        assert pause == 5
        assert held.error_until == BOOT + 5


# -- keeping and forgetting ---------------------------------------------------------------------


def test_keeping_a_token_leaves_it_alone_until_it_is_expired() -> None:
    held = serving()
    failed(held, OutcomeUnknown("x"))
    held.hold_until_ending(WALL + 3300, BOOT + 3300)
    assert held.token == token()
    assert held.not_before == BOOT + 3540
    assert held.remembered(BOOT + 3300) is None


def test_forgetting_serves_nothing() -> None:
    held = serving()
    failed(held, NotSent("x"))
    held.forget()
    assert held.token is None
    assert held.deadlines.freshness(WALL, BOOT) is Freshness.EXPIRED
    assert held.remembered(BOOT) is None


# -- 401s ---------------------------------------------------------------------------------------


def test_the_first_401_on_a_token_that_came_by_itself_is_believed_at_once() -> None:
    held = serving()
    assert held.should_force_refresh(POLICY, BOOT)
    assert held.should_force_refresh(POLICY, BOOT), "and by all who got one"


def test_a_401_on_a_token_that_a_401_produced_is_believed_after_a_pause() -> None:
    held = serving(forced=True)
    assert not held.should_force_refresh(POLICY, BOOT)
    assert not held.should_force_refresh(POLICY, BOOT + 29.999)
    assert held.should_force_refresh(POLICY, BOOT + 30)


def test_an_api_that_simply_says_no_is_believed_later_and_later() -> None:
    held, now = serving(), 0.0
    for pause in (0, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600):
        if pause:
            assert not held.should_force_refresh(POLICY, BOOT + now + pause - 0.001)
        now += pause
        assert held.should_force_refresh(POLICY, BOOT + now)
        serve(held, token(f"at-{now}", lifetime=30 * 86400), forced=True, at=now)


def test_a_forced_token_that_worked_for_a_while_starts_a_new_row() -> None:
    """Tokens that are revoked every ten minutes are replaced at once, each time."""
    held = serving()
    for now in (600.0, 1200.0, 1800.0):
        assert held.should_force_refresh(POLICY, BOOT + now)
        serve(held, token(f"at-{now}"), forced=True, at=now)
        assert held.forced == 1


def test_a_token_that_came_by_itself_ends_the_row_of_401s() -> None:
    held = serving(forced=True)
    assert not held.should_force_refresh(POLICY, BOOT)
    serve(held, token("at-2"))
    assert (held.forced, held.in_vain) == (0, False)
    assert held.should_force_refresh(POLICY, BOOT)


# -- what people see ----------------------------------------------------------------------------


def shown(held: TokenCache, *, after: float = 0, step: float = 0) -> Snapshot:
    return held.snapshot("key-1", WALL + after + step, BOOT + after, refreshing=True, unsaved=False)


def test_a_snapshot_of_nothing() -> None:
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


def test_a_snapshot_shows_the_token_s_fingerprint_and_what_is_left_of_it() -> None:
    held = serving()
    now = shown(held, after=600)
    assert (now.token, now.freshness, now.seconds_left) == (token().fingerprint, Freshness.FRESH, 3000)
    assert shown(held, after=600, step=60).seconds_left == 2940
    assert shown(held, after=600, step=-60).seconds_left == 3000
    assert shown(held, after=3400).freshness is Freshness.DUE
    assert shown(held, after=4000).seconds_left == -400
    assert shown(serving(None)).seconds_left is None


def test_a_snapshot_shows_the_failure_that_is_remembered_and_counts_them_all() -> None:
    held = TokenCache()
    failed(held, NotSent("x", retry_after=10))
    failed(held, RateLimited("at-1 rt-1", retry_after=10))
    now = shown(held, after=4)
    assert (now.last_error, now.retry_after, now.failures) == ("RateLimited", 6, 2)
    assert "at-1" not in repr(now)
    later = shown(held, after=10)
    assert (later.last_error, later.retry_after, later.failures) == (None, None, 2)


def test_the_counters_are_its_own_and_outlive_tokens() -> None:
    held, other = serving(), serving()
    held.counters.refreshes += 3
    held.counters.adopted += 1
    serve(held, token("at-2"))
    held.forget()
    assert (shown(held).refreshes, shown(held).adopted) == (3, 1)
    assert shown(other).refreshes == 0


def test_a_snapshot_has_no_place_for_a_secret() -> None:
    """It is frozen, and its only texts are a key, a fingerprint and the name of a type."""
    texts = {field.name for field in dataclasses.fields(Snapshot) if "str" in str(field.type)}
    assert texts == {"key", "token", "last_error"}
    assert Snapshot.__dataclass_params__.frozen  # type: ignore[attr-defined]
