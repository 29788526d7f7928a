"""Records in this process's memory: the default store, and the simplest implementation of the contract.

Nothing here awaits anything except a change, so every step between is atomic: there is no lock and no
thread. A waiter is woken, looks at the record, and tries again. Waking hands nothing over, so a cancelled
waiter takes nothing with it.

Only waiters and holders belong to an event loop. A holder whose loop is closed can never end its claim, so
it counts as interrupted and the next waiter takes over. The same goes for a holder in the parent of a fork.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..clock import Clock, SystemClock
from ..errors import Superseded
from ._local.slots import Slot, Slots, notify, notify_after
from .protocol import ANY, AnyVersion, Record, check_key, new_version

__all__ = ["MemoryStore"]


@dataclass(frozen=True, slots=True, eq=False)
class _Holder:
    """The holder of a key's claim, compared by identity.

    `began` is when it took the claim; `predecessor`, when an interrupted holder before it did, or None.
    """

    began: float
    predecessor: float | None
    slot: Slot
    pid: int

    @property
    def orphaned(self) -> bool:
        return self.slot.loop.is_closed() or self.pid != os.getpid()


class MemoryStore:
    """Keeps records in memory until the process ends.

    `clock` dates claims and times waiting. You may use one store in several event loops, one after another,
    but not from several threads. `async with` works, but closing releases nothing.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self._records: dict[str, Record] = {}
        self._holders: dict[str, _Holder] = {}
        self._interrupted: dict[str, float] = {}  # key -> when the holder that never ended took its claim
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._slots = Slots()

    async def load(self, key: str) -> Record | None:
        """The whole record, or None. Never waits for a claim."""
        return self._records.get(check_key(key))

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        """A newer record than `seen`, or the only claim. `timeout` in seconds. See `Store.claim`."""
        check_key(key)
        deadline: float | None = None
        slot: Slot | None = None
        try:
            while True:
                record = self._records.get(key)
                if record is not None and record.version != seen:
                    return record
                now = self._clock.boot()
                if self._free(key):
                    slot = slot or self._slots.enqueue(asyncio.get_running_loop())
                    if slot.granted:
                        given, slot = slot, None
                        return self._grant(key, record, now, given)
                elif slot is not None:  # another key may use the slot while this one is claimed
                    slot.release()
                    slot = None
                if deadline is None:
                    deadline = now + timeout
                if now >= deadline:
                    raise self._slots.timeout_error(slot, timeout)
                await self._wait_for_change(key, deadline - now, slot)
        finally:
            if slot is not None:
                slot.release()

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, whether or not the key is claimed. See `Store.put`."""
        check_key(key)
        return self._write(key, Record(new_version(), bytes(data)), expect)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Delete the record. Returns whether there was one. See `Store.delete`."""
        stored = self._records.get(check_key(key))
        if stored is None:
            return False
        if expect is not ANY and stored.version != expect:
            raise Superseded("A newer record is stored.", record=stored)
        del self._records[key]
        self._wake(key)
        return True

    async def keys(self) -> list[str]:
        """The keys of all records, sorted."""
        return sorted(self._records)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close. The records stay as long as the store object does."""

    async def __aenter__(self) -> Self:
        """The store itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it: see `aclose`."""
        await self.aclose()

    def _write(self, key: str, record: Record, expect: str | AnyVersion | None) -> Record:
        stored = self._records.get(key)
        if stored == record:  # the same write, repeated
            return record
        if expect is not ANY and (stored.version if stored else None) != expect:
            raise Superseded("A newer record is stored.", record=stored)
        self._records[key] = record
        self._wake(key)
        return record

    def _free(self, key: str) -> bool:
        holder = self._holders.get(key)
        if holder is not None and holder.orphaned:
            self._interrupted[key] = holder.began
            del self._holders[key]
            holder.slot.release()
            return True
        return holder is None

    def _grant(self, key: str, record: Record | None, now: float, slot: Slot) -> MemoryClaim:
        holder = _Holder(now, self._interrupted.pop(key, None), slot, os.getpid())
        self._holders[key] = holder
        return MemoryClaim(self, key, record, holder)

    def _release(self, key: str, holder: _Holder, *, resolved: bool) -> None:
        """End this holder's claim if it still has it. Never ends another holder's."""
        if self._holders.get(key) is not holder:
            return
        del self._holders[key]
        if holder.predecessor is not None and not resolved:
            self._interrupted[key] = holder.predecessor  # the next holder must know too
        self._wake(key)
        holder.slot.release()

    async def _wait_for_change(self, key: str, seconds: float, slot: Slot | None = None) -> None:
        """Return when the record or the claim has changed, the slot is granted, or the time is over."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.setdefault(key, set()).add(waiter)
        timer = loop.create_task(notify_after(self._clock, waiter, seconds))
        try:
            if slot is not None:
                slot.notify_on_grant(waiter)
            await waiter
        finally:
            if not loop.is_closed():  # if it is, this coroutine is being collected long after its loop
                timer.cancel()
            waiters = self._waiters[key]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[key]

    def _wake(self, key: str) -> None:
        for waiter in self._waiters.get(key, ()):
            notify(waiter)

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
        self._version = new_version()

    @property
    def current(self) -> Record | None:
        """The stored record when the claim was granted."""
        return self._current

    @property
    def interrupted(self) -> float | None:
        """Seconds between an interrupted holder's claim and this one, or None."""
        holder = self._holder
        return None if holder.predecessor is None else holder.began - holder.predecessor

    async def commit(self, data: bytes) -> Record:
        """Store `data` and release: see `Claim.commit`. Never waits, so it cannot be cancelled halfway."""
        expect = None if self._current is None else self._current.version
        try:
            return self._store._write(self._key, Record(self._version, bytes(data)), expect)
        finally:  # stored or superseded: either way the record is newer than the interrupted holder's
            self._store._release(self._key, self._holder, resolved=True)

    async def abandon(self) -> None:
        """Release the claim and store nothing."""
        self._store._release(self._key, self._holder, resolved=False)

    def __repr__(self) -> str:
        held = self._store._holders.get(self._key) is self._holder
        return f"<MemoryClaim {'held' if held else 'ended'}, interrupted={self.interrupted}>"
