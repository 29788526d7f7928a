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
from tokensession.providers import Priava, Provider

SETTINGS = {
    "client_id": "client-7",
    "client_secret": CLIENT_SECRET,
    "redirect_uri": "https://my.app.com/oauth2callback",
    "region": "EU",
}


def made(**changes: Any) -> Priava:
    return Priava(**(SETTINGS | changes))


def test_it_is_a_provider_whose_refresh_tokens_rotate() -> None:
    provider = priava()
    assert isinstance(provider, Provider)
    assert provider.rotates is True
    assert provider.replay_leeway == 0
    assert provider.credential == BY_REFRESH
    assert made(code=CODE).credential == BY_CODE
    assert made().credential is None


def test_the_documented_reply_is_read_whatever_the_scheme_s_case() -> None:
    body = {
        "access_token": NEW_ACCESS,
        "refresh_token": NEW_REFRESH,
        "token_type": "BEARER",
        "expires_in": 21600,
    }
    token = read(priava(), token_response(body), BY_CODE).token
    assert token.authorization == f"Bearer {NEW_ACCESS}"
    assert (token.refresh_token, token.lifetime) == (NEW_REFRESH, 21600)


def test_the_base_keeps_its_path_and_the_origin_leaves_it_out() -> None:
    assert made().base_url == "https://api.priava.com/api"
    assert made().origins == ("https://api.priava.com",)
    sandbox = made(base_url="https://api-sandbox.priava.com/api")
    assert sandbox.origins == ("https://api-sandbox.priava.com",)


@pytest.mark.parametrize("region", ["", "eu", "Eu", "apac", "us", "EU ", "EMEA", None, "APAC | EU | US"])
def test_a_region_that_is_not_one_of_the_three_is_a_value_error(region: Any) -> None:
    with pytest.raises(ValueError, match=r"region is .* Use one of \('APAC', 'EU', 'US'\)"):
        made(region=region)


def test_data_calls_carry_the_region_only_if_asked_to() -> None:
    assert made().api_headers == ()
    assert made(region="US", region_on_requests=True).api_headers == (("TenantRegion", "US"),)


def test_f40_the_key_tells_regions_clients_seeds_and_addresses_apart() -> None:
    """Priava: another region, client, seed or address is another key."""
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


def test_the_key_does_not_depend_on_the_client_secret_which_may_be_replaced() -> None:
    assert made(code=CODE).key == made(code=CODE, client_secret="another").key


def test_f40_without_a_seed_there_is_no_key_since_it_would_be_shared() -> None:
    """Priava: without a seed there is no key of its own, since all who have none would share it."""
    assert made().key == ""


def test_neither_key_nor_repr_holds_a_secret() -> None:
    for provider in (made(), made(code=CODE), made(refresh_token=REFRESH)):
        assert_keeps_secrets(provider.key + repr(provider) + repr(provider.credential))


@pytest.mark.parametrize("field", ["client_id", "client_secret", "redirect_uri", "code", "refresh_token"])
@pytest.mark.parametrize("wrong", ["", " x", "x ", "x\u00a0", "\u00a0x", "x\n", "x\ufeff", 7])
def test_white_space_around_a_value_is_refused_before_it_can_be_sent(field: str, wrong: Any) -> None:
    """The documented refresh body ends in a no-break space, and is often copied with it."""
    with pytest.raises(ConfigurationError, match=field) as caught:
        made(**{field: wrong})
    assert_keeps_secrets(str(caught.value) + repr(caught.value))


def test_a_code_and_a_refresh_token_together_are_ambiguous() -> None:
    with pytest.raises(ConfigurationError, match="Both code and refresh_token are given") as caught:
        made(code=CODE, refresh_token=REFRESH)
    assert_keeps_secrets(str(caught.value))


@pytest.mark.parametrize(
    "base_url",
    ["http://api.priava.com/api", "https://u:p@api.priava.com", "//api.priava.com/api", "api.priava.com", ""],
)
def test_a_base_url_that_would_leak_or_not_work_is_refused(base_url: str) -> None:
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


def test_from_env_takes_what_is_set(environment: pytest.MonkeyPatch) -> None:
    assert Priava.from_env().credential is None
    environment.setenv("PRIAVA_CODE", CODE)
    assert Priava.from_env().key == made(code=CODE).key
    environment.setenv("PRIAVA_CODE", "")
    environment.setenv("PRIAVA_REFRESH_TOKEN", REFRESH)
    environment.setenv("PRIAVA_BASE_URL", "http://127.0.0.1:1234/api")
    assert Priava.from_env().credential == BY_REFRESH
    assert Priava.from_env().base_url == "http://127.0.0.1:1234/api"


def test_from_env_names_all_that_is_missing_at_once(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("PRIAVA_REGION")
    environment.setenv("PRIAVA_CLIENT_ID", "")
    with pytest.raises(ConfigurationError, match="Not set: PRIAVA_CLIENT_ID, PRIAVA_REGION") as caught:
        Priava.from_env()
    assert_keeps_secrets(str(caught.value))


def test_a_refused_code_says_so_and_asks_for_a_new_one() -> None:
    body = {"error": "invalid_grant", "error_description": "The authorization code is used"}
    with pytest.raises(GrantRejected, match="The authorization code is used") as caught:
        read(made(code=CODE), token_response(body, 400), BY_CODE)
    assert str(caught.value).endswith("call source.sign_in(...).")
