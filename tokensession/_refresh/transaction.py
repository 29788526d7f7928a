"""One refresh, from claim to commit.

Theory of operation
-------------------
`RefreshTransaction.run` runs inside a `SharedTask`, so no caller's cancellation reaches it. It asks `decide`
what to do about what is known, does that, and asks again:

    decide ──► Serve, Hold ─► return the token
      │  ├───► Fail ────────► raise
      │  ├───► Wait ────────► look at the store about once a second, as long as a caller waits; else raise
      │  ├───► Restore ─────► write back what the store has lost, and look again
      │  └───► Read ────────► read the secrets that may change, for what is to be sent or refused
      ▼
    Redeem ─► claim ─► something newer is stored? ─► look again
                │
                ▼
              decide, on the record under the claim
                │
                ▼
              ONE token request. Just before it leaves: `Claim.sending`
                ├── a token   commit it, then hand it out. A newer state there? look again
                └── an error  note it for the other processes (`outcomes.py`), and look again

A step that does not redeem is taken only on what the store says now. Every path out of a claim ends it, by
commit or by abandon. A process that is killed ends it by neither, and the store tells the next holder.

State: none between two calls. What this process remembers is in `cache.py`, and what could not be stored in
`pending_writes.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import events
from ..clock import Clock, Timer
from ..errors import (
    ConfigurationError,
    GrantRejected,
    InvalidTokenResponse,
    NotSent,
    OutcomeUnknown,
    SignInRequired,
    StoreError,
    StoreUnavailable,
    Superseded,
    TokenSessionError,
    TokenUnavailable,
)
from ..policy import Policy
from ..stores.protocol import Claim
from . import pending_writes
from .decide import Fail, Hold, Read, Redeem, Restore, Serve, Step, Wait, Want, foreign
from .next_state import counted, renewed
from .operation import Operation
from .outcomes import Sent, consequence, explained, noted, reason_of, remembered
from .pending_writes import Pending
from .record import KeyRecord
from .request import Sending
from .schedule import look_interval
from .state import TokenState, redeeming
from .store_access import Seen

__all__ = ["Outcome", "RefreshTransaction"]

_ROUNDS = 16  # looks in a row that find the record changed; each means that another process has written


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a refresh: a state whose token may be served.

    `requested`: a token request was made for it. `held`: there is no other token now.
    """

    state: TokenState
    requested: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True)
