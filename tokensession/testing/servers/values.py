"""What a test server reports, and the exceptions with which it turns down a token request."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["InvalidRequest", "Rejected", "Seen", "ServerStats"]


class InvalidRequest(Exception):
    """The token request is not as the provider documents it. The message says why, without secrets."""


class Rejected(Exception):
    """The token request is valid, but its client or credential is not. The message is RFC 6749's code."""


@dataclass(frozen=True, slots=True)
class ServerStats:
    """What a server has counted so far."""

    requests: int = 0
    """API requests."""
    unauthorized: int = 0
    """API requests that got a 401: they had no bearer token, or one that is not valid."""
    token_requests: int = 0
    """Token requests, with whatever outcome."""
    concurrent_token_requests_max: int = 0
    """The most token requests that were open at the same time."""
    expiries: int = 0
    """How often a new token was due, by the server's clock, the first token included. Failed token requests
    change nothing: several requests for one expiry count once."""
    reuse_detections: int = 0
    """How often a spent refresh token or code came again. Each time, everything issued from the same sign-in
    was revoked."""
    invalid_requests: int = 0
    """Token requests that did not match the provider's documentation."""
    rejections: int = 0
    """Valid token requests whose client or credential was rejected."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One API request in `server.log`."""

    method: str
    path: str
    """Without the query."""
    status: int
    """Of the response."""
    token: str | None
    """The fingerprint of the access token, as in `Token.fingerprint`, or None if the request had none."""
