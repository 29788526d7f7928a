"""The refresh transaction.

Theory of operation
-------------------
`Renewal.renew` runs inside a flight, so nobody's cancellation reaches it. It takes the claim, looks at
the record under it, and does what `plan` says:

    claim ──► newer record? ─────────────────────────────────► adopt it
      │
      ▼
    settle, if the last holder died in mid-refresh: its request may still be on the wire
      │
      ▼
    plan ──► Serve / Fail ─► abandon the claim, return / raise
      │ └──► Note ─────────► commit what must be known first, claim again
      ▼
    Redeem: ONE token request
      ├── a token          commit, then hand out
      ├── refused          commit the refusal, for this credential only
      ├── no answer        commit that nobody knows (where refresh tokens rotate)
      └── anything else    abandon the claim; the record stays as it is

A commit compares versions. If it is superseded, look at what is there: a note that somebody wrote who
took us for dead gives way to our token, which is the only one there is of its generation. If somebody
has signed in or out, or a newer generation exists, that record counts, and the look starts again with
it. Every path out of a claim ends it, by commit or by abandon; a process that is killed ends it by
neither, and the store tells the next holder. What the store fails to write is handed to the source as
`Unsaved`, claim and all.

State: none between two calls. What this process knows is the source's business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial

from . import events, plan
from .clock import Clock, within
from .errors import (
    GrantRejected,
    MalformedReply,
    OutcomeUnknown,
    SignedOut,
    StoreCorrupt,
    Superseded,
    TokenSessionError,
    TokenUnavailable,
)
from .freshness import Policy
from .providers.base import Credential, Issued, Provider, TokenEndpoint
from .record import Grant, decode
from .saving import Unsaved
from .storage import Storage, Unnoted, instead
from .stores.base import ANY, AnyVersion, Claim, Record
from .token import Token

__all__ = ["Outcome", "Renewal"]

_REPLAYED = (
    "An earlier request with it got no answer to be read, or its process was killed: that may have spent it."
)
_ROUNDS = 8  # looks at the record; each further one means that somebody else has just written it


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a refresh came to.

    `requested` says whether a token request was made for it. `unsaved` is there if the new token could
    not be stored.
    """

    grant: Grant
    requested: bool = False
    unsaved: Unsaved | None = None


