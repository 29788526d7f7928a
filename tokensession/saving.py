"""What must be stored and could not be: it is saved again and again, until it is stored.

That is a new token, which is served from memory meanwhile, or a note of what became of a token request.
The refresh token in the store may be spent, so nothing may be redeemed from it: a flight first tries
`once` more, and fails if that does. `until_done` goes on in the background; if its event loop ends, the
next flight, in whatever loop, takes over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from . import events
from .clock import Clock
from .errors import StoreError, Superseded
from .flight import Flight
from .freshness import Policy, back_off
from .record import Grant, decode
from .stores.base import Record
from .token import Token

__all__ = ["Saving", "Savings", "Unsaved"]


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What could not be stored. `save` tries once more; `give_up` lets go of the claim.

    `token` is None if it is a note.
    """

    token: Token | None
    save: Callable[[], Awaitable[Record]]
    give_up: Callable[[], Awaitable[None]]


class Saving:
    """One thing that is unsaved, from the failed save to its end.

    `superseded` is called with the newer grant that is stored instead, or None if it was deleted.
    `outdated` is set when somebody has signed in meanwhile: what is stored instead concerns him no more.
    """

    __slots__ = ("_key", "_report", "_superseded", "_unsaved", "done", "outdated", "trying")

    def __init__(
        self,
        unsaved: Unsaved,
        key: str,
        report: Callable[[events.Event], None],
        superseded: Callable[[Grant | None], None],
        *,
        outdated: bool = False,
    ) -> None:
        self._unsaved = unsaved
        self._key = key
        self._report = report
        self._superseded = superseded
        self.done = False
        self.outdated = outdated
        self.trying: Flight[None] | None = None
        """The flight of `until_done`, which has nothing to wait for when another try was faster."""

    @property
    def token(self) -> Token | None:
        """What is to be stored, unless it is a note."""
        return self._unsaved.token

    async def once(self) -> None:
        """One more try. Raises `StoreError` if it fails; otherwise it is stored, or outdated."""
        if self.done:
            return
        try:
            await self._unsaved.save()
        except Superseded as newer:
            if not (self.done or self.outdated):
                self._superseded(decode(newer.record.data) if isinstance(newer.record, Record) else None)
        else:
            if self.done:
                return
            self.done = True
            token = self._unsaved.token
            self._report(events.Saved(self._key, token.fingerprint if token is not None else None))
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
        trying, self.trying = self.trying, None
        if trying is not None and not (trying.current or trying.stranded):
            trying.cancel()
        await self._unsaved.give_up()

    def __repr__(self) -> str:
        return f"<Saving {self._unsaved.token or 'a note'!r} {'done' if self.done else 'under way'}>"


class Savings:
    """All that is unsaved, oldest first. Touched in one event loop."""

    __slots__ = ("_savings",)

    def __init__(self) -> None:
        self._savings: list[Saving] = []

    @property
    def pending(self) -> bool:
        """Whether anything is."""
        return not all(saving.done for saving in self._savings)

    @property
    def tokens(self) -> frozenset[str]:
        """The fingerprints of the tokens among them."""
        return frozenset(saving.token.fingerprint for saving in self._savings if saving.token is not None)

    def add(self, saving: Saving) -> Saving:
        """One more; the same."""
        self._savings.append(saving)
        return saving

    def outdate(self) -> tuple[Saving, ...]:
        """Somebody has signed in. Those that this concerns, for `give_up` when that is stored.

        Until then they are kept: the refresh token in the store may be spent, and they hold its claim.
        """
        for saving in self._savings:
            saving.outdated = True
        return tuple(self._savings)

    async def all_saved(self) -> None:
        """Save all of them. Raises `StoreError` if one cannot be."""
        while self._savings:
            saving = self._savings[0]
            await saving.once()
            self._drop(saving)

    async def try_all(self) -> None:
        """One more try of each, whatever comes of it."""
        for saving in tuple(self._savings):
            with contextlib.suppress(StoreError):
                await saving.once()

    async def give_up(self, savings: tuple[Saving, ...] | None = None) -> None:
        """Something newer than these (by default all) is stored, or nobody is there any more to try."""
        for saving in tuple(self._savings) if savings is None else savings:
            await saving.give_up()
            self._drop(saving)

    def _drop(self, saving: Saving) -> None:
        with contextlib.suppress(ValueError):  # somebody else was faster
            self._savings.remove(saving)

    def __repr__(self) -> str:
        return f"<Savings {self._savings!r}>"
