"""What happens to a token, as frozen dataclasses.

Events contain keys, fingerprints, durations in seconds, error types and error messages, and never a secret.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import ClassVar, Protocol

__all__ = [
    "Adopted",
    "Event",
    "Observer",
    "RefreshFailed",
    "RefreshStarted",
    "Refreshed",
    "SaveFailed",
    "Saved",
    "SignedIn",
    "SignedOut",
    "TokenUnauthorized",
    "UnexpectedResponse",
]

_log = logging.getLogger("tokensession")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to the token under `key`."""

    key: str
    level: ClassVar[int] = logging.DEBUG


@dataclass(frozen=True, slots=True)
class RefreshStarted(Event):
    """A refresh or a sign-in started.

    `reason` is "due", "expired", "unauthorized" (the API answered 401), "forced" (`refresh()` without a
    token) or "sign-in".
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Refreshed(Event):
    """A token request succeeded, and the new token is stored.

    `token` is its fingerprint, `lifetime` in seconds, or None if the provider did not say.
    """

    token: str
    lifetime: float | None
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class Adopted(Event):
    """A newer token was found in the store, so no token request was needed. `token` is its fingerprint."""

    token: str


@dataclass(frozen=True, slots=True)
class RefreshFailed(Event):
    """A refresh or a sign-in failed.

    `error` is the error's type. `still_usable`: for how many seconds callers still get the current token
    without waiting.
    `retry_after` is the pause before the next background refresh, in seconds; None after a sign-in.
    """

    error: str
    message: str
    still_usable: float
    retry_after: float | None
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class TokenUnauthorized(Event):
    """The API answered 401 to a token that looked valid. `token` is its fingerprint."""

    token: str
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class UnexpectedResponse(Event):
    """A token response was accepted although something in it was unexpected. `note` says what."""

    note: str
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class SaveFailed(Event):
    """A new token, or the outcome of a token request, could not be stored. It is tried again.

    Until then the new token is served from memory, and no token request is made. `tries` counts the
    attempts to store it.
    """

    error: str
    message: str
    tries: int
    level: ClassVar[int] = logging.ERROR


@dataclass(frozen=True, slots=True)
class Saved(Event):
    """What could not be stored before is stored now.

    `token` is a fingerprint, or None if it was the outcome of a token request without a token.
    """

    token: str | None
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class SignedIn(Event):
    """A sign-in succeeded, and its token is served from now on. `token` is its fingerprint.

    The token is stored, unless a `SaveFailed` came before.
    """

    token: str
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class SignedOut(Event):
    """A sign-out was stored."""

    level: ClassVar[int] = logging.INFO


class Observer(Protocol):
    """Receives every event, in the event loop, as it happens. Must return at once."""

    def __call__(self, event: Event, /) -> None:
        """Handle the event."""
        ...


def emit(observer: Observer | None, event: Event) -> None:
    """Log the event to the logger "tokensession", and hand it to the observer.

    An observer that raises is logged and otherwise ignored: it cannot break a refresh.
    """
    with contextlib.suppress(Exception):  # your log handler or filter may raise anything
        if _log.isEnabledFor(event.level):
            _log.log(event.level, "%s", event)
    if observer is not None:
        try:
            observer(event)
        except Exception:  # noqa: BLE001 - your observer may raise anything
            with contextlib.suppress(Exception):
                _log.exception("observer %r raised on %s", observer, type(event).__name__)
