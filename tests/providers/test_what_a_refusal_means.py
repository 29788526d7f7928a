"""Who has to act after a refusal: wait, sign in again, or fix the configuration.

And what a 2xx brings although something is wrong with it: it has spent the refresh token, so nothing that it
brings may be lost.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
from _known_secrets import (
    BY_CODE,
    BY_REFRESH,
    DATE,
    NEW_ACCESS,
    NEW_REFRESH,
    PROVIDERS,
    assert_keeps_secrets,
    granted,
    oauth2,
    oauth2_with,
    of_strategy,
    oto,
    priava,
    read,
    token_response,
)
from _shown import shown

from tokensession import (
    ClientRejected,
    GrantRejected,
    InvalidTokenResponse,
    RateLimited,
    TokenSessionError,
    TokenUnavailable,
    _redact,
)
from tokensession.errors import UnexplainedRefusal
from tokensession.policy import MAX_LIFETIME
from tokensession.providers import (
    RFC6749_ERRORS,
    Credential,
    ErrorKind,
    Fields,
    Issued,
    OAuth2,
    Strategy,
    StrategyProvider,
    TokenResponse,
    parse_json,
)


def refusal(
    provider: StrategyProvider, answer: TokenResponse, credential: Credential = BY_REFRESH
) -> TokenSessionError:
    with pytest.raises(TokenSessionError) as caught:
        read(provider, answer, credential)
    return caught.value


def assert_pauses(error: TokenSessionError, seconds: float | None) -> None:
    assert type(error) is RateLimited
    assert error.retry_after == seconds


JUDGED = {
    "invalid_grant": GrantRejected,
    "bad_refresh_token": GrantRejected,
    "access_denied": ClientRejected,
    "invalid_client": ClientRejected,
    "unauthorized_client": ClientRejected,
    "invalid_request": ClientRejected,
    "server_error": TokenUnavailable,
    "teapot": UnexplainedRefusal,
    "": UnexplainedRefusal,
    None: UnexplainedRefusal,
}
"""What an error code in a 400 without a pause means. None is a body without one."""
READABLE = {
    "30": 30,
    " 30 ": 30,
    "1.5": 1.5,
    "0": 0,
    "Sun, 15 Jun 2025 15:08:10 GMT": 90,
    DATE: 0,
    "Sun, 15 Jun 2025 14:00:00 GMT": 0,
}
GARBAGE = ("", "soon", "-5", "-0.1", "nan", "inf", "1h", "30, 60", "Sun, 99 Jun 2025 15:08:10 GMT", "1" * 41)


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "90"}, {"retry-after": "90"}, [("RETRY-AFTER", "90")], [["Retry-After", "90"]]],
)
def test_headers_are_found_however_a_transport_writes_them(headers: Any) -> None:
    assert_pauses(refusal(oauth2(), TokenResponse(429, headers, b"{}")), 90)


def body_of(code: str | None) -> Any:
    return b"" if code is None else {"error": code, "error_description": "no"}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((200, code) for code in JUDGED if code),
        *((status, code) for status in (400, 401, 403, 404, 409, 429, 500, 501, 503, 521) for code in JUDGED),
    ],
)
def test_a_refusal_with_retry_after_is_a_rate_limit_whatever_its_error_code(
    status: int, code: str | None, provider: str
) -> None:
    """The credential is kept. A code is not thrown away either (K05)."""
    for value, seconds in READABLE.items():
        for credential in (BY_REFRESH, BY_CODE):
            answer = token_response(body_of(code), status, retry_after=value)
            assert_pauses(refusal(PROVIDERS[provider](), answer, credential), seconds)


@pytest.mark.parametrize("garbage", [None, *GARBAGE])
def test_without_a_readable_pause_a_429_or_503_keeps_the_credential_and_a_code_judges_any_other(
    garbage: str | None,
) -> None:
    """A negative number of seconds is not a pause. A 503 without one is a failure like any other (K05)."""
    headers = {} if garbage is None else {"retry_after": garbage}
    for code, judged in JUDGED.items():
        for status, want in ((400, judged), (429, RateLimited), (503, TokenUnavailable)):
            error = refusal(oauth2(), token_response(body_of(code), status, **headers))
            assert type(error) is want
            assert getattr(error, "retry_after", None) is None


@pytest.mark.parametrize(
    ("provider", "headers", "fields", "seconds"),
    [
        *(
            (oauth2(), (), {name: value}, seconds)
            for name in ("retry-after", "retry_after")
            for value, seconds in ((30, 30), ("soon", None), (-1, None))
        ),
        (priava(), (), {"retry_after": 30}, None),  # which its strategy does not declare
        *(
            (oauth2(), headers, {"retry-after": "soon", "retry_after": "40"}, seconds)
            for headers, seconds in ((("soon", "20", "30"), 20), (("-1",), 40), ((), 40))
        ),
        (oauth2_with(fields={"retry_after": ("errors.0.wait",)}), (), {"errors": [{"wait": 7}]}, 7),
    ],
)
def test_the_first_readable_pause_of_the_headers_and_then_of_the_declared_fields_counts(
    provider: StrategyProvider, headers: tuple[str, ...], fields: dict[str, Any], seconds: float | None
) -> None:
    """A field's path reaches into lists, as those of error codes do (K05, K19)."""
    answer = token_response({"error": "invalid_grant"} | fields, 400)
    error = refusal(provider, replace(answer, headers=tuple(("retry-after", value) for value in headers)))
    if seconds is None:
        assert isinstance(error, GrantRejected)
    else:
        assert_pauses(error, seconds)


