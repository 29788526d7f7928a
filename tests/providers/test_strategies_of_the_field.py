"""Nine kinds of real token servers, each as a few declarative lines of `Strategy`.

They show that a new kind needs data and no code. Each kind exists; the vendors are not named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from _known_secrets import (
    BY_REFRESH,
    CODE,
    DATE,
    NEW_ACCESS,
    NEW_REFRESH,
    REFRESH,
    SENT_AT,
    of_strategy,
    token_response,
)

from tokensession import (
    ClientRejected,
    ConfigurationError,
    GrantRejected,
    InvalidTokenResponse,
    RateLimited,
    TokenUnavailable,
)
from tokensession.errors import UnexplainedRefusal
from tokensession.providers import (
    RFC6749_ERRORS,
    Credential,
    ErrorKind,
    Fields,
    Identity,
    Issued,
    Provider,
    Strategy,
    StrategyProvider,
    TokenRequest,
    _wire,
    expires_at,
    expires_in,
)

GRANTED = {"access_token": NEW_ACCESS}


def request_of(strategy: Strategy, **values: str) -> TokenRequest:
    return of_strategy(strategy, **values).request(Credential("refresh_token", "rt-1"))


def read(strategy: Strategy, body: Any, status: int = 200, **headers: str) -> Issued:
    provider = of_strategy(strategy)
    assert isinstance(provider, Provider)
    return provider.read(token_response(body, status, **headers), BY_REFRESH, sent_at=SENT_AT)


def accept_json(_values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return (("Accept", "application/json"),)


JSON_BASIC = Strategy(
    name="json-basic",
    grants={"refresh_token": ("grant_type", "refresh_token")},
    encode=_wire.encode_json,
    content_type="application/json",
    headers=lambda values: (
        ("Authorization", _wire.basic_auth(values["client_id"], values["client_secret"])),
    ),
    default_lifetime=900,
    rotates=True,
    replay_leeway=30,
)


def test_json_with_basic_auth_that_rotates_and_has_no_expires_in() -> None:
    request = request_of(JSON_BASIC)
    assert json.loads(request.body) == {"grant_type": "refresh_token", "refresh_token": "rt-1"}
    assert request.headers == (("Content-Type", "application/json"), ("Authorization", "Basic aWQtMTpzZS0x"))
    token = read(JSON_BASIC, GRANTED | {"refresh_token": NEW_REFRESH}).token
    assert (token.lifetime, token.refresh_token) == (900, NEW_REFRESH)
    provider = of_strategy(JSON_BASIC)
    assert (provider.rotates, provider.replay_leeway) == (True, 30)


CAMEL = Strategy(
    name="camel",
    grants={"refresh_token": ("client_id", "refresh_token")},
    rename={"client_id": "clientId", "refresh_token": "refreshToken"},
    encode=_wire.encode_json,
    content_type="application/json",
    fields=Fields(access_token="accessToken", refresh_token="refreshToken", token_type="tokenType"),
    lifetime=expires_in("expiresIn"),
)


def test_camel_case_fields_and_success_201() -> None:
    assert json.loads(request_of(CAMEL).body) == {"clientId": "id-1", "refreshToken": "rt-1"}
    body = {"accessToken": NEW_ACCESS, "refreshToken": NEW_REFRESH, "tokenType": "bearer", "expiresIn": 600}
    token = read(CAMEL, body, 201).token
    assert (token.access_token, token.refresh_token, token.lifetime) == (NEW_ACCESS, NEW_REFRESH, 600)
    assert "not a bearer token" in str(read(CAMEL, body | {"tokenType": "mac"}, 201).problem)


ABSOLUTE = Strategy(
    name="absolute",
    grants={"refresh_token": ("refresh_token",)},
    lifetime=expires_at("validUntil"),
    default_lifetime=60,
)


EPOCH = 1_767_229_200


@pytest.mark.parametrize(
    ("moment", "epoch"),
    [
        ("2025-06-15T15:16:40Z", SENT_AT + 600),
        ("2025-06-15T17:16:40+02:00", SENT_AT + 600),
        ("2025-06-15T15:16:40", SENT_AT + 600),
        ("20250615T151640Z", SENT_AT + 600),
        ("2025-06-15T15:16:40.123456789Z", SENT_AT + 600.123456),
        ("20250615 151640", SENT_AT + 600),
        (SENT_AT + 600, SENT_AT + 600),
        (int(SENT_AT), SENT_AT),
        (int(SENT_AT) * 1000, SENT_AT),
        (str(EPOCH), EPOCH),
        (f" {EPOCH}\r\n", EPOCH),
        (f"{EPOCH}.25", EPOCH + 0.25),
        (f"{EPOCH}.", EPOCH),
        (str(EPOCH * 1000), EPOCH),
        (f"{EPOCH}000.5", EPOCH + 0.0005),
        ("1000000000", 1_000_000_000),
        ("9999999999", 9_999_999_999),
        ("10000000000", 10_000_000_000),
        ("99999999999", 99_999_999_999),
        (99_999_999_999, 99_999_999_999),
        ("100000000000", 100_000_000),
        (100_000_000_000, 100_000_000),
        (1e11, 100_000_000),
        ("1712010100000", 1_712_010_100),  # Python's parser takes this for the year 1712
        ("1000000000000", 1_000_000_000),
        ("9999999999999", 9_999_999_999.999),
    ],
)
def test_an_expiry_is_a_date_or_seconds_or_milliseconds_since_the_epoch(
    moment: str | float, epoch: float
) -> None:
    """Ten to thirteen digits. From twelve on they are milliseconds, in a string as for numbers (K25)."""
    seconds, note = expires_at("at")({"at": moment}, epoch - 60)
    assert seconds == pytest.approx(60, abs=1e-5)
    assert note is None


@pytest.mark.parametrize(
    "moment",
    [
        *("2025", "20250615", "999999999", "3600", "0", "20250615.5", "20250615,5", ".", ".5"),
        *("10000000000000", "17672292000000", "1767229200000000", "1" * 50),
        *("1712010100000Z", "1712010100000+00:00", "171201011T00:00"),
        *("+1767229200", "-1767229200", "1767229200s", "1e9", "1_767_229_200", "1767229200,5"),
        *("\u0661" * 10, "\uff11" * 10, "1767229200\u00a0"),
        *("soon", "", True, [], {}, 10**399, 10**16, -(10**300), *map(float, ("nan", "inf", "-inf"))),
    ],
)
def test_nothing_else_is_a_point_in_time(moment: Any) -> None:
    """Nor are other digits, such as a year. The default lifetime counts, and there is a note (K25)."""
    issued = read(ABSOLUTE, GRANTED | {"validUntil": moment})
    assert issued.token.lifetime == 60
    assert len(issued.notes) == 1


def test_no_expiry_time_means_the_default_lifetime_without_a_note() -> None:
    issued = read(ABSOLUTE, GRANTED | {"validUntil": None})
    assert (issued.token.lifetime, issued.notes) == (60, ())


@pytest.mark.parametrize(
    ("until", "date", "lifetime"),
    [
        ("2025-06-15T15:06:00Z", DATE, -40),  # in the past: a token for one use
        ("2025-06-15T16:16:40Z", "Sun, 15 Jun 2025 16:06:40 GMT", 600),  # an hour fast
    ],
)
def test_an_expiry_time_is_compared_with_the_server_s_clock(until: str, date: str, lifetime: float) -> None:
    token = read(ABSOLUTE, GRANTED | {"validUntil": until}, date=date).token
    assert (token.lifetime, token.obtained_at) == (lifetime, SENT_AT)


ERROR_200 = Strategy(
    name="error-200",
    grants={"refresh_token": ("grant_type", "refresh_token")},
    headers=accept_json,
    errors={**RFC6749_ERRORS, "bad_refresh_token": ErrorKind.REJECTED},
)


def test_a_200_with_an_error() -> None:
    assert request_of(ERROR_200).headers[1] == ("Accept", "application/json")
    with pytest.raises(GrantRejected, match=r"200: bad_refresh_token \(It is expired\)") as caught:
        read(ERROR_200, {"error": "bad_refresh_token", "error_description": "It is expired"})
    assert caught.value.code == "bad_refresh_token"
    assert read(ERROR_200, GRANTED).token.access_token == NEW_ACCESS


OK_FALSE = Strategy(
    name="ok-false",
    grants={"refresh_token": ("grant_type", "refresh_token", "client_id", "client_secret")},
    errors={
        "invalid_refresh_token": ErrorKind.REJECTED,
        "bad_client_secret": ErrorKind.CLIENT,
        "ratelimited": ErrorKind.RATE_LIMITED,
        "fatal_error": ErrorKind.TRANSIENT,
    },
    hints={"bad_client_secret": "Copy the client secret from the app's page again."},
)


def test_a_200_with_ok_false() -> None:
    sent = b"grant_type=refresh_token&refresh_token=rt-1&client_id=id-1&client_secret=se-1"
    assert request_of(OK_FALSE).body == sent
    for code, kind in (
        ("invalid_refresh_token", GrantRejected),
        ("bad_client_secret", ClientRejected),
        ("ratelimited", RateLimited),
        ("fatal_error", TokenUnavailable),
        ("teapot", InvalidTokenResponse),
    ):
        with pytest.raises(kind, match=code) as caught:
            read(OK_FALSE, {"ok": False, "error": code})
        assert str(caught.value).endswith(OK_FALSE.hints.get(code, ""))
    assert read(OK_FALSE, GRANTED | {"ok": True}).token.lifetime is None


FORM_RESPONSE = Strategy(
    name="form-response",
    grants={
        "authorization_code": ("client_id", "client_secret", "code"),
        "refresh_token": ("grant_type", "refresh_token"),
    },
    decode=_wire.parse_form,
)
JSON_IF_ASKED = Strategy(name="json-if-asked", grants=FORM_RESPONSE.grants, headers=accept_json)


def test_a_form_encoded_response_unless_json_is_asked_for() -> None:
    body = b"access_token=at-1&expires_in=28800&refresh_token=rt%7C2&scope=&token_type=bearer"
    token = read(FORM_RESPONSE, body).token
    assert (token.access_token, token.lifetime, token.refresh_token) == ("at-1", 28800, "rt|2")
    assert token.scope == ""
    assert read(JSON_IF_ASKED, GRANTED).token.access_token == NEW_ACCESS
    assert request_of(FORM_RESPONSE).headers == (("Content-Type", "application/x-www-form-urlencoded"),)
    for strategy, wrong, said in (
        (JSON_IF_ASKED, body, "is not JSON"),
        (FORM_RESPONSE, b"error=bad_verification_code&error_description=expired", "bad_verification_code"),
        (FORM_RESPONSE, b"<html>", "not form-encoded"),
        (FORM_RESPONSE, body + b"&scope=x", "same key twice"),
    ):
        with pytest.raises(InvalidTokenResponse, match=said):
            read(strategy, wrong)


NO_EXPIRY = Strategy(name="no-expiry", grants={"refresh_token": ("refresh_token",)}, rotates=False)


def test_no_expires_in_at_all_means_refresh_on_401_only() -> None:
    token = read(NO_EXPIRY, GRANTED).token
    assert (token.lifetime, token.expires_at, token.refresh_token) == (None, None, REFRESH)


STATUS_WORD = Strategy(
    name="status-word",
    grants={"refresh_token": ("refresh_token",)},
    fields=Fields(codes=("status",), description=("message",)),
    errors={"BAD_REFRESH_TOKEN": ErrorKind.REJECTED},
)


@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_a_status_word_without_an_error(status: int) -> None:
    with pytest.raises(GrantRejected, match=r"BAD_REFRESH_TOKEN \(token not found\)"):
        read(STATUS_WORD, {"status": "BAD_REFRESH_TOKEN", "message": "token not found"}, status)
    assert read(STATUS_WORD, GRANTED | {"status": "OK"}).token.access_token == NEW_ACCESS


HOSTS = {"eu": "https://accounts.example.eu", "in": "https://accounts.example.in"}
REGIONAL = Strategy(
    name="regional",
    grants={"refresh_token": ("grant_type", "refresh_token")},
    headers=lambda values: (("X-Region", values["region"]),),
)


@pytest.mark.parametrize("region", HOSTS)
def test_regional_hosts(region: str) -> None:
    provider = of_strategy(REGIONAL, HOSTS[region], region=region)
    request = provider.request(BY_REFRESH)
    assert request.url == f"{HOSTS[region]}/token"
    assert request.headers[1] == ("X-Region", region)
    assert provider.origins == (HOSTS[region],)


NESTED = Strategy(
    name="nested",
    grants={"refresh_token": ("refresh_token",)},
    fields=Fields(
        access_token="data.token", refresh_token="data.refresh", flags=("meta.success",), codes=("meta.code",)
    ),
    lifetime=expires_in("data.ttl"),
    errors={"41": ErrorKind.REJECTED, "1": ErrorKind.TRANSIENT},
)


def test_all_fields_in_nested_objects() -> None:
    body = {"data": {"token": NEW_ACCESS, "refresh": NEW_REFRESH, "ttl": "60"}, "meta": {"success": True}}
    token = read(NESTED, body).token
    assert (token.access_token, token.refresh_token, token.lifetime) == (NEW_ACCESS, NEW_REFRESH, 60)
    issued = read(NESTED, body | {"meta": {"success": False}})
    assert issued.token.refresh_token == NEW_REFRESH
    assert "answered 200 with a token and an error" in str(issued.problem)


def test_error_codes_that_are_numbers() -> None:
    with pytest.raises(GrantRejected):
        read(NESTED, {"meta": {"code": 41}})
    with pytest.raises(TokenUnavailable):
        read(NESTED, {"meta": {"code": 1}}, 400)
    with pytest.raises(UnexplainedRefusal, match="400; it begins"):
        read(NESTED, {"meta": {"code": True}}, 400)


def test_a_field_that_is_not_configured_is_left_out_of_the_body() -> None:
    with_scope = Strategy(name="s", grants={"refresh_token": ("refresh_token", "scope", "code")})
    assert request_of(with_scope).body == b"refresh_token=rt-1"
    assert request_of(with_scope, scope="a b").body == b"refresh_token=rt-1&scope=a+b"
    assert CODE not in request_of(with_scope).secrets


def test_the_environment_of_a_provider_is_its_identity_unless_you_say_otherwise() -> None:
    """Yours may be a path, which does not belong into the store (rule 3)."""
    made = of_strategy(REGIONAL, HOSTS["eu"], region="eu")
    assert made.identity == Identity("regional", "client-7", "id-1", HOSTS["eu"])
    named = StrategyProvider(
        REGIONAL,
        identity="accounts.example.eu/tenants/7",
        environment="eu",
        base_url=HOSTS["eu"],
        token_url=f"{HOSTS['eu']}:8443/token",
        values={},
        credential=None,
    )
    assert named.identity == Identity("regional", "eu", "", f"{HOSTS['eu']}:8443")


def test_scope_audience_and_resource_are_compared_as_sets() -> None:
    """Each of them makes another token of a refresh token that can be used again (rule 4)."""
    shared = Strategy(name="shared", grants={"refresh_token": ("refresh_token",)}, rotates=False)
    asked: tuple[dict[str, str], ...] = (
        *({}, {"scope": "a b"}, {"audience": "a b"}, {"resource": "a b"}, {"scope": "a", "audience": "b"}),
        *({"scope": "b", "audience": "a"}, {"scope": "a b", "resource": "https://api.example.com"}),
    )
    assert len({of_strategy(shared, **values).key for values in asked}) == len(asked)
    assert len({of_strategy(shared, **values).identity.scope for values in asked}) == len(asked)
    for values in asked:
        turned = {name: " ".join(reversed(value.split())) + " " for name, value in values.items()}
        again = of_strategy(shared, **dict(reversed(turned.items())))
        assert again.key == of_strategy(shared, **values).key
        assert again.identity == of_strategy(shared, **values).identity


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lifetime": "exp"}, "lifetime must be callable, not a string of 3 characters"),
        ({"decode": None}, "decode must be callable, not None"),
        ({"fields": {"access_token": "a"}}, r"fields must be Fields\(...\), not a dict"),
        (
            {"grants": {"refresh_token": ("grant_type", "refreshToken")}},
            "with 'refresh_token' among them.*rename",
        ),
        ({"grants": {"refresh_token": "refresh_token"}}, "must be a sequence of fields"),
        ({"grants": {"authorization_code": ("code_",)}}, "with 'code' among them"),
        ({"grants": {"refresh_tokn": ("refresh_token",)}}, "not 'refresh_tokn'"),
        ({"errors": {"X": "rejected"}}, "ErrorKind"),
        ({"default_lifetime": "60"}, "default_lifetime must be a number of seconds, not a string"),
        ({"default_lifetime": True}, "default_lifetime must be a number"),
        ({"replay_leeway": None}, "replay_leeway must be a number"),
        ({"replay_leeway": -1}, "replay_leeway must be a number"),
        ({"idle_lifetime": "30d"}, "idle_lifetime must be a number"),
        ({"idle_lifetime": -1}, "idle_lifetime must be a number"),
    ],
)
def test_a_mistake_in_a_strategy_is_an_error_at_once(wrong: dict[str, Any], said: str) -> None:
    """Where refresh tokens rotate, finding it at the first refresh could cost a sign-in."""
    grants = {"refresh_token": ("grant_type", "refresh_token")}
    with pytest.raises(ConfigurationError, match=f"Strategy 'acme': .*{said}"):
        Strategy(**{"name": "acme", "grants": grants, **wrong})
