"""How many claims one store object holds at once: a bounded number of places, given in turn.

Each claim that is held costs a token request over a connection of its own, and with the file and the
SQLite store a descriptor: thousands of sessions that refresh at one moment would run out of both.

Theory of operation
-------------------
* A place is asked for, and given at once or in its turn (FIFO): so nobody polls for one, and a release
  wakes exactly one who waits. It is *handed over*: who is cancelled after that, releases it as ever.
* A place is released from anywhere: the event loop, the worker thread, `SidecarLock.__del__` in the
  midst of anything. So nothing here may wait for a lock. What is to be done is put down first, and then
  done by whoever gets the lock; who does not get it leaves it to the one who has it, who looks again.
* A place whose event loop is closed can never be released by its owner. Who finds no place free takes
  those away. The child of a fork holds none of its parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable

from ...clock import Clock
from ...errors import ClaimTimeout

__all__ = ["MAX_CLAIMS", "Slot", "Slots", "notify_after", "notify"]

MAX_CLAIMS = 64
"""Claims that one store object holds at once. Far below the 256 descriptors of the meanest default."""


class Slot:
    """The right to take one claim: `held` once it is given, until `release`."""

    __slots__ = ("__weakref__", "_slots", "_waiter", "held", "loop")

    def __init__(self, slots: Slots, loop: asyncio.AbstractEventLoop) -> None:
        self._slots = slots
        self._waiter: asyncio.Future[None] | None = None
        self.loop = loop
        self.held = False

    def notify_on_grant(self, waiter: asyncio.Future[None]) -> None:
        """This future, of the place's own loop, gets its result when the place is given."""
        self._waiter = waiter
        if self.held:  # given meanwhile, perhaps by another thread, which saw no waiter yet
            notify(waiter)

    async def wait(self, clock: Clock, seconds: float) -> None:
        """Return when the place is given, or after so many seconds. Releases nothing."""
        waiter = self.loop.create_future()
        self.notify_on_grant(waiter)
        timer = self.loop.create_task(notify_after(clock, waiter, seconds))
        try:
            await waiter
        finally:
            if not self.loop.is_closed():  # else this coroutine is being thrown away, long after its loop
                timer.cancel()

    def release(self) -> None:
        """Give it back, or no longer wait for it. Any thread, any moment; safe to call twice."""
        self._slots._end(self)

    def _grant_slot(self) -> None:
        self.held = True
        if self._waiter is not None:
            with contextlib.suppress(RuntimeError):  # its loop was closed this moment
                self.loop.call_soon_threadsafe(notify, self._waiter)

    def __repr__(self) -> str:
        return f"<Place {'held' if self.held else 'not held'}>"


class Slots:
    """So many places as `MAX_CLAIMS` says. `sweep` lets go of what those held whose loops are closed.

    Mutable state: `_taken`, changed only under `lock`; `_queue` (in the order of asking), which grows
    at any time; `_ended`, those to be taken out of both; `_news`, whether there is anything to do.
    """

    def __init__(self, *, sweep: Callable[[], None] = lambda: None) -> None:
        self.limit = MAX_CLAIMS
        self._sweep = sweep
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._news = False
        self._taken: set[Slot] = set()
        self._queue: OrderedDict[Slot, None] = OrderedDict()
        self._ended: deque[Slot] = deque()

    @property
    def in_use(self) -> int:
        """How many places are held."""
        return len(self._taken)

    @property
    def waiting(self) -> int:
        """How many are waited for."""
        return len(self._queue)

    def request(self, loop: asyncio.AbstractEventLoop) -> Slot:
        """A place for a claim in this loop: `held` at once if one is free and nobody waits.

        To be released in any case.
        """
        slot = Slot(self, loop)
        self._queue[slot] = None
        self._serve()
        if not slot.held:
            self._reclaim_orphaned()
        return slot

    def timeout(self, slot: Slot | None, seconds: float) -> ClaimTimeout:
        """The error of who has waited so long for this place; without one, for the key's holder."""
        if slot is None:
            return ClaimTimeout(f"Another holder has kept the claim for {seconds:g} s.")
        return ClaimTimeout(
            f"This store holds {self.limit} claims at once; none of them has come free in {seconds:g} s."
        )

    def _end(self, slot: Slot) -> None:
        self._ended.append(slot)
        self._serve()

    def _reclaim_orphaned(self) -> None:
        """Take away what nobody can release any more."""
        self._sweep()
        for slot in list(self._taken):
            if slot.loop.is_closed():
                slot.release()

    def _serve(self) -> None:
        self._news = True
        # Who fails to get the lock has left his news to its owner, who looks again after letting it go.
        while self._news and self._lock.acquire(blocking=False):
            try:
                self._news = False
                while self._ended:
                    self._forget(self._ended.popleft())
                while self._queue and len(self._taken) < self.limit:
                    slot, _ = self._queue.popitem(last=False)
                    if not slot.loop.is_closed():
                        self._taken.add(slot)
                        slot._grant_slot()
            finally:
                self._lock.release()

    def _forget(self, slot: Slot) -> None:
        slot.held = False
        self._queue.pop(slot, None)
        self._taken.discard(slot)

    def __repr__(self) -> str:
        return f"<Slots {self.in_use} of {self.limit} in use, {self.waiting} waited for>"


def notify(waiter: asyncio.Future[None]) -> None:
    """Wake who waits for this future."""
    # A waiter of a closed loop is gone, and must not be told: its loop would raise.
    if not waiter.done() and not waiter.get_loop().is_closed():
        waiter.set_result(None)


async def notify_after(clock: Clock, waiter: asyncio.Future[None], seconds: float) -> None:
    """Wake who waits for this future, after so many seconds."""
    await clock.sleep(seconds)
    notify(waiter)


# A fork concerns the whole process, and its hook cannot be taken back.
_all: weakref.WeakSet[Slots] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for slots in list(_all):
        slots._reset()  # who held and who waited stayed in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
