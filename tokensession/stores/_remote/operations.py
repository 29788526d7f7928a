"""What a store with leases does at its server, and what comes of it: the contract of `lease.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ...errors import StoreUnavailable
from ..protocol import Record

__all__ = ["Attempt", "Grant", "Held", "NoAnswer", "Operations", "in_another_loop"]


class NoAnswer(Exception):
    """The server cannot be reached now, or does not answer: worth another try. Never leaves the store.

    `error` is what the caller gets in the end.
    """

    def __init__(self, error: StoreUnavailable) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True, slots=True)
class Grant:
    """The claim is ours. See `Claim` for the fields. `record` is read after it was granted."""

    record: Record | None
    interrupted: float | None = None
    listening: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """Another owner has the claim, for `since` seconds. Its lease ends in `ends` seconds, if not renewed."""

    owner: str
    since: float
    ends: float

    def __str__(self) -> str:
        pid, _, host = self.owner.partition(" ")[2].partition(" ")
        return f"process {pid} on {host}, for {self.since:.1f} s"


Attempt: TypeAlias = "Grant | Held | Record"


def in_another_loop() -> StoreUnavailable:
    """The error for a store that two threads use at once."""
    return StoreUnavailable(
        "Another thread is using this store in its event loop, and a connection belongs to one event loop.",
        todo="Make a store in each thread, from the same URL.",
    )


class Operations(Protocol):
    """What a store does at its server. Each takes one round trip, is idempotent, and has a bound of its own.

    Raises `NoAnswer` if another try may help, and a `StoreError` if not.
    """

    async def try_claim(self, key: str, seen: str | None, owner: str) -> Attempt:
        """A record that is stored and is not `seen`; else the claim, for one lease; else who has it.

        If the lease of another owner has ended after its `sending`, that becomes the interruption. An earlier
        one stays known until a commit. Raises `StoreCorrupt`, in which case the claim may be ours.
        """
        ...

    async def renew(self, key: str, owner: str, seconds: float) -> bool:
        """Let the lease end that many seconds from now. False if it is not this owner's any more.

        With 0, it ends now, as if its holder had died.
        """
        ...

    async def sending(self, key: str, owner: str, listening: float) -> bool:
        """Mark that a request leaves now, and renew. False if the lease is not this owner's any more."""
        ...

    async def commit(self, key: str, owner: str, expect: str | None, version: str, data: bytes) -> Record:
        """Replace the version `expect`, also without the lease, and release it if it is this owner's.

        Forgets any interruption. If this very record is stored already, returns it. Raises `Superseded`: then
        a lease of this owner stays, and the interruption is forgotten too.
        """
        ...

    async def abandon(self, key: str, owner: str) -> None:
        """Release the lease if it is this owner's, with its mark. An earlier interruption stays known."""
        ...
