"""What each outcome of a token request leads to: the table, and the notes it makes in the state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from _states import (
    CONFIGURED,
    CURRENT,
    EXPIRED,
    NOW,
    failures,
    found,
    probable,
    rejection,
    request_of,
    state,
    told,
    unknown,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tokensession._refresh.outcomes import (
    LocalFailure,
    Pause,
    Sent,
    consequence,
    explained,
    noted,
    remembered,
)
from tokensession._refresh.state import Rejection, TokenState
from tokensession.errors import (
    ClientRejected,
    ConfigurationError,
    GrantLost,
    GrantRejected,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    StoreUnavailable,
    TokenSessionError,
    TokenUnavailable,
    UnexplainedRefusal,
)
from tokensession.policy import Policy

POLICY = Policy()
SINGLE = Sent(CURRENT.fingerprint, request_of(CURRENT), single=True, usable_for=0.0)
REPEATABLE = replace(SINGLE, single=False)
UNUSABLE, USABLE = 0.0, 3000.0

SERVER_ERROR = TokenUnavailable("It answered 500.")
LOST = OutcomeUnknown("It got no answer.")
LIMITED = RateLimited("It answered 429.")
EMPTY = InvalidTokenResponse("There is no token in it.", granted=True)
PAGE = InvalidTokenResponse("It is a page.")
UNEXPLAINED = UnexplainedRefusal("It answered 400, without an error code.")
REJECTED = GrantRejected("It answered invalid_grant.", code="invalid_grant")
PROBABLY = GrantRejected("It answered invalid_token.", code="invalid_token", certain=False)
NO_CONNECTION = NotSent("No connection.")
CLIENT = ClientRejected("It answered invalid_client.", code="invalid_client")


def note(
    *happened: TokenSessionError,
    before: TokenState | None = None,
    sent: Sent = SINGLE,
    usable_for: float = UNUSABLE,
    jitter: float = 1.0,
    every: float = 0.0,
) -> TokenState:
    """The state after these errors, one `every` so many seconds, the last of them now."""
    current = state(EXPIRED) if before is None else before
    for left, error in zip(reversed(range(len(happened))), happened, strict=True):
        now = NOW.boot - left * every
        current = noted(current, error, replace(sent, usable_for=usable_for), POLICY, now, jitter)
    return current


def pause(*happened: TokenSessionError, **options: Any) -> float:
    """For how long nothing is sent after these."""
    return found(note(*happened, **options)).until - NOW.boot


def background_pause(*happened: TokenSessionError, **options: Any) -> float:
    """For how long no refresh is sent that no caller waits for. The token is usable for a while."""
    after = found(note(*happened, **{"usable_for": USABLE} | options))
    return after.background_until - NOW.boot


def rejected(after: TokenState) -> Rejection:
    (known,) = after.rejections
    return known


@pytest.mark.parametrize(
    ("error", "leads_to", "shared", "spends"),
    [
        (REJECTED, Pause.REJECTED, True, False),
        (PROBABLY, Pause.REJECTED, True, False),
        (GrantLost("x"), Pause.REJECTED, True, False),
        (LIMITED, Pause.REQUESTED, True, False),
        (LOST, Pause.UNKNOWN, True, True),
        (EMPTY, Pause.UNKNOWN, True, True),
        (PAGE, Pause.BACK_OFF, True, False),
        (UNEXPLAINED, Pause.UNEXPLAINED, True, False),
        (SERVER_ERROR, Pause.BACK_OFF, True, False),
        (NO_CONNECTION, Pause.BACK_OFF, False, False),
        (CLIENT, Pause.CLIENT, False, False),
        (ConfigurationError("x"), Pause.CLIENT, False, False),
        (StoreUnavailable("x"), Pause.BACK_OFF, False, False),
        (TokenSessionError("x"), Pause.BACK_OFF, False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_leads_to_one_pause_shared_or_not(
    error: TokenSessionError, leads_to: Pause, shared: bool, spends: bool
) -> None:
    """What may be this machine's own fault is not shared: one broken host must not silence the others.

    A credential that works again and again cannot be spent. For all else it does not matter.
    """
    line = consequence(error, SINGLE)
    assert (line.pause, line.shared, line.spends) == (leads_to, shared, spends)
    assert line.when
    unspent = replace(line, pause=Pause.BACK_OFF, spends=False) if spends else line
    assert consequence(error, REPEATABLE) == unspent


PASSING = [SERVER_ERROR, LOST, LIMITED, EMPTY, PAGE, UNEXPLAINED, NO_CONNECTION, CLIENT]


@pytest.mark.parametrize("error", PASSING)
@pytest.mark.parametrize("usable_for", [UNUSABLE, USABLE])
def test_f24_a_failure_changes_nothing_but_the_notes(error: TokenSessionError, usable_for: float) -> None:
    """No failure changes the token, the credentials, the order, or what was noted of another credential."""
    before = state(EXPIRED, failures=failures(CONFIGURED), rejections=(rejection(CONFIGURED),))
    after = note(error, before=before, usable_for=usable_for)
    assert replace(after, failures=before.failures, other_failures=()) == before
    assert after.other_failures == (before.failures,), "another credential has to wait as before"
    assert found(after).credential == CURRENT.fingerprint


def test_failures_with_one_credential_are_counted_since_the_first() -> None:
    after = found(note(LOST, SERVER_ERROR, LOST, SERVER_ERROR, every=10))
    assert (after.count, after.unknown, after.since, after.last) == (4, 2, NOW.boot - 30, NOW.boot)
    assert after.reason == "It answered 500."
    other = note(SERVER_ERROR, before=state(EXPIRED, failures=unknown(CONFIGURED, 7)))
    assert (found(other).count, found(other).unknown) == (1, 0)


def test_a_reason_is_short_enough_to_be_shown() -> None:
    assert found(note(TokenUnavailable("x" * 500))).reason == "x" * 500
    assert found(note(TokenUnavailable("x" * 501))).reason == "x" * 499 + "…"
    empty = TokenUnavailable("x")
    empty.args = ()  # an exception of your own may have none
    assert found(note(empty)).reason == "TokenUnavailable"


def test_fields_of_a_later_version_stay_in_the_notes() -> None:
    before = replace(failures(), more={"later": 1})
    assert found(note(SERVER_ERROR, before=state(EXPIRED, failures=before))).more == {"later": 1}
    known = probable(pause=-1, more={"later": 2})
    again = note(PROBABLY, before=state(EXPIRED, rejections=(known,)))
    assert rejected(again).more == {"later": 2}


@pytest.mark.parametrize(
    ("error", "waiting", "background"),
    [
        (SERVER_ERROR, 1, 30),
        (NO_CONNECTION, 1, 30),
        (PAGE, 1, 30),
        (LOST, 1.9, 1.9),  # the jitter of 1 is 0.95 of two seconds
        (EMPTY, 1.9, 1.9),
        (UNEXPLAINED, 33, 33),
        (CLIENT, 60, 60),
        (LIMITED, 1, 60),
        (RateLimited("x", retry_after=0), 1, 1),
        (RateLimited("x", retry_after=-5), 1, 1),
        (RateLimited("x", retry_after=7), 7, 7),
        (RateLimited("x", retry_after=3600), 3600, 3600),
        (RateLimited("x", retry_after=1e9), 3600, 3600),
        (TokenUnavailable("x", retry_after=0.2), 1, 1),
        (TokenUnavailable("x", retry_after=7), 7, 7),
        (TokenUnavailable("x", retry_after=1e9), 3600, 3600),
        (OutcomeUnknown("x", retry_after=0), 1.9, 1.9),
        (OutcomeUnknown("x", retry_after=9), 9, 9),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_first_failure_has_its_pause(
    error: TokenSessionError, waiting: float, background: float
) -> None:
    """While the token is usable, a caller who needs another one still waits as if it were not.

    If the server asked for the pause, it is marked as such. The next failure is judged by itself.
    """
    asked = isinstance(error, TokenUnavailable) and error.retry_after is not None
    assert found(note(error)).requested is asked
    assert not found(note(error, SERVER_ERROR)).requested
    assert pause(error) == background_pause(error, usable_for=UNUSABLE) == pytest.approx(waiting)
    assert pause(error, usable_for=USABLE) == pytest.approx(waiting)
    assert background_pause(error) == pytest.approx(background)


def test_a_429_with_a_number_is_exactly_that_and_for_other_failures_it_is_the_least() -> None:
    """A 503 with "1 s" in an outage of ten minutes does not cause a request each second."""
    assert pause(SERVER_ERROR, RateLimited("x", retry_after=7), every=1000) == 7
    assert pause(SERVER_ERROR, TokenUnavailable("x", retry_after=7), every=1000) == 30
    assert pause(SERVER_ERROR, TokenUnavailable("x", retry_after=70), every=1000) == 70


def test_jitter_spreads_a_back_off_but_not_a_requested_pause() -> None:
    assert pause(SERVER_ERROR, jitter=0.0) == 0.5
    assert pause(SERVER_ERROR, jitter=0.5) == 0.75
    assert pause(UNEXPLAINED, jitter=0.0) == 30
    assert pause(RateLimited("x", retry_after=9), jitter=0.0) == 9


def test_without_a_usable_token_the_pause_is_a_part_of_what_the_outage_has_lasted() -> None:
    """So callers wait little longer than the outage."""
    for lasting, expected in ((1, 1), (10, 1.5), (60, 9), (200, 30), (10_000, 30)):
        assert pause(SERVER_ERROR, SERVER_ERROR, every=lasting) == pytest.approx(expected)


def test_with_a_usable_token_the_pause_doubles_up_to_five_minutes() -> None:
    pauses = [background_pause(*[SERVER_ERROR] * (count + 1)) for count in range(6)]
    assert pauses == [30, 60, 120, 240, 300, 300]
    assert background_pause(SERVER_ERROR, usable_for=60) == 20


def test_f23_a_429_without_a_number_waits_longer_each_time() -> None:
    """A minute while the token is usable. Then as after any other failure."""
    assert background_pause(LIMITED, LIMITED) == 60
    assert pause(LIMITED, LIMITED, every=60) == 9


@pytest.mark.parametrize(
    ("lost", "every", "cap"),
    [(1, 0, 2), (2, 13, 2), (2, 20, 3), (5, 25, 15), (10, 1000, 30), (11, 100, 150), (11, 1000, 300)],
)
def test_f53_after_a_lost_answer_the_pause_is_2_to_30_s_and_after_ten_up_to_5_min(
    lost: int, every: float, cap: float
) -> None:
    """A part of what the outage has lasted, in a narrow range: the first request may still be on its way."""
    for jitter, part in ((0.0, 0.75), (0.5, 0.85), (1.0, 0.95)):
        assert pause(*[LOST] * lost, every=every, jitter=jitter) == pytest.approx(cap * part)
    # Only answers that were lost count.
    most = pause(*[SERVER_ERROR] * 20, *[LOST] * lost, every=every)
    assert most <= 300 * 0.95 if lost > 10 else most <= 30 * 0.95


def test_a_client_fault_is_tried_less_and_less_up_to_once_an_hour() -> None:
    pauses = [pause(*[CLIENT] * (count + 1)) for count in range(8)]
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]


errors_that_pass = st.sampled_from([SERVER_ERROR, NO_CONNECTION, PAGE, UNEXPLAINED])


@settings(deadline=None, max_examples=150)
@given(
    errors_that_pass,
    st.integers(0, 10**9),
    st.floats(0, 1e9),
    st.floats(0, 1e7),
    st.floats(0, 1, exclude_max=True),
)
def test_f64_a_shared_pause_is_short_while_callers_wait(
    error: TokenSessionError, count: int, lasting: float, usable_for: float, jitter: float
) -> None:
    """At most a minute without a usable token, and never none at all."""
    before = state(EXPIRED, failures=failures(ago=lasting, count=count))
    after = found(note(error, before=before, jitter=jitter, usable_for=usable_for))
    assert 0 < after.until - NOW.boot <= 60
    assert after.until <= after.background_until <= NOW.boot + 300


@pytest.mark.parametrize(
    ("count", "every", "counts_as_rejected"),
    [(1, 0, False), (2, 60, False), (3, 29.9, False), (3, 30, True), (4, 20, True), (9, 1, False)],
)
def test_f58_refusals_without_a_code_count_as_a_rejection_after_three_over_a_minute(
    count: int, every: float, counts_as_rejected: bool
) -> None:
    """A gateway's bad moment is shorter. It is never certain."""
    after = note(*[UNEXPLAINED] * count, every=every)
    assert bool(after.rejections) is counts_as_rejected
    if counts_as_rejected:
        assert (rejected(after).certain, rejected(after).code, rejected(after).lost) == (False, "", False)
        assert rejected(after).until == NOW.boot + 900
        assert after.failures is None


