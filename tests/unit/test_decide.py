"""What to do about a key: every branch of `decide`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from _states import (
    BAD,
    BY_CODE,
    CODE,
    CONFIGURED,
    CURRENT,
    DAY,
    DUE,
    ENDING,
    EXPIRED,
    FRESH,
    IDENTITY,
    KINDS,
    LENIENT,
    LIFETIME,
    NEWLY_CONFIGURED,
    NOW,
    ORDER,
    PERMANENT,
    PERMANENT_BY_CODE,
    RECONFIGURED,
    ROTATING,
    SIGNED_OUT,
    UNCONFIGURED,
    Kind,
    after,
    failure,
    failures,
    found,
    later,
    probable,
    rejection,
    request_of,
    restored,
    sends,
    state,
    step,
    token,
    told,
    unknown,
    view,
    waits,
    whose,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession._refresh.decide import (
    Fail,
    Hold,
    Read,
    Redeem,
    Restore,
    Serve,
    View,
    Wait,
    decide,
    resolved,
)
from tokensession._refresh.outcomes import LocalFailure, Sent
from tokensession._refresh.state import Failures, Rejection, TokenState
from tokensession.errors import (
    ConfigurationError,
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    OutcomeUnknown,
    RateLimited,
    SignedOut,
    SignInRequired,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession.providers.protocol import Credential

OURS = token().fingerprint
AGES = {"fresh": FRESH, "due": DUE, "ending": ENDING, "expired": EXPIRED}
every_age = pytest.mark.parametrize("age", AGES.values(), ids=AGES)
unusable = pytest.mark.parametrize("age", [ENDING, EXPIRED], ids=["ending", "expired"])


@pytest.mark.parametrize(
    ("provider", "configured"),
    [(ROTATING, CONFIGURED), (PERMANENT, CONFIGURED), (BY_CODE, CODE), (PERMANENT_BY_CODE, CODE)],
)
def test_with_nothing_stored_the_configured_credential_starts_the_first_lineage(
    provider: Kind, configured: Credential
) -> None:
    """A code is always spent, a refresh token if it rotates."""
    single = provider is not PERMANENT
    sent = Sent(configured.fingerprint, request_of(configured), single, 0.0)
    assert step(None, provider) == Redeem(configured, TokenState(), sent, starts=1)


def test_with_nothing_stored_or_configured_a_sign_in_is_required() -> None:
    error = failure(step(None, UNCONFIGURED))
    assert type(error) is SignInRequired
    assert "none is configured, and none is stored" in str(error)


@pytest.mark.parametrize("age", [FRESH, DUE], ids=["fresh", "due"])
@pytest.mark.parametrize("provider", [ROTATING, PERMANENT, LENIENT])
@pytest.mark.parametrize("have", [None, (0, 9), (1, 1)])
def test_a_usable_token_of_a_higher_order_is_served_without_a_request(
    age: float, provider: Kind, have: tuple[int, int] | None
) -> None:
    stored = state(age, generation=2)
    assert step(stored, provider, have=have) == Serve(stored)
    assert step(stored, provider, have=have, unauthorized="another token's") == Serve(stored)


@pytest.mark.parametrize(
    "notes",
    [
        {"failures": unknown(count=9, pause=300)},
        {"failures": failures(requested=True, pause=3600)},
        {"rejections": (rejection(),)},
        {"rejections": (probable(),)},
        {"requests": 1e6, "requests_at": NOW.boot},
    ],
    ids=["unknown", "rate limited", "rejected", "probably rejected", "at the limit"],
)
def test_f65_no_note_hides_a_usable_token(notes: dict[str, Any]) -> None:
    """Whatever is noted about a refresh token, the access token beside it is served until it is ending."""
    stored = state(**notes)
    local = failures(pause=1000)
    assert step(stored, local=local, claimed=True, interrupted=5.0) == Serve(stored)


def test_f32_after_a_401_only_a_token_with_other_bytes_is_served() -> None:
    """A 401 is about the bytes that were sent: a newer token is served, the same one is replaced."""
    same, other = state(FRESH, generation=1), state(FRESH, name="at-2", generation=1)
    assert step(other, have=ORDER, unauthorized=OURS) == Serve(other)
    assert sends(step(same, have=ORDER, unauthorized=OURS)).unauthorized
    assert sends(step(same, unauthorized=OURS)).unauthorized


@pytest.mark.parametrize("unauthorized", [None, OURS])
@pytest.mark.parametrize("age", [DUE, ENDING, EXPIRED])
@pytest.mark.parametrize("have", [ORDER, (1, 1)], ids=["ours", "memory says more"])
def test_a_token_that_is_not_newer_is_replaced_with_the_refresh_token_stored_with_it(
    age: float, unauthorized: str | None, have: tuple[int, int]
) -> None:
    stored = state(age)
    usable_for = 140.0 if age == DUE and not unauthorized else 0.0
    sent = Sent(CURRENT.fingerprint, request_of(CURRENT), True, usable_for)
    expected = Redeem(CURRENT, stored, sent, unauthorized=unauthorized is not None)
    assert step(stored, have=have, unauthorized=unauthorized) == expected


@pytest.mark.parametrize("none", [None, ""])
def test_f50_without_a_stored_refresh_token_the_configured_one_is_sent_again(none: str | None) -> None:
    """If no response had a refresh token, the configured one still counts."""
    stored = state(EXPIRED, refresh=none, redeemed=((CONFIGURED.fingerprint, 0.0),))
    for provider in (ROTATING, PERMANENT):
        assert sends(step(stored, provider)).credential == CONFIGURED
        assert sends(step(stored, provider)).starts is None


@pytest.mark.parametrize("claimed", [False, True])
def test_f50_a_refresh_token_that_the_server_does_not_replace_is_sent_again(claimed: bool) -> None:
    """A sign-in has sent it, the response had no other: it is not a code that got lost."""
    started = after(sends(step(None)), refresh=CONFIGURED.secret)
    assert started.has_redeemed(CONFIGURED.fingerprint)
    result = sends(step(started, have=started.order, now=later(EXPIRED), claimed=claimed))
    assert (result.credential, result.starts) == (CONFIGURED, None)


@pytest.mark.parametrize("provider", [BY_CODE, PERMANENT_BY_CODE])
def test_a_code_is_not_sent_again_once_there_is_a_token_from_it(provider: Kind) -> None:
    error = failure(step(state(EXPIRED, refresh=None, configured=CODE.fingerprint), provider))
    assert type(error) is SignInRequired
    assert "gave no refresh token" in str(error)


@pytest.mark.parametrize(
    ("stored", "memory", "restores"),
    [
        ((1, 0), (1, 0), False),
        ((1, 1), (1, 0), False),
        ((2, 0), (1, 9), False),
        ((1, 0), (1, 1), True),
        ((1, 9), (2, 0), True),
        ((0, 0), (0, 1), True),
    ],
)
@every_age
def test_f51_a_lower_state_in_the_store_is_replaced_by_the_one_in_memory(
    stored: tuple[int, int], memory: tuple[int, int], restores: bool, age: float
) -> None:
    """Sign-ins count before refreshes. On a tie the store wins."""
    there = state(age, name="at-there", number=stored[0], generation=stored[1])
    ours = state(age, number=memory[0], generation=memory[1])
    result = step(there, memory=ours)
    assert isinstance(result, Restore) is restores
    if restores:
        assert (restored(result).order, restored(result).token) == (memory, ours.token)
    elif age in (FRESH, DUE):
        assert result == Serve(there)
    assert resolved(ours, there) == (ours if restores else None), "and so does a commit"


def test_f51_after_the_store_went_back_the_outcome_of_our_refresh_token_is_unknown() -> None:
    """It may have gone back from a state that our refresh token was spent for, at some time."""
    memory = state(FRESH, generation=1)
    result = restored(step(state(FRESH), memory=memory, have=memory.order))
    assert result == replace(memory, failures=result.failures)
    known = found(result)
    assert known.credential == CURRENT.fingerprint
    assert known.unknown > 1, "so it is not repeated early: no one knows when it was spent"
    assert "store went back" in known.reason
    # It is left alone until its token is ending, and sent then.
    for age in (FRESH, DUE):
        assert step(result, memory=result, have=memory.order, now=later(age)) == Hold(result)
    assert sends(step(result, memory=result, have=memory.order, now=later(ENDING))).credential == CURRENT


def test_f51_what_was_sent_is_remembered_although_the_state_that_says_so_is_written_over() -> None:
    """A code that the older record knows, and the configurations before it."""
    there = state(FRESH, redeemed=(("a code", NOW.boot),), superseded=("old",))
    ours = state(FRESH, generation=1, superseded=("older",))
    for result in (restored(step(there, memory=ours)), resolved(ours, there)):
        assert result is not None
        assert result.has_redeemed("a code")
        assert set(result.superseded) == {"old", "older"}
    assert resolved(ours, None) == ours


def test_f51_each_time_the_store_goes_back_counts() -> None:
    """So a store that does it again and again does not cause a request each time."""
    once = restored(step(state(FRESH), memory=state(FRESH, generation=1)))
    twice = restored(step(state(FRESH), memory=once))
    assert found(twice).unknown > found(once).unknown
    assert step(twice, memory=twice, have=twice.order, now=later(DUE)) == Hold(twice)


@pytest.mark.parametrize(
    ("stored", "memory", "provider"),
    [
        (state(FRESH), state(FRESH, generation=1), PERMANENT),
        (state(FRESH), state(FRESH, generation=1, refresh=None), ROTATING),
        (state(FRESH, generation=7), SIGNED_OUT, ROTATING),
        (None, state(EXPIRED), PERMANENT),
        (None, SIGNED_OUT, ROTATING),
        (None, TokenState(failures=failures(CONFIGURED)), ROTATING),
    ],
    ids=["not rotating", "no refresh token", "signed out", "lost", "lost sign-out", "lost notes"],
)
def test_f41_f51_f52_what_cannot_be_spent_is_written_back_at_once_and_as_it_is(
    stored: TokenState | None, memory: TokenState, provider: Kind
) -> None:
    """No refresh token that works once, or a sign-out: there is nothing whose outcome could be unknown."""
    assert step(stored, provider, memory=memory) == Restore(memory)


@pytest.mark.parametrize("provider", [ROTATING, PERMANENT, BY_CODE, UNCONFIGURED])
@pytest.mark.parametrize("age", [FRESH, DUE, ENDING], ids=["fresh", "due", "ending"])
def test_f52_a_missing_record_is_written_back_before_anything_is_sent(age: float, provider: Kind) -> None:
    """Another process may have refreshed before. Where refresh tokens rotate, ours may be spent then."""
    memory = state(age, generation=3, obtained=NOW.boot - age)
    result = restored(step(None, provider, memory=memory, have=memory.order, claimed=True))
    assert result == replace(memory, failures=result.failures)
    if provider.rotates:
        assert found(result).credential == CURRENT.fingerprint
        assert found(result).unknown
        assert "lost the record" in found(result).reason
    else:
        assert result.failures is None


@pytest.mark.parametrize("provider", [ROTATING, BY_CODE, UNCONFIGURED])
@every_age
def test_f52_a_memory_of_more_than_a_week_ago_is_not_written_back(age: float, provider: Kind) -> None:
    """The record may have been deleted for good. The configured credential is spent, so it is not sent."""
    memory = state(age, lifetime=None)
    assert isinstance(step(None, provider, memory=memory, seen_at=NOW.boot - 7 * DAY), Restore)
    error = failure(step(None, provider, memory=memory, seen_at=NOW.boot - 7 * DAY - 1))
    assert type(error) is SignInRequired
    assert "more than a week" in str(error)


def test_f52_a_credential_that_works_again_and_again_then_starts_above_what_was_known() -> None:
    """Otherwise the memory would be written back over the new token."""
    memory = state(EXPIRED, number=3, generation=8)
    result = sends(
        step(None, PERMANENT, memory=memory, seen_at=NOW.boot - 8 * DAY, has_served=True, have=memory.order)
    )
    assert result.credential == CONFIGURED
    assert after(result, provider=PERMANENT).order > memory.order


OTHERS = {
    "provider": "oto",
    "environment": "us",
    "client_id": "client-2",
    "origin": "https://id.example.org",
    "scope": "read",
}


@pytest.mark.parametrize("field", OTHERS)
@every_age
def test_f62_the_state_of_another_identity_is_an_error_before_anything_is_sent_or_written(
    field: str, age: float
) -> None:
    """Provider, environment, client, server and scope have to match; the error names which does not."""
    other = replace(IDENTITY, **{field: OTHERS[field]})
    for memory in (None, state(age, generation=5)):  # a lower state is not written over either
        for unauthorized in (None, OURS):
            error = failure(
                step(state(age, identity=IDENTITY), whose(other), memory=memory, unauthorized=unauthorized)
            )
            assert isinstance(error, ConfigurationError)
            assert f"another {field.replace('_', ' ')}" in str(error)
            assert repr(getattr(IDENTITY, field)) in str(error)
            assert repr(OTHERS[field]) in str(error)
            assert "Nothing was sent" in str(error)
            assert ("sign in once for each" in error.todo) is (field == "scope")


def test_f62_a_newly_configured_credential_does_not_replace_the_state_of_another_identity() -> None:
    """Only an explicit sign-in does."""
    other = whose(replace(IDENTITY, client_id="client-2"), credential=NEWLY_CONFIGURED)
    assert isinstance(failure(step(state(identity=IDENTITY), other)), ConfigurationError)


@pytest.mark.parametrize("field", OTHERS)
def test_f75_an_unknown_identity_matches_every_other(field: str) -> None:
    """A record of an older version has no identity, and a provider of your own need not have one."""
    partial = replace(IDENTITY, **{field: ""})
    for stored, provider in (
        (None, whose(IDENTITY)),
        (IDENTITY, whose(None)),
        (None, whose(None)),
        (partial, whose(IDENTITY)),
        (IDENTITY, whose(partial)),
        (IDENTITY, whose(IDENTITY)),
    ):
        assert isinstance(step(state(identity=stored), provider), Serve)


@pytest.mark.parametrize(
    "stored",
    [
        state(FRESH),
        state(EXPIRED, rejections=(rejection(),)),
        state(EXPIRED, failures=unknown(count=3, pause=300)),
        state(FRESH, number=5, generation=3),
        replace(SIGNED_OUT, number=7),
    ],
    ids=["fresh", "rejected", "unknown", "much refreshed", "signed out"],
)
def test_f49_a_newly_configured_credential_starts_a_lineage_above_all_known_numbers(
    stored: TokenState,
) -> None:
    """A configured refresh token that the record does not descend from takes precedence over the record."""
    result = sends(step(stored, RECONFIGURED))
    assert (result.credential, result.starts) == (NEWLY_CONFIGURED, stored.number + 1)
    assert result.state == stored, "notes of a failure go into the record as it is"


@pytest.mark.parametrize(
    "known",
    [
        {"configured": NEWLY_CONFIGURED.fingerprint},
        {"superseded": (NEWLY_CONFIGURED.fingerprint,)},
        {"redeemed": ((NEWLY_CONFIGURED.fingerprint, NOW.boot),)},
    ],
    ids=["current", "superseded", "brought to a sign-in"],
)
@every_age
def test_f63_a_configured_credential_that_is_known_starts_nothing(known: dict[str, Any], age: float) -> None:
    """In a rolling deployment, the processes with the older configuration never go back to it."""
    stored = state(age, **known)
    result = step(stored, RECONFIGURED)
    if age in (FRESH, DUE):
        assert result == Serve(stored)
    else:
        assert (sends(result).credential, sends(result).starts) == (CURRENT, None)


def test_k15_a_process_that_has_had_a_token_is_past_its_configured_credential() -> None:
    """A lineage that does not know it is a newer sign-in."""
    there = state(FRESH, number=2, configured="", start="another's")
    assert step(there, RECONFIGURED, has_served=True, memory=state(FRESH), have=ORDER) == Serve(there)


@pytest.mark.parametrize("answer", [rejection(), probable()], ids=["rejected", "probably rejected"])
def test_f63_a_configuration_that_was_rolled_back_is_used_again_if_the_current_one_is_rejected(
    answer: Rejection,
) -> None:
    """The secret that was rolled out is dead, and the one before it is configured again."""
    names = {"configured": NEWLY_CONFIGURED.fingerprint, "superseded": (CONFIGURED.fingerprint,)}
    stored = state(EXPIRED, number=2, rejections=(answer,), **names)
    result = sends(step(stored))
    assert (result.credential, result.starts) == (CONFIGURED, 3)
    usable = state(DUE, number=2, rejections=(answer,), **names)
    assert isinstance(failure(step(usable, have=usable.order)), GrantRejected), "its token is used first"
    both = replace(stored, rejections=(answer, probable(CONFIGURED, pause=-1, code="invalid_code")))
    error = failure(step(both))
    assert isinstance(error, GrantRejected)
    assert error.code == answer.code, "neither works: it is not gone back and forth between them"
    assert sends(step(replace(stored, rejections=()))).credential == CURRENT
    by_code = replace(stored, superseded=(CODE.fingerprint,))
    assert isinstance(failure(step(by_code, BY_CODE)), GrantRejected), "a code works once"
    spent = replace(stored, redeemed=((CONFIGURED.fingerprint, NOW.boot - 5),))
    assert isinstance(failure(step(spent)), GrantRejected), "it would be a reuse"


SENT_CODE = TokenState(redeemed=((CODE.fingerprint, NOW.boot - 5),))


@pytest.mark.parametrize("provider", [BY_CODE, PERMANENT_BY_CODE])
@pytest.mark.parametrize(
    ("known", "reason"),
    [(None, "the process that sent it has ended."), (unknown(CODE, reason="It was reset."), "It was reset.")],
)
def test_f63_a_code_that_has_been_sent_is_not_sent_again(
    provider: Kind, known: Failures | None, reason: str
) -> None:
    """Its sender may still hold the claim. If no one does, it is lost, and that is noted."""
    sent = replace(SENT_CODE, failures=known)
    waiting = sends(step(sent, provider))
    assert (waiting.credential, waiting.starts) == (CODE, None), "it asks for the claim, and then"
    result = step(sent, provider, claimed=True)
    assert isinstance(result, Fail)
    assert result.note is not None
    for error in (
        result.error,
        failure(step(result.note, provider)),
        failure(step(result.note, provider, claimed=True)),
    ):
        assert isinstance(error, GrantLost), "another process is told so without the claim"
        assert told(error) == f"The code has been sent, and no token came back: {reason}"
        assert "works once" in str(error)


@pytest.mark.parametrize("claimed", [False, True])
def test_a_code_that_was_answered_with_a_code_is_sent_once_more_if_the_request_is_another(
    claimed: bool,
) -> None:
    """Another client secret, say: the server has not redeemed it. If there was no answer, it may have."""
    answered = replace(SENT_CODE, rejections=(rejection(CODE, code="invalid_client"),))
    result = sends(step(answered, BY_CODE, claimed=claimed, client="another secret"))
    assert (result.credential, result.starts) == (CODE, 1)
    lost = replace(SENT_CODE, rejections=(rejection(CODE, code="", lost=True),))
    again = step(lost, BY_CODE, claimed=claimed, client="another secret")
    assert not isinstance(again, Redeem) or again.starts is None


def test_a_code_that_was_rejected_says_so() -> None:
    stored = replace(SENT_CODE, rejections=(rejection(CODE),))
    for claimed in (False, True):
        error = failure(step(stored, BY_CODE, claimed=claimed))
        assert type(error) is GrantRejected
        assert error.code == "invalid_grant"


def test_a_code_brings_the_token_of_another_process_that_has_sent_it() -> None:
    stored = state(FRESH, configured=CODE.fingerprint, redeemed=SENT_CODE.redeemed)
    assert step(stored, BY_CODE) == Serve(stored)
    expired = state(EXPIRED, configured=CODE.fingerprint, redeemed=SENT_CODE.redeemed)
    assert sends(step(expired, BY_CODE)).credential == CURRENT


@pytest.mark.parametrize("provider", [ROTATING, PERMANENT, UNCONFIGURED])
@pytest.mark.parametrize("force", [False, True])
def test_f41_after_a_sign_out_nothing_is_served_or_sent(provider: Kind, force: bool) -> None:
    """If a sign-out is stored, nothing is served and nothing is redeemed, not even by force."""
    for changes in (
        {},
        {"have": ORDER},
        {"claimed": True, "interrupted": 1.0},
        {"unauthorized": OURS},
        {"memory": state(FRESH, generation=7)},
    ):
        assert isinstance(failure(step(SIGNED_OUT, provider, force=force, **changes)), SignedOut)


LEEWAY: dict[str, Any] = {"provider": LENIENT}
AFTER_A_401: dict[str, Any] = {"unauthorized": OURS}


@pytest.mark.parametrize(
    ("age", "known", "case", "sent"),
    [
        # While the token is FRESH, the refresh token is left alone.
        (FRESH, unknown(), {}, False),
        (FRESH, unknown(count=2), {}, False),
        # Within a declared leeway it is sent once more all the same.
        (FRESH, unknown(ago=0), LEEWAY, True),
        (FRESH, unknown(ago=29.999), LEEWAY, True),
        (FRESH, unknown(ago=30.001), LEEWAY, False),
        (FRESH, unknown(ago=DAY), LEEWAY, False),
        (FRESH, unknown(count=2, ago=5), LEEWAY, False),
        # When it is DUE, it is sent once more, within a minute: servers accept a repetition for 30 to 60 s.
        (DUE, unknown(ago=2), {}, True),
        (DUE, unknown(ago=59), {}, True),
        (DUE, unknown(ago=61), {}, False),
        (DUE, unknown(ago=DAY), {}, False),
        (DUE, unknown(count=2), {}, False),
        (DUE, unknown(count=3), {}, False),
        # From ENDING on it is sent until there is an answer.
        (ENDING, unknown(), {}, True),
        (ENDING, unknown(ago=DAY), {}, True),
        (ENDING, unknown(count=2), {}, True),
        (EXPIRED, unknown(), {}, True),
        (EXPIRED, unknown(count=2), {}, True),
        (EXPIRED, unknown(count=1000), {}, True),
        # A 401 means that the token has ended.
        (FRESH, unknown(), AFTER_A_401, True),
        (FRESH, unknown(count=2), AFTER_A_401, True),
        (DUE, unknown(count=9), AFTER_A_401, True),
        # What cannot be spent is not held.
        *((age, unknown(), {"provider": PERMANENT}, True) for age in (FRESH, DUE)),
        *((age, unknown(CONFIGURED), {}, True) for age in (FRESH, DUE)),
        *((age, failures(count=3), {}, True) for age in (FRESH, DUE)),
    ],
)
def test_f53_after_an_unknown_outcome_the_refresh_token_is_sent_again_when_its_token_needs_it(
    age: float, known: Failures, case: dict[str, Any], sent: bool
) -> None:
    """Once when the token is due, then not until it is ending, then without a limit of tries."""
    stored = state(age, failures=known)
    result = step(stored, have=ORDER, **case)
    if sent:
        assert sends(result).credential == CURRENT
    else:
        assert result == Hold(stored)


def test_the_repetition_waits_until_the_connection_is_gone() -> None:
    stored = state(DUE, failures=unknown(ago=0, pause=1.9))
    result = waits(step(stored, have=ORDER))
    assert result.until == NOW.boot + 1.9
    assert isinstance(result.error, OutcomeUnknown)
    assert sends(step(stored, have=ORDER, now=later(1.9))).credential == CURRENT


def test_the_very_first_request_is_repeated_too() -> None:
    for count in (1, 2, 30):
        stored = TokenState(failures=unknown(CONFIGURED, count))
        assert (sends(step(stored)).credential, sends(step(stored)).starts) == (CONFIGURED, 1)


def test_an_interrupted_holder_of_a_single_use_credential_counts_as_an_unknown_outcome() -> None:
    for provider, stored, credential in (
        (ROTATING, state(EXPIRED), CURRENT),
        (UNCONFIGURED, state(EXPIRED, configured=""), CURRENT),
        (ROTATING, None, CONFIGURED),
    ):
        result = sends(step(stored, provider, have=ORDER, claimed=True, interrupted=7.0))
        known = found(result.state)
        assert known.credential == credential.fingerprint
        assert (known.count, known.unknown, known.last, known.since) == (1, 1, NOW.boot - 7, NOW.boot - 7)
        assert "process ended" in known.reason
    assert isinstance(step(state(7.0), have=ORDER, claimed=True, interrupted=7.0), Hold)


def test_an_interrupted_request_from_before_the_token_was_with_another_credential() -> None:
    """A sign-in has come since."""
    assert sends(step(state(6.0), have=ORDER, claimed=True, interrupted=7.0)).state.failures is None


def test_an_interrupted_repetition_uses_up_the_repetition() -> None:
    stored = state(DUE, failures=unknown(ago=60))
    result = step(stored, have=ORDER, claimed=True, interrupted=7.0)
    assert isinstance(result, Hold)
    assert found(result.state).unknown == 2


def test_an_interrupted_holder_does_not_matter_if_nothing_can_be_spent() -> None:
    stored = state(EXPIRED)
    assert sends(step(stored, PERMANENT, have=ORDER, claimed=True, interrupted=7.0)).state == stored


@every_age
@pytest.mark.parametrize(
    ("known", "kind", "said"),
    [
        (rejection(until=NOW.boot - 1), GrantRejected, "before: It was rejected."),
        (rejection(until=NOW.boot + 900), GrantRejected, "before: It was rejected."),
        (probable(), GrantRejected, "before: It was rejected."),
        (rejection(code="", lost=True), GrantLost, "before: It was rejected."),
        (probable(lost=True), GrantLost, "before: It was rejected."),
        # That is all that a record of an older version has.
        (rejection(reason=""), GrantRejected, "before: invalid_grant."),
        (rejection(code="", reason=""), GrantRejected, "before: no code."),
    ],
    ids=["long ago", "now", "probably", "lost", "probably lost", "only its code", "not even a code"],
)
def test_f21_a_rejected_credential_is_not_sent_again_and_the_error_says_why(
    age: float, known: Rejection, kind: type[GrantRejected], said: str
) -> None:
    """A refresh token that was rejected for good is never redeemed again."""
    error = failure(step(state(age, rejections=(known,)), have=ORDER))
    assert isinstance(error, GrantRejected)
    assert (type(error), error.code, error.certain) == (kind, known.code, known.certain)
    assert said in told(error)
    assert ("not sent again" in str(error)) is known.certain


@pytest.mark.parametrize(
    ("known", "client", "sent"),
    [
        (rejection(), "client", False),
        (rejection(), "client with another secret", True),
        (probable(), "client with another secret", True),
        (rejection(request=""), "client with another secret", False),
        (rejection(CONFIGURED), "client", True),
    ],
    ids=["the same", "another secret", "probable", "of an older version", "another credential"],
)
def test_f21_a_rejection_is_bound_to_the_whole_request(known: Rejection, client: str, sent: bool) -> None:
    """If the client secret, the URL or the scope changes, one more request is made."""
    result = step(state(EXPIRED, rejections=(known,)), have=ORDER, client=client)
    assert isinstance(result, Redeem) is sent
    assert isinstance(result, Fail) is not sent


def test_a_rejection_takes_precedence_over_a_pause_and_an_unknown_outcome() -> None:
    stored = state(EXPIRED, rejections=(rejection(),), failures=unknown(pause=100))
    assert isinstance(failure(step(stored, claimed=True, interrupted=3)), GrantRejected)


@pytest.mark.parametrize(
    ("stored", "sent"),
    [
        (state(EXPIRED, rejections=(rejection(),)), True),
        (state(EXPIRED, rejections=(probable(),)), True),
        (state(EXPIRED, failures=failures(pause=300)), True),
        (state(EXPIRED, failures=unknown(pause=300)), True),
        (state(FRESH, failures=unknown(count=2)), True),
        (state(FRESH, problem="The token_type is mac."), True),
        (state(EXPIRED, failures=failures(pause=300, requested=True)), False),
        (state(EXPIRED, requests=1e6, requests_at=NOW.boot), False),
    ],
    ids=["rejected", "probably", "paused", "unknown", "held", "not usable", "Retry-After", "limit"],
)
def test_force_ignores_a_remembered_refusal_or_pause_but_not_what_the_server_asked_for(
    stored: TokenState, sent: bool
) -> None:
    assert not isinstance(step(stored, have=ORDER), Redeem)
    result = step(stored, have=ORDER, force=True, local=failures(pause=100))
    assert isinstance(result, Redeem) is sent
    if isinstance(result, Redeem):
        assert result.forced


@pytest.mark.parametrize(
    ("known", "kind"),
    [
        (failures(pause=20, reason="It answered 500."), TokenUnavailable),
        (unknown(pause=20, reason="It was reset."), OutcomeUnknown),
        (failures(pause=20, requested=True, reason="429."), RateLimited),
        (unknown(pause=20, requested=True, reason="429."), RateLimited),
        (failures(pause=20), TokenUnavailable),
    ],
)
@unusable
def test_f64_a_pause_in_the_store_holds_for_all_processes(
    known: Failures, kind: type[TokenSessionError], age: float
) -> None:
    """A process that has sent nothing itself waits too, and its error says why."""
    result = waits(step(state(age, failures=known)))
    assert (result.until, result.limit) == (NOW.boot + 20, 0)
    assert type(result.error) is kind
    assert (known.reason or "reason unknown") in told(result.error)
    assert isinstance(result.error, TokenUnavailable)
    assert result.error.retry_after == 20
    assert sends(step(state(age, failures=known), now=later(20))).credential == CURRENT


def test_a_refresh_that_no_caller_waits_for_has_a_longer_pause() -> None:
    """A caller who needs a token does not wait for it."""
    known = failures(pause=2, background_until=NOW.boot + 60)
    for stored, local in ((state(DUE, failures=known), None), (state(DUE), known)):
        assert waits(step(stored, have=ORDER, background=True, local=local)).until == NOW.boot + 60
        assert waits(step(stored, have=ORDER, local=local)).until == NOW.boot + 2
        assert sends(step(stored, have=ORDER, local=local, now=later(2))).credential == CURRENT
        late = {"background": True, "local": local, "now": later(60)}
        assert sends(step(stored, have=ORDER, **late)).credential == CURRENT


def test_secrets_are_read_only_if_something_would_be_sent_or_refused() -> None:
    """Rules 19 and 21: one that cannot be read hides no token, and no other answer."""
    refused = state(EXPIRED, rejections=(rejection(),))
    for stored in (None, state(EXPIRED), refused, state(EXPIRED, failures=failures(pause=60))):
        assert step(stored, read=False) == Read()
    assert step(state(DUE), read=False, have=ORDER) == Read()
    served = state(FRESH)
    assert step(served, read=False) == Serve(served)
    assert isinstance(failure(step(state(FRESH, signed_out=True), read=False, has_served=True)), SignedOut)
    assert isinstance(step(None, memory=state(FRESH), read=False), Restore)


def test_a_client_fault_waits_less_if_the_request_has_changed() -> None:
    """Rule 12. A changing value of a function lifts no rejection, whatever it is."""
    request = request_of(CURRENT, "client")
    known = LocalFailure(failures(pause=3600), request, "one value", NOW.boot + 10)
    stored = state(EXPIRED)
    assert waits(step(stored, local=known, volatile="one value")).until == NOW.boot + 3600
    assert waits(step(stored, local=known, volatile="another")).until == NOW.boot + 10
    assert waits(step(stored, local=known, volatile="one value", client="new")).until == NOW.boot + 10
    assert sends(step(stored, local=known, volatile="another", now=later(10))).sent.volatile == "another"
    rejected = state(EXPIRED, rejections=(rejection(),))
    for volatile in ("one value", "another"):
        known = replace(known, volatile=volatile)
        assert isinstance(
            failure(step(rejected, local=known, volatile="another", now=later(99))), GrantRejected
        )


def test_notes_that_could_not_be_stored_hold_for_this_process() -> None:
    memory = state(EXPIRED, failures=failures(pause=60))
    assert waits(step(state(EXPIRED), memory=memory)).until == NOW.boot + 60
    memory = state(EXPIRED, rejections=(rejection(),))
    assert isinstance(failure(step(state(EXPIRED), memory=memory)), GrantRejected)
    later_one = state(EXPIRED, generation=1, failures=None)
    assert sends(step(later_one, memory=memory)).credential == CURRENT, "not for another state"


@pytest.mark.parametrize("lifetime", [LIFETIME, 0.0, None])
def test_f59_a_token_that_must_not_be_used_is_stored_with_its_refresh_token_and_never_served(
    lifetime: float | None,
) -> None:
    """Its error is repeated without a request for the token's life, an hour if that is not stated."""
    stored = after(sends(step(state(EXPIRED))), problem=BAD, lifetime=lifetime)
    assert (stored.problem, stored.servable) == ("The token_type is mac.", None)
    assert stored.token is not None
    assert stored.token.refresh_token == "rt-next"
    life = 3600.0 if lifetime is None else lifetime
    if life:
        error = failure(step(stored, now=later(life - 1)))
        assert isinstance(error, InvalidTokenResponse)
        assert "mac" in str(error)
        assert "is not used" in str(error)
    assert isinstance(step(stored, now=later(max(life, 60))), Redeem)


