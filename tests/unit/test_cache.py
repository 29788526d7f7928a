"""What one process remembers of a key: a small state machine, stepped by hand."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
from _states import (
    CONFIGURED,
    DAY,
    DUE,
    ENDING,
    FRESH,
    NOW,
    failures,
    later,
    rejection,
    state,
    token,
    unknown,
)

from tokensession._refresh.cache import TokenCache
from tokensession._refresh.outcomes import LocalFailure
from tokensession._refresh.schedule import NO_TOKEN
from tokensession._refresh.state import TokenState
from tokensession.errors import (
    ClientRejected,
    GrantRejected,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    StoreUnavailable,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession.policy import Freshness, Policy
from tokensession.snapshot import Snapshot

POLICY = Policy()
BOOT = NOW.boot
LONG_AGO = float("-inf")


def serve(
    cache: TokenCache,
    served: TokenState,
    *,
    requested: bool = True,
    jitter: float = 0,
    after: float = 0,
) -> None:
    cache.learn(served, "v1", BOOT + after)
    cache.serve(served, POLICY, later(after), jitter=jitter, requested=requested)


def serving(age: float = FRESH, *, requested: bool = True, **changes: Any) -> TokenCache:
    cache = TokenCache()
    serve(cache, state(age, **changes), requested=requested)
    return cache


def failed(
    cache: TokenCache,
    error: TokenSessionError | None = None,
    *,
    pause: float = 0,
    after: float = 0,
    jitter: float = 1,
) -> bool:
    """It fails, and nothing may be sent for so long. Returns whether that is new."""
    failure = error or NotSent("No connection.")
    return cache.fail(failure, BOOT + after + pause, BOOT + after, jitter=jitter)


@pytest.mark.parametrize(
    ("order", "learned"), [((1, 1), False), ((0, 9), False), ((1, 2), True), ((1, 3), True), ((2, 0), True)]
)
def test_f51_a_lower_state_is_never_learned_over_a_higher_one(order: tuple[int, int], learned: bool) -> None:
    """Whatever the store says: it may have gone back."""
    cache, known = TokenCache(), state(generation=2)
    cache.learn(known, "v1", BOOT)
    found = state(DUE, number=order[0], generation=order[1])
    cache.learn(found, "v2", BOOT + 5)
    assert (cache.state, cache.version) == ((found, "v2") if learned else (known, "v1"))
    assert cache.seen_at == (BOOT + 5 if learned else BOOT)


def test_f21_notes_that_could_not_be_stored_survive_a_look_at_the_store() -> None:
    """Otherwise a rejected refresh token is sent again after each look."""
    cache = TokenCache()
    cache.learn(state(), "v1", BOOT)
    cache.note(state(rejections=(rejection(),), failures=unknown()))
    cache.learn(state(failures=failures(CONFIGURED, ago=100)), "v2", BOOT)
    assert cache.state is not None
    assert cache.state.rejections == (rejection(),)
    assert cache.state.failures == unknown()
    assert cache.version == "v2"


def test_notes_end_with_the_state_they_are_about() -> None:
    cache = TokenCache()
    cache.learn(state(rejections=(rejection(),)), None, BOOT)
    cache.learn(state(generation=1), "v2", BOOT)
    assert cache.state == state(generation=1)
    cache.note(state(failures=unknown()))
    assert cache.state == state(generation=1), "a note about what is over"


def test_f22_the_first_note_is_remembered_although_it_could_not_be_stored() -> None:
    """Otherwise a first start over a store that cannot write would send request after request."""
    cache = TokenCache()
    cache.note(state(failures=unknown()))
    assert cache.state == state(failures=unknown())


@pytest.mark.parametrize("version", ["v1", None], ids=["stored", "not stored yet"])
def test_a_state_that_is_learned_again_is_not_missing_any_more_and_as_new_as_can_be(
    version: str | None,
) -> None:
    """The memory of it is not "more than a week old", although no record was ever seen."""
    cache = TokenCache(missing_since=BOOT + 1)
    cache.learn(state(), version, BOOT + 9)
    assert (cache.seen_at, cache.missing_since, cache.version) == (BOOT + 9, None, version)


@pytest.mark.parametrize(
    ("lifetime", "requested", "delay"), [(3600, True, 30), (60, True, 15), (3600, False, 0), (60, False, 0)]
)
def test_mutant_29_only_a_requested_token_delays_the_next_background_refresh(
    lifetime: float, requested: bool, delay: float
) -> None:
    """An adopted one may be due already."""
    assert serving(lifetime=lifetime, requested=requested).not_before == BOOT + delay


def test_jitter_is_drawn_once_when_the_token_is_served() -> None:
    early, late = TokenCache(), TokenCache()
    for cache, jitter in ((early, 1.0), (late, 0.0)):
        serve(cache, state(), jitter=jitter)
    assert early.deadlines.due_wall < late.deadlines.due_wall
    assert early.deadlines.ending_wall == late.deadlines.ending_wall


def test_a_state_without_a_usable_token_is_not_served() -> None:
    for unusable in (state(problem="It is mac."), TokenState(number=2, signed_out=True)):
        cache = serving()
        serve(cache, unusable)
        assert (cache.token, cache.served, cache.has_served) == (None, None, True)
        assert cache.deadlines is NO_TOKEN


def test_a_state_is_served_if_its_order_and_its_access_token_are() -> None:
    cache = serving()
    assert cache.serves(state())
    assert not cache.serves(state(generation=1)), "the same bytes with a later end"
    assert not cache.serves(state(name="at-2")), "another process was faster to store a token of this order"
    assert not cache.serves(state(problem="It is mac."))
    assert not TokenCache().serves(state())


@pytest.mark.parametrize(
    ("wall_check", "after", "until"),
    [
        (0.0, 0, BOOT),  # look at the wall clock each time
        (1.0, 0, BOOT + 1),
        (1.0, 3299.4, BOOT + 3300),
        (1.0, 3300, LONG_AGO),
        (1.0, 9999, LONG_AGO),
    ],
)
def test_mutant_13_a_token_counts_as_fresh_without_a_look_until_it_is_due_at_the_latest(
    wall_check: float, after: float, until: float
) -> None:
    """The wall clock is read once in a while. The boot clock alone decides in between."""
    cache = TokenCache(wall_check=wall_check)
    serve(cache, state())
    now = later(after)
    cache.look(now.wall, now.boot)
    assert cache.fresh_until == pytest.approx(until)


def test_f34_a_step_of_the_wall_clock_ends_freshness_at_the_next_look() -> None:
    """A jump past the token's end is noticed, although the boot clock stands still."""
    cache = serving()
    assert cache.look(NOW.wall + 3400, BOOT) is Freshness.DUE
    assert cache.fresh_until == LONG_AGO


