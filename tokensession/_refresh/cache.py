"""What one process remembers about a key: the token it serves, and the last failure. Pure.

`TokenCache` is a small state machine, stepped by `serve`, `fail` and `forget`. It reads no clock: each
step gets what both clocks say. `source.py` and `coordinator.py` ask it what may be done, and do it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from ..errors import ConfigurationError, RateLimited, SignInRequired, TokenSessionError, TokenUnavailable
from ..policy import Freshness, Policy
from ..token import Token
from .schedule import NO_TOKEN, Deadlines, back_off, deadlines, forced_refresh_delay, refresh_interval

__all__ = ["Counters", "Snapshot", "TokenCache"]


@dataclass(slots=True)
class Counters:
    """What has happened since the source was made."""

    refreshes: int = 0
    """Refreshes that started."""
    token_requests: int = 0
    """Token requests that returned a token."""
    adopted: int = 0
    """Tokens that another task or process had put into the store."""
    unauthorized: int = 0
    """Refreshes that a 401 started."""
    failures: int = 0
    """Refreshes that ended in an error."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a source, for people. Contains no secret. Durations are in seconds."""

    key: str
    """The key in the store."""
    freshness: Freshness
    """How close the token in memory is to its end. EXPIRED without a token."""
    token: str | None
    """The fingerprint of the token in memory, or None."""
    seconds_left: float | None
    """Until the token expires. None if it has no stated lifetime, or there is no token."""
    refreshing: bool
    """Whether a refresh is running."""
    unsaved: bool
    """Whether a new token, or the outcome of a token request, still waits to be stored."""
    last_error: str | None
    """The type of the error that callers get at this moment."""
    retry_after: float | None
    """How long they get it."""
    refreshes: int
    """Refreshes that started."""
    token_requests: int
    """Token requests that returned a token."""
    adopted: int
    """Tokens that another task or process had put into the store."""
    unauthorized: int
    """Refreshes that a 401 started."""
    failures: int
    """Refreshes that ended in an error."""


@dataclass(slots=True)
class TokenCache:
    """The token being served, its deadlines, and the last failure.

    - `fresh_until` (boot clock): until then the token is FRESH without another look at the wall clock.
      The wall clock is read every `wall_check` seconds.
    - `not_before` (boot clock): when the next background refresh may start.
    - `forced`: how many forced refreshes in a row did not help, this token's own included. `in_vain` is set
      once it is clear that this one did not help either.
    - `error` is repeated without a new attempt until `error_until`.
    """

    wall_check: float = 0.0
    token: Token | None = None
    deadlines: Deadlines = NO_TOKEN
    fresh_until: float = float("-inf")
    since: float = 0.0
    not_before: float = float("-inf")
    forced: int = 0
    in_vain: bool = False
    error: TokenSessionError | None = None
    error_until: float = float("-inf")
    errors_in_a_row: int = 0
    counters: Counters = field(default_factory=Counters)

    def serve(
        self,
        token: Token,
        policy: Policy,
        wall: float,
        boot: float,
        *,
        jitter: float,
        forced: bool,
        requested: bool,
    ) -> None:
        """Serve this token from now on.

        `forced`: a 401 led to it. `requested`: it came from a token request, so the next one has to wait
        for the minimum interval.
        """
        self.forced = 0 if not forced else self.forced + 1 if self.in_vain else 1
        self.in_vain = False
        self.token = token
        self.deadlines = deadlines(token, policy, wall, boot, jitter=jitter)
        self.look(wall, boot)
        self.since = boot
        self.not_before = boot + refresh_interval(token.lifetime, policy) if requested else boot
        self._clear_failure()

    def look(self, wall: float, boot: float) -> Freshness:
        """The freshness, by both clocks."""
        freshness = self.deadlines.freshness(wall, boot)
        fresh = freshness is Freshness.FRESH
        self.fresh_until = min(self.deadlines.due_boot, boot + self.wall_check) if fresh else float("-inf")
        return freshness

    def hold_until_ending(self, wall: float, boot: float) -> None:
        """Serve this token until it is ENDING: its refresh token may be spent, and is left alone."""
        self.not_before = boot + self.deadlines.usable_for(wall, boot)
        self._clear_failure()

    def forget(self) -> None:
        """Serve nothing."""
        self.token, self.deadlines, self.fresh_until = None, NO_TOKEN, float("-inf")
        self._clear_failure()

    def fail(
        self, error: TokenSessionError, policy: Policy, wall: float, boot: float, *, jitter: float
    ) -> float:
        """Remember a failure. Returns the pause, in seconds, before the next background refresh.

        Callers who cannot wait (the token is not usable, or got a 401) get the remembered error for a
        shorter time. The long pause is for refreshes that no caller waits for.
        """
        self.errors_in_a_row += 1
        self.counters.failures += 1
        requested = self._requested_delay(error, policy)
        background, waiting = requested, requested
        if requested is None:
            usable_for = self.deadlines.usable_for(wall, boot)
            background = back_off(self.errors_in_a_row, usable_for, policy, jitter)
            waiting = min(background, back_off(self.errors_in_a_row, 0.0, policy, jitter))
        pause, self.error = background or 0.0, error
        self.not_before, self.error_until = boot + pause, boot + (waiting or 0.0)
        if isinstance(error, TokenUnavailable):
            error.retry_after = waiting
        return pause

    def _requested_delay(self, error: TokenSessionError, policy: Policy) -> float | None:
        """How long the error itself says to wait, or None: then the back-off applies."""
        if isinstance(error, SignInRequired):
            return policy.rejected_pause  # costs no token request, only a look at the store
        if isinstance(error, ConfigurationError):
            return policy.retry_after_default  # time does not fix this, but a person may
        requested = error.retry_after if isinstance(error, TokenUnavailable) else None
        if requested is None and isinstance(error, RateLimited):
            requested = policy.retry_after_default
        return (
            None if requested is None else min(max(requested, policy.retry_after_min), policy.retry_after_max)
        )

    def remembered(self, boot: float) -> TokenSessionError | None:
        """The failure to raise instead of trying again, as a fresh copy, or None."""
        if self.error is None or boot >= self.error_until:
            return None
        error = self.error.again()
        if isinstance(error, TokenUnavailable):
            error.retry_after = self.error_until - boot
        return error

    def should_force_refresh(self, policy: Policy, boot: float) -> bool:
        """Whether a 401 on this token should force a refresh.

        Always for a token that came from a normal refresh, or has worked for a while: see
        `schedule.forced_refresh_delay`.
        """
        lifetime = self.token.lifetime if self.token else None
        worth_it = boot - self.since >= forced_refresh_delay(self.forced, lifetime, policy)
        self.in_vain = self.in_vain or not worth_it
        return worth_it

    def snapshot(self, key: str, wall: float, boot: float, *, refreshing: bool, unsaved: bool) -> Snapshot:
        """All of this, for people."""
        token, limits = self.token, self.deadlines
        error = self.remembered(boot)
        left = min(limits.expired_wall - wall, limits.expired_boot - boot)
        return Snapshot(
            key=key,
            freshness=limits.freshness(wall, boot),
            token=token.fingerprint if token is not None else None,
            seconds_left=left if token is not None and token.lifetime is not None else None,
            refreshing=refreshing,
            unsaved=unsaved,
            last_error=type(error).__name__ if error else None,
            retry_after=self.error_until - boot if error else None,
            **asdict(self.counters),
        )

    def _clear_failure(self) -> None:
        self.error, self.error_until, self.errors_in_a_row = None, float("-inf"), 0
