"""The store as a refresh sees it: every wait has an end, and every failure is one of ours.

What a refresh has to write down must not be lost: not with an exception of somebody else's store, not
with a cancellation, and not because somebody has written a note meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from . import events
from .clock import Clock, within
from .errors import StoreError, StoreUnavailable, Superseded, TokenSessionError
from .freshness import Policy
from .record import Grant, decode, encode
from .saving import Unsaved
from .stores.base import ANY, AnyVersion, Claim, Record, Store

__all__ = ["Storage", "Unnoted", "instead"]

T = TypeVar("T")
Write = Callable[[bytes], Coroutine[Any, Any, Record]]

_UNKNOWN = "Whether it was written is not known."
_ROUNDS = 8  # writes; each further one means that somebody else has just written


class Unnoted(Exception):
    """What came of a token request could not be stored. `error` is what it ended in, None for a token.

    It is a cancellation if the refresh was stopped before it could store the token.
    """

    def __init__(self, error: BaseException | None, unsaved: Unsaved) -> None:
        super().__init__()
        self.error = error
        self.unsaved = unsaved


@dataclass(frozen=True, slots=True)
class Storage:
    """One key of a store."""

    key: str
    store: Store
    policy: Policy
    clock: Clock
    report: Callable[[events.Event], None]

    async def load(self) -> Record | None:
        """What is stored."""
        return await self._asked(self.store.load(self.key))

    async def put(self, grant: Grant) -> Record:
        """Store it, whatever is there."""
        return await self.write(partial(self.store.put, self.key), grant)

    def replacing(self, expect: str | AnyVersion | None = ANY) -> Write:
        """A way to write over this version."""
        return partial(self.store.put, self.key, expect=expect)

    async def claim(self, seen: str | None) -> Claim | Record:
        """The claim or a newer record, as the store says. Bounded, for a store that keeps no time."""
        timeout = self.policy.claim_timeout
        claim = self.store.claim(self.key, seen=seen, timeout=timeout)
        return await self._asked(claim, timeout + self.policy.store_timeout, lost=self._not_wanted)

    async def _not_wanted(self, found: Claim | Record) -> None:
        """A claim that came with our cancellation."""
        if not isinstance(found, Record):
            await self.let_go(found)

    async def let_go(self, claim: Claim) -> None:
        """Abandon the claim. A store that fails at this may keep it; it is no reason to fail as well.

        What is raised already says more. The claim ends when its lease or its process does, and the
        next holder is told of us.
        """
        with contextlib.suppress(StoreError):
            await self._asked(claim.abandon())

    async def write_down(self, unsaved: Unsaved, error: BaseException | None = None) -> Record:
        """Save what came of a request: a token, or a note that it ended in this error.

        If the store fails it is `Unnoted`, and the claim is kept: nobody may redeem meanwhile. A
        cancellation may come before the write has begun (a closing event loop cancels all of its tasks),
        so the write is made once more, and the cancellation raised then.
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
                raise Unnoted(stopped or error, unsaved) from failure
            if stopped is not None:
                raise stopped
            return record
        raise Unnoted(stopped, unsaved)

    def saver(
        self,
        grant: Grant,
        write: Write,
        *,
        over: Callable[[Grant | None], bool],
        again: Callable[[Grant], Grant] | None = None,
    ) -> Callable[[], Awaitable[Record]]:
        """A function that stores the grant by `write`, or else over a newer record that gives way to it.

        `over` says whether it does; `again` makes of it what is to be stored then, if that is not the
        same. It may be called again after a failure. Raises `Superseded` by what does not give way.
        """

        async def save() -> Record:
            nonlocal grant, write
            for _ in range(_ROUNDS):
                try:
                    return await self.write(write, grant)
                except Superseded as newer:
                    record = instead(newer)
                    stored = decode(record.data) if record is not None else None
                    if record is not None and stored == grant:
                        return record  # our own, written by an earlier try that got no answer
                    if not over(stored):
                        raise
                    if again is not None and stored is not None:
                        grant = again(stored)
                    expect = record.version if record is not None else None
                    write = self.replacing(expect)
            raise StoreUnavailable(f"The record changed {_ROUNDS} times while a new token was being stored.")

        return save

    async def write(self, write: Write, grant: Grant) -> Record:
        """Let the store write. Whatever a foreign store does, a new token is not lost with an exception."""

        async def written() -> Record:
            return await write(encode(grant))

        try:
            return await self._asked(written(), intact=_UNKNOWN)
        except StoreError:
            raise
        except TokenSessionError as error:
            raise StoreUnavailable(f"The store cannot write. {error}") from error

    async def _asked(
        self,
        work: Coroutine[Any, Any, T],
        timeout: float | None = None,
        *,
        lost: Callable[[T], Awaitable[None]] | None = None,
        intact: str | None = None,
    ) -> T:
        """What the store answers, in time, or a `StoreError` (or what else of ours it raises)."""
        seconds = self.policy.store_timeout if timeout is None else timeout
        try:
            return await within(self.clock, seconds, work, lost=lost)
        except TokenSessionError:
            raise
        except TimeoutError:
            raise StoreUnavailable(f"No answer from the store within {seconds:g} s.", intact=intact) from None
        except Exception as error:
            message = f"The store failed unexpectedly ({type(error).__name__})."
            raise StoreUnavailable(message, intact=intact) from error


def instead(newer: Superseded) -> Record | None:
    """What is stored instead."""
    return newer.record if isinstance(newer.record, Record) else None
