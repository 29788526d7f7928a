"""Any server that keeps to RFC 6749."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from .. import _validate
from . import _wire
from .protocol import configured_credential
from .strategy import Strategy
from .strategy_provider import StrategyProvider

__all__ = ["OAUTH2_BASIC", "OAUTH2_POST", "OAuth2"]

_ACCEPT = ("Accept", "application/json")  # some servers answer form-encoded unless asked for JSON

OAUTH2_POST = Strategy(
    name="oauth2",
    grants={
        # Section 4.1.3, then section 6; client credentials in the body as section 2.3.1 permits.
        "authorization_code": ("grant_type", "code", "redirect_uri", "client_id", "client_secret"),
        "refresh_token": ("grant_type", "refresh_token", "scope", "client_id", "client_secret"),
    },
    headers=lambda _values: (_ACCEPT,),
)

OAUTH2_BASIC = replace(
    OAUTH2_POST,
    grants={
        "authorization_code": ("grant_type", "code", "redirect_uri"),
        "refresh_token": ("grant_type", "refresh_token", "scope"),
    },
    headers=lambda values: (
        _ACCEPT,
        ("Authorization", _wire.basic_auth(values["client_id"], values["client_secret"])),
    ),
)


class OAuth2(StrategyProvider):
    """A server by RFC 6749, with its refresh token and authorization code grants.

    `auth` is how the client authenticates: "basic" (section 2.3.1) or "post" (in the body; a public
    client leaves `client_secret` out). `base_url` is the API's address, the token server's own origin
    if left out. `rotates=False` only if the server documents that refresh tokens stay good.
    """

    def __init__(
        self,
        *,
        token_url: str,
        client_id: str,
        client_secret: str | None = None,
        auth: Literal["basic", "post"] = "basic",
        code: str | None = None,
        refresh_token: str | None = None,
        redirect_uri: str | None = None,
        scope: str | None = None,
        base_url: str | None = None,
        rotates: bool = True,
    ) -> None:
        _validate.one_of("auth", auth, ("basic", "post"))
        endpoint = _validate.url("token_url", token_url)
        if auth == "basic" or client_secret is not None:
            _validate.secret("client_secret", client_secret)
        for name, value in (("redirect_uri", redirect_uri), ("scope", scope)):
            if value is not None:
                _validate.text(name, value)
        strategy = OAUTH2_BASIC if auth == "basic" else OAUTH2_POST
        super().__init__(
            strategy if strategy.rotates == rotates else replace(strategy, rotates=rotates),
            identity=f"{endpoint}/{_validate.text('client_id', client_id)}",
            base_url=_validate.origin(endpoint) if base_url is None else base_url,
            token_url=token_url,
            values={
                "client_id": client_id,
                "client_secret": client_secret,
                "redirect_uri": redirect_uri,
                "scope": scope,
            },
            credential=configured_credential(code=code, refresh_token=refresh_token),
        )
