"""The contract of a token store.

A store keeps opaque bytes under a key, and grants claims. It knows nothing about tokens, so one store can
wrap another (to encrypt, say) and neither notices.

`tokensession.testing.StoreConformance` tests this contract.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Final, Protocol, Self, runtime_checkable

from ..errors import ConfigurationError

__all__ = [
    "ANY",
    "ENCRYPTED",
    "AnyVersion",
    "Claim",
    "OpenedStore",
    "Record",
    "Store",
    "check_key",
    "new_version",
]


@dataclass(frozen=True, slots=True, repr=False)
class Record:
    """Stored bytes, and their version.

    A version is random, compared for equality only, and never used twice: not after a delete, not after a
    restart, not by another process. (A counter does not do: it starts again when its file is lost.)
    """

    version: str
    data: bytes
    age: float = field(default=0.0, compare=False)
    """Seconds since it was written, by the store's own clock, when it was read. Never negative.

    It says how much of a stored duration is over. Two hosts never compare moments: their clocks differ.
    """

    def __repr__(self) -> str:
        return f"<Record {self.version} {len(self.data)} bytes>"


class AnyVersion(Enum):
    """The type of `ANY`."""

    ANY = "any"


ANY: Final = AnyVersion.ANY
"""`expect=ANY`: write, whatever is stored now."""


ENCRYPTED: Final = b"\xc1TSE"
"""What the data of an `EncryptedStore` begins with. No msgpack document begins with c1."""


class Claim(Protocol):
    """The exclusive right to refresh one key's token, across everything that shares the store."""

    @property
    def current(self) -> Record | None:
        """The stored record, read after the claim was granted."""
        ...

    @property
    def interrupted(self) -> float | None:
        """Seconds since an earlier holder last called `sending`, if it never ended its claim. Else None.

        A killed process neither commits nor abandons. Its token request may still be on the way, and may
        have spent the refresh token, so the next holder must know. A holder that was killed before it
        called `sending` has sent nothing, and does not count. It does not hide an earlier one that has.
        """
        ...

    @property
    def listening(self) -> float:
        """For how many seconds more that earlier holder may still be listening for its response.

        0 if the store knows that it is dead, as a kernel's lock does. A store with leases cannot know: the
        holder may only have been paused. Then this is what is left of its `sending(listening=...)`.
        """
        ...

    async def sending(self, *, listening: float = 0.0) -> None:
        """Mark that a token request is about to leave, and that you listen for its response so many seconds.

        The mark outlives this process (not a power failure, which ends the request too), until the claim is
        committed or abandoned. Call this before each request: the last call counts. Finishes even if the
        awaiting task is cancelled.

        Raises `StoreUnavailable` if the mark cannot be left, or if the claim has ended or was lost: another
        holder may be sending by then. In both cases nothing may be sent.
        """
        ...

    async def commit(self, data: bytes) -> Record:
        """Store `data`, release the claim and wake the waiters: one step, durable on return.

        Succeeds if and only if the stored version is still that of `current`, *whether or not the claim is
        still ours*: a late commit may hold the only copy of a rotated refresh token. Finishes even if the
        awaiting task is cancelled. Committing the same data again returns the same record.

        A read followed by a write without a lock or transaction around both is not an implementation
        of this. Nor is one that gives up because the lease has lapsed.

        Raises `Superseded` with the newer record. The claim is still held then, so that you can look at that
        record, and `put` the data over it, before another holder sends what you have just spent. Raises
        `StoreUnavailable` if the data could not be stored: the claim is still held, and you may commit again.
        It also stays held if the awaiting task was cancelled before such a failure. Abandon it in the end.
        """
        ...

    async def abandon(self) -> None:
        """Release the claim and store nothing. Safe to call twice, and after `commit`.

        Finishes even if the awaiting task is cancelled.
        """
        ...


@runtime_checkable
class Store(Protocol):
    """Versioned bytes by key, and claims. Making a store binds it to no event loop.

    No call touches a file in the event loop's thread, not even to wait or to close: on a disk that hangs,
    that would stop the whole program. A store that processes share pickles as its configuration. Another one
    raises TypeError and says why. If parent and child have the same records after a fork, and cannot exclude
    each other, the store has a method `inherited(key)` that is true for these records in the child.
    """

    async def load(self, key: str) -> Record | None:
        """The whole record, or None. Never waits for a claim.

        A record that was moved to another key is corrupt. Raises `StoreCorrupt`, `StoreInsecure` or
        `StoreUnavailable`.
        """
        ...

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> Claim | Record:
        """Wait until the stored version is not `seen`, or until no one else holds the claim.

        In the first case, returns the newer `Record` and holds nothing. In the second, returns a `Claim`.
        `seen` is the version that you know, or None for "nothing is stored". A deletion of what you have
        seen is not a newer record: then you get the claim, and its `current` is None.

        Waiters watch the record, not the lock, so that one commit serves a thousand of them. Queueing them
        on the lock is not an implementation of this. Safe to cancel at every point.

        Raises `StoreUnavailable`, at once or after about two seconds, if a commit could not be stored: that
        must be known before a refresh token is spent. Raises `ClaimTimeout` after `timeout` seconds. It says
        who holds the claim, if the store knows (host, process, since when).
        """
        ...

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, whether or not the key is claimed: a sign-in or a sign-out.

        `expect` is the version to replace, or None for "only if nothing is stored". Raises `Superseded` if
        something else is stored. Finishes even if the awaiting task is cancelled.
        """
        ...

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Delete the record. Returns whether there was one.

        Raises `Superseded` if its version is not `expect`.
        """
        ...

    async def keys(self) -> list[str]:
        """The keys of all records, sorted."""
        ...

    async def aclose(self) -> None:
        """Close threads, connections and files. Safe to call twice; a later call reopens the store."""
        ...


class OpenedStore(Store, Protocol):
    """A store that `async with` closes, as all of `tokensession.stores` are. `open_store` returns one."""

    async def __aenter__(self) -> Self:
        """The store itself."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it: see `aclose`."""
        ...


def new_version() -> str:
    """A version that has never been used."""
    return secrets.token_hex(16)


def check_key(key: str) -> str:
    """The key, if it is valid: any text that is not empty. It need not be valid as a file name.

    Every method of a store calls this first. Raises `ConfigurationError` for text that is not valid Unicode.
    """
    if not isinstance(key, str):
        raise TypeError(f"key must be a str, not {type(key).__name__}")
    if not key:
        raise ValueError("key must not be empty: every caller that forgot to set one would share it")
    try:
        key.encode()
    except UnicodeEncodeError:
        pass
    else:
        return key
    raise ConfigurationError(
        "key is not valid Unicode text: it contains a part of a character (a lone surrogate).",
        todo="If it comes from an environment variable or a file name, make that UTF-8 text.",
    )
