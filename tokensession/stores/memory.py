"""Records in this process's memory: the default store, and the simplest implementation of the contract.

Nothing here awaits anything except a change, so every step between is atomic: there is no lock and no
thread. A waiter is woken, looks at the record, and tries again. Waking hands nothing over, so a cancelled
waiter takes nothing with it.

Only waiters and holders belong to an event loop. A holder whose loop is closed can never end its claim, so
the next waiter takes over, and learns whether a request has left. The same goes for a holder in the parent of
a fork.

After a fork, parent and child have the same records and no way to exclude each other. `inherited` says so,
because a refresh token that works once must not be sent by both.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from ..clock import Clock, SystemClock, Timer
from ..errors import ClaimTimeout, StoreUnavailable, Superseded
from ._closing import ClosesAtExit
from ._local.moment import Moment
from .protocol import ANY, AnyVersion, Record, check_key, new_version

__all__ = ["MemoryStore"]


@dataclass(slots=True, eq=False)
class _Holder:
    """The holder of a key's claim, compared by identity. All times are the boot clock's.

    `since`: when it took the claim. `predecessor`: when an interrupted holder before it called `sending`, or
    None. `sent`: when it did so itself, or None.
    """

    since: float
    predecessor: float | None
    loop: asyncio.AbstractEventLoop
    pid: int
    sent: float | None = None

    @property
    def orphaned(self) -> bool:
        return self.loop.is_closed() or self.pid != os.getpid()


class MemoryStore(ClosesAtExit):
    """Keeps records in memory until the process ends.

    `clock` dates records and claims, and times waiting. You may use one store in several event loops, one
    after another, but not from several threads. `async with` works, but closing releases nothing. It can be
    neither pickled nor copied: the copy would not know who holds a claim.

    It belongs to the process that makes it. After a fork, the child has a copy of all records, and
    `inherited` is true there: it sends no refresh token that works once, because the parent sends it too.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self._records: dict[str, Record] = {}
        self._written: dict[str, Moment] = {}
        self._pid = os.getpid()
        self._writers: dict[str, int] = {}  # key -> the process that has stored its record
        self._holders: dict[str, _Holder] = {}
        self._interrupted: dict[str, float] = {}  # key -> when the holder that never ended called `sending`
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}

    async def load(self, key: str) -> Record | None:
        """The whole record, or None. Never waits for a claim."""
        return self._read(check_key(key))

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        """A newer record than `seen`, or the only claim. `timeout` in seconds. See `Store.claim`."""
        check_key(key)
        deadline = self._clock.boot() + timeout
        while True:
            record = self._read(key)
            if record is not None and record.version != seen:
                return record
            now = self._clock.boot()
            if self._free(key):
                return self._grant(key, record, now)
            if now >= deadline:
                held = now - self._holders[key].since
                raise ClaimTimeout(
                    f"After {timeout:g} s the claim was still held by another task of this process, "
                    f"for {held:.1f} s."
                )
            await self._wait_for_change(key, deadline - now)

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, whether or not the key is claimed. See `Store.put`."""
        check_key(key)
        return self._write(key, Record(new_version(), bytes(data)), expect)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Delete the record. Returns whether there was one. See `Store.delete`."""
        stored = self._read(check_key(key))
        if stored is None:
            return False
        if expect is not ANY and stored.version != expect:
            raise Superseded("A newer record is stored.", record=stored)
        del self._records[key], self._written[key], self._writers[key]
        self._wake(key)
        return True

    async def keys(self) -> list[str]:
        """The keys of all records, sorted."""
        return sorted(self._records)

    def inherited(self, key: str) -> bool:
        """Whether this is a forked child, and has not stored the key's record itself.

        Then parent and child have the same credential, and each grants claims of its own.
        """
        here = os.getpid()
        return self._pid != here and self._writers.get(key) != here

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close. The records stay as long as the store object does."""

    def _read(self, key: str) -> Record | None:
        record = self._records.get(key)
        return record and Record(record.version, record.data, self._written[key].age(self._clock))

    def _write(self, key: str, record: Record, expect: str | AnyVersion | None) -> Record:
        stored = self._read(key)
        if stored == record:  # the same write, repeated
            return record
        if expect is not ANY and (stored.version if stored else None) != expect:
            raise Superseded("A newer record is stored.", record=stored)
        self._records[key] = record
        self._written[key], self._writers[key] = Moment.now(self._clock), os.getpid()
        self._wake(key)
        return record

    def _free(self, key: str) -> bool:
        holder = self._holders.get(key)
        if holder is not None and holder.orphaned:
            del self._holders[key]
            self._remember(key, holder.predecessor if holder.sent is None else holder.sent)
            return True
        return holder is None

    def _grant(self, key: str, record: Record | None, now: float) -> MemoryClaim:
        predecessor = self._interrupted.pop(key, None)
        holder = _Holder(now, predecessor, asyncio.get_running_loop(), os.getpid())
        self._holders[key] = holder
        return MemoryClaim(self, key, record, holder)

    def _release(self, key: str, holder: _Holder, *, resolved: bool) -> None:
        """End this holder's claim if it still has it. Never ends another holder's."""
        if self._holders.get(key) is not holder:
            return
        del self._holders[key]
        if not resolved:
            self._remember(key, holder.predecessor)
        self._wake(key)

    def _remember(self, key: str, sent: float | None) -> None:
        """The next holder must know that a request was sent, and how long ago."""
        if sent is not None:
            self._interrupted[key] = sent

    async def _wait_for_change(self, key: str, seconds: float) -> None:
        """Return when the record or the claim has changed, or the time is over."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(key, set()).add(waiter)
        timer = Timer(self._clock, seconds, partial(_notify, waiter))
        try:
            await waiter
        finally:
            timer.cancel()
            waiters = self._waiters[key]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[key]

    def _wake(self, key: str) -> None:
        for waiter in self._waiters.get(key, ()):
            _notify(waiter)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A MemoryStore can be neither pickled nor copied, because its records and claims belong to one "
            "process. Use SQLiteStore or FileStore to share tokens, or make a MemoryStore in each process."
        )

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._records)} records, {len(self._holders)} claims>"


