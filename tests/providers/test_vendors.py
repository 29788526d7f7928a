"""`VENDORS`: each quirk of each vendor, by the answers that its documentation or a report shows."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tokensession import (
    ClientRejected,
    ConfigurationError,
    GrantRejected,
    RateLimited,
    TokenSessionError,
    TokenUnavailable,
)
from tokensession.providers import VENDORS, ClientAuth, Issued, StrategyProvider, Vendor
from tokensession.testing import token_response

SENT_AT = 1_700_000_000.0
BASIC = "Basic " + base64.b64encode(b"client:secret").decode()


def provider_of(name: str, **settings: Any) -> StrategyProvider:
    known: dict[str, Any] = {"client_id": "client", "client_secret": "secret", "refresh_token": "refresh"}
    if not next(iter(VENDORS[name].hosts.values()))[1]:
        known["base_url"] = "https://acme.my.example.com"
    return VENDORS[name].provider(**{**known, **settings})


def read(name: str, body: dict[str, Any] | str, status: int = 200) -> Issued:
    provider = provider_of(name)
    assert provider.credential is not None
    return provider.read(token_response(body, status), provider.credential, sent_at=SENT_AT)


OF_BASIC = "grant_type=refresh_token&refresh_token=refresh"
BODY = f"{OF_BASIC}&client_id=client&client_secret=secret"
IN_JSON = dict(pair.split("=") for pair in BODY.split("&"))
AUTHORIZED = (("Authorization", BASIC),)


@pytest.mark.parametrize(
    ("name", "url", "body", "more"),
    [
        ("atlassian", "https://auth.atlassian.com/oauth/token", IN_JSON, ()),
        ("github", "https://github.com/login/oauth/access_token", BODY, ()),
        ("hubspot", "https://api.hubapi.com/oauth/2026-03/token", BODY, ()),
        ("intuit", "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer", OF_BASIC, AUTHORIZED),
        ("netatmo", "https://api.netatmo.com/oauth2/token", BODY, ()),
        (
            "notion",
            "https://api.notion.com/v1/oauth/token",
            {"grant_type": "refresh_token", "refresh_token": "refresh"},
            (("Notion-Version", "2026-03-11"), *AUTHORIZED),
        ),
        ("salesforce", "https://login.salesforce.com/services/oauth2/token", BODY, ()),
        ("slack", "https://slack.com/api/oauth.v2.access", OF_BASIC, AUTHORIZED),
        ("square", "https://connect.squareup.com/oauth2/token", IN_JSON, ()),
        ("strava", "https://www.strava.com/oauth/token", BODY, ()),
        ("xero", "https://identity.xero.com/connect/token", OF_BASIC, AUTHORIZED),
        ("zoho", "https://accounts.zoho.com/oauth/v2/token", BODY, ()),
    ],
)
def test_each_vendor_gets_the_request_that_it_expects(
    name: str, url: str, body: dict[str, str] | str, more: tuple[tuple[str, str], ...]
) -> None:
    provider = provider_of(name)
    assert provider.credential is not None
    request = provider.request(provider.credential)
    kind = "application/x-www-form-urlencoded" if isinstance(body, str) else "application/json"
    assert request.url == url
    assert request.headers == (("Content-Type", kind), ("Accept", "application/json"), *more)
    sent = request.body.decode()
    assert (sent if isinstance(body, str) else json.loads(sent)) == body


TOKEN = {"access_token": "access", "token_type": "bearer", "refresh_token": "next"}


@pytest.mark.parametrize(
    ("name", "document", "lifetime", "refresh"),
    [
        ("github", {**TOKEN, "expires_in": "28800", "refresh_token_expires_in": "15811200"}, 28800, "next"),
        ("notion", TOKEN, None, "next"),
        ("salesforce", {"access_token": "access", "instance_url": "https://x.example"}, None, "refresh"),
        ("slack", {**TOKEN, "ok": True, "token_type": "bot", "expires_in": 43200}, 43200, "next"),
        (
            "square",
            {**TOKEN, "refresh_token": "refresh", "expires_at": "2023-12-14T22:13:20Z"},
            2592000,
            "refresh",
        ),
        ("square", {**TOKEN, "refresh_token": "refresh"}, 86400, "refresh"),
        ("strava", {**TOKEN, "expires_at": 1_700_021_600, "expires_in": 21600}, 21600, "next"),
        ("zoho", {"access_token": "access", "expires_in": 3600, "token_type": "Bearer"}, 3600, "refresh"),
        ("zoho", {"access_token": "access", "expires_in_sec": 3600, "expires_in": 3600000}, 3600, "refresh"),
        ("zoho", {"access_token": "access"}, 3600, "refresh"),
        ("intuit", {**TOKEN, "expires_in": 3600, "x_refresh_token_expires_in": 8726400}, 3600, "next"),
    ],
)
def test_the_answer_of_each_vendor_is_read(
    name: str, document: dict[str, Any], lifetime: float | None, refresh: str
) -> None:
    issued = read(name, document)
    assert issued.problem is None
    assert issued.notes == ()
    assert issued.token.lifetime == lifetime
    assert issued.token.refresh_token == refresh


@pytest.mark.parametrize(
    ("name", "status", "document", "error", "certain"),
    [
        ("atlassian", 403, {"error": "invalid_grant"}, GrantRejected, True),
        ("atlassian", 403, {"error": "unauthorized_client"}, GrantRejected, False),
        ("github", 200, {"error": "bad_refresh_token"}, GrantRejected, True),
        ("github", 200, {"error": "incorrect_client_credentials"}, ClientRejected, None),
        (
            "hubspot",
            400,
            {"status": "BAD_REFRESH_TOKEN", "message": "missing or invalid"},
            GrantRejected,
            True,
        ),
        (
            "hubspot",
            400,
            {"error": "invalid_grant", "status": "BAD_REFRESH_TOKEN", "message": "expired or revoked"},
            GrantRejected,
            True,
        ),
        ("hubspot", 400, {"error": "invalid_grant", "error_description": "gone"}, GrantRejected, True),
        ("github", 200, {"error": "bad_verification_code"}, GrantRejected, True),
        ("github", 200, {"error": "redirect_uri_mismatch"}, ClientRejected, None),
        ("netatmo", 400, {"error": "invalid_grant"}, GrantRejected, True),
        ("notion", 400, {"object": "error", "code": "invalid_grant", "message": "gone"}, GrantRejected, True),
        ("notion", 400, {"code": "invalid_request", "message": "m"}, ClientRejected, None),
        ("slack", 200, {"ok": False, "error": "invalid_refresh_token"}, GrantRejected, True),
        ("slack", 200, {"ok": False, "error": "bad_client_secret"}, ClientRejected, None),
        ("slack", 200, {"ok": False, "error": "ratelimited"}, RateLimited, None),
        ("strava", 400, {"errors": [{"resource": "RefreshToken", "code": "invalid"}]}, GrantRejected, True),
        ("strava", 400, {"errors": [{"resource": "AuthorizationCode", "code": "x"}]}, GrantRejected, False),
        ("strava", 400, {"errors": [{"resource": "Application", "code": "invalid"}]}, ClientRejected, None),
        ("xero", 400, {"error": "invalid_grant"}, GrantRejected, True),
        ("zoho", 200, {"error": "invalid_code"}, GrantRejected, True),
        ("zoho", 200, {"error": "invalid_client"}, ClientRejected, None),
        ("zoho", 400, {"error": "Access Denied", "status": "failure"}, RateLimited, None),
    ],
)
def test_the_errors_of_each_vendor_are_told_apart(
    name: str, status: int, document: dict[str, Any], error: type[TokenSessionError], certain: bool | None
) -> None:
    with pytest.raises(error) as caught:
        read(name, document, status)
    assert type(caught.value) is error
    assert getattr(caught.value, "certain", None) == certain


def test_an_internal_error_of_slack_is_tried_again() -> None:
    with pytest.raises(TokenSessionError) as caught:
        read("slack", {"ok": False, "error": "internal_error"}, 500)
    assert isinstance(caught.value, TokenUnavailable)


def test_a_client_of_another_region_of_zoho_is_told_so() -> None:
    with pytest.raises(ClientRejected, match="Check that region"):
        read("zoho", {"error": "invalid_client"})


@pytest.mark.parametrize("name", VENDORS)
def test_each_region_has_keys_and_tokens_of_its_own(name: str) -> None:
    vendor = VENDORS[name]
    providers = [provider_of(name, region=region or None) for region in vendor.hosts]
    assert len({provider.key for provider in providers}) == len(providers)
    assert [provider.identity.environment for provider in providers] == list(vendor.hosts)
    assert all(provider.key.startswith(f"{name}/") for provider in providers)


@pytest.mark.parametrize("name", VENDORS)
def test_the_provider_of_a_vendor_can_be_pickled(name: str) -> None:
    provider = provider_of(name)
    copied = pickle.loads(pickle.dumps(provider))
    assert provider.credential is not None
    assert copied.request(provider.credential) == provider.request(provider.credential)


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("zoho", {"region": "mars"}, "region must be 'us', 'eu', .* or 'sa', not 'mars'"),
        ("xero", {"region": "eu"}, r"Xero has no regions\. Leave region out"),
        (
            "salesforce",
            {"base_url": None},
            "base_url is missing: Salesforce has an address for each customer",
        ),
        ("xero", {"base_url": "http://api.example.com"}, "base_url must use https"),
        ("xero", {"client_id": ""}, "client_id must not be empty"),
        ("xero", {"client_secret": None}, r"client_secret is missing, and ClientAuth\.basic\(\) needs it"),
        ("xero", {"client_secret": 7}, "client_secret must be a string"),
        ("xero", {"code": "c"}, "code or refresh_token, not both"),
        ("xero", {"redirect_uri": " "}, "redirect_uri begins or ends with white space"),
    ],
)
def test_arguments_that_cannot_work_are_an_error(name: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        provider_of(name, **wrong)


def test_a_detail_of_a_vendor_is_replaced_as_data() -> None:
    salesforce = VENDORS["salesforce"]
    changed = replace(salesforce, strategy=replace(salesforce.strategy, rotates=False))
    assert isinstance(changed, Vendor)
    provider = changed.provider(
        client_id="c", client_secret="s", refresh_token="r", base_url="https://acme.my.example.com"
    )
    assert not provider.rotates


def test_every_fact_says_how_it_is_known_and_where_unless_it_is_inferred() -> None:
    for name, vendor in VENDORS.items():
        assert vendor.strategy.name == name
        assert vendor.facts
        for fact in vendor.facts:
            assert fact.how in ("documented", "seen", "inferred")
            assert fact.where or fact.how == "inferred", fact
            assert "|" not in fact.text
            assert "://" not in fact.where


def test_an_api_that_answers_403_to_an_expired_token_is_among_them() -> None:
    """A session takes it from the provider."""
    assert provider_of("netatmo").unauthorized_statuses == (401, 403)
    assert provider_of("xero").unauthorized_statuses == (401,)


@pytest.mark.parametrize(
    ("name", "leeway", "idle_days"), [("atlassian", 600, 90), ("intuit", 0, 100), ("xero", 1800, 60)]
)
def test_leeway_and_idle_lifetime_are_what_the_vendor_documents(
    name: str, leeway: float, idle_days: float
) -> None:
    strategy = VENDORS[name].strategy
    assert strategy.rotates
    assert (strategy.replay_leeway, strategy.idle_lifetime) == (leeway, idle_days * 86400)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("salesforce", "instance_url", "https://acme.my.salesforce.com"),
        ("zoho", "api_domain", "https://www.zohoapis.eu"),
    ],
)
def test_the_address_of_the_api_stays_with_the_token(name: str, field: str, value: str) -> None:
    assert read(name, {"access_token": "access", field: value}).token.extra == {field: value}


def test_the_client_secret_of_a_vendor_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n", encoding="utf-8")
    ready = asyncio.run(provider_of("xero", client_secret=tmp_path / "secret").resolved(wall=SENT_AT))
    assert ready.credential is not None
    assert ("Authorization", BASIC) in ready.request(ready.credential).headers


def test_a_public_client_of_a_vendor_has_no_secret() -> None:
    square = VENDORS["square"]
    public = replace(square, auth=ClientAuth.none(), strategy=replace(square.strategy, rotates=True))
    provider = public.provider(client_id="client", refresh_token="refresh")
    assert provider.rotates
    assert provider.credential is not None
    assert json.loads(provider.request(provider.credential).body) == {
        "grant_type": "refresh_token",
        "refresh_token": "refresh",
        "client_id": "client",
    }
    with pytest.raises(ConfigurationError, match="a public client has none"):
        public.provider(client_id="client", client_secret="secret", refresh_token="refresh")
