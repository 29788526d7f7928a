"""The contract between providers and transports.

A provider builds a `TokenRequest`, and turns a `TokenResponse` into a `Token` or a typed error. It does no
I/O and reads no clock. A transport sends the request and returns the response.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from .. import _validate
from ..errors import ConfigurationError, InvalidTokenResponse
from ..token import Token, fingerprint

__all__ = [
    "Credential",
    "Identity",
    "Issued",
    "Provider",
    "TokenRequest",
    "TokenResponse",
    "TokenTransport",
]

GrantType: TypeAlias = Literal["refresh_token", "authorization_code"]
"""RFC 6749's names of the two grants: sections 6 and 4.1.3."""


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """What is redeemed for a token: a refresh token or an authorization code.

    `repr` shows its fingerprint, never the secret.
    """

    grant_type: GrantType
    """"refresh_token" or "authorization_code"."""
    secret: str
    """The refresh token or code itself."""

    @property
    def fingerprint(self) -> str:
        """What identifies it in keys and records: sixteen hex digits."""
        return fingerprint(self.secret)

    def __repr__(self) -> str:
        return f"<Credential {self.grant_type} {self.fingerprint}>"


def configured_credential(*, code: str | None, refresh_token: str | None) -> Credential | None:
    """The configured refresh token or code, or None if you sign in later.

    Raises `ConfigurationError` if both are given, or if one cannot be sent.
    """
    if code is not None and refresh_token is not None:
        raise ConfigurationError("Pass code or refresh_token, not both.")
    if refresh_token is not None:
        return Credential("refresh_token", _validate.secret("refresh_token", refresh_token))
    if code is not None:
        return Credential("authorization_code", _validate.secret("code", code))
    return None


@dataclass(frozen=True, slots=True, repr=False)
class TokenRequest:
    """One POST request to a token endpoint, ready to be sent. `repr` shows neither headers nor body."""

    url: str
    """The token endpoint. It is sent as it is, without normalization."""
    headers: tuple[tuple[str, str], ...]
    """(name, value) pairs."""
    body: bytes
    """The encoded body, which `Content-Type` describes."""
    secrets: tuple[str, ...] = ()
    """The secrets in it, so that you can redact them wherever you show something about it."""

    def __repr__(self) -> str:
        return f"<TokenRequest POST {self.url} {len(self.body)} bytes>"


@dataclass(frozen=True, slots=True, repr=False)
class TokenResponse:
    """The response of a token endpoint, with any status. `repr` shows neither headers nor body."""

    status: int
    """The HTTP status, such as 200."""
    headers: tuple[tuple[str, str], ...]
    """(name, value) pairs. The names are lower-case."""
    body: bytes
    """The whole body, decompressed."""

    def header(self, name: str) -> str | None:
        """The first value of a header, by its lower-case name, or None."""
        return next((value for key, value in self.headers if key == name), None)

    def __repr__(self) -> str:
        return f"<TokenResponse {self.status} {len(self.body)} bytes>"


@dataclass(frozen=True, slots=True)
class Issued:
    """What a token response brought."""

    token: Token
    """The new token. Its `access_token` is "" if the response had only a new refresh token for us."""
    notes: tuple[str, ...] = ()
    """What was unexpected in the response, for people. Each is reported as `events.UnexpectedResponse`."""
    problem: InvalidTokenResponse | None = None
    """Why this token must not be used, or None. It is stored first, and then this is raised.

    A 2xx that brings a token has spent the refresh token, whatever else is wrong with the response. So the
    new refresh token must not be lost with the error.
    """


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose tokens these are. Stored with them, so that no provider ever sends another one's.

    Contains no secret and no path. An empty field is unknown, and matches everything.
    """

    provider: str = ""
    """The strategy's name, such as "oauth2"."""
    environment: str = ""
    """The environment, region or tenant."""
    client_id: str = ""
    origin: str = ""
    """The token endpoint's origin, such as "https://id.example.com"."""
    scope: str = ""
    """What was requested: scope, audience and resource, sorted, so that two orders of words are equal."""


