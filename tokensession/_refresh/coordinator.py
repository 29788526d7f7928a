"""The refreshes, sign-ins and sign-outs of one key in this process.

Theory of operation
-------------------
At most one refresh runs at a time, and every caller who wants a token joins it. The claim makes it one per
store. `source.py` decides when a refresh is wanted, `transaction.py` does it, `cache.py` remembers the
outcome, and this module connects them.

A refresh lives as long as it is worth it for a caller. Each caller waits for at most
`Policy.caller_timeout`. Those without a usable token wait through failures, if the next attempt is soon
enough. If all of them have given up while a token request is on the wire that spends its refresh token, the
refresh goes on *late*: its answer has the next one.

Mutable state, all of it used in one event loop and never assumed unchanged across an await:

- `cache`: what is known, the token being served, and the last failure (a state machine of its own).
- `_pending`: the state that could not be stored yet. `_saving`: the task that tries again.
- `_current`: the running refresh. `_tasks`: that one, and running sign-ins, sign-outs and writes.

Nothing is bound to an event loop when you make it. A task left behind by a closed loop is dropped. A task
in another running loop is an error: a source serves one loop at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .. import events
from ..clock import Clock, Timer, within
from ..errors import (
    InvalidTokenResponse,
    OutcomeUnknown,
    SignedOut,
    StoreError,
    StoreUnavailable,
    TokenSessionError,
    TokenUnavailable,
)
from ..policy import Freshness, Policy
from ..providers.protocol import DEVICE_CODE, Credential
from ..token import Token
from .cache import TokenCache
from .decide import Fail, Serve, Wait, Want, freshness, is_new
from .operation import Operation
from .pending_writes import PendingWrites
from .record import KeyRecord
from .sign_ins import SignIns, stopped
from .single_flight import SharedTask, SharedTasks
from .state import TokenState
from .transaction import Outcome, RefreshTransaction

__all__ = ["RefreshCoordinator"]

T = TypeVar("T")

_log = logging.getLogger("tokensession")

_LAST_PART = 0.2  # of the close timeout, for stopping and saving what has not finished by itself
_LONG_WAIT = 1.0  # seconds; a longer wait at closing is logged


class RefreshCoordinator:
    """What is running for one key, and in `cache` what has come of it."""

    __slots__ = (
        "_clock",
        "_current",
        "_operation",
        "_pending",
        "_policy",
        "_record",
        "_report",
        "_saving",
        "_sign_ins",
        "_signing_in",
        "_tasks",
        "_transaction",
        "cache",
    )

    def __init__(self, record: KeyRecord) -> None:
        self.cache: TokenCache = record.cache
        self._record = record
        self._transaction = RefreshTransaction(record)
        self._sign_ins = SignIns(record)
        self._clock: Clock = record.access.clock
        self._policy: Policy = record.access.policy
        self._report = record.report
        self._pending: PendingWrites = record.pending
        self._tasks = SharedTasks()
        self._current: SharedTask[Token] | None = None
        self._operation: Operation | None = None
        self._saving: SharedTask[None] | None = None
        self._signing_in: dict[Credential, SharedTask[Token]] = {}

    @property
    def refreshing(self) -> bool:
        """Whether a refresh is running."""
        return self._current is not None and self._current in self._tasks.running

    @property
    def unsaved(self) -> bool:
        """Whether something still waits to be stored."""
        return self._pending.pending is not None

    def enter(self) -> None:
        """Be used in another event loop, or again after closing."""
        if self._current is None or self._current.orphaned:
            self._current = self._operation = None  # a closed loop has left it behind
        self._save_later()  # the loop that went on with it has ended, or closing has stopped it

    # -- refreshing -------------------------------------------------------------------------------

    def start_background(self) -> None:
        """Start a refresh that no caller waits for, unless one is running."""
        if not self._running_refresh():
            self._start_refresh("due")

    def refresh(self, reason: str, *, patient: bool, force: bool = False) -> SharedTask[Token]:
        """The running refresh, or a new one. Join it, and pass what came of that to `outcome`.

        Raises the remembered failure, if there is one and the next attempt is not soon. `patient`: wait
        through failures. `force`: although a refusal is remembered.
        """
        task = self._running_refresh()
        if task is None:
            boot, policy = self._clock.boot(), self._policy
            error = None if force else self.cache.remembered(boot)
            within_reach = min(policy.retry_within, policy.caller_timeout)
            soon = patient and self.cache.next_attempt <= boot + within_reach
            if error is not None and not (soon and isinstance(error, TokenUnavailable)):
                raise error
            task = self._start_refresh(reason, force=force)
        return task

    def outcome(self, task: SharedTask[Token], in_time: bool) -> Token:
        """The token that this refresh has brought, or its error, or that of a caller whose time is over."""
        if not in_time:
            raise self._out_of_time()
        return task.outcome()

    async def join(self, reason: str, *, force: bool = False) -> Token:
        """Wait for the running refresh, or a new one. `force`: it is one that is forced, too."""
        task = self._running_refresh()
        while force and task is not None and self._operation is not None and not self._operation.force:
            if not await task.join():  # whatever comes of it: if it fails, that is to be overcome
                raise self._out_of_time()
            task = self._running_refresh()
        task = self.refresh(reason, patient=True, force=force)
        return self.outcome(task, await task.join(patient=True))

    async def check(self) -> None:
        """Look at the store, and raise what a caller would get. Sends nothing."""
        step = await self._transaction.check(Want(self.cache.served))
        if isinstance(step, Serve):
            self._serve(step.state)
        if isinstance(step, Fail) and isinstance(step.error, SignedOut):
            self.cache.forget()
        now = self._record.access.now()
        valid = self.cache.deadlines.freshness(now.wall, now.boot) is not Freshness.EXPIRED
        if isinstance(step, Fail | Wait) and not valid:
            raise step.error

    def _out_of_time(self) -> TokenSessionError:
        """What a caller gets at its bound: why there is no token, if that is known."""
        if self._operation is not None and self._operation.failure is not None:
            return self._operation.failure.again()
        seconds = self._policy.caller_timeout
        return OutcomeUnknown(
            f"There was no token within {seconds:g} s. The refresh goes on, and a late answer is not lost."
        )

    def _running_refresh(self) -> SharedTask[Token] | None:
        """The refresh to join, if there is one."""
        task = self._current
        if task is None or task.done or task.released or self._record.access.is_stuck(task.task):
            self._current = None
            return None
        if task.in_other_loop:
            raise RuntimeError(
                "This source is refreshing in another running event loop. A source serves one loop at a "
                "time: make one per thread, over a store that threads can share, such as SQLiteStore."
            )
        return task

    def _start_refresh(self, reason: str, *, force: bool = False) -> SharedTask[Token]:
        cache, key = self.cache, self._record.key
        unauthorized = None
        if reason == "unauthorized" and cache.token is not None:
            unauthorized = cache.token.fingerprint
            cache.counters.unauthorized += 1
            self._report(events.TokenUnauthorized(key, unauthorized))
        operation = self._operation = Operation(self._clock, self._policy, force=force)
        cache.counters.refreshes += 1
        self._report(events.RefreshStarted(key, operation.id, reason))
        if cache.state is not None:
            operation.order = cache.state.order
        want = Want(cache.served, unauthorized, force, background=reason == "due", used_up=cache.used_up)
        task = self._start(self._refresh(want, operation), "refresh", operation)
        operation.cancel = task.cancel
        self._current = None if task.done else task  # an eager task factory has already run it
        return task

    async def _refresh(self, want: Want, operation: Operation) -> Token:
        try:
            try:
                outcome = await self._transaction.run(want, operation)
            except asyncio.CancelledError:
                self._fail(operation.stopped(), operation)
                raise
            except Exception as error:  # noqa: BLE001 - a third-party store may raise anything
                failure = self._fail(error, operation)
                raise failure from failure.__cause__
            return self._publish(outcome, want, operation)
        finally:
            if any(task.released and task.current for task in self._tasks.running):
                self._record.overtaken(operation.failure)
            self._save_later()
            if self._operation is operation:
                self._operation = None
            if self._current is not None and self._current.current:
                self._current = None  # it ends in this very step; an idle source holds no task

    def _publish(self, outcome: Outcome, want: Want, operation: Operation) -> Token:
        """Serve the token of this outcome from now on, and report how the refresh ended."""
        cache, key = self.cache, self._record.key
        token, now, duration = outcome.state.servable, self._record.access.now(), operation.duration
        if token is None:  # `decide` never serves a state without a token
            raise InvalidTokenResponse("The stored state has no token that can be used.")
        if outcome.requested:
            cache.counters.token_requests += 1
            self._report(events.Refreshed(key, operation.id, duration, token.fingerprint, token.lifetime))
        elif outcome.held or token.fingerprint == want.unauthorized:
            self._report(events.RefreshHeld(key, operation.id, duration, token.fingerprint))
        else:
            cache.counters.adopted += 1
            self._report(events.Adopted(key, operation.id, duration, token.fingerprint))
        self._serve(outcome.state, requested=outcome.requested)
        if outcome.held:
            cache.hold(now)
        elif token.fingerprint == want.unauthorized:
            cache.serve_same(now.boot, self._clock.jitter())
        return token

    def _fail(self, error: BaseException, operation: Operation) -> TokenSessionError:
        """Remember a failure, so that callers get it at once and cause no further attempt."""
        now, cache, key = self._record.access.now(), self.cache, self._record.key
        if not isinstance(error, TokenSessionError):
            unexpected = TokenSessionError(f"The refresh failed unexpectedly ({type(error).__name__}).")
            unexpected.__cause__ = error
            error = unexpected
        state = cache.state
        signed_out = state is not None and state.signed_out and state.order > operation.order
        if signed_out and state is not None and not self._starts_anew(state):
            error = SignedOut("This key was signed out.")  # while this refresh was running
        signed_in = state is not None and not state.signed_out
        behind = operation.ended_by is not None and (signed_in or self._operation is not operation)
        if behind:
            pass  # a sign-in or a refresh has come since the sign-out, and knows more
        elif isinstance(error, SignedOut):
            cache.forget()  # a rejection leaves the access token valid; a sign-out is about it
        else:
            self._serve_known()
        until = operation.until
        if isinstance(error, TokenUnavailable) and error.retry_after is not None:
            until = max(until, now.boot + error.retry_after)
        new = behind or cache.fail(error, until, now.boot, jitter=self._clock.jitter())
        self._report(
            events.RefreshFailed(
                key,
                operation.id,
                operation.duration,
                type(error).__name__,
                str(error),
                still_usable=cache.deadlines.usable_for(now.wall, now.boot),
                ask_again=cache.look_after - now.boot,
                next_attempt=cache.pause(now.boot),
                repeated=not new,
            )
        )
        if isinstance(error, StoreError) and cache.error is not error:
            return cache.repeated(now.boot) or error  # it is still true, and says more
        return error

    def _serve_known(self) -> None:
        """Serve a token that was found but was not good enough, because it is ending: it is still valid."""
        cache, now = self.cache, self._record.access.now()
        known = self._record.known()
        state = known.state if known is not None else None
        if state is None or state.servable is None or cache.serves(state) or self._starts_anew(state):
            return
        if freshness(state, self._policy, now) is not Freshness.EXPIRED:
            self._serve(state)

    def _starts_anew(self, state: TokenState) -> bool:
        """Whether this state descends from an older configuration than ours."""
        configured = self._record.provider.credential
        return configured is not None and is_new(configured, state, has_served=self.cache.has_served)

    def _serve(self, state: TokenState, *, requested: bool = False) -> None:
        """Serve this state's token from now on, or nothing if it has none."""
        if self.cache.serves(state):
            return
        now = self._record.access.now()
        self.cache.serve(state, self._policy, now, jitter=self._clock.jitter(), requested=requested)
        if (left := self.cache.ends_soon(now.boot)) is not None:
            self._report(events.SignInEndsSoon(self._record.key, left))

    # -- what could not be stored -------------------------------------------------------------------

    def _save_later(self) -> None:
        """Keep trying to store what could not be stored, if there is anything."""
        self._revoke_later()
        if not self.unsaved or self._saving in self._tasks.running:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closing: the next refresh, or closing, goes on
            self._saving = self._start(self._until_stored(), "save")

    async def _until_stored(self) -> None:
        while self.unsaved:
            if (result := await self._pending.until_stored()) is not None:
                self._record.learn(result.seen)
        self._revoke_later()
        known = self._record.known()
        if known is not None and not known.state.problem:  # else what is served is still the best there is
            self._serve(known.state)

    # -- signing in and out ------------------------------------------------------------------------

    def _start(
        self, work: Coroutine[Any, Any, T], what: str, operation: Operation | None = None
    ) -> SharedTask[T]:
        name = f"tokensession {what} {self._record.key}"
        if operation is None:
            return self._tasks.start(work, name=name, on_stopped=stopped if what == "sign-in" else None)
        return self._tasks.start(work, name=name, on_stopped=operation.stopped, waiters=operation.waiters)

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

    async def _sign_in(self, credential: Credential) -> Token:
        key, operation = self._record.key, Operation(self._clock, self._policy)
        # Not if it is not sent (a user has reloaded a page), or if no one may have approved it yet.
        if credential.grant_type != DEVICE_CODE and not self._sign_ins.has_redeemed(credential):
            self._stop_listening()
            for task in self._tasks.running:
                if task.released:  # its claim is in the way
                    task.cancel()
        try:
            state, requested = await self._sign_ins.sign_in(credential, operation)
        except BaseException:
            self._want_again()
            raise
        finally:
            self._signing_in.pop(credential, None)
            self._save_later()
        token = state.servable
        if token is None:
            raise InvalidTokenResponse("The sign-in brought no token that can be used.")
        newest = self._pending.pending or self.cache.state
        if newest is not None and newest.order == state.order:  # else there has been another, or a sign-out
            self._serve(state, requested=requested)
        elif newest is not None and newest.number == state.number:
            token = newest.servable or token  # it has been refreshed since
        self._report(events.SignedIn(key, operation.id, operation.duration, token.fingerprint))
        if self._operation is not None and self._operation.sending is None:
            self._want_again()  # what it sends next is of this sign-in
        self._look_now()
        return token

    def sign_out(self) -> SharedTask[None]:
        """Store a tombstone, and forget the token."""
        return self._start(self._sign_out(), "sign-out")

    async def _sign_out(self) -> None:
        ended = await self._sign_ins.sign_out()
        self.cache.forget()
        if self._operation is not None and self._current is not None:
            self._operation.ended_by = error = SignedOut("This key was signed out.")
            if self._operation.on_the_wire and self._record.requests.revokes:
                self._current.release(error)  # its answer has a token that is to be revoked
                self._stop_listening()
            else:
                self._current.cancel()
        self._report(events.SignOutStored(self._record.key))
        self._look_now()
        if ended is not None:
            await self._record.revoke(ended)

    def _revoke_later(self) -> None:
        """Revoke the new tokens that a sign-out has overtaken, if there are any."""
        ended, self._pending.ended = self._pending.ended, ()
        for token in ended:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._start(self._record.revoke(token), "revocation")

    def _look_now(self) -> None:
        if self._operation is not None:
            self._operation.look()

    def _want_again(self) -> None:
        """A refresh that is running may go on late: the sign-in is over, or has failed."""
        if self._operation is not None:
            self._operation.unwanted = False

    def _stop_listening(self, *, unwanted: bool = True) -> None:
        """End a wait for a late answer. `unwanted`: begin none either, because it is not to be used."""
        if self._operation is not None and self._current is not None:
            self._operation.unwanted = unwanted
            if self._operation.is_late:
                self._current.cancel()

    # -- closing ------------------------------------------------------------------------------------

    async def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Let what is running finish, save what is unsaved, then run `last`: all within the close timeout."""
        policy, clock = self._policy, self._clock
        end = clock.boot() + policy.close_timeout
        notice = Timer(
            clock,
            _LONG_WAIT,
            lambda: _log.info(
                "Closing %s: a refresh is still running, or its token is still to be stored. "
                "This takes at most %g s.",
                self._record.key,
                policy.close_timeout,
            ),
        )
        left: tuple[SharedTask[Any], ...] = ()
        if self._operation is not None:
            self._operation.closing = True
            self._operation.look()
        try:
            self._stop_listening(unwanted=False)
            try:
                await self._bounded(policy.close_timeout * (1 - _LAST_PART), self._finish())
            except TimeoutError:
                left = self._tasks.running
                with contextlib.suppress(TimeoutError):  # a store that hangs may not even stop
                    await self._bounded((end - clock.boot()) / 3, self._tasks.cancel())
                with contextlib.suppress(TimeoutError, StoreError):
                    await self._bounded((end - clock.boot()) / 3, self._record.settle())
            unsaved = self.unsaved
            with contextlib.suppress(TimeoutError):
                # Otherwise no process could refresh as long as this object exists.
                await self._bounded((end - clock.boot()) / 2, self._pending.release_claims())
            if self._saving is not None:
                self._saving.cancel()
                self._saving = None
        finally:
            notice.cancel()
            if self._operation is not None:
                self._operation.closing = False
        if last is not None:  # not after a cancellation: the next call to close goes on
            with contextlib.suppress(TimeoutError):
                await self._bounded(max(0.1, end - clock.boot()), last())
        if unsaved or any(task in left for task in self._tasks.running):
            raise StoreUnavailable(
                "The outcome of the last token request could not be saved before the session closed.",
                intact="It is kept in memory: if you use this session again, it goes on from there. The "
                "stored credentials are those from before the last refresh.",
                todo="Repair the store. If the old refresh token is then rejected, sign in again.",
            )

    async def _bounded(self, seconds: float, work: Coroutine[Any, Any, None]) -> None:
        """Do this in the closing caller's own task, for so many seconds: cancelling it ends it at once."""
        cleanup = min(2.0, seconds / 4)
        await within(self._clock, max(0.0, seconds - cleanup), work, on_abandoned=_nothing, cleanup=cleanup)

    async def _finish(self) -> None:
        tasks: list[SharedTask[Any]] | None = None
        while tasks is None or tasks:
            with contextlib.suppress(StoreError):
                await self._record.settle()
            self._revoke_later()
            tasks = [task for task in self._tasks.running if task is not self._saving]
            for task in tasks:
                await task.drain()

    def __repr__(self) -> str:
        return f"<RefreshCoordinator of {self._record.key}, {len(self._tasks.running)} running>"


async def _nothing(_result: None) -> None:
    """What closing has done stays done."""
