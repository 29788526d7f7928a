"""Claims of the file store and of the SQLite store. A `SidecarLock` makes them exclusive.

A waiter looks at the record and tries the lock, again and again. It never waits *in* the lock, so a new
record reaches all waiters at once and none of them queues. (A blocking lock call would also leak the lock
when its waiter is cancelled.)

All of it is one job of the worker thread, which tries it again about every four milliseconds (`TryLater`).
The event loop only waits for its result: no file is looked at there, because on a hung mount even an `lstat`
does not return. A look at the record costs a hundred microseconds. So between two looks a waiter only
watches the size of the lock file, which every release changes: that is one `lstat`. What does not change the
file (a killed holder, a sign-in during the claim) is found by the next look. We do not use inotify: each user
has few descriptors for it, and waking all waiters in the same moment is not faster for the last of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

from ...clock import Clock
from ...errors import ClaimTimeout, Superseded
from ..protocol import Record, new_version
from .files import map_os_errors
from .lock import HeldElsewhere, Holder, Mark, SidecarLock, try_lock
from .worker import TryLater, Worker

__all__ = ["Claims", "LocalClaim", "Records", "log_failed_write"]

_log = logging.getLogger("tokensession.stores")

# All in seconds.
_FIRST_PAUSE = 0.005  # between two looks, at first
_LONGEST_PAUSE = 0.1


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

    def reserve(self, key: str) -> None:
        """Take what `write` will need, or raise. The claim is ours."""
        ...

    def unreserve(self, key: str) -> None:
        """Give it back: there is no `write`. The claim is still ours. Raises nothing."""
        ...


_Found: TypeAlias = "LocalClaim | Record | HeldElsewhere"


class Claims:
    """Grants the claims of one store."""

    def __init__(self, records: Records, worker: Worker, clock: Clock) -> None:
        self._records = records
        self._worker = worker
        self._clock = clock

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LocalClaim | Record:
        """See `Store.claim`."""
        attempt = partial(self._try_claim, key, seen, asyncio.get_running_loop())
        wait = _Wait(attempt, self._clock, timeout)
        return await self._worker.run(wait, droppable=True, on_abandoned=self._on_abandoned)

    def _look(self, key: str, seen: str | None) -> Record | None:
        record = self._records.read(key)
        return record if record is not None and record.version != seen else None

    def _try_claim(self, key: str, seen: str | None, loop: asyncio.AbstractEventLoop) -> _Found:
        """A newer record, the claim, or who has it."""
        if (record := self._look(key, seen)) is not None:
            return record
        path = self._records.prepare(key)
        with map_os_errors("locked", path):
            lock = try_lock(path)
            if isinstance(lock, HeldElsewhere):
                return lock
            lock.loop = loop
            try:
                return self._look_under_lock(lock, key, seen)
            except BaseException:
                self._records.unreserve(key)
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
        self._records.reserve(key)
        version = new_version()
        lock.begin(Holder(now, os.getpid(), os.uname().nodename), nonce=int(version[:3], 16))
        interrupted = None if predecessor is None else predecessor.age(now)
        return LocalClaim(
            self._records, self._worker, self._clock, lock, key, record, version, predecessor, interrupted
        )

    def _on_abandoned(self, outcome: Future[LocalClaim | Record]) -> None:
        """The caller was cancelled: release the claim that it would have got."""
        found = None if outcome.exception() is not None else outcome.result()
        if isinstance(found, LocalClaim):
            self._worker.post(found.end)


class _Wait:
    """Waits for a claim or a newer record, as a job that the worker tries again and again.

    `attempt` looks at the record and tries the lock. `timeout`: in seconds of the clock.

    Mutable state, touched in the worker thread: who held the lock at the last look, the pause after it, and
    when that is over.
    """

    def __init__(self, attempt: Callable[[], _Found], clock: Clock, timeout: float) -> None:
        self._attempt = attempt
        self._clock = clock
        self._timeout = timeout
        self._deadline = clock.boot() + timeout
        self._held: HeldElsewhere | None = None
        self._pause = 0.0
        self._next_look = 0.0

    def __call__(self) -> LocalClaim | Record:
        held, now = self._held, self._clock.boot()
        changed = held is None or held.changed
        if not changed and now < self._next_look:
            raise TryLater
        found = self._attempt()
        if not isinstance(found, HeldElsewhere):
            return found
        if now >= self._deadline:
            holder = "another holder" if found.holder is None else found.holder.describe(now)
            raise ClaimTimeout(f"After {self._timeout:g} s the claim was still held by {holder}.")
        self._held = found
        self._pause = _FIRST_PAUSE if changed else min(self._pause * 1.5, _LONGEST_PAUSE)
        self._next_look = min(now + self._pause, self._deadline)
        raise TryLater


class LocalClaim:
    """A claim that holds a `SidecarLock`. See `tokensession.stores.Claim`.

    It draws its version once, so a commit that is repeated because its result got lost finds itself stored.
    `predecessor` is the mark of an interrupted holder. If this claim is abandoned, the mark is put back, so
    that the next holder knows too. `interrupted`: how old the mark was when this claim was granted.
    """

    def __init__(
        self,
        records: Records,
        worker: Worker,
        clock: Clock,
        lock: SidecarLock,
        key: str,
        current: Record | None,
        version: str,
        predecessor: Mark | None,
        interrupted: float | None,
    ) -> None:
        self._records = records
        self._worker = worker
        self._clock = clock
        self._lock = lock
        self._key = key
        self._current = current
        self._version = version
        self._predecessor = predecessor
        self._interrupted = interrupted

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
        """0: the kernel has released the lock, so that holder is dead, or its event loop is."""
        return 0.0

    async def sending(self, *, listening: float = 0.0) -> None:
        """Leave the mark in the lock file: see `Claim.sending`."""
        await self._worker.run(partial(self._leave_mark, listening))

    async def commit(self, data: bytes) -> Record:
        """Store `data` and release, in one job: see `Claim.commit`."""
        record = Record(self._version, bytes(data))
        del data  # if a reporter prints this frame's locals, a Record shows nothing
        # If a commit whose caller was cancelled fails, the claim stays held: see `Claim.commit`.
        return await self._worker.run(partial(self._commit, record), on_abandoned=log_failed_write)

    async def abandon(self) -> None:
        """Release the claim and store nothing."""
        await self._worker.run(self.end)

    def _leave_mark(self, listening: float) -> None:
        with map_os_errors("marked", self._lock.path):
            self._lock.leave_mark(Mark(self._clock.boot(), self._version, listening))

    def _commit(self, record: Record) -> Record:
        self._lock.free_reserve()
        expect = None if self._current is None else self._current.version
        try:
            record = self._records.write(self._key, record, expect)
        except Superseded:
            self._predecessor = None  # what is stored is newer than the interrupted holder's request
            raise
        self._lock.release()
        return record

    def end(self) -> None:
        """Release, in the worker thread. Does nothing if the claim has ended."""
        if self._lock.locked:
            self._records.unreserve(self._key)
            self._lock.release(self._predecessor)

    def __repr__(self) -> str:
        return f"<LocalClaim {'held' if self._lock.locked else 'ended'}, interrupted={self.interrupted}>"


def log_failed_write(outcome: Future[Record] | Future[bool]) -> None:
    """Log that a write has failed, because its cancelled caller never learns of it."""
    error = outcome.exception()
    if error is not None and not isinstance(error, Superseded):
        _log.warning("A write whose caller was cancelled failed: %s", error)