class RefreshTransaction:
    """The refresh transaction of one key."""

    record: KeyRecord

    @property
    def _clock(self) -> Clock:
        return self.record.access.clock

    @property
    def _policy(self) -> Policy:
        return self.record.access.policy

    async def run(self, want: Want, operation: Operation) -> Outcome:
        """The state to serve. Raises the errors of `errors.py`."""
        # What is pending first: the refresh token in the store is spent.
        await self.record.settle()
        self.record.requests.expire()  # what was refused with another secret is not refused any more
        seen, looked = self.record.known(), False
        if self.record.cache.missing_since is not None:
            seen, looked = await self.record.look(), True
        failure: TokenSessionError | None = None
        step = self.record.decide(seen, want)
        changes = 0
        while True:
            if isinstance(step, Redeem):
                done = await self._redeem(step, want, operation)
                if isinstance(done, Outcome):
                    return done
                seen, step, looked, failure = done.seen, done.step, True, done.failure or failure
                changes = 0 if done.failure else changes + (not isinstance(step, Read))
                if changes > _ROUNDS:
                    raise TokenUnavailable(f"The record changed {_ROUNDS} times during one refresh.")
                if done.failure:
                    want = _after_failure(want, operation)
                    self._report_attempt(done.failure, step, operation)
                continue
            if not looked:
                seen, looked = await self.record.look(), True
                step = self.record.decide(seen, want)
                continue
            match step:
                case Read():
                    done = await self._read(seen, want, operation)
                    seen, step, failure = done.seen, done.step, done.failure or failure
                    if done.failure:
                        want = _after_failure(want, operation)
                        self._report_attempt(done.failure, step, operation)
                case Serve(state):
                    return Outcome(state)
                case Hold(state):
                    return Outcome(state, held=True)
                case Restore(state):
                    await self.record.restore(state, seen)
                    seen, looked = self.record.known(), True
                    step = self.record.decide(seen, want)
                case Wait(until, error, limit):
                    self.record.remember_missing(seen)
                    operation.until, left = until, until - self.record.boot
                    if limit and self.record.boot >= self.record.cache.limited_until:
                        self.record.cache.limited_until = until
                        self.record.report(events.RequestLimitReached(self.record.key, limit, left))
                    known = self.record.cache.repeated(self.record.boot)
                    if isinstance(known, SignInRequired) or type(known) is ConfigurationError:
                        known = None  # of what was stored before: this only has to wait
                    cause = failure or known
                    if cause is not None and reason_of(cause) in error.args[0]:  # else it is over
                        error = cause
                    error = _until(error, left)
                    if not operation.worth_waiting(until):
                        raise error
                    operation.failure = error
                    seen = await self._wait(until, seen, operation)
                    if self.record.boot >= until:
                        self.record.requests.expire()  # read them before the claim, as for the first request
                    step = self.record.decide(seen, want)
                case Fail(error):
                    # A failure that has led to "sign in again" says less than that.
                    told = isinstance(failure, SignInRequired) or not isinstance(error, SignInRequired)
                    raise failure if failure is not None and told else self._in_full(error)

    def _in_full(self, error: TokenSessionError) -> TokenSessionError:
        """This error as it was told the first time, if it is the one that is remembered."""
        known = self.record.cache.error
        if isinstance(error, GrantRejected) and isinstance(known, GrantRejected) and known.code == error.code:
            return known.again()
        return error

    async def check(self, want: Want) -> Step:
        """What a refresh would do now. Reads the store, and sends, claims and writes nothing."""
        requests = replace(self.record.requests)  # with secrets of its own: a refresh may be running
        record = replace(self.record, requests=requests)
        seen = await record.look(copy=False)
        step = record.decide(seen, want)
        if isinstance(step, Read):
            await requests.look()
            step = record.decide(seen, want, read=True)
            if isinstance(step, Redeem) and requests.problem is not None:
                return Fail(requests.problem)
        return step

    async def _read(self, seen: Seen | None, want: Want, operation: Operation) -> _Looked:
        """Read the secrets, and look at the store while that takes: one that hangs must not hide a token."""
        requests, clock = self.record.requests, self._clock
        operation.failure = operation.failure or NotSent("The secrets are still being read.")
        reading = asyncio.ensure_future(requests.look())
        reading.add_done_callback(lambda _: operation.look())
        try:
            while True:
                await operation.pause(look_interval(clock.jitter()))
                if reading.done():
                    break
                if operation.closing:  # nothing has left
                    raise operation.failure
                with contextlib.suppress(StoreError):
                    seen = await self.record.look()
                step = self.record.decide(seen, want)
                if not isinstance(step, Read):
                    return _Looked(seen, step)
        finally:
            reading.cancel()
        step = self.record.decide(seen, want, read=True)
        if requests.problem is None or not isinstance(step, Redeem):
            return _Looked(seen, step)
        self._remember(requests.problem, step.sent, left=False)
        return _Looked(seen, self.record.decide(seen, want, read=True), requests.problem)

    def _remember(self, error: TokenSessionError, sent: Sent, *, left: bool) -> None:
        """Remember a failed request in this process. `left`: it was sent."""
        cache, policy, jitter = self.record.cache, self._policy, self._clock.jitter()
        cache.local = remembered(cache.local, error, sent, policy, self.record.boot, jitter, left=left)

    async def _wait(self, until: float, seen: Seen | None, operation: Operation) -> Seen | None:
        """Wait for the next attempt, but look at the store after a second: there may be a token."""
        clock = self._clock
        await operation.pause(min(look_interval(clock.jitter()), max(0.0, until - clock.boot())))
        try:
            return await self.record.look()
        except StoreError:  # the failure that is being waited through says more
            return seen

    # -- redeeming ------------------------------------------------------------------------------------------

    async def _redeem(self, step: Redeem, want: Want, operation: Operation) -> Outcome | _Looked:
        """Claim the key, look again, and send the token request if that is still the thing to do."""
        operation.failure = None
        with operation.queued():
            release = await self.record.requests.reserve(step.credential)
        try:
            found = await self.record.access.claim(self.record.cache.version)
            if isinstance(found, Seen):
                found = self.record.learn(found) or found
                return _Looked(found, self.record.decide(found, want))
            return await self._under(found, want, operation, release)
        finally:
            release()

    async def _under(
        self, claim: Claim, want: Want, operation: Operation, release: Callable[[], None]
    ) -> Outcome | _Looked:
        """One look under the claim, and the token request. Always ends the claim."""
        try:
            seen = self.record.learn(self.record.access.seen(claim.current))
            first = seen is None and self.record.cache.state is None
            if first and (former := await self.record.former()) is not None:
                self.record.learn(former)
                await self.record.access.abandon(claim)
                return _Looked(former, self.record.decide(former, want))
            changed, seen = await self.record.await_interrupted(claim, seen, operation)
            if changed:  # then our refresh token is spent
                await self.record.access.abandon(claim)
                return _Looked(seen, self.record.decide(seen, want))
            step = self.record.decide(seen, want, claimed=True, interrupted=claim.interrupted)
            if isinstance(step, Redeem):
                return await self._request(claim, seen, step, want, operation, release)
            if isinstance(step, Fail) and step.note is not None:
                await self.record.note(claim, step.note)
            else:
                await self.record.access.abandon(claim)
            return _Looked(seen, step)
        except GeneratorExit:
            raise  # the event loop is gone, and the store tells the next holder
        except BaseException:
            if not self.record.pending.holds(claim):
                await self.record.access.abandon(claim)
            raise

    async def _request(
        self,
        claim: Claim,
        seen: Seen | None,
        step: Redeem,
        want: Want,
        operation: Operation,
        release: Callable[[], None],
    ) -> Outcome | _Looked:
        """The one token request, and what must be stored about its outcome."""
        sending = Sending(
            self.record.access, claim, step.credential, step.state, seen.version if seen is not None else None
        )

        def go_on_late() -> None:
            release()  # it takes no place from other keys
            operation.late()

        late = Timer(self._clock, self._policy.caller_timeout, go_on_late)
        operation.sending = sending
        try:
            inherited = getattr(self.record.access.store, "inherited", None)
            if step.sent.single and inherited is not None and inherited(self.record.key):
                raise StoreUnavailable(
                    "This process is a fork of the one that made the memory store. Both have the same "
                    "refresh token, and it works once.",
                    intact="It was not sent.",
                    todo="Use SQLiteStore or FileStore, or make the store after the fork.",
                )
            issued = await self.record.requests.send(step.credential, step.sent.single, sending)
        except TokenSessionError as error:
            looked = await self._failed(claim, step, want, operation, sending, error)
            operation.failure = looked.failure
            return looked
        except asyncio.CancelledError:
            if sending.sent is not None:
                lost = OutcomeUnknown("The token request was cut short before its answer came.")
                operation.failure = lost
                await self.record.note(claim, self._noted(step, lost, sending), sending)
            else:
                await self.record.take_back(sending)
            raise
        finally:
            late.cancel()
            operation.sending = None
            operation.is_late = operation.unwanted = False
        self.record.cache.has_served = True  # whatever comes of it: it is past its configured credential
        if step.starts is not None and step.sent.single:
            self.record.cache.note_sent(step.sent.credential)  # the record that says so may be lost
        for text in issued.notes:
            self.record.report(events.UnexpectedResponse(self.record.key, text))
        sent = sending.sent or self.record.access.now()
        state = renewed(step, issued, self.record.view(seen, want), sent)
        # With a code, its note has replaced the claim's record.
        result = await self.record.pending.save(
            state, claim=claim, committed=sending.noted, expect=sending.version
        )
        if isinstance(result, pending_writes.Superseded):
            if foreign(result.seen.state, self.record.provider) is not None:
                self.record.cache.learn(state, None, self.record.boot)  # for when that record is gone again
            self.record.learn(result.seen)
            return _Looked(result.seen, self.record.decide(result.seen, want))
        stored = None
        if not isinstance(result, Pending):  # with what others have noted
            state, stored = result.seen.state, result.seen.version
        self.record.cache.learn(state, stored, self.record.boot)
        known = self.record.known()
        if known is not None and known.state.order > state.order:  # a sign-in or sign-out, in the meantime
            return _Looked(known, self.record.decide(known, want))
        if issued.problem is not None:
            raise issued.problem
        return Outcome(state, requested=True)

    async def _failed(
        self,
        claim: Claim,
        step: Redeem,
        want: Want,
        operation: Operation,
        sending: Sending,
        error: TokenSessionError,
    ) -> _Looked:
        """Note a failed request, for all processes or for this one, and say what to do next."""
        if isinstance(error, Superseded):  # before a code was sent: there has been a sign-in or sign-out
            self.record.learn_newer(error)
            await self.record.access.abandon(claim)
            seen = await self.record.look()
            return _Looked(seen, self.record.decide(seen, want))
        if isinstance(error, StoreError):  # from before the request left: nothing was sent
            await self.record.take_back(sending)
            raise error
        earlier = step.state.failures_of(step.sent.credential)
        if earlier is not None and earlier.unknown and isinstance(error, TokenUnavailable):
            error.intact = OutcomeUnknown.intact  # whatever this one says
        if sending.request is not None:  # as it was sent: secrets may have changed since the decision
            sent = replace(step.sent, request=sending.request, volatile=sending.volatile)
            step = replace(step, sent=sent)
        if isinstance(error, GrantRejected):
            error = explained(error, step.state, step.sent)
            self._remember(error, step.sent, left=True)
        if isinstance(error, GrantRejected) or consequence(error, step.sent).shared:
            await self.record.note(claim, self._noted(step, error, sending), sending)
        else:
            left = sending.sent is not None and not isinstance(error, NotSent)
            self._remember(error, step.sent, left=left)
            if left:  # it counts for all
                await self.record.note(claim, self._counted(step, step.state), sending)
            elif sending.noted:
                await self.record.note(claim, step.state, sending)
            else:
                await self.record.access.abandon(claim)
        seen = self.record.known()
        return _Looked(seen, self.record.decide(seen, _after_failure(want, operation)), error)

    def _report_attempt(self, error: TokenSessionError, step: Step, operation: Operation) -> None:
        """Report a failed request, unless the refresh ends in this error and says so itself."""
        left = step.until - self.record.boot if isinstance(step, Wait) else 0.0
        if isinstance(step, Fail) or (isinstance(step, Wait) and not operation.worth_waiting(step.until)):
            return
        self.record.report(
            events.AttemptFailed(self.record.key, operation.id, type(error).__name__, str(error), left)
        )

    def _noted(self, step: Redeem, error: TokenSessionError, sending: Sending) -> TokenState:
        """The state with a note of this failure, and one more request counted."""
        clock = self._clock
        state = noted(step.state, error, step.sent, self._policy, clock.boot(), clock.jitter())
        if sending.noted and isinstance(error, GrantRejected | OutcomeUnknown | InvalidTokenResponse):
            # Any other answer says that the server has not redeemed the code: it may be sent again.
            state = replace(state, redeemed=redeeming(state, step.sent.credential, clock.boot()))
            self.record.cache.note_sent(step.sent.credential)
        return self._counted(step, state)

    def _counted(self, step: Redeem, state: TokenState) -> TokenState:
        return counted(state, self.record.view(None, Want()), forced=step.forced)


@dataclass(frozen=True, slots=True)
class _Looked:
    """What a claim has led to, if not to a token: what is stored now, and what to do next.

    `failure` is the error of the token request that was made.
    """

    seen: Seen | None
    step: Step
    failure: TokenSessionError | None = None


def _after_failure(want: Want, operation: Operation) -> Want:
    """What is wanted after a failed request: it was the one that was forced, and a caller may wait now."""
    return replace(want, force=False, background=want.background and not operation.wanted)


def _until(error: TokenSessionError, seconds: float) -> TokenSessionError:
    """This error, with how long until the next attempt."""
    if isinstance(error, TokenUnavailable):
        error.retry_after = max(0.0, seconds)
    return error