@pytest.mark.parametrize(("value", "seconds"), [(None, 60), ("5", 60), ("90", 90), ("-5", 60), ("soon", 60)])
@pytest.mark.parametrize("status", [200, 400, 429, 503])
def test_a_code_for_a_rate_limit_waits_at_least_a_minute(
    status: int, value: str | None, seconds: float
) -> None:
    """Oto's OTO1105 and OTO1143, and `slow_down` (K05)."""
    headers = {} if value is None else {"retry_after": value}
    for provider, body in (
        (oto(), {"success": False, "otoErrorCode": "OTO1105"}),
        (oto(), {"success": False, "otoErrorCode": "OTO1143"}),
        (oauth2(), {"error": "slow_down"}),
    ):
        assert_pauses(refusal(provider, token_response(body, status, **headers)), seconds)


CERTAIN = ("bad_refresh_token", "invalid_refresh_token", "invalid_grant")
PROBABLE = ("invalid_token", "interaction_required", "login_required", "consent_required", "invalid_code")
"""Names that may mean something else: callers are told to sign in, and one process keeps trying (rule 12)."""
SEEN = (
    (400, "invalid_grant", {"error_description": "Token has been expired or revoked."}),
    (400, "invalid_grant", {"error_description": "AADSTS700082: expired", "error_codes": [700082]}),
    (400, "invalid_grant", {"error_uri": "https://id.example.com/help"}),
    (400, "invalid_grant", {"error_description": "Session not active"}),
    (401, "invalid_grant", {"error_description": "Bad refresh token"}),
    (403, "invalid_grant", {"error_description": "Unknown or invalid refresh token."}),
    (200, "bad_refresh_token", {"error_description": "The refresh token is incorrect."}),
    (200, "invalid_refresh_token", {"ok": False}),
    (401, "invalid_token", {"error_description": "Invalid refresh token (expired): [redacted]"}),
    (400, "interaction_required", {"suberror": "basic_action"}),
)
"""How real servers answer a dead refresh token."""
ANY_STATUS = [(status, code, {}) for status in (200, 400, 401, 403, 500) for code in (*CERTAIN, *PROBABLE)]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("status", "code", "beside"), [*SEEN, *ANY_STATUS])
def test_an_answer_to_a_dead_credential_asks_for_a_sign_in_after_one_request(
    status: int, code: str, beside: dict[str, Any], provider: str
) -> None:
    """It is certain if its name leaves no doubt, and else tried again from time to time (rule 12, K19)."""
    for credential in (BY_REFRESH, BY_CODE):
        error = refusal(PROVIDERS[provider](), token_response({"error": code} | beside, status), credential)
        assert isinstance(error, GrantRejected)
        assert (error.code, error.certain) == (code, code in CERTAIN)
        assert ("not sent again" if error.certain else "tried again from time to time") in str(error)
        assert pickle.loads(pickle.dumps(error)).certain is error.certain