@runtime_checkable
class Provider(Protocol):
    """One client of one OAuth server: what a `ManagedSource` needs to know about it.

    A provider is configuration and pure functions. It does no I/O, and all its attributes are constant. For
    most servers you need no class: pass a `Strategy` to `StrategyProvider`.

    A provider may also have `identity`, an `Identity` that is stored with its tokens, and `former_keys`, the
    default keys of its earlier versions. Without them, the identity is unknown and there are no former keys.
    A provider whose requests differ each time, because they are signed with a time, also needs
    `request_fingerprint(credential)`: text that stays the same until its configuration changes. A rejection
    is remembered for that text. Without it, it is remembered for the whole request.
    """

    @property
    def key(self) -> str:
        """The default key in the store: provider, environment or region, client, credential's fingerprint.

        Contains no secret. "" without a configured credential: different accounts would share such a key.
        """
        ...

    @property
    def base_url(self) -> str:
        """What relative request URLs are appended to. It may have a path, and does not end with a slash."""
        ...

    @property
    def origins(self) -> tuple[str, ...]:
        """Where this provider's tokens may be sent: `scheme://host[:port]`."""
        ...

    @property
    def api_headers(self) -> tuple[tuple[str, str], ...]:
        """(name, value) pairs that every API request needs besides Authorization."""
        ...

    @property
    def rotates(self) -> bool:
        """Whether a refresh token can be used only once. If in doubt, True: that never loses a token."""
        ...

    @property
    def replay_leeway(self) -> float:
        """Seconds after a token request within which the server accepts the same refresh token again, or 0.

        Only what the server documents. It matters only if the provider rotates refresh tokens.
        """
        ...

    @property
    def credential(self) -> Credential | None:
        """The configured credential: the refresh token or code to start from, or None.

        If it is another one than last time, you have signed in again: then it takes precedence over the
        stored token.
        """
        ...

    def request(self, credential: Credential) -> TokenRequest:
        """The token request that redeems this credential.

        Raises `ConfigurationError` if the server does not support its grant type.
        """
        ...

    def read(self, response: TokenResponse, credential: Credential, *, sent_at: float) -> Issued:
        """The token in the response to a token request.

        `credential` is what was redeemed. If the response has no refresh token, the new token keeps this
        one. `sent_at` is when the request was sent, in seconds since the epoch: it becomes the token's
        `obtained_at`. Raises `GrantRejected`, `ClientRejected`, `RateLimited`, `TokenUnavailable`,
        `OutcomeUnknown` or `InvalidTokenResponse`, and nothing else. A 2xx with a token that must not
        be used is no error: see `Issued.problem`.
        """
        ...


class TokenTransport(Protocol):
    """Sends token requests. `AiohttpTransport` is one; write another to use another HTTP library.

    A transport may also have `async def reserve(self, url: str) -> Callable[[], None]`. It waits for a free
    connection to the origin of this token URL, and returns a function that releases it. It is awaited before
    a key is claimed, so that waiting for a connection holds up no other process. A transport without it has
    no bound on connections.
    """

    async def send(
        self,
        request: TokenRequest,
        *,
        connect: float,
        total: float,
        on_sending: Callable[[], Awaitable[None]] | None = None,
    ) -> TokenResponse:
        """Send one POST request, exactly once. Follow no redirect, and do not retry.

        `connect` is the time-out for opening the connection, in seconds. After `total` seconds you are
        cancelled: give your HTTP library no shorter limit.

        Await `on_sending` once, just before the first byte of the request leaves: after the name was looked
        up, the connection opened, TLS agreed, and the proxy has answered its CONNECT. Until then nothing can
        have been spent. If it raises, send nothing, and let its exception through. Without this parameter,
        the request counts as sent from the moment you are called.

        Returns the response, whatever its status. Raises `NotSent` if the connection could not be opened,
        `OutcomeUnknown` if the request may have arrived but no complete response came back, and
        `InvalidTokenResponse` for a response that is too long or cannot be decompressed. Set its `granted`
        if the status was 2xx.
        """
        ...
