"""What to do about a grant: every branch of the plan as a row with its meaning."""

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
SEED = Credential("refresh_token", "rt-seed")
OTHER_SEED = Credential("refresh_token", "rt-other-seed")
CODE = Credential("authorization_code", "co-seed")
ROTATED = Credential("refresh_token", "rt-rotated")


@dataclass(frozen=True)
class Kind:
    """As much of a provider as a plan needs."""

    credential: Credential | None = SEED
    rotates: bool = True
    replay_leeway: float = 0


ROTATING, STEADY = Kind(), Kind(rotates=False)
LENIENT = Kind(replay_leeway=30)
BY_CODE, UNSEEDED = Kind(credential=CODE), Kind(credential=None)
STEADY_BY_CODE = Kind(credential=CODE, rotates=False)


def token(name: str = "at-1", *, age: float = 0, refresh: str | None = ROTATED.secret) -> Token:
    return Token(name, NOW - age, 3600, refresh)


GOOD, DUE, SPENT = token(), token(age=3400), token(age=3600)
MINE = GOOD.fingerprint  # all three are at-1


def grant(held: Token | None = None, *, configured: Credential | None = SEED, **changes: Any) -> TokenState:
    return TokenState(configured=configured.fingerprint if configured else "", token=held, **changes)


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
    """The plan to send this; what becomes of it descends from the seed that is stored."""
    return Redeem(credential, stored, stored.origin, replay)


def failure(came: Step) -> SignInRequired:
    assert isinstance(came, Fail)
    return came.error


# -- nothing is stored ----------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [ROTATING, STEADY, BY_CODE])
def test_with_nothing_stored_the_seed_is_redeemed(provider: Kind) -> None:
    assert provider.credential is not None
    fresh = TokenState(configured=provider.credential.fingerprint)
    assert step(None, provider) == redeem(fresh, provider.credential, replay=False)


def test_with_nothing_stored_and_no_seed_somebody_must_sign_in() -> None:
    error = failure(step(None, UNSEEDED))
    assert type(error) is SignInRequired
    assert "no refresh token and no code" in str(error)


# -- adopting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [GOOD, DUE], ids=["fresh", "due"])
@pytest.mark.parametrize("provider", [ROTATING, STEADY, LENIENT])
def test_a_usable_token_that_is_not_mine_is_adopted_without_a_request(held: Token, provider: Kind) -> None:
    stored = grant(held)
    assert step(stored, provider, have=None) == Serve(stored)
    assert step(stored, provider, have=fingerprint("at-0")) == Serve(stored)
    assert step(stored, provider, have=fingerprint("at-0"), by_401=True) == Serve(stored)


def test_a_usable_token_is_adopted_whatever_else_the_record_says() -> None:
    """Not even an interrupted holder, a doubt, or a refusal makes a good token bad."""
    stored = grant(GOOD, attempt=attempt(replays=1), rejection=rejection())
    assert step(stored, interrupted=5.0) == Serve(stored)


def test_an_expired_token_is_not_adopted() -> None:
    assert step(grant(SPENT)) == redeem(grant(SPENT), ROTATED, replay=False)


def test_a_token_that_is_usable_for_the_last_instant_is_adopted_and_then_not() -> None:
    held = token(age=0)
    stored = grant(held)
    assert isinstance(step(stored, now=NOW + 3539.9), Serve)
    assert isinstance(step(stored, now=NOW + 3540), Redeem)


# -- redeeming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_401", [False, True])
@pytest.mark.parametrize("held", [GOOD, DUE, SPENT], ids=["fresh", "due", "spent"])
def test_my_own_token_is_replaced_by_redeeming_what_is_stored_with_it(held: Token, by_401: bool) -> None:
    stored = grant(held)
    assert step(stored, have=MINE, by_401=by_401) == redeem(stored, ROTATED, replay=False)


def test_the_stored_refresh_token_goes_before_the_seed_it_descends_from() -> None:
    came = step(grant(SPENT), ROTATING)
    assert isinstance(came, Redeem)
    assert came.credential == ROTATED


