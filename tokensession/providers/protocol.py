"""The contract between a provider, which knows what to say, and whoever does the talking.

A provider does no I/O, reads no clock, and knows neither stores nor HTTP libraries: it builds a
`TokenRequest`, and reads a `TokenResponse` into a `Token` or a typed error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from .. import _validate
from ..errors import ConfigurationError
from ..token import Token, fingerprint

__all__ = ["Credential", "Issued", "Provider", "TokenRequest", "TokenResponse", "TokenTransport"]

GrantType = Literal["refresh_token", "authorization_code"]


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """What is redeemed for a token: a refresh token or a code, by RFC 6749's names."""

    grant_type: GrantType
    secret: str

    @property
    def fingerprint(self) -> str:
        """Names it in keys and records."""
        return fingerprint(self.secret)

    def __repr__(self) -> str:
        return f"<Credential {self.grant_type} {self.fingerprint}>"


def configured_credential(*, code: str | None, refresh_token: str | None) -> Credential | None:
    """The configured refresh token or code: one of them, or neither where signing in comes later."""
    if code is not None and refresh_token is not None:
        raise ConfigurationError("Both code and refresh_token are given.", todo="Give the one to start from.")
    if refresh_token is not None:
        return Credential("refresh_token", _validate.secret("refresh_token", refresh_token))
    if code is not None:
        return Credential("authorization_code", _validate.secret("code", code))
    return None


@dataclass(frozen=True, slots=True, repr=False)
class TokenRequest:
    """One POST to a token endpoint, ready to be sent. `secrets` are what must never be shown of it."""

    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    secrets: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<TokenRequest POST {self.url} {len(self.body)} bytes>"


@dataclass(frozen=True, slots=True, repr=False)
class TokenResponse:
    """What came back. `headers` are (lower-case name, value) pairs; `body` is at most 1 MiB."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def __repr__(self) -> str:
        return f"<TokenResponse {self.status} {len(self.body)} bytes>"


@dataclass(frozen=True, slots=True)
class Issued:
    """A token as the reply gave it, and what was odd about the reply."""

    token: Token
    notes: tuple[str, ...] = ()


@runtime_checkable
class Provider(Protocol):
    """One OAuth server, one client, one seed."""

    @property
    def key(self) -> str:
        """Which credential this is: provider, environment or region, client, the seed's fingerprint."""
        ...

    @property
    def base_url(self) -> str:
        """What relative request URLs are appended to. No slash at the end; a path in it is kept."""
        ...

    @property
    def origins(self) -> tuple[str, ...]:
        """Where a bearer of this provider may go: `scheme://host[:port]`."""
        ...

    @property
    def api_headers(self) -> tuple[tuple[str, str], ...]:
        """Headers that every API request needs besides Authorization."""
        ...

    @property
    def rotates(self) -> bool:
        """Whether a refresh token is spent by its use. If in doubt, True: the careful answer."""
        ...

    @property
    def replay_leeway(self) -> float:
        """Seconds after sending within which the same refresh token may be sent once more, or 0."""
        ...

    @property
    def credential(self) -> Credential | None:
        """The configured refresh token or code, if there is one."""
        ...

    def request(self, credential: Credential) -> TokenRequest:
        """The token request that redeems this credential."""
        ...

    def read(self, response: TokenResponse, credential: Credential, *, sent_at: float) -> Issued:
        """The token in a reply to the request that was sent at `sent_at` (wall clock).

        A reply without a refresh token keeps the one that was redeemed. Raises `GrantRejected`,
        `ClientRejected`, `RateLimited`, `TokenUnavailable`, `OutcomeUnknown` or `InvalidTokenResponse`, and
        never anything else.
        """
        ...


class TokenTransport(Protocol):
    """Sends token requests. The door to the network, and the only one."""

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        """POST it, exactly once: no redirect is followed, nothing is tried again.

        `connect` and `total` are time-outs in seconds. Raises `NotSent` if the connection could not
        be opened, `OutcomeUnknown` if the request may have arrived and no whole reply came back.
        """
        ...
