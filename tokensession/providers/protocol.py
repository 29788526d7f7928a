"""The contract between providers and transports.

A provider builds a `TokenRequest`, and turns a `TokenResponse` into a `Token` or a typed error. It does no
I/O and reads no clock. A transport sends the request and returns the response.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from .. import _validate
from ..errors import ConfigurationError, InvalidTokenResponse
from ..token import Token, fingerprint

__all__ = [
    "DEVICE_CODE",
    "Credential",
    "Identity",
    "Issued",
    "Provider",
    "TokenRequest",
    "TokenResponse",
    "TokenTransport",
]

GrantType: TypeAlias = Literal[
    "refresh_token",
    "authorization_code",
    "client_credentials",
    "urn:ietf:params:oauth:grant-type:device_code",
]
"""The names of the grants in RFC 6749 (sections 6, 4.1.3 and 4.4) and RFC 8628 (3.4)."""

DEVICE_CODE: Literal["urn:ietf:params:oauth:grant-type:device_code"] = (
    "urn:ietf:params:oauth:grant-type:device_code"
)
"""The grant type of RFC 8628, 3.4."""

_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")  # RFC 7636, 4.1


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """What is redeemed for a token: a refresh token, an authorization code, a device code, or nothing.

    `repr` shows its fingerprint, never the secret.
    """

    grant_type: GrantType
    """"refresh_token", "authorization_code", "client_credentials" or `DEVICE_CODE`."""
    secret: str
    """The refresh token or code itself. "" for "client_credentials", where the client itself is enough."""
    fields: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(name, value) pairs that are sent with it: `code_verifier`, `redirect_uri`. They are secrets too."""

    @property
    def single_use(self) -> bool:
        """Whether it works once with every server: a code does (RFC 6749, 4.1.2; RFC 8628, 3.4)."""
        return self.grant_type in ("authorization_code", DEVICE_CODE)

    @property
    def fingerprint(self) -> str:
        """What identifies it in keys and records: sixteen hex digits."""
        return fingerprint(self.secret)

    def __repr__(self) -> str:
        return f"<Credential {self.grant_type} {self.fingerprint}>"


def configured_credential(
    *,
    code: str | None = None,
    refresh_token: str | None = None,
    device_code: str | None = None,
    code_verifier: str | None = None,
    redirect_uri: str | None = None,
) -> Credential | None:
    """The one credential that is given, or None if you sign in later.

    Raises `ConfigurationError` if there are two, if one cannot be sent, or if a `code_verifier` or
    `redirect_uri` comes without a code.
    """
    given = {"code": code, "refresh_token": refresh_token, "device_code": device_code}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ConfigurationError(f"Pass {' or '.join(names)}, not both.")
    with_code = {"code_verifier": code_verifier, "redirect_uri": redirect_uri}
    if code is None and (stray := [name for name, value in with_code.items() if value is not None]):
        raise ConfigurationError(
            f"{' and '.join(stray)} belongs to a code, and there is none.", todo="Pass the code with it."
        )
    if refresh_token is not None:
        return Credential("refresh_token", _validate.secret("refresh_token", refresh_token))
    if device_code is not None:
        return Credential(DEVICE_CODE, _validate.secret("device_code", device_code))
    if code is None:
        return None
    if redirect_uri is not None:
        _validate.text("redirect_uri", redirect_uri)
    if code_verifier is not None and not (
        isinstance(code_verifier, str) and _VERIFIER.fullmatch(code_verifier)
    ):
        raise ConfigurationError(
            "code_verifier must be 43 to 128 letters, digits and -._~ (RFC 7636, 4.1), "
            f"not {_validate.describe(code_verifier)}.",
            todo="Pass the one whose code_challenge was in the authorization URL.",
        )
    fields = tuple((name, value) for name, value in with_code.items() if value is not None)
    return Credential("authorization_code", _validate.secret("code", code), fields)


def sign_in_credential(configured: Credential | None, **texts: str | None) -> Credential:
    """What a sign-in redeems: the credential that is given, or a machine's own, which comes with nothing.

    Raises `ConfigurationError`.
    """
    given = configured_credential(**texts)
    machine = configured is not None and configured.grant_type == "client_credentials"
    if machine and given is not None:
        raise ConfigurationError(
            "A client with grant='client_credentials' signs in with nothing else.",
            todo="Call sign_in() without arguments, or make a provider without grant.",
        )
    found = configured if machine else given
    if found is None:
        raise ConfigurationError("sign_in needs a code or a refresh_token.", todo="Pass one of them.")
    return found


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
        return f"<TokenRequest POST {self.url.partition('?')[0]} {len(self.body)} bytes>"


@dataclass(frozen=True, slots=True, repr=False)
class TokenResponse:
    """The response of a token endpoint, with any status. `repr` shows neither headers nor body."""

    status: int
    """The HTTP status, such as 200."""
    headers: tuple[tuple[str, str], ...]
    """(name, value) pairs. The names are made lower-case."""
    body: bytes
    """The whole body, decompressed."""

    def __post_init__(self) -> None:
        # Other HTTP libraries have a mapping, or write names as they came. Without its headers, a response
        # with a new refresh token could not be read.
        pairs = self.headers.items() if isinstance(self.headers, Mapping) else self.headers
        object.__setattr__(self, "headers", tuple((name.lower(), value) for name, value in pairs))

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

    A provider is configuration and pure functions. It does no I/O (but in `resolved`), and all its attributes
    are constant. For most servers you need no class: pass a `Strategy` to `StrategyProvider`.

    A provider may also have `identity`, an `Identity` that is stored with its tokens, and `former_keys`, the
    default keys of its earlier versions. Without them, the identity is unknown and there are no former keys.
    With `max_requests`, a number, its access tokens end after so many requests, too.
    With `insecure_http_hosts`, a tuple of host names, its origins may be plain http to those hosts.
    A provider whose requests differ each time, because they are signed with a time, also needs
    `request_fingerprint(credential)`: text that stays the same until its configuration changes. A rejection
    is remembered for that text. Without it, it is remembered for the whole request.

    A provider whose secrets may change has `async def resolved(self, *, wall: float) -> Provider`: the same
    provider with all secrets as they are now, for requests at this time (seconds since the epoch). It is
    awaited for each request: when it is decided to send one, and again before it leaves if more than a second
    has passed (to wait for another process). It is not awaited if the provider has a false attribute
    `changes`. It raises `NotSent` if a secret cannot be read now, and `ConfigurationError` if that will not
    change by itself. If a secret may be another one each time, it is not part of `request_fingerprint`. Then
    `volatile` of the resolved provider is text that identifies it: after the client was rejected, a request
    with another one is made sooner than one with the same.

    A provider with `revocation(token: Token) -> TokenRequest | None` says how to revoke a token (RFC 7009)
    after a sign-out. One with `unauthorized_statuses` says which statuses of the API mean that a token is not
    valid.
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

        With the grant type "client_credentials" there is no other: it is redeemed for each token.

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
        be used is not an error: see `Issued.problem`.
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
