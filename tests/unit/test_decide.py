"""What to do with a stored state: every branch of `decide`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession._refresh.decide import (
    Fail,
    Note,
    Redeem,
    Serve,
    Step,
    decide,
    effective_state,
    single_use,
    with_rejection,
    with_unknown_outcome,
    yields_to_sign_in,
)
from tokensession._refresh.state import Attempt, Rejection, TokenState
from tokensession.errors import GrantLost, GrantRejected, SignedOut, SignInRequired
from tokensession.policy import Policy
from tokensession.providers.protocol import Credential
from tokensession.token import Token, fingerprint

NOW = 1_750_000_000.0
CONFIGURED = Credential("refresh_token", "rt-configured")
OTHER_CONFIGURED = Credential("refresh_token", "rt-other-configured")
CODE = Credential("authorization_code", "co-configured")
ROTATED = Credential("refresh_token", "rt-rotated")


@dataclass(frozen=True)
class Kind:
    """The part of a provider that `decide` needs."""

    credential: Credential | None = CONFIGURED
    rotates: bool = True
    replay_leeway: float = 0


ROTATING, PERMANENT = Kind(), Kind(rotates=False)
LENIENT = Kind(replay_leeway=30)
BY_CODE, UNCONFIGURED = Kind(credential=CODE), Kind(credential=None)
PERMANENT_BY_CODE = Kind(credential=CODE, rotates=False)


def token(name: str = "at-1", *, age: float = 0, refresh: str | None = ROTATED.secret) -> Token:
    return Token(name, NOW - age, 3600, refresh)


VALID, DUE, SPENT = token(), token(age=3400), token(age=3600)
OURS = VALID.fingerprint  # all three are at-1


def state(
    stored_token: Token | None = None, *, configured: Credential | None = CONFIGURED, **changes: Any
) -> TokenState:
    return TokenState(configured=configured.fingerprint if configured else "", token=stored_token, **changes)


def attempt(credential: Credential = ROTATED, *, ago: float = 10, replays: int = 0) -> Attempt:
    return Attempt(credential.fingerprint, NOW - ago, replays)


def rejection(credential: Credential = ROTATED, code: str = "invalid_grant") -> Rejection:
    return Rejection(credential.fingerprint, code)


def step(
    stored: TokenState | None,
    provider: Any = ROTATING,
    *,
    have: str | None = None,
    by_401: bool = False,
    interrupted: float | None = None,
    now: float = NOW,
) -> Step:
    return decide(
        stored,
        provider=provider,
        policy=Policy(),
        have=have,
        unauthorized=by_401,
        interrupted=interrupted,
        now=now,
    )


def redeem(stored: TokenState, credential: Credential, *, replay: bool) -> Redeem:
    """The step that sends this credential. The new token descends from the stored origin."""
    return Redeem(credential, stored, stored.origin, replay)


def failure(result: Step) -> SignInRequired:
    assert isinstance(result, Fail)
    return result.error


# -- nothing is stored ----------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [ROTATING, PERMANENT, BY_CODE])
def test_with_nothing_stored_the_configured_credential_is_redeemed(provider: Kind) -> None:
    assert provider.credential is not None
    fresh = TokenState(configured=provider.credential.fingerprint)
    assert step(None, provider) == redeem(fresh, provider.credential, replay=False)


def test_with_nothing_stored_or_configured_a_sign_in_is_required() -> None:
    error = failure(step(None, UNCONFIGURED))
    assert type(error) is SignInRequired
    assert "no refresh token and no code" in str(error)


# -- adopting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored_token", [VALID, DUE], ids=["fresh", "due"])
@pytest.mark.parametrize("provider", [ROTATING, PERMANENT, LENIENT])
def test_a_usable_token_other_than_ours_is_adopted_without_a_request(
    stored_token: Token, provider: Kind
) -> None:
    stored = state(stored_token)
    assert step(stored, provider, have=None) == Serve(stored)
    assert step(stored, provider, have=fingerprint("at-0")) == Serve(stored)
    assert step(stored, provider, have=fingerprint("at-0"), by_401=True) == Serve(stored)


def test_a_usable_token_is_adopted_whatever_notes_the_record_has() -> None:
    """An interrupted holder, an unknown outcome or a rejection does not make a valid token invalid."""
    stored = state(VALID, attempt=attempt(replays=1), rejection=rejection())
    assert step(stored, interrupted=5.0) == Serve(stored)


def test_an_expired_token_is_not_adopted() -> None:
    assert step(state(SPENT)) == redeem(state(SPENT), ROTATED, replay=False)


def test_a_token_is_adopted_until_it_is_ending() -> None:
    stored_token = token(age=0)
    stored = state(stored_token)
    assert isinstance(step(stored, now=NOW + 3539.9), Serve)
    assert isinstance(step(stored, now=NOW + 3540), Redeem)


# -- redeeming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_401", [False, True])
@pytest.mark.parametrize("stored_token", [VALID, DUE, SPENT], ids=["fresh", "due", "spent"])
def test_our_own_token_is_replaced_with_the_refresh_token_stored_with_it(
    stored_token: Token, by_401: bool
) -> None:
    stored = state(stored_token)
    assert step(stored, have=OURS, by_401=by_401) == redeem(stored, ROTATED, replay=False)


def test_the_stored_refresh_token_takes_precedence_over_the_configured_one_it_descends_from() -> None:
    result = step(state(SPENT), ROTATING)
    assert isinstance(result, Redeem)
    assert result.credential == ROTATED


@pytest.mark.parametrize("none", [None, ""])
def test_without_a_stored_refresh_token_the_configured_one_is_redeemed(none: str | None) -> None:
    stored = state(token(age=3600, refresh=none))
    assert step(stored) == redeem(stored, CONFIGURED, replay=False)


def test_a_code_is_not_redeemed_again_once_there_is_a_token_from_it() -> None:
    stored = state(token(age=3600, refresh=None), configured=CODE)
    assert type(failure(step(stored, BY_CODE))) is SignInRequired
    assert type(failure(step(stored, PERMANENT_BY_CODE))) is SignInRequired


def test_without_a_configured_credential_the_stored_one_is_redeemed() -> None:
    stored = state(SPENT, configured=None)
    assert step(stored, UNCONFIGURED) == redeem(stored, ROTATED, replay=False)


# -- rejections -----------------------------------------------------------------------------------


def test_f21_a_rejected_credential_is_not_sent_again() -> None:
    """A rejected refresh token is never redeemed again."""
    error = failure(step(state(SPENT, rejection=rejection()), have=OURS))
    assert isinstance(error, GrantRejected)
    assert error.code == "invalid_grant"
    assert "before (invalid_grant)" in str(error)


def test_a_rejected_configured_credential_is_not_sent_again() -> None:
    for provider, configured in ((ROTATING, CONFIGURED), (PERMANENT, CONFIGURED), (BY_CODE, CODE)):
        stored = state(configured=configured, rejection=rejection(configured))
        assert isinstance(failure(step(stored, provider)), GrantRejected)


def test_a_rejection_without_a_code_says_no_code() -> None:
    assert "(no code)" in str(failure(step(state(SPENT, rejection=rejection(code="")))))


def test_f21_a_rejection_counts_for_that_credential_only() -> None:
    """A remembered rejection concerns one refresh token; another one is redeemed."""
    stored = state(SPENT, rejection=rejection(CONFIGURED))
    assert step(stored, have=OURS) == redeem(stored, ROTATED, replay=False)


def test_a_rejection_takes_precedence_over_an_unknown_outcome() -> None:
    stored = state(SPENT, rejection=rejection(), attempt=attempt())
    assert isinstance(failure(step(stored, interrupted=3)), GrantRejected)


# -- configured credentials -----------------------------------------------------------------------


def test_with_the_same_configured_credential_the_store_wins() -> None:
    assert effective_state(state(VALID), CONFIGURED) == state(VALID)


def test_f49_with_another_configured_credential_the_configuration_wins() -> None:
    """A configured refresh token that the record does not descend from takes precedence over the record."""
    assert effective_state(state(VALID), OTHER_CONFIGURED) == TokenState(
        configured=OTHER_CONFIGURED.fingerprint
    )
    result = step(state(VALID), Kind(credential=OTHER_CONFIGURED))
    assert result == Redeem(OTHER_CONFIGURED, state(VALID), (OTHER_CONFIGURED.fingerprint, ""), replay=False)


def test_a_new_configured_credential_is_redeemed_whatever_was_noted_of_the_old_one() -> None:
    for stored in (
        state(SPENT, rejection=rejection()),
        state(SPENT, rejection=rejection(CONFIGURED)),
        state(SPENT, attempt=attempt(replays=1)),
        state(SPENT, signed_out=True),
        state(signed_out=True),
    ):
        result = step(stored, Kind(credential=OTHER_CONFIGURED))
        assert result == Redeem(OTHER_CONFIGURED, stored, (OTHER_CONFIGURED.fingerprint, ""), replay=False)


def test_notes_of_a_credential_count_whatever_the_record_descends_from() -> None:
    """During a rolling deployment, the old and the new configuration share a record."""
    rejected = state(VALID, rejection=rejection(OTHER_CONFIGURED))
    assert isinstance(failure(step(rejected, Kind(credential=OTHER_CONFIGURED))), GrantRejected)
    lost_once = state(VALID, attempt=attempt(OTHER_CONFIGURED))
    result = step(lost_once, Kind(credential=OTHER_CONFIGURED))
    assert result == Redeem(OTHER_CONFIGURED, lost_once, (OTHER_CONFIGURED.fingerprint, ""), replay=True)
    lost_twice = state(VALID, attempt=attempt(OTHER_CONFIGURED, replays=1))
    assert isinstance(failure(step(lost_twice, Kind(credential=OTHER_CONFIGURED))), GrantLost)


def test_notes_of_another_credential_leave_the_stored_token_and_sign_out_unchanged() -> None:
    for stored in (state(VALID), state(signed_out=True)):
        result = step(stored, Kind(credential=OTHER_CONFIGURED), interrupted=7.0)
        assert result == Note(replace(stored, attempt=attempt(OTHER_CONFIGURED, ago=7.0)))


def test_without_a_configured_credential_the_stored_state_counts() -> None:
    assert effective_state(state(VALID), None) == state(VALID)
    assert effective_state(TokenState(), None) == TokenState()


# -- signed out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [ROTATING, PERMANENT])
def test_f41_after_a_sign_out_nothing_is_served_or_redeemed(provider: Kind) -> None:
    """If a sign-out is stored, nothing is served and nothing is redeemed."""
    for have in (None, OURS):
        for interrupted in (None, 1.0):
            result = step(state(signed_out=True), provider, have=have, interrupted=interrupted)
            assert isinstance(failure(result), SignedOut)


def test_a_sign_out_counts_without_a_configured_credential() -> None:
    assert isinstance(failure(step(TokenState(signed_out=True), UNCONFIGURED)), SignedOut)


# -- an interrupted holder ------------------------------------------------------------------------


def test_an_interrupted_holder_is_noted_before_a_single_use_credential_is_sent() -> None:
    result = step(state(SPENT), have=OURS, interrupted=7.0)
    assert result == Note(state(SPENT, attempt=Attempt(ROTATED.fingerprint, NOW - 7.0, 0)))


def test_an_interrupted_replay_uses_up_the_replay() -> None:
    result = step(state(SPENT, attempt=attempt(ago=60)), have=OURS, interrupted=7.0)
    assert result == Note(state(SPENT, attempt=attempt(ago=60, replays=1)))


def test_an_interrupted_first_sign_in_by_code_is_noted_too() -> None:
    for provider in (BY_CODE, PERMANENT_BY_CODE):
        result = step(None, provider, interrupted=7.0)
        assert result == Note(
            TokenState(configured=CODE.fingerprint, attempt=Attempt(CODE.fingerprint, NOW - 7.0))
        )


def test_an_interrupted_holder_does_not_matter_if_refresh_tokens_do_not_rotate() -> None:
    stored = state(SPENT)
    assert step(stored, PERMANENT, have=OURS, interrupted=7.0) == redeem(stored, ROTATED, replay=False)


def test_codes_and_rotating_refresh_tokens_are_single_use() -> None:
    assert single_use(CONFIGURED, ROTATING)  # type: ignore[arg-type]
    assert not single_use(CONFIGURED, PERMANENT)  # type: ignore[arg-type]
    assert single_use(CODE, PERMANENT_BY_CODE)  # type: ignore[arg-type]
    assert single_use(CODE, BY_CODE)  # type: ignore[arg-type]


# -- a lost response ------------------------------------------------------------------------------


def test_after_a_lost_response_a_usable_token_is_served() -> None:
    stored = state(DUE, attempt=attempt())
    assert step(stored, have=OURS) == Serve(stored)


@pytest.mark.parametrize("ago", [0, 0.001, 10, 86_400])
def test_without_a_leeway_a_lost_response_is_not_replayed_while_the_token_is_usable(ago: float) -> None:
    """A provider without a leeway permits no immediate replay, not even in the same instant."""
    stored = state(DUE, attempt=attempt(ago=ago))
    assert step(stored, have=OURS) == Serve(stored)


@pytest.mark.parametrize(
    ("stored_token", "by_401"), [(SPENT, False), (SPENT, True), (DUE, True), (VALID, True)]
)
def test_after_a_lost_response_an_unusable_token_causes_one_replay(stored_token: Token, by_401: bool) -> None:
    stored = state(stored_token, attempt=attempt())
    assert step(stored, have=OURS, by_401=by_401) == redeem(stored, ROTATED, replay=True)


def test_the_very_first_request_is_replayed_once_if_its_response_is_lost() -> None:
    for provider, configured in ((ROTATING, CONFIGURED), (BY_CODE, CODE), (PERMANENT_BY_CODE, CODE)):
        stored = state(configured=configured, attempt=attempt(configured))
        assert step(stored, provider) == redeem(stored, configured, replay=True)


@pytest.mark.parametrize(
    ("ago", "replays"),
    [(0, True), (29.999, True), (30.001, False), (86_400, False), (-0.001, False), (-60, False)],
)
def test_within_the_leeway_a_lost_response_is_replayed_at_once(ago: float, replays: bool) -> None:
    """A time before the request (the wall clock stepped back) is not within it."""
    stored = state(DUE, attempt=attempt(ago=ago))
    result = step(stored, LENIENT, have=OURS)
    assert result == (redeem(stored, ROTATED, replay=True) if replays else Serve(stored))


def test_after_a_lost_replay_the_token_is_served_to_its_end_and_then_a_sign_in_is_required() -> None:
    for provider in (ROTATING, LENIENT):
        stored = state(DUE, attempt=attempt(replays=1))
        assert step(stored, provider, have=OURS) == Serve(stored)
        for stored_token, by_401 in ((SPENT, False), (DUE, True)):
            stored = state(stored_token, attempt=attempt(replays=1))
            error = failure(step(stored, provider, have=OURS, by_401=by_401))
            assert isinstance(error, GrantLost)
            assert "Two token requests" in str(error)


def test_an_unknown_outcome_of_another_credential_does_not_count() -> None:
    stored = state(SPENT, attempt=attempt(CONFIGURED, replays=1))
    assert step(stored, have=OURS) == redeem(stored, ROTATED, replay=False)


def test_an_unknown_outcome_does_not_count_if_refresh_tokens_do_not_rotate() -> None:
    stored = state(SPENT, attempt=attempt(replays=1))
    assert step(stored, PERMANENT, have=OURS) == redeem(stored, ROTATED, replay=False)


def test_unknown_outcomes_are_counted_per_credential() -> None:
    first = with_unknown_outcome(state(SPENT), ROTATED, NOW)
    assert first.attempt == Attempt(ROTATED.fingerprint, NOW, 0)
    second = with_unknown_outcome(first, ROTATED, NOW + 60)
    assert second.attempt == Attempt(ROTATED.fingerprint, NOW, 1), "the leeway counts from the first"
    assert with_unknown_outcome(second, CONFIGURED, NOW + 90).attempt == Attempt(
        CONFIGURED.fingerprint, NOW + 90, 0
    )
    assert replace(second, attempt=None) == state(SPENT)


def test_a_rejection_is_noted_and_ends_the_unknown_outcome_of_that_credential_only() -> None:
    stored = state(DUE, attempt=attempt())
    assert with_rejection(stored, ROTATED, "invalid_grant") == state(DUE, rejection=rejection())
    assert with_rejection(stored, CONFIGURED, "gone") == state(
        DUE, attempt=attempt(), rejection=rejection(CONFIGURED, "gone")
    )
    assert with_rejection(state(signed_out=True), CONFIGURED, "gone").signed_out


# -- whatever the record says ---------------------------------------------------------------------

credentials = st.sampled_from([CONFIGURED, OTHER_CONFIGURED, CODE, ROTATED])
records = st.none() | st.builds(
    state,
    st.sampled_from([None, VALID, DUE, SPENT, token("at-2"), token(age=3600, refresh=None)]),
    configured=st.sampled_from([CONFIGURED, OTHER_CONFIGURED, CODE, None]),
    attempt=st.none() | st.builds(attempt, credentials, ago=st.floats(-100, 100), replays=st.integers(0, 2)),
    rejection=st.none() | st.builds(rejection, credentials),
    signed_out=st.booleans(),
)
providers = st.sampled_from([ROTATING, PERMANENT, LENIENT, BY_CODE, PERMANENT_BY_CODE, UNCONFIGURED])


@settings(deadline=None, max_examples=400)
@given(records, providers, st.none() | st.just(OURS), st.booleans(), st.none() | st.floats(0, 1e5))
def test_no_step_sends_a_rejected_or_twice_lost_credential_or_serves_a_missing_token(
    stored: TokenState | None, provider: Kind, have: str | None, by_401: bool, interrupted: float | None
) -> None:
    result = step(stored, provider, have=have, by_401=by_401, interrupted=interrupted)
    counts = effective_state(stored or TokenState(), provider.credential)
    if isinstance(result, Serve):
        assert result.state.token is not None
        assert not result.state.signed_out
        assert not (by_401 and result.state.token.fingerprint == have), (
            "the token that got a 401 is not served"
        )
    if isinstance(result, Redeem):
        name = result.credential.fingerprint
        assert not counts.signed_out
        assert counts.rejection is None or counts.rejection.credential != name
        if single_use(result.credential, provider):  # type: ignore[arg-type]
            assert interrupted is None, "an interruption is noted first"
            known = counts.attempt is not None and counts.attempt.credential == name
            assert result.replay is known
            assert not known or counts.attempt is None or counts.attempt.replays == 0
    if isinstance(result, Note):
        assert result.state.attempt is not None
        after = step(result.state, provider, have=have, by_401=by_401, interrupted=None)
        assert not isinstance(after, Note), "a note is made once"


@settings(deadline=None, max_examples=100)
@given(providers)
def test_f17_a_credential_whose_responses_are_all_lost_is_sent_at_most_twice(provider: Kind) -> None:
    """Whatever steps follow one another, a credential whose responses are lost is sent at most twice."""
    stored, sent = None, 0
    for turn in range(5):
        result = step(stored, provider, now=NOW + 1000 * turn)
        if not isinstance(result, Redeem) or not single_use(result.credential, provider):  # type: ignore[arg-type]
            break
        sent += 1
        stored = with_unknown_outcome(result.stored, result.credential, NOW + 1000 * turn)
    assert sent <= 2


@pytest.mark.parametrize("late", [False, True])
def test_a_sign_in_replaces_what_it_saw_and_later_refreshes_of_it(late: bool) -> None:
    """However late it is stored."""
    before = TokenState(configured="s", sign_in="first", token=VALID)
    assert yields_to_sign_in(replace(before, token=DUE), before=before, late=late)


@pytest.mark.parametrize(
    "other", [TokenState(configured="s", sign_in="second"), TokenState(configured="t", sign_in="first")]
)
def test_a_sign_in_that_is_stored_late_does_not_replace_other_sign_ins(other: TokenState) -> None:
    """Of two sign-ins at the same time the last to be stored counts, unless it had to wait for the store."""
    before = TokenState(configured="s", sign_in="first", token=VALID)
    assert yields_to_sign_in(other, before=before, late=False)
    assert not yields_to_sign_in(other, before=before, late=True)
    assert yields_to_sign_in(other, before=before, late=True, earlier={"second"}) == (
        other.sign_in == "second"
    )


@pytest.mark.parametrize("late", [False, True])
def test_a_sign_in_never_replaces_a_sign_out(late: bool) -> None:
    """The sign-out came later, or the sign-in would have seen it."""
    before = TokenState(configured="s", token=VALID)
    assert not yields_to_sign_in(replace(before, signed_out=True), before=before, late=late)


def test_a_refreshed_token_descends_from_the_same_sign_in() -> None:
    """With a new configured credential there is no sign-in yet."""
    stored = replace(state(SPENT), sign_in="first")
    result = step(stored)
    assert isinstance(result, Redeem)
    assert result.origin == stored.origin
    assert effective_state(stored, OTHER_CONFIGURED).origin == (OTHER_CONFIGURED.fingerprint, "")
