"""Who has to act after a refusal: wait, sign in again, or fix the configuration. What counts as bearer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from _known_secrets import (
    BY_CODE,
    BY_REFRESH,
    NEW_ACCESS,
    PROVIDERS,
    SENT_AT,
    granted,
    oauth2,
    oto,
    priava,
    read,
    token_response,
)

from tokensession import (
    ClientRejected,
    GrantRejected,
    InvalidTokenResponse,
    RateLimited,
    TokenSessionError,
    TokenUnavailable,
    _redact,
)
from tokensession.providers import (
    RFC6749_ERRORS,
    Credential,
    ErrorKind,
    Fields,
    Strategy,
    StrategyProvider,
    TokenResponse,
    parse_json,
)

CODES = (
    *("invalid_grant", "access_denied", "invalid_client", "unauthorized_client", "server_error"),
    *("bad_refresh_token", "invalid_request", "teapot", "", None),
)
IN_90_S, NOW, LONG_AGO = (f"Sun, 15 Jun 2025 {time} GMT" for time in ("15:08:10", "15:06:40", "14:00:00"))
READABLE = (
    ("30", 30.0),
    (" 30 ", 30.0),
    ("1.5", 1.5),
    ("0", 0.0),
    (IN_90_S, 90.0),
    (NOW, 0.0),
    (LONG_AGO, 0.0),
)
GARBAGE = ("", "soon", "-5", "-0.1", "nan", "inf", "1h", "30, 60", "Sun, 99 Jun 2025 15:08:10 GMT", "1" * 41)


def body_of(code: str | None) -> Any:
    return b"" if code is None else {"error": code, "error_description": "no"}


def refusal(
    provider: StrategyProvider, answer: TokenResponse, credential: Credential = BY_REFRESH
) -> TokenSessionError:
    with pytest.raises(TokenSessionError) as caught:
        read(provider, answer, credential)
    return caught.value


# -- a pause, whatever the body says ---------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500, 503])
def test_a_refusal_with_retry_after_is_a_rate_limit_whatever_its_error_code(
    status: int, code: str | None, provider: str
) -> None:
    """The credential is kept. A code is not thrown away either (K05)."""
    for value, seconds in READABLE:
        for credential in (BY_REFRESH, BY_CODE):
            answer = token_response(body_of(code), status, retry_after=value)
            error = refusal(PROVIDERS[provider](), answer, credential)
            assert type(error) is RateLimited
            assert error.retry_after == seconds


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("status", [429, 503])
def test_a_429_or_503_is_a_rate_limit_even_without_a_readable_pause(status: int, code: str | None) -> None:
    """(K05)."""
    for headers in ({}, *({"retry_after": garbage} for garbage in GARBAGE)):
        error = refusal(oauth2(), token_response(body_of(code), status, **headers))
        assert type(error) is RateLimited
        assert error.retry_after is None


@pytest.mark.parametrize("garbage", [None, *GARBAGE])
def test_a_refusal_without_a_readable_pause_is_judged_by_its_error_code(garbage: str | None) -> None:
    """A negative number of seconds is not a pause (K05)."""
    headers = {} if garbage is None else {"retry_after": garbage}
    for code, want in (
        ("invalid_grant", GrantRejected),
        ("access_denied", ClientRejected),
        ("invalid_client", ClientRejected),
        ("server_error", TokenUnavailable),
        ("teapot", InvalidTokenResponse),
    ):
        assert type(refusal(oauth2(), token_response(body_of(code), 400, **headers))) is want


@pytest.mark.parametrize("field", ["retry-after", "retry_after"])
def test_the_pause_may_be_in_a_field_of_the_body_that_the_strategy_declares(field: str) -> None:
    """(K05)."""
    limit = {"error": "invalid_grant", field: 30}
    error = refusal(oauth2(), token_response(limit, 400))
    assert isinstance(error, RateLimited)
    assert error.retry_after == 30
    assert isinstance(refusal(oauth2(), token_response(limit | {field: "soon"}, 400)), GrantRejected)
    assert isinstance(refusal(oauth2(), token_response(limit | {field: -1}, 400)), GrantRejected)
    undeclared = refusal(priava(), token_response({"error": "invalid_grant", "retry_after": 30}, 400))
    assert isinstance(undeclared, GrantRejected)


def test_the_first_readable_pause_counts() -> None:
    """Of several headers, then of the declared fields (K05)."""
    body = {"error": "invalid_grant", "retry-after": "soon", "retry_after": "40"}
    for headers, seconds in ((("soon", "20", "30"), 20), (("-1",), 40), ((), 40)):
        answer = replace(
            token_response(body, 400), headers=tuple(("retry-after", value) for value in headers)
        )
        error = refusal(oauth2(), answer)
        assert isinstance(error, RateLimited)
        assert error.retry_after == seconds


def test_the_pause_may_be_in_a_list() -> None:
    """Its path reaches into lists, as those of error codes do (K05, K19)."""
    provider = oauth2()
    fields = replace(provider.strategy.fields, retry_after=("errors.0.wait",))
    provider.strategy = replace(provider.strategy, fields=fields)
    error = refusal(provider, token_response({"error": "invalid_grant", "errors": [{"wait": 7}]}, 401))
    assert isinstance(error, RateLimited)
    assert error.retry_after == 7


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
        error = refusal(provider, token_response(body, status, **headers))
        assert isinstance(error, RateLimited)
        assert error.retry_after == seconds


# -- the kinds of refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
def test_access_denied_is_the_configuration_s_fault_and_keeps_the_credential(
    status: int, provider: str
) -> None:
    """It is an error of the authorization endpoint (RFC 6749, 4.1.2.1), not of this one (rule 11)."""
    error = refusal(PROVIDERS[provider](), token_response({"error": "access_denied"}, status))
    assert isinstance(error, ClientRejected)
    assert error.code == "access_denied"
    assert RFC6749_ERRORS["access_denied"] is ErrorKind.CLIENT


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("code", ["bad_refresh_token", "invalid_refresh_token", "invalid_grant"])
@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
def test_names_that_leave_no_doubt_are_a_rejection(status: int, code: str, provider: str) -> None:
    """(K19)."""
    error = refusal(PROVIDERS[provider](), token_response({"error": code}, status))
    assert isinstance(error, GrantRejected)
    assert error.code == code


LISTED = Strategy(
    name="listed",
    grants={"refresh_token": ("grant_type", "refresh_token")},
    fields=Fields(codes=("errors.0.errorType", "errors.0.code"), description=("errors.0.message",)),
    errors={**RFC6749_ERRORS, "invalid": ErrorKind.REJECTED},
)


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"errors": [{"errorType": "invalid_grant", "message": "Refresh token invalid"}]}, "invalid_grant"),
        ({"message": "Bad Request", "errors": [{"field": "refresh_token", "code": "invalid"}]}, "invalid"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 401])
def test_error_codes_may_be_in_a_list(status: int, document: dict[str, Any], code: str) -> None:
    """As Fitbit and Strava send them (K19)."""
    provider = StrategyProvider(
        LISTED,
        identity="client-7",
        base_url="https://api.example.com",
        token_url="https://api.example.com/token",
        values={},
        credential=BY_REFRESH,
    )
    error = refusal(provider, token_response(document, status))
    assert isinstance(error, GrantRejected)
    assert error.code == code
    assert ("Refresh token invalid" in str(error)) == ("message" in document["errors"][0])
    for empty in ({"errors": []}, {"errors": {}}, {"errors": "no"}):
        assert not isinstance(refusal(provider, token_response(empty, status)), GrantRejected)


# -- what counts as bearer -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bot", "BOT", " Bot ", "BearerToken", "\tbearertoken", "Bearer", "", None])
def test_a_provider_may_declare_other_names_that_count_as_bearer(kind: str | None) -> None:
    """Blanks around them and their case do not matter (K07)."""
    provider = oauth2()
    provider.strategy = replace(provider.strategy, bearer_types=("Bot", " bearerToken"))
    token = provider.read(token_response(granted(token_type=kind)), BY_REFRESH, sent_at=SENT_AT).token
    assert token.authorization == f"Bearer {NEW_ACCESS}"


@pytest.mark.parametrize("kind", ["bot", "BearerToken", "mac", "bo t", "bots", 7, ["bearer"]])
def test_a_name_that_is_not_declared_does_not_count_as_bearer(kind: Any) -> None:
    """(K07)."""
    assert tuple(oauth2().strategy.bearer_types) == ("bearer",)
    error = refusal(oauth2(), token_response(granted(token_type=kind)))
    assert isinstance(error, InvalidTokenResponse)
    assert error.granted


# -- how much of a refusal is read -----------------------------------------------------------------


def counting(provider: StrategyProvider, seen: list[int]) -> StrategyProvider:
    def decode(body: bytes) -> dict[str, Any]:
        seen.append(len(body))
        return parse_json(body)

    provider.strategy = replace(provider.strategy, decode=decode)
    return provider


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
def test_a_refusal_of_a_megabyte_is_not_parsed(status: int) -> None:
    """No server needs that much to say no, and parsing it would hold up the event loop (K33)."""
    for filler in (b"{}", b"1", b'{"a":1}', b'""'):
        seen: list[int] = []
        body = b'{"error": "invalid_grant", "a": [' + (filler + b",") * (1_000_000 // (len(filler) + 1))
        body += filler + b"]}"
        refusal(counting(oauth2(), seen), token_response(body, status))
        assert seen == []


def test_a_refusal_of_a_few_kilobytes_and_any_success_are_parsed() -> None:
    """(K33)."""
    seen: list[int] = []
    long = {"error": "invalid_grant", "trace": "x" * 60_000}
    assert isinstance(refusal(counting(oauth2(), seen), token_response(long, 400)), GrantRejected)
    read(counting(oauth2(), seen), token_response(granted(id_token="x" * 200_000)))
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


# -- a page of something in between ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "may_have_granted"),
    [
        (b"<!DOCTYPE html><html><body>Sign in to the network</body></html>", False),
        (b"\xef\xbb\xbf \r\n<html>", False),
        ("<html><body>".encode("utf-16"), False),
        (b"<?xml version='1.0'?><OAuth><access_token>a</access_token></OAuth>", True),
        (b"access_token=a&token_type=bearer", True),
        (b"OK", True),
        (b"html", True),
        (b'{"access_token": "a", "access_token": "a"}', True),
    ],
)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_unreadable_success_may_have_granted_a_token_unless_it_is_a_page(
    provider: str, body: bytes, may_have_granted: bool
) -> None:
    """A captive portal has spent nothing."""
    error = refusal(PROVIDERS[provider](), token_response(body))
    assert isinstance(error, InvalidTokenResponse)
    assert error.granted is may_have_granted
