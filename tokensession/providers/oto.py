"""`Oto`: a permanent refresh token, sent as JSON for an access token of about one hour.

Documented: the URLs, the body with one key, the bearer scheme, the permanent refresh token. Seen in public
material: the response (`expires_in` is a string, the type is text/plain), the error codes, the response of
the health check. Unknown: the complete list of error codes. The lifetime is what `expires_in` says; one help
page says an hour and another one half an hour.
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
    default_lifetime=1800,  # the shorter of the two lifetimes in the provider's pages
    errors={
        **RFC6749_ERRORS,
        "OTO1083": ErrorKind.REJECTED,
        "OTO1105": ErrorKind.RATE_LIMITED,
        "OTO1143": ErrorKind.RATE_LIMITED,
        # Codes of the identity service behind it, in case they come through:
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
    """The part of an AuthedSession that the helpers need."""

    def get(self, url: str, /) -> AbstractAsyncContextManager[Any]: ...


@dataclass(frozen=True, slots=True)
class Health:
    """The result of Oto's health check."""

    ok: bool
    """Whether the API says that it works."""
    status: int
    """The HTTP status. A 401 is about your token, and does not mean that the API is down."""
    detail: str
    """What the API says about its state, redacted and shortened."""


class Oto(StrategyProvider):
    """Oto's shipping API.

    - `refresh_token`: from Settings → API Integrations → Connect. Oto does not rotate it.
    - `environment`: tokens of production and staging are not interchangeable.
    - `base_url`: an address other than the environment's, for a gateway or a test server.

    A pickle of it contains its secrets. Raises `ConfigurationError` for arguments that cannot work.
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
            environment=environment,
        )

    @classmethod
    def from_env(cls) -> Self:
        """Configured by OTO_REFRESH_TOKEN and, if they are set, OTO_ENVIRONMENT and OTO_BASE_URL."""
        names = {"refresh_token": True, "environment": False, "base_url": False}
        found: dict[str, Any] = _validate.environment("OTO", names)
        return cls(**found)

    async def health(self, session: _Session) -> Health:
        """Ask the API whether it works, with an `AuthedSession` of this provider."""
        async with session.get("/rest/v2/healthCheck") as response:
            body = await response.read()
        try:
            detail = str(_wire.parse_json(body).get("status", ""))
        except InvalidTokenResponse:
            detail = ""
        ok = response.status == 200 and detail == "ok"
        return Health(ok, response.status, excerpt(detail.encode("utf-8", "replace"), ()))

    async def test(self, session: _Session) -> bool:
        """Ask the staging API whether it accepts the token.

        Raises `ConfigurationError` in production, which has no such test.
        """
        if self.environment != "staging":
            raise ConfigurationError(
                f"environment must be 'staging' for test(), not {self.environment!r}.",
                todo="Use health() in production.",
            )
        async with session.get("/rest/v2/test") as response:
            return bool(response.status == 200)
