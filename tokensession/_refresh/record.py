"""The record of one key: what is stored, what this process knows of it, and what to do about both.

It joins the store (`store_access.py`), the memory (`cache.py`), what could not be stored
(`pending_writes.py`) and the decisions (`decide.py`), for `transaction.py` and `sign_ins.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import events
from ..errors import OutcomeUnknown, StoreCorrupt, StoreError, Superseded, TokenSessionError
from ..policy import LOOK_INTERVAL
from ..providers.protocol import Provider
from ..stores.protocol import AnyVersion, Claim, Record
from ..token import Token
from .cache import TokenCache
from .decide import Step, View, Want, decide, foreign, identity_of, is_new
from .operation import Operation
from .pending_writes import PendingWrites
from .request import Sending, TokenRequests
from .state import TokenState, keeping, merged
from .store_access import Seen, StoreAccess

__all__ = ["KeyRecord"]

_ROUNDS = 8  # writes that take a note back; each further one means that another process has just written


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The record of one key."""

    access: StoreAccess
    requests: TokenRequests
    cache: TokenCache
    pending: PendingWrites
    report: Callable[[events.Event], None]

    @property
    def key(self) -> str:
        """The key in the store."""
        return self.access.key

    @property
    def provider(self) -> Provider:
        """The provider whose token this is."""
        return self.requests.provider

    @property
    def boot(self) -> float:
        """What the boot clock says."""
        return self.access.clock.boot()

    def known(self) -> Seen | None:
        """The highest state that this process knows, stored or not."""
        state, pending = self.cache.state, self.pending.pending
        if pending is not None and (state is None or pending.order > state.order):
            state = pending
        return Seen(self.cache.version or "", state) if state is not None else None

    async def look(self, *, copy: bool = True) -> Seen | None:
        """Look at what is stored, and learn it. `copy`: what is found under a former key is copied."""
        seen = await self.access.load()
        if seen is None and self.cache.state is None:
            seen = await self.former(copy=copy)
        return self.learn(seen)

    async def former(self, *, copy: bool = True) -> Seen | None:
        """What an earlier version stored under this provider's former default key, copied to its new one."""
        if self.key != self.provider.key:
            return None
        for key in getattr(self.provider, "former_keys", ()):
            if (former := await self.access.load(key)) is None:
                continue
            token, identity = former.state.token, identity_of(self.provider)
            if token is not None and identity is not None and identity.scope:
                # Which of the scopes this access token has is not known: get one of our own.
                token = replace(token, lifetime=0.0)
            state = replace(former.state, token=token, identity=identity)
            if not copy:
                return Seen(former.version, state)
            with contextlib.suppress(Superseded):
                record = await self.put(state, None)
                return Seen(record.version, state)
            return await self.access.load()
        return None

    def learn(self, seen: Seen | None) -> Seen | None:
        """Remember what is stored, unless something higher is known, or it is another provider's.

        Returns it. A record that is known already teaches nothing new: its durations go on from where they
        were first read, whatever the store says about its age.
        """
        cache, configured = self.cache, self.provider.credential
        if seen is None or foreign(seen.state, self.provider) is not None:
            return seen
        if seen.version == cache.version and cache.state is not None:
            seen = Seen(seen.version, cache.state)
        started = configured is not None and seen.state.token is not None
        if started and configured is not None and not is_new(configured, seen.state, has_served=False):
            cache.has_served = True  # it has seen what became of its configured credential
        cache.learn(seen.state, seen.version, self.boot)
        if cache.state is not None and cache.version == seen.version:
            return Seen(seen.version, cache.state)  # with what this process has sent, and what has to wait
        return seen

    def learn_newer(self, superseded: Superseded) -> None:
        """Remember what is stored instead. At once: the next look may be cut short, or find it lost."""
        with contextlib.suppress(StoreCorrupt):
            self.learn(self.access.newer(superseded))

    async def put(self, state: TokenState, expect: str | AnyVersion | None) -> Record:
        """Store this state, or learn what is stored instead of `expect`. Raises `StoreError`."""
        try:
            return await self.access.put(state, expect)
        except Superseded as newer:
            self.learn_newer(newer)
            raise

    def remember_missing(self, seen: Seen | None) -> None:
        """Remember since when the record is gone."""
        if seen is None and self.cache.state is not None and self.cache.missing_since is None:
            self.cache.missing_since = self.boot

    def decide(
        self,
        seen: Seen | None,
        want: Want,
        *,
        claimed: bool = False,
        interrupted: float | None = None,
        read: bool = False,
    ) -> Step:
        """The next step, on what is stored and known. `read`: although the secrets cannot be read."""
        view = self.view(seen, want)
        return decide(replace(view, claimed=claimed, interrupted=interrupted, read=read or view.read))

    def view(self, seen: Seen | None, want: Want) -> View:
        """Everything that a decision depends on, without the claim."""
        cache = self.cache
        return View(
            stored=seen.state if seen is not None else None,
            memory=cache.state,
            want=want,
            now=self.access.now(),
            provider=self.provider,
            policy=self.access.policy,
            fingerprint=self.requests.fingerprint,
            seen_at=cache.seen_at,
            local=cache.local,
            volatile=self.requests.volatile,
            read=self.requests.ready is not None,
            has_served=cache.has_served,
            missing_since=cache.missing_since,
        )

    async def await_interrupted(
        self, claim: Claim, seen: Seen | None, operation: Operation
    ) -> tuple[bool, Seen | None]:
        """Wait for the request of a holder that was killed, and look again: its answer may have been stored.

        If only its lease has ended, it may live, and store its answer at any moment. Then there are several
        looks. Returns whether the answer has been stored, and what is stored. Closing ends the wait.
        """
        if claim.interrupted is None:
            return False, seen
        clock, left = self.access.clock, self.orphan_wait(claim)
        until = clock.boot() + left
        while True:
            await operation.pause(min(left, LOOK_INTERVAL) if claim.listening else left)
            if operation.closing:  # nothing has left
                raise operation.stopped()
            now = await self.look()
            before, after = (each.version if each is not None else None for each in (seen, now))
            left = until - clock.boot()
            if before != after or left < 0.001:
                return before != after, now

    async def revoke(self, token: Token) -> None:
        """Revoke what a sign-out has ended. A failure changes nothing: the sign-out is stored."""
        try:
            if await self.requests.revoke(token):
                self.report(events.Revoked(self.key, token.fingerprint))
        except Exception as error:  # noqa: BLE001 - a third-party provider may raise anything
            known = isinstance(error, TokenSessionError)
            said = str(error) if known else "The revocation failed unexpectedly."
            self.report(events.RevocationFailed(self.key, type(error).__name__, said))

    def overtaken(self, failure: TokenSessionError | None) -> None:
        """Report that what a sign-out has overtaken is not revoked, unless it is or is still to be stored.

        `failure` is how its token request ended, if it brought no token.
        """
        if self.pending.ended or self.pending.pending is not None:
            return
        if failure is None or isinstance(failure, OutcomeUnknown) or getattr(failure, "granted", False):
            error = OutcomeUnknown(
                "A refresh was on its way when this key was signed out. What its answer brings is not "
                "revoked: it did not come in time, or a sign-in came first.",
                todo="If access must stop, end the old sign-in at the provider.",
            )
            error.intact = "The sign-out was stored."
            self.report(events.RevocationFailed(self.key, type(error).__name__, str(error)))

    def orphan_wait(self, claim: Claim) -> float:
        """How long to wait for the last request of a holder that sent it and died.

        It is unknown when it died. Its request is over once its time-out is.
        """
        policy, began = self.access.policy, claim.interrupted or 0.0
        pause, longest = policy.orphan_wait, policy.response_timeout
        return max(0.0, min(pause, longest + pause - began), claim.listening)

    async def settle(self) -> None:
        """Store what is pending, or learn what is stored instead. Raises `StoreError`."""
        while self.pending.pending is not None:
            if (result := await self.pending.retry()) is not None:
                self.learn(result.seen)

    async def restore(self, state: TokenState, seen: Seen | None) -> None:
        """Write our whole state back, unless a higher one has come. Raises `StoreError`."""
        for name, _ in seen.state.redeemed if seen is not None else ():
            self.cache.note_sent(name)  # it is in our record from now on, and not in an older one of ours
        try:
            record = await self.put(state, seen.version if seen is not None else None)
        except Superseded:
            await self.look()
            return
        self.cache.learn(state, record.version, self.boot)
        self.report(events.Restored(self.key, "nothing" if seen is None else "an older record"))

    async def _note_over(self, seen: Seen | None, state: TokenState) -> None:
        """Store a note although the record has changed, if the store went back or others have restored it."""
        if seen is None:
            await self.put(state, None)
        elif foreign(seen.state, self.provider) is None and seen.state.order <= state.order:
            same = seen.state.order == state.order
            await self.put(merged(seen.state, state) if same else keeping(state, seen.state), seen.version)

    async def note(self, claim: Claim, state: TokenState, sending: Sending | None = None) -> None:
        """Store a note, if that is possible. If it is lost, one more token request is made."""
        self.cache.note(state)  # at once: the write may be cut short
        try:
            if sending is not None and sending.noted:  # the claim's record has been replaced already
                record = await self.access.put(state, sending.version)
                await self.access.abandon(claim)
            else:
                record = await self.access.commit(claim, state)
        except Superseded as newer:
            with contextlib.suppress(StoreCorrupt, StoreError):
                await self._note_over(self.learn(self.access.newer(newer)), state)
            await self.access.abandon(claim)
        except StoreError:
            await self.access.abandon(claim)
        else:
            self.cache.learn(state, record.version, self.boot)

    async def take_back(self, sending: Sending) -> None:
        """Take the note of a code back: nothing was sent, or it may be sent again.

        Also from a record that has come over it. A write that failed or was cancelled may have arrived.
        """
        name = sending.credential.fingerprint
        with contextlib.suppress(StoreError):
            seen = await self.access.load() if sending.noting else None
            for _ in range(_ROUNDS):
                self.learn(seen)
                if seen is None or not seen.state.has_redeemed(name):
                    return
                others = tuple(pair for pair in seen.state.redeemed if pair[0] != name)
                state = replace(seen.state, redeemed=others)
                try:
                    seen = Seen((await self.access.put(state, seen.version)).version, state)
                except Superseded as newer:
                    seen = self.access.newer(newer)
