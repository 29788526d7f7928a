"""When a token is due, when it is ending, when it expires, and how long to wait after a failure. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ..policy import BACK_OFF_FLOOR, FORCED_REFRESH_MAX, Freshness, Policy
from ..token import Token

__all__ = [
    "NO_TOKEN",
    "Deadlines",
    "back_off",
    "deadlines",
    "forced_refresh_delay",
    "judge",
    "refresh_interval",
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


def judge(token: Token, policy: Policy, now: float, *, jitter: float = 0.0) -> Freshness:
    """The freshness of a token by the wall clock alone. `jitter` is this process's draw, 0 to 1.

    A token without a stated lifetime is FRESH until a 401 says otherwise. A token with a lifetime of 0 or
    less is EXPIRED: the callers who waited for it use it once.
    """
    return deadlines(token, policy, now, 0.0, jitter=jitter).freshness(now, 0.0)


def deadlines(token: Token, policy: Policy, wall: float, boot: float, *, jitter: float = 0.0) -> Deadlines:
    """The deadlines of this token, given what both clocks say now."""
    if token.lifetime is None:
        never = float("inf")
        return Deadlines(*[never] * 6)
    due, ending = _leads(token.lifetime, policy, jitter)
    expires = token.obtained_at + token.lifetime
    # After the wall clock was set back, a token from before seems to live longer than it was granted.
    # No token does.
    expires_boot = boot + min(expires - wall, token.lifetime)
    return Deadlines(
        due_wall=expires - due,
        due_boot=expires_boot - due,
        ending_wall=expires - ending,
        ending_boot=expires_boot - ending,
        expired_wall=expires,
        expired_boot=expires_boot,
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


def back_off(failures: int, usable_for: float, policy: Policy, jitter: float) -> float:
    """Seconds to wait after the `failures`-th failure in a row (1, 2, …), with jitter.

    While the token is usable for `usable_for` seconds more, there is time. When it is not, callers are
    waiting. The lowest tenth of the range is left out, so the token requests of a minute have a hard bound.
    """
    doublings = 1 << min(max(failures, 1) - 1, 20)
    if usable_for > 0:
        cap = min(
            policy.usable_back_off * doublings,
            policy.usable_back_off_max,
            usable_for * policy.usable_back_off_fraction,
        )
    else:
        cap = min(policy.waiting_back_off * doublings, policy.waiting_back_off_max)
    return cap * max(jitter, BACK_OFF_FLOOR)
