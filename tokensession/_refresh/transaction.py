"""One refresh, from claim to commit.

Theory of operation
-------------------
`RefreshTransaction.run` runs inside a `SharedTask`, so no caller's cancellation reaches it. It takes the
claim, looks at the record under it, and does what `decide` says:

    claim ──► newer record? ─────────────────────────────────► adopt it
      │
      ▼
    wait, if the last holder died during a refresh: its request may still be on the way
      │
      ▼
    decide ──► Serve / Fail ─► abandon the claim, return / raise
      │  └───► Note ─────────► commit what must be known first, claim again
      ▼
    Redeem: ONE token request
      ├── a token          commit, then hand it out
      ├── rejected         commit the rejection, for this credential only
      ├── no answer        commit that the outcome is unknown (if refresh tokens rotate)
      └── anything else    abandon the claim; the record stays as it is

A commit compares versions. If it is superseded, look at what is stored now. A note by a process that took
us for dead yields to our token, the only one of its generation. If there has been a sign-in, a sign-out or
a newer generation, that record counts, and the look starts again with it.

Every path out of a claim ends it, by commit or by abandon. A process that is killed ends it by neither, and
the store tells the next holder. What the store fails to write goes to the coordinator as `Unsaved`,
together with the claim.

State: none between two calls. What this process remembers is in `cache.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial

from .. import events
from ..clock import Clock, within
from ..errors import (
    GrantRejected,
    InvalidTokenResponse,
    OutcomeUnknown,
    SignedOut,
    StoreCorrupt,
    Superseded,
    TokenSessionError,
    TokenUnavailable,
)
from ..policy import Policy
from ..providers.protocol import Credential, Issued, Provider, TokenTransport
from ..stores.protocol import ANY, AnyVersion, Claim, Record
from ..token import Token
from . import decide
from .pending_writes import Unsaved
from .state import TokenState, decode
from .store_access import NotStored, StoreAccess, newer_record

__all__ = ["Outcome", "RefreshTransaction"]

_REPLAYED = (
    "An earlier request with it got no readable answer, or its process was killed. That may have spent it."
)
_ROUNDS = 8  # looks at the record; each further one means that another process has just written it


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a refresh.

    `requested`: a token request was made for it. `unsaved` is set if the new token could not be stored.
    """

    state: TokenState
    requested: bool = False
    unsaved: Unsaved | None = None