def test_a_provider_may_declare_which_of_its_codes_are_probably_a_rejection() -> None:
    """As Atlassian's `unauthorized_client` (rule 12)."""
    errors = {**RFC6749_ERRORS, "unauthorized_client": ErrorKind.PROBABLY_REJECTED}
    provider = oauth2_with(errors=errors, hints={"unauthorized_client": "Install the app again."})
    error = refusal(provider, token_response({"error": "unauthorized_client"}, 403))
    assert isinstance(error, GrantRejected)
    assert not error.certain
    assert str(error).endswith("Install the app again.")


UNREADABLE = (
    *(b"", b" \r\n", b"<!DOCTYPE html><html><body>Bad Request</body></html>", b"Bad Request", b"\xff\xfe"),
    *(b"null", b"[]", b'"invalid_grant"', b'{"error": "invalid_gr', b'{"error": 1, "error": 2}'),
    *(b'{"error": "invalid_grant", "x": "' + b"x" * 70_000 + b'"}', b"error=invalid_grant"),
)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize("body", UNREADABLE, ids=lambda body: repr(body[:20]))
def test_a_400_or_401_without_a_readable_code_is_not_explained(
    body: bytes, status: int, provider: str
) -> None:
    """A gateway answers like this, and one server to a dead refresh token (rule 13, K19)."""
    error = refusal(PROVIDERS[provider](), token_response(body, status))
    assert type(error) is UnexplainedRefusal
    assert error.retry_after is None
    if body.strip():
        assert f"answered {status}; it begins: " in str(error) or not body[:1].isascii()
    else:
        assert f"answered {status} with an empty body" in str(error)


LISTED = Strategy(
    name="listed",
    grants={"refresh_token": ("grant_type", "refresh_token")},
    fields=Fields(codes=("errors.0.errorType", "errors.0.code"), description=("errors.0.message",)),
    errors={**RFC6749_ERRORS, "invalid": ErrorKind.REJECTED},
)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            {"errors": [{"errorType": "invalid_grant", "message": "Refresh token invalid"}]},
            "invalid_grant (Refresh token invalid)",
        ),
        ({"message": "Bad Request", "errors": [{"field": "refresh_token", "code": "invalid"}]}, "invalid"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 401])
def test_error_codes_may_be_in_a_list(status: int, document: dict[str, Any], said: str) -> None:
    """As Fitbit and Strava send them (K19)."""
    provider = of_strategy(LISTED)
    error = refusal(provider, token_response(document, status))
    assert isinstance(error, GrantRejected)
    assert error.code == said.partition(" ")[0]
    assert f"answered {status}: {said}." in str(error)
    for empty in ({"errors": []}, {"errors": {}}, {"errors": "no"}):
        assert not isinstance(refusal(provider, token_response(empty, status)), GrantRejected)


@pytest.mark.parametrize("kind", ["bot", "BOT", " Bot ", "BearerToken", "\tbearertoken", "Bearer", "", None])
def test_a_provider_may_declare_other_names_that_count_as_bearer(kind: str | None) -> None:
    """Blanks around them and their case do not matter (K07)."""
    provider = oauth2_with(bearer_types=("Bot", " bearerToken"))
    token = read(provider, token_response(granted(token_type=kind))).token
    assert token.authorization == f"Bearer {NEW_ACCESS}"