@pytest.mark.parametrize("none", [None, ""])
def test_a_token_without_a_refresh_token_falls_back_on_a_refresh_token_in_the_seed(none: str | None) -> None:
    stored = grant(token(age=3600, refresh=none))
    assert step(stored) == redeem(stored, SEED, replay=False)


def test_a_code_is_single_use_and_is_not_redeemed_again_once_there_is_a_token_from_it() -> None:
    stored = grant(token(age=3600, refresh=None), configured=CODE)
    assert type(failure(step(stored, BY_CODE))) is SignInRequired
    assert type(failure(step(stored, STEADY_BY_CODE))) is SignInRequired


def test_an_unseeded_key_lives_on_what_a_sign_in_stored() -> None:
    stored = grant(SPENT, configured=None)
    assert step(stored, UNSEEDED) == redeem(stored, ROTATED, replay=False)


# -- refusals -------------------------------------------------------------------------------------


def test_f21_a_refused_credential_is_not_sent_again() -> None:
    """A refused refresh token is never redeemed again, whatever is asked."""
    error = failure(step(grant(SPENT, rejection=rejection()), have=MINE))
    assert isinstance(error, GrantRejected)
    assert error.code == "invalid_grant"
    assert "before (invalid_grant)" in str(error)


def test_a_refused_seed_is_not_sent_again() -> None:
    for provider, configured in ((ROTATING, SEED), (STEADY, SEED), (BY_CODE, CODE)):
        stored = grant(configured=configured, rejection=rejection(configured))
        assert isinstance(failure(step(stored, provider)), GrantRejected)


def test_a_refusal_without_a_code_still_reads_well() -> None:
    assert "(no code)" in str(failure(step(grant(SPENT, rejection=rejection(code="")))))


def test_f21_a_refusal_counts_for_that_credential_only() -> None:
    """A remembered refusal concerns one refresh token: another one is redeemed as ever."""
    stored = grant(SPENT, rejection=rejection(SEED))
    assert step(stored, have=MINE) == redeem(stored, ROTATED, replay=False)


def test_a_refusal_goes_before_a_doubt() -> None:
    stored = grant(SPENT, rejection=rejection(), attempt=attempt())
    assert isinstance(failure(step(stored, interrupted=3)), GrantRejected)


# -- seeds ----------------------------------------------------------------------------------------


def test_the_same_seed_and_the_store_wins() -> None:
    assert effective_state(grant(GOOD), SEED) == grant(GOOD)


def test_f49_another_seed_and_the_configuration_wins() -> None:
    """A configured refresh token that the record does not descend from goes before what is stored."""
    assert effective_state(grant(GOOD), OTHER_SEED) == TokenState(configured=OTHER_SEED.fingerprint)
    came = step(grant(GOOD), Kind(credential=OTHER_SEED))
    assert came == Redeem(OTHER_SEED, grant(GOOD), (OTHER_SEED.fingerprint, ""), replay=False)


def test_a_new_seed_leaves_what_was_noted_of_the_old_one_behind() -> None:
    for stored in (
        grant(SPENT, rejection=rejection()),
        grant(SPENT, rejection=rejection(SEED)),
        grant(SPENT, attempt=attempt(replays=1)),
        grant(SPENT, signed_out=True),
        grant(signed_out=True),
    ):
        came = step(stored, Kind(credential=OTHER_SEED))
        assert came == Redeem(OTHER_SEED, stored, (OTHER_SEED.fingerprint, ""), replay=False)


