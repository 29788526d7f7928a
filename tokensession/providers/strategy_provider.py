"""A strategy with somebody's credentials in it."""

from __future__ import annotations

from collections.abc import Mapping

from .. import _validate
from ..errors import ConfigurationError, TokenSessionError
from .protocol import Credential, Issued, TokenRequest, TokenResponse
from .response import read as read_response
from .strategy import Strategy

__all__ = ["StrategyProvider"]


class StrategyProvider:
    """A strategy, and the credentials to follow it with. Implements `Provider`.

    `identity` tells one client of this server from another in the key. `base_url` is checked: https,
    or http on the loopback interface.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        identity: str,
        base_url: str,
        token_url: str,
        values: Mapping[str, str | None],
        credential: Credential | None,
        api_headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.strategy = strategy
        self.base_url = _validate.url("base_url", base_url)
        _validate.url("token_url", token_url)
        self.token_url = token_url  # as it is: "/o/token/" and "/o/token" are two addresses
        self.origins: tuple[str, ...] = (_validate.origin(self.base_url),)
        self.api_headers = api_headers
        self.credential = credential
        self._identity = identity
        self._values = {name: value for name, value in values.items() if value is not None}

    @property
    def key(self) -> str:
        """Provider, identity, the seed's fingerprint. "" without a seed: such a key would be shared."""
        return (
            f"{self.strategy.name}/{self._identity}/{self.credential.fingerprint}" if self.credential else ""
        )

    @property
    def rotates(self) -> bool:
        """Whether refresh tokens are spent by their use."""
        return self.strategy.rotates

    @property
    def replay_leeway(self) -> float:
        """Seconds within which a refresh token may be sent once more."""
        return self.strategy.replay_leeway

    def request(self, credential: Credential) -> TokenRequest:
        """The token request that redeems this credential."""
        strategy = self.strategy
        if credential.grant_type not in strategy.grants:
            raise ConfigurationError(
                f"{strategy.name} has no {credential.grant_type} grant.",
                intact="Nothing was sent.",
                todo=f"Sign in with one of: {', '.join(strategy.grants)}.",
            )
        known = {**self._values, "grant_type": credential.grant_type, **_named(credential)}
        pairs = [
            (strategy.rename.get(field, field), known[field])
            for field in strategy.grants[credential.grant_type]
            if field in known
        ]
        return TokenRequest(
            url=self.token_url,
            headers=(("Content-Type", strategy.content_type), *strategy.headers(self._values)),
            body=strategy.encode(pairs),
            secrets=self._secrets(credential),
        )

    def read(self, response: TokenResponse, credential: Credential, *, sent_at: float) -> Issued:
        """The token in the reply, or the typed error that it stands for."""
        try:
            return read_response(
                self.strategy, response, credential, sent_at=sent_at, secrets=self._secrets(credential)
            )
        except TokenSessionError as error:
            # Without the frames that read the reply: the client secret is among their locals, and some
            # programs report the locals of every frame.
            raise error.with_traceback(None)  # noqa: B904 - the same error, and not another one

    def _secrets(self, credential: Credential) -> tuple[str, ...]:
        secrets = (
            credential.secret,
            self._values.get("client_secret", ""),
            self.credential.secret if self.credential else "",
        )
        return tuple(filter(None, secrets))

    def __repr__(self) -> str:
        credential = (
            f"{self.credential.grant_type} {self.credential.fingerprint}" if self.credential else "no seed"
        )
        return f"<{type(self).__name__} {self._identity} at {self.base_url}, {credential}>"


def _named(credential: Credential) -> dict[str, str]:
    """The secret under the name it has in a request body."""
    return {"code" if credential.grant_type == "authorization_code" else "refresh_token": credential.secret}
