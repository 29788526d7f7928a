"""What one process remembers about a key: the highest state, the token it serves, the last failure. Pure.

`TokenCache` is a small state machine, stepped by `learn`, `serve`, `fail` and `forget`. It reads no clock:
each step gets what the clocks say. `source.py`, `coordinator.py` and `transaction.py` ask it what may be
done, and do it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from ..errors import SignInRequired, StoreError, TokenSessionError, TokenUnavailable
from ..policy import ENDS_SOON, Freshness, Policy
from ..snapshot import Snapshot
from ..token import Token
from .outcomes import LocalFailure
from .schedule import NO_TOKEN, Deadlines, deadlines, look_interval, refresh_interval
from .state import MAX_REDEEMED, Now, TokenState, keeping, merged, superseding
from .uses import Count, Uses

__all__ = ["Counters", "TokenCache"]


@dataclass(slots=True)
class Counters:
    """What has happened since the source was made."""

    refreshes: int = 0
    """Refreshes that started."""
    token_requests: int = 0
    """Refreshes that got their token by a token request."""
    adopted: int = 0
    """Tokens that another task or process had put into the store."""
    unauthorized: int = 0
    """Refreshes that a 401 started."""
    failures: int = 0
    """Refreshes that ended in an error."""


@dataclass(slots=True)
class TokenCache:
    """What is known, what is served, and the last failure.

    What is known:

    - `state` is the highest state that this process has seen or made, and `version` the version of its record
      (None: not stored yet). `seen_at` (boot clock) is when the store was last found to have it.
    - `missing_since`: when the record was found to be gone. `local`: failures that no other process gets to
      know, because they may be this machine's own.
    - `sent`: the codes that this process has sent itself and that may be redeemed, and what was redeemed
      according to a record that it has replaced.

    What is served:

    - `fresh_until` (boot clock): until then the token is FRESH without another look at the wall clock.
      The wall clock is read every `wall_check` seconds.
    - `ready`: the token and the header that it is sent in.
    - `not_before` (boot clock): when the next background refresh may start.
    - `same_until`: until then, a 401 gets the same token again, because another would not help.
    - `count`: how many requests have been given this token, if the server allows only so many. Then it is
      never FRESH without a look, because each look counts.
    - `served`: the order of the state whose token is served. `has_served`: there has been
      one, or one of its configured credential was seen in the store.

    The last failure:

    - `error` is repeated without a look at the store until `look_after`, and without a token request until
      `next_attempt`. `reported` is what was last reported as new, and `limited_until` until when
      the limit of token requests has been.
    """

    wall_check: float = 0.0
    count: Count | None = None
    state: TokenState | None = None
    version: str | None = None
    seen_at: float = 0.0
    missing_since: float | None = None
    local: LocalFailure | None = None
    sent: tuple[str, ...] = ()
    token: Token | None = None
    ready: tuple[Token, str] | None = None
    deadlines: Deadlines = NO_TOKEN
    fresh_until: float = float("-inf")
    not_before: float = float("-inf")
    same_until: float = float("-inf")
    served: tuple[int, int] | None = None
    has_served: bool = False
    error: TokenSessionError | None = None
    limited_until: float = float("-inf")
    reported: tuple[str, str] | None = None
    look_after: float = float("-inf")
    next_attempt: float = float("-inf")
    counters: Counters = field(default_factory=Counters)

    def learn(self, state: TokenState, version: str | None, boot: float) -> None:
        """Remember this state, unless a higher one is known. `version` is None if it is not stored.

        Notes that could not be stored are kept.
        """
        if self.state is not None and state.order < self.state.order:
            return
        # What this process has sent, it has sent, although a state that replaces its own does not know it.
        before = self.state
        if before is not None and state.number > before.number:
            # A newer sign-in. It supersedes what was rejected before it, also if that could not be noted.
            before = replace(before, superseded=superseding(before, state.configured))
        known = keeping(merged(state, before), before)
        if before is not None and before.order == state.order:
            # Its sender takes the note of a code back, if the answer says that it may be sent again.
            names = {*self.sent, *(name for name, _ in state.redeemed)}
            known = replace(known, redeemed=tuple(pair for pair in known.redeemed if pair[0] in names))
        self.state, self.version = known, version
        self.seen_at, self.missing_since = boot, None

    def note_sent(self, name: str) -> None:
        """Remember that the credential with this fingerprint has been sent, whatever is stored."""
        self.sent = (*(each for each in self.sent if each != name), name)[-MAX_REDEEMED:]

    def note(self, state: TokenState) -> None:
        """Remember this state's notes, which could not be stored."""
        if self.state is None or state.order >= self.state.order:
            self.state = state

    def serve(self, state: TokenState, policy: Policy, now: Now, *, jitter: float, requested: bool) -> None:
        """Serve this state's token from now on.

        `requested`: it came from a token request, so the next one has to wait for the minimum interval.
        """
        token = state.servable
        if token is None:
            self.forget()
            return
        self.token, self.served, self.has_served = token, state.order, True
        self.ready = None
        if self.count is not None:
            self.count.begin(token, policy, jitter)
        self.deadlines = deadlines(token, state.obtained, policy, jitter=jitter)
        self.look(now.wall, now.boot)
        self.not_before = now.boot + refresh_interval(token.lifetime, policy) if requested else now.boot
        self.local = None
        self._clear_failure()

    def make_ready(self) -> tuple[Token, str] | None:
        """The token with its header, made on its first request, so that an idle source has none."""
        self.ready = None if self.token is None else (self.token, self.token.authorization)
        return self.ready

    def serves(self, state: TokenState) -> bool:
        """Whether this state's token is the one that is served."""
        token = state.servable
        return (
            self.token is not None
            and token is not None
            and ((self.served, self.token.access_token) == (state.order, token.access_token))
        )

    def look(self, wall: float, boot: float) -> Freshness:
        """The freshness, by both clocks."""
        freshness = self.freshness(wall, boot)
        fresh = freshness is Freshness.FRESH and self.count is None
        self.fresh_until = min(self.deadlines.due_boot, boot + self.wall_check) if fresh else float("-inf")
        return freshness

    def freshness(self, wall: float, boot: float) -> Freshness:
        """The freshness by both clocks and by the count."""
        freshness = self.deadlines.freshness(wall, boot)
        if self.count is None or not freshness.usable:
            return freshness
        by_count = self.count.freshness()
        return freshness if by_count is Freshness.FRESH else by_count

    @property
    def uses(self) -> Uses | None:
        """The requests with the token that is served, if they are counted."""
        return None if self.count is None else self.count.uses

    @property
    def used_up(self) -> bool:
        """Whether as many requests as the server allows have been given this token."""
        return self.count is not None and self.count.freshness() is Freshness.ENDING

    def take(self) -> bool:
        """Count a request that is given this token, unless it is used up. Returns whether it is not."""
        uses = self.uses
        if uses is None or self.used_up:
            return uses is None
        uses.take()
        return True

    def hold(self, now: Now) -> None:
        """Serve this token until it is ENDING: its refresh token may be spent, and is left alone."""
        self.not_before = now.boot + self.deadlines.usable_for(now.wall, now.boot)
        self._clear_failure()

    def serve_same(self, boot: float, jitter: float) -> None:
        """Serve this token on, although the API answers 401 to it: another one would not help now."""
        self.same_until = boot + look_interval(jitter)
        self._clear_failure()

    def forget(self) -> None:
        """Serve nothing."""
        self.token, self.ready, self.served = None, None, None
        if self.count is not None:
            self.count.uses = None
        self.deadlines, self.fresh_until = NO_TOKEN, float("-inf")
        self._clear_failure()

    def fail(self, error: TokenSessionError, until: float, boot: float, *, jitter: float) -> bool:
        """Remember a failure. No token request is made before `until`. Returns whether it is a new one.

        A store that fails leaves a failure in place that is still true.
        """
        self.counters.failures += 1
        self.look_after = boot + look_interval(jitter)
        before, self.reported = self.reported, (type(error).__name__, str(error.args[0]))
        still_true = isinstance(self.error, SignInRequired) or boot < self.next_attempt
        if not (isinstance(error, StoreError) and self.error is not None and still_true):
            self.error = error
            self.next_attempt = self.not_before = max(until, self.look_after)
            if not isinstance(error, TokenUnavailable):  # you may correct it at any time
                self.not_before = self.look_after
        return self.reported != before

    def pause(self, boot: float) -> float | None:
        """How long until the next token request may be made. None if that takes a sign-in."""
        return None if isinstance(self.error, SignInRequired) else max(0.0, self.next_attempt - boot)

    def remembered(self, boot: float) -> TokenSessionError | None:
        """The failure to raise without another look at the store, as a fresh copy, or None."""
        if self.error is None or boot >= self.look_after:
            return None
        return self.repeated(boot)

    def repeated(self, boot: float) -> TokenSessionError | None:
        """The last failure, as a fresh copy."""
        error = self.error.again() if self.error is not None else None
        if isinstance(error, TokenUnavailable):
            error.retry_after = max(0.0, self.next_attempt - boot)
        return error

    def sign_in_ends(self, boot: float) -> float | None:
        """How many seconds until the provider ends the sign-in, if it has said so."""
        token = self.state.token if self.state is not None else None
        if self.state is None or token is None or token.refresh_lifetime is None:
            return None
        return self.state.obtained + token.refresh_lifetime - boot

    def ends_soon(self, boot: float) -> float | None:
        """How many seconds until the sign-in ends, if that is soon."""
        left, life = self.sign_in_ends(boot), self.state.sign_in_life if self.state is not None else None
        return left if left is not None and life is not None and left < min(ENDS_SOON, life / 10) else None

    def snapshot(self, key: str, wall: float, boot: float, *, refreshing: bool, unsaved: bool) -> Snapshot:
        """All of this, for people."""
        token, limits = self.token, self.deadlines
        shown = self.error is not None and (
            boot < max(self.next_attempt, self.look_after) or isinstance(self.error, SignInRequired)
        )
        left = min(limits.expired_wall - wall, limits.expired_boot - boot)
        return Snapshot(
            key=key,
            freshness=self.freshness(wall, boot),
            token=token.fingerprint if token is not None else None,
            seconds_left=left if token is not None and token.lifetime is not None else None,
            refreshing=refreshing,
            unsaved=unsaved,
            last_error=type(self.error).__name__ if shown else None,
            retry_after=self.pause(boot) if shown else None,
            sign_in_ends=self.sign_in_ends(boot),
            **asdict(self.counters),
        )

    def _clear_failure(self) -> None:
        self.error = self.reported = None
        self.look_after = self.next_attempt = float("-inf")