@pytest.mark.parametrize("between", [SERVER_ERROR, LIMITED, NO_CONNECTION])
def test_f58_another_answer_in_between_ends_the_row(between: TokenSessionError) -> None:
    """Three in a row, and the minute counts from the first of that row."""
    after = note(UNEXPLAINED, UNEXPLAINED, between, UNEXPLAINED, UNEXPLAINED, every=60)
    assert after.rejections == ()
    assert found(after).unexplained == 2
    again = note(UNEXPLAINED, between, *[UNEXPLAINED] * 3, every=60)
    assert not rejected(again).certain
    quick = note(*[UNEXPLAINED] * 4, between, *[UNEXPLAINED] * 3, every=10)
    assert quick.rejections == ()


def test_f21_a_rejection_is_noted_with_all_of_its_request_and_ends_the_pause() -> None:
    """Bound to credential and request. What was noted of other credentials stays."""
    other = rejection(CONFIGURED)
    after = note(SERVER_ERROR, REJECTED, before=state(EXPIRED, rejections=(other,)))
    assert after.failures is None
    kept, new = after.rejections
    assert kept == other
    assert (new.credential, new.request, new.code) == (CURRENT.fingerprint, SINGLE.request, "invalid_grant")
    assert (new.certain, new.lost, new.reason, new.tries) == (True, False, "It answered invalid_grant.", 1)
    apart = failures(CONFIGURED)
    assert note(REJECTED, before=state(EXPIRED, failures=apart)).failures == apart


