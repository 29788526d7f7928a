"""`Snapshot`: the state of a source, for people."""

from __future__ import annotations

from dataclasses import dataclass

from .policy import Freshness

__all__ = ["Snapshot"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a source, for people. Contains no secret. Durations are in seconds."""

    key: str
    """The key in the store."""
    freshness: Freshness
    """How close the token in memory is to its end. EXPIRED without a token."""
    token: str | None
    """The fingerprint of the token in memory, or None."""
    seconds_left: float | None
    """Until the token expires. None if it has no stated lifetime, or there is no token."""
    refreshing: bool
    """Whether a refresh is running."""
    unsaved: bool
    """Whether a new token, or the outcome of a token request, still waits to be stored."""
    last_error: str | None
    """The name of the type of the error that callers without a usable token get at this moment."""
    retry_after: float | None
    """How long until the next token request may be made, if there is such an error and time helps."""
    sign_in_ends: float | None
    """How long until the provider ends this sign-in, if it has said so."""
    refreshes: int
    """Refreshes that started."""
    token_requests: int
    """Refreshes that got their token by a token request."""
    adopted: int
    """Tokens that another task or process had put into the store."""
    unauthorized: int
    """Refreshes that a 401 started."""
    failures: int
    """Refreshes that ended in an error."""
