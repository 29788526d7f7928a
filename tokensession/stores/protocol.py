"""The contract that every token store keeps.

A store keeps opaque bytes under a key, and grants claims. It knows no tokens: what the bytes mean is
decided above it, so a store can be wrapped by another (to encrypt, say) without either noticing.

`tokensession.testing.conformance` checks this contract; a store that passes it is a store.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, runtime_checkable

__all__ = ["ANY", "AnyVersion", "Claim", "Record", "Store", "check_key", "new_version"]


@dataclass(frozen=True, slots=True, repr=False)
class Record:
    """Bytes as they are stored, and the version under which they are.

    A version is random, compared for equality only, and never used twice: not after a delete, not
    after a restart, not by another process. (A counter is none: it starts again when its file does.)
    """

    version: str
    data: bytes

    def __repr__(self) -> str:
        return f"<Record {self.version} {len(self.data)} bytes>"


class AnyVersion(Enum):
    """The type of `ANY`."""

    ANY = "any"


ANY: Final = AnyVersion.ANY
"""`expect=ANY`: write whatever is there now."""


class Claim(Protocol):
    """The exclusive right to redeem one key's grant, across everything that shares the store."""

    @property
    def current(self) -> Record | None:
        """What is stored, read after the claim was granted."""
        ...

    @property
    def interrupted(self) -> float | None:
        """Seconds since an earlier holder began and never ended, or None.

        A killed process ends neither by commit nor by abandon. Its request may still be on the wire,
        and may already have spent the grant; the next holder must know.
        """
        ...

    async def commit(self, data: bytes) -> Record:
        """Store `data`, release the claim, and wake whoever waits: one step, durable on return.

        Succeeds if and only if the stored version is still `current`'s, *whether or not the claim is
        still ours*: a late commit may hold the only copy of a rotated refresh token. Finishes even if
        the awaiting task is cancelled. Committing the same data again returns the same record.

        A read followed by a write without a lock or transaction around both is not an implementation
        of this. Nor is one that gives up because the lease has lapsed.

        Raises `Superseded` with the newer record, which ends the claim too; or `StoreUnavailable` if
        it could not be stored: then the claim is still held, and commit may be called again. So it is
        if nobody waited for that any more, until the claim is abandoned or thrown away.
        """
        ...

    async def abandon(self) -> None:
        """Release the claim with nothing stored. Safe to call twice, and after `commit`."""
        ...


@runtime_checkable
class Store(Protocol):
    """Versioned bytes by key, and claims. Bound to no event loop when it is made."""

    async def load(self, key: str) -> Record | None:
        """The whole record, or None. Never waits for a claim.

        Raises `StoreCorrupt`, `StoreInsecure` or `StoreUnavailable`: three different troubles.
        """
        ...

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        """Wait until the stored version is not `seen`, or until we are the only holder.

        The first returns the newer `Record` and holds nothing; the second returns a `Claim`. `seen`
        is the version the caller knows, None for "nothing is stored" (a deletion of what was seen is
        not a newer record: then the claim comes, with `current` None).

        Watching the record, not the lock, is what lets a thousand waiters be served at once; an
        implementation that queues them on the lock is none. Safe to cancel at every point. Fails at
        once, with `StoreUnavailable`, if a commit could not be stored: that must be known before a
        grant is spent. Raises `ClaimTimeout` after `timeout` seconds.

        A store may bound how many claims one object holds at once, so that thousands of keys that are
        refreshed at one moment cost neither as many descriptors nor as many connections. The others
        get theirs in turn; who waits for a holder elsewhere takes nobody's place.
        """
        ...

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, claim or no claim: a sign-in or a sign-out.

        `expect` is the version to replace, None for "only if there is none". Raises `Superseded`.
        Finishes even if the awaiting task is cancelled.
        """
        ...

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Forget the record; whether there was one. Raises `Superseded` if it is not `expect`."""
        ...

    async def keys(self) -> list[str]:
        """Every key that has a record, sorted."""
        ...

    async def aclose(self) -> None:
        """Let go of threads, connections and handles. Safe to call twice; a later call reopens."""
        ...


def new_version() -> str:
    """A version that nobody has used before."""
    return secrets.token_hex(16)


def check_key(key: str) -> str:
    """The key, if it is one: any text but the empty one. A file name is never made from it."""
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {type(key).__name__}")
    if not key:
        raise ValueError("an empty key would be shared by everybody who forgot to set one")
    return key