@dataclass(frozen=True, slots=True)
class Renewal:
    """The refresh transaction of one key: a provider, a store, an endpoint, and the rules."""

    storage: Storage
    provider: Provider
    endpoint: TokenEndpoint
    policy: Policy
    clock: Clock
    report: Callable[[events.Event], None]

    @property
    def key(self) -> str:
        """The key in the store."""
        return self.storage.key

    async def renew(self, *, have: str | None, refused: bool) -> Outcome:
        """A token other than `have` (a fingerprint; None for any), by adopting or by requesting it.

        The same token comes back where a refresh token may be spent and the access token is still
        good. Raises the errors of `errors.py`, `SignInRequired` among them, and `Unnoted`.
        """
        record = await self.storage.load()
        if record is not None and (outcome := self._adopted(record, have=have, refused=refused)):
            return outcome
        for _ in range(_ROUNDS):
            claim = await self.storage.claim(record.version if record else None)
            if isinstance(claim, Record):
                record = claim
                if outcome := self._adopted(record, have=have, refused=refused):
                    return outcome
                continue
            done = await self._under(claim, have=have, refused=refused)
            if isinstance(done, Outcome):
                return done
            record = done
        raise TokenUnavailable(f"The record changed {_ROUNDS} times during one refresh.")

    def _adopted(self, record: Record, *, have: str | None, refused: bool) -> Outcome | None:
        """The record's token if it needs no token request: somebody else has made one."""
        step = self._plan(record, have=have, refused=refused, interrupted=None)
        if isinstance(step, plan.Fail):
            raise step.error
        if not isinstance(step, plan.Serve):
            return None
        if step.grant.token is not None and step.grant.token.fingerprint != have:
            self.report(events.Adopted(self.key, step.grant.token.fingerprint))
        return Outcome(step.grant)

    def _plan(
        self, record: Record | None, *, have: str | None, refused: bool, interrupted: float | None
    ) -> plan.Step:
        return plan.plan(
            decode(record.data) if record else None,
            provider=self.provider,
            policy=self.policy,
            have=have,
            refused=refused,
            interrupted=interrupted,
            now=self.clock.wall(),
        )

    async def _under(self, claim: Claim, *, have: str | None, refused: bool) -> Outcome | Record | None:
        """One look under the claim: the outcome, or the record to look at next. Always ends the claim."""
        try:
            if claim.interrupted is not None:
                await self.clock.sleep(self._settling(claim.interrupted))
            step = self._plan(claim.current, have=have, refused=refused, interrupted=claim.interrupted)
            match step:
                case plan.Fail(error):
                    raise error
                case plan.Serve(grant):
                    await self.storage.let_go(claim)
                    return Outcome(grant)
                case plan.Note(grant):
                    return await self.storage.write(claim.commit, grant)
                case plan.Redeem():
                    return await self._redeem(claim, step)
        except Superseded as newer:
            await self.storage.let_go(claim)
            return instead(newer)
        except (Unnoted, GeneratorExit):
            raise  # the claim is kept; or the event loop is gone, and the store will tell the next holder
        except BaseException:
            await self.storage.let_go(claim)
            raise

    def _settling(self, began: float) -> float:
        """How long to wait for the last requests of a holder that began so long ago, and died since.

        When it died is not known; what it sent is over when its time-out is.
        """
        return max(0.0, min(self.policy.settle, self.policy.post_timeout + self.policy.settle - began))

    async def _redeem(self, claim: Claim, step: plan.Redeem) -> Outcome | Record | None:
        """The one token request, and what has to be written down about its end."""
        sent_at = self.clock.wall()
        try:
            issued = await self.request(step.credential, sent_at)
        except GrantRejected as refusal:
            if step.replay and refusal.args:
                refusal.args = (f"{refusal.args[0]} {_REPLAYED}", *refusal.args[1:])
            note = partial(plan.refused, credential=step.credential, code=refusal.code)
            await self._note(claim, step, note, refusal)
            raise
        except (OutcomeUnknown, MalformedReply, asyncio.CancelledError) as error:
            # A success that cannot be read has spent a refresh token as surely as one that got lost.
            unread = isinstance(error, MalformedReply) and not error.granted
            if unread or not plan.single_use(step.credential, self.provider):
                raise
            note = partial(plan.lost, credential=step.credential, at=sent_at)
            noted = await self._note(claim, step, note, error)
            if step.replay or self.provider.replay_leeway <= 0 or not isinstance(error, OutcomeUnknown):
                raise
            return noted  # and look again: the provider permits an immediate replay
        seed, sign_in = step.origin
        grant = Grant(seed=seed, sign_in=sign_in, token=issued.token)
        save = self.storage.saver(grant, claim.commit, over=self._before(step))
        return await self._keep(issued, grant, self._unsaved(issued.token, save, claim))

    def _before(self, step: plan.Redeem) -> Callable[[Grant | None], bool]:
        """Whether what is stored is still of the generation that we have started from."""
        return partial(plan.outlives, before=step.stored, credential=step.credential, provider=self.provider)

    def _unsaved(self, token: Token | None, save: Callable[[], Awaitable[Record]], claim: Claim) -> Unsaved:
        return Unsaved(token, save, partial(self.storage.let_go, claim))

    async def _note(
        self, claim: Claim, step: plan.Redeem, note: Callable[[Grant], Grant], error: BaseException
    ) -> Record:
        """Commit what became of a request that ended in this error.

        Of a refusal it is told beside what somebody else has noted meanwhile. What became of a lost reply
        is then known already: the other one has taken us for dead.
        """
        refused = isinstance(error, GrantRejected)
        over = self._before(step) if refused else _never
        save = self.storage.saver(note(step.stored), claim.commit, over=over, again=note)
        try:
            return await self.storage.write_down(self._unsaved(None, save, claim), error)
        except Superseded:
            if isinstance(error, TokenSessionError):
                raise
            raise error from None  # cancelled: no further look

    async def _keep(self, issued: Issued, grant: Grant, unsaved: Unsaved) -> Outcome:
        """Store the new token, then hand it out; if it cannot be stored, hand it out and say so."""
        for note in issued.notes:
            self.report(events.OddReply(self.key, note))
        try:
            await self.storage.write_down(unsaved)
        except Unnoted as unnoted:
            if unnoted.error is not None:
                raise
            return Outcome(grant, requested=True, unsaved=unsaved)
        self.report(events.Refreshed(self.key, issued.token.fingerprint, issued.token.lifetime))
        return Outcome(grant, requested=True)

    async def request(self, credential: Credential, sent_at: float) -> Issued:
        """One token request: the token, or a typed error."""
        request = self.provider.request(credential)
        connect, total = self.policy.connect_timeout, self.policy.post_timeout
        try:
            # The endpoint keeps the same time-out; this one holds for endpoints that do not.
            reply = await within(self.clock, total, self.endpoint.send(request, connect=connect, total=total))
        except TokenSessionError:
            raise
        except TimeoutError:
            raise OutcomeUnknown(f"No answer to the token request within {total:g} s.") from None
        except Exception as error:
            raise OutcomeUnknown(f"The endpoint failed unexpectedly ({type(error).__name__}).") from error
        try:
            return self.provider.read(reply, credential, sent_at=sent_at)
        except TokenSessionError:
            raise
        except Exception as error:
            raise OutcomeUnknown(
                f"The provider's reader failed on a reply ({type(error).__name__})."
            ) from error

    async def sign_in(self, credential: Credential, *, earlier: Collection[str] = ()) -> Outcome:
        """Redeem a new refresh token or code, and put the result over whatever is stored.

        Takes no claim: a refresh under way is superseded by the new version, and adopts it. A sign-out
        that comes in between wins, and raises `SignedOut`. `earlier` are the fingerprints of what is still
        unsaved here, and less worth than this.
        """
        # Look first: a store in trouble must be known before a code is spent. A corrupt record is none
        # that has to be kept: signing in is how it is replaced.
        before = Grant(seed=self._seed())
        expect: str | AnyVersion | None = ANY
        with contextlib.suppress(StoreCorrupt):
            current = await self.storage.load()
            expect = current.version if current else None
            before = decode(current.data) if current else before
        issued = await self.request(credential, self.clock.wall())
        token, late = issued.token, False
        grant = Grant(seed=self._seed(), sign_in=token.fingerprint, token=token)

        async def write(data: bytes) -> Record:
            if late and expect is ANY:  # the damaged record had no version; what is there by now has one
                with contextlib.suppress(StoreCorrupt):
                    raise Superseded(
                        "A look at what is stored comes first.", record=await self.storage.load()
                    )
            return await self.storage.replacing(expect)(data)

        def over(stored: Grant | None) -> bool:
            if stored is None:  # deleted since, or never there
                return not late or not isinstance(expect, str)
            return plan.gives_way(stored, before=before, late=late, earlier=earlier)

        save = self.storage.saver(grant, write, over=over)
        try:
            return await self._keep(issued, grant, Unsaved(token, save, _nothing_to_give_up))
        except Superseded:
            raise SignedOut("Somebody signed out while this sign-in was under way.") from None
        finally:
            late = True

    async def sign_out(self) -> None:
        """Leave a tombstone, so that a late commit resurrects nothing."""
        await self.storage.put(Grant(self._seed(), signed_out=True))

    def _seed(self) -> str:
        return self.provider.seed.fingerprint if self.provider.seed else ""


def _never(_stored: Grant | None) -> bool:
    """Whatever is stored instead, it stays."""
    return False


async def _nothing_to_give_up() -> None:
    """A sign-in holds no claim."""
