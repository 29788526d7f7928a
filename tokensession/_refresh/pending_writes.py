"""Writes that must not be lost: a new token, a sign-in. They are repeated until they are stored.

`save` says what has become of a state: `Stored`, `Pending` or `Superseded`. A pending state is served from
memory. Nothing is redeemed from the store until it is stored, because the refresh token there is spent: its
claim stays held, and a refresh first calls `retry`.

There is at most one pending state for each key: the highest. A sign-in that comes after it replaces it.

Notes (a rejection, a pause) are not among these writes. If one is lost, one more token request is made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from .. import errors, events
from ..errors import StoreCorrupt, StoreError, StoreUnavailable
from ..stores.protocol import ANY, AnyVersion, Claim
from ..token import Token
from .decide import resolved
from .schedule import back_off
from .state import TokenState, keeping
from .store_access import Seen, StoreAccess

__all__ = ["Pending", "PendingWrites", "Result", "Stored", "Superseded"]

_ROUNDS = 8  # writes; each further one means that another process has just written


@dataclass(frozen=True, slots=True)
class Stored:
    """It is stored."""

    seen: Seen


@dataclass(frozen=True, slots=True)
class Pending:
    """It is not stored, because the store failed. It is tried again."""

    error: StoreError


@dataclass(frozen=True, slots=True)
class Superseded:
    """Something newer is stored, and counts."""

    seen: Seen


Result = Stored | Pending | Superseded


@dataclass(slots=True)
class _Write:
    """A state on its way into the store.

    `claim` is the claim that it is committed with. Once that was superseded it is `committed`: the claim is
    still held, and `expect` is the version that is replaced, as it is without a claim.
    `signs_in`: the highest sign-in number that its sign-in saw when it began. It replaces what is of that
    number or lower. Until it is late (it has returned without being stored), it also replaces another
    sign-in; only a later sign-out wins.
    """

    state: TokenState
    claim: Claim | None
    committed: bool
    expect: str | AnyVersion | None
    signs_in: int | None
    late: bool = False

    def over(self, stored: TokenState) -> TokenState | None:
        """What to write instead of `stored`, or None if that counts."""
        if self.signs_in is None:
            return resolved(self.state, stored)
        if stored.number > self.signs_in and (stored.signed_out or self.late):
            return None
        number = max(self.state.number, stored.number + 1)
        return keeping(replace(self.state, number=number), stored)


class PendingWrites:
    """The writes of one key, in one event loop at a time."""

    __slots__ = ("_access", "_claims", "_loans", "_pending", "_report", "_tries", "ended")

    def __init__(self, access: StoreAccess, report: Callable[[events.Event], None]) -> None:
        self._access = access
        self._report = report
        self._pending: _Write | None = None
        self._claims: tuple[Claim, ...] = ()
        self._loans = 0
        self._tries = 0
        self.ended: tuple[Token, ...] = ()
        """New tokens that a sign-out has overtaken. They are still to be revoked."""

    @property
    def pending(self) -> TokenState | None:
        """The state that is still to be stored."""
        return self._pending.state if self._pending is not None else None

    @property
    def holds_claims(self) -> bool:
        """Whether a claim stays held for what is pending."""
        return bool(self._claims)

    def holds(self, claim: Claim) -> bool:
        """Whether this claim stays held until its state is stored."""
        return any(each is claim for each in self._claims)

    async def save(
        self,
        state: TokenState,
        *,
        claim: Claim | None = None,
        committed: bool = False,
        expect: str | AnyVersion | None = ANY,
        signs_in: int | None = None,
    ) -> Result:
        """Store this state, by committing the claim or instead of the version `expect`. Ends the claim.

        `committed`: something has been written under the claim, so it cannot be committed any more.

        A cancellation may come before the write has begun (a closing event loop cancels all its tasks), so
        the write is made once more before the cancellation is raised.
        """
        write = _Write(state, claim, committed or claim is None, expect, signs_in)
        stopped: asyncio.CancelledError | None = None
        for _ in range(2):
            try:
                result: Result = await self._write(write)
            except asyncio.CancelledError as error:
                stopped = error
                continue
            except GeneratorExit:  # the event loop is gone; the next one goes on
                self._keep(write)
                raise
            except StoreError as error:
                self._keep(write)
                self._report(events.SaveFailed(self._access.key, type(error).__name__, str(error), 1))
                result = Pending(error)
            if not isinstance(result, Pending):
                await self._done(result.seen.state)
                if claim is not None and write.committed:
                    await self._access.abandon(claim)
            if stopped is not None:
                raise stopped
            return result
        self._keep(write)
        raise stopped or asyncio.CancelledError

    async def retry(self) -> Stored | Superseded | None:
        """Try to store what is pending. Raises `StoreError` if that fails. None if there is nothing."""
        write = self._pending
        if write is None:
            return None
        result = await self._write(write)
        if self._pending is write:
            if isinstance(result, Stored):
                token = write.state.token
                self._report(events.Saved(self._access.key, token.fingerprint if token is not None else None))
            if isinstance(result, Superseded):
                self._pending = None  # whatever its order: a late sign-in yields
            await self._done(result.seen.state)
        return result

    async def until_stored(self) -> Stored | Superseded | None:
        """Try again with back-off, and report each failure."""
        clock, policy = self._access.clock, self._access.policy
        began = clock.boot()
        while self._pending is not None:
            lasting = clock.boot() - began
            await clock.sleep(back_off(self._tries, lasting, 0.0, policy, clock.jitter()))
            try:
                return await self.retry()
            except StoreError as error:
                self._tries += 1
                event = events.SaveFailed(self._access.key, type(error).__name__, str(error), self._tries)
                self._report(event)
        return None

    async def release_claims(self) -> None:
        """Let other processes refresh, although something is pending: this process is closing."""
        claims, self._claims = self._claims, ()
        self._part_from_claim()
        for claim in claims:
            await self._access.abandon(claim)

    @contextlib.asynccontextmanager
    async def lent_claim(self) -> AsyncIterator[Claim | None]:
        """The newest claim that stays held, if there is one, for a request that is sent under it.

        Inside the block, what is pending is stored without ending the claim.
        """
        self._part_from_claim()
        self._loans += 1
        gone = False
        try:
            yield self._claims[-1] if self._claims else None
        except GeneratorExit:  # the event loop is gone; the next one goes on
            gone = True
            raise
        finally:
            self._loans -= 1
            if not gone:
                await self._release_unneeded()

    def _part_from_claim(self) -> None:
        """Store what is pending without its claim: a commit would end it."""
        if self._pending is not None:
            self._pending.claim, self._pending.committed = None, True

    async def _release_unneeded(self) -> None:
        if self._claims and self._pending is None and not self._loans:
            await self.release_claims()

    def _keep(self, write: _Write) -> None:
        """Keep the higher one of this and what is pending already."""
        if write.claim is not None:
            self._claims = (*self._claims, write.claim)
        write.late = True
        if self._pending is None or self._pending.state.order <= write.state.order:
            self._pending = write
            self._tries = 1

    async def _done(self, stored: TokenState) -> None:
        """This state, or a higher one, is stored: drop what is pending below it."""
        if self._pending is not None and self._pending.state.order <= stored.order:
            self._pending = None
        await self._release_unneeded()

    async def _write(self, write: _Write) -> Stored | Superseded:
        """One write, or several if others write at the same time."""
        access = self._access
        if write.late and write.expect is ANY and (seen := await self._replacing_damaged(write)) is not None:
            return self._superseded(write, seen)
        for _ in range(_ROUNDS):
            try:
                if write.claim is not None and not write.committed:
                    record = await access.commit(write.claim, write.state)
                else:
                    record = await access.put(write.state, write.expect)
                return Stored(Seen(record.version, write.state))
            except errors.Superseded as newer:
                expected = write.expect
                write.committed, write.expect = True, getattr(newer.record, "version", None)
                try:
                    seen = access.newer(newer)
                except StoreCorrupt:
                    continue  # write over it
                if seen is None:
                    continue  # deleted: a token is not thrown away with its record
                stored = seen.state
                if (
                    stored.order == write.state.order
                    and stored.token is not None
                    and _same(stored, write.state)
                ):
                    return Stored(seen)  # our own, from an earlier try that got no answer
                over = write.over(stored)
                if over is None:
                    write.expect = expected  # if this is cut short, the next try must not write over it
                    superseded = self._superseded(write, seen)
                    return replace(superseded, seen=await self._noted(seen, write.state))
                write.state = over
        raise StoreUnavailable(f"The record changed {_ROUNDS} times while a new token was being stored.")

    def _superseded(self, write: _Write, seen: Seen) -> Superseded:
        """This counts. A sign-out ends the new token too. (Another sign-in might end with it.)"""
        token = write.state.token
        if seen.state.signed_out and token is not None and token not in self.ended:
            self.ended = (*self.ended, token)
        return Superseded(seen)

    async def _noted(self, seen: Seen, lost: TokenState) -> Seen:
        """What is stored instead, with a note of what the lost one has redeemed: that must not be sent again.

        The claim is still held, so no one sends it until then.
        """
        kept = keeping(seen.state, lost)
        if kept == seen.state or seen.state.identity not in (None, lost.identity):
            return seen
        with contextlib.suppress(StoreError):
            return Seen((await self._access.put(kept, seen.version)).version, kept)
        return Seen(seen.version, kept)  # this process knows it

    async def _replacing_damaged(self, write: _Write) -> Seen | None:
        """A sign-in was to replace a damaged record, and is late: what counts instead by now, if anything."""
        try:
            seen = await self._access.load()
        except StoreCorrupt:
            return None
        if seen is not None and write.over(seen.state) is None:
            return seen
        write.expect = seen.version if seen is not None else None
        return None


def _same(one: TokenState, other: TokenState) -> bool:
    """Whether these are the same token, of the same sign-in."""
    if one.token is None or other.token is None or one.signed_out != other.signed_out:
        return False
    return (one.token.access_token, one.token.refresh_token) == (
        other.token.access_token,
        other.token.refresh_token,
    )