@pytest.mark.parametrize(
    ("forced", "spacing"), [(0, 0), (1, 30), (2, 60), (3, 120), (7, 1920), (8, 3600), (99, 3600)]
)
def test_f33_a_401_on_a_token_that_a_401_has_brought_must_wait(forced: int, spacing: float) -> None:
    """Each in a row that did not help doubles the pause. Until then, the same token is served."""
    stored = state(FRESH, forced=forced, lifetime=30 * DAY)
    if spacing:
        early = {"now": later(spacing - 0.1), "have": ORDER, "unauthorized": OURS}
        assert step(stored, **early) == Serve(stored)
    assert sends(step(stored, have=ORDER, unauthorized=OURS, now=later(spacing))).unauthorized


credentials = st.sampled_from([CONFIGURED, NEWLY_CONFIGURED, CODE, CURRENT])
moments = st.floats(-2 * DAY, 2 * DAY).map(NOW.boot.__add__)
counts = st.integers(0, 50)
fingerprints = credentials.map(lambda credential: credential.fingerprint)
notes = st.builds(
    Failures, fingerprints, counts, counts, counts, st.booleans(), st.just("It failed."), *[moments] * 4
)
refusals = st.builds(
    rejection,
    credentials,
    st.sampled_from(["invalid_grant", ""]),
    request=st.sampled_from(["", *(request_of(credential) for credential in (CONFIGURED, CODE, CURRENT))]),
    certain=st.booleans(),
    lost=st.booleans(),
    until=moments,
)
tokens = st.sampled_from(
    [None, *(token(age=age) for age in AGES.values()), token("at-2"), token(age=EXPIRED, refresh=None)]
)
names = st.sampled_from([CONFIGURED.fingerprint, NEWLY_CONFIGURED.fingerprint, CODE.fingerprint])


