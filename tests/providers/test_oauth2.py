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
from tokensession.providers import Credential, Identity, OAuth2, Provider


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


def test_f40_f45_neither_key_nor_identity_nor_repr_contains_a_secret() -> None:
    """OAuth2: neither what is stored in the clear nor the repr contains a secret."""
    for provider in (
        made(code=CODE),
        made(refresh_token=REFRESH),
        made(refresh_token=REFRESH, rotates=False),
    ):
        assert_keeps_secrets(f"{provider.key} {provider.former_keys} {provider.identity} {provider!r}")


def test_the_identity_has_the_client_and_the_origin_but_no_path() -> None:
    """A tenant's path may be a secret, and a server may move its token endpoint (rule 3)."""
    here = made(
        token_url="https://ID.example.com:443/tenant-2/token", refresh_token="rt-1", scope="write read"
    )
    assert here.identity == Identity(
        provider="oauth2", client_id="client-7", origin="https://id.example.com", scope="read write"
    )
    assert made(refresh_token="rt-2", scope="read write write", rotates=False).identity == here.identity
    assert made().identity.scope == ""


SCOPES = ("read", "read write", "read read-all", "readwrite", "READ")


def test_a_refresh_token_that_can_be_used_again_has_a_key_for_each_scope() -> None:
    """Otherwise the source with the narrow scope would send the token of the wide one (rule 4, K17)."""
    keys = {made(refresh_token="rt-1", rotates=False, scope=scope).key for scope in (None, *SCOPES)}
    assert len(keys) == 1 + len(SCOPES)
    one, other = (
        made(refresh_token="rt-1", rotates=False, scope=scope) for scope in ("write  read", "read write read")
    )
    assert one.key == other.key


def test_the_key_without_a_scope_is_a_former_key_of_the_one_with_a_scope() -> None:
    """A token may be stored under it. Without a scope, keys stay as they were (rule 4)."""
    plain = made(refresh_token="rt-1", rotates=False)
    scoped = made(refresh_token="rt-1", rotates=False, scope="read")
    assert scoped.former_keys == (plain.key,)
    assert plain.former_keys == ()
    assert scoped.key.startswith(plain.key + "/")


def test_where_a_credential_is_spent_the_scope_is_not_in_the_key() -> None:
    """There is one sign-in, and it has one scope: see its identity (rule 4)."""
    for settings in ({"refresh_token": "rt-1"}, {"code": "c-1"}, {"code": "c-1", "rotates": False}):
        plain, scoped = made(**settings), made(**settings, scope="read")
        assert scoped.key == plain.key
        assert scoped.former_keys == ()
    assert made(rotates=False, scope="read").key == ""
    assert made(rotates=False, scope="read").former_keys == ()


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
