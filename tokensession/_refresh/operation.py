"""A running refresh, as its callers and its transaction see it: for whom it goes on, and how long."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable

from ..clock import Clock, Timer
from ..errors import TokenSessionError, TokenUnavailable
from ..policy import Policy
from .request import Sending
from .single_flight import Waiters

__all__ = ["Operation"]


class Operation:
    """A running refresh or sign-in.

    `id` identifies it in events. `is_late`: its callers have their error; its request goes on, because the
    answer has the next refresh token. `closing`: no one waits any more. `failure` is why there is no token
    yet, or None while a request is on the wire. `order` is that of the state that was known when it began.
    `number` is the highest sign-in number that was stored or known when a sign-in began.
    `unwanted`: its token is not to be used, so it does not go on late. `ended_by`: why it was stopped.
    `sending`: its token request, until there is an answer. `until`: no token request is made before.
    """

    def __init__(self, clock: Clock, policy: Policy, *, force: bool = False) -> None:
        self.id: str = secrets.token_hex(4)
        self.began = clock.boot()
        self.waiters = Waiters(clock, policy.caller_timeout)
        self.is_late = False
        self.closing = False
        self.failure: TokenSessionError | None = None
        self.force = force
        self.order = (0, 0)
        self.number: int | None = None
        self.unwanted = False
        self.sending: Sending | None = None
        self.until: float = float("-inf")
        self.cancel: Callable[[], None] | None = None
        self.ended_by: TokenSessionError | None = None
        self._clock = clock
        self._patience = min(policy.retry_within, policy.caller_timeout)
        self._look_now: asyncio.Event | None = None

    @property
    def duration(self) -> float:
        """Seconds since it began."""
        return self._clock.boot() - self.began

    @property
    def on_the_wire(self) -> bool:
        """Whether its token request has left, and has no answer yet."""
        return self.sending is not None and self.sending.sent is not None

    @property
    def wanted(self) -> bool:
        """Whether a caller without a usable token has joined it."""
        return self.waiters.latest > float("-inf")

    def worth_waiting(self, until: float) -> bool:
        """Whether a caller waits for an attempt at `until`."""
        reach = self._patience - min(1.0, self._patience / 10)  # an attempt takes time, too
        return not self.closing and until <= self.waiters.latest + reach

    async def pause(self, seconds: float) -> None:
        """Wait, or until `look` is called."""
        self._look_now = asyncio.Event()
        timer = Timer(self._clock, seconds, self._look_now.set)
        try:
            await self._look_now.wait()
        finally:
            timer.cancel()

    def queued(self) -> contextlib.AbstractContextManager[None]:
        """In this block the callers' time does not run."""
        return self.waiters.queued()

    def late(self) -> None:
        """The request goes on, and its callers have their error. Not if it is no longer wanted."""
        self.is_late = True
        if self.unwanted and self.cancel is not None:
            self.cancel()

    def stopped(self) -> TokenSessionError:
        """What its callers get if it is stopped."""
        if self.ended_by is not None:
            return self.ended_by
        if self.failure is not None:
            return self.failure
        return TokenUnavailable("The refresh was stopped: its event loop or session is closing.")

    def look(self) -> None:
        """End a pause: there is something new."""
        if self._look_now is not None:
            self._look_now.set()
