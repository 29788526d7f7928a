"""Signing in and out of one key."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace

from .. import events
from ..errors import (
    AuthorizationPending,
    GrantRejected,
    InvalidTokenResponse,
    OutcomeUnknown,
    SignedOut,
    SignInRequired,
    StoreCorrupt,
    StoreUnavailable,
    Superseded,
    TokenSessionError,
    TokenUnavailable,
)
from ..providers.protocol import DEVICE_CODE, Credential
from ..stores.protocol import ANY, AnyVersion, Claim
from ..token import Token
from . import pending_writes
from .decide import foreign, identity_of, single_use
from .next_state import next_number, signed_out
from .operation import Operation
from .pending_writes import Pending
from .record import KeyRecord
from .request import Sending
from .state import TokenState, keeping, redeeming, superseding
from .store_access import Seen

__all__ = ["SignIns", "stopped"]

_ROUNDS = 16  # looks in a row that find the record changed; each means that another process has written
_CHANGES = f"The record changed {_ROUNDS} times during one sign-in."
_OVERTAKEN = "This key was signed out while the sign-in was running."
_UNKNOWN_NUMBERS = 1 << 20  # a damaged record may have had any number; no one signs in so often


@dataclass(slots=True)
class SignIns:
    """Signs in and out of one key. `running`: the sign-ins that have begun and not ended."""

    record: KeyRecord
    running: tuple[Operation, ...] = ()

    async def sign_in(self, credential: Credential, operation: Operation) -> tuple[TokenState, bool]:
        """Redeem a new refresh token or code, and store the result over whatever is there.

        Takes the claim, and does without it if a running refresh holds it for long: its commit is then
        superseded. A code, and a refresh token that works once, is sent once, however often you bring it. A
        sign-out in between wins, and raises `SignedOut`.

        Returns the state, and whether a token request was made. Reports the start, and a failure. A device
        code is polled: that starts with the poll that ends it, and until then there is nothing to report.
        """
        key, report = self.record.key, self.record.report
        begins = [events.SignInStarted(key, operation.id)]
        if credential.grant_type != DEVICE_CODE:
            report(begins.pop())
        self.running = (*self.running, operation)
        try:
            found = await self._redeemed(credential, operation)
        except BaseException as error:
            failure = error if isinstance(error, TokenSessionError) else operation.ended_by or stopped()
            name, took = type(failure).__name__, operation.duration
            if not isinstance(error, AuthorizationPending):
                for event in (*begins, events.SignInFailed(key, operation.id, took, name, str(failure))):
                    report(event)
            raise
        finally:
            self.running = tuple(each for each in self.running if each is not operation)
        for event in begins:
            report(event)
        return found

    async def _redeemed(self, credential: Credential, operation: Operation) -> tuple[TokenState, bool]:
        release = await self.record.requests.reserve(credential)
        try:
            for _ in range(_ROUNDS):
                try:
                    return await self._once(credential, operation)
                except Superseded as newer:  # by another sign-in, before this one's code was sent
                    self.record.learn_newer(newer)
            raise StoreUnavailable(_CHANGES)
        finally:
            release()

    async def _once(self, credential: Credential, operation: Operation) -> tuple[TokenState, bool]:
        claim: Claim | None = None
        try:
            single = single_use(credential, self.record.provider)
            # A refresh token that works once is sent under the claim only: another process may be sending the
            # same one. (A code is noted before it leaves.)
            exclusive = single and credential.grant_type == "refresh_token"
            claim, seen, expect = await self._claim_for_sign_in(credential, operation, exclusive=exclusive)
            if claim is not None and exclusive:
                changed, _ = await self.record.await_interrupted(claim, seen, operation)
                if changed:
                    raise Superseded("The answer to an earlier request has been stored.")
            memory = self.record.cache.state
            if (stored := self._higher(seen)) is not None:
                stored = keeping(stored, memory, seen.state if seen is not None else None)
                if stored.signed_out and operation.number is not None and stored.number > operation.number:
                    raise SignedOut(_OVERTAKEN)  # by another process, before it was sent
            if operation.ended_by is not None:
                raise operation.ended_by
            current = stored or TokenState()
            if stored is not None and foreign(stored, self.record.provider):
                # Take over nothing else than which codes have been sent: ours may be among them.
                stored = TokenState(number=stored.number, redeemed=stored.redeemed)
            if self.has_redeemed(credential, current):
                return self._redeemed_before(stored, self.record.pending.pending, credential)
            if claim is not None or not exclusive:
                return await self._sign_in(credential, single, claim, stored, current, expect)
            async with self.record.pending.lent_claim() as lent:
                return await self._sign_in(credential, single, lent, stored, current, expect)
        except GeneratorExit:
            claim = None  # the event loop is gone, and the store tells the next holder
            raise
        finally:
            if claim is not None:
                await self.record.access.abandon(claim)

    async def _claim_for_sign_in(
        self, credential: Credential, operation: Operation, *, exclusive: bool
    ) -> tuple[Claim | None, Seen | None, str | AnyVersion | None]:
        """The claim, what is stored, and the version to replace.

        No claim if it need not be `exclusive`, if what is pending holds it, if the record is damaged, or if
        nothing is sent, because it was before.
        """
        seen: Seen | None = None
        policy = self.record.access.policy
        timeout = longest = policy.response_timeout if exclusive else policy.sign_in_wait
        try:
            seen = await self.record.access.load()
            if operation.number is None:
                operation.number = max(self._highest(), seen.state.number if seen is not None else 0)
            for _ in range(_ROUNDS):
                self.record.learn(seen)
                # No use waiting for ourselves.
                timeout = 0.0 if self.record.pending.holds_claims else longest
                found = await self.record.access.claim(seen.version if seen is not None else None, timeout)
                if not isinstance(found, Seen):
                    try:
                        current = self.record.learn(self.record.access.seen(found.current))
                    except StoreCorrupt:
                        await self.record.access.abandon(found)
                        raise
                    return found, current, current.version if current is not None else None
                seen = found
            if exclusive:
                raise StoreUnavailable(_CHANGES)
        except StoreCorrupt:  # no obstacle: signing in is how you replace it
            return None, None, ANY
        except TokenUnavailable:  # a refresh holds the claim
            with contextlib.suppress(StoreCorrupt):
                seen = self.record.learn(await self.record.access.load())
            if exclusive and not (self.record.pending.holds_claims or self.has_redeemed(credential)):
                if not timeout:
                    raise Superseded("What was pending has been stored.") from None  # look again
                raise
        return None, seen, seen.version if seen is not None else None

    def has_redeemed(self, credential: Credential, *stored: TokenState) -> bool:
        """Whether it works once, and has been sent, as far as this process knows."""
        cache, name = self.record.cache, credential.fingerprint
        known = [each for each in (cache.state, self.record.pending.pending, *stored) if each is not None]
        sent = name in cache.sent or any(each.has_redeemed(name) for each in known)
        return sent and single_use(credential, self.record.provider)

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
            if sending.sent is None:
                await self.record.take_back(sending)
            self._remember(sending)
            raise
        except TokenSessionError as error:
            if isinstance(error, GrantRejected | OutcomeUnknown | InvalidTokenResponse):
                self._remember(sending)
            else:  # it may be sent again
                await self.record.take_back(sending)
            raise
        for text in issued.notes:
            self.record.report(events.UnexpectedResponse(self.record.key, text))
        now, sent = self.record.access.now(), sending.sent or self.record.access.now()
        configured = self._configured()
        name = credential.fingerprint
        if single:
            self.record.cache.note_sent(name)  # the record that says so may be lost
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
            raise SignedOut(_OVERTAKEN)
        if not isinstance(result, Pending):
            state = result.seen.state
            self.record.cache.learn(state, result.seen.version, self.record.boot)
        if issued.problem is not None:
            raise issued.problem
        return state, True

    def _remember(self, sending: Sending) -> None:
        """Remember that a code has been sent. The store has a note of that, and may lose it."""
        cache = self.record.cache
        if sending.credential.grant_type == "authorization_code" and sending.sent is not None:
            cache.note_sent(sending.credential.fingerprint)
            if sending.noted and foreign(sending.state, self.record.provider) is None:
                version = sending.version if isinstance(sending.version, str) else None
                cache.learn(sending.state, version, self.record.boot)

    async def sign_out(self) -> Token | None:
        """Store a tombstone, so that a late commit cannot undo the sign-out.

        Returns the token that it ends, if there is one of this provider's.
        """
        record, overtaken = self.record, self.running
        for _ in range(_ROUNDS):
            before, number = TokenState(), self._highest()
            expect: str | AnyVersion | None = None
            try:
                if (seen := record.learn(await record.access.load())) is not None:
                    before, expect = seen.state, seen.version
            except StoreCorrupt:
                expect, number = ANY, number + _UNKNOWN_NUMBERS
            ended = self._ended(before)
            before = keeping(before, record.cache.state)
            before = replace(before, identity=identity_of(record.provider))
            number = next_number(max(number, before.number), record.access.clock.wall())
            tombstone = signed_out(before, number, configured=self._configured())
            with contextlib.suppress(Superseded):
                stored = await record.put(tombstone, expect)
                record.cache.learn(tombstone, stored.version, record.boot)
                for operation in overtaken:  # they need not have looked at the store before
                    operation.ended_by = SignedOut(_OVERTAKEN)
                return ended
        raise StoreUnavailable(f"The record changed {_ROUNDS} times during one sign-out.")

    def _ended(self, stored: TokenState) -> Token | None:
        """The newest token of this sign-in, stored or not. Not one of another provider's."""
        if foreign(stored, self.record.provider) is not None:
            return None
        known = (stored, self.record.cache.state, self.record.pending.pending)
        return max((each for each in known if each is not None), key=lambda each: each.order).token

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


def stopped() -> OutcomeUnknown:
    """What a sign-in ends in that closing, or the end of the event loop, has stopped."""
    return OutcomeUnknown(
        "The sign-in was stopped, because its event loop or session is closing.",
        todo="Sign in again. If the code has been sent, you need a new one.",
    )
