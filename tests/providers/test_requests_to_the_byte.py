"""Every token request, byte for byte as the providers document it."""

from __future__ import annotations

import base64
import functools
import json
from typing import Any
from urllib.parse import parse_qsl

import _known_secrets
import pytest
from _known_secrets import BY_CODE, BY_REFRESH, CALLBACK, PROVIDERS, REFRESH, assert_keeps_secrets, oto

from tokensession import ConfigurationError
from tokensession.providers import ClientAuth, Credential, StrategyProvider, TokenRequest

VECTOR = " %&+£€"
ENCODED = b"+%25%26%2B%C2%A3%E2%82%AC"


def sent(provider: StrategyProvider, credential: Credential | None = None) -> TokenRequest:
    credential = credential or provider.credential
    assert credential is not None
    return provider.request(credential)


priava = functools.partial(_known_secrets.priava, client_id="id-1", client_secret="se-1")
oauth2 = functools.partial(_known_secrets.oauth2, client_id="id-1", client_secret="se-1")


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
    request = sent(oto(refresh_token="rt-1", **settings))
    assert request.url == url
    assert request.headers == (("Content-Type", "application/json"),)
    assert request.body == b'{"refresh_token": "rt-1"}'


def test_oto_sends_a_refresh_token_with_any_character() -> None:
    assert json.loads(sent(oto()).body) == {"refresh_token": REFRESH}


@pytest.mark.parametrize("region", ["APAC", "EU", "US"])
@pytest.mark.parametrize(
    ("grant", "name", "value"),
    [("authorization_code", "code", "co-1"), ("refresh_token", "refresh_token", "rt-1")],
)
def test_priava_is_sent_both_documented_bodies_for_every_region(
    region: str, grant: str, name: str, value: str
) -> None:
    request = sent(priava(region=region, **{name: value}))
    assert request.url == "https://api.priava.com/api/rest/oauth/token"
    assert request.headers == (
        ("Content-Type", "application/x-www-form-urlencoded;charset=utf-8"),
        ("TenantRegion", region),
    )
    documented = (
        f"grant_type={grant}&client_id=id-1&client_secret=se-1&{name}={value}&redirect_uri={CALLBACK}"
    )
    assert request.body == documented.encode()


@pytest.mark.parametrize(
    "base_url", ["https://api-sandbox.priava.com/api", "http://localhost:9000/api", "http://[::1]:9000"]
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_the_token_url_contains_the_path_of_the_base_url(base_url: str, slash: str) -> None:
    assert sent(priava(base_url=base_url + slash)).url == f"{base_url}/rest/oauth/token"


@pytest.mark.parametrize("field", ["client_id", "client_secret", "code", "refresh_token", "redirect_uri"])
def test_priava_encodes_special_characters_as_documented(field: str) -> None:
    value = f"a{VECTOR}z"
    request = sent(priava(**{field: value}))
    assert b"=a" + ENCODED + b"z" in request.body
    assert dict(parse_qsl(request.body.decode()))[field] == value


def test_a_code_from_sign_in_is_sent_like_a_configured_one() -> None:
    later, configured = sent(priava(), BY_CODE), sent(priava(code=BY_CODE.secret))
    assert (later.url, later.headers, later.body) == (configured.url, configured.headers, configured.body)


def basic(credentials: bytes) -> tuple[str, str]:
    return ("Authorization", "Basic " + base64.b64encode(credentials).decode())


FORM = ("Content-Type", "application/x-www-form-urlencoded")
ACCEPT = ("Accept", "application/json")


BASIC = basic(b"id-1:se-1")
OF_CODE = b"grant_type=authorization_code&code=co-1"
OF_REFRESH = b"grant_type=refresh_token&refresh_token=rt-1"
REDIRECT = b"&redirect_uri=" + CALLBACK.encode()
POSTED = b"&client_id=id-1&client_secret=se-1"


@pytest.mark.parametrize(
    ("settings", "authorization", "body"),
    [
        ({"code": "co-1"}, BASIC, OF_CODE),
        ({"code": "co-1", "redirect_uri": CALLBACK, "scope": "a b"}, BASIC, OF_CODE + REDIRECT),
        ({"redirect_uri": CALLBACK}, BASIC, OF_REFRESH),
        ({"scope": "read write"}, BASIC, OF_REFRESH + b"&scope=read+write"),
        (
            {"client_id": "i:d", "client_secret": f"s{VECTOR}."},  # encoded as in a form before base64
            basic(b"i%3Ad:s" + ENCODED + b"."),
            OF_REFRESH,
        ),
        (
            {"auth": ClientAuth.post(), "code": "co-1", "redirect_uri": CALLBACK},
            None,
            OF_CODE + REDIRECT + POSTED,
        ),
        (
            {"auth": ClientAuth.post(), "refresh_token": f"rt-1{VECTOR}.", "scope": "read"},
            None,
            OF_REFRESH + ENCODED + b".&scope=read" + POSTED,
        ),
        ({"auth": ClientAuth.none(), "client_secret": None}, None, OF_REFRESH + b"&client_id=id-1"),
    ],
)
def test_an_rfc_6749_server_is_sent_what_the_rfc_says(
    settings: dict[str, Any], authorization: tuple[str, str] | None, body: bytes
) -> None:
    credential = {} if "code" in settings else {"refresh_token": "rt-1"}
    request = sent(oauth2(**credential | settings))
    assert request.url == "https://id.example.com/token"
    assert request.headers == (FORM, ACCEPT, authorization)[: 3 if authorization else 2]
    assert request.body == body


@pytest.mark.parametrize(
    ("make", "credential"),
    [*((make, BY_REFRESH) for make in PROVIDERS.values()), (priava, BY_CODE), (oauth2, BY_CODE)],
)
def test_a_request_is_ascii_without_a_no_break_space_and_its_repr_shows_no_secret(
    make: Any, credential: Credential
) -> None:
    request = sent(make(), credential)
    assert request.body.isascii()
    assert request.url.isascii()
    assert all(value.isascii() and value.isprintable() for _, value in request.headers)
    for spelling in (b"%a0", b"u00a0"):
        assert spelling not in request.body.lower()
    assert credential.secret in request.secrets
    assert_keeps_secrets(repr(request))


def test_a_grant_that_a_server_does_not_support_is_an_error() -> None:
    unsupported = "oto does not support the authorization_code grant.*Use one of: refresh_token"
    with pytest.raises(ConfigurationError, match=unsupported) as caught:
        sent(oto(), BY_CODE)
    assert_keeps_secrets(str(caught.value))