def test_another_request_with_the_same_credential_has_a_rejection_of_its_own() -> None:
    """Another client secret, for example: its tries are counted apart."""
    other = replace(SINGLE, request="another secret's")
    both = note(PROBABLY, before=note(PROBABLY, before=note(PROBABLY)), sent=other)
    assert [(known.request, known.tries) for known in both.rejections] == [
        (SINGLE.request, 2),
        (other.request, 1),
    ]


def test_a_rejection_of_an_older_version_is_replaced_by_one_that_names_its_request() -> None:
    old = rejection(request="")
    assert rejected(note(REJECTED, before=state(EXPIRED, rejections=(old,)))).request == SINGLE.request


def test_the_last_eight_rejections_are_remembered() -> None:
    after = state(EXPIRED)
    for number in range(10):
        after = note(REJECTED, before=after, sent=replace(SINGLE, request=f"request {number}"))
    assert [known.request for known in after.rejections] == [f"request {number}" for number in range(2, 10)]


@pytest.mark.parametrize(
    ("errors_before", "sent", "lost"),
    [
        ([LOST], SINGLE, True),
        ([EMPTY], SINGLE, True),
        ([LOST, SERVER_ERROR], SINGLE, True),
        ([SERVER_ERROR], SINGLE, False),
        ([NO_CONNECTION], SINGLE, False),
        ([PAGE], SINGLE, False),
        ([LOST], REPEATABLE, False),
        ([], SINGLE, False),
    ],
)
@pytest.mark.parametrize("refusal", [REJECTED, PROBABLY])
def test_a_rejection_after_an_unknown_outcome_is_remembered_as_that(
    errors_before: list[TokenSessionError], sent: Sent, lost: bool, refusal: GrantRejected
) -> None:
    after = note(*errors_before, refusal, sent=sent)
    assert rejected(after).lost is lost
    assert rejected(note(refusal, before=after, sent=sent)).lost is lost, "and stays so"


