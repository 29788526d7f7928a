"""What happens to a token, as frozen dataclasses.

Events contain keys, fingerprints, durations in seconds, names of error types and error messages, and never a
secret. No event has the name of an error.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from .observer import Event, Observer

__all__ = [
    "Adopted",
    "AttemptFailed",
    "Event",
    "Observer",
    "RefreshEnded",
    "RefreshFailed",
    "RefreshHeld",
    "RefreshStarted",
    "Refreshed",
    "RequestLimitReached",
    "Restored",
    "RevocationFailed",
    "Revoked",
    "SaveFailed",
    "Saved",
    "SignInEndsSoon",
    "SignInFailed",
    "SignInStarted",
    "SignOutStored",
    "SignedIn",
    "TokenUnauthorized",
    "UnexpectedResponse",
]


# -- operations: one start and one end with the same `id` --------------------------------------------------


@dataclass(frozen=True, slots=True)
class RefreshStarted(Event):
    """A refresh started. It ends with exactly one `RefreshEnded` of the same `id`.

    `reason` is "due", "expired", "unauthorized" (the API answered 401) or "forced" (`refresh()` without a
    token).
    """

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RefreshEnded(Event):
    """A refresh ended, after `duration` seconds. The base class of the ways it can end."""

    id: str
    duration: float


@dataclass(frozen=True, slots=True)
class Refreshed(RefreshEnded):
    """A token request succeeded, and the new token is served. It is stored, unless `SaveFailed` came before.

    `token` is its fingerprint, `lifetime` in seconds, or None if the provider did not say.
    """

    token: str
    lifetime: float | None
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class Adopted(RefreshEnded):
    """A newer token was found in the store, so no token request was needed. `token` is its fingerprint."""

    token: str


@dataclass(frozen=True, slots=True)
class RefreshHeld(RefreshEnded):
    """There is no other token now, and the current one is used on. `token` is its fingerprint.

    Either a token request got no answer, so the refresh token may be spent and is left alone until the
    access token is ENDING. Or the API answers 401 to every token, and another one would not help.
    """

    token: str


@dataclass(frozen=True, slots=True)
class RefreshFailed(RefreshEnded):
    """A refresh failed.

    `error` is the name of the error's type, `message` its text. `still_usable`: for how many seconds callers
    still get the current token without waiting. (Callers who could not wait for it got the error.)
    `ask_again`: for how many seconds callers get this error without another look at the store.
    `next_attempt`: how many seconds until the next token request may be made; None if it takes a sign-in.
    `repeated`: the refresh before it ended in the same error, so it is logged at DEBUG.
    """

    error: str
    message: str
    still_usable: float
    ask_again: float
    next_attempt: float | None
    repeated: bool = False

    @property
    def level(self) -> int:  # type: ignore[override]
        """DEBUG if it is repeated, or the answer to a sign-out; else WARNING.

        INFO if no one has signed in, which is normal where each user has a key.
        """
        if self.repeated or self.error == "SignedOut":
            return logging.DEBUG
        return logging.INFO if self.error == "SignInRequired" else logging.WARNING


@dataclass(frozen=True, slots=True)
class SignInStarted(Event):
    """A sign-in started. It ends with exactly one `SignedIn` or `SignInFailed` of the same `id`.

    A device code is polled, and there is no event as long as the person has not answered.
    """

    id: str


@dataclass(frozen=True, slots=True)
class SignedIn(Event):
    """A sign-in succeeded after `duration` seconds, and its token is served from now on.

    `token` is its fingerprint. It is stored, unless a `SaveFailed` came before.
    """

    id: str
    duration: float
    token: str
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class SignInFailed(Event):
    """A sign-in failed after `duration` seconds. `error` is the name of the error's type."""

    id: str
    duration: float
    error: str
    message: str
    level: ClassVar[int] = logging.WARNING


# -- what happens in between -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttemptFailed(Event):
    """A token request of the refresh `id` failed, and the refresh goes on, because callers wait for it.

    `error` is the name of the error's type. `next_attempt`: how many seconds until it is made again.
    """

    id: str
    error: str
    message: str
    next_attempt: float
    level: ClassVar[int] = logging.INFO


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
    """A new token could not be stored. It is tried again.

    Until then it is served from memory, and no token request is made. `tries` counts the attempts.
    """

    error: str
    message: str
    tries: int
    level: ClassVar[int] = logging.ERROR


@dataclass(frozen=True, slots=True)
class Saved(Event):
    """What could not be stored before is stored now. `token` is the token's fingerprint."""

    token: str | None
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class SignOutStored(Event):
    """A sign-out was stored."""

    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class Revoked(Event):
    """After a sign-out, the provider has revoked the refresh token, or else the access token.

    `token` is the access token's fingerprint.
    """

    token: str
    level: ClassVar[int] = logging.INFO


@dataclass(frozen=True, slots=True)
class RevocationFailed(Event):
    """After a sign-out, the token could not be revoked at the provider. The sign-out is stored all the same.

    Also if a refresh was on its way then and its new token is not revoked, because the answer did not come in
    time or a sign-in came first.

    `error` is the name of the error's type.
    """

    error: str
    message: str
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class Restored(Event):
    """The store had lost this key's record, or had an older one. What this process knew was written back.

    `found` is "nothing" or "an older record".
    """

    found: str
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class SignInEndsSoon(Event):
    """The provider ends this sign-in in `seconds`: a person has to sign in again before."""

    seconds: float
    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True, slots=True)
class RequestLimitReached(Event):
    """There were more than `limit` token requests within an hour. The next is made in `seconds`."""

    limit: float
    seconds: float
    level: ClassVar[int] = logging.ERROR
