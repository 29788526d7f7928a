"""The source that manages one key's token.

Theory of operation
-------------------
`ManagedSource.token` is two comparisons while the token is FRESH: no lock, no await, no checkpoint.
When it is DUE, the caller gets it all the same and one flight takes off; when it is EXPIRED, callers
wait for the flight. There is at most one refresh flight per source, so per process and key; the claim
makes it one per store.

Mutable state, all of it touched in one event loop and never across an await that assumes it unchanged:

- `_held`: the token being served, its deadlines, and the last failure (a state machine of its own).
- `_saving`: what could not be stored yet: a token, or a note of what became of a token request.
- `_flight`: the refresh under way. `_flights`: that one, and sign-ins, sign-outs and saves.
- `_epoch`: counts sign-ins and sign-outs. A flight that began in an earlier epoch publishes nothing,
  and looks again: a late refresh resurrects nothing.

Nothing is bound to an event loop when the source is made. A flight left behind by a closed loop is
dropped; one in another loop that still runs is an error, for a source serves one loop at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from . import events
from .clock import Clock, SystemClock, within
from .errors import (
    ConfigurationError,
    SignedOut,
    StoreCorrupt,
    StoreUnavailable,
    TokenSessionError,
)
from .flight import Flight, Flights
from .freshness import Policy, Verdict
from .held import Held, Snapshot
from .providers import checks
from .providers.base import Credential, Provider, TokenEndpoint
from .record import Grant
from .renewal import Outcome, Renewal, Unnoted
from .saving import Saving, Unsaved
from .stores.base import Store, check_key
from .token import Token

__all__ = ["ManagedSource"]

T = TypeVar("T")

_POLICY = Policy()
_CLOCK = SystemClock()


class ManagedSource:
    """One key's token: kept in a store, refreshed in time, by one request however many ask.

    `endpoint` sends the token requests (`tokensession.AiohttpEndpoint()`). `key` names the credential
    in the store; the default is the provider's own, made of its name, environment, client and seed.
    The store is borrowed: closing the source does not close it.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_epoch",
        "_flight",
        "_flights",
        "_held",
        "_observer",
        "_renewal",
        "_saving",
        "_signing_in",
    )

    def __init__(
        self,
        provider: Provider,
        endpoint: TokenEndpoint,
        *,
        store: Store,
        key: str | None = None,
        policy: Policy | None = None,
        clock: Clock | None = None,
        observer: events.Observer | None = None,
    ) -> None:
        if isinstance(provider, type) or not isinstance(provider, Provider):
            raise ConfigurationError(  # not by its repr: it may be the refresh token itself
                f"A {type(provider).__name__} is no provider.",
                todo="Pass an instance of one of tokensession.providers.",
            )
        if isinstance(store, type) or not isinstance(store, Store):
            raise ConfigurationError(
                f"A {type(store).__name__} is no store.",
                todo='Pass one of tokensession.stores, or open_store("sqlite:///tokens.db").',
            )
        name = provider.key if key is None else key
        if not name:
            raise ConfigurationError(
                "There is no key to keep the token under.",
                todo='Give the provider a seed, or name the key: key="tenant-42".',
            )
        self._clock = clock or _CLOCK
        self._renewal = Renewal(
            key=check_key(name),
            provider=provider,
            store=store,
            endpoint=endpoint,
            policy=policy or _POLICY,
            clock=self._clock,
            report=self._report,
        )
        self._observer = observer
        self._held = Held()
        self._flights = Flights()
        self._flight: Flight[Token] | None = None
        self._signing_in: tuple[Credential, Flight[Token]] | None = None
        self._epoch = 0
        self._saving: Saving | None = None

    # -- what callers use -------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The key in the store."""
        return self._renewal.key

    @property
    def provider(self) -> Provider:
        """The provider whose tokens these are."""
        return self._renewal.provider

    @property
    def origins(self) -> tuple[str, ...]:
        """Where this token may go."""
        return self._renewal.provider.origins

    async def token(self) -> Token:
        """A token to send now.

        Returns at once while there is a usable one. Otherwise waits for the one refresh that all
        callers share; being cancelled does not disturb it. Raises `SignInRequired`,
        `TokenUnavailable`, `ConfigurationError`, `StoreError` or `MalformedReply`.
        """
        held, clock = self._held, self._clock
        limits = held.deadlines
        if clock.wall() < limits.due_wall and clock.boot() < limits.due_boot and held.token is not None:
            return held.token
        return await self._stale()

    async def refresh(self, rejected: Token | None = None) -> Token:
        """A new token, although the current one may look good.

        With `rejected`, the token that the API answered 401 to: if a newer one is here already, that
        one; else one refresh, shared by all who ask. The same token comes back if a 401 has just
        produced it: then the API is saying no, and another token would not change its mind.
        """
        if rejected is None:
            return await self._asked()
        for _ in range(2):  # a refresh under way may yet end with the rejected token
            current = self._held.token
            if current is not None and current.access_token != rejected.access_token:
                return await self.token()
            if current is not None and not self._held.refused(self._renewal.policy, self._now()[1]):
                return current
            renewed = await self._renewed("refused")
            if renewed.access_token != rejected.access_token:
                return renewed
        return rejected

    async def sign_in(self, *, code: str | None = None, refresh_token: str | None = None) -> Token:
        """Redeem a new code or refresh token, and replace whatever is stored under the key.

        A refresh under way anywhere is superseded. The sign-in is finished even if the caller is
        cancelled. Raises as `token` does; if it fails, the stored credentials are unchanged.
        """
        credential = checks.seed(code=code, refresh_token=refresh_token)
        if credential is None:
            raise ConfigurationError("Signing in takes a code or a refresh_token.", todo="Pass one of them.")
        under_way = self._signing_in
        if under_way is not None and under_way[0] == credential and under_way[1] in self._flights.under_way:
            return await under_way[1].wait()  # a code works once: two who bring the same share it
        flight = self._start(self._sign_in(credential), "sign-in")
        self._signing_in = (credential, flight)
        return await flight.wait()

    async def sign_out(self) -> None:
        """Forget the token, here and in the store, until somebody signs in again.

        Other processes notice when they next look at the store: at the latest when their token is due.
        Raises `StoreError` if it could not be stored; then nobody is signed out.
        """
        await self._start(self._sign_out(), "sign-out").wait()

    def snapshot(self) -> Snapshot:
        """The state of this source, for people."""
        in_flight = self._flight is not None and self._flight in self._flights.under_way
        return self._held.snapshot(
            self.key,
            *self._now(),
            in_flight=in_flight,
            unsaved=self._saving is not None and not self._saving.done,
        )

    async def aclose(self) -> None:
        """Let what is under way finish, for at most the policy's grace period.

        A refresh is not cut off: its token may be the only copy. Raises `StoreUnavailable` if a token
        could still not be stored when time was up. The source may be used again.
        """
        try:
            await within(self._clock, self._renewal.policy.grace, self._flights.drain())
        except TimeoutError:
            with contextlib.suppress(TimeoutError):  # a store that hangs may not even let go
                await within(self._clock, self._renewal.policy.settle, self._flights.abort())
        if self._saving is not None and not self._saving.done:
            raise StoreUnavailable(
                "What became of the last token request could not be stored before closing.",
                intact="The stored credentials are those from before the last refresh.",
                todo="Put the store right; if the old refresh token is refused then, sign in again.",
            )

    def __repr__(self) -> str:
        state = self.snapshot()
        return f"<ManagedSource {state.key} {state.verdict.value}{' in flight' if state.in_flight else ''}>"

    # -- flying -----------------------------------------------------------------------------------

    def _now(self) -> tuple[float, float]:
        return self._clock.wall(), self._clock.boot()

    async def _stale(self) -> Token:
        wall, boot = self._now()
        held = self._held
        if held.token is None or held.deadlines.verdict(wall, boot) is Verdict.EXPIRED:
            return await self._renewed("expired")
        if boot >= held.not_before and not self._flying():
            self._take_off("due")
        return held.token

    async def _renewed(self, reason: str) -> Token:
        """The outcome of the flight under way, or of a new one, or the failure that is remembered."""
        held = self._held
        try:
            return await self._joined(reason).wait()
        except TokenSessionError:
            # EXPIRED comes a little before the end. If no other token can be had, live until then.
            if reason == "expired" and held.token is not None and held.deadlines.alive(*self._now()):
                return held.token
            raise

    async def _asked(self) -> Token:
        if self._held.token is None:  # which token it is that should be replaced, the store may know
            requests, token = self._held.counts.token_requests, await self.token()
            if self._held.counts.token_requests > requests:
                return token
        return await self._renewed("asked")

    def _joined(self, reason: str) -> Flight[Token]:
        flight = self._flying()
        if flight is not None:
            return flight
        error = self._held.remembered(self._now()[1])
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
                "time: make one per thread, over the same store."
            )
        return flight

    def _take_off(self, reason: str) -> Flight[Token]:
        have = self._held.token.fingerprint if self._held.token is not None else None
        if reason == "refused" and have is not None:
            self._held.counts.refused += 1
            self._report(events.TokenRefused(self.key, have))
        self._held.counts.flights += 1
        self._report(events.RefreshStarted(self.key, reason))
        flight = self._start(self._fly(reason, have), "refresh")
        self._flight = None if flight.landed else flight  # an eager task factory has run it already
        return flight

    async def _fly(self, reason: str, have: str | None) -> Token:
        try:
            while True:
                epoch = self._epoch
                try:
                    # What the store has is older than what we hold: it must not be redeemed.
                    if self._saving is not None:
                        await self._saving.once()
                        self._saving = None
                    outcome = await self._renewal.renew(have=have, refused=reason == "refused")
                except Exception as error:  # noqa: BLE001 - a foreign store may raise anything
                    unsaved = error.unsaved if isinstance(error, Unnoted) else None
                    if epoch == self._epoch:
                        failure = self._failed(error.error if isinstance(error, Unnoted) else error)
                        self._save_later(unsaved)
                        raise failure from failure.__cause__
                else:
                    unsaved = outcome.unsaved
                    if epoch == self._epoch:
                        forced = reason == "refused" and have is not None
                        return self._publish(outcome, have=have, forced=forced)
                # Somebody signed in or out meanwhile: what came of it is in the store. Look again.
                if unsaved is not None:
                    await unsaved.give_up()
                have = None
        finally:
            self._flight = None  # it lands in this very step; an idle source keeps no task

    def _publish(self, outcome: Outcome, *, have: str | None, forced: bool = False) -> Token:
        """Serve this token from now on."""
        token = outcome.grant.token
        if token is None:  # what has none is never planned to be served
            raise StoreCorrupt("The stored grant has no token.")
        wall, boot = self._now()
        clock, policy = self._clock, self._renewal.policy
        self._held.counts.token_requests += outcome.requested
        if token.fingerprint == have and not outcome.requested:
            self._held.keep(wall, boot)
        else:
            self._held.counts.adopted += not outcome.requested
            self._held.serve(
                token, policy, wall, boot, jitter=clock.jitter(), forced=forced, spaced=outcome.requested
            )
        self._save_later(outcome.unsaved)
        return token

    def _save_later(self, unsaved: Unsaved | None) -> None:
        """Go on trying to store what could not be stored, if there is something."""
        if unsaved is not None:
            self._saving = Saving(unsaved, self.key, self._report, self._superseded)
            self._start(self._saving.until_done(self._clock, self._renewal.policy), "save")

    def _failed(self, error: BaseException) -> TokenSessionError:
        """Remember a failure, so that callers get it at once instead of asking again."""
        wall, boot = self._now()
        if not isinstance(error, TokenSessionError):
            unexpected = TokenSessionError(f"The refresh failed unexpectedly ({type(error).__name__}).")
            unexpected.__cause__ = error
            error = unexpected
        if isinstance(error, SignedOut):
            self._held.forget()  # a refusal leaves the access token good; a sign-out means it
        pause = self._held.fail(error, self._renewal.policy, wall, boot, jitter=self._clock.jitter())
        usable_for = self._held.deadlines.usable_for(wall, boot)
        self._report(events.RefreshFailed(self.key, type(error).__name__, str(error), usable_for, pause))
        return error

    # -- signing in and out ------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, T], what: str) -> Flight[T]:
        return self._flights.take_off(work, name=f"tokensession {what} {self.key}")

    async def _sign_in(self, credential: Credential) -> Token:
        self._report(events.RefreshStarted(self.key, "sign-in"))
        try:
            outcome = await self._renewal.sign_in(credential)
        except TokenSessionError as error:
            wall, boot = self._now()
            usable_for = self._held.deadlines.usable_for(wall, boot)
            self._report(events.RefreshFailed(self.key, type(error).__name__, str(error), usable_for, None))
            raise
        finally:
            self._signing_in = None
        self._epoch += 1
        if self._saving is not None:
            await self._saving.give_up()
        token = self._publish(outcome, have=None)
        self._report(events.SignedIn(self.key, token.fingerprint))
        return token

    async def _sign_out(self) -> None:
        await self._renewal.sign_out()
        self._epoch += 1
        self._held.forget()
        if self._saving is not None:
            await self._saving.give_up()
        self._report(events.SignedOut(self.key))

    def _superseded(self, grant: Grant | None) -> None:
        """Serve a newer grant instead of what came too late to be stored."""
        if grant is None or grant.token is None:
            self._held.forget()
        else:
            self._publish(Outcome(grant), have=None)

    def _report(self, event: events.Event) -> None:
        events.emit(self._observer, event)
