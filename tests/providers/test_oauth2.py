"""`OAuth2`: any server that follows RFC 6749."""

from __future__ import annotations

import json
from typing import Any

import pytest
from _known_secrets import (
    BY_CODE,
    BY_REFRESH,
    CLIENT_SECRET,
    CODE,
    NEW_ACCESS,
    REFRESH,
    assert_keeps_secrets,
    granted,
    oauth2,
    read,
    token_response,
)

from tokensession import ConfigurationError
from tokensession.providers import Credential, OAuth2, Provider


def made(**changes: Any) -> OAuth2:
    settings = {
        "token_url": "https://id.example.com/token",
        "client_id": "client-7",
        "client_secret": CLIENT_SECRET,
    }
    return OAuth2(**(settings | changes))


def test_oauth2_is_a_provider_that_rotates_refresh_tokens_by_default() -> None:
    provider = oauth2()
    assert isinstance(provider, Provider)
    assert provider.rotates is True
    assert made(rotates=False).rotates is False
    assert provider.credential == BY_REFRESH
    assert made(code=CODE).credential == BY_CODE


def test_the_token_url_is_used_as_it_is() -> None:
    """Some servers redirect a URL without its final slash."""
    given = made(refresh_token=REFRESH, token_url="https://id.example.com/o/token/")
    assert given.credential is not None
    assert given.request(given.credential).url == "https://id.example.com/o/token/"
    assert given.key == made(refresh_token=REFRESH, token_url="https://id.example.com/o/token").key


def test_the_base_url_is_the_token_url_s_origin_by_default() -> None:
    assert made().base_url == "https://id.example.com"
    elsewhere = made(base_url="https://api.example.com:443/v1/")
    assert elsewhere.base_url == "https://api.example.com:443/v1"
    assert elsewhere.origins == ("https://api.example.com",)


def test_a_response_without_expires_in_has_no_lifetime() -> None:
    assert read(oauth2(), token_response(granted(expires_in=None))).token.lifetime is None


def test_the_scope_is_what_the_server_granted() -> None:
    assert read(oauth2(), token_response(granted(scope="read write"))).token.scope == "read write"
    assert read(oauth2(), token_response(granted())).token.scope is None
    assert read(oauth2(), token_response(granted(scope=["read", "write"]))).token.scope == "read write"


@pytest.mark.parametrize("credential", [BY_REFRESH, BY_CODE])
def test_a_response_without_a_scope_grants_the_scope_that_was_requested(credential: Credential) -> None:
    """RFC 6749, 5.1. A scope in the response takes precedence; an unusable one counts as unknown (K24)."""
    asks = made(refresh_token=REFRESH, scope="read write")
    for scope, stored in ((None, "read write"), ("read", "read"), ("", ""), (["read"], "read"), (7, None)):
        assert read(asks, token_response(granted(scope=scope)), credential).token.scope == stored
    null = json.dumps(granted() | {"scope": None}).encode()
    assert read(asks, token_response(null), credential).token.scope == "read write"


def test_f40_the_key_differs_for_other_servers_clients_and_credentials() -> None:
    """OAuth2: another server, client or configured credential is another key."""
    keys = [
        made(refresh_token="rt-1").key,
        made(refresh_token="rt-2").key,
        made(refresh_token="rt-1", client_id="client-8").key,
        made(refresh_token="rt-1", token_url="https://id.example.com/tenant-2/token").key,
        made(refresh_token="rt-1", token_url="https://id.example.org/token").key,
    ]
    assert len(set(keys)) == len(keys)
    assert made().key == ""


def test_f40_f45_neither_key_nor_repr_contains_a_secret() -> None:
    """OAuth2: neither the key in the store nor the repr contains a secret."""
    for provider in (made(code=CODE), made(refresh_token=REFRESH)):
        assert_keeps_secrets(provider.key + repr(provider))


@pytest.mark.parametrize("secret", [None, "", " x", "x\u00a0"])
def test_basic_authentication_needs_a_client_secret(secret: str | None) -> None:
    with pytest.raises(ConfigurationError, match="client_secret"):
        made(client_secret=secret)


@pytest.mark.parametrize("secret", ["", " x", "x\u00a0"])
def test_a_client_secret_is_checked_for_post_too(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="client_secret"):
        made(auth="post", client_secret=secret)


@pytest.mark.parametrize("name", ["scope", "redirect_uri", "client_id", "code", "refresh_token"])
@pytest.mark.parametrize("value", ["", "x\u00a0", " x", "x\n", "\ud800"])
def test_a_stray_character_in_a_value_is_an_error(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        made(**{name: value})


@pytest.mark.parametrize("auth", ["", "Basic", "jwt", None])
def test_an_unknown_client_authentication_is_an_error_that_names_the_allowed_ones(auth: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^auth must be 'basic' or 'post', not "):
        made(auth=auth)


@pytest.mark.parametrize("token_url", ["", "http://id.example.com/token", "https://id.example.com/t?x=1"])
def test_a_token_url_that_would_leak_is_an_error(token_url: str) -> None:
    with pytest.raises(ConfigurationError, match="token_url"):
        made(token_url=token_url)


def test_the_token_is_sent_as_a_bearer_token() -> None:
    assert read(oauth2(), token_response(granted())).token.authorization == f"Bearer {NEW_ACCESS}"
