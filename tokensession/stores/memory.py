"""Records in this process's memory: the default, and the measure of the contract.

Nothing here awaits anything but its turn, so every other step is atomic: no lock, no thread. A
waiter is woken at once, looks at the record, and tries again; being woken hands nothing over, so a
waiter that is cancelled takes nothing with it.

Nothing is bound to an event loop but the waiters and the holders, who live in one. A holder whose loop
is closed can never end its claim: it counts as interrupted, and the next one takes over. So does one
that stayed behind in the parent of a fork.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from ..clock import Clock, SystemClock
from ..errors import Superseded
from ._local.slots import Slot, Slots, notify_after, notify
from .protocol import ANY, AnyVersion, Record, check_key, new_version

__all__ = ["MemoryStore"]


@dataclass(frozen=True, slots=True, eq=False)
class _Holder:
    """Who holds a key's claim; compared by identity. `found` is when one began that never ended."""

    began: float
    found: float | None
    slot: Slot
    pid: int

    @property
    def gone(self) -> bool:
        return self.slot.loop.is_closed() or self.pid != os.getpid()


class MemoryStore:
    """Keeps records until the process ends. `clock` dates claims and bounds waiting.

    It may be used in several event loops, one after another, but not from several threads.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self._records: dict[str, Record] = {}
        self._holders: dict[str, _Holder] = {}
        self._interrupted: dict[str, float] = {}  # key -> when somebody began who never ended
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._slots = Slots()

    async def load(self, key: str) -> Record | None:
        """The whole record, or None. Never waits for a claim."""
        return self._records.get(check_key(key))

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> MemoryClaim | Record:
        """A newer record than `seen`, or the only claim. See `Store.claim`. `timeout` in seconds."""
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
                    slot = slot or self._slots.request(asyncio.get_running_loop())
                    if slot.held:
                        given, slot = slot, None
                        return self._grant(key, record, now, given)
                elif slot is not None:  # who waits for the key's holder keeps nobody else waiting
                    slot.release()
                    slot = None
                if deadline is None:
                    deadline = now + timeout
                if now >= deadline:
                    raise self._slots.timeout(slot, timeout)
                await self._changed(key, deadline - now, slot)
        finally:
            if slot is not None:
                slot.release()

    async def put(self, key: str, data: bytes, *, expect: str | AnyVersion | None = ANY) -> Record:
        """Store `data` under a new version, claim or no claim. See `Store.put`."""
        check_key(key)
        return self._write(key, Record(new_version(), bytes(data)), expect)

    async def delete(self, key: str, *, expect: str | AnyVersion = ANY) -> bool:
        """Forget the record; whether there was one. See `Store.delete`."""
        stored = self._records.get(check_key(key))
        if stored is None:
            return False
        if expect is not ANY and stored.version != expect:
            raise Superseded("A newer record is stored.", record=stored)
        del self._records[key]
        self._wake(key)
        return True

    async def keys(self) -> list[str]:
        """Every key that has a record, sorted."""
        return sorted(self._records)

    async def aclose(self) -> None:
        """Nothing to let go of. The records stay as long as the store does."""

    def _write(self, key: str, record: Record, expect: str | AnyVersion | None) -> Record:
        stored = self._records.get(key)
        if stored == record:  # this very write, made before
            return record
        if expect is not ANY and (stored.version if stored else None) != expect:
            raise Superseded("A newer record is stored.", record=stored)
        self._records[key] = record
        self._wake(key)
        return record

    def _free(self, key: str) -> bool:
        holder = self._holders.get(key)
        if holder is not None and holder.gone:
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
        """End this holder's claim, if it is still its own. Nobody else's is ever released."""
        if self._holders.get(key) is not holder:
            return
        del self._holders[key]
        if holder.found is not None and not resolved:
            self._interrupted[key] = holder.found  # the next one must know, too
        self._wake(key)
        holder.slot.release()

    async def _changed(self, key: str, seconds: float, slot: Slot | None = None) -> None:
        """Return when the record or the claim has changed, the place is given, or after so many seconds."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.setdefault(key, set()).add(waiter)
        timer = loop.create_task(notify_after(self._clock, waiter, seconds))
        try:
            if slot is not None:
                slot.notify_on_grant(waiter)
            await waiter
        finally:
            if not loop.is_closed():  # else this coroutine is being thrown away, long after its loop
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
    """See `tokensession.stores.protocol.Claim`. Its version is drawn once, so that a commit repeats itself."""

    def __init__(self, store: MemoryStore, key: str, current: Record | None, holder: _Holder) -> None:
        self._store = store
        self._key = key
        self._current = current
        self._holder = holder
        self._version = new_version()

    @property
    def current(self) -> Record | None:
        """What was stored when the claim was granted."""
        return self._current

    @property
    def interrupted(self) -> float | None:
        """Seconds since an earlier holder began that never ended, as of when this one began."""
        return None if self._holder.found is None else self._holder.began - self._holder.found

    async def commit(self, data: bytes) -> Record:
        """Store `data` and release: see `Claim.commit`. Never waits, so it cannot be cancelled halfway."""
        expect = None if self._current is None else self._current.version
        try:
            return self._store._write(self._key, Record(self._version, bytes(data)), expect)
        finally:  # superseded or not: there is a newer record than the interrupted holder's
            self._store._release(self._key, self._holder, resolved=True)

    async def abandon(self) -> None:
        """Release the claim with nothing stored."""
        self._store._release(self._key, self._holder, resolved=False)

    def __repr__(self) -> str:
        held = self._store._holders.get(self._key) is self._holder
        return f"<MemoryClaim {'held' if held else 'ended'}, interrupted={self.interrupted}>"
