"""Signing in and out of one key."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace

from .. import events
from ..errors import (
    GrantRejected,
    InvalidTokenResponse,
    OutcomeUnknown,
    SignedOut,
    SignInRequired,
    StoreCorrupt,
    StoreError,
    StoreUnavailable,
    Superseded,
    TokenSessionError,
    TokenUnavailable,
)
from ..providers.protocol import Credential
from ..stores.protocol import ANY, AnyVersion, Claim
from . import pending_writes
from .decide import foreign, identity_of, single_use
from .next_state import next_number, signed_out
from .pending_writes import Pending
from .record import KeyRecord
from .request import Sending
from .state import TokenState, keeping, redeeming, superseding
from .store_access import Seen

__all__ = ["SignIns"]

_ROUNDS = 16  # looks in a row that find the record changed; each means that another process has written
_UNKNOWN_NUMBERS = 1 << 20  # a damaged record may have had any number; no one signs in so often


@dataclass(frozen=True, slots=True)
class SignIns:
    """Signs in and out of one key."""

    record: KeyRecord

    async def sign_in(self, credential: Credential) -> tuple[TokenState, bool]:
        """Redeem a new refresh token or code, and store the result over whatever is there.

        Takes the claim, and does without it if a running refresh holds it for long: its commit is then
        superseded. A code, and a refresh token that works once, is sent once, however often you bring it. A
        sign-out in between wins, and raises `SignedOut`.

        Returns the state, and whether a token request was made.
        """
        release = await self.record.requests.reserve(credential)
        try:
            for _ in range(_ROUNDS):
                with contextlib.suppress(Superseded):  # by another sign-in, before this one's code was sent
                    return await self._once(credential)
            raise StoreUnavailable(f"The record changed {_ROUNDS} times during one sign-in.")
        finally:
            release()

    async def _once(self, credential: Credential) -> tuple[TokenState, bool]:
        claim: Claim | None = None
        try:
            single = single_use(credential, self.record.provider)
            # A refresh token that works once is sent under the claim only: another process may be sending the
            # same one. (A code is noted before it leaves.)
            exclusive = single and credential.grant_type == "refresh_token"
            claim, seen, expect = await self._claim_for_sign_in(exclusive=exclusive)
            if claim is not None and exclusive:
                changed, _ = await self.record.await_interrupted(claim, seen)
                if changed:
                    raise Superseded("The answer to an earlier request has been stored.")
            memory = self.record.cache.state
            if (stored := self._higher(seen)) is not None:
                stored = keeping(stored, memory, seen.state if seen is not None else None)
            current = stored or TokenState()
            if stored is not None and foreign(stored, self.record.provider):
                stored = TokenState(number=stored.number)  # take over nothing else
            pending = self.record.pending.pending
            known = [each for each in (current, memory, pending) if each is not None]
            if single and any(each.has_redeemed(credential.fingerprint) for each in known):
                return self._redeemed_before(stored, pending, credential)
            return await self._sign_in(credential, single, claim, stored, current, expect)
        except GeneratorExit:
            claim = None  # the event loop is gone, and the store tells the next holder
            raise
        finally:
            if claim is not None:
                await self.record.access.abandon(claim)

    async def _claim_for_sign_in(
        self, *, exclusive: bool
    ) -> tuple[Claim | None, Seen | None, str | AnyVersion | None]:
        """The claim (or none, if it need not be `exclusive`), what is stored, and the version to replace."""
        seen: Seen | None = None
        try:
            seen = await self.record.access.load()
            for _ in range(_ROUNDS):
                self.record.learn(seen)
                policy = self.record.access.policy
                timeout = policy.response_timeout if exclusive else policy.sign_in_wait
                if self.record.pending.holds_claims:
                    timeout = 0.0  # no use waiting for ourselves
                found = await self.record.access.claim(seen.version if seen is not None else None, timeout)
                if not isinstance(found, Seen):
                    try:
                        current = self.record.learn(self.record.access.seen(found.current))
                    except StoreCorrupt:
                        await self.record.access.abandon(found)
                        raise
                    return found, current, current.version if current is not None else None
                seen = found
        except StoreCorrupt:  # no obstacle: signing in is how you replace it
            return None, None, ANY
        except TokenUnavailable:  # a refresh holds the claim
            if exclusive and not self.record.pending.holds_claims:
                raise
            with contextlib.suppress(StoreCorrupt):
                seen = self.record.learn(await self.record.access.load())
        return None, seen, seen.version if seen is not None else None

    def _redeemed_before(
        self, stored: TokenState | None, pending: TokenState | None, credential: Credential
    ) -> tuple[TokenState, bool]:
        """It was brought before: the token that came of it, or an error."""
        if pending is not None and (stored is None or stored.order < pending.order):
            stored = pending
        if stored is not None and stored.start == credential.fingerprint and stored.servable is not None:
            return stored, False
        raise SignInRequired(
            "This code or refresh token has been redeemed already, and works once.",
            intact="It was not sent again. The stored sign-in is unchanged.",
        )

    async def _sign_in(
        self,
        credential: Credential,
        single: bool,
        claim: Claim | None,
        stored: TokenState | None,
        current: TokenState,
        expect: str | AnyVersion | None,
    ) -> tuple[TokenState, bool]:
        """Redeem it. The new state is made from `stored`; until then, `current` gets the note."""
        base = keeping(stored or TokenState(), self.record.pending.pending)
        highest = max(base.number, self._highest())
        sending = Sending(self.record.access, claim, credential, current, expect)
        try:
            issued = await self.record.requests.send(credential, single, sending)
        except asyncio.CancelledError:
            await sending.take_back()
            raise
        except TokenSessionError as error:
            await sending.take_back()
            kept = isinstance(error, GrantRejected | OutcomeUnknown | InvalidTokenResponse)
            if sending.noted and not kept and not isinstance(error, StoreError):
                with contextlib.suppress(StoreError):
                    await self.record.access.put(current, sending.version)
            raise
        for text in issued.notes:
            self.record.report(events.UnexpectedResponse(self.record.key, text))
        now, sent = self.record.access.now(), sending.sent or self.record.access.now()
        configured = self._configured()
        name = credential.fingerprint
        state = TokenState(
            number=next_number(highest, now.wall),
            identity=identity_of(self.record.provider),
            configured=configured,
            superseded=superseding(base, configured),
            start=name,
            redeemed=redeeming(base, name, now.boot) if single else base.redeemed,
            token=issued.token,
            obtained=sent.boot,
            sign_in_life=issued.token.refresh_lifetime,
            problem=str(issued.problem.args[0]) if issued.problem is not None else "",
            rejections=tuple(each for each in base.rejections if each.credential != name),
            requests=base.requests,
            requests_at=base.requests_at,
            more={field: value for field, value in base.more.items() if field not in ("token", "identity")},
        )
        expect = sending.version if sending.noted else expect
        result = await self.record.pending.save(state, expect=expect, signs_in=highest)
        if isinstance(result, pending_writes.Superseded):
            self.record.learn(result.seen)
            raise SignedOut("This key was signed out while the sign-in was running.")
        if not isinstance(result, Pending):
            state = result.seen.state
            self.record.cache.learn(state, result.seen.version, self.record.boot)
        if issued.problem is not None:
            raise issued.problem
        return state, True

    async def sign_out(self) -> None:
        """Store a tombstone, so that a late commit cannot undo the sign-out."""
        record = self.record
        for _ in range(_ROUNDS):
            before, number = TokenState(), self._highest()
            expect: str | AnyVersion | None = None
            try:
                if (seen := record.learn(await record.access.load())) is not None:
                    before, expect = seen.state, seen.version
            except StoreCorrupt:
                expect, number = ANY, number + _UNKNOWN_NUMBERS
            before = keeping(before, record.cache.state)
            before = replace(before, identity=identity_of(record.provider))
            number = next_number(max(number, before.number), record.access.clock.wall())
            tombstone = signed_out(before, number, configured=self._configured())
            with contextlib.suppress(Superseded):
                stored = await record.access.put(tombstone, expect)
                record.cache.learn(tombstone, stored.version, record.boot)
                return
        raise StoreUnavailable(f"The record changed {_ROUNDS} times during one sign-out.")

    def _higher(self, seen: Seen | None) -> TokenState | None:
        """The higher one of what is stored and what this process remembers."""
        stored, memory = seen.state if seen is not None else None, self.record.cache.state
        return memory if memory is not None and (stored is None or stored.order < memory.order) else stored

    def _highest(self) -> int:
        """The highest sign-in number that this process knows."""
        known = (self.record.cache.state, self.record.pending.pending)
        return max(state.number if state is not None else 0 for state in known)

    def _configured(self) -> str:
        configured = self.record.provider.credential
        return configured.fingerprint if configured is not None else ""
