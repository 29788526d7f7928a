"""The refreshes of one key in this process, and the sign-ins and sign-outs that come between them.

Theory of operation
-------------------
There is at most one refresh under way, and whoever wants a token joins it; the claim makes it one per
store. `source.py` decides when a refresh is wanted, `renewal.py` does it, `held.py` remembers what came
of it, and this module sees to it that each of them is told.

Mutable state, all of it touched in one event loop and never across an await that assumes it unchanged:

- `held`: the token being served, its deadlines, and the last failure (a state machine of its own).
- `_unsaved`: what could not be stored yet: tokens, and notes of what became of token requests.
- `_flight`: the refresh under way. `_flights`: that one, and sign-ins, sign-outs and saves.
- `_epoch`: counts sign-ins and sign-outs. A flight that began in an earlier epoch publishes nothing,
  and looks again: a late refresh resurrects nothing.

Nothing is bound to an event loop when it is made. A flight left behind by a closed loop is dropped; one
in another loop that still runs is an error, for a source serves one loop at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from . import events
from .clock import Clock, within
from .errors import SignedOut, StoreCorrupt, StoreUnavailable, TokenSessionError
from .flight import Flight, Flights
from .held import Held
from .providers.base import Credential
from .record import Grant
from .renewal import Outcome, Renewal
from .saving import Saving, Savings, Unsaved
from .storage import Unnoted
from .token import Token

__all__ = ["Refreshes"]

T = TypeVar("T")


class Refreshes:
    """What is under way for one key. `held` is what has come of it."""

    __slots__ = (
        "_clock",
        "_epoch",
        "_flight",
        "_flights",
        "_renewal",
        "_report",
        "_signing_in",
        "_unsaved",
        "held",
    )

    def __init__(
        self, renewal: Renewal, held: Held, clock: Clock, report: Callable[[events.Event], None]
    ) -> None:
        self.held = held
        self._renewal = renewal
        self._clock = clock
        self._report = report
        self._flights = Flights()
        self._flight: Flight[Token] | None = None
        self._signing_in: dict[Credential, Flight[Token]] = {}
        self._epoch = 0
        self._unsaved = Savings()

    @property
    def in_flight(self) -> bool:
        """Whether a refresh is under way."""
        return self._flight is not None and self._flight in self._flights.under_way

    @property
    def unsaved(self) -> bool:
        """Whether something is still waiting to be stored."""
        return self._unsaved.pending

    def ahead(self) -> None:
        """Start a refresh that nobody waits for, unless one is under way."""
        if not self._flying():
            self._take_off("due")

    def sign_in(self, credential: Credential) -> Flight[Token]:
        """Redeem it, and put the result over whatever is stored."""
        flights = self._flights.under_way
        self._signing_in = {key: flight for key, flight in self._signing_in.items() if flight in flights}
        if credential in self._signing_in:
            return self._signing_in[credential]  # a code works once: all who bring the same share it
        flight = self._start(self._sign_in(credential), "sign-in")
        if not flight.landed:
            self._signing_in[credential] = flight
        return flight

    def sign_out(self) -> Flight[None]:
        """Leave a tombstone, and forget the token."""
        return self._start(self._sign_out(), "sign-out")

    async def close(self) -> None:
        """Let what is under way finish, for at most the grace period."""
        policy = self._renewal.policy
        left: frozenset[Flight[Any]] = frozenset()
        try:
            await within(self._clock, policy.grace, self._finish(), lost=_at_once)
        except TimeoutError:
            left = self._flights.under_way
            with contextlib.suppress(TimeoutError):  # a store that hangs may not even let go
                await within(self._clock, policy.settle, self._flights.abort(), lost=_at_once)
            await self._unsaved.try_all()
        lost = self.unsaved
        # Else nobody could refresh for as long as this object is about.
        with contextlib.suppress(TimeoutError):
            await within(self._clock, policy.settle, self._unsaved.give_up(), lost=_at_once)
        if lost or left & self._flights.under_way:
            raise StoreUnavailable(
                "What became of the last token request could not be stored before closing.",
                intact="The stored credentials are those from before the last refresh.",
                todo="Put the store right; if the old refresh token is refused then, sign in again.",
            )

    async def _finish(self) -> None:
        await self._unsaved.try_all()
        await self._flights.drain()

    # -- flying -----------------------------------------------------------------------------------

    def joined(self, reason: str) -> Flight[Token]:
        """The flight under way, or a new one. Raises the failure that is remembered, if there is one."""
        flight = self._flying()
        if flight is not None:
            return flight
        error = self.held.remembered(self._clock.boot())
        if error is not None:
            raise error
        return self._take_off(reason)

    def _flying(self) -> Flight[Token] | None:
        """The flight to join, if there is one. Drops one that a closed event loop has left behind."""
        flight = self._flight
        if flight is None or flight.landed or flight.stranded:
            self._flight = None
            return None
        if flight.elsewhere:
            raise RuntimeError(
                "This source is refreshing in another running event loop. A source serves one loop at a "
                "time: make one per thread, over a store that threads can share, such as a SQLiteStore."
            )
        return flight

    def _take_off(self, reason: str) -> Flight[Token]:
        have = self.held.token.fingerprint if self.held.token is not None else None
        if reason == "refused" and have is not None:
            self.held.counts.refused += 1
            self._report(events.TokenRefused(self._renewal.key, have))
        self.held.counts.flights += 1
        self._report(events.RefreshStarted(self._renewal.key, reason))
        flight = self._start(self._fly(reason, have), "refresh")
        self._flight = None if flight.landed else flight  # an eager task factory has run it already
        return flight

    async def _fly(self, reason: str, have: str | None) -> Token:
        try:
            while True:
                epoch = self._epoch
                try:
                    await self._unsaved.all_saved()  # what the store has is older: it must not be redeemed
                    outcome = await self._renewal.renew(have=have, refused=reason == "refused")
                except Unnoted as unnoted:
                    if epoch == self._epoch:
                        raise self._failed_unsaved(unnoted) from unnoted.__cause__
                    if isinstance(unnoted.error, asyncio.CancelledError):
                        self._keep(unnoted.unsaved, outdated=True)
                        raise unnoted.error from None
                    self._save_later(unnoted.unsaved, outdated=True)
                except Exception as error:  # noqa: BLE001 - a foreign store may raise anything
                    if epoch == self._epoch:
                        failure = self._failed(error)
                        raise failure from failure.__cause__
                else:
                    if epoch == self._epoch:
                        forced = reason == "refused" and have is not None
                        return self._publish(outcome, have=have, forced=forced)
                    self._save_later(outcome.unsaved, outdated=True)
                # Somebody signed in or out meanwhile: what came of it is in the store. Look again.
                have = None
        finally:
            if self._flight is not None and self._flight.current:
                self._flight = None  # it lands in this very step; an idle source keeps no task

    def _failed_unsaved(self, unnoted: Unnoted) -> BaseException:
        """What to raise for a refresh that failed or was stopped, and left something to be stored."""
        if not isinstance(unnoted.error, TokenSessionError):
            self._keep(unnoted.unsaved)  # for the next flight, or for closing
            return unnoted.error or unnoted
        failure = self._failed(unnoted.error)
        self._save_later(unnoted.unsaved)
        return failure

    def _publish(self, outcome: Outcome, *, have: str | None, forced: bool = False) -> Token:
        """Serve this token from now on."""
        token = outcome.grant.token
        if token is None:  # what has none is never planned to be served
            raise StoreCorrupt("The stored grant has no token.")
        wall, boot = self._clock.wall(), self._clock.boot()
        clock, policy = self._clock, self._renewal.policy
        self.held.counts.token_requests += outcome.requested
        if token.fingerprint == have and not outcome.requested:
            self.held.keep(wall, boot)
        else:
            self.held.counts.adopted += not outcome.requested
            self.held.serve(
                token, policy, wall, boot, jitter=clock.jitter(), forced=forced, spaced=outcome.requested
            )
        self._save_later(outcome.unsaved)
        return token

    def _save_later(self, unsaved: Unsaved | None, *, outdated: bool = False) -> None:
        """Go on trying to store what could not be stored, if there is something."""
        if unsaved is not None:
            saving = self._keep(unsaved, outdated=outdated)
            saving.trying = self._start(saving.until_done(self._clock, self._renewal.policy), "save")

    def _keep(self, unsaved: Unsaved, *, outdated: bool = False) -> Saving:
        return self._unsaved.add(
            Saving(unsaved, self._renewal.key, self._report, self._superseded, outdated=outdated)
        )

    def _failed(self, error: BaseException) -> TokenSessionError:
        """Remember a failure, so that callers get it at once instead of asking again."""
        wall, boot = self._clock.wall(), self._clock.boot()
        if not isinstance(error, TokenSessionError):
            unexpected = TokenSessionError(f"The refresh failed unexpectedly ({type(error).__name__}).")
            unexpected.__cause__ = error
            error = unexpected
        if isinstance(error, SignedOut):
            self.held.forget()  # a refusal leaves the access token good; a sign-out means it
        pause = self.held.fail(error, self._renewal.policy, wall, boot, jitter=self._clock.jitter())
        usable_for = self.held.deadlines.usable_for(wall, boot)
        self._report(
            events.RefreshFailed(self._renewal.key, type(error).__name__, str(error), usable_for, pause)
        )
        return error

    # -- signing in and out ------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, T], what: str) -> Flight[T]:
        return self._flights.take_off(work, name=f"tokensession {what} {self._renewal.key}")

    async def _sign_in(self, credential: Credential) -> Token:
        self._report(events.RefreshStarted(self._renewal.key, "sign-in"))
        epoch = self._epoch
        try:
            outcome = await self._renewal.sign_in(credential, earlier=self._unsaved.tokens)
        except Unnoted as unnoted:  # stopped, with a token in its hands
            self._unsaved.outdate()
            raise self._failed_unsaved(unnoted) from unnoted.__cause__
        except TokenSessionError as error:
            wall, boot = self._clock.wall(), self._clock.boot()
            usable_for = self.held.deadlines.usable_for(wall, boot)
            self._report(
                events.RefreshFailed(self._renewal.key, type(error).__name__, str(error), usable_for, None)
            )
            raise
        finally:
            self._signing_in.pop(credential, None)
        outdated = self._unsaved.outdate()
        token = self._publish(outcome, have=None)
        if epoch != self._epoch:  # somebody else signed in or out meanwhile: the store knows who was last
            self.held.forget()
        self._epoch += 1
        self._report(events.SignedIn(self._renewal.key, token.fingerprint))
        if outcome.unsaved is None:
            await self._unsaved.give_up(outdated)
        return token

    async def _sign_out(self) -> None:
        await self._renewal.sign_out()
        self._epoch += 1
        self.held.forget()
        self._report(events.SignedOut(self._renewal.key))
        await self._unsaved.give_up()

    def _superseded(self, grant: Grant | None) -> None:
        """Serve a newer grant instead of what came too late to be stored."""
        if grant is None or grant.token is None:
            self.held.forget()
        elif grant.token != self.held.token:
            self._publish(Outcome(grant), have=None)

    def __repr__(self) -> str:
        return f"<Refreshes of {self._renewal.key}, {len(self._flights.under_way)} under way>"


async def _at_once(_nothing: None) -> None:
    """Who closes is somebody's task, and no flight of ours: if he is cancelled he is told so at once."""