@st.composite
def states(draw: st.DrawFn) -> TokenState:
    known = draw(tokens)
    return TokenState(
        number=draw(st.integers(0, 2)),
        generation=draw(st.integers(0, 2)),
        configured=draw(st.just("") | names),
        superseded=tuple(draw(st.lists(names, max_size=2))),
        redeemed=tuple((name, NOW.boot - 5) for name in draw(st.lists(names, max_size=2))),
        signed_out=draw(st.booleans()),
        token=known,
        obtained=NOW.boot - (NOW.wall - known.obtained_at) if known else 0.0,
        problem=draw(st.sampled_from(["", "", "", "It is mac."])),
        previous=draw(st.none() | st.just("rt-before")),
        failures=draw(st.none() | notes),
        rejections=tuple(draw(st.lists(refusals, max_size=2))),
        forced=draw(st.integers(0, 20)),
        force_at=draw(moments),
        requests=draw(st.floats(0, 1000)),
        requests_at=draw(moments),
    )


views = st.builds(
    view,
    st.none() | states(),
    st.sampled_from(KINDS),
    memory=st.none() | states(),
    have=st.sampled_from([None, ORDER, (2, 1)]),
    unauthorized=st.sampled_from([None, OURS]),
    force=st.booleans(),
    claimed=st.booleans(),
    interrupted=st.none() | st.floats(0, 1e5),
)


