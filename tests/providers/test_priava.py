"""Priava: its configuration, its key, its rotation."""

from __future__ import annotations

from typing import Any

import pytest
from _known_secrets import (
    BY_CODE,
    BY_REFRESH,
    CLIENT_SECRET,
    CODE,
    NEW_ACCESS,
    NEW_REFRESH,
    REFRESH,
    assert_keeps_secrets,
    priava,
    read,
    token_response,
)

from tokensession import ConfigurationError, GrantRejected
from tokensession.providers import Identity, Priava, Provider

SETTINGS = {
    "client_id": "client-7",
    "client_secret": CLIENT_SECRET,
    "redirect_uri": "https://my.app.com/oauth2callback",
    "region": "EU",
}


def made(**changes: Any) -> Priava:
    return Priava(**(SETTINGS | changes))


def test_priava_is_a_provider_that_rotates_refresh_tokens() -> None:
    provider = priava()
    assert isinstance(provider, Provider)
    assert provider.rotates is True
    assert provider.replay_leeway == 0
    assert provider.credential == BY_REFRESH
    assert made(code=CODE).credential == BY_CODE
    assert made().credential is None


def test_the_documented_response_is_read_whatever_the_case_of_its_token_type() -> None:
    body = {
        "access_token": NEW_ACCESS,
        "refresh_token": NEW_REFRESH,
        "token_type": "BEARER",
        "expires_in": 21600,
    }
    token = read(priava(), token_response(body), BY_CODE).token
    assert token.authorization == f"Bearer {NEW_ACCESS}"
    assert (token.refresh_token, token.lifetime) == (NEW_REFRESH, 21600)


def test_the_base_url_has_a_path_and_the_origin_does_not() -> None:
    assert made().base_url == "https://api.priava.com/api"
    assert made().origins == ("https://api.priava.com",)
    sandbox = made(base_url="https://api-sandbox.priava.com/api")
    assert sandbox.origins == ("https://api-sandbox.priava.com",)


@pytest.mark.parametrize("region", ["", "eu", "Eu", "apac", "us", "EU ", "EMEA", None, "APAC | EU | US"])
def test_an_unknown_region_is_an_error_that_names_the_allowed_ones(region: Any) -> None:
    with pytest.raises(ValueError, match=r"^region must be 'APAC', 'EU' or 'US', not "):
        made(region=region)


def test_api_requests_carry_the_region_only_if_you_ask_for_it() -> None:
    assert made().api_headers == ()
    assert made(region="US", region_on_requests=True).api_headers == (("TenantRegion", "US"),)


def test_f40_the_key_differs_for_other_regions_clients_credentials_and_addresses() -> None:
    """Priava: another region, client, configured credential or address is another key."""
    keys = [
        made(refresh_token="rt-1").key,
        made(refresh_token="rt-2").key,
        made(code="co-1").key,
        made(refresh_token="rt-1", region="US").key,
        made(refresh_token="rt-1", client_id="client-8").key,
        made(refresh_token="rt-1", base_url="https://api-sandbox.priava.com/api").key,
        made(refresh_token="rt-1", base_url="https://api-sandbox.priava.com/other").key,
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0].startswith("priava/EU/client-7/")


def test_the_identity_has_the_region_the_client_and_the_origin_of_the_token_url() -> None:
    """So that no region or client uses the token of another one, whatever the key (rule 3)."""
    assert priava().identity == Identity("priava", "EU", "client-7", "https://api.priava.com")
    assert priava().former_keys == ()


def test_the_key_does_not_depend_on_the_client_secret() -> None:
    assert made(code=CODE).key == made(code=CODE, client_secret="another").key


def test_f40_without_a_configured_credential_there_is_no_default_key() -> None:
    """Priava: without a configured credential there is no default key, because accounts would share it."""
    assert made().key == ""


def test_neither_key_nor_repr_contains_a_secret() -> None:
    for provider in (made(), made(code=CODE), made(refresh_token=REFRESH)):
        assert_keeps_secrets(provider.key + repr(provider) + repr(provider.credential))


@pytest.mark.parametrize("field", ["client_id", "client_secret", "redirect_uri", "code", "refresh_token"])
@pytest.mark.parametrize("wrong", ["", " x", "x ", "x\u00a0", "\u00a0x", "x\n", "x\ufeff", 7])
def test_white_space_around_a_value_is_an_error(field: str, wrong: Any) -> None:
    """In the documentation a no-break space follows the refresh body, and is often copied with it."""
    with pytest.raises(ConfigurationError, match=field) as caught:
        made(**{field: wrong})
    assert_keeps_secrets(str(caught.value) + repr(caught.value))


def test_a_code_and_a_refresh_token_together_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="Pass code or refresh_token, not both") as caught:
        made(code=CODE, refresh_token=REFRESH)
    assert_keeps_secrets(str(caught.value))


@pytest.mark.parametrize(
    "base_url",
    ["http://api.priava.com/api", "https://u:p@api.priava.com", "//api.priava.com/api", "api.priava.com", ""],
)
def test_a_base_url_that_would_leak_or_not_work_is_an_error(base_url: str) -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        made(base_url=base_url)


ENVIRONMENT = {
    "PRIAVA_CLIENT_ID": "client-7",
    "PRIAVA_CLIENT_SECRET": CLIENT_SECRET,
    "PRIAVA_REDIRECT_URI": "https://my.app.com/oauth2callback",
    "PRIAVA_REGION": "EU",
}
OPTIONAL = ("PRIAVA_CODE", "PRIAVA_REFRESH_TOKEN", "PRIAVA_BASE_URL")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in OPTIONAL:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_from_env_reads_the_variables_that_are_set(environment: pytest.MonkeyPatch) -> None:
    assert Priava.from_env().credential is None
    environment.setenv("PRIAVA_CODE", CODE)
    assert Priava.from_env().key == made(code=CODE).key
    environment.setenv("PRIAVA_CODE", "")
    environment.setenv("PRIAVA_REFRESH_TOKEN", REFRESH)
    environment.setenv("PRIAVA_BASE_URL", "http://127.0.0.1:1234/api")
    assert Priava.from_env().credential == BY_REFRESH
    assert Priava.from_env().base_url == "http://127.0.0.1:1234/api"


def test_from_env_names_all_missing_variables(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("PRIAVA_REGION")
    environment.setenv("PRIAVA_CLIENT_ID", "")
    with pytest.raises(ConfigurationError, match="are not set: PRIAVA_CLIENT_ID, PRIAVA_REGION") as caught:
        Priava.from_env()
    assert_keeps_secrets(str(caught.value))


def test_a_rejected_code_asks_for_a_new_sign_in() -> None:
    body = {"error": "invalid_grant", "error_description": "The authorization code is used"}
    with pytest.raises(GrantRejected, match="The authorization code is used") as caught:
        read(made(code=CODE), token_response(body, 400), BY_CODE)
    assert str(caught.value).endswith("call source.sign_in(...).")
