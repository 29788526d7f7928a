"""When a token is due, when it is spent, and how long to wait after a failure. All of it pure.

`Policy` holds every number; the table in docs/life-of-a-token.md is generated from its fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from .errors import ConfigurationError
from .token import Token

__all__ = [
    "NO_TOKEN",
    "Deadlines",
    "Policy",
    "Verdict",
    "back_off",
    "deadlines",
    "forced_pause",
    "judge",
    "spacing",
]


_LEAST_DRAW = 0.1  # of a back-off; a draw of next to nothing would be no pause at all


class Verdict(Enum):
    """What to do with a token."""

    FRESH = "fresh"
    """Use it."""
    DUE = "due"
    """Use it, and start one refresh that nobody waits for."""
    EXPIRED = "expired"
    """Wait for the refresh."""


def _setting(default: float, what: str, why: str) -> Any:
    return field(default=default, metadata={"what": what, "why": why})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers of a token's life. Seconds, or fractions of the granted lifetime L."""

    due_lead: float = _setting(
        300, "DUE at most this long before expiry", "five minutes is the field's consensus"
    )
    due_fraction: float = _setting(
        0.2, "DUE at most this part of L before expiry", "a fixed window on a short token refreshes for ever"
    )
    due_jitter: float = _setting(
        0.2,
        "DUE comes earlier by up to this part of its lead, drawn once per token and process",
        "spreads processes; drawing again at each look would collapse to the earliest",
    )
    expired_lead: float = _setting(60, "EXPIRED at most this long before expiry", "latency and clock skew")
    expired_fraction: float = _setting(
        0.1, "EXPIRED at most this part of L before expiry", "leaves a short token most of its life"
    )
    spacing: float = _setting(
        30, "pause between successful refreshes, at most", "a wrong clock must not become a refresh loop"
    )
    spacing_fraction: float = _setting(
        0.25, "pause between successful refreshes, at most this part of L", "short tokens need shorter pauses"
    )
    usable_back_off: float = _setting(
        30,
        "first back-off while the token is still good, doubled each time, full jitter",
        "nobody waits for it",
    )
    usable_back_off_max: float = _setting(
        300, "longest back-off while the token is still good", "an outage that ends is noticed in minutes"
    )
    usable_back_off_fraction: float = _setting(
        1 / 3, "and never more than this part of what is left of it", "several tries before it dies"
    )
    expired_back_off: float = _setting(
        1, "first back-off when the token is spent, doubled each time, full jitter", "callers are waiting"
    )
    expired_back_off_max: float = _setting(
        30, "longest back-off when the token is spent", "requests are failing: two tries a minute"
    )
    retry_after_min: float = _setting(1, "shortest Retry-After that is honoured", "0 would be a loop")
    retry_after_max: float = _setting(
        3600, "longest Retry-After that is honoured", "a typing error, not a wish"
    )
    retry_after_default: float = _setting(
        60, "pause after a 429 or 503 that names none", "the shortest that rate limits commonly mean"
    )
    rejected_pause: float = _setting(
        1,
        "pause between looks at the store after a refusal",
        "a new sign-in elsewhere is noticed, at no POST",
    )
    connect_timeout: float = _setting(
        5, "token request: opening the connection", "a host that is gone is no slow host"
    )
    post_timeout: float = _setting(20, "token request: all of it", "a slow drip must end")
    claim_timeout: float = _setting(
        30, "waiting for somebody else's refresh", "longer than one token request; never redeem unclaimed"
    )
    store_timeout: float = _setting(
        10, "the store: one reading or writing", "our own stores are quicker; a foreign one may hang"
    )
    settle: float = _setting(
        2, "pause after a holder died in mid-refresh", "its request may still be on the wire"
    )
    grace: float = _setting(
        25, "closing: how long a refresh under way may take", "one token request and one commit"
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigurationError(f"Policy.{setting.name} is {value!r}: give a number, 0 or more.")
            if setting.name.endswith(("_fraction", "_jitter")) and value > 1:
                raise ConfigurationError(f"Policy.{setting.name} is {value!r}: give a fraction, 0 to 1.")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """The moments at which a token becomes DUE and EXPIRED, on two clocks.

    The wall clock is wrong after a step, the boot-time clock is not known to another process; so
    both are kept, and whichever comes first counts. `over` is the real end of the token's life, up to
    which it still serves if no other can be had.
    """

    due_wall: float
    due_boot: float
    expired_wall: float
    expired_boot: float
    over_wall: float
    over_boot: float

    def verdict(self, wall: float, boot: float) -> Verdict:
        """The verdict at this moment."""
        if wall < self.due_wall and boot < self.due_boot:
            return Verdict.FRESH
        if wall < self.expired_wall and boot < self.expired_boot:
            return Verdict.DUE
        return Verdict.EXPIRED

    def usable_for(self, wall: float, boot: float) -> float:
        """Seconds until EXPIRED, at least 0."""
        return max(0.0, min(self.expired_wall - wall, self.expired_boot - boot))

    def alive(self, wall: float, boot: float) -> bool:
        """Whether the token's life is not over, EXPIRED or not."""
        return wall < self.over_wall and boot < self.over_boot


NO_TOKEN = Deadlines(*[float("-inf")] * 6)
"""The deadlines of a token that is not there: EXPIRED, always."""


def _leads(lifetime: float, policy: Policy, jitter: float) -> tuple[float, float]:
    """How long before its expiry a token becomes DUE, and EXPIRED."""
    due = min(policy.due_lead, lifetime * policy.due_fraction) * (1 + policy.due_jitter * jitter)
    expired = min(policy.expired_lead, lifetime * policy.expired_fraction)
    return max(due, expired), expired


def judge(token: Token, policy: Policy, now: float, *, jitter: float = 0.0) -> Verdict:
    """The verdict on a token by the wall clock alone. `jitter` is this process's draw, 0 to 1.

    A token without a stated life is FRESH until a 401 says otherwise; one with a life of 0 or less
    is EXPIRED, so it is used once, by those who waited for it.
    """
    return deadlines(token, policy, now, 0.0, jitter=jitter).verdict(now, 0.0)


def deadlines(token: Token, policy: Policy, wall: float, boot: float, *, jitter: float = 0.0) -> Deadlines:
    """When this token becomes DUE and EXPIRED, given what both clocks say now."""
    if token.lifetime is None:
        never = float("inf")
        return Deadlines(*[never] * 6)
    due, expired = _leads(token.lifetime, policy, jitter)
    expires = token.obtained_at + token.lifetime
    # After a backward step of the wall clock, a token from before it seems to live longer than it
    # was granted. Nothing lives longer than that.
    expires_boot = boot + min(expires - wall, token.lifetime)
    return Deadlines(
        due_wall=expires - due,
        due_boot=expires_boot - due,
        expired_wall=expires - expired,
        expired_boot=expires_boot - expired,
        over_wall=expires,
        over_boot=expires_boot,
    )


def spacing(lifetime: float | None, policy: Policy) -> float:
    """The least pause between two successful refreshes, in seconds."""
    return (
        policy.spacing
        if lifetime is None
        else min(policy.spacing, max(0.0, lifetime) * policy.spacing_fraction)
    )


def forced_pause(forced: int, lifetime: float | None, policy: Policy) -> float:
    """How old a token must be before a 401 on it may force a refresh.

    `forced` counts the forced refreshes in a row that were in vain, this token's own included. The
    first 401 on a token that came by itself is always believed. A 401 on a token that a 401 has just
    produced says that the API simply refuses: then the pause doubles each time, up to an hour.
    """
    if forced == 0:
        return 0.0
    doublings = 1 << min(forced - 1, 12)
    return min(3600.0, spacing(lifetime, policy) * doublings)


def back_off(failures: int, usable_for: float, policy: Policy, jitter: float) -> float:
    """Seconds to wait after the `failures`-th failure in a row (1, 2, …), with full jitter.

    Full but for its lowest tenth: so there is a hard bound on the token requests of a minute.

    While the token is good for `usable_for` seconds more there is time; when it is spent, callers
    are waiting.
    """
    doublings = 1 << min(max(failures, 1) - 1, 20)
    if usable_for > 0:
        cap = min(
            policy.usable_back_off * doublings,
            policy.usable_back_off_max,
            usable_for * policy.usable_back_off_fraction,
        )
    else:
        cap = min(policy.expired_back_off * doublings, policy.expired_back_off_max)
    return cap * max(jitter, _LEAST_DRAW)
