"""Claims whose exclusion is a `SidecarLock`: those of the file store and of the SQLite store.

A waiter looks at the record and tries the lock, again and again, and never waits *in* the lock: so a
new record reaches all of them at once, and none of them queues. (Blocking in the lock would leak it when
a waiter is cancelled.) Between two looks it glances at the lock file, which every release changes. A look
costs half a millisecond of processor time, most of it for waking the worker thread; a glance is one
`lstat` in the event loop: a microsecond, and no I/O, for the file was opened a moment ago on a disk of this
machine. What changes nothing about the file (a holder that was killed, a sign-in beside the claim) the
next look finds. The road not taken is inotify: its descriptors are few for each user, and waking everybody
at the same moment is no faster for the last of many.

Who gets the lock needs a place, too (see `slots`); if none is free he lets go of the lock, and waits
for a place first. He is woken when it is his turn; until then he, too, looks at the record, the less
often the more of them wait.
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
from .lock import Mark, SidecarLock, stat_signature, release_orphaned, try_lock
from .slots import Slot, Slots
from .files import map_os_errors
from .worker import Worker
from ..protocol import Record, new_version

__all__ = ["Claims", "LocalClaim", "Medium", "report_lost"]

_log = logging.getLogger("tokensession.stores")

_SHORTEST = 0.005  # seconds between two looks, at first
_LONGEST = 0.1
_GLANCE = 0.01  # seconds between two glances; more, if many wait
_GLANCES = 0.00025  # seconds between two glances, on average, of all those who wait for a holder
_BESIDE = 0.025  # seconds between two looks of one who waits for a place; more, if many do
_APART = 0.001  # seconds between two looks, on average, of all those who wait for a place


class Medium(Protocol):
    """What a store's claims need of it. All of it runs in its worker thread, and may raise `Busy`."""

    def read(self, key: str) -> Record | None:
        """The stored record."""
        ...

    def write(self, key: str, record: Record, expect: str | None) -> Record:
        """Replace the version `expect` by this record, durably, and return what is stored.

        Raises `Superseded`, unless this very record is what is stored.
        """
        ...

    def prepare(self, key: str) -> Path:
        """The key's lock file. Raises unless a write could begin now."""
        ...


@dataclass(frozen=True, slots=True)
class _Taken:
    """The claim is somebody else's, and this is what its lock file looked like."""

    path: Path
    state: tuple[int, int] | None

    @property
    def changed(self) -> bool:
        state = stat_signature(self.path)
        return state is not None and state != self.state


_Found: TypeAlias = "LocalClaim | Record | Slot | _Taken | None"


class Claims:
    """Grants the claims of one store.

    Mutable state, touched in the event loop: `_waiting`, how many wait for a holder.
    """

    def __init__(self, medium: Medium, worker: Worker, clock: Clock) -> None:
        self._medium = medium
        self._worker = worker
        self._clock = clock
        self._slots = Slots(sweep=release_orphaned)
        self._waiting = 0

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        """See `Store.claim`."""
        deadline = self._clock.boot() + timeout
        loop = asyncio.get_running_loop()
        pause = _SHORTEST
        slot: Slot | None = None
        try:
            while True:
                job: Callable[[], _Found]
                if slot is None or slot.held:
                    given, slot = slot, None  # to the job, which may outlive this call
                    job, settled = partial(self._try, key, seen, loop, given), partial(_settled, given)
                    found = await self._worker.run(job, on_abandoned=self._on_abandoned, settled=settled)
                else:
                    found = await self._worker.run(partial(self._look, key, seen))
                if isinstance(found, Slot):
                    slot = found
                elif isinstance(found, LocalClaim | Record):
                    return found
                left = deadline - self._clock.boot()
                if left <= 0:
                    raise self._slots.timeout(slot, timeout)
                if isinstance(found, _Taken):
                    changed = await self._watch_signature(found, min(pause, left))
                    pause = _SHORTEST if changed else min(pause * 1.5, _LONGEST)
                elif slot is not None:
                    await slot.wait(self._clock, min(max(_BESIDE, _APART * self._slots.waiting), left))
        finally:
            if slot is not None:
                slot.release()

    async def _watch_signature(self, in_use: _Taken, seconds: float) -> bool:
        """Wait so long, or until the lock file has changed; whether it has."""
        until = self._clock.boot() + seconds
        self._waiting += 1
        try:
            while (left := until - self._clock.boot()) > 0:
                await self._clock.sleep(min(max(_GLANCE, _GLANCES * self._waiting), left))
                if in_use.changed:
                    return True
            return False
        finally:
            self._waiting -= 1

    def _look(self, key: str, seen: str | None) -> Record | None:
        record = self._medium.read(key)
        return record if record is not None and record.version != seen else None

    def _try(
        self, key: str, seen: str | None, loop: asyncio.AbstractEventLoop, slot: Slot | None
    ) -> _Found:
        """A newer record, the claim, the place to wait for first, or how somebody else has the claim."""
        if (record := self._look(key, seen)) is not None:
            return record
        path = self._medium.prepare(key)
        with map_os_errors("locked", path):
            in_use = _Taken(path, stat_signature(path))  # before: what is released from here on is noticed
            lock = try_lock(path)
            if lock is None:
                return in_use
            try:
                lock.slot = slot or self._slots.request(loop)
                if not lock.slot.held:
                    lock.slot, slot = None, lock.slot
                    lock.unlock()
                    return slot
                return self._under(lock, key, seen)
            except BaseException:
                if slot is not None:
                    lock.slot = None  # `_settled` gives it back; a job that is made again (`Busy`) needs it
                lock.unlock()
                raise

    def _under(self, lock: SidecarLock, key: str, seen: str | None) -> LocalClaim | Record:
        record = self._medium.read(key)  # again: it may have been replaced before we had the lock
        if record is not None and record.version != seen:
            lock.unlock()
            return record
        now = self._clock.boot()
        found = lock.mark(now)
        if found is not None and record is not None and found.version == record.version:
            found = None  # killed after its commit: that holder ended
        mark = Mark(now, new_version())
        lock.begin(mark)
        return LocalClaim(self._medium, self._worker, lock, key, record, mark, found)

    def _on_abandoned(self, outcome: Future[_Found]) -> None:
        """Nobody is there any more to be given this claim, or this place."""
        found = None if outcome.exception() is not None else outcome.result()
        if isinstance(found, LocalClaim):
            self._worker.post(found.end)
        elif isinstance(found, Slot):
            found.release()