@settings(deadline=None, max_examples=300)
@given(views.filter(lambda asked: asked.claimed or asked.interrupted is None))
def test_no_step_sends_what_was_rejected_or_serves_what_may_not_be_served(asked: View) -> None:
    stored, memory = asked.stored, asked.memory
    match decide(asked):
        case Serve(served) | Hold(served):
            assert served.servable is not None
            assert memory is None or served.order >= memory.order
        case Restore(written):
            assert memory is not None
            assert written.order == memory.order
            assert written.token == memory.token
            assert stored is None or stored.order < written.order
        case Wait(until, error, _):
            assert until > NOW.boot
            assert isinstance(error, TokenUnavailable)
            assert error.retry_after == pytest.approx(until - NOW.boot)
        case Redeem(credential, base, sent, starts):
            assert base.order >= (memory.order if memory is not None else (0, 0))
            assert starts is None or starts > max(base.number, memory.number if memory is not None else 0)
            assert starts is not None or not base.signed_out
            assert (sent.credential, sent.request) == (credential.fingerprint, request_of(credential))
            known = base.rejection_of(sent.credential, sent.request)
            if known is not None and not asked.want.force:
                assert not known.certain
                assert known.until <= NOW.boot
            if credential == CODE and base.has_redeemed(CODE.fingerprint) and starts is None:
                assert not asked.claimed, "a code that has been sent is not sent again"
        case Fail(error, note):
            assert str(error)
            assert note is None or (asked.claimed and note.order == (stored or TokenState()).order)


@settings(deadline=None, max_examples=200)
@given(states(), st.sampled_from(KINDS))
def test_a_restored_state_is_not_restored_again(memory: TokenState, provider: Kind) -> None:
    """At most one write per look: what was written back is what is found then."""
    for stored in (None, TokenState()):
        result = step(stored, provider, memory=memory)
        if isinstance(result, Restore):
            assert not isinstance(step(result.state, provider, memory=result.state), Restore)
