"""Oto's helpers: its health, and the test of a token."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from _known_secrets import NEW_ACCESS, oto

from tokensession import ConfigurationError
from tokensession.providers import Health


class Session:
    """Answers GET requests, and records their URLs."""

    def __init__(self, status: int, body: Any) -> None:
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.requested: list[str] = []

    @contextlib.asynccontextmanager
    async def get(self, url: str, /) -> AsyncIterator[Session]:
        self.requested.append(url)
        yield self

    async def read(self) -> bytes:
        return self.body


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
    assert asyncio.run(oto(environment="staging").test(session)) is accepted
    assert session.requested == ["/rest/v2/test"]


def test_the_token_test_is_an_error_in_production() -> None:
    session = Session(200, b"")
    with pytest.raises(ConfigurationError, match=r"must be 'staging' for test\(\), not 'production'"):
        asyncio.run(oto().test(session))
    assert session.requested == []
