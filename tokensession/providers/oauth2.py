"""`OAuth2`: any server that follows RFC 6749."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from .. import _validate
from ..errors import ConfigurationError
from . import _wire
from .protocol import configured_credential
from .strategy import Strategy, Values
from .strategy_provider import StrategyProvider

__all__ = ["OAUTH2_BASIC", "OAUTH2_POST", "OAuth2"]

_ACCEPT = ("Accept", "application/json")  # without it, some servers send a form-encoded response


def _accept(_values: Values) -> tuple[tuple[str, str], ...]:
    return (_ACCEPT,)


def _accept_and_basic(values: Values) -> tuple[tuple[str, str], ...]:
    return _ACCEPT, ("Authorization", _wire.basic_auth(values["client_id"], values["client_secret"]))


OAUTH2_POST = Strategy(
    name="oauth2",
    grants={
        # RFC 6749, sections 4.1.3 and 6. Section 2.3.1 permits client credentials in the body.
        "authorization_code": ("grant_type", "code", "redirect_uri", "client_id", "client_secret"),
        "refresh_token": ("grant_type", "refresh_token", "scope", "client_id", "client_secret"),
    },
    headers=_accept,
)

OAUTH2_BASIC = replace(
    OAUTH2_POST,
    grants={
        "authorization_code": ("grant_type", "code", "redirect_uri"),
        "refresh_token": ("grant_type", "refresh_token", "scope"),
    },
    headers=_accept_and_basic,
)


class OAuth2(StrategyProvider):
    """Any server that follows RFC 6749, with its refresh token and authorization code grants.

    - `token_url`: the token endpoint.
    - `auth`: how the client authenticates (section 2.3.1): "basic" sends an Authorization header, "post"
      sends the client credentials in the body. A public client uses "post" without a `client_secret`.
    - `code` or `refresh_token`: the credential to start from. Without one, call `sign_in` later.
    - `redirect_uri`: what the code was requested with. `scope`: sent with each refresh.
    - `base_url`: the API's address. The default is the origin of `token_url`.
    - `rotates`: pass False only if the server documents that a refresh token stays valid after use.

    A pickle of it contains its secrets. Raises `ConfigurationError` for arguments that cannot work.
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
        address = _validate.url("token_url", token_url)
        if auth == "basic" and client_secret is None:
            raise ConfigurationError(
                "client_secret is missing, and auth='basic' needs it.",
                todo="Pass it, or auth='post' for a public client.",
            )
        if client_secret is not None:
            _validate.secret("client_secret", client_secret)
        for name, value in (("redirect_uri", redirect_uri), ("scope", scope)):
            if value is not None:
                _validate.text(name, value)
        strategy = OAUTH2_BASIC if auth == "basic" else OAUTH2_POST
        super().__init__(
            strategy if strategy.rotates == rotates else replace(strategy, rotates=rotates),
            identity=f"{address}/{_validate.text('client_id', client_id)}",
            base_url=_validate.origin(address) if base_url is None else base_url,
            token_url=token_url,
            values={
                "client_id": client_id,
                "client_secret": client_secret,
                "redirect_uri": redirect_uri,
                "scope": scope,
            },
            credential=configured_credential(code=code, refresh_token=refresh_token),
            environment="",  # its identity contains the URL's path
        )
