"""Writes that must not be lost: what could not be stored is written again until it is.

That is a new token, which is served from memory until then, or a note about the outcome of a token request.
The refresh token in the store may be spent, so nothing may be redeemed from it: a refresh first calls
`once`, and fails if that fails. `until_done` goes on in the background. If its event loop ends, the next
refresh, in whatever loop, takes over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .. import events
from ..clock import Clock
from ..errors import StoreError, Superseded
from ..policy import Policy
from ..stores.protocol import Record
from ..token import Token
from .schedule import back_off
from .single_flight import SharedTask
from .state import TokenState, decode

__all__ = ["PendingWrite", "PendingWrites", "Unsaved"]


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What could not be stored. `save` tries once more; `give_up` releases the claim.

    `token` is None for a note.
    """

    token: Token | None
    save: Callable[[], Awaitable[Record]]
    give_up: Callable[[], Awaitable[None]]


class PendingWrite:
    """One unsaved thing, from the failed write to its end.

    `on_superseded` is called with the newer state that is stored instead, or None if it was deleted.
    `outdated` is set when there has been a sign-in since: then what is stored instead does not matter here.
    """

    __slots__ = ("_key", "_on_superseded", "_report", "_unsaved", "done", "outdated", "trying")

    def __init__(
        self,
        unsaved: Unsaved,
        key: str,
        report: Callable[[events.Event], None],
        on_superseded: Callable[[TokenState | None], None],
        *,
        outdated: bool = False,
    ) -> None:
        self._unsaved = unsaved
        self._key = key
        self._report = report
        self._on_superseded = on_superseded
        self.done = False
        self.outdated = outdated
        self.trying: SharedTask[None] | None = None
        """The task of `until_done`. It has nothing left to wait for when another try was faster."""

    @property
    def token(self) -> Token | None:
        """The token to store, or None for a note."""
        return self._unsaved.token

    async def once(self) -> None:
        """One more try. Afterwards it is stored, or outdated. Raises `StoreError` if the try fails."""
        if self.done:
            return
        try:
            await self._unsaved.save()
        except Superseded as newer:
            if not (self.done or self.outdated):
                self._on_superseded(decode(newer.record.data) if isinstance(newer.record, Record) else None)
        else:
            if self.done:
                return
            self.done = True
            token = self._unsaved.token
            self._report(events.Saved(self._key, token.fingerprint if token is not None else None))
        await self.give_up()

    async def until_done(self, clock: Clock, policy: Policy) -> None:
        """Try again with back-off, and report each failure."""
        tries = 1
        while not self.done:
            await clock.sleep(back_off(tries, 0.0, policy, clock.jitter()))
            tries += 1
            try:
                await self.once()
            except StoreError as error:
                self._report(events.SaveFailed(self._key, type(error).__name__, str(error), tries))

    async def give_up(self) -> None:
        """It is stored, or something newer is: release the claim."""
        self.done = True
        trying, self.trying = self.trying, None
        if trying is not None and not (trying.current or trying.orphaned):
            trying.cancel()
        await self._unsaved.give_up()

    def __repr__(self) -> str:
        return f"<PendingWrite {self._unsaved.token or 'of a note'!r} {'done' if self.done else 'pending'}>"


class PendingWrites:
    """All pending writes of one key, oldest first. Used in one event loop."""

    __slots__ = ("_writes",)

    def __init__(self) -> None:
        self._writes: list[PendingWrite] = []

    @property
    def pending(self) -> bool:
        """Whether there are any."""
        return not all(write.done for write in self._writes)

    @property
    def tokens(self) -> frozenset[str]:
        """The fingerprints of the tokens among them."""
        return frozenset(write.token.fingerprint for write in self._writes if write.token is not None)

    def add(self, write: PendingWrite) -> PendingWrite:
        """Add one, and return it."""
        self._writes.append(write)
        return write

    def outdate(self) -> tuple[PendingWrite, ...]:
        """There has been a sign-in. Returns the writes that it outdates: call `give_up` once it is stored.

        Until then they stay, because the refresh token in the store may be spent and they hold its claim.
        """
        for write in self._writes:
            write.outdated = True
        return tuple(self._writes)

    async def save_all(self) -> None:
        """Store all of them. Raises `StoreError` if one cannot be stored."""
        while self._writes:
            write = self._writes[0]
            await write.once()
            self._drop(write)

    async def try_all(self) -> None:
        """Try each of them once more, and ignore failures."""
        for write in tuple(self._writes):
            with contextlib.suppress(StoreError):
                await write.once()

    async def give_up(self, writes: tuple[PendingWrite, ...] | None = None) -> None:
        """Something newer than these (by default all) is stored, or no one is left to try again."""
        for write in tuple(self._writes) if writes is None else writes:
            await write.give_up()
            self._drop(write)

    def _drop(self, write: PendingWrite) -> None:
        with contextlib.suppress(ValueError):  # another task was faster
            self._writes.remove(write)

    def __repr__(self) -> str:
        return f"<PendingWrites {self._writes!r}>"
