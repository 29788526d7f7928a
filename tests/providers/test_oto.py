"""Oto: its configuration, its key, its helpers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from _known_secrets import (
    BY_REFRESH,
    NEW_ACCESS,
    REFRESH,
    assert_keeps_secrets,
    granted,
    oto,
    read,
    token_response,
)

from tokensession import ConfigurationError
from tokensession.providers import Health, Identity, Oto, Provider


def test_oto_is_a_provider_that_does_not_rotate_refresh_tokens() -> None:
    provider = oto()
    assert isinstance(provider, Provider)
    assert provider.rotates is False
    assert provider.replay_leeway == 0
    assert provider.credential == BY_REFRESH
    assert provider.api_headers == ()


@pytest.mark.parametrize(
    ("settings", "base_url", "origin"),
    [
        ({}, "https://api.tryoto.com", "https://api.tryoto.com"),
        ({"environment": "staging"}, "https://staging-api.tryoto.com", "https://staging-api.tryoto.com"),
        (
            {"base_url": "https://proxy.example:8443/oto/"},
            "https://proxy.example:8443/oto",
            "https://proxy.example:8443",
        ),
    ],
)
def test_the_token_may_go_to_the_environment_s_origin(
    settings: dict[str, Any], base_url: str, origin: str
) -> None:
    provider = Oto(refresh_token=REFRESH, **settings)
    assert provider.base_url == base_url
    assert provider.origins == (origin,)


def test_f40_the_key_differs_for_other_environments_addresses_and_accounts() -> None:
    """Oto: production and staging, two accounts, or two addresses never share a key."""
    keys = [
        Oto(refresh_token="rt-1").key,
        Oto(refresh_token="rt-2").key,
        Oto(refresh_token="rt-1", environment="staging").key,
        Oto(refresh_token="rt-1", base_url="https://proxy.example").key,
        Oto(refresh_token="rt-1", base_url="https://proxy.example:8443").key,
        Oto(refresh_token="rt-1", base_url="https://proxy.example", environment="staging").key,
    ]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith("oto/") for key in keys)
    assert "production" in keys[0]
    assert "staging" in keys[2]


def test_the_identity_has_the_environment_and_the_origin_of_the_token_url() -> None:
    """So that no environment uses the token of another one, whatever the key (rule 3)."""
    assert oto().identity == Identity("oto", "production", origin="https://api.tryoto.com")
    elsewhere = Oto(refresh_token="rt-1", environment="staging", base_url="https://proxy.example:8443/oto")
    assert elsewhere.identity == Identity("oto", "staging", origin="https://proxy.example:8443")
    assert elsewhere.former_keys == ()


def test_the_key_is_stable_and_contains_no_secret() -> None:
    assert oto().key == oto().key == f"oto/production/{BY_REFRESH.fingerprint}"
    assert_keeps_secrets(oto().key + repr(oto()))


@pytest.mark.parametrize(
    "token",
    [
        "",
        " rt",
        "rt ",
        "rt\n",
        "\u00a0rt",
        "rt\u00a0",
        "r\u00a0t",
        "r\u200bt",
        "r\tt",
        "rt\0",
        None,
        7,
        b"rt",
    ],
)
def test_a_refresh_token_with_stray_characters_is_an_error(token: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^refresh_token .*\.$"):
        Oto(refresh_token=token)


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ("", "an empty string"),
        ("Production", "'Production'"),
        ("live", "'live'"),
        ("prod ", "a string of 5 characters"),
        (REFRESH, f"a string of {len(REFRESH)} characters"),
        (None, "None"),
    ],
)
def test_an_unknown_environment_is_an_error_that_names_the_allowed_ones(environment: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=r"^environment must be ") as caught:
        Oto(refresh_token=REFRESH, environment=environment)
    assert str(caught.value) == f"environment must be 'production' or 'staging', not {shown}."


def test_from_env_reads_the_variables_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTO_REFRESH_TOKEN", REFRESH)
    monkeypatch.delenv("OTO_ENVIRONMENT", raising=False)
    monkeypatch.setenv("OTO_BASE_URL", "")
    assert Oto.from_env().key == oto().key
    monkeypatch.setenv("OTO_ENVIRONMENT", "staging")
    assert Oto.from_env().environment == "staging"
    monkeypatch.setenv("OTO_BASE_URL", "http://127.0.0.1:9999/")
    assert Oto.from_env().base_url == "http://127.0.0.1:9999"


def test_from_env_names_the_missing_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTO_REFRESH_TOKEN", raising=False)
    with pytest.raises(ConfigurationError, match="variables are not set: OTO_REFRESH_TOKEN"):
        Oto.from_env()


def test_from_env_does_not_show_a_value_that_is_not_utf_8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTO_REFRESH_TOKEN", REFRESH + "\udcff")
    with pytest.raises(ConfigurationError, match="not valid Unicode") as caught:
        Oto.from_env()
    assert caught.value.__context__ is None
    assert_keeps_secrets(str(caught.value))


def test_the_lifetime_is_what_the_response_says() -> None:
    assert read(oto(), token_response(granted(expires_in="1800"))).token.lifetime == 1800
    assert read(oto(), token_response(granted(expires_in="60"))).token.lifetime == 60
    assert read(oto(), token_response(granted(expires_in=None))).token.lifetime == 1800


def test_the_documented_response_is_read() -> None:
    body = {
        "access_token": NEW_ACCESS,
        "refresh_token": REFRESH_REPEATED,
        "success": True,
        "token_type": "Bearer",
        "expires_in": "3600",
    }
    issued = read(oto(), token_response(body, content_type="text/plain;charset=iso-8859-1"))
    assert issued.notes == ()
    assert issued.token.authorization == f"Bearer {NEW_ACCESS}"
    assert issued.token.refresh_token == REFRESH_REPEATED
    assert issued.token.lifetime == 3600


REFRESH_REPEATED = "AMf-vBx_repeated"


# -- helpers ------------------------------------------------------------------------------------


class Response:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self._body = body

    async def read(self) -> bytes:
        return self._body


class Session:
    """Answers GET requests, and records their URLs."""

    def __init__(self, status: int, body: Any) -> None:
        self.response = Response(status, body if isinstance(body, bytes) else json.dumps(body).encode())
        self.requested: list[str] = []

    @contextlib.asynccontextmanager
    async def get(self, url: str, /) -> AsyncIterator[Response]:
        self.requested.append(url)
        yield self.response


@pytest.mark.parametrize(
    ("status", "body", "health"),
    [
        (200, {"status": "ok"}, Health(True, 200, "ok")),
        (200, {"status": "degraded"}, Health(False, 200, "degraded")),
        (200, {}, Health(False, 200, "")),
        (200, {"status": None}, Health(False, 200, "None")),
        (200, b"<html>", Health(False, 200, "")),
        (200, b"", Health(False, 200, "")),
        (503, {"status": "ok"}, Health(False, 503, "ok")),
        (401, {"message": "Jwt is expired", "code": 401}, Health(False, 401, "")),
        (200, {"status": NEW_ACCESS}, Health(False, 200, "[redacted]")),
        (200, {"status": "\ud800"}, Health(False, 200, "?")),
    ],
)
def test_health_is_ok_only_if_the_api_says_so(status: int, body: Any, health: Health) -> None:
    session = Session(status, body)
    assert asyncio.run(oto().health(session)) == health
    assert session.requested == ["/rest/v2/healthCheck"]


def test_health_shortens_a_long_detail() -> None:
    health = asyncio.run(oto().health(Session(200, {"status": "word " * 10_000})))
    assert len(health.detail) < 200


@pytest.mark.parametrize(("status", "accepted"), [(200, True), (401, False), (403, False), (500, False)])
def test_the_token_test_sends_one_request_to_staging(status: int, accepted: bool) -> None:
    session = Session(status, b"")
    provider = Oto(refresh_token=REFRESH, environment="staging")
    assert asyncio.run(provider.test(session)) is accepted
    assert session.requested == ["/rest/v2/test"]


def test_the_token_test_is_an_error_in_production() -> None:
    session = Session(200, b"")
    with pytest.raises(ConfigurationError, match=r"must be 'staging' for test\(\), not 'production'"):
        asyncio.run(oto().test(session))
    assert session.requested == []
