"""Every number of a token's life, each with its reason.

`Policy` holds those you may change. The table in the docs is generated from its fields. The constants at
the end are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from .errors import ConfigurationError

__all__ = ["Freshness", "Policy"]


class Freshness(Enum):
    """How close a token is to its end, and what that means for callers."""

    FRESH = "fresh"
    """Callers get the token at once."""
    DUE = "due"
    """Callers get the token at once, and one refresh starts in the background."""
    ENDING = "ending"
    """Callers wait for the refresh. If it fails, they get the old token: it is still valid."""
    EXPIRED = "expired"
    """Callers wait for the refresh. The token's life is over, or there is no token."""

    @property
    def usable(self) -> bool:
        """Whether callers get the token without waiting."""
        return self is Freshness.FRESH or self is Freshness.DUE


def _setting(default: float, what: str, why: str) -> Any:
    return field(default=default, metadata={"what": what, "why": why})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers of a token's life that you may change.

    The table in docs/concepts/life-of-a-token.md says what each one is, and why. All are seconds, or
    fractions of the granted lifetime L. Raises `ConfigurationError` for a value that is negative, infinite or
    not a number, and for a fraction above 1.
    """

    due_lead: float = _setting(
        300, "DUE at most this long before expiry", "five minutes is usual in OAuth clients"
    )
    due_fraction: float = _setting(
        0.2,
        "DUE at most this part of L before expiry",
        "with a fixed window, a short-lived token would always be due",
    )
    due_jitter: float = _setting(
        0.2,
        "DUE comes earlier by up to this part of its lead, drawn once per token and process",
        "spreads the processes; a new draw at each look would always pick the earliest",
    )
    ending_lead: float = _setting(
        60, "ENDING at most this long before expiry", "leaves time for network latency and wrong clocks"
    )
    ending_fraction: float = _setting(
        0.1,
        "ENDING at most this part of L before expiry",
        "a short-lived token must be usable for most of its life",
    )
    min_refresh_interval: float = _setting(
        30, "shortest pause between successful refreshes", "a wrong clock must not cause a refresh loop"
    )
    min_refresh_interval_fraction: float = _setting(
        0.25, "and never more than this part of L", "short-lived tokens need shorter pauses"
    )
    usable_back_off: float = _setting(
        30,
        "first back-off while the token is usable, doubled each time, with jitter",
        "no caller is waiting",
    )
    usable_back_off_max: float = _setting(
        300,
        "longest back-off while the token is usable",
        "the end of an outage must be noticed within minutes",
    )
    usable_back_off_fraction: float = _setting(
        1 / 3, "and never more than this part of the usable time left", "several tries before it ends"
    )
    waiting_back_off: float = _setting(
        1,
        "first back-off while callers wait (ENDING or EXPIRED), doubled each time, with jitter",
        "callers are waiting",
    )
    waiting_back_off_max: float = _setting(
        30, "longest back-off while callers wait", "requests are failing: two tries a minute"
    )
    retry_after_min: float = _setting(
        1, "shortest Retry-After that is honoured", "a pause of 0 would be a request loop"
    )
    retry_after_max: float = _setting(
        3600, "longest Retry-After that is honoured", "a longer one is more likely a mistake"
    )
    retry_after_default: float = _setting(
        60, "pause after a 429 or 503 without a Retry-After", "the shortest window of common rate limits"
    )
    rejected_pause: float = _setting(
        1,
        "pause between looks at the store after a rejection",
        "a sign-in elsewhere is noticed soon, and a look costs no token request",
    )
    connect_timeout: float = _setting(
        5, "token request: opening the connection", "a host that does not answer is down, not slow"
    )
    request_timeout: float = _setting(20, "token request: all of it", "a response that trickles in must end")
    claim_timeout: float = _setting(
        30,
        "waiting for another holder's refresh",
        "longer than one token request; nothing is redeemed without a claim",
    )
    store_timeout: float = _setting(
        10, "the store: one read or write", "our own stores are faster; a third-party store may hang"
    )
    orphan_wait: float = _setting(
        2, "pause after a holder died during a refresh", "its request may still be on the way"
    )
    close_timeout: float = _setting(
        25, "closing: how long a running refresh may take", "one token request and one commit"
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigurationError(
                    f"Policy.{setting.name} must be a finite number of 0 or more, not {value!r}."
                )
            if setting.name in ("connect_timeout", "request_timeout", "store_timeout") and value == 0:
                raise ConfigurationError(f"Policy.{setting.name} must be more than 0.")
            if setting.name.endswith(("_fraction", "_jitter")) and value > 1:
                raise ConfigurationError(
                    f"Policy.{setting.name} must be a fraction from 0 to 1, not {value!r}."
                )


# Fixed numbers. You cannot change them, because a wrong value would break a promise.

BACK_OFF_FLOOR = 0.1
"""The smallest jitter of a back-off. A draw next to zero would be no pause at all."""

FORCED_REFRESH_MAX = 3600.0
"""Seconds. An API that answers 401 to every token causes one forced refresh per this pause in the end."""

MAX_LIFETIME = 365 * 86400.0
"""Seconds. A longer `expires_in` is a mistake, and is cut to this."""

RATE_LIMIT_PAUSE = 60.0
"""Seconds, at least, after a rate limit that only an error code names."""

WALL_CLOCK_CHECK = 1.0
"""Seconds in which a step of the wall clock may go unnoticed while the boot clock goes on."""
