"""One key of a store, as a refresh sees it: states instead of bytes, and every wait has an end.

Whatever a third-party store raises, and if it does not answer, you get one of our errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from ..clock import Clock, bounded
from ..errors import StoreError, StoreUnavailable, Superseded, TokenSessionError
from ..policy import Policy
from ..stores.protocol import ANY, AnyVersion, Claim, Record, Store
from .state import Now, TokenState, decode, encode

__all__ = ["Seen", "StoreAccess"]

T = TypeVar("T")
Write: TypeAlias = Callable[[bytes], Coroutine[Any, Any, Record]]

_UNKNOWN = "Whether it was written is unknown."
_CLEANUP_TIMEOUT = 2.0  # seconds, for a call that was cancelled


@dataclass(frozen=True, slots=True)
class Seen:
    """A state that is or was stored, and its version."""

    version: str
    state: TokenState


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """One key of a store."""

    key: str
    store: Store
    policy: Policy
    clock: Clock
    _calls: dict[asyncio.Task[Any] | None, float] = field(default_factory=dict, repr=False)

    def now(self) -> Now:
        """What both clocks say."""
        return Now(self.clock.wall(), self.clock.boot())

    def seen(self, record: Record | None) -> Seen | None:
        """The state in this record. Raises `StoreCorrupt`."""
        return (
            None if record is None else Seen(record.version, decode(record.data, self.now(), age=record.age))
        )

    async def load(self, key: str | None = None) -> Seen | None:
        """What is stored, under this key or another."""
        return self.seen(await self._call(self.store.load(key or self.key)))

    async def claim(self, seen: str | None, timeout: float | None = None) -> Claim | Seen:
        """The claim, or what is stored instead of `seen`. Bounded, whatever the store does."""
        timeout = self.policy.claim_timeout if timeout is None else timeout
        claim = self.store.claim(self.key, seen=seen, timeout=timeout)
        found = await self._call(claim, timeout + self.policy.store_timeout)
        if not isinstance(found, Record):
            return found
        return Seen(found.version, decode(found.data, self.now(), age=found.age))

    async def abandon(self, claim: Claim) -> None:
        """Abandon the claim, and ignore a store that fails at it.

        The error that is being raised says more. The claim ends with its lease or its process, and the
        next holder learns that we were interrupted.
        """
        with contextlib.suppress(StoreError):
            await self._call(claim.abandon())

    async def sending(self, claim: Claim, listening: float) -> None:
        """Leave the mark that a request is about to leave. Raises `StoreError`: then nothing may be sent.

        Without a time limit of its own: it is a part of the request, which has one.
        """
        try:
            await claim.sending(listening=listening)
        except TokenSessionError:
            raise
        except Exception as error:
            raise StoreUnavailable(f"The store failed unexpectedly ({type(error).__name__}).") from error

    async def put(self, state: TokenState, expect: str | AnyVersion | None = ANY) -> Record:
        """Store this state instead of the version `expect`. Raises `Superseded` and other `StoreError`s."""
        return await self._write(self.store.put(self.key, encode(state, self.now()), expect=expect))

    async def commit(self, claim: Claim, state: TokenState) -> Record:
        """Store this state, and end the claim. Raises `Superseded` and other `StoreError`s."""
        return await self._write(claim.commit(encode(state, self.now())))

    async def _write(self, work: Coroutine[Any, Any, Record]) -> Record:
        try:
            return await self._call(work, intact=_UNKNOWN)
        except StoreError:
            raise
        except TokenSessionError as error:
            raise StoreUnavailable(f"The store cannot write. {error}") from error

    def newer(self, superseded: Superseded) -> Seen | None:
        """What is stored instead."""
        record = superseded.record
        return self.seen(record) if isinstance(record, Record) else None

    async def _call(
        self,
        work: Coroutine[Any, Any, T],
        timeout: float | None = None,
        *,
        intact: str | None = None,
    ) -> T:
        """The store's answer, in time, or a `StoreError` (or whichever of our errors it raises).

        In the task of the refresh: by its contract, a store may be cancelled at any point. For one that does
        not let itself be cancelled, see `is_stuck`.
        """
        seconds = self.policy.store_timeout if timeout is None else timeout
        task = asyncio.current_task()
        self._calls[task] = self.clock.boot() + seconds + _CLEANUP_TIMEOUT
        try:
            return await bounded(self.clock, seconds, work)
        except TokenSessionError:
            raise
        except TimeoutError:
            raise StoreUnavailable(f"The store did not answer within {seconds:g} s.", intact=intact) from None
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            raise StoreUnavailable("The store cancelled its own call.", intact=intact) from None
        except Exception as error:
            message = f"The store failed unexpectedly ({type(error).__name__})."
            raise StoreUnavailable(message, intact=intact) from error
        finally:
            self._calls.pop(task, None)
            if not self._calls:
                self._calls.clear()  # gives its memory back

    def is_stuck(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this task waits for a store that has ignored its time-out and its cancellation."""
        return self.clock.boot() > self._calls.get(task, math.inf)
