"""What identifies a token request. When it counts as sent, and what becomes of it, is in tests/core."""

from __future__ import annotations

from typing import Any

import pytest

from tokensession._refresh.request import TokenRequests
from tokensession.policy import Policy
from tokensession.providers import ClientAuth, OAuth2
from tokensession.providers.protocol import Credential
from tokensession.testing import FakeClock, ScriptedTransport

REFRESH = Credential("refresh_token", "rt-1")
CODE = Credential("authorization_code", "co-1")
USUAL: dict[str, Any] = {
    "token_url": "https://id.example.com/token",
    "client_id": "client-1",
    "client_secret": "secret-1",
    "redirect_uri": "https://app.example.com/back",
    "scope": "read",
    "auth": ClientAuth.post(),
}


def fingerprint(credential: Credential, **changes: Any) -> str:
    provider = OAuth2(**USUAL | changes)
    return TokenRequests(provider, ScriptedTransport(), Policy(), FakeClock()).fingerprint(credential)


@pytest.mark.parametrize(
    ("credential", "changes", "same"),
    [
        (REFRESH, {}, True),
        (REFRESH, {"token_url": "https://id.example.com/token/"}, False),
        (REFRESH, {"token_url": "https://id.example.org/token"}, False),
        (REFRESH, {"client_id": "client-2"}, False),
        (REFRESH, {"client_secret": "secret-2"}, False),
        (REFRESH, {"scope": "read write"}, False),
        (REFRESH, {"auth": ClientAuth.basic()}, False),
        (REFRESH, {"redirect_uri": "https://app.example.com/other"}, True),  # it is not in this request
        (REFRESH, {"base_url": "https://api.example.com"}, True),
        (CODE, {"redirect_uri": "https://app.example.com/other"}, False),
        (CODE, {"scope": "read write"}, True),
    ],
)
def test_f21_a_request_is_identified_by_all_that_is_sent_and_nothing_else(
    credential: Credential, changes: dict[str, Any], same: bool
) -> None:
    """If a refusal is remembered and any of it changes, one more request is made."""
    assert (fingerprint(credential) == fingerprint(credential, **changes)) is same


def test_f45_the_fingerprint_of_a_request_shows_no_secret() -> None:
    """It is stored, and may appear in logs."""
    shown = fingerprint(REFRESH)
    assert len(shown) == 16
    assert set(shown) <= set("0123456789abcdef")