@pytest.mark.parametrize("kind", ["bot", "BearerToken", "mac", "bo t", "bots", 7, ["bearer"]])
def test_a_token_of_a_type_that_is_not_declared_is_stored_but_not_used(kind: Any) -> None:
    """(K07)."""
    issued = stored_with_a_problem(granted(token_type=kind))
    assert (issued.token.access_token, issued.token.lifetime) == (NEW_ACCESS, 3600)
    assert "not a bearer token" in str(issued.problem)
    assert "bearer_types" in str(issued.problem)


def stored_with_a_problem(document: dict[str, Any], credential: Credential = BY_REFRESH) -> Issued:
    """What is stored of this 200, and why it is not used."""
    issued = read(oauth2(), token_response(document), credential)
    assert issued.problem is not None
    assert issued.problem.granted
    assert issued.token.refresh_token == NEW_REFRESH
    assert_keeps_secrets(shown(issued.problem) + repr(issued))
    for copy in (issued.problem.again(), pickle.loads(pickle.dumps(issued.problem))):
        assert (str(copy), copy.granted) == (str(issued.problem), True)
    return issued


COMPLAINTS = (
    *(
        {"error": error}
        for error in ("deprecated_client", "temporarily_unavailable", {"code": 0}, True, ["x"])
    ),
    *({"success": False}, {"ok": False}, {"success": "False"}, {"ok": False, "error": "teapot"}),
    {"error": "server_error", "error_description": "Oops"},
)


@pytest.mark.parametrize("complaint", COMPLAINTS, ids=str)
@pytest.mark.parametrize("credential", [BY_REFRESH, BY_CODE])
@pytest.mark.parametrize("status", [200, 201])
def test_tokens_beside_a_complaint_are_stored_and_not_used(
    status: int, credential: Credential, complaint: dict[str, Any]
) -> None:
    """The next attempt is due at once, with the new refresh token (K07)."""
    issued = stored_with_a_problem(granted(**complaint), credential)
    assert (issued.token.access_token, issued.token.lifetime) == (NEW_ACCESS, 0)
    assert "with a token and an error" in str(issued.problem)
    assert str(complaint.get("error")) in str(issued.problem) or not isinstance(complaint.get("error"), str)


@pytest.mark.parametrize("wrong", [None, "", "two words", "a\r\nb", "é", 7, ["a"]])
@pytest.mark.parametrize("beside", [{}, {"error": "teapot"}, {"token_type": "mac"}], ids=str)
def test_a_new_refresh_token_beside_a_malformed_access_token_is_stored(
    beside: dict[str, Any], wrong: Any
) -> None:
    """The access token is not (rule 14)."""
    issued = stored_with_a_problem(granted(access_token=wrong, **beside))
    assert (issued.token.access_token, issued.token.lifetime) == ("", 0)


@pytest.mark.parametrize("wrong", [None, "", "two words", 7])
@pytest.mark.parametrize("repeated", [True, False])
def test_without_a_usable_token_nothing_is_stored(repeated: bool, wrong: Any) -> None:
    """A repeated refresh token is no new one."""
    sent = Credential("refresh_token", "rt-1")
    document = {"access_token": wrong} | ({"refresh_token": "rt-1"} if repeated else {})
    for beside, spent in (({}, True), ({"error": "teapot"}, wrong in ("two words", 7))):
        error = refusal(oauth2(), token_response(document | beside), sent)
        assert isinstance(error, InvalidTokenResponse)
        assert error.granted is spent


@pytest.mark.parametrize(
    "name", ["refresh_token_expires_in", "refresh_expires_in", "x_refresh_token_expires_in"]
)
@pytest.mark.parametrize(
    ("value", "seconds", "noted"),
    [
        *((8_726_400, 8_726_400, False), ("604800", 604_800, False), (" 60.5 ", 60.5, False)),
        (10**12, MAX_LIFETIME, False),
        *((endless, None, False) for endless in (0, "0", -1, None)),
        *((odd, None, True) for odd in ("30d", [], True, "")),
    ],
)
def test_the_lifetime_of_a_refresh_token_is_read_as_carefully_as_that_of_an_access_token(
    value: Any, seconds: float | None, noted: bool, name: str
) -> None:
    """0 stands for one that does not end. Something else than a number is reported, and ignored."""
    issued = read(oauth2(), token_response(granted(**{name: value})))
    assert issued.token.refresh_lifetime == seconds
    assert issued.token.lifetime == 3600
    assert [name in note for note in issued.notes] == [True] * noted


