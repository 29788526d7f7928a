"""How servers differ, as data: the declarative strategy. Pure.

A `Strategy` says how to build a token request and where a token response has its parts. A new server is a
dozen lines of data and no code: a JSON or form body, its fields and their order, headers and client
authentication, field names, the lifetime in seconds or as a point in time, a default lifetime, flags and
error codes that mean failure although the status is 200, rotation, and replay.

`strategy_provider.py` combines a strategy with credentials. `response.py` reads responses by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from math import inf
from typing import Any, TypeAlias

from .._validate import describe
from ..errors import ConfigurationError
from . import _wire
from .protocol import DEVICE_CODE, GrantType

__all__ = [
    "DEVICE_ERRORS",
    "RFC6749_ERRORS",
    "ErrorKind",
    "Fields",
    "Lifetime",
    "Strategy",
    "Values",
    "expires_at",
    "expires_in",
]

Values: TypeAlias = Mapping[str, str]
"""The configuration, by field name: client_id, client_secret, redirect_uri, region, …"""


class ErrorKind(Enum):
    """What an error code of the server means, and so which error is raised."""

    REJECTED = "the refresh token or code is rejected"
    """`GrantRejected`: the credential is not sent again."""
    PROBABLY_REJECTED = "the refresh token or code is rejected, unless the code means something else here"
    """`GrantRejected`, but not `certain`: the credential is tried again from time to time."""
    CLIENT = "the client or the request is wrong"
    """`ClientRejected`: the configuration must be fixed."""
    RATE_LIMITED = "too many requests"
    """`RateLimited`: a pause of at least one minute."""
    TRANSIENT = "try again later"
    """`TokenUnavailable`."""
    PENDING = "a person has not answered yet"
    """`AuthorizationPending`: the device code is polled again (RFC 8628, 3.5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The names of the fields in a token response.

    A dotted path reaches into objects and lists: "error.message", "errors.0.code".
    """

    access_token: str = "access_token"
    refresh_token: str = "refresh_token"
    token_type: str = "token_type"
    scope: str = "scope"
    flags: Sequence[str] = ("success", "ok")
    """Fields that are false if a response with status 200 is an error."""
    codes: Sequence[str] = ("error", "error.message")
    """Fields that may contain an error code."""
    description: Sequence[str] = ("error_description",)
    """Fields that may contain an explanation for people."""
    retry_after: Sequence[str] = ("retry-after", "retry_after")
    """Fields that may say how long to wait. The Retry-After header takes precedence."""
    refresh_lifetime: Sequence[str] = (
        "refresh_token_expires_in",
        "refresh_expires_in",
        "x_refresh_token_expires_in",
    )
    """Fields that may say how many seconds the refresh token lives. 0 means that it does not end."""
    extra: Sequence[str] = ()
    """More fields to keep in `Token.extra`, by their paths: text, numbers and booleans, 32 KiB in all."""


Lifetime: TypeAlias = Callable[[Mapping[str, Any], float], tuple[float | None, str | None]]
"""Reads the lifetime from a token response: see `expires_in` and `expires_at`.

Called with the response's document and the server's clock. Returns the lifetime in seconds, or None, and a
note if something was unexpected, or None.
"""


def expires_in(name: str) -> Lifetime:
    """A lifetime in seconds in this field (a dotted path), as a number or a decimal string."""
    return partial(_expires_in, name)  # not a function of its own, because that could not be pickled


def _expires_in(name: str, document: Mapping[str, Any], _now: float) -> tuple[float | None, str | None]:
    value = _wire.find(document, name)
    seconds = _wire.lifetime_seconds(value)
    if value is None or seconds is not None:
        return seconds, None
    return None, f"{name} is not a number of seconds; the default lifetime is used"


def expires_at(name: str) -> Lifetime:
    """An expiry time in this field (a dotted path): ISO 8601, or seconds or milliseconds since the epoch.

    The epoch may also be a string of 10 to 13 digits, with or without a fraction. From 12 digits on, it is in
    milliseconds.

    It is compared with the server's own clock (its Date header), so a wrong clock here does not matter.
    """
    return partial(_expires_at, name)


def _expires_at(name: str, document: Mapping[str, Any], now: float) -> tuple[float | None, str | None]:
    value = _wire.find(document, name)
    moment = _moment(value)
    seconds = None if moment is None else _wire.lifetime_seconds(moment - now)
    if value is None or seconds is not None:
        return seconds, None
    return None, f"{name} is not a point in time; the default lifetime is used"


_EPOCH = re.compile(r"[0-9]{10,13}(?:\.[0-9]{0,40})?")
_NOT_ISO = re.compile(r"[0-9]{9}|[0-9.,]*\Z")  # Python would take some of these for a year and a time


def _moment(value: Any) -> float | None:
    if isinstance(value, str):
        value = value.strip(" \t\r\n")
        if _EPOCH.fullmatch(value):
            value = float(value)
        elif _NOT_ISO.match(value):
            return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        # An integer may be too long for a float, and one that long is not a point in time.
        return None if abs(value) > 1e15 else value / 1000 if abs(value) >= 1e11 else float(value)
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


RFC6749_ERRORS: Mapping[str, ErrorKind] = {
    # RFC 6749, sections 4.1.2.1 and 5.2.
    "invalid_grant": ErrorKind.REJECTED,
    # An error of the authorization endpoint (4.1.2.1). A token endpoint that answers it refuses the client.
    "access_denied": ErrorKind.CLIENT,
    "invalid_client": ErrorKind.CLIENT,
    "invalid_request": ErrorKind.CLIENT,
    "invalid_scope": ErrorKind.CLIENT,
    "unauthorized_client": ErrorKind.CLIENT,
    "unsupported_grant_type": ErrorKind.CLIENT,
    "server_error": ErrorKind.TRANSIENT,
    "temporarily_unavailable": ErrorKind.TRANSIENT,
    "slow_down": ErrorKind.RATE_LIMITED,  # RFC 8628, 3.5
    # Of no RFC, but they can mean only one thing:
    "bad_refresh_token": ErrorKind.REJECTED,
    "invalid_refresh_token": ErrorKind.REJECTED,
    # Seen for dead refresh tokens and codes, and now and then for something else. Three are errors of OpenID
    # Connect's authorization endpoint (Core 1.0, 3.1.2.6), one of RFC 6750 (3.1).
    "invalid_token": ErrorKind.PROBABLY_REJECTED,
    "interaction_required": ErrorKind.PROBABLY_REJECTED,
    "login_required": ErrorKind.PROBABLY_REJECTED,
    "consent_required": ErrorKind.PROBABLY_REJECTED,
    "invalid_code": ErrorKind.PROBABLY_REJECTED,
}
"""What each error code of RFC 6749 (sections 4.1.2.1 and 5.2) and RFC 8628 (3.5) means.

Some that servers send instead of `invalid_grant` are in it too.
"""

DEVICE_ERRORS: Mapping[str, ErrorKind] = {
    "authorization_pending": ErrorKind.PENDING,
    "slow_down": ErrorKind.PENDING,
    "access_denied": ErrorKind.REJECTED,
    "expired_token": ErrorKind.REJECTED,
    # Of no RFC: Microsoft Entra documents the first two, and GitHub the third.
    "authorization_declined": ErrorKind.REJECTED,
    "bad_verification_code": ErrorKind.REJECTED,
    "incorrect_device_code": ErrorKind.REJECTED,
}
"""What these codes mean in the answer to a device code (RFC 8628, 3.5), whatever the strategy says."""

_BODY_SECRETS = ("client_secret", "client_assertion", "assertion", "password", "pin", "api_key", "x-api-key")


def _no_headers(_values: Values) -> tuple[tuple[str, str], ...]:
    return ()


_STANDARD_FIELDS = Fields()
_EXPIRES_IN = expires_in("expires_in")
CREDENTIAL_FIELDS: Mapping[str, str] = {
    "refresh_token": "refresh_token",
    "authorization_code": "code",
    DEVICE_CODE: "device_code",
    "client_credentials": "",
}
"""The field of each grant type's credential. Client credentials have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How one kind of server expects token requests, and how it answers. The defaults are RFC 6749's."""

    name: str
    """The beginning of the default key, and of error messages."""
    grants: Mapping[GrantType, Sequence[str]]
    """For each grant type that the server supports, the fields of the body, in order.

    `grant_type` is the grant type's name, unless the configuration has another. `refresh_token`, `code` or
    `device_code` is the credential. Every other field comes from the configuration. One that is not
    configured is left out.
    """
    rename: Mapping[str, str] = field(default_factory=dict)
    """Fields that have another name in this server's requests: {"refresh_token": "refreshToken"}."""
    encode: Callable[[_wire.Pairs], bytes] = _wire.encode_form
    """Makes the body from (name, value) pairs: `encode_form` or `encode_json`."""
    content_type: str = "application/x-www-form-urlencoded"
    """The Content-Type header of a request."""
    headers: Callable[[Values], Sequence[tuple[str, str]]] = _no_headers
    """Makes more headers from the configuration: a region, client authentication."""
    decode: Callable[[bytes], dict[str, Any]] = _wire.parse_json
    """Reads a body: `parse_json` or `parse_form`. Raises `InvalidTokenResponse`."""
    fields: Fields = _STANDARD_FIELDS
    """The names of the fields in a response."""
    bearer_types: Collection[str] = ("bearer",)
    """What `token_type` may be for a bearer token, in any case. "bearer", and no type at all, always may."""
    lifetime: Lifetime = _EXPIRES_IN
    """Reads the lifetime from a response: `expires_in(...)` or `expires_at(...)`."""
    default_lifetime: float | None = None
    """Seconds, for a response without a lifetime. None: refresh only after a 401."""
    errors: Mapping[str, ErrorKind] = field(default_factory=lambda: RFC6749_ERRORS)
    """What the server's error codes mean."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """For an error code, what to do next, if the code alone does not say it."""
    rotates: bool = True
    """Whether a refresh token can be used only once. If in doubt, True."""
    replay_leeway: float = 0
    """Seconds within which the server accepts the same refresh token again. Only what it documents."""
    idle_lifetime: float | None = None
    """Seconds after which the server ends a refresh token that is not used. Only what it documents."""
    unauthorized_statuses: Collection[int] = (401,)
    """The statuses with which the API says that a token is not valid. Some answer 403 or 498."""
    secrets: Collection[str] = _BODY_SECRETS
    """Which fields and headers of the configuration are secret: their values are redacted in messages."""

    max_requests: int | None = None
    """Requests after which the server ends an access token, whatever is left of its lifetime, or None.

    All requests of this process count, of every session. If several processes share a token, give each its
    part. Only what the server documents.
    """

    def __post_init__(self) -> None:
        """Raises `ConfigurationError`. Found later, a mistake here could cost a sign-in."""
        for name in ("encode", "headers", "decode", "lifetime"):
            if not callable(getattr(self, name)):
                raise self._error(f"{name} must be callable, not {describe(getattr(self, name))}.")
        if not isinstance(self.fields, Fields):
            raise self._error(f"fields must be Fields(...), not {describe(self.fields)}.")
        for grant, fields in self.grants.items():
            secret = CREDENTIAL_FIELDS.get(grant)
            if secret is None:
                known = ", ".join(map(repr, CREDENTIAL_FIELDS))
                raise self._error(f"grants may have {known}, not {grant!r}.")
            if isinstance(fields, str) or (secret and secret not in fields):
                raise self._error(
                    f"grants[{grant!r}] must be a sequence of fields with {secret!r} among them.",
                    todo="If the server has another name for it, add that to rename.",
                )
        if isinstance(self.secrets, str) or isinstance(self.fields.extra, str):
            raise self._error("secrets and fields.extra must be sequences of names, not one name.")
        statuses = self.unauthorized_statuses
        if isinstance(statuses, int) or any(
            type(each) is not int or not 400 <= each < 500 for each in statuses
        ):
            raise self._error("unauthorized_statuses must be statuses from 400 to 499.")
        if any(not isinstance(kind, ErrorKind) for kind in self.errors.values()):
            raise self._error("errors must map error codes to ErrorKind values.")
        for name in ("default_lifetime", "replay_leeway", "idle_lifetime"):
            seconds = getattr(self, name)
            if name != "replay_leeway" and seconds is None:
                continue
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < inf:
                raise self._error(f"{name} must be a number of seconds, not {describe(seconds)}.")

        most = self.max_requests
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise self._error(f"max_requests must be a whole number above 0, not {describe(most)}.")

    def _error(self, happened: str, *, todo: str | None = None) -> ConfigurationError:
        return ConfigurationError(f"Strategy {self.name!r}: {happened}", todo=todo)
