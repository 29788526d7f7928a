"""What one process holds of a key: the token it serves, and what it remembers of failures. Pure.

`Held` is a small state machine, stepped by `serve`, `fail` and `forget`. It reads no clock: each step
is told what both clocks say. `source.py` asks it what may be done, and does it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from .errors import ConfigurationError, RateLimited, SignInRequired, TokenSessionError, TokenUnavailable
from .freshness import NO_TOKEN, Deadlines, Policy, Verdict, back_off, deadlines, forced_pause, spacing
from .token import Token

__all__ = ["Counts", "Held", "Snapshot"]


@dataclass(slots=True)
class Counts:
    """What has happened since the source was made."""

    flights: int = 0
    token_requests: int = 0
    """Token requests that brought a token."""
    adopted: int = 0
    """Tokens that somebody else had put into the store."""
    refused: int = 0
    """Flights that a 401 has started."""
    failures: int = 0
    """Flights that ended in an error."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a source, for people. No secrets. Durations in seconds; the counters are `Counts`'."""

    key: str
    verdict: Verdict
    token: str | None
    """The fingerprint of the token in memory, if there is one."""
    seconds_left: float | None
    """Until the token's life is over; None if it has no stated life, or there is no token."""
    in_flight: bool
    unsaved: bool
    """Whether a new token, or a note of what became of a request for one, still waits to be stored."""
    last_error: str | None
    """The type of the error that is remembered now."""
    retry_after: float | None
    flights: int
    token_requests: int
    adopted: int
    refused: int
    failures: int


@dataclass(slots=True)
class Held:
    """The token being served, its deadlines, and the memory of what went wrong.

    `sure_until` (boot-time clock) is until when the token is FRESH without another look at the wall clock,
    which is looked at every `between_looks` seconds.
    `not_before` (boot-time clock) is when the next refresh ahead may start. `forced` counts the forced
    refreshes in a row that did not help, this token's own included; `in_vain` is set when it turns out
    that this one did not either. `error` is answered from memory until `error_until`.
    """

    between_looks: float = 0.0
    token: Token | None = None
    deadlines: Deadlines = NO_TOKEN
    sure_until: float = float("-inf")
    since: float = 0.0
    not_before: float = float("-inf")
    forced: int = 0
    in_vain: bool = False
    error: TokenSessionError | None = None
    error_until: float = float("-inf")
    errors_in_a_row: int = 0
    counts: Counts = field(default_factory=Counts)

    def serve(
        self,
        token: Token,
        policy: Policy,
        wall: float,
        boot: float,
        *,
        jitter: float,
        forced: bool,
        spaced: bool,
    ) -> None:
        """Serve this token from now on.

        `forced`: a 401 led to it. `spaced`: it was requested, so the next request keeps its distance.
        """
        self.forced = 0 if not forced else self.forced + 1 if self.in_vain else 1
        self.in_vain = False
        self.token = token
        self.deadlines = deadlines(token, policy, wall, boot, jitter=jitter)
        self.look(wall, boot)
        self.since = boot
        self.not_before = boot + spacing(token.lifetime, policy) if spaced else boot
        self._forgive()

    def look(self, wall: float, boot: float) -> Verdict:
        """The verdict, by both clocks."""
        verdict = self.deadlines.verdict(wall, boot)
        fresh = verdict is Verdict.FRESH
        self.sure_until = min(self.deadlines.due_boot, boot + self.between_looks) if fresh else float("-inf")
        return verdict

    def keep(self, wall: float, boot: float) -> None:
        """Go on with this token to its end: its refresh token may be spent, and is left alone."""
        self.not_before = boot + self.deadlines.usable_for(wall, boot)
        self._forgive()

    def forget(self) -> None:
        """Serve nothing."""
        self.token, self.deadlines, self.sure_until = None, NO_TOKEN, float("-inf")
        self._forgive()

    def fail(
        self, error: TokenSessionError, policy: Policy, wall: float, boot: float, *, jitter: float
    ) -> float:
        """Remember a failure. The pause, in seconds, before the next refresh ahead.

        Callers who cannot wait (their token is spent, or was refused) get the remembered error for a
        shorter time: a long pause is for refreshes that nobody waits for.
        """
        self.errors_in_a_row += 1
        self.counts.failures += 1
        asked = self._asked(error, policy)
        ahead, waiting = asked, asked
        if asked is None:
            usable_for = self.deadlines.usable_for(wall, boot)
            ahead = back_off(self.errors_in_a_row, usable_for, policy, jitter)
            waiting = min(ahead, back_off(self.errors_in_a_row, 0.0, policy, jitter))
        pause, self.error = ahead or 0.0, error
        self.not_before, self.error_until = boot + pause, boot + (waiting or 0.0)
        if isinstance(error, TokenUnavailable):
            error.retry_after = waiting
        return pause

    def _asked(self, error: TokenSessionError, policy: Policy) -> float | None:
        """How long the error itself asks to wait, or None for the back-off."""
        if isinstance(error, SignInRequired):
            return policy.rejected_pause  # costs no token request, only a look at the store
        if isinstance(error, ConfigurationError):
            return policy.retry_after_default  # time mends nothing here, but somebody may
        asked = error.retry_after if isinstance(error, TokenUnavailable) else None
        if asked is None and isinstance(error, RateLimited):
            asked = policy.retry_after_default
        return None if asked is None else min(max(asked, policy.retry_after_min), policy.retry_after_max)

    def remembered(self, boot: float) -> TokenSessionError | None:
        """The failure to answer with instead of asking again, as a fresh copy, or None."""
        if self.error is None or boot >= self.error_until:
            return None
        error = self.error.again()
        if isinstance(error, TokenUnavailable):
            error.retry_after = self.error_until - boot
        return error

    def refused(self, policy: Policy, boot: float) -> bool:
        """The API has answered 401 to this token: whether a refresh is worth a try.

        Always for a token that came by itself, or has worked for a while: see `freshness.forced_pause`.
        """
        lifetime = self.token.lifetime if self.token else None
        worth = boot - self.since >= forced_pause(self.forced, lifetime, policy)
        self.in_vain = self.in_vain or not worth
        return worth

    def snapshot(self, key: str, wall: float, boot: float, *, in_flight: bool, unsaved: bool) -> Snapshot:
        """All of this, for people."""
        token, limits = self.token, self.deadlines
        error = self.remembered(boot)
        left = min(limits.over_wall - wall, limits.over_boot - boot)
        return Snapshot(
            key=key,
            verdict=limits.verdict(wall, boot),
            token=token.fingerprint if token is not None else None,
            seconds_left=left if token is not None and token.lifetime is not None else None,
            in_flight=in_flight,
            unsaved=unsaved,
            last_error=type(error).__name__ if error else None,
            retry_after=self.error_until - boot if error else None,
            **asdict(self.counts),
        )

    def _forgive(self) -> None:
        self.error, self.error_until, self.errors_in_a_row = None, float("-inf"), 0
