"""Oto: a permanent refresh token, redeemed as JSON for an access token of one hour.

Documented: the URLs, the one-key body, the bearer scheme, the permanent refresh token. Seen in
public material: the reply (a string `expires_in`, served as text/plain), the error codes, the
health check's answer. Not known: a full list of codes. The life of a token is what `expires_in`
says; one help page says an hour and another half of one.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from .. import _validate
from .._redact import excerpt
from ..errors import ConfigurationError, InvalidTokenResponse
from . import _wire
from .protocol import Credential
from .strategy import RFC6749_ERRORS, ErrorKind, Fields, Strategy
from .strategy_provider import StrategyProvider

__all__ = ["OTO", "Health", "Oto"]

_BASES = {"production": "https://api.tryoto.com", "staging": "https://staging-api.tryoto.com"}

OTO = Strategy(
    name="oto",
    grants={"refresh_token": ("refresh_token",)},
    encode=_wire.encode_json,
    content_type="application/json",
    fields=Fields(
        codes=("otoErrorCode", "error.message", "error", "errorCode"),
        description=("otoErrorMessage", "errorMsg", "message", "error_description"),
    ),
    default_lifetime=1800,  # the shorter of the two lives that the provider's pages state
    errors={
        **RFC6749_ERRORS,
        "OTO1083": ErrorKind.REJECTED,
        "OTO1105": ErrorKind.RATE_LIMITED,
        "OTO1143": ErrorKind.RATE_LIMITED,
        # Those of the identity service underneath, should they leak through:
        "INVALID_REFRESH_TOKEN": ErrorKind.REJECTED,
        "TOKEN_EXPIRED": ErrorKind.REJECTED,
        "USER_DISABLED": ErrorKind.REJECTED,
        "USER_NOT_FOUND": ErrorKind.REJECTED,
    },
    hints={
        "OTO1083": "Check that the refresh token belongs to this environment: production and staging "
        "tokens are not interchangeable. Then connect again in Settings → API Integrations.",
    },
    rotates=False,
)


class _Session(Protocol):
    """As much of an AuthedSession as the helpers need."""

    def get(self, url: str, /) -> AbstractAsyncContextManager[Any]: ...


@dataclass(frozen=True, slots=True)
class Health:
    """The health check's answer. A 401 is about our token, and no sign of an outage."""

    ok: bool
    status: int
    detail: str


class Oto(StrategyProvider):
    """Oto's shipping API.

    `refresh_token` comes from Settings → API Integrations → Connect. `environment` is part of the
    key. `base_url` replaces the environment's address, for a proxy or a test server.
    """

    def __init__(
        self,
        *,
        refresh_token: str,
        environment: Literal["production", "staging"] = "production",
        base_url: str | None = None,
    ) -> None:
        _validate.one_of("environment", environment, tuple(_BASES))
        base = _validate.url("base_url", _BASES[environment] if base_url is None else base_url)
        self.environment = environment
        super().__init__(
            OTO,
            identity=environment if base_url is None else f"{environment}@{base}",
            base_url=base,
            token_url=base + "/rest/v2/refreshToken",
            values={},
            credential=Credential("refresh_token", _validate.secret("refresh_token", refresh_token)),
        )

    @classmethod
    def from_env(cls) -> Self:
        """From OTO_REFRESH_TOKEN, and OTO_ENVIRONMENT and OTO_BASE_URL if they are set."""
        names = {"refresh_token": True, "environment": False, "base_url": False}
        found: dict[str, Any] = _validate.environment("OTO", names)
        return cls(**found)

    async def health(self, session: _Session) -> Health:
        """Ask the API whether it is well."""
        async with session.get("/rest/v2/healthCheck") as response:
            body = await response.read()
        try:
            detail = str(_wire.parse_json(body).get("status", ""))
        except InvalidTokenResponse:
            detail = ""
        ok = response.status == 200 and detail == "ok"
        return Health(ok, response.status, excerpt(detail.encode("utf-8", "replace"), ()))

    async def test(self, session: _Session) -> bool:
        """Ask the staging API whether it accepts our token."""
        if self.environment != "staging":
            raise ConfigurationError(
                "The token test exists in the staging environment only.",
                intact="Nothing was sent.",
                todo='Use Oto(environment="staging"), or health() in production.',
            )
        async with session.get("/rest/v2/test") as response:
            return bool(response.status == 200)