def test_f53_a_rejection_after_a_lost_answer_is_grantlost_and_says_why() -> None:
    """Another process may have made that request: its reason is in the store."""
    for refusal in (REJECTED, PROBABLY):
        fresh = GrantRejected(told(refusal), code=refusal.code, certain=refusal.certain)
        error = explained(fresh, state(EXPIRED, failures=unknown(reason="It was reset.")), SINGLE)
        assert isinstance(error, GrantLost)
        assert (error.code, error.certain) == (refusal.code, refusal.certain)
        assert told(refusal) in str(error)
        assert "spent this credential: It was reset." in str(error)
        assert error.__cause__ is fresh


@pytest.mark.parametrize(
    ("before", "sent"),
    [
        (state(EXPIRED), SINGLE),
        (state(EXPIRED, failures=unknown(CONFIGURED)), SINGLE),
        (state(EXPIRED, failures=unknown()), REPEATABLE),
    ],
    ids=["nothing before", "another credential", "not single-use"],
)
def test_a_rejection_with_nothing_before_it_is_told_as_it_is(before: TokenState, sent: Sent) -> None:
    fresh = GrantRejected("It answered invalid_grant.")
    assert explained(fresh, before, sent) is fresh
    assert told(fresh) == "It answered invalid_grant."


def test_advice_of_the_provider_stays_in_the_error() -> None:
    fresh = GrantRejected("It answered invalid_code.", todo="Get a new code.")
    assert explained(fresh, state(EXPIRED, failures=unknown()), SINGLE).todo == "Get a new code."
    plain = explained(GrantRejected("x"), state(EXPIRED, failures=unknown()), SINGLE)
    assert plain.todo == GrantRejected.todo


