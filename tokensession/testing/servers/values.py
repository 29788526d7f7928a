"""What a test server reports, and the two ways in which it says no."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["InvalidRequest", "Rejected", "Seen", "ServerStats"]


class InvalidRequest(Exception):
    """The token request is not what the provider's documents say. The message says why, no secrets."""


class Rejected(Exception):
    """The token request is in order, and the answer is no. The message is RFC 6749's error code."""


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What a server has counted so far.

    `requests` are API requests, `unauthorized` those among them without a living bearer. `expiries`
    counts every time a new token was due, the first one included, by the server's own clock and
    whether or not a token request succeeded. `refusals` are token requests that were not byte-exact,
    `rejections` those that were and got a no on their merits.
    """

    requests: int = 0
    unauthorized: int = 0
    token_requests: int = 0
    concurrent_token_requests_max: int = 0
    expiries: int = 0
    reuse_detections: int = 0
    invalid_requests: int = 0
    rejections: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """One API request: its path without the query, the status answered, and which bearer it had."""

    method: str
    path: str
    status: int
    bearer: str | None
    """The access token's fingerprint, as in `Token.fingerprint`; None without a bearer."""
