"""What servers differ in, as data: the declarative strategy. Pure.

A `Strategy` says how a token request is put together and where a reply keeps its parts. `response.py`
reads answers by it; `strategy_provider.py` fills it with somebody's credentials. A new server is a dozen lines of
this, and no code: JSON or form bodies, which fields in which order, static headers and client
authentication, field names, seconds or a point in time, a default life, flags and codes that mean
failure behind a 200, rotation, and what may be done about a lost reply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from . import _wire
from .protocol import GrantType

__all__ = ["RFC6749_ERRORS", "ErrorKind", "Fields", "Lifetime", "Strategy", "Values", "seconds", "until"]

Values = Mapping[str, str]
"""A configuration by field name: client_id, client_secret, redirect_uri, region, …"""


class ErrorKind(Enum):
    """What an error code means for the caller."""

    REJECTED = "the grant is dead"
    CLIENT = "the client or the request is wrong"
    RATE_LIMITED = "too many requests"
    TRANSIENT = "try again later"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Where a reply keeps its parts. Dotted paths reach into objects: "error.message"."""

    access_token: str = "access_token"
    refresh_token: str = "refresh_token"
    token_type: str = "token_type"
    scope: str = "scope"
    flags: Sequence[str] = ("success", "ok")
    """Fields that are not false in a success."""
    codes: Sequence[str] = ("error", "error.message")
    """Where an error code may stand."""
    description: Sequence[str] = ("error_description",)
    """Where an explanation for people may stand."""
    retry_after: Sequence[str] = ("retry-after", "retry_after")
    """Where a body may say how long to wait."""


Lifetime = Callable[[Mapping[str, Any], float], tuple[float | None, str | None]]
"""From the document and the server's clock to a life in seconds (or None), and what was odd about it."""


def seconds(name: str) -> Lifetime:
    """A life in seconds at this (dotted) path, as a number or a decimal string."""

    def lifetime(document: Mapping[str, Any], _now: float) -> tuple[float | None, str | None]:
        value = _wire.find(document, name)
        life = _wire.lifetime_seconds(value)
        odd = value is not None and life is None
        return life, f"{name} is not a number of seconds; the default life is used" if odd else None

    return lifetime


def until(name: str) -> Lifetime:
    """A point in time at this (dotted) path: ISO 8601, or seconds or milliseconds since the epoch.

    Both ends are read off the server's clock (its Date header), so that a wrong clock here does not
    matter.
    """

    def lifetime(document: Mapping[str, Any], now: float) -> tuple[float | None, str | None]:
        value = _wire.find(document, name)
        moment = _moment(value)
        life = None if moment is None else _wire.lifetime_seconds(moment - now)
        odd = value is not None and life is None
        return life, f"{name} is no point in time; the default life is used" if odd else None

    return lifetime


def _moment(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        # An integer may be too long for a float, and one that long is no moment.
        return None if abs(value) > 1e15 else value / 1000 if abs(value) > 1e11 else float(value)
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


RFC6749_ERRORS: Mapping[str, ErrorKind] = {
    # RFC 6749, sections 4.1.2.1 and 5.2
    "invalid_grant": ErrorKind.REJECTED,
    "access_denied": ErrorKind.REJECTED,
    "invalid_client": ErrorKind.CLIENT,
    "invalid_request": ErrorKind.CLIENT,
    "invalid_scope": ErrorKind.CLIENT,
    "unauthorized_client": ErrorKind.CLIENT,
    "unsupported_grant_type": ErrorKind.CLIENT,
    "server_error": ErrorKind.TRANSIENT,
    "temporarily_unavailable": ErrorKind.TRANSIENT,
    "slow_down": ErrorKind.RATE_LIMITED,  # RFC 8628, 3.5
}


def _no_headers(_values: Values) -> tuple[tuple[str, str], ...]:
    return ()


_STANDARD_FIELDS = Fields()
_EXPIRES_IN = seconds("expires_in")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How one kind of server wants to be asked, and how it answers."""

    name: str
    grants: Mapping[GrantType, Sequence[str]]
    """For each grant type the fields of the body, in order. A field whose value is not configured is
    left out. The secret itself is `refresh_token` or `code`; `grant_type` is the grant's name."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Fields that this server calls something else in a request: {"refresh_token": "refreshToken"}."""
    encode: Callable[[_wire.Pairs], bytes] = _wire.encode_form
    content_type: str = "application/x-www-form-urlencoded"
    headers: Callable[[Values], Sequence[tuple[str, str]]] = _no_headers
    """More headers, made from the configuration: a region, client credentials."""
    decode: Callable[[bytes], dict[str, Any]] = _wire.parse_json
    fields: Fields = _STANDARD_FIELDS
    lifetime: Lifetime = _EXPIRES_IN
    default_lifetime: float | None = None
    """Seconds, for replies that say none. None: refresh on a 401 only."""
    errors: Mapping[str, ErrorKind] = field(default_factory=lambda: RFC6749_ERRORS)
    hints: Mapping[str, str] = field(default_factory=dict)
    """For an error code, what to do about it, where this server's codes need explaining."""
    rotates: bool = True
    """Whether a refresh token is spent by its use. True is the careful answer."""
    replay_leeway: float = 0
    """Seconds within which the server documents that the same refresh token may be sent again."""