def test_what_was_noted_of_a_credential_counts_whatever_the_record_descends_from() -> None:
    """While a deployment rolls, the old configuration and the new one share a record."""
    refused_seed = grant(GOOD, rejection=rejection(OTHER_SEED))
    assert isinstance(failure(step(refused_seed, Kind(credential=OTHER_SEED))), GrantRejected)
    lost_once = grant(GOOD, attempt=attempt(OTHER_SEED))
    came = step(lost_once, Kind(credential=OTHER_SEED))
    assert came == Redeem(OTHER_SEED, lost_once, (OTHER_SEED.fingerprint, ""), replay=True)
    lost_twice = grant(GOOD, attempt=attempt(OTHER_SEED, replays=1))
    assert isinstance(failure(step(lost_twice, Kind(credential=OTHER_SEED))), GrantLost)


def test_notes_of_another_seed_leave_the_stored_token_and_sign_out_alone() -> None:
    for stored in (grant(GOOD), grant(signed_out=True)):
        came = step(stored, Kind(credential=OTHER_SEED), interrupted=7.0)
        assert came == Note(replace(stored, attempt=attempt(OTHER_SEED, ago=7.0)))


def test_no_seed_and_whatever_is_stored_counts() -> None:
    assert effective_state(grant(GOOD), None) == grant(GOOD)
    assert effective_state(TokenState(), None) == TokenState()


# -- signed out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [ROTATING, STEADY])
def test_f41_a_tombstone_stops_everything(provider: Kind) -> None:
    """Where a sign-out is stored nothing is served and nothing is redeemed."""
    for have in (None, MINE):
        for interrupted in (None, 1.0):
            came = step(grant(signed_out=True), provider, have=have, interrupted=interrupted)
            assert isinstance(failure(came), SignedOut)


def test_a_tombstone_counts_for_a_key_without_a_seed() -> None:
    assert isinstance(failure(step(TokenState(signed_out=True), UNSEEDED)), SignedOut)


# -- an interrupted holder ------------------------------------------------------------------------


def test_an_interrupted_holder_is_noted_before_a_single_use_credential_is_sent() -> None:
    came = step(grant(SPENT), have=MINE, interrupted=7.0)
    assert came == Note(grant(SPENT, attempt=Attempt(ROTATED.fingerprint, NOW - 7.0, 0)))


def test_an_interrupted_replay_uses_the_replay_up() -> None:
    came = step(grant(SPENT, attempt=attempt(ago=60)), have=MINE, interrupted=7.0)
    assert came == Note(grant(SPENT, attempt=attempt(ago=60, replays=1)))


def test_an_interrupted_first_sign_in_by_code_is_noted_too() -> None:
    for provider in (BY_CODE, STEADY_BY_CODE):
        came = step(None, provider, interrupted=7.0)
        assert came == Note(
            TokenState(configured=CODE.fingerprint, attempt=Attempt(CODE.fingerprint, NOW - 7.0))
        )


def test_an_interrupted_holder_does_not_matter_where_refresh_tokens_stay_good() -> None:
    stored = grant(SPENT)
    assert step(stored, STEADY, have=MINE, interrupted=7.0) == redeem(stored, ROTATED, replay=False)


def test_whose_grant_is_at_stake_decides_whether_it_is_single_use() -> None:
    assert single_use(SEED, ROTATING)  # type: ignore[arg-type]
    assert not single_use(SEED, STEADY)  # type: ignore[arg-type]
    assert single_use(CODE, STEADY_BY_CODE)  # type: ignore[arg-type]
    assert single_use(CODE, BY_CODE)  # type: ignore[arg-type]


# -- a lost reply ---------------------------------------------------------------------------------


def test_after_a_lost_reply_a_good_token_is_lived_on() -> None:
    stored = grant(DUE, attempt=attempt())
    assert step(stored, have=MINE) == Serve(stored)


@pytest.mark.parametrize("ago", [0, 0.001, 10, 86_400])
def test_without_a_leeway_a_good_token_is_lived_on_at_once(ago: float) -> None:
    """A provider that declares no leeway has permitted no immediate replay, not even in the same instant."""
    stored = grant(DUE, attempt=attempt(ago=ago))
    assert step(stored, have=MINE) == Serve(stored)


