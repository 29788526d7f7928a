"""Claims of the file store and of the SQLite store. A `SidecarLock` makes them exclusive.

A waiter looks at the record and tries the lock, again and again. It never waits *in* the lock, so a new
record reaches all waiters at once and none of them queues. (A blocking lock call would also leak the lock
when its waiter is cancelled.)

A look costs half a millisecond of processor time, mostly for waking the worker thread. So between two looks
a waiter only watches the lock file's stat signature, which every release changes. That is one `lstat` in the
event loop: a microsecond, and no I/O, because the file was opened a moment ago on a local disk. What does
not change the file (a killed holder, a sign-in during the claim) is found by the next look. We do not use
inotify: each user has few descriptors for it, and waking all waiters in the same moment is not faster for
the last of them.

A claim also needs a slot (see `slots`). If none is free, the waiter unlocks and waits for a slot first. It
still looks at the record from time to time: the more wait for a slot, the less often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

from ...clock import Clock
from ...errors import Superseded
from ..protocol import Record, new_version
from .files import map_os_errors
from .lock import Mark, SidecarLock, release_orphaned, stat_signature, try_lock
from .slots import Slot, Slots
from .worker import Worker

__all__ = ["Claims", "LocalClaim", "Records", "log_failed_write"]

_log = logging.getLogger("tokensession.stores")

# All in seconds.
_FIRST_PAUSE = 0.005  # between two looks, at first
_LONGEST_PAUSE = 0.1
_STAT_INTERVAL = 0.01  # between two stats of the lock file by one waiter; longer if there are many
_STAT_SPACING = 0.00025  # between two stats by all waiters together, on average
_SLOT_INTERVAL = 0.025  # between two looks of one waiter for a slot; longer if there are many
_SLOT_SPACING = 0.001  # between two looks of all waiters for a slot together, on average


class Records(Protocol):
    """What claims need of a store. All of it runs in the worker thread, and may raise `Busy`."""

    def read(self, key: str) -> Record | None:
        """The stored record."""
        ...

    def write(self, key: str, record: Record, expect: str | None) -> Record:
        """Replace the version `expect` by this record, durably, and return what is stored.

        Raises `Superseded`, unless this very record is what is stored.
        """
        ...

    def prepare(self, key: str) -> Path:
        """The path of the key's lock file. Raises unless a write could begin now."""
        ...


@dataclass(frozen=True, slots=True)
class _HeldElsewhere:
    """Another holder has the claim. `signature` is the stat signature of its lock file."""

    path: Path
    signature: tuple[int, int] | None

    @property
    def changed(self) -> bool:
        signature = stat_signature(self.path)
        return signature is not None and signature != self.signature


_Found: TypeAlias = "LocalClaim | Record | Slot | _HeldElsewhere | None"


