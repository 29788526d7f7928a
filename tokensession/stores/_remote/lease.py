"""Claims that are leases on a server: what such stores share.

Theory of operation
-------------------
* A claim is a lease in the key's row or hash: an owner, and when it ends, by the server's clock. No other
  clock counts. The holder renews it every third of its length. A holder that is dead, stopped or cut off does
  not, so its lease ends and the next one takes over. The server tells that one what the lost holder had sent.
* The lease is for efficiency. Correctness is the comparison of versions in `commit`, which is one step at the
  server and does not look at the lease.
* A waiter holds nothing at the server. It tries, then waits for a wake-up or for its next look, whichever
  comes first. A wake-up may get lost, and then that look finds the record. If it does not say what was
  stored, one waiter for each key looks, and wakes the others if there is a record.
* Every operation is idempotent: an owner is random and drawn once for each call of `claim`, a version once
  for each claim. So an operation whose answer got lost is simply done again.
* Every operation that changes something runs in a task of its own, to its end. A caller that is cancelled
  leaves it alone. If a claim is granted to a caller that is gone, it is abandoned in the same task. (A driver
  that is cancelled in the middle of a command drops its connection, and the server has granted the claim.)

An event loop that ends (`asyncio.run`) cancels these tasks too. Then each does its operation once more,
because that may be the commit of a rotated refresh token.

Mutable state: the tasks (those that give up a claim end when the store is closed), the waiters by key, and
the claims that are renewed. After a fork, or in another event loop, those of before are left alone: a task
or waiter counts in its own loop only, a claim in its own process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import secrets
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Self, TypeVar

from ...clock import Clock, Timer
from ...errors import ClaimTimeout, StoreCorrupt, StoreError, StoreUnavailable, Superseded
from ..protocol import Record, new_version
from .ending import begin
from .operations import Grant, Held, NoAnswer, Operations

__all__ = ["LEASE", "READ_PATIENCE", "LeasedClaim", "Leases", "log_failed_write"]

T = TypeVar("T")

_log = logging.getLogger("tokensession.stores")

# All in seconds.
LEASE = 10.0  # longer than most pauses of a process, shorter than a person's patience
RECHECK = 0.5  # between two looks of a waiter that is not woken
READ_PATIENCE = 2.0  # for a server that does not answer: callers wait, and nothing is lost
WRITE_PATIENCE = 5.0  # a server that restarts is back by then; shorter than `Policy.store_timeout`
_FIRST_PAUSE = 0.025  # between two tries; each pause is twice as long as the one before
_LONGEST_PAUSE = 0.5


class _Waiter:
    """A caller of `claim` that waits for another version than `seen`. One of `leases` in its `with` block."""

    __slots__ = ("_changed", "_key", "_leases", "_loop", "_seen", "told")

    def __init__(self, leases: Leases, key: str, seen: str | None) -> None:
        self._leases = leases
        self._key = key
        self._seen = seen
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self.told = False  # of a version, as all others were

    def __enter__(self) -> Self:
        self._leases.waiters.setdefault(self._key, set()).add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        waiters = self._leases.waiters[self._key]
        waiters.discard(self)
        if not waiters:
            del self._leases.waiters[self._key]
        elif kind is not GeneratorExit:  # in that case its event loop is gone
            self._leases.notify(self._key, None)  # this may have been the one that was to look

    def begin(self) -> None:
        """Forget the wake-ups until now: a look begins, which sees what they are about."""
        self._changed.clear()

    async def wait(self, clock: Clock, seconds: float) -> None:
        timer = Timer(clock, seconds, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    def notify(self, loop: asyncio.AbstractEventLoop, version: str | None) -> bool:
        """Whether it is one of this loop that has not seen this version: then it looks."""
        looks = self._loop is loop and (version is None or version != self._seen)
        if looks:
            self._changed.set()
            self.told = self.told or version is not None
        return looks


class Leases:
    """Grants the claims of one store, over its operations, and runs those to their end.

    `lease`: the length of a lease. `recheck`: between two looks of a waiter. `on_wait` is called before a
    caller begins to wait, for a store that subscribes to wake-ups then. It raises nothing.
    """

    def __init__(
        self,
        operations: Operations,
        clock: Clock,
        *,
        lease: float = LEASE,
        recheck: float = RECHECK,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        self.operations = operations
        self.clock = clock
        self.lease = lease
        self._recheck = recheck
        self._on_wait = on_wait
        self._tasks: set[asyncio.Task[Any]] = set()
        self._giving_up: set[asyncio.Task[None]] = set()
        self.waiters: dict[str, set[_Waiter]] = {}
        self.renewed: weakref.WeakSet[LeasedClaim] = weakref.WeakSet()

    async def claim(self, key: str, *, seen: str | None, timeout: float) -> LeasedClaim | Record:
        """See `Store.claim`."""
        # ASCII, so it is the same bytes whatever encoding a client is set to.
        owner = f"{secrets.token_hex(8)} {os.getpid()} {ascii(platform.node())[1:-1]}"
        deadline = self.clock.boot() + timeout
        with _Waiter(self, key, seen) as waiter:
            while True:
                waiter.begin()
                found = await self._try_claim(key, seen, owner)
                if isinstance(found, Record) and not waiter.told:
                    self.notify(key, found.version)
                if not isinstance(found, Held):
                    return found
                left = deadline - self.clock.boot()
                if left <= 0:
                    raise ClaimTimeout(f"After {timeout:g} s the claim was still held by {found}.")
                if self._on_wait is not None:
                    self._on_wait()
                # Spread over time, so that a crowd does not look at once.
                pause = self._recheck * (0.75 + self.clock.jitter() / 2)
                await waiter.wait(self.clock, min(pause, left, max(found.ends, 0.001)))

    async def _try_claim(self, key: str, seen: str | None, owner: str) -> LeasedClaim | Record | Held:
        gone = False

        async def attempt() -> LeasedClaim | Record | Held:
            try:
                found = await self.operations.try_claim(key, seen, owner)
            except StoreCorrupt:
                await self.operations.abandon(key, owner)
                raise
            if not isinstance(found, Grant):
                return found
            claim = LeasedClaim(self, key, owner, found)
            if gone:
                await claim._abandon()
            return claim

        def abandon(task: asyncio.Task[LeasedClaim | Record | Held]) -> None:
            nonlocal gone
            gone = True
            if not task.done():
                task.add_done_callback(give_up_if_failed)
            elif task.cancelled() or task.exception() is not None:
                give_up_if_failed(task)
            elif isinstance(found := task.result(), LeasedClaim):
                self._start(partial(_quietly, found._abandon), READ_PATIENCE)

        def give_up_if_failed(task: asyncio.Task[LeasedClaim | Record | Held]) -> None:
            if not task.cancelled() and isinstance(task.exception(), StoreUnavailable):
                self._begin_to_give_up(key, owner)

        try:
            return await self.run(attempt, patience=READ_PATIENCE, on_abandoned=abandon)
        except StoreUnavailable:
            self._begin_to_give_up(key, owner)
            raise

    def _begin_to_give_up(self, key: str, owner: str) -> None:
        # The server may have the command, and grant the claim when it goes on. No one would renew it, but for
        # as long as its lease the key would be blocked.
        task = asyncio.get_running_loop().create_task(self._give_up(key, owner))
        self._giving_up.add(task)
        task.add_done_callback(self._giving_up.discard)

    async def _give_up(self, key: str, owner: str) -> None:
        """Release a claim that was asked for in vain, as soon as the server answers again."""
        until, answers = self.clock.boot() + self.lease, 0
        while answers < 2 and self.clock.boot() < until:  # this may overtake the other command, so twice
            try:
                await self.operations.abandon(key, owner)
                answers += 1
            except NoAnswer:
                pass
            except StoreError:
                return
            await self.clock.sleep(self._recheck)

    def notify(self, key: str, version: str | None) -> None:
        """Wake the waiters for this key that have not seen this version.

        None: something has changed, perhaps. Then one of them looks, and wakes the others if need be.
        """
        loop = asyncio.get_running_loop()
        for waiter in self.waiters.get(key, ()):
            if waiter.notify(loop, version) and version is None:
                return

    def notify_all(self) -> None:
        """Let a waiter for each key look: messages may have been lost."""
        for key in self.waiters:
            self.notify(key, None)

    async def run(
        self,
        call: Callable[[], Coroutine[Any, Any, T]],
        *,
        patience: float = WRITE_PATIENCE,
        on_abandoned: Callable[[asyncio.Task[T]], None] | None = None,
    ) -> T:
        """The result of this idempotent call, which runs to its end in a task of its own.

        It is tried again for `patience` seconds while there is `NoAnswer`. If the caller is cancelled,
        `on_abandoned` is called at once with the task, which may be done. Without it, a failure is logged.
        """
        done = asyncio.get_running_loop().create_future()  # cancelling it does not reach the task
        task = self._start(call, patience, done)
        try:
            await done
        except BaseException:  # cancelled, or collected with its event loop
            if on_abandoned is not None:
                on_abandoned(task)
                task.add_done_callback(_retrieve_exception)
            else:
                task.add_done_callback(log_failed_write)
            raise
        try:
            return task.result()
        finally:
            del task  # an error keeps this frame in its traceback, and the task keeps the error

    def start(self, call: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run this call in a task of its own, for no caller. It raises nothing."""
        self._start(call, 0.0)

    def _start(
        self,
        call: Callable[[], Coroutine[Any, Any, T]],
        patience: float,
        done: asyncio.Future[None] | None = None,
    ) -> asyncio.Task[T]:
        task = begin(partial(self._finish, call, patience, done))
        self._tasks.add(task)
        return task

    async def _finish(
        self,
        call: Callable[[], Coroutine[Any, Any, T]],
        patience: float,
        done: asyncio.Future[None] | None,
    ) -> T:
        """The result of the call, tried again for so many seconds while there is no answer.

        A cancellation comes from the end of the event loop, which waits for this task: it makes the call
        again. Sets `done` in its last step. So a caller wakes in the next turn of the loop, when the task is
        over.
        """
        deadline, pause, cancelled = self.clock.boot() + patience, 0.0, False
        task: Any = asyncio.current_task()
        try:
            while True:
                try:
                    if pause:
                        await self.clock.sleep(pause)
                    return await call()
                except NoAnswer as failed:
                    pause = min(2 * pause or _FIRST_PAUSE, _LONGEST_PAUSE)
                    if self.clock.boot() + pause >= deadline:
                        raise failed.error from failed.__cause__
                except asyncio.CancelledError:
                    if cancelled:
                        raise
                    cancelled = True
                    task.uncancel()
        except GeneratorExit:  # the event loop is gone, and its callers with it
            done = None
            raise
        finally:
            self._tasks.discard(task)
            del task  # an error keeps this frame in its traceback, and the task keeps the error
            if done is not None and not done.done():
                done.set_result(None)

    async def settle(self) -> None:
        """Wait until all operations that have begun in this event loop are done."""
        loop, this = asyncio.get_running_loop(), asyncio.current_task()
        while running := [
            task for task in self._tasks if task.get_loop() is loop and task is not this and not task.done()
        ]:
            await asyncio.wait(running)

    async def aclose(self) -> None:
        """Finish what has begun, and give back the leases of claims that are still held. Safe to call twice.

        Their next holders take over at once, as if this process had died now, and learn what was sent.
        """
        await self.settle()
        mine = [claim for claim in self.renewed if claim.pid == os.getpid()]
        await asyncio.gather(*(claim.let_lapse() for claim in mine))
        await self.settle()
        loop = asyncio.get_running_loop()
        if giving_up := [task for task in self._giving_up if task.get_loop() is loop]:
            for task in giving_up:
                task.cancel()
            await asyncio.wait(giving_up)