def local(*errors: TokenSessionError, left: bool = True, sent: Sent = SINGLE) -> LocalFailure:
    """What a process remembers after requests that ended so, all at this moment."""
    known: LocalFailure | None = None
    for error in errors:
        known = remembered(known, error, sent, POLICY, NOW.boot, 0.0, left=left)
    assert known is not None
    return known


@pytest.mark.parametrize("error", [CLIENT, REJECTED, PROBABLY])
def test_what_has_changed_since_a_refusal_is_tried_later_each_time(error: TokenSessionError) -> None:
    for times, pause in enumerate((10, 20, 40, 80, 160, 300, 300), 1):
        known = local(*[error] * times)
        for request, volatile in ((SINGLE.request, "new"), ("changed", ""), ("changed", "new")):
            (waiting,) = known.about(SINGLE.credential, request, volatile)
            assert waiting.until == waiting.background_until == NOW.boot + pause
        assert known.about("another credential", "changed", "") == ()


def test_the_same_request_waits_for_the_whole_pause_of_a_client_fault() -> None:
    for times, pause in enumerate((60, 120, 240), 1):
        (known,) = local(*[CLIENT] * times).about(SINGLE.credential, SINGLE.request, "")
        assert (known.until, known.reason) == (NOW.boot + pause, "It answered invalid_client.")


def test_what_was_not_sent_may_be_sent_as_soon_as_it_has_changed() -> None:
    problem = ConfigurationError("The secret is empty.")
    (known,) = local(problem, problem, left=False).about(SINGLE.credential, "changed", "")
    assert known.until == NOW.boot


def test_a_failure_to_connect_pauses_every_request_and_makes_no_refusal_longer() -> None:
    known = local(*[NO_CONNECTION] * 9)
    assert known.about("another credential", "changed", "new") == (known.failures,)
    assert local(*[NO_CONNECTION] * 9, CLIENT) == local(CLIENT)


def test_what_was_never_sent_forgets_no_refusal() -> None:
    """A vault or a name server that fails between two attempts: the pause after the refusal goes on."""
    name, request = SINGLE.credential, SINGLE.request
    mixed = local(CLIENT, NO_CONNECTION, CLIENT, NO_CONNECTION, NO_CONNECTION, CLIENT, NO_CONNECTION)
    unsent, waiting = mixed.about(name, request, "")
    assert unsent == local(NO_CONNECTION).failures
    assert (waiting.count, waiting.until) == (3, NOW.boot + 240)
    assert mixed.about(name, "changed", "")[1].until == NOW.boot + 40
    assert mixed.refused == local(CLIENT, CLIENT, CLIENT)
    unreadable = remembered(mixed, ConfigurationError("Empty."), SINGLE, POLICY, NOW.boot, 0.0, left=False)
    assert unreadable.refused == mixed.refused
