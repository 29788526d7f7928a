"""The refreshes, sign-ins and sign-outs of one key in this process.

Theory of operation
-------------------
At most one refresh runs at a time, and every caller who wants a token joins it. The claim makes it one per
store. `source.py` decides when a refresh is wanted, `transaction.py` does it, `cache.py` remembers the
outcome, and this module connects them.

Mutable state, all of it used in one event loop and never assumed unchanged across an await:

- `cache`: the token being served, its deadlines, and the last failure (a state machine of its own).
- `_unsaved`: what could not be stored yet: tokens, and notes about the outcome of token requests.
- `_current`: the running refresh. `_tasks`: that one, and running sign-ins, sign-outs and writes.
- `_epoch`: counts sign-ins and sign-outs. A refresh that began in an earlier epoch publishes nothing and
  looks again, so a late refresh never undoes a sign-in or sign-out.

Nothing is bound to an event loop when you make it. A task left behind by a closed loop is dropped. A task
in another running loop is an error: a source serves one loop at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .. import events
from ..clock import Clock, within
from ..errors import SignedOut, StoreCorrupt, StoreUnavailable, TokenSessionError
from ..providers.protocol import Credential
from ..token import Token
from .cache import TokenCache
from .pending_writes import PendingWrite, PendingWrites, Unsaved
from .single_flight import SharedTask, SharedTasks
from .state import TokenState
from .store_access import NotStored
from .transaction import Outcome, RefreshTransaction

__all__ = ["RefreshCoordinator"]

T = TypeVar("T")


class RefreshCoordinator:
    """What is running for one key, and in `cache` what has come of it."""

    __slots__ = (
        "_clock",
        "_current",
        "_epoch",
        "_report",
        "_signing_in",
        "_tasks",
        "_transaction",
        "_unsaved",
        "cache",
    )

    def __init__(
        self,
        transaction: RefreshTransaction,
        cache: TokenCache,
        clock: Clock,
        report: Callable[[events.Event], None],
    ) -> None:
        self.cache = cache
        self._transaction = transaction
        self._clock = clock
        self._report = report
        self._tasks = SharedTasks()
        self._current: SharedTask[Token] | None = None
        self._signing_in: dict[Credential, SharedTask[Token]] = {}
        self._epoch = 0
        self._unsaved = PendingWrites()

    @property
    def refreshing(self) -> bool:
        """Whether a refresh is running."""
        return self._current is not None and self._current in self._tasks.running

    @property
    def unsaved(self) -> bool:
        """Whether something still waits to be stored."""
        return self._unsaved.pending

    def start_background(self) -> None:
        """Start a refresh that no caller waits for, unless one is running."""
        if not self._running_refresh():
            self._start_refresh("due")

    def sign_in(self, credential: Credential) -> SharedTask[Token]:
        """Redeem it, and store the result over whatever is there."""
        running = self._tasks.running
        self._signing_in = {key: task for key, task in self._signing_in.items() if task in running}
        if credential in self._signing_in:
            return self._signing_in[credential]  # a code works once: all who bring the same one share it
        task = self._start(self._sign_in(credential), "sign-in")
        if not task.done:
            self._signing_in[credential] = task
        return task

    def sign_out(self) -> SharedTask[None]:
        """Store a tombstone, and forget the token."""
        return self._start(self._sign_out(), "sign-out")

    async def close(self) -> None:
        """Let what is running finish, for at most the close timeout."""
        policy = self._transaction.policy
        left: frozenset[SharedTask[Any]] = frozenset()
        try:
            await within(self._clock, policy.close_timeout, self._finish(), on_abandoned=_cancel_at_once)
        except TimeoutError:
            left = self._tasks.running
            with contextlib.suppress(TimeoutError):  # a store that hangs may not even stop
                stopping = self._tasks.cancel()
                await within(self._clock, policy.orphan_wait, stopping, on_abandoned=_cancel_at_once)
            await self._unsaved.try_all()
        unsaved = self.unsaved
        # Otherwise no process could refresh as long as this object exists.
        with contextlib.suppress(TimeoutError):
            giving_up = self._unsaved.give_up()
            await within(self._clock, policy.orphan_wait, giving_up, on_abandoned=_cancel_at_once)
        if unsaved or left & self._tasks.running:
            raise StoreUnavailable(
                "The outcome of the last token request could not be saved before the session closed.",
                intact="The stored credentials are those from before the last refresh.",
                todo="Repair the store. If the old refresh token is then rejected, sign in again.",
            )

    async def _finish(self) -> None:
        await self._unsaved.try_all()
        await self._tasks.drain()

    # -- refreshing -------------------------------------------------------------------------------

    def join(self, reason: str) -> SharedTask[Token]:
        """The running refresh, or a new one. Raises the remembered failure, if there is one."""
        running = self._running_refresh()
        if running is not None:
            return running
        error = self.cache.remembered(self._clock.boot())
        if error is not None:
            raise error
        return self._start_refresh(reason)

    def _running_refresh(self) -> SharedTask[Token] | None:
        """The refresh to join, if there is one. Drops one that a closed event loop has left behind."""
        task = self._current
        if task is None or task.done or task.orphaned:
            self._current = None
            return None
        if task.in_other_loop:
            raise RuntimeError(
                "This source is refreshing in another running event loop. A source serves one loop at a "
                "time: make one per thread, over a store that threads can share, such as SQLiteStore."
            )
        return task

    def _start_refresh(self, reason: str) -> SharedTask[Token]:
        have = self.cache.token.fingerprint if self.cache.token is not None else None
        if reason == "unauthorized" and have is not None:
            self.cache.counters.unauthorized += 1
            self._report(events.TokenUnauthorized(self._transaction.key, have))
        self.cache.counters.refreshes += 1
        self._report(events.RefreshStarted(self._transaction.key, reason))
        task = self._start(self._refresh(reason, have), "refresh")
        self._current = None if task.done else task  # an eager task factory has already run it
        return task

    async def _refresh(self, reason: str, have: str | None) -> Token:
        try:
            while True:
                epoch = self._epoch
                try:
                    await self._unsaved.save_all()  # the store's refresh token is older: do not redeem it
                    outcome = await self._transaction.run(have=have, unauthorized=reason == "unauthorized")
                except NotStored as not_stored:
                    if epoch == self._epoch:
                        raise self._failed_unsaved(not_stored) from not_stored.__cause__
                    if isinstance(not_stored.error, asyncio.CancelledError):
                        self._add_pending(not_stored.unsaved, outdated=True)
                        raise not_stored.error from None
                    self._save_later(not_stored.unsaved, outdated=True)
                except Exception as error:  # noqa: BLE001 - a third-party store may raise anything
                    if epoch == self._epoch:
                        failure = self._failed(error)
                        raise failure from failure.__cause__
                else:
                    if epoch == self._epoch:
                        forced = reason == "unauthorized" and have is not None
                        return self._publish(outcome, have=have, forced=forced)
                    self._save_later(outcome.unsaved, outdated=True)
                # There has been a sign-in or sign-out, and its result is in the store. Look again.
                have = None
        finally:
            if self._current is not None and self._current.current:
                self._current = None  # it ends in this very step; an idle source holds no task

    def _failed_unsaved(self, not_stored: NotStored) -> BaseException:
        """What to raise for a refresh that failed or was stopped, and left something to be stored."""
        if not isinstance(not_stored.error, TokenSessionError):
            self._add_pending(not_stored.unsaved)  # for the next refresh, or for closing
            return not_stored.error or not_stored
        failure = self._failed(not_stored.error)
        self._save_later(not_stored.unsaved)
        return failure

    def _publish(self, outcome: Outcome, *, have: str | None, forced: bool = False) -> Token:
        """Serve this token from now on."""
        token = outcome.state.token
        if token is None:  # `decide` never serves a state without a token
            raise StoreCorrupt("The stored state has no token.")
        wall, boot = self._clock.wall(), self._clock.boot()
        clock, policy = self._clock, self._transaction.policy
        self.cache.counters.token_requests += outcome.requested
        if token.fingerprint == have and not outcome.requested:
            self.cache.hold_until_ending(wall, boot)
        else:
            self.cache.counters.adopted += not outcome.requested
            self.cache.serve(
                token, policy, wall, boot, jitter=clock.jitter(), forced=forced, requested=outcome.requested
            )
        self._save_later(outcome.unsaved)
        return token

    def _save_later(self, unsaved: Unsaved | None, *, outdated: bool = False) -> None:
        """Keep trying to store what could not be stored, if there is anything."""
        if unsaved is not None:
            write = self._add_pending(unsaved, outdated=outdated)
            write.trying = self._start(write.until_done(self._clock, self._transaction.policy), "save")

    def _add_pending(self, unsaved: Unsaved, *, outdated: bool = False) -> PendingWrite:
        return self._unsaved.add(
            PendingWrite(unsaved, self._transaction.key, self._report, self._on_superseded, outdated=outdated)
        )

    def _failed(self, error: BaseException) -> TokenSessionError:
        """Remember a failure, so that callers get it at once and cause no further attempt."""
        wall, boot = self._clock.wall(), self._clock.boot()
        if not isinstance(error, TokenSessionError):
            unexpected = TokenSessionError(f"The refresh failed unexpectedly ({type(error).__name__}).")
            unexpected.__cause__ = error
            error = unexpected
        if isinstance(error, SignedOut):
            self.cache.forget()  # a rejection leaves the access token valid; a sign-out is about it
        pause = self.cache.fail(error, self._transaction.policy, wall, boot, jitter=self._clock.jitter())
        self._report_failure(error, pause)
        return error

    def _report_failure(self, error: TokenSessionError, pause: float | None) -> None:
        usable_for = self.cache.deadlines.usable_for(self._clock.wall(), self._clock.boot())
        self._report(
            events.RefreshFailed(self._transaction.key, type(error).__name__, str(error), usable_for, pause)
        )

    # -- signing in and out ------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, T], what: str) -> SharedTask[T]:
        return self._tasks.start(work, name=f"tokensession {what} {self._transaction.key}")

    async def _sign_in(self, credential: Credential) -> Token:
        self._report(events.RefreshStarted(self._transaction.key, "sign-in"))
        epoch = self._epoch
        try:
            outcome = await self._transaction.sign_in(credential, earlier=self._unsaved.tokens)
        except NotStored as not_stored:  # stopped after the token had arrived
            self._unsaved.outdate()
            raise self._failed_unsaved(not_stored) from not_stored.__cause__
        except TokenSessionError as error:
            self._report_failure(error, None)
            raise
        finally:
            self._signing_in.pop(credential, None)
        outdated = self._unsaved.outdate()
        token = self._publish(outcome, have=None)
        if epoch != self._epoch:  # another sign-in or sign-out came between: the store knows which was last
            self.cache.forget()
        self._epoch += 1
        self._report(events.SignedIn(self._transaction.key, token.fingerprint))
        if outcome.unsaved is None:
            await self._unsaved.give_up(outdated)
        return token

    async def _sign_out(self) -> None:
        await self._transaction.sign_out()
        self._epoch += 1
        self.cache.forget()
        self._report(events.SignedOut(self._transaction.key))
        await self._unsaved.give_up()

    def _on_superseded(self, state: TokenState | None) -> None:
        """Serve a newer state instead of the token that came too late to be stored."""
        if state is None or state.token is None:
            self.cache.forget()
        elif state.token != self.cache.token:
            self._publish(Outcome(state), have=None)

    def __repr__(self) -> str:
        return f"<RefreshCoordinator of {self._transaction.key}, {len(self._tasks.running)} running>"


async def _cancel_at_once(_nothing: None) -> None:
    """Closing runs in the caller's own task: if that is cancelled, the cancellation is raised at once."""