class LeasedClaim:
    """A claim that is a lease on a server. See `tokensession.stores.Claim`.

    It draws its version once, so a commit that is repeated because its result got lost finds itself stored. A
    claim that is collected is not renewed any more.

    Mutable state: the timer of the next renewal, and whether the claim was committed or abandoned.
    """

    def __init__(self, leases: Leases, key: str, owner: str, grant: Grant) -> None:
        self._leases = leases
        self._key = key
        self._owner = owner
        self._grant = grant
        self._version = new_version()
        self._ended = False
        self._timer: Timer | None = None
        self.pid = os.getpid()
        self._renew_later(leases.lease / 3)

    @property
    def current(self) -> Record | None:
        """The stored record when the claim was granted."""
        return self._grant.record

    @property
    def interrupted(self) -> float | None:
        """Seconds between the request of an interrupted holder and this claim, or None."""
        return self._grant.interrupted

    @property
    def listening(self) -> float:
        """For how many seconds more that holder may be listening: its lease has lapsed, but it may live."""
        return self._grant.listening

    async def sending(self, *, listening: float = 0.0) -> None:
        """Leave the mark at the server: see `Claim.sending`."""
        await self._leases.run(partial(self._sending, listening))

    async def _sending(self, listening: float) -> None:
        ours = self.pid == os.getpid()  # in a forked child it is the parent's
        if not ours or not await self._leases.operations.sending(self._key, self._owner, listening):
            self._stop_renewing()
            raise StoreUnavailable(
                "This claim has ended, or its lease ran out and another holder took over. So no token "
                "request may be sent under it.",
                todo="Claim the key again.",
            )

    async def commit(self, data: bytes) -> Record:
        """Store `data` and release, in one step: see `Claim.commit`."""
        record = Record(self._version, bytes(data))
        del data  # if a reporter prints this frame's locals, a Record shows nothing
        return await self._leases.run(partial(self._commit, record))

    async def _commit(self, record: Record) -> Record:
        expect = None if self.current is None else self.current.version
        stored = await self._leases.operations.commit(
            self._key, self._owner, expect, record.version, record.data
        )
        self._end(stored.version)
        return stored

    async def abandon(self) -> None:
        """Release the claim and store nothing. Does nothing if it has ended."""
        await self._leases.run(self._abandon)

    async def _abandon(self) -> None:
        self._stop_renewing()  # if the server does not answer, the lease ends by itself
        if not self._ended and self.pid == os.getpid():
            await self._leases.operations.abandon(self._key, self._owner)
            self._end(None)

    async def let_lapse(self) -> None:
        """Stop renewing, and end the lease now, as if this process had died."""
        self._stop_renewing()
        await self._leases.run(partial(_quietly, partial(self._renew, 0.0)), patience=0.0)

    def _end(self, version: str | None) -> None:
        self._ended = True
        self._stop_renewing()
        self._leases.notify(self._key, version)  # those in this process need no message

    def _renew_later(self, seconds: float) -> None:
        """Renew the lease after this many seconds, if there still is a claim then."""
        if not self._ended:
            self._timer = Timer(self._leases.clock, seconds, partial(_renew_now, weakref.ref(self)))
            self._leases.renewed.add(self)

    def _stop_renewing(self) -> None:
        timer, self._timer = self._timer, None
        self._leases.renewed.discard(self)
        if timer is not None:
            timer.cancel()

    async def _keep(self) -> None:
        """Renew the lease, and again after a third of its length, or sooner if the server does not answer."""
        timer, lease = self._timer, self._leases.lease
        if timer is None:
            return  # the claim has ended since its timer ran out
        try:
            kept, pause = await self._renew(lease), lease / 3
        except (StoreError, NoAnswer):
            kept, pause = True, lease / 10
        if self._timer is not timer:
            return  # the claim has ended
        if kept:
            self._renew_later(pause)
        else:
            self._stop_renewing()
            _log.info("The lease of a claim ran out before it could be renewed: it is held elsewhere.")

    async def _renew(self, seconds: float) -> bool:
        return await self._leases.operations.renew(self._key, self._owner, seconds)

    def __repr__(self) -> str:
        return f"<LeasedClaim {'ended' if self._ended else 'held'}, interrupted={self.interrupted}>"


def _renew_now(reference: weakref.ref[LeasedClaim]) -> None:
    claim = reference()
    if claim is not None:
        claim._leases.start(claim._keep)


async def _quietly(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Make this call, and ignore a server that fails at it: the lease ends by itself."""
    with contextlib.suppress(StoreError, NoAnswer):
        await call()


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Retrieve the exception, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def log_failed_write(task: asyncio.Task[Any]) -> None:
    """Log that a write has failed, because its cancelled caller never learns of it."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, Superseded):
        _log.warning("A write whose caller was cancelled failed: %s", error)