def _settled(given: Slot | None, outcome: Future[_Found]) -> None:
    """Only a claim goes on holding its place, until its lock is let go."""
    if given is not None and (
        outcome.exception() is not None or not isinstance(outcome.result(), LocalClaim)
    ):
        given.release()


class LocalClaim:
    """A claim held by a `SidecarLock`. See `tokensession.stores.protocol.Claim`.

    Its version is drawn once, so that a commit whose answer was lost finds itself stored when it is
    made again. `found` is the mark of an earlier holder that never ended; it is put back if this
    holder learns no more of it and abandons, so that the next one knows too.
    """

    def __init__(
        self,
        medium: Medium,
        worker: Worker,
        lock: SidecarLock,
        key: str,
        current: Record | None,
        mark: Mark,
        found: Mark | None,
    ) -> None:
        self._medium = medium
        self._worker = worker
        self._lock = lock
        self._key = key
        self._current = current
        self._mark = mark
        self._found = found

    @property
    def current(self) -> Record | None:
        """What was stored when the claim was granted."""
        return self._current

    @property
    def interrupted(self) -> float | None:
        """Seconds since an earlier holder began that never ended, as of when this one began."""
        return None if self._found is None else self._found.age(self._mark.began)

    async def commit(self, data: bytes) -> Record:
        """Store `data` and release, in one job: see `Claim.commit`."""
        record = Record(self._mark.version, bytes(data))
        del data  # a Record shows nothing of it, should this frame be reported with its locals
        return await self._worker.run(partial(self._commit, record), on_abandoned=self._on_abandoned)

    async def abandon(self) -> None:
        """Release the claim with nothing stored."""
        await self._worker.run(self.end)

    def _commit(self, record: Record) -> Record:
        self._lock.free_reserve()
        expect = None if self._current is None else self._current.version
        try:
            record = self._medium.write(self._key, record, expect)
        except Superseded:
            self._lock.release()
            raise
        self._lock.release()
        return record

    def _on_abandoned(self, outcome: Future[Record]) -> None:
        report_lost(outcome)  # if it failed the claim is still held: whoever made it commits again, or abandons

    def end(self) -> None:
        """Release, in the worker thread; nothing if that has happened."""
        self._lock.release(self._found)

    def __repr__(self) -> str:
        return f"<LocalClaim {'held' if self._lock.held else 'ended'}, interrupted={self.interrupted}>"


def report_lost(outcome: Future[Record] | Future[bool]) -> None:
    """Say it if a write failed and its caller, cancelled, will never learn of it."""
    error = outcome.exception()
    if error is not None and not isinstance(error, Superseded):
        _log.warning("A write whose caller was cancelled failed: %s", error)