@pytest.mark.parametrize(("held", "by_401"), [(SPENT, False), (SPENT, True), (DUE, True), (GOOD, True)])
def test_after_a_lost_reply_a_token_that_is_no_good_is_replayed_for_once(held: Token, by_401: bool) -> None:
    stored = grant(held, attempt=attempt())
    assert step(stored, have=MINE, by_401=by_401) == redeem(stored, ROTATED, replay=True)


def test_the_first_request_of_all_is_replayed_once_when_its_reply_is_lost() -> None:
    for provider, configured in ((ROTATING, SEED), (BY_CODE, CODE), (STEADY_BY_CODE, CODE)):
        stored = grant(configured=configured, attempt=attempt(configured))
        assert step(stored, provider) == redeem(stored, configured, replay=True)


@pytest.mark.parametrize(
    ("ago", "replays"),
    [(0, True), (29.999, True), (30.001, False), (86_400, False), (-0.001, False), (-60, False)],
)
def test_inside_the_leeway_a_lost_reply_is_replayed_at_once(ago: float, replays: bool) -> None:
    """Before it began (the wall clock stepped back) is not inside."""
    stored = grant(DUE, attempt=attempt(ago=ago))
    came = step(stored, LENIENT, have=MINE)
    assert came == (redeem(stored, ROTATED, replay=True) if replays else Serve(stored))


def test_a_replay_that_was_lost_as_well_leaves_the_token_to_its_end_and_then_asks_for_a_sign_in() -> None:
    for provider in (ROTATING, LENIENT):
        stored = grant(DUE, attempt=attempt(replays=1))
        assert step(stored, provider, have=MINE) == Serve(stored)
        for held, by_401 in ((SPENT, False), (DUE, True)):
            stored = grant(held, attempt=attempt(replays=1))
            error = failure(step(stored, provider, have=MINE, by_401=by_401))
            assert isinstance(error, GrantLost)
            assert "Two token requests" in str(error)


def test_a_doubt_about_another_credential_does_not_count() -> None:
    stored = grant(SPENT, attempt=attempt(SEED, replays=1))
    assert step(stored, have=MINE) == redeem(stored, ROTATED, replay=False)


def test_a_doubt_does_not_count_where_refresh_tokens_stay_good() -> None:
    stored = grant(SPENT, attempt=attempt(replays=1))
    assert step(stored, STEADY, have=MINE) == redeem(stored, ROTATED, replay=False)


def test_losing_a_reply_is_counted_per_credential() -> None:
    first = with_unknown_outcome(grant(SPENT), ROTATED, NOW)
    assert first.attempt == Attempt(ROTATED.fingerprint, NOW, 0)
    second = with_unknown_outcome(first, ROTATED, NOW + 60)
    assert second.attempt == Attempt(ROTATED.fingerprint, NOW, 1), "the leeway counts from the first"
    assert with_unknown_outcome(second, SEED, NOW + 90).attempt == Attempt(SEED.fingerprint, NOW + 90, 0)
    assert replace(second, attempt=None) == grant(SPENT)


def test_a_refusal_is_written_down_and_ends_the_doubt_about_that_credential_only() -> None:
    stored = grant(DUE, attempt=attempt())
    assert with_rejection(stored, ROTATED, "invalid_grant") == grant(DUE, rejection=rejection())
    assert with_rejection(stored, SEED, "gone") == grant(
        DUE, attempt=attempt(), rejection=rejection(SEED, "gone")
    )
    assert with_rejection(grant(signed_out=True), SEED, "gone").signed_out


# -- whatever the record says ---------------------------------------------------------------------

credentials = st.sampled_from([SEED, OTHER_SEED, CODE, ROTATED])
records = st.none() | st.builds(
    grant,
    st.sampled_from([None, GOOD, DUE, SPENT, token("at-2"), token(age=3600, refresh=None)]),
    configured=st.sampled_from([SEED, OTHER_SEED, CODE, None]),
    attempt=st.none() | st.builds(attempt, credentials, ago=st.floats(-100, 100), replays=st.integers(0, 2)),
    rejection=st.none() | st.builds(rejection, credentials),
    signed_out=st.booleans(),
)
providers = st.sampled_from([ROTATING, STEADY, LENIENT, BY_CODE, STEADY_BY_CODE, UNSEEDED])


