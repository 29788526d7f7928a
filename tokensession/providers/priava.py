"""`Priava`: form-encoded grants with a tenant region, six-hour tokens, rotating refresh tokens.

Documented: the request bodies to the byte (with `redirect_uri` also on refresh, which RFC 6749 does not
require), the region header, the response, the shape of an error. Seen: the two base addresses, the rate limit
of 450 requests in five minutes and its body. Inferred: refresh tokens rotate, and the old one is spent.
Unknown: the lifetime of a refresh token, the list of error codes, the shape of a 401, and whether API
requests need the region too.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from .. import _validate
from .protocol import configured_credential
from .strategy import Fields, Strategy, Values
from .strategy_provider import StrategyProvider

__all__ = ["PRIAVA", "Priava"]

_BASE = "https://api.priava.com/api"
_REGIONS = ("APAC", "EU", "US")


def _region(values: Values) -> tuple[tuple[str, str], ...]:
    return (("TenantRegion", values["region"]),)


PRIAVA = Strategy(
    name="priava",
    grants={
        "authorization_code": ("grant_type", "client_id", "client_secret", "code", "redirect_uri"),
        "refresh_token": ("grant_type", "client_id", "client_secret", "refresh_token", "redirect_uri"),
    },
    content_type="application/x-www-form-urlencoded;charset=utf-8",  # no space, as documented
    headers=_region,
    fields=Fields(retry_after=("retry-after",)),
    default_lifetime=21600,
    rotates=True,
)


class Priava(StrategyProvider):
    """Priava's venue API. Its refresh tokens rotate, so you need a persistent store.

    - `client_id`, `client_secret`, `redirect_uri` and `code`: an administrator generates them in Priava.
    - `region`: the tenant's region, sent as TenantRegion.
    - `code` or `refresh_token`: the credential to start from. Without one, call `sign_in` later.
    - `base_url`: "https://api-sandbox.priava.com/api" for the sandbox. The default is production.
    - `region_on_requests`: send TenantRegion with API requests too. The documentation does not ask for it.

    A pickle of it contains its secrets. Raises `ConfigurationError` for arguments that cannot work.
    """

    def __init__(
        self,
        *,
        client_id: str,
        client_secret: str,
        redirect_uri: str,
        region: Literal["APAC", "EU", "US"],
        code: str | None = None,
        refresh_token: str | None = None,
        base_url: str | None = None,
        region_on_requests: bool = False,
    ) -> None:
        _validate.one_of("region", region, _REGIONS)
        base = _validate.url("base_url", _BASE if base_url is None else base_url)
        place = region if base_url is None else f"{region}@{base}"
        super().__init__(
            PRIAVA,
            identity=f"{place}/{_validate.text('client_id', client_id)}",
            base_url=base,
            token_url=base + "/rest/oauth/token",
            values={
                "client_id": client_id,
                "client_secret": _validate.secret("client_secret", client_secret),
                "redirect_uri": _validate.text("redirect_uri", redirect_uri),
                "region": region,
            },
            credential=configured_credential(code=code, refresh_token=refresh_token),
            api_headers=(("TenantRegion", region),) if region_on_requests else (),
            environment=region,
        )

    @classmethod
    def from_env(cls) -> Self:
        """Configured by PRIAVA_CLIENT_ID, PRIAVA_CLIENT_SECRET, PRIAVA_REDIRECT_URI and PRIAVA_REGION.

        PRIAVA_CODE or PRIAVA_REFRESH_TOKEN, and PRIAVA_BASE_URL, are used if they are set.
        """
        names = dict.fromkeys(("client_id", "client_secret", "redirect_uri", "region"), True)
        names |= dict.fromkeys(("code", "refresh_token", "base_url"), False)
        found: dict[str, Any] = _validate.environment("PRIAVA", names)
        return cls(**found)