@dataclass(frozen=True, slots=True)
class RefreshTransaction:
    """The refresh transaction of one key: a provider, a store, a transport, and the rules."""

    store: StoreAccess
    provider: Provider
    transport: TokenTransport
    policy: Policy
    clock: Clock
    report: Callable[[events.Event], None]

    @property
    def key(self) -> str:
        """The key in the store."""
        return self.store.key

    async def run(self, *, have: str | None, unauthorized: bool) -> Outcome:
        """A token other than `have` (a fingerprint; None for any), adopted or requested.

        Returns the same token if the refresh token may be spent and the access token is still valid.
        Raises the errors of `errors.py`, `SignInRequired` among them, and `NotStored`.
        """
        record = await self.store.load()
        if record is not None and (outcome := self._adopted(record, have=have, unauthorized=unauthorized)):
            return outcome
        for _ in range(_ROUNDS):
            claim = await self.store.claim(record.version if record else None)
            if isinstance(claim, Record):
                record = claim
                if outcome := self._adopted(record, have=have, unauthorized=unauthorized):
                    return outcome
                continue
            done = await self._under(claim, have=have, unauthorized=unauthorized)
            if isinstance(done, Outcome):
                return done
            record = done
        raise TokenUnavailable(f"The record changed {_ROUNDS} times during one refresh.")

    def _adopted(self, record: Record, *, have: str | None, unauthorized: bool) -> Outcome | None:
        """The token in this record, if it needs no token request: another task or process has made one."""
        step = self._decide(record, have=have, unauthorized=unauthorized, interrupted=None)
        if isinstance(step, decide.Fail):
            raise step.error
        if not isinstance(step, decide.Serve):
            return None
        if step.state.token is not None and step.state.token.fingerprint != have:
            self.report(events.Adopted(self.key, step.state.token.fingerprint))
        return Outcome(step.state)

    def _decide(
        self, record: Record | None, *, have: str | None, unauthorized: bool, interrupted: float | None
    ) -> decide.Step:
        return decide.decide(
            decode(record.data) if record else None,
            provider=self.provider,
            policy=self.policy,
            have=have,
            unauthorized=unauthorized,
            interrupted=interrupted,
            now=self.clock.wall(),
        )

    async def _under(self, claim: Claim, *, have: str | None, unauthorized: bool) -> Outcome | Record | None:
        """One look under the claim: the outcome, or the record to look at next. Always ends the claim."""
        try:
            if claim.interrupted is not None:
                await self.clock.sleep(self._orphan_wait(claim.interrupted))
            step = self._decide(
                claim.current, have=have, unauthorized=unauthorized, interrupted=claim.interrupted
            )
            match step:
                case decide.Fail(error):
                    raise error
                case decide.Serve(state):
                    await self.store.abandon(claim)
                    return Outcome(state)
                case decide.Note(state):
                    return await self.store.write(claim.commit, state)
                case decide.Redeem():
                    return await self._redeem(claim, step)
        except Superseded as newer:
            await self.store.abandon(claim)
            return newer_record(newer)
        except (NotStored, GeneratorExit):
            raise  # the claim stays held; or the event loop is gone, and the store tells the next holder
        except BaseException:
            await self.store.abandon(claim)
            raise

    def _orphan_wait(self, began: float) -> float:
        """How long to wait for the last request of a holder that began `began` seconds ago and died.

        It is unknown when it died. Its request is over once its time-out is.
        """
        return max(
            0.0, min(self.policy.orphan_wait, self.policy.request_timeout + self.policy.orphan_wait - began)
        )

    async def _redeem(self, claim: Claim, step: decide.Redeem) -> Outcome | Record | None:
        """The one token request, and what must be stored about its outcome."""
        sent_at = self.clock.wall()
        try:
            issued = await self.request(step.credential, sent_at)
        except GrantRejected as rejection:
            if step.replay and rejection.args:
                rejection.args = (f"{rejection.args[0]} {_REPLAYED}", *rejection.args[1:])
            note = partial(decide.with_rejection, credential=step.credential, code=rejection.code)
            await self._note(claim, step, note, rejection)
            raise
        except (OutcomeUnknown, InvalidTokenResponse, asyncio.CancelledError) as error:
            # An unreadable success has spent the refresh token just as a lost response may have.
            harmless = isinstance(error, InvalidTokenResponse) and not error.granted
            if harmless or not decide.single_use(step.credential, self.provider):
                raise
            note = partial(decide.with_unknown_outcome, credential=step.credential, at=sent_at)
            noted = await self._note(claim, step, note, error)
            if step.replay or self.provider.replay_leeway <= 0 or not isinstance(error, OutcomeUnknown):
                raise
            return noted  # look again: the provider permits an immediate replay
        configured, sign_in = step.origin
        state = TokenState(configured=configured, sign_in=sign_in, token=issued.token)
        save = self.store.make_save(state, claim.commit, over=self._before(step))
        return await self._persist_token(issued, state, self._unsaved(issued.token, save, claim))

    def _before(self, step: decide.Redeem) -> Callable[[TokenState | None], bool]:
        """Whether the stored state is still of the generation we started from."""
        return partial(
            decide.supersedes, before=step.stored, credential=step.credential, provider=self.provider
        )

    def _unsaved(self, token: Token | None, save: Callable[[], Awaitable[Record]], claim: Claim) -> Unsaved:
        return Unsaved(token, save, partial(self.store.abandon, claim))

    async def _note(
        self,
        claim: Claim,
        step: decide.Redeem,
        note: Callable[[TokenState], TokenState],
        error: BaseException,
    ) -> Record:
        """Commit the outcome of a request that ended in this error.

        A rejection is noted beside what another process has noted in between. An unknown outcome is not:
        the other process took us for dead, so it has noted that itself.
        """
        over = self._before(step) if isinstance(error, GrantRejected) else _never_replace
        save = self.store.make_save(note(step.stored), claim.commit, over=over, again=note)
        try:
            return await self.store.persist(self._unsaved(None, save, claim), error)
        except Superseded:
            if isinstance(error, TokenSessionError):
                raise
            raise error from None  # cancelled: no further look

    async def _persist_token(self, issued: Issued, state: TokenState, unsaved: Unsaved) -> Outcome:
        """Store the new token, then hand it out. If it cannot be stored, hand it out and say so."""
        for note in issued.notes:
            self.report(events.UnexpectedResponse(self.key, note))
        try:
            await self.store.persist(unsaved)
        except NotStored as failure:
            if failure.error is not None:
                raise
            return Outcome(state, requested=True, unsaved=unsaved)
        self.report(events.Refreshed(self.key, issued.token.fingerprint, issued.token.lifetime))
        return Outcome(state, requested=True)

    async def request(self, credential: Credential, sent_at: float) -> Issued:
        """One token request: the token, or a typed error."""
        request = self.provider.request(credential)
        connect, total = self.policy.connect_timeout, self.policy.request_timeout
        try:
            # Our transport has the same time-out. This one is for transports that have none.
            response = await within(
                self.clock, total, self.transport.send(request, connect=connect, total=total)
            )
        except TokenSessionError:
            raise
        except TimeoutError:
            raise OutcomeUnknown(f"The token request got no answer within {total:g} s.") from None
        except Exception as error:
            raise OutcomeUnknown(f"The transport failed unexpectedly ({type(error).__name__}).") from error
        try:
            return self.provider.read(response, credential, sent_at=sent_at)
        except TokenSessionError:
            raise
        except Exception as error:
            raise OutcomeUnknown(
                f"The provider failed to read the token response ({type(error).__name__})."
            ) from error

    async def sign_in(self, credential: Credential, *, earlier: Collection[str] = ()) -> Outcome:
        """Redeem a new refresh token or code, and store the result over whatever is there.

        Takes no claim: the new version supersedes a running refresh, which then adopts it. A sign-out in
        between wins, and raises `SignedOut`. `earlier`: the fingerprints of the tokens that are still
        unsaved here. This sign-in replaces them.
        """
        # Look first: a failing store must be noticed before a code is spent. A corrupt record is no
        # obstacle: signing in is how you replace it.
        before = TokenState(configured=self._configured())
        expect: str | AnyVersion | None = ANY
        with contextlib.suppress(StoreCorrupt):
            current = await self.store.load()
            expect = current.version if current else None
            before = decode(current.data) if current else before
        issued = await self.request(credential, self.clock.wall())
        token, late = issued.token, False
        state = TokenState(configured=self._configured(), sign_in=token.fingerprint, token=token)

        async def write(data: bytes) -> Record:
            if late and expect is ANY:  # the damaged record had no version; the record there now has one
                with contextlib.suppress(StoreCorrupt):
                    raise Superseded("Look at the stored record first.", record=await self.store.load())
            return await self.store.replacing(expect)(data)

        def over(stored: TokenState | None) -> bool:
            if stored is None:  # deleted since, or never stored
                return not late or not isinstance(expect, str)
            return decide.yields_to_sign_in(stored, before=before, late=late, earlier=earlier)

        save = self.store.make_save(state, write, over=over)
        try:
            return await self._persist_token(issued, state, Unsaved(token, save, _nothing_to_give_up))
        except Superseded:
            raise SignedOut("This key was signed out while the sign-in was running.") from None
        finally:
            late = True

    async def sign_out(self) -> None:
        """Store a tombstone, so that a late commit cannot undo the sign-out."""
        await self.store.put(TokenState(self._configured(), signed_out=True))

    def _configured(self) -> str:
        return self.provider.credential.fingerprint if self.provider.credential else ""


def _never_replace(_stored: TokenState | None) -> bool:
    """Never replace a newer state."""
    return False


async def _nothing_to_give_up() -> None:
    """A sign-in holds no claim."""
