"""The record of one key: what is stored, what this process knows of it, and what to do about both.

It joins the store (`store_access.py`), the memory (`cache.py`), what could not be stored
(`pending_writes.py`) and the decisions (`decide.py`), for `transaction.py` and `sign_ins.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from .. import events
from ..errors import StoreCorrupt, StoreError, Superseded
from ..providers.protocol import Provider
from ..stores.protocol import Claim
from .cache import TokenCache
from .decide import Step, View, Want, decide, foreign, identity_of, is_new
from .pending_writes import PendingWrites
from .request import Sending, TokenRequests
from .state import TokenState, keeping, merged
from .store_access import Seen, StoreAccess

__all__ = ["KeyRecord"]


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
                record = await self.access.put(state, None)
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

    def remember_missing(self, seen: Seen | None) -> None:
        """Remember since when the record is gone."""
        if seen is None and self.cache.state is not None and self.cache.missing_since is None:
            self.cache.missing_since = self.boot

    def decide(
        self, seen: Seen | None, want: Want, *, claimed: bool = False, interrupted: float | None = None
    ) -> Step:
        """The next step, on what is stored and known."""
        return decide(self.view(seen, want, claimed=claimed, interrupted=interrupted))

    def view(
        self, seen: Seen | None, want: Want, *, claimed: bool = False, interrupted: float | None = None
    ) -> View:
        """Everything that a decision depends on."""
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
            has_served=cache.has_served,
            missing_since=cache.missing_since,
            claimed=claimed,
            interrupted=interrupted,
        )

    async def await_interrupted(self, claim: Claim, seen: Seen | None) -> tuple[bool, Seen | None]:
        """Wait for the request of a holder that was killed, and look again: its answer may have been stored.

        Returns whether it has, and what is stored.
        """
        if claim.interrupted is None:
            return False, seen
        await self.access.clock.sleep(self.orphan_wait(claim))
        now = await self.look()
        before, after = (each.version if each is not None else None for each in (seen, now))
        return before != after, now

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
        try:
            record = await self.access.put(state, seen.version if seen is not None else None)
        except Superseded as newer:
            self.learn(self.access.newer(newer))  # at once: the look may be cut short
            await self.look()
            return
        self.cache.learn(state, record.version, self.boot)
        self.report(events.Restored(self.key, "nothing" if seen is None else "an older record"))

    async def _note_over(self, seen: Seen | None, state: TokenState) -> None:
        """Store a note although the record has changed, if the store went back or others have restored it."""
        if seen is None:
            await self.access.put(state, None)
        elif foreign(seen.state, self.provider) is None and seen.state.order <= state.order:
            same = seen.state.order == state.order
            await self.access.put(
                merged(seen.state, state) if same else keeping(state, seen.state), seen.version
            )

    async def note(self, claim: Claim, state: TokenState, sending: Sending | None = None) -> None:
        """Store a note, if that is possible. If it is lost, one more token request is made."""
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
        self.cache.note(state)
