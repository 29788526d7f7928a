"""The store as a refresh sees it: every wait has an end, and every failure is one of our errors.

What a refresh writes must not be lost: not through an exception of a third-party store, not through a
cancellation, and not because another process has written a note in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from .. import events
from ..clock import Clock, within
from ..errors import StoreError, StoreUnavailable, Superseded, TokenSessionError
from ..policy import Policy
from ..stores.protocol import ANY, AnyVersion, Claim, Record, Store
from .pending_writes import Unsaved
from .state import TokenState, decode, encode

__all__ = ["NotStored", "StoreAccess", "newer_record"]

T = TypeVar("T")
Write = Callable[[bytes], Coroutine[Any, Any, Record]]

_UNKNOWN = "Whether it was written is unknown."
_ROUNDS = 8  # writes; each further one means that another process has just written


class NotStored(Exception):
    """The outcome of a token request could not be stored.

    `error` is what the request ended in, or None for a token. It is a cancellation if the refresh was
    stopped before it could store the token.
    """

    def __init__(self, error: BaseException | None, unsaved: Unsaved) -> None:
        super().__init__()
        self.error = error
        self.unsaved = unsaved


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """One key of a store."""

    key: str
    store: Store
    policy: Policy
    clock: Clock
    report: Callable[[events.Event], None]

    async def load(self) -> Record | None:
        """The stored record."""
        return await self._call(self.store.load(self.key))

    async def put(self, state: TokenState) -> Record:
        """Store this state, whatever is there."""
        return await self.write(partial(self.store.put, self.key), state)

    def replacing(self, expect: str | AnyVersion | None = ANY) -> Write:
        """A write that replaces this version."""
        return partial(self.store.put, self.key, expect=expect)

    async def claim(self, seen: str | None) -> Claim | Record:
        """The claim, or a newer record. Bounded, also for a store that ignores its timeout."""
        timeout = self.policy.claim_timeout
        claim = self.store.claim(self.key, seen=seen, timeout=timeout)
        return await self._call(claim, timeout + self.policy.store_timeout, on_abandoned=self._abandon_found)

    async def _abandon_found(self, found: Claim | Record) -> None:
        """A claim that arrived together with our cancellation."""
        if not isinstance(found, Record):
            await self.abandon(found)

    async def abandon(self, claim: Claim) -> None:
        """Abandon the claim, and ignore a store that fails at it.

        The error that is being raised says more. The claim ends with its lease or its process, and the
        next holder learns that we were interrupted.
        """
        with contextlib.suppress(StoreError):
            await self._call(claim.abandon())

    async def persist(self, unsaved: Unsaved, error: BaseException | None = None) -> Record:
        """Store the outcome of a token request: a token, or a note that it ended in this error.

        Raises `NotStored` if the store fails. The claim is then still held, so nothing can be redeemed. A
        cancellation may come before the write has begun (a closing event loop cancels all its tasks), so
        the write is made once more before the cancellation is raised.
        """
        stopped: asyncio.CancelledError | None = None
        for _ in range(2):
            try:
                record = await unsaved.save()
            except asyncio.CancelledError as again:
                stopped = again
                continue
            except Superseded:
                if stopped is None:
                    raise
            except StoreError as failure:
                self.report(events.SaveFailed(self.key, type(failure).__name__, str(failure), tries=1))
                raise NotStored(stopped or error, unsaved) from failure
            if stopped is not None:
                raise stopped
            return record
        raise NotStored(stopped, unsaved)

    def make_save(
        self,
        state: TokenState,
        write: Write,
        *,
        over: Callable[[TokenState | None], bool],
        again: Callable[[TokenState], TokenState] | None = None,
    ) -> Callable[[], Awaitable[Record]]:
        """A function that stores the state with `write`, or over a newer record that yields to it.

        `over` says whether a newer state yields. `again` makes the state to store in its place, if that is
        not the same one. The function may be called again after a failure. It raises `Superseded` if the
        newer record does not yield.
        """

        async def save() -> Record:
            nonlocal state, write
            for _ in range(_ROUNDS):
                try:
                    return await self.write(write, state)
                except Superseded as newer:
                    record = newer_record(newer)
                    stored = decode(record.data) if record is not None else None
                    if record is not None and stored == state:
                        return record  # our own, from an earlier try that got no answer
                    if not over(stored):
                        raise
                    if again is not None and stored is not None:
                        state = again(stored)
                    expect = record.version if record is not None else None
                    write = self.replacing(expect)
            raise StoreUnavailable(f"The record changed {_ROUNDS} times while a new token was being stored.")

        return save

    async def write(self, write: Write, state: TokenState) -> Record:
        """Let the store write. Whatever a third-party store raises, a new token is not lost with it."""

        async def written() -> Record:
            return await write(encode(state))

        try:
            return await self._call(written(), intact=_UNKNOWN)
        except StoreError:
            raise
        except TokenSessionError as error:
            raise StoreUnavailable(f"The store cannot write. {error}") from error

    async def _call(
        self,
        work: Coroutine[Any, Any, T],
        timeout: float | None = None,
        *,
        on_abandoned: Callable[[T], Awaitable[None]] | None = None,
        intact: str | None = None,
    ) -> T:
        """The store's answer, in time, or a `StoreError` (or whichever of our errors it raises)."""
        seconds = self.policy.store_timeout if timeout is None else timeout
        try:
            return await within(self.clock, seconds, work, on_abandoned=on_abandoned)
        except TokenSessionError:
            raise
        except TimeoutError:
            raise StoreUnavailable(f"The store did not answer within {seconds:g} s.", intact=intact) from None
        except Exception as error:
            message = f"The store failed unexpectedly ({type(error).__name__})."
            raise StoreUnavailable(message, intact=intact) from error


def newer_record(newer: Superseded) -> Record | None:
    """The record that is stored instead."""
    return newer.record if isinstance(newer.record, Record) else None
