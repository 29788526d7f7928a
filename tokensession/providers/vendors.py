"""`VENDORS`: well-known servers, as data. `vendors_facts.py` says how each detail is known.

A `Vendor` is a `Strategy` with addresses and the way its clients authenticate. Where a fact is unknown, the
cautious value stands: refresh tokens rotate, no leeway.

The table on the page of the providers is written from this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from . import _wire
from .client_auth import ClientAuth
from .oauth2 import OAUTH2
from .strategy import RFC6749_ERRORS, ErrorKind, Fields, Lifetime, Values, expires_at, expires_in
from .vendor import Vendor
from .vendors_facts import FACTS

__all__ = ["VENDORS"]

# -- the parts that several of them share ------------------------------------------------------------------

_DAY = 86400.0
_FORM = replace(
    OAUTH2,
    grants={
        "authorization_code": ("grant_type", "code", "redirect_uri", "code_verifier"),
        "refresh_token": ("grant_type", "refresh_token"),
    },
)
_JSON = replace(_FORM, encode=_wire.encode_json, content_type="application/json")
_BASIC, _POST = ClientAuth.basic(), ClientAuth.post()


def _notion(values: Values) -> tuple[tuple[str, str], ...]:
    return (*OAUTH2.headers(values), ("Notion-Version", "2026-03-11"))


_SECONDS: Sequence[Lifetime] = (expires_in("expires_in_sec"), expires_in("expires_in"))


def _zoho_lifetime(document: Mapping[str, Any], now: float) -> tuple[float | None, str | None]:
    """`expires_in_sec` first: beside it, `expires_in` is in milliseconds."""
    first, second = (read(document, now) for read in _SECONDS)
    return second if first == (None, None) else first


# -- the vendors -------------------------------------------------------------------------------------------

VENDORS: Mapping[str, Vendor] = MappingProxyType(
    {
        "atlassian": Vendor(
            title="Atlassian",
            strategy=replace(
                _JSON,
                name="atlassian",
                errors={**RFC6749_ERRORS, "unauthorized_client": ErrorKind.PROBABLY_REJECTED},
                replay_leeway=600,
                idle_lifetime=90 * _DAY,
            ),
            auth=_POST,
            hosts={"": ("https://auth.atlassian.com/oauth/token", "https://api.atlassian.com")},
            facts=FACTS["atlassian"],
        ),
        "github": Vendor(
            title="GitHub Apps",
            strategy=replace(
                _FORM,
                name="github",
                errors={
                    **RFC6749_ERRORS,
                    "bad_verification_code": ErrorKind.REJECTED,
                    "incorrect_client_credentials": ErrorKind.CLIENT,
                    "redirect_uri_mismatch": ErrorKind.CLIENT,
                },
            ),
            auth=_POST,
            hosts={"": ("https://github.com/login/oauth/access_token", "https://api.github.com")},
            facts=FACTS["github"],
        ),
        "hubspot": Vendor(
            title="HubSpot",
            strategy=replace(
                _FORM,
                name="hubspot",
                fields=Fields(codes=("status", "error"), description=("message", "error_description")),
                errors={**RFC6749_ERRORS, "BAD_REFRESH_TOKEN": ErrorKind.REJECTED},
            ),
            auth=_POST,
            hosts={"": ("https://api.hubapi.com/oauth/2026-03/token", "https://api.hubapi.com")},
            facts=FACTS["hubspot"],
        ),
        "intuit": Vendor(
            title="Intuit (QuickBooks Online)",
            strategy=replace(_FORM, name="intuit", idle_lifetime=100 * _DAY),
            auth=_BASIC,
            hosts={
                "production": (
                    "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer",
                    "https://quickbooks.api.intuit.com",
                ),
                "sandbox": (
                    "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer",
                    "https://sandbox-quickbooks.api.intuit.com",
                ),
            },
            facts=FACTS["intuit"],
        ),
        "netatmo": Vendor(
            title="Netatmo",
            strategy=replace(_FORM, name="netatmo", unauthorized_statuses=(401, 403)),
            auth=_POST,
            hosts={"": ("https://api.netatmo.com/oauth2/token", "https://api.netatmo.com")},
            facts=FACTS["netatmo"],
        ),
        "notion": Vendor(
            title="Notion",
            strategy=replace(
                _JSON,
                name="notion",
                headers=_notion,
                fields=Fields(codes=("code", "error"), description=("message", "error_description")),
            ),
            auth=_BASIC,
            hosts={"": ("https://api.notion.com/v1/oauth/token", "https://api.notion.com/v1")},
            facts=FACTS["notion"],
        ),
        "salesforce": Vendor(
            title="Salesforce",
            strategy=replace(_FORM, name="salesforce", fields=Fields(extra=("instance_url",))),
            auth=_POST,
            hosts={
                "production": ("https://login.salesforce.com/services/oauth2/token", ""),
                "sandbox": ("https://test.salesforce.com/services/oauth2/token", ""),
            },
            facts=FACTS["salesforce"],
        ),
        "slack": Vendor(
            title="Slack, with token rotation",
            strategy=replace(
                _FORM,
                name="slack",
                bearer_types=("bot", "user"),
                errors={
                    **RFC6749_ERRORS,
                    "bad_client_secret": ErrorKind.CLIENT,
                    "invalid_client_id": ErrorKind.CLIENT,
                    "internal_error": ErrorKind.TRANSIENT,
                    "fatal_error": ErrorKind.TRANSIENT,
                    "ratelimited": ErrorKind.RATE_LIMITED,
                },
            ),
            auth=_BASIC,
            hosts={"": ("https://slack.com/api/oauth.v2.access", "https://slack.com/api")},
            facts=FACTS["slack"],
        ),
        "square": Vendor(
            title="Square",
            strategy=replace(
                _JSON,
                name="square",
                lifetime=expires_at("expires_at"),
                default_lifetime=_DAY,
                rotates=False,
            ),
            auth=_POST,
            hosts={
                "production": ("https://connect.squareup.com/oauth2/token", "https://connect.squareup.com"),
                "sandbox": (
                    "https://connect.squareupsandbox.com/oauth2/token",
                    "https://connect.squareupsandbox.com",
                ),
            },
            facts=FACTS["square"],
        ),
        "strava": Vendor(
            title="Strava",
            strategy=replace(
                _FORM,
                name="strava",
                fields=Fields(codes=("errors.0.resource", "error"), description=("errors.0.code", "message")),
                errors={
                    **RFC6749_ERRORS,
                    "RefreshToken": ErrorKind.REJECTED,
                    "AuthorizationCode": ErrorKind.PROBABLY_REJECTED,
                    "Application": ErrorKind.CLIENT,
                },
            ),
            auth=_POST,
            hosts={"": ("https://www.strava.com/oauth/token", "https://www.strava.com/api/v3")},
            facts=FACTS["strava"],
        ),
        "xero": Vendor(
            title="Xero",
            strategy=replace(_FORM, name="xero", replay_leeway=1800, idle_lifetime=60 * _DAY),
            auth=_BASIC,
            hosts={"": ("https://identity.xero.com/connect/token", "https://api.xero.com")},
            facts=FACTS["xero"],
        ),
        "zoho": Vendor(
            title="Zoho",
            strategy=replace(
                _FORM,
                name="zoho",
                fields=Fields(extra=("api_domain",)),
                lifetime=_zoho_lifetime,
                default_lifetime=3600,
                errors={
                    **RFC6749_ERRORS,
                    "invalid_code": ErrorKind.REJECTED,
                    "access_denied": ErrorKind.RATE_LIMITED,
                    "Access Denied": ErrorKind.RATE_LIMITED,
                },
                hints={"invalid_client": "Check that region is the one where the account is."},
                rotates=False,
            ),
            auth=_POST,
            hosts={
                "us": ("https://accounts.zoho.com/oauth/v2/token", "https://www.zohoapis.com"),
                "eu": ("https://accounts.zoho.eu/oauth/v2/token", "https://www.zohoapis.eu"),
                "in": ("https://accounts.zoho.in/oauth/v2/token", "https://www.zohoapis.in"),
                "au": ("https://accounts.zoho.com.au/oauth/v2/token", "https://www.zohoapis.com.au"),
                "jp": ("https://accounts.zoho.jp/oauth/v2/token", "https://www.zohoapis.jp"),
                "cn": ("https://accounts.zoho.com.cn/oauth/v2/token", "https://www.zohoapis.com.cn"),
                "ca": ("https://accounts.zohocloud.ca/oauth/v2/token", "https://www.zohoapis.ca"),
                "sa": ("https://accounts.zoho.sa/oauth/v2/token", "https://www.zohoapis.sa"),
            },
            facts=FACTS["zoho"],
        ),
    }
)
"""The vendors by name: `VENDORS["xero"].provider(client_id=..., client_secret=..., refresh_token=...)`."""