class MemoryClaim:
    """A claim on a key of a `MemoryStore`. See `tokensession.stores.Claim`.

    It draws its version once, so a repeated commit finds itself stored.
    """

    def __init__(self, store: MemoryStore, key: str, current: Record | None, holder: _Holder) -> None:
        self._store = store
        self._key = key
        self._current = current
        self._holder = holder
        self._interrupted = None if holder.predecessor is None else holder.since - holder.predecessor
        self._version = new_version()

    @property
    def current(self) -> Record | None:
        """The stored record when the claim was granted."""
        return self._current

    @property
    def interrupted(self) -> float | None:
        """Seconds between the request of an interrupted holder and this claim, or None."""
        return self._interrupted

    @property
    def listening(self) -> float:
        """0: that holder cannot go on, because its event loop is closed."""
        return 0.0

    async def sending(self, *, listening: float = 0.0) -> None:
        """Leave the mark: see `Claim.sending`."""
        holder = self._holder
        if self._store._holders.get(self._key) is not holder or holder.orphaned:
            raise StoreUnavailable(
                "This claim has ended, so no token request may be sent under it.", todo="Claim the key again."
            )
        holder.sent = self._store._clock.boot()

    async def commit(self, data: bytes) -> Record:
        """Store `data` and release: see `Claim.commit`. Never waits, so it cannot be cancelled halfway."""
        expect = None if self._current is None else self._current.version
        try:
            record = self._store._write(self._key, Record(self._version, bytes(data)), expect)
        except Superseded:
            self._holder.predecessor = None  # what is stored is newer than the interrupted holder's request
            raise
        self._store._release(self._key, self._holder, resolved=True)
        return record

    async def abandon(self) -> None:
        """Release the claim and store nothing."""
        self._store._release(self._key, self._holder, resolved=False)

    def __repr__(self) -> str:
        held = self._store._holders.get(self._key) is self._holder
        return f"<MemoryClaim {'held' if held else 'ended'}, interrupted={self.interrupted}>"


def _notify(waiter: asyncio.Future[None]) -> None:
    """Wake the task that waits for this future."""
    # Setting the result of a future whose loop is closed would raise.
    if not waiter.done() and not waiter.get_loop().is_closed():
        waiter.set_result(None)
