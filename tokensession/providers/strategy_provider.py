"""`StrategyProvider`: a strategy with the credentials of one client."""

from __future__ import annotations

from collections.abc import Mapping

from .. import _validate
from ..errors import ConfigurationError, TokenSessionError
from ..token import fingerprint
from .protocol import Credential, Identity, Issued, TokenRequest, TokenResponse
from .response import read as read_response
from .strategy import Strategy

__all__ = ["StrategyProvider"]


class StrategyProvider:
    """A provider made of a `Strategy` and the credentials of one client.

    - `strategy`: how the server expects token requests, and how it answers.
    - `identity` distinguishes this client from others of the same server in the key: a region, a client id.
    - `environment`: the environment, region or tenant of the tokens. It is stored with them, so that another
      one never uses them. It must contain neither a secret nor a path. The default is `identity`.
    - `base_url`: the API's address. Relative request URLs are appended to it.
    - `token_url`: the token endpoint. It is used as it is: "/o/token/" and "/o/token" are two addresses.
    - `values`: the configuration that the strategy's `grants` and `headers` name, such as `client_id`. None
      means not configured.
    - `credential`: the refresh token or code to start from, or None if you call `sign_in` later.
    - `api_headers`: (name, value) pairs for every API request.

    Both URLs must be https, or http on the loopback interface. Raises `ConfigurationError` otherwise.

    It can be pickled if its strategy can, which means that the strategy's functions have names in a module. A
    pickle contains the secrets.
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
        environment: str | None = None,
    ) -> None:
        self.strategy = strategy
        self.base_url: str = _validate.url("base_url", base_url)
        _validate.url("token_url", token_url)
        self.token_url = token_url
        self.origins: tuple[str, ...] = (_validate.origin(self.base_url),)
        self.api_headers = api_headers
        self.credential = credential
        self._name = identity
        self._values = {name: value for name, value in values.items() if value is not None}
        self.identity: Identity = Identity(
            provider=strategy.name,
            environment=identity if environment is None else environment,
            client_id=self._values.get("client_id", ""),
            origin=_validate.origin(token_url),
            scope=_requested(self._values),
        )

    @property
    def key(self) -> str:
        """The default key: strategy, identity, fingerprint of the configured credential.

        If the refresh token can be used again, several sources may use it with different scopes, so there is
        a fingerprint of the requested scope too. "" without a credential: different accounts would share
        such a key.
        """
        key = self._key_without_scope
        credential, scope = self.credential, self.identity.scope
        if credential is None or self.rotates or credential.grant_type != "refresh_token" or not scope:
            return key
        return f"{key}/{fingerprint(scope)}"

    @property
    def former_keys(self) -> tuple[str, ...]:
        """The default keys of earlier versions, if they differ: a token may still be stored under one."""
        former = self._key_without_scope
        return (former,) if former != self.key else ()

    @property
    def _key_without_scope(self) -> str:
        if self.credential is None:
            return ""
        return f"{self.strategy.name}/{self._name}/{self.credential.fingerprint}"

    @property
    def rotates(self) -> bool:
        """Whether a refresh token can be used only once."""
        return self.strategy.rotates

    @property
    def replay_leeway(self) -> float:
        """Seconds within which the server accepts the same refresh token again."""
        return self.strategy.replay_leeway

    def request(self, credential: Credential) -> TokenRequest:
        """The token request that redeems this credential.

        Raises `ConfigurationError` if the server does not support its grant type.
        """
        strategy = self.strategy
        if credential.grant_type not in strategy.grants:
            raise ConfigurationError(
                f"{strategy.name} does not support the {credential.grant_type} grant.",
                intact="The credential was not sent.",
                todo=f"Use one of: {', '.join(strategy.grants)}.",
            )
        known = {**self._values, "grant_type": credential.grant_type, **_field(credential)}
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
        """The token in the response. Raises the errors that `Provider.read` names."""
        try:
            return read_response(
                self.strategy,
                response,
                credential,
                sent_at=sent_at,
                secrets=self._secrets(credential),
                scope=self._values.get("scope"),
            )
        except TokenSessionError as error:
            # Drop the frames that read the response: the client secret is among their locals, and some
            # programs report the locals of every frame.
            raise error.with_traceback(None)  # noqa: B904 - the same error, not another one

    def _secrets(self, credential: Credential) -> tuple[str, ...]:
        """What to redact from everything that is said about a request with this credential."""
        secrets = (
            credential.secret,
            self._values.get("client_secret", ""),
            self.credential.secret if self.credential else "",
        )
        return tuple(filter(None, secrets))

    def __repr__(self) -> str:
        credential = self.credential
        start = f"{credential.grant_type} {credential.fingerprint}" if credential else "no credential"
        return f"<{type(self).__name__} {self._name} at {self.base_url}, {start}>"


def _field(credential: Credential) -> dict[str, str]:
    """The credential under its RFC 6749 field name."""
    return {"code" if credential.grant_type == "authorization_code" else "refresh_token": credential.secret}


def _requested(values: Mapping[str, str]) -> str:
    """The requested scope, audience and resource as one text, whatever the order of their words."""
    words = {
        word if name == "scope" else f"{name}={word}"
        for name in ("scope", "audience", "resource")
        for word in values.get(name, "").split()
    }
    return " ".join(sorted(words))
