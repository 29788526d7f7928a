"""A new token that could not be stored: it is served from memory, and saved again until it is stored.

The refresh token in the store is spent meanwhile, so nothing may be redeemed from it: a flight first
tries `once` more, and fails if that does. `until_done` goes on in the background; if its event loop ends,
the next flight, in whatever loop, takes over.
"""

from __future__ import annotations

from collections.abc import Callable

from . import events
from .clock import Clock
from .errors import StoreError, Superseded
from .freshness import Policy, back_off
from .record import Grant, decode
from .renewal import Unsaved
from .stores.base import Record

__all__ = ["Saving"]


class Saving:
    """One unsaved token, from the failed save to its end.

    `superseded` is called with the newer grant that is stored instead, or None if it was deleted.
    """

    __slots__ = ("_key", "_report", "_superseded", "_unsaved", "done")

    def __init__(
        self,
        unsaved: Unsaved,
        key: str,
        report: Callable[[events.Event], None],
        superseded: Callable[[Grant | None], None],
    ) -> None:
        self._unsaved = unsaved
        self._key = key
        self._report = report
        self._superseded = superseded
        self.done = False

    async def once(self) -> None:
        """One more try. Raises `StoreError` if it fails; otherwise the token is stored, or outdated."""
        if self.done:
            return
        try:
            await self._unsaved.save()
        except Superseded as newer:
            if not self.done:
                self._superseded(decode(newer.record.data) if isinstance(newer.record, Record) else None)
        else:
            self._report(events.Saved(self._key, self._unsaved.token.fingerprint))
        await self.give_up()

    async def until_done(self, clock: Clock, policy: Policy) -> None:
        """Try again and again, with back-off, and loudly."""
        tries = 1
        while not self.done:
            await clock.sleep(back_off(tries, 0.0, policy, clock.jitter()))
            tries += 1
            try:
                await self.once()
            except StoreError as error:
                self._report(events.SaveFailed(self._key, type(error).__name__, str(error), tries))

    async def give_up(self) -> None:
        """It is stored, or something newer is: let go of the claim."""
        self.done = True
        await self._unsaved.give_up()

    def __repr__(self) -> str:
        return f"<Saving {self._unsaved.token!r} {'done' if self.done else 'under way'}>"