@settings(deadline=None, max_examples=400)
@given(records, providers, st.none() | st.just(MINE), st.booleans(), st.none() | st.floats(0, 1e5))
def test_no_plan_sends_a_refused_or_twice_lost_credential_or_serves_what_is_no_token(
    stored: TokenState | None, provider: Kind, have: str | None, by_401: bool, interrupted: float | None
) -> None:
    came = step(stored, provider, have=have, by_401=by_401, interrupted=interrupted)
    counts = effective_state(stored or TokenState(), provider.credential)
    if isinstance(came, Serve):
        assert came.state.token is not None
        assert not came.state.signed_out
        assert not (by_401 and came.state.token.fingerprint == have), "what the API refused is not served"
    if isinstance(came, Redeem):
        name = came.credential.fingerprint
        assert not counts.signed_out
        assert counts.rejection is None or counts.rejection.credential != name
        if single_use(came.credential, provider):  # type: ignore[arg-type]
            assert interrupted is None, "what is interrupted is noted first"
            known = counts.attempt is not None and counts.attempt.credential == name
            assert came.replay is known
            assert not known or counts.attempt is None or counts.attempt.replays == 0
    if isinstance(came, Note):
        assert came.state.attempt is not None
        after = step(came.state, provider, have=have, by_401=by_401, interrupted=None)
        assert not isinstance(after, Note), "a note is made once"


@settings(deadline=None, max_examples=100)
@given(providers)
def test_f17_a_key_whose_replies_are_all_lost_is_asked_about_at_most_twice(provider: Kind) -> None:
    """However the plans follow one another, a credential whose replies are lost is sent twice at most."""
    stored, sent = None, 0
    for turn in range(5):
        came = step(stored, provider, now=NOW + 1000 * turn)
        if not isinstance(came, Redeem) or not single_use(came.credential, provider):  # type: ignore[arg-type]
            break
        sent += 1
        stored = with_unknown_outcome(came.stored, came.credential, NOW + 1000 * turn)
    assert sent <= 2


@pytest.mark.parametrize("late", [False, True])
def test_a_sign_in_replaces_what_it_saw_and_what_a_refresh_has_made_of_it(late: bool) -> None:
    """Whenever it is stored."""
    before = TokenState(configured="s", sign_in="first", token=GOOD)
    assert yields_to_sign_in(replace(before, token=DUE), before=before, late=late)


@pytest.mark.parametrize(
    "other", [TokenState(configured="s", sign_in="second"), TokenState(configured="t", sign_in="first")]
)
def test_a_sign_in_that_is_stored_late_leaves_other_sign_ins_alone(other: TokenState) -> None:
    """Of two at the same time the last to be stored counts; of one that waited, the other is the later."""
    before = TokenState(configured="s", sign_in="first", token=GOOD)
    assert yields_to_sign_in(other, before=before, late=False)
    assert not yields_to_sign_in(other, before=before, late=True)
    assert yields_to_sign_in(other, before=before, late=True, earlier={"second"}) == (
        other.sign_in == "second"
    )


@pytest.mark.parametrize("late", [False, True])
def test_a_sign_in_never_replaces_a_sign_out(late: bool) -> None:
    """It was asked for later, or the sign-in would have seen it."""
    before = TokenState(configured="s", token=GOOD)
    assert not yields_to_sign_in(replace(before, signed_out=True), before=before, late=late)


def test_a_refresh_goes_on_with_the_sign_in_that_it_comes_from() -> None:
    """And a new seed is a new beginning."""
    stored = replace(grant(SPENT), sign_in="first")
    came = step(stored)
    assert isinstance(came, Redeem)
    assert came.origin == stored.origin
    assert effective_state(stored, OTHER_SEED).origin == (OTHER_SEED.fingerprint, "")