def test_a_documented_idle_lifetime_counts_if_it_is_shorter_or_nothing_else_is_known() -> None:
    provider = oauth2_with(idle_lifetime=3600)
    for value, seconds in ((None, 3600), (60, 60), (7200, 3600), (0, 3600), ("soon", 3600)):
        answer = token_response(granted(refresh_expires_in=value))
        assert read(provider, answer).token.refresh_lifetime == seconds
    kept = token_response(granted(refresh_token=None))
    assert read(provider, kept).token.refresh_lifetime == 3600
    assert read(provider, kept, BY_CODE).token.refresh_lifetime is None


def test_a_provider_may_name_the_field_for_the_lifetime_of_a_refresh_token() -> None:
    provider = oauth2_with(fields={"refresh_lifetime": ("meta.refresh.ttl",)})
    answer = token_response(granted(meta={"refresh": {"ttl": 60}}, refresh_expires_in=7))
    assert read(provider, answer).token.refresh_lifetime == 60


def counting(seen: list[int]) -> OAuth2:
    def decode(body: bytes) -> dict[str, Any]:
        seen.append(len(body))
        return parse_json(body)

    return oauth2_with(decode=decode)


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
@pytest.mark.parametrize("filler", [b"{}", b"1", b'{"a":1}', b'""'])
def test_a_refusal_of_a_megabyte_is_not_parsed(filler: bytes, status: int) -> None:
    """No server needs that much to say no, and parsing it would hold up the event loop (K33)."""
    seen: list[int] = []
    fillers = b",".join([filler] * (1_000_000 // len(filler)))
    refusal(counting(seen), token_response(b'{"error": "invalid_grant", "a": [' + fillers + b"]}", status))
    assert seen == []


def test_a_refusal_of_a_few_kilobytes_and_any_success_are_parsed() -> None:
    """(K33)."""
    seen: list[int] = []
    long = {"error": "invalid_grant", "trace": "x" * 60_000}
    assert isinstance(refusal(counting(seen), token_response(long, 400)), GrantRejected)
    read(counting(seen), token_response(granted(id_token="x" * 200_000)))
    assert len(seen) == 2


@pytest.mark.parametrize("code", [None, "teapot", "invalid_grant", "invalid_client"])
def test_the_tokens_in_a_refusal_are_searched_for_in_a_bounded_text(
    code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a hostile server puts in its refusal, and however long it is (K33)."""
    work: list[int] = []
    search = _redact.re.finditer

    def counted(pattern: str, text: str, flags: int = 0) -> object:
        work.append(len(pattern) + len(text))
        return search(pattern, text, flags)

    monkeypatch.setattr(_redact.re, "finditer", counted)
    hostile = {"access_token": "£\\" * 5000, "refresh_token": "é\\" * 5000, "x": "£\\" * 5000}
    named = {} if code is None else {"error": code, "error_description": "\\£" * 5000}
    body = json.dumps(hostile | named, ensure_ascii=False).encode()
    text = str(refusal(oauth2(), token_response(body, 400)))
    assert "£\\£\\£" not in text
    assert sum(work) <= 250_000


@pytest.mark.parametrize("filler", ["£\\", "ab cd ", "x y"])
def test_a_long_token_in_a_refusal_is_not_shown(filler: str) -> None:
    """However long it is: once only those up to 1,024 characters were searched for (K33)."""
    for length in (40, 1_000, 1_025, 5_000):
        token = (filler * length)[:length]
        for spelled in (token, json.dumps(token)[1:-1]):
            body = {"access_token": token, "error": "teapot", "error_description": f"no: {spelled}"}
            text = str(refusal(oauth2(), token_response(body, 400)))
            assert f"no: {token[:2]}" not in text
            assert text.startswith("oauth2: the token endpoint answered 400: teapot (")
