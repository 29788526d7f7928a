"""When a token is due, when it is ending, when it expires, and how long to wait after a failure. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..policy import (
    FORCED_REFRESH_MAX,
    LOOK_INTERVAL,
    SHORTEST_DRAW,
    UNKNOWN_PAUSE,
    UNKNOWN_PAUSE_MAX,
    UNKNOWN_TRIES,
    Freshness,
    Policy,
)
from ..token import Token

__all__ = [
    "NO_TOKEN",
    "Deadlines",
    "back_off",
    "deadlines",
    "doubled",
    "forced_refresh_delay",
    "look_interval",
    "refresh_interval",
    "request_limit",
    "unknown_pause",
]


@dataclass(frozen=True, slots=True)
class Deadlines:
    """When a token becomes DUE, ENDING and EXPIRED, on two clocks.

    The wall clock is wrong after a step. The boot clock means nothing to another process. So both are
    stored, and whichever comes first counts.
    """

    due_wall: float
    due_boot: float
    ending_wall: float
    ending_boot: float
    expired_wall: float
    expired_boot: float

    def freshness(self, wall: float, boot: float) -> Freshness:
        """The freshness at this moment."""
        if wall < self.due_wall and boot < self.due_boot:
            return Freshness.FRESH
        if wall < self.ending_wall and boot < self.ending_boot:
            return Freshness.DUE
        if wall < self.expired_wall and boot < self.expired_boot:
            return Freshness.ENDING
        return Freshness.EXPIRED

    def usable_for(self, wall: float, boot: float) -> float:
        """Seconds until ENDING, at least 0."""
        return max(0.0, min(self.ending_wall - wall, self.ending_boot - boot))


NO_TOKEN = Deadlines(*[float("-inf")] * 6)
"""The deadlines when there is no token: always EXPIRED."""


def _leads(lifetime: float, policy: Policy, jitter: float) -> tuple[float, float]:
    """How long before its expiry a token becomes DUE, and ENDING."""
    due = min(policy.due_lead, lifetime * policy.due_fraction) * (1 + policy.due_jitter * jitter)
    ending = min(policy.ending_lead, lifetime * policy.ending_fraction)
    return max(due, ending), ending


def deadlines(token: Token, obtained: float, policy: Policy, *, jitter: float = 0.0) -> Deadlines:
    """The deadlines of a token that was obtained at `obtained` on this process's boot clock.

    `jitter` is this process's draw, 0 to 1. A token without a stated lifetime is FRESH until a 401 says
    otherwise. A token with a lifetime of 0 or less is EXPIRED: the callers who waited for it use it once.
    """
    if token.lifetime is None:
        never = float("inf")
        return Deadlines(*[never] * 6)
    due, ending = _leads(token.lifetime, policy, jitter)
    wall, boot = token.obtained_at + token.lifetime, obtained + token.lifetime
    return Deadlines(
        due_wall=wall - due,
        due_boot=boot - due,
        ending_wall=wall - ending,
        ending_boot=boot - ending,
        expired_wall=wall,
        expired_boot=boot,
    )


def refresh_interval(lifetime: float | None, policy: Policy) -> float:
    """The shortest pause between two successful refreshes, in seconds."""
    if lifetime is None:
        return policy.min_refresh_interval
    return min(policy.min_refresh_interval, max(0.0, lifetime) * policy.min_refresh_interval_fraction)


def forced_refresh_delay(forced: int, lifetime: float | None, policy: Policy) -> float:
    """How old a token must be before a 401 on it may force a refresh, in seconds.

    `forced` counts the forced refreshes in a row that did not help, this token's own included. The first
    401 on a token that came from a normal refresh is always believed. A 401 on a token that a 401 has just
    produced means that the API rejects every token: then the delay doubles each time, up to an hour.
    """
    if forced == 0:
        return 0.0
    doublings = 1 << min(forced - 1, 12)
    return min(FORCED_REFRESH_MAX, refresh_interval(lifetime, policy) * doublings)


def back_off(failures: int, lasting: float, usable_for: float, policy: Policy, jitter: float) -> float:
    """Seconds to wait after the `failures`-th failure in a row (1, 2, …), with jitter.

    While the token is usable for `usable_for` seconds more, there is time. When it is not, callers are
    waiting: then the pause is a part of what the outage has lasted already, so that they wait little longer
    than it lasts.
    """
    if usable_for > 0:
        doublings = 1 << min(max(failures, 1) - 1, 20)
        cap = min(
            policy.usable_back_off * doublings,
            policy.usable_back_off_max,
            usable_for * policy.usable_back_off_fraction,
        )
    else:
        cap = max(policy.waiting_back_off, lasting * policy.waiting_back_off_fraction)
        cap = min(cap, policy.waiting_back_off_max)
    return cap * _draw(jitter)


def unknown_pause(failures: int, lasting: float, policy: Policy, jitter: float) -> float:
    """Seconds to wait after a request without an answer, if it may have spent its refresh token."""
    longest = policy.waiting_back_off_max if failures <= UNKNOWN_TRIES else UNKNOWN_PAUSE_MAX
    cap = min(max(UNKNOWN_PAUSE, lasting * policy.waiting_back_off_fraction), longest)
    # A narrow range: too early, and the first request may still be on its way.
    return cap * (0.75 + 0.2 * jitter)


def doubled(first: float, longest: float, count: int) -> float:
    """`first` after the first time, then twice as much each time, up to `longest`."""
    return min(longest, first * (1 << min(max(count, 1) - 1, 20)))


def _draw(jitter: float) -> float:
    return SHORTEST_DRAW + (1 - SHORTEST_DRAW) * jitter


def look_interval(jitter: float) -> float:
    """Seconds between two looks at the store while callers wait."""
    return LOOK_INTERVAL * _draw(jitter)


def request_limit(lifetime: float | None, policy: Policy) -> float:
    """The most token requests in any hour. A short-lived token needs more."""
    needed = 0.0 if lifetime is None else 3 * 3600 / max(lifetime, 1.0)
    return max(policy.requests_per_hour, needed)
