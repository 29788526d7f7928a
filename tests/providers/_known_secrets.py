"""Recognizable secrets, and providers that use them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from _shown import spellings

from tokensession.providers import (
    Credential,
    Issued,
    OAuth2,
    Oto,
    Priava,
    Strategy,
    StrategyProvider,
    TokenResponse,
)

AWKWARD = ' %&+£€"\\'
REFRESH = f"rt{AWKWARD}ZQXWrefresh/7:x"
CLIENT_SECRET = f"cs{AWKWARD}ZQXWclient/8:y"
CODE = f"co{AWKWARD}ZQXWcode/9:z"
CONFIGURED = (REFRESH, CLIENT_SECRET, CODE)

NEW_ACCESS = "at-ZQXWaccess|4711:$!*-and-more"
NEW_REFRESH = "nr-ZQXWrotated~4712+/==-and-more"
ISSUED = (NEW_ACCESS, NEW_REFRESH)

BY_REFRESH = Credential("refresh_token", REFRESH)
BY_CODE = Credential("authorization_code", CODE)
SENT_AT = 1_750_000_000.0
DATE = "Sun, 15 Jun 2025 15:06:40 GMT"  # SENT_AT
CALLBACK = "https://my.app.com/oauth2callback"

_CLIENT = {"client_id": "client-7", "client_secret": CLIENT_SECRET}


def oto(**changes: Any) -> Oto:
    return Oto(**{"refresh_token": REFRESH} | changes)


def priava(**changes: Any) -> Priava:
    """With a refresh token, unless there is a code."""
    credential = {} if "code" in changes else {"refresh_token": REFRESH}
    return Priava(**{**_CLIENT, "redirect_uri": CALLBACK, "region": "EU", **credential, **changes})


def oauth2(**changes: Any) -> OAuth2:
    """With a refresh token, unless there is a code."""
    credential = {} if "code" in changes else {"refresh_token": REFRESH}
    return OAuth2(**{"token_url": "https://id.example.com/token", **_CLIENT, **credential, **changes})


PROVIDERS = {"oto": oto, "priava": priava, "oauth2": oauth2}


def oauth2_with(*, fields: dict[str, Any] | None = None, **changes: Any) -> OAuth2:
    """`OAuth2` with changes to its strategy, and to the strategy's fields."""
    provider = oauth2()
    strategy = provider.strategy
    changed = replace(strategy.fields, **(fields or {}))
    provider.strategy = replace(strategy, fields=changed, **changes)
    return provider


def of_strategy(
    strategy: Strategy, base_url: str = "https://api.example.com", **values: str
) -> StrategyProvider:
    return StrategyProvider(
        strategy,
        identity="client-7",
        base_url=base_url,
        token_url=f"{base_url}/token",
        values={"client_id": "id-1", "client_secret": "se-1", **values},
        credential=BY_REFRESH,
    )


def token_response(body: Any, status: int = 200, **headers: str) -> TokenResponse:
    """A response with these bytes, or this document as JSON. `retry_after=` is the header Retry-After."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return TokenResponse(
        status, tuple((name.replace("_", "-"), value) for name, value in headers.items()), data
    )


def granted(**changes: Any) -> dict[str, Any]:
    """The document of a good response, with changes; None leaves a field out."""
    document = {
        "access_token": NEW_ACCESS,
        "refresh_token": NEW_REFRESH,
        "token_type": "Bearer",
        "expires_in": 3600,
    }
    return {name: value for name, value in (document | changes).items() if value is not None}


def read(provider: StrategyProvider, answer: TokenResponse, credential: Credential = BY_REFRESH) -> Issued:
    return provider.read(answer, credential, sent_at=SENT_AT)


def assert_keeps_secrets(text: str) -> None:
    """The text has none of the secrets in any spelling, nor the part of them that is easy to recognize."""
    folded = text.casefold()
    for secret in (*CONFIGURED, *ISSUED):
        for spelling in spellings(secret):
            assert spelling.casefold() not in folded, f"the secret {spelling!r} is in {text!r}"
    assert "zqxw" not in folded, text
