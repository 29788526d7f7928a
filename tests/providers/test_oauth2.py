"""OAuth2: any server by RFC 6749, on the same strategy."""

from __future__ import annotations

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
from tokensession.providers import OAuth2, Provider


def made(**changes: Any) -> OAuth2:
    settings = {
        "token_url": "https://id.example.com/token",
        "client_id": "client-7",
        "client_secret": CLIENT_SECRET,
    }
    return OAuth2(**(settings | changes))


def test_it_is_a_provider_that_takes_the_careful_view_of_rotation() -> None:
    provider = oauth2()
    assert isinstance(provider, Provider)
    assert provider.rotates is True
    assert made(rotates=False).rotates is False
    assert provider.credential == BY_REFRESH
    assert made(code=CODE).credential == BY_CODE


def test_a_token_url_is_asked_as_it_is_given() -> None:
    """With its slash at the end, where the server has one: without it some answer by a redirect."""
    given = made(refresh_token=REFRESH, token_url="https://id.example.com/o/token/")
    assert given.credential is not None
    assert given.request(given.credential).url == "https://id.example.com/o/token/"
    assert given.key == made(refresh_token=REFRESH, token_url="https://id.example.com/o/token").key


def test_the_api_is_at_the_token_server_s_origin_unless_said_otherwise() -> None:
    assert made().base_url == "https://id.example.com"
    elsewhere = made(base_url="https://api.example.com:443/v1/")
    assert elsewhere.base_url == "https://api.example.com:443/v1"
    assert elsewhere.origins == ("https://api.example.com",)


def test_a_reply_without_a_life_is_refreshed_on_401_only() -> None:
    assert read(oauth2(), token_response(granted(expires_in=None))).token.lifetime is None


def test_a_scope_is_kept_as_the_server_granted_it() -> None:
    assert read(oauth2(), token_response(granted(scope="read write"))).token.scope == "read write"
    assert read(oauth2(), token_response(granted())).token.scope is None


def test_f40_the_key_tells_servers_clients_and_seeds_apart() -> None:
    """OAuth2: another server, client or seed is another key."""
    keys = [
        made(refresh_token="rt-1").key,
        made(refresh_token="rt-2").key,
        made(refresh_token="rt-1", client_id="client-8").key,
        made(refresh_token="rt-1", token_url="https://id.example.com/tenant-2/token").key,
        made(refresh_token="rt-1", token_url="https://id.example.org/token").key,
    ]
    assert len(set(keys)) == len(keys)
    assert made().key == ""


def test_f40_f45_neither_key_nor_repr_holds_a_secret() -> None:
    """OAuth2: neither the key in the store nor the repr holds a secret."""
    for provider in (made(code=CODE), made(refresh_token=REFRESH)):
        assert_keeps_secrets(provider.key + repr(provider))


@pytest.mark.parametrize("secret", [None, "", " x", "x\u00a0"])
def test_basic_authentication_needs_a_client_secret(secret: str | None) -> None:
    with pytest.raises(ConfigurationError, match="client_secret"):
        made(client_secret=secret)


@pytest.mark.parametrize("secret", ["", " x", "x\u00a0"])
def test_a_secret_that_is_given_is_checked_for_post_too(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="client_secret"):
        made(auth="post", client_secret=secret)


@pytest.mark.parametrize("name", ["scope", "redirect_uri", "client_id", "code", "refresh_token"])
@pytest.mark.parametrize("value", ["", "x\u00a0", " x", "x\n", "\ud800"])
def test_no_stray_character_gets_into_a_request(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        made(**{name: value})


@pytest.mark.parametrize("auth", ["", "Basic", "jwt", None])
def test_an_unknown_client_authentication_is_refused(auth: Any) -> None:
    with pytest.raises(ConfigurationError, match="auth is"):
        made(auth=auth)


@pytest.mark.parametrize("token_url", ["", "http://id.example.com/token", "https://id.example.com/t?x=1"])
def test_a_token_url_that_would_leak_is_refused(token_url: str) -> None:
    with pytest.raises(ConfigurationError, match="token_url"):
        made(token_url=token_url)


def test_the_token_goes_out_as_a_bearer() -> None:
    assert read(oauth2(), token_response(granted())).token.authorization == f"Bearer {NEW_ACCESS}"
