"""The state after a token request: what a new token changes, and what it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from _states import (
    BAD,
    BY_CODE,
    CONFIGURED,
    CURRENT,
    DAY,
    EXPIRED,
    FRESH,
    IDENTITY,
    NEWLY_CONFIGURED,
    NOW,
    ORDER,
    RECONFIGURED,
    after,
    later,
    probable,
    rejection,
    sends,
    state,
    step,
    token,
    unknown,
    view,
    waits,
    whose,
)

from tokensession._refresh.next_state import counted


def test_a_refresh_raises_the_generation_and_clears_what_was_noted_of_its_credential() -> None:
    other = rejection(CONFIGURED)
    before = state(
        EXPIRED,
        generation=4,
        superseded=("old",),
        redeemed=(("code", NOW.boot),),
        failures=unknown(count=3),
        rejections=(probable(pause=-1), other),
    )
    new = after(sends(step(before, have=(1, 4))), now=later(2))
    assert new.order == (1, 5)
    assert new.obtained == NOW.boot + 2
    assert (new.failures, new.rejections, new.previous) == (None, (other,), None)
    unanswered = after(sends(step(replace(before, failures=unknown(NEWLY_CONFIGURED)))))
    assert unanswered.failures == unknown(NEWLY_CONFIGURED), "it is another credential's"
    assert (new.configured, new.superseded, new.start, new.redeemed) == (
        before.configured,
        before.superseded,
        before.start,
        before.redeemed,
    )


@pytest.mark.parametrize(("returned", "kept"), [(None, "read write"), ("read", "read")])
def test_a_response_without_a_scope_means_the_same_scope(returned: str | None, kept: str) -> None:
    stored = state(EXPIRED, token=replace(token(age=EXPIRED), scope="read write"))
    new = after(sends(step(stored)), scope=returned).token
    another = after(sends(step(stored, RECONFIGURED)), scope=returned).token
    assert new is not None
    assert another is not None
    assert (new.scope, another.scope) == (kept, returned), "a new lineage does not inherit that of another"


@pytest.mark.parametrize(
    ("refresh", "returned", "left"),
    [
        (CURRENT.secret, None, 10 * DAY - EXPIRED),  # it is the same refresh token, and it lives on
        (CURRENT.secret, 20 * DAY, 20 * DAY),
        ("rt-next", None, None),
        ("rt-next", 5 * DAY, 5 * DAY),
    ],
)
def test_the_life_of_a_refresh_token_goes_on_as_long_as_it_is_the_same(
    refresh: str, returned: float | None, left: float | None
) -> None:
    known = replace(token(age=EXPIRED), refresh_lifetime=10 * DAY)
    new = after(sends(step(state(EXPIRED, token=known))), refresh=refresh, refresh_lifetime=returned)
    assert new.token is not None
    assert new.token.refresh_lifetime == left


@pytest.mark.parametrize(
    ("life", "returned", "then"),
    [
        (None, None, None),
        (None, 30 * DAY, 30 * DAY),  # stated for the first time
        (90 * DAY, 90 * DAY, 90 * DAY),  # moved on by this refresh
        (90 * DAY, 10 * DAY - EXPIRED, 90 * DAY),  # the end of before
        (90 * DAY, 10 * DAY - EXPIRED + 59, 90 * DAY),  # in the server's rounding
        (90 * DAY, 10 * DAY - EXPIRED + 61, 10 * DAY - EXPIRED + 61),
        (90 * DAY, 5 * DAY, 90 * DAY),  # it ends even earlier
    ],
)
def test_the_life_of_a_sign_in_is_what_was_stated_first_until_its_end_moves_on(
    life: float | None, returned: float | None, then: float | None
) -> None:
    """So "a tenth of its life" does not shrink with each refresh."""
    known = replace(token(age=EXPIRED), refresh_lifetime=10 * DAY if life else None)
    before = state(EXPIRED, token=known, sign_in_life=life)
    assert after(sends(step(before)), refresh_lifetime=returned).sign_in_life == then
    assert after(sends(step(before, RECONFIGURED)), refresh_lifetime=returned).sign_in_life == returned


def test_fields_of_a_later_version_outlive_a_refresh_but_not_the_token_they_describe() -> None:
    stored = state(EXPIRED, more={"later": [1], "token": {"kind": "dpop"}})
    assert after(sends(step(stored))).more == {"later": [1]}
    assert counted(stored, view(None), forced=False).more == stored.more


def test_what_starts_a_lineage_is_remembered_with_those_before_it() -> None:
    before = state(FRESH, number=4, generation=2, superseded=("first", "second"), forced=3)
    new = after(sends(step(before, RECONFIGURED)))
    assert (new.order, new.start, new.configured) == (
        (5, 0),
        NEWLY_CONFIGURED.fingerprint,
        NEWLY_CONFIGURED.fingerprint,
    )
    assert new.superseded == ("first", "second", CONFIGURED.fingerprint)
    assert new.redeemed == ((NEWLY_CONFIGURED.fingerprint, NOW.boot),)
    assert new.forced == 0
    assert after(sends(step(before, replace(RECONFIGURED, rotates=False)))).redeemed == ()


def test_the_last_sixteen_configurations_are_remembered() -> None:
    stored = state(FRESH, superseded=tuple(f"old-{number}" for number in range(16)))
    new = after(sends(step(stored, RECONFIGURED)))
    assert new.superseded == (*stored.superseded[1:], CONFIGURED.fingerprint)


def test_an_absent_identity_is_filled_in_at_the_next_write() -> None:
    provider = whose(IDENTITY)
    result = sends(step(state(EXPIRED), provider))
    assert after(result, provider=provider).identity == IDENTITY
    assert counted(result.state, view(None, provider), forced=False).identity == IDENTITY
    assert after(sends(step(state(EXPIRED, identity=IDENTITY)))).identity == IDENTITY, "and is not lost"


def test_a_request_that_would_have_been_made_without_force_is_not_noted_as_forced() -> None:
    result = sends(step(state(EXPIRED, force_at=NOW.boot - 5), have=ORDER, force=True))
    assert not result.forced
    assert after(result).force_at == NOW.boot - 5


def test_each_request_counts_whatever_becomes_of_it() -> None:
    result = sends(step(state(EXPIRED, requests=5.0, requests_at=NOW.boot)))
    assert after(result).requests == 6
    failed = counted(result.state, view(None), forced=False)
    assert (failed.requests, failed.requests_at) == (6, NOW.boot)
    assert sends(step(state(EXPIRED), RECONFIGURED)).state.requests == 0
    assert after(sends(step(state(requests=5.0, requests_at=NOW.boot), RECONFIGURED))).requests == 6


def test_a_code_is_not_kept_as_the_refresh_token_before() -> None:
    assert after(sends(step(None, BY_CODE)), problem=BAD).previous is None


@pytest.mark.parametrize(("served", "forced"), [(10.0, 1), (119.0, 1), (120.0, 0), (3550.0, 0)])
def test_an_ordinary_refresh_inherits_the_row_of_401s_unless_the_token_has_served(
    served: float, forced: int
) -> None:
    stored = state(FRESH, forced=2)
    result = sends(step(stored, have=ORDER, now=later(served)))
    assert after(result, now=later(served)).forced == (2 if forced else 0)
    assert not result.unauthorized


def test_f59_a_server_that_always_brings_unusable_tokens_is_asked_less_and_less() -> None:
    """The pause doubles each time, up to an hour."""
    stored, pauses, now = state(EXPIRED), [], 0.0
    for _ in range(9):
        result = sends(step(stored, now=later(now)))
        stored = after(result, problem=BAD, lifetime=0.0, refresh=f"rt-{now}", now=later(now))
        pauses.append(waits(step(stored, now=later(now))).until - NOW.boot - now)
        now += pauses[-1]
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
