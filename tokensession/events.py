"""What happens, as one family of frozen events.

Events carry keys, fingerprints, durations and error types. A secret has no way into one.
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
    "emit",
]

_log = logging.getLogger("tokensession")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to the token under `key`."""

    key: str
    level: ClassVar[int] = logging.DEBUG


@dataclass(frozen=True, slots=True)
class RefreshStarted(Event):
    """A flight took off. `reason` is "due", "expired", "refused" (a 401), "asked" or "sign-in"."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refreshed(Event):
    """A token request succeeded, and the new token is stored."""

    token: str
    lifetime: float | None
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class Adopted(Event):
    """Somebody else's token was found in the store; no token request was needed."""

    token: str


@dataclass(frozen=True, slots=True)
class RefreshFailed(Event):
    """A flight ended without a token. `still_usable` is how long the current one lasts, in seconds."""

    error: str
    message: str
    still_usable: float
    retry_after: float | None
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class TokenUnauthorized(Event):
    """The API answered 401 to a token that looked valid."""

    token: str
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class UnexpectedResponse(Event):
    """A token reply was accepted although something in it was odd."""

    note: str
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class SaveFailed(Event):
    """A token, or what became of a request for one, could not be stored. PendingWrite is retried.

    Until it is stored a new token is served from memory, and nothing is redeemed.
    """

    error: str
    message: str
    tries: int
    level: ClassVar[int] = logging.ERROR


@dataclass(frozen=True, slots=True)
class Saved(Event):
    """What could not be stored before is stored now. `token` is None if it was not a token, but a note."""

    token: str | None
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class SignedIn(Event):
    """A new sign-in is served. It has been stored, unless a `SaveFailed` came before."""

    token: str
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class SignedOut(Event):
    """A sign-out was stored."""

    level: ClassVar[int] = logging.INFO


class Observer(Protocol):
    """Receives every event, in the event loop, as it happens. Must return at once."""

    def __call__(self, event: Event, /) -> None:
        """Take note of it."""
        ...


def emit(observer: Observer | None, event: Event) -> None:
    """Log the event to the logger "tokensession", and hand it to the observer.

    An observer that raises is reported and otherwise ignored: watching a refresh cannot break it.
    """
    with contextlib.suppress(Exception):  # a handler or filter of the program's may raise anything, too
        if _log.isEnabledFor(event.level):
            _log.log(event.level, "%s", event)
    if observer is not None:
        try:
            observer(event)
        except Exception:  # noqa: BLE001 - a foreign callable may raise anything
            with contextlib.suppress(Exception):
                _log.exception("observer %r raised on %s", observer, type(event).__name__)
