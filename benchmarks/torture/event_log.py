"""What has happened, entry by entry, in the order in which the supervisor learned of it.

Secrets are in here by fingerprint only. A *worker* is one incarnation of a process: "3.2" is the second
process in the third place. What the workers say comes through their pipes, and is therefore in order for
one worker only; a killed worker's pipe is read to its end before `Reaped` is entered.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

__all__ = [
    "Answered",
    "Arrived",
    "Claimed",
    "Continued",
    "Corrupt",
    "Died",
    "Entry",
    "EventLog",
    "Fault",
    "Gone",
    "Heard",
    "Killed",
    "Leaked",
    "Proven",
    "Reaped",
    "Redeemed",
    "Released",
    "Reused",
    "Revoked",
    "Sent",
    "SignedIn",
    "Stepped",
    "Stopped",
    "Stored",
    "Surfaced",
    "Told",
    "Unproven",
    "Unread",
    "Unsaved",
    "Used",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """Something happened."""


# -- at the provider ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived(Entry):
    """A worker's token request has arrived whole. `number` counts them."""

    number: int
    worker: str
    credential: str


@dataclass(frozen=True, slots=True)
class Gone(Entry):
    """Its client has closed the connection without an answer."""

    number: int


@dataclass(frozen=True, slots=True)
class Answered(Entry):
    """The provider is through with it: answered, or let go of."""

    number: int


@dataclass(frozen=True, slots=True)
class Redeemed(Entry):
    """The grant was spent. `access` and `successor` (the next refresh token) exist from now on.

    `withheld`: the reply was lost on purpose (`--lose-replies`).
    """

    number: int
    worker: str
    credential: str
    successor: str
    access: str
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class Reused(Entry):
    """A spent refresh token came again, and the sign-in that it descends from was revoked."""

    number: int
    worker: str
    credential: str


@dataclass(frozen=True, slots=True)
class Unread(Entry):
    """The grant was spent, but its living client had run into its own time-out when the answer was there."""

    number: int


@dataclass(frozen=True, slots=True)
class Fault(Entry):
    """A token request was spoiled."""

    kind: str


@dataclass(frozen=True, slots=True)
class Used(Entry):
    """The API has answered 200 to this access token for the first time."""

    access: str


@dataclass(frozen=True, slots=True)
class Revoked(Entry):
    """All access tokens were revoked early."""


# -- done to the workers ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Killed(Entry):
    """SIGKILL. `aim` says at which moment."""

    worker: str
    aim: str


@dataclass(frozen=True, slots=True)
class Reaped(Entry):
    """It is gone, and this is the refresh token in the record now."""

    worker: str
    stored: str | None


@dataclass(frozen=True, slots=True)
class Died(Entry):
    """It ended although nobody had killed it."""

    worker: str
    status: int
    words: str


@dataclass(frozen=True, slots=True)
class Stopped(Entry):
    """SIGSTOP, at this moment of the clock since boot."""

    worker: str
    at: float
    aim: str


@dataclass(frozen=True, slots=True)
class Continued(Entry):
    """SIGCONT."""

    worker: str
    at: float


@dataclass(frozen=True, slots=True)
class Stepped(Entry):
    """Its wall clock was stepped."""

    worker: str


# -- said by the workers ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claimed(Entry):
    """It holds the claim, and this is the credential that the record says to redeem."""

    worker: str
    credential: str


@dataclass(frozen=True, slots=True)
class Released(Entry):
    """It has ended its claim."""

    worker: str


@dataclass(frozen=True, slots=True)
class Sent(Entry):
    """It is about to send a token request."""

    worker: str
    credential: str


@dataclass(frozen=True, slots=True)
class Heard(Entry):
    """The end of that: a status, or the type of the error that came instead."""

    worker: str
    credential: str
    outcome: int | str


@dataclass(frozen=True, slots=True)
class Unsaved(Entry):
    """It has a token which the store would not take."""

    worker: str


@dataclass(frozen=True, slots=True)
class Told(Entry):
    """Its callers were told to sign in again, by this error."""

    worker: str
    error: str


@dataclass(frozen=True, slots=True)
class Surfaced(Entry):
    """One of its callers got a 401. `why` is what the provider and the clocks say of its token."""

    worker: str
    why: str


# -- found by the supervisor --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored(Entry):
    """This refresh token has been seen in the record."""

    credential: str


@dataclass(frozen=True, slots=True)
class Corrupt(Entry):
    """The record could not be understood."""

    what: str


@dataclass(frozen=True, slots=True)
class Leaked(Entry):
    """All workers are gone, and the key is still claimed."""

    what: str


@dataclass(frozen=True, slots=True)
class SignedIn(Entry):
    """The supervisor has signed in again. `credential` is the refresh token that was given up."""

    credential: str


@dataclass(frozen=True, slots=True)
class Proven(Entry):
    """After all this it had a 200 with a token issued after chaos had ended."""

    worker: str


@dataclass(frozen=True, slots=True)
class Unproven(Entry):
    """It had none, for as long as it was given."""

    worker: str


@dataclass(slots=True)
class EventLog:
    """The entries so far; `lines` are the same for people, with the seconds since the first one."""

    entries: list[Entry] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def enter(self, entry: Entry) -> None:
        """One more."""
        self.entries.append(entry)
        self.lines.append(f"{time.monotonic() - self.began:9.3f}  {entry!r}")