class Claims:
    """Grants the claims of one store.

    Mutable state, touched in the event loop: `_waiting`, the number of waiters for a holder.
    """

    def __init__(self, records: Records, worker: Worker, clock: Clock) -> None:
        self._records = records
        self._worker = worker
        self._clock = clock
        self._slots = Slots(release_orphaned=release_orphaned)
        self._waiting = 0

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        """See `Store.claim`."""
        deadline = self._clock.boot() + timeout
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        slot: Slot | None = None
        try:
            while True:
                job: Callable[[], _Found]
                if slot is None or slot.granted:
                    given, slot = slot, None  # to the job, which may outlive this call
                    job = partial(self._try_claim, key, seen, loop, given)
                    found = await self._worker.run(
                        job, on_abandoned=self._on_abandoned, on_done=partial(_release_unless_claimed, given)
                    )
                else:
                    found = await self._worker.run(partial(self._look, key, seen))
                if isinstance(found, Slot):
                    slot = found
                elif isinstance(found, LocalClaim | Record):
                    return found
                left = deadline - self._clock.boot()
                if left <= 0:
                    raise self._slots.timeout_error(slot, timeout)
                if isinstance(found, _HeldElsewhere):
                    changed = await self._wait_for_change(found, min(pause, left))
                    pause = _FIRST_PAUSE if changed else min(pause * 1.5, _LONGEST_PAUSE)
                elif slot is not None:
                    interval = max(_SLOT_INTERVAL, _SLOT_SPACING * self._slots.waiting)
                    await slot.wait(self._clock, min(interval, left))
        finally:
            if slot is not None:
                slot.release()

    async def _wait_for_change(self, held: _HeldElsewhere, seconds: float) -> bool:
        """Return when the lock file has changed or the time is over. Returns whether it has changed."""
        until = self._clock.boot() + seconds
        self._waiting += 1
        try:
            while (left := until - self._clock.boot()) > 0:
                await self._clock.sleep(min(max(_STAT_INTERVAL, _STAT_SPACING * self._waiting), left))
                if held.changed:
                    return True
            return False
        finally:
            self._waiting -= 1

    def _look(self, key: str, seen: str | None) -> Record | None:
        record = self._records.read(key)
        return record if record is not None and record.version != seen else None

    def _try_claim(
        self, key: str, seen: str | None, loop: asyncio.AbstractEventLoop, slot: Slot | None
    ) -> _Found:
        """A newer record, the claim, a slot to wait for first, or the holder that has the claim."""
        if (record := self._look(key, seen)) is not None:
            return record
        path = self._records.prepare(key)
        with map_os_errors("locked", path):
            held = _HeldElsewhere(path, stat_signature(path))  # before locking, to notice any later release
            lock = try_lock(path)
            if lock is None:
                return held
            try:
                lock.slot = slot or self._slots.enqueue(loop)
                if not lock.slot.granted:
                    lock.slot, slot = None, lock.slot
                    lock.unlock()
                    return slot
                return self._look_under_lock(lock, key, seen)
            except BaseException:
                if slot is not None:
                    lock.slot = None  # `on_done` releases it; a repeated job (`Busy`) still needs it
                lock.unlock()
                raise

    def _look_under_lock(self, lock: SidecarLock, key: str, seen: str | None) -> LocalClaim | Record:
        record = self._records.read(key)  # again: it may have been replaced before we had the lock
        if record is not None and record.version != seen:
            lock.unlock()
            return record
        now = self._clock.boot()
        predecessor = lock.mark(now)
        if predecessor is not None and record is not None and predecessor.version == record.version:
            predecessor = None  # it was killed after its commit, so it was not interrupted
        mark = Mark(now, new_version())
        lock.begin(mark)
        return LocalClaim(self._records, self._worker, lock, key, record, mark, predecessor)

    def _on_abandoned(self, outcome: Future[_Found]) -> None:
        """The caller was cancelled: release the claim or slot that it would have got."""
        found = None if outcome.exception() is not None else outcome.result()
        if isinstance(found, LocalClaim):
            self._worker.post(found.end)
        elif isinstance(found, Slot):
            found.release()


def _release_unless_claimed(given: Slot | None, outcome: Future[_Found]) -> None:
    """Release the slot, unless there is a claim now: that releases it with its lock."""
    if given is not None and (
        outcome.exception() is not None or not isinstance(outcome.result(), LocalClaim)
    ):
        given.release()


class LocalClaim:
    """A claim that holds a `SidecarLock`. See `tokensession.stores.Claim`.

    It draws its version once, so a commit that is repeated because its result got lost finds itself stored.
    `predecessor` is the mark of an interrupted holder. If this claim is abandoned, the mark is put back, so
    that the next holder knows too.
    """

    def __init__(
        self,
        records: Records,
        worker: Worker,
        lock: SidecarLock,
        key: str,
        current: Record | None,
        mark: Mark,
        predecessor: Mark | None,
    ) -> None:
        self._records = records
        self._worker = worker
        self._lock = lock
        self._key = key
        self._current = current
        self._mark = mark
        self._predecessor = predecessor

    @property
    def current(self) -> Record | None:
        """The stored record when the claim was granted."""
        return self._current

    @property
    def interrupted(self) -> float | None:
        """Seconds between an interrupted holder's claim and this one, or None."""
        return None if self._predecessor is None else self._predecessor.age(self._mark.began)

    async def commit(self, data: bytes) -> Record:
        """Store `data` and release, in one job: see `Claim.commit`."""
        record = Record(self._mark.version, bytes(data))
        del data  # if a reporter prints this frame's locals, a Record shows nothing
        # If a commit whose caller was cancelled fails, the claim stays held: see `Claim.commit`.
        return await self._worker.run(partial(self._commit, record), on_abandoned=log_failed_write)

    async def abandon(self) -> None:
        """Release the claim and store nothing."""
        await self._worker.run(self.end)

    def _commit(self, record: Record) -> Record:
        self._lock.free_reserve()
        expect = None if self._current is None else self._current.version
        try:
            record = self._records.write(self._key, record, expect)
        except Superseded:
            self._lock.release()
            raise
        self._lock.release()
        return record

    def end(self) -> None:
        """Release, in the worker thread. Does nothing if the claim has ended."""
        self._lock.release(self._predecessor)

    def __repr__(self) -> str:
        return f"<LocalClaim {'held' if self._lock.locked else 'ended'}, interrupted={self.interrupted}>"


def log_failed_write(outcome: Future[Record] | Future[bool]) -> None:
    """Log that a write has failed, because its cancelled caller never learns of it."""
    error = outcome.exception()
    if error is not None and not isinstance(error, Superseded):
        _log.warning("A write whose caller was cancelled failed: %s", error)
