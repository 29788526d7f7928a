"""Every token request, byte for byte as the providers document it."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qsl

import pytest
from _known_secrets import CODE, PROVIDERS, REFRESH, assert_keeps_secrets

from tokensession import ConfigurationError
from tokensession.providers import Credential, OAuth2, Oto, Priava, StrategyProvider, TokenRequest

VECTOR = " %&+£€"
ENCODED = b"+%25%26%2B%C2%A3%E2%82%AC"
CALLBACK = "https://my.app.com/oauth2callback"


def sent(provider: StrategyProvider, credential: Credential | None = None) -> TokenRequest:
    credential = credential or provider.credential
    assert credential is not None
    return provider.request(credential)


def priava(**changes: Any) -> Priava:
    settings = {
        "client_id": "id-1",
        "client_secret": "se-1",
        "redirect_uri": CALLBACK,
        "region": "EU",
    }
    return Priava(**(settings | changes))


def oauth2(**changes: Any) -> OAuth2:
    settings = {
        "token_url": "https://id.example.com/oauth/token",
        "client_id": "id-1",
        "client_secret": "se-1",
    }
    return OAuth2(**(settings | changes))


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "https://api.tryoto.com/rest/v2/refreshToken"),
        ({"environment": "production"}, "https://api.tryoto.com/rest/v2/refreshToken"),
        ({"environment": "staging"}, "https://staging-api.tryoto.com/rest/v2/refreshToken"),
        ({"base_url": "http://127.0.0.1:8080"}, "http://127.0.0.1:8080/rest/v2/refreshToken"),
        ({"base_url": "https://proxy.example/oto/"}, "https://proxy.example/oto/rest/v2/refreshToken"),
    ],
)
def test_oto_is_sent_json_with_exactly_one_key(settings: dict[str, Any], url: str) -> None:
    request = sent(Oto(refresh_token="rt-1", **settings))
    assert request.url == url
    assert request.headers == (("Content-Type", "application/json"),)
    assert request.body == b'{"refresh_token": "rt-1"}'


def test_oto_sends_a_refresh_token_with_any_character() -> None:
    secret = "rt" + VECTOR + '"\\x'
    request = sent(Oto(refresh_token=secret))
    assert json.loads(request.body) == {"refresh_token": secret}
    assert request.body.isascii()


@pytest.mark.parametrize("region", ["APAC", "EU", "US"])
@pytest.mark.parametrize(
    ("credential", "body"),
    [
        (
            {"code": "co-1"},
            b"grant_type=authorization_code&client_id=id-1&client_secret=se-1&code=co-1"
            b"&redirect_uri=https://my.app.com/oauth2callback",
        ),
        (
            {"refresh_token": "rt-1"},
            b"grant_type=refresh_token&client_id=id-1&client_secret=se-1&refresh_token=rt-1"
            b"&redirect_uri=https://my.app.com/oauth2callback",
        ),
    ],
    ids=["code", "refresh"],
)
def test_priava_is_sent_both_documented_bodies_for_every_region(
    region: str, credential: dict[str, str], body: bytes
) -> None:
    request = sent(priava(region=region, **credential))
    assert request.url == "https://api.priava.com/api/rest/oauth/token"
    assert request.headers == (
        ("Content-Type", "application/x-www-form-urlencoded;charset=utf-8"),
        ("TenantRegion", region),
    )
    assert request.body == body


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://api-sandbox.priava.com/api", "https://api-sandbox.priava.com/api/rest/oauth/token"),
        ("https://api-sandbox.priava.com/api/", "https://api-sandbox.priava.com/api/rest/oauth/token"),
        ("http://localhost:9000/api", "http://localhost:9000/api/rest/oauth/token"),
        ("http://[::1]:9000", "http://[::1]:9000/rest/oauth/token"),
    ],
)
def test_the_token_url_contains_the_path_of_the_base_url(base_url: str, url: str) -> None:
    assert sent(priava(base_url=base_url, code="co-1")).url == url


@pytest.mark.parametrize("field", ["client_id", "client_secret", "code", "refresh_token", "redirect_uri"])
def test_priava_encodes_special_characters_as_documented(field: str) -> None:
    credential = {} if field in ("code", "refresh_token") else {"refresh_token": "rt-1"}
    value = f"a{VECTOR}z"
    request = sent(priava(**{**credential, field: value}))
    assert b"=a" + ENCODED + b"z" in request.body
    assert dict(parse_qsl(request.body.decode()))[field] == value


def test_a_code_from_sign_in_is_sent_like_a_configured_one() -> None:
    later = sent(priava(), Credential("authorization_code", "co-1"))
    configured = sent(priava(code="co-1"))
    assert (later.url, later.headers, later.body) == (configured.url, configured.headers, configured.body)


def basic(credentials: bytes) -> tuple[str, str]:
    return ("Authorization", "Basic " + base64.b64encode(credentials).decode())


FORM = ("Content-Type", "application/x-www-form-urlencoded")
ACCEPT = ("Accept", "application/json")


@pytest.mark.parametrize(
    ("settings", "headers", "body"),
    [
        pytest.param(
            {"code": "co-1"},
            (FORM, ACCEPT, basic(b"id-1:se-1")),
            b"grant_type=authorization_code&code=co-1",
            id="basic-code",
        ),
        pytest.param(
            {"code": "co-1", "redirect_uri": CALLBACK, "scope": "a b"},
            (FORM, ACCEPT, basic(b"id-1:se-1")),
            b"grant_type=authorization_code&code=co-1&redirect_uri=https://my.app.com/oauth2callback",
            id="basic-code-redirect",
        ),
        pytest.param(
            {"refresh_token": "rt-1", "redirect_uri": CALLBACK},
            (FORM, ACCEPT, basic(b"id-1:se-1")),
            b"grant_type=refresh_token&refresh_token=rt-1",
            id="basic-refresh",
        ),
        pytest.param(
            {"refresh_token": "rt-1", "scope": "read write"},
            (FORM, ACCEPT, basic(b"id-1:se-1")),
            b"grant_type=refresh_token&refresh_token=rt-1&scope=read+write",
            id="basic-refresh-scope",
        ),
        pytest.param(
            {"refresh_token": "rt-1", "client_id": "i:d", "client_secret": f"s{VECTOR}."},
            (FORM, ACCEPT, basic(b"i%3Ad:s" + ENCODED + b".")),
            b"grant_type=refresh_token&refresh_token=rt-1",
            id="basic-form-encoded-first",
        ),
        pytest.param(
            {"auth": "post", "code": "co-1", "redirect_uri": CALLBACK},
            (FORM, ACCEPT),
            b"grant_type=authorization_code&code=co-1&redirect_uri=https://my.app.com/oauth2callback"
            b"&client_id=id-1&client_secret=se-1",
            id="post-code",
        ),
        pytest.param(
            {"auth": "post", "refresh_token": f"rt{VECTOR}.", "scope": "read"},
            (FORM, ACCEPT),
            b"grant_type=refresh_token&refresh_token=rt" + ENCODED + b".&scope=read"
            b"&client_id=id-1&client_secret=se-1",
            id="post-refresh-scope",
        ),
        pytest.param(
            {"auth": "post", "refresh_token": "rt-1", "client_secret": None},
            (FORM, ACCEPT),
            b"grant_type=refresh_token&refresh_token=rt-1&client_id=id-1",
            id="post-public-client",
        ),
    ],
)
def test_an_rfc_6749_server_is_sent_what_the_rfc_says(
    settings: dict[str, Any], headers: tuple[tuple[str, str], ...], body: bytes
) -> None:
    request = sent(oauth2(**settings))
    assert request.url == "https://id.example.com/oauth/token"
    assert request.headers == headers
    assert request.body == body


def every_request() -> list[TokenRequest]:
    built = [PROVIDERS[name]() for name in PROVIDERS]
    requests = [sent(provider) for provider in built]
    return requests + [sent(provider, Credential("authorization_code", CODE)) for provider in built[1:]]


def test_no_request_contains_a_no_break_space() -> None:
    for request in every_request():
        for spelling in (b"\xa0", b"\xc2\xa0", b"%A0", b"%C2%A0", b"u00a0", b"\xef\xbb\xbf"):
            assert spelling.lower() not in request.body.lower()
        assert all(value.isascii() and value.isprintable() for _, value in request.headers)


def test_url_and_body_of_a_request_are_ascii() -> None:
    for request in every_request():
        assert request.body.isascii()
        assert request.url.isascii()


def test_the_repr_of_a_request_shows_neither_body_nor_headers() -> None:
    for request in every_request():
        assert_keeps_secrets(repr(request))
        assert request.secrets
        assert REFRESH in request.secrets


def test_a_grant_that_a_server_does_not_support_is_an_error() -> None:
    with pytest.raises(
        ConfigurationError, match="oto does not support the authorization_code grant"
    ) as caught:
        sent(Oto(refresh_token=REFRESH), Credential("authorization_code", CODE))
    assert "Use one of: refresh_token." in str(caught.value)
    assert_keeps_secrets(str(caught.value))