def test_holding_a_token_starts_no_refresh_until_it_is_ending() -> None:
    cache = serving()
    failed(cache, OutcomeUnknown("x"), pause=2, after=3300)
    cache.hold(later(3310))
    assert cache.token == token()
    assert cache.not_before == BOOT + 3540
    assert cache.remembered(BOOT + 3310) is None


def test_the_same_token_is_served_for_about_a_second_after_a_401_that_another_would_get_too() -> None:
    cache = serving()
    failed(cache)
    cache.serve_same(BOOT + 5, 0.5)
    assert cache.same_until == BOOT + 5.75
    assert cache.token == token()
    assert cache.remembered(BOOT + 5) is None


def test_forgetting_serves_nothing_and_remembers_the_state() -> None:
    cache = serving()
    failed(cache)
    cache.forget()
    assert (cache.token, cache.served, cache.fresh_until) == (None, None, LONG_AGO)
    assert cache.deadlines.freshness(NOW.wall, BOOT) is Freshness.EXPIRED
    assert cache.remembered(BOOT) is None
    assert cache.state == state()
    assert cache.has_served


@pytest.mark.parametrize(("jitter", "look"), [(0.0, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("pause", [0, 0.2, 30, 3600])
def test_f65_a_failure_is_remembered_for_about_a_second_and_its_pause_for_as_long_as_it_is(
    pause: float, jitter: float, look: float
) -> None:
    """Then the store is looked at again: another process may have a token."""
    cache = TokenCache()
    failed(cache, pause=pause, jitter=jitter)
    assert isinstance(cache.remembered(BOOT + look - 0.001), NotSent)
    assert cache.remembered(BOOT + look) is None
    assert isinstance(cache.repeated(BOOT + look), NotSent), "if there is no token, this is still true"
    assert cache.next_attempt == cache.not_before == BOOT + max(pause, look)


def test_f22_each_caller_gets_a_copy_that_says_what_is_left_of_the_pause() -> None:
    """A remembered failure is raised as a copy whose retry_after counts down."""
    cache, original = TokenCache(), RateLimited("x", retry_after=10)
    failed(cache, original, pause=10)
    first, second = cache.remembered(BOOT + 0.25), cache.repeated(BOOT + 9)
    assert isinstance(first, RateLimited)
    assert isinstance(second, RateLimited)
    assert len({id(error) for error in (first, second, original)}) == 3
    assert (first.retry_after, second.retry_after, original.retry_after) == (9.75, 1, 10)
    late = cache.repeated(BOOT + 11)
    assert isinstance(late, RateLimited)
    assert late.retry_after == 0


def test_an_error_without_retry_after_is_remembered_too() -> None:
    cache = TokenCache()
    failed(cache, ClientRejected("x", code="invalid_client"), pause=60)
    again = cache.remembered(BOOT + 0.9)
    assert isinstance(again, ClientRejected)
    assert again.code == "invalid_client"
    assert not hasattr(again, "retry_after")


def test_without_a_failure_there_is_none_to_repeat() -> None:
    assert TokenCache().repeated(BOOT) is None
    assert serving().repeated(BOOT) is None


def test_a_new_token_ends_a_failure_and_a_local_pause() -> None:
    cache = TokenCache(local=LocalFailure(failures(pause=60)))
    failed(cache, pause=60)
    serve(cache, state())
    assert (cache.error, cache.local) == (None, None)
    assert cache.remembered(BOOT) is None


def test_f26_a_store_that_fails_leaves_a_failure_in_place_that_is_still_true() -> None:
    """Otherwise an outage of the store would hide a rejection, or end a pause that the server asked for."""
    cache, limited = TokenCache(), RateLimited("x", retry_after=60)
    failed(cache, limited, pause=60)
    failed(cache, StoreUnavailable("The disk is full."), after=5)
    assert cache.error is limited
    assert cache.next_attempt == BOOT + 60
    assert isinstance(cache.remembered(BOOT + 5.5), RateLimited)
    failed(cache, StoreUnavailable("The disk is full."), after=60)
    assert isinstance(cache.error, StoreUnavailable), "its pause is over"
    assert isinstance(cache.repeated(BOOT + 60), StoreUnavailable)


def test_a_failure_is_new_unless_the_one_before_it_was_the_same() -> None:
    """A warning is logged once, not each second."""
    cache = TokenCache()
    assert failed(cache, NotSent("No connection."))
    assert not failed(cache, NotSent("No connection.", retry_after=3), after=1)
    assert failed(cache, NotSent("No such host."), after=2)
    assert failed(cache, TokenUnavailable("No such host."), after=3)
    assert failed(cache, StoreUnavailable("The disk is full."), after=3.5)
    assert not failed(cache, StoreUnavailable("The disk is full."), after=4)
    serve(cache, state())
    assert failed(cache, StoreUnavailable("The disk is full."), after=5)
    assert cache.counters.failures == 7


@pytest.mark.parametrize(
    ("life", "after", "left", "soon"),
    [
        (None, 0, None, False),
        (90 * DAY, 0, 90 * DAY, False),
        (90 * DAY, 86.9 * DAY, 3.1 * DAY, False),  # three days
        (90 * DAY, 87.1 * DAY, 2.9 * DAY, True),
        (10 * DAY, 8.9 * DAY, 1.1 * DAY, False),  # a tenth of its life
        (10 * DAY, 9.1 * DAY, 0.9 * DAY, True),
        (10 * DAY, 11 * DAY, -1 * DAY, True),
    ],
)
def test_a_sign_in_ends_soon_in_its_last_three_days_or_its_last_tenth(
    life: float | None, after: float, left: float | None, soon: bool
) -> None:
    cache = TokenCache()
    cache.learn(state(token=replace(token(), refresh_lifetime=life), sign_in_life=life), "v1", BOOT)
    assert cache.sign_in_ends(BOOT + after) == (None if left is None else pytest.approx(left))
    assert (cache.ends_soon(BOOT + after) is not None) is soon
    if soon:
        assert cache.ends_soon(BOOT + after) == cache.sign_in_ends(BOOT + after)


def test_without_a_token_no_sign_in_ends() -> None:
    cache = TokenCache()
    assert (cache.sign_in_ends(BOOT), cache.ends_soon(BOOT)) == (None, None)
    cache.learn(TokenState(number=2, signed_out=True), "v1", BOOT)
    assert (cache.sign_in_ends(BOOT), cache.ends_soon(BOOT)) == (None, None)


def shown(cache: TokenCache, *, after: float = 0, step: float = 0) -> Snapshot:
    return cache.snapshot("key-1", NOW.wall + after + step, BOOT + after, refreshing=True, unsaved=False)


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
        sign_in_ends=None,
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
    assert shown(serving(lifetime=None)).seconds_left is None
    assert shown(serving(ENDING)).freshness is Freshness.ENDING


def test_a_snapshot_shows_the_remembered_failure_and_counts_all_failures() -> None:
    cache = TokenCache()
    failed(cache, pause=10)
    failed(cache, RateLimited("at-1 rt-1"), pause=10)
    now = shown(cache, after=4)
    assert (now.last_error, now.retry_after, now.failures) == ("RateLimited", 6, 2)
    assert "at-1" not in repr(now)
    late = shown(cache, after=10)
    assert (late.last_error, late.retry_after, late.failures) == (None, None, 2)


def test_a_snapshot_shows_that_a_sign_in_is_required_for_as_long_as_it_is() -> None:
    """Without a time: waiting does not help."""
    cache = TokenCache()
    failed(cache, GrantRejected("x"))
    late = shown(cache, after=1000)
    assert late.last_error == "GrantRejected"
    assert late.retry_after is None


def test_a_snapshot_has_no_field_for_a_secret() -> None:
    """It is frozen, and its only texts are a key, a fingerprint and the name of a type."""
    texts = {field.name for field in dataclasses.fields(Snapshot) if "str" in str(field.type)}
    assert texts == {"key", "token", "last_error"}
    assert Snapshot.__dataclass_params__.frozen  # type: ignore[attr-defined]
