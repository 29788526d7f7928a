"""What has happened, entry by entry, in the order in which the supervisor learned of it.

Secrets appear by fingerprint only. A *worker* is one process: "3.2" is the second process in place 3. Workers
report through their pipes, so the order is exact for each worker only. A killed worker's pipe is read to its
end before `Reaped` is added.
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
    "Deleted",
    "Disconnected",
    "Entry",
    "EventLog",
    "Exited",
    "Fault",
    "Finished",
    "Killed",
    "Lapsed",
    "Leaked",
    "Lost",
    "NotRecovered",
    "OutageBegan",
    "OutageEnded",
    "PutBack",
    "Reaped",
    "Recovered",
    "Redeemed",
    "Released",
    "Restored",
    "Reused",
    "Revoked",
    "Seen",
    "Sent",
    "SignInRequired",
    "SignedIn",
    "Stepped",
    "Stopped",
    "StoreEnded",
    "StoreStarted",
    "Stored",
    "Unauthorized",
    "Unsaved",
    "Used",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """Something happened."""


# -- at the provider ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived(Entry):
    """A worker's token request has arrived completely. `number` counts them."""

    number: int
    worker: str
    credential: str


@dataclass(frozen=True, slots=True)
class Disconnected(Entry):
    """The client closed the connection before it got a response."""

    number: int


@dataclass(frozen=True, slots=True)
class Answered(Entry):
    """The provider is done with the request: answered or dropped."""

    number: int


@dataclass(frozen=True, slots=True)
class Redeemed(Entry):
    """The grant was spent. `access` and `successor` (the next refresh token) exist from now on.

    `sign_in` is the number of the sign-in that they descend from, from 0 on.
    """

    number: int
    worker: str
    credential: str
    successor: str
    access: str
    sign_in: int = 0


@dataclass(frozen=True, slots=True)
class Reused(Entry):
    """A spent refresh token came again, and the provider revoked its sign-in."""

    number: int
    worker: str
    credential: str
    sign_in: int = 0


@dataclass(frozen=True, slots=True)
class Lost(Entry):
    """The grant was spent, and the response never left: a fault, or its client had given up.

    `repeatable`: the provider accepts the refresh token once more.
    """

    number: int
    repeatable: bool


@dataclass(frozen=True, slots=True)
class Fault(Entry):
    """A token request got an injected fault."""

    kind: str


@dataclass(frozen=True, slots=True)
class OutageBegan(Entry):
    """From now on every token request gets this."""

    kind: str


@dataclass(frozen=True, slots=True)
class OutageEnded(Entry):
    """It has lasted so many seconds. `allowed`: the most token requests in it, if no process was killed."""

    seconds: float
    allowed: int


@dataclass(frozen=True, slots=True)
class Used(Entry):
    """The API has answered 200 to this access token for the first time."""

    access: str


@dataclass(frozen=True, slots=True)
class Revoked(Entry):
    """All access tokens were revoked early."""


# -- done to the store --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PutBack(Entry):
    """An older copy of the record, with this refresh token and access token, was put back into the store."""

    credential: str
    access: str


@dataclass(frozen=True, slots=True)
class Deleted(Entry):
    """The record was deleted."""


@dataclass(frozen=True, slots=True)
class StoreEnded(Entry):
    """The store's server was killed, or ended in order."""

    how: str


@dataclass(frozen=True, slots=True)
class StoreStarted(Entry):
    """It answers again, after so many seconds."""

    seconds: float


# -- done to the workers ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Killed(Entry):
    """SIGKILL. `aim` says at which moment."""

    worker: str
    aim: str


@dataclass(frozen=True, slots=True)
class Reaped(Entry):
    """The killed worker has ended. `stored` is the refresh token in the record at that moment."""

    worker: str
    stored: str | None


@dataclass(frozen=True, slots=True)
class Exited(Entry):
    """It ended although it was not killed. `reason` has the end of its stderr."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped(Entry):
    """SIGSTOP, at this moment of the boot clock."""

    worker: str
    at: float
    aim: str


@dataclass(frozen=True, slots=True)
class Continued(Entry):
    """SIGCONT."""

    worker: str
    at: float


@dataclass(frozen=True, slots=True)
class Lapsed(Entry):
    """It was stopped, or its store was down, for so long that a claim that it holds may have been lost."""

    worker: str


@dataclass(frozen=True, slots=True)
class Stepped(Entry):
    """Its wall clock was stepped."""

    worker: str


# -- reported by the workers --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claimed(Entry):
    """It holds the claim."""

    worker: str


@dataclass(frozen=True, slots=True)
class Released(Entry):
    """It has ended its claim."""

    worker: str


@dataclass(frozen=True, slots=True)
class Seen(Entry):
    """It has read or is writing a record with this refresh token: it knows the token from now on."""

    worker: str
    credential: str


@dataclass(frozen=True, slots=True)
class Restored(Entry):
    """It has written back what the store had lost. `found` says what was there."""

    worker: str
    found: str


@dataclass(frozen=True, slots=True)
class Sent(Entry):
    """It is about to send a token request. From now on it may have been sent."""

    worker: str
    credential: str


@dataclass(frozen=True, slots=True)
class Finished(Entry):
    """Its token request has ended, with a status or with the type of an error."""

    worker: str
    credential: str
    outcome: int | str


@dataclass(frozen=True, slots=True)
class Unsaved(Entry):
    """It has a token that the store did not accept."""

    worker: str


@dataclass(frozen=True, slots=True)
class SignInRequired(Entry):
    """One of its callers got this error, which says to sign in again.

    `repeated`: its last request failed like this as well.
    """

    worker: str
    error: str
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Unauthorized(Entry):
    """One of its callers got a 401. `why` is what the provider and the clocks say about its token."""

    worker: str
    why: str


# -- found by the supervisor --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored(Entry):
    """This refresh token has been seen in the record."""

    credential: str


@dataclass(frozen=True, slots=True)
class Corrupt(Entry):
    """The record could not be decoded."""

    what: str


@dataclass(frozen=True, slots=True)
class Leaked(Entry):
    """All workers have ended, and the key is still claimed."""

    what: str


@dataclass(frozen=True, slots=True)
class SignedIn(Entry):
    """The supervisor has signed in again, because the sign-in with the number `lost` was lost.

    `credential` is the newest refresh token that was issued from that one.
    """

    number: int
    lost: int
    credential: str


@dataclass(frozen=True, slots=True)
class Recovered(Entry):
    """It got a 200 with a token that was issued after chaos ended."""

    worker: str


@dataclass(frozen=True, slots=True)
class NotRecovered(Entry):
    """It got no such 200 in the time it was given."""

    worker: str


@dataclass(slots=True)
class EventLog:
    """The entries so far. `lines` has them as text, with the seconds since the first one."""

    entries: list[Entry] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add(self, entry: Entry) -> None:
        """Add one entry."""
        self.entries.append(entry)
        self.lines.append(f"{time.monotonic() - self.began:9.3f}  {entry!r}")
