"""A limit on the claims that one store object holds at once: slots, granted in order.

Each claim costs a token request over its own connection and, in the file and SQLite stores, a file
descriptor. Thousands of sessions that refresh at the same moment would run out of both.

Theory of operation
-------------------
* You enqueue a slot, and it is granted at once or in its turn (first in, first out). So no waiter polls, and
  a release wakes exactly one of them. The slot is *handed over*: a waiter that is cancelled after the grant
  releases it as usual.
* A slot may be released anywhere: in the event loop, in the worker thread, or in `SidecarLock.__del__` in the
  middle of anything. So nothing here may wait for a lock. A caller writes down what is to do, and then the
  caller that gets the lock does it. One that does not get the lock leaves its work to the one that has it,
  which looks again after unlocking.
* A slot whose event loop is closed cannot be released by its owner. When no slot is free, such slots are
  reclaimed. The child of a fork has none of its parent's slots.
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

__all__ = ["MAX_CLAIMS", "Slot", "Slots", "notify", "notify_after"]

MAX_CLAIMS = 64
"""The claims that one store object holds at once. The lowest default limit of descriptors is 256."""


class Slot:
    """The right to hold one claim, from `granted` until `release`."""

    __slots__ = ("__weakref__", "_slots", "_waiter", "granted", "loop")

    def __init__(self, slots: Slots, loop: asyncio.AbstractEventLoop) -> None:
        self._slots = slots
        self._waiter: asyncio.Future[None] | None = None
        self.loop: asyncio.AbstractEventLoop = loop
        self.granted: bool = False

    def notify_on_grant(self, waiter: asyncio.Future[None]) -> None:
        """Set the result of this future, which is of the slot's loop, when the slot is granted."""
        self._waiter = waiter
        if self.granted:  # perhaps just now by another thread, which saw no waiter yet
            notify(waiter)

    async def wait(self, clock: Clock, seconds: float) -> None:
        """Return when the slot is granted or the time is over. Releases nothing."""
        waiter = self.loop.create_future()
        self.notify_on_grant(waiter)
        timer = self.loop.create_task(notify_after(clock, waiter, seconds))
        try:
            await waiter
        finally:
            if not self.loop.is_closed():  # if it is, this coroutine is being collected long after its loop
                timer.cancel()

    def release(self) -> None:
        """Give the slot up, granted or not. Callable from any thread at any time; safe to call twice."""
        self._slots._release(self)

    def _grant(self) -> None:
        self.granted = True
        if self._waiter is not None:
            with contextlib.suppress(RuntimeError):  # its loop has just been closed
                self.loop.call_soon_threadsafe(notify, self._waiter)

    def __repr__(self) -> str:
        return f"<Slot {'granted' if self.granted else 'not granted'}>"


class Slots:
    """`MAX_CLAIMS` slots. `release_orphaned` releases the locks of claims whose event loop is closed.

    Mutable state: `_granted`, changed only under `_lock`; `_queue`, in order, which grows at any time;
    `_released`, to be removed from both; `_work_left`, whether there is anything to do.
    """

    def __init__(self, *, release_orphaned: Callable[[], None] = lambda: None) -> None:
        self.limit = MAX_CLAIMS
        self._release_orphaned = release_orphaned
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._work_left = False
        self._granted: set[Slot] = set()
        self._queue: OrderedDict[Slot, None] = OrderedDict()
        self._released: deque[Slot] = deque()

    @property
    def in_use(self) -> int:
        """The number of granted slots."""
        return len(self._granted)

    @property
    def waiting(self) -> int:
        """The number of slots that wait to be granted."""
        return len(self._queue)

    def enqueue(self, loop: asyncio.AbstractEventLoop) -> Slot:
        """A slot for a claim in this loop: `granted` at once if one is free and none waits before it.

        Release it in any case.
        """
        slot = Slot(self, loop)
        self._queue[slot] = None
        self._update()
        if not slot.granted:
            self._reclaim_orphaned()
        return slot

    def timeout_error(self, slot: Slot | None, seconds: float) -> ClaimTimeout:
        """The error of a caller that has waited for this slot, or without one for the key's holder."""
        if slot is None:
            return ClaimTimeout(f"The claim was still held elsewhere after {seconds:g} s.")
        return ClaimTimeout(
            f"This store object holds its maximum of {self.limit} claims, and none was released within "
            f"{seconds:g} s."
        )

    def _release(self, slot: Slot) -> None:
        self._released.append(slot)
        self._update()

    def _reclaim_orphaned(self) -> None:
        """Release the slots whose owners can no longer do it."""
        self._release_orphaned()
        for slot in list(self._granted):
            if slot.loop.is_closed():
                slot.release()

    def _update(self) -> None:
        self._work_left = True
        # A caller that fails to get the lock has left its work to the one that has it.
        while self._work_left and self._lock.acquire(blocking=False):
            try:
                self._work_left = False
                while self._released:
                    self._forget(self._released.popleft())
                while self._queue and len(self._granted) < self.limit:
                    slot, _ = self._queue.popitem(last=False)
                    if not slot.loop.is_closed():
                        self._granted.add(slot)
                        slot._grant()
            finally:
                self._lock.release()

    def _forget(self, slot: Slot) -> None:
        slot.granted = False
        self._queue.pop(slot, None)
        self._granted.discard(slot)

    def __repr__(self) -> str:
        return f"<Slots {self.in_use} of {self.limit} in use, {self.waiting} waiting>"


def notify(waiter: asyncio.Future[None]) -> None:
    """Wake the task that waits for this future."""
    # Setting the result of a future whose loop is closed would raise.
    if not waiter.done() and not waiter.get_loop().is_closed():
        waiter.set_result(None)


async def notify_after(clock: Clock, waiter: asyncio.Future[None], seconds: float) -> None:
    """Wake the task that waits for this future, after that many seconds."""
    await clock.sleep(seconds)
    notify(waiter)


# A fork concerns the whole process, and its hook cannot be removed.
_all: weakref.WeakSet[Slots] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for slots in list(_all):
        slots._reset()  # the holders and waiters are in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
