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
        "first pause after a failure while the token is usable, doubled each time, with jitter",
        "no caller is waiting",
    )
    usable_back_off_max: float = _setting(
        300,
        "longest pause while the token is usable",
        "the end of an outage must be noticed within minutes",
    )
    usable_back_off_fraction: float = _setting(
        1 / 3, "and never more than this part of the usable time left", "several tries before it ends"
    )
    waiting_back_off: float = _setting(
        1, "shortest pause after a failure while callers wait, with jitter", "callers are waiting"
    )
    waiting_back_off_fraction: float = _setting(
        0.15,
        "and this part of the time since the first failure",
        "after an outage of ten seconds, callers have a token within two",
    )
    waiting_back_off_max: float = _setting(
        30, "longest pause while callers wait", "requests are failing: two tries a minute"
    )
    retry_after_min: float = _setting(
        1, "shortest Retry-After that is honoured", "a pause of 0 would be a request loop"
    )
    retry_after_max: float = _setting(
        3600, "longest Retry-After that is honoured", "a longer one is more likely a mistake"
    )
    retry_after_default: float = _setting(
        60,
        "pause after a 429 without a Retry-After while the token is usable",
        "the shortest window of common rate limits",
    )
    caller_timeout: float = _setting(
        20, "a caller: waiting for a token", "a caller has a time-out of its own, often 30 s"
    )
    retry_within: float = _setting(
        20,
        "callers wait through a failure if the next attempt is at most this far from their call",
        "one 500 must not fail all of them; 0 fails them at once",
    )
    connect_timeout: float = _setting(
        5, "token request: opening the connection", "a host that does not answer is down, not slow"
    )
    request_timeout: float = _setting(
        20,
        "token request: all of it, if the refresh token can be used again",
        "a response that trickles in must end",
    )
    response_timeout: float = _setting(
        120,
        "token request: all of it, if it spends the refresh token or code",
        "a late answer has the only copy of the next refresh token; servers were seen to answer after 30 s",
    )
    claim_timeout: float = _setting(
        30, "waiting for another holder's refresh", "nothing is redeemed without a claim"
    )
    sign_in_wait: float = _setting(
        5,
        "a sign-in with a code: waiting for a refresh that is running",
        "a person waits; after that, the sign-in supersedes the refresh",
    )
    store_timeout: float = _setting(
        10, "the store: one read or write", "our own stores are faster; a third-party store may hang"
    )
    orphan_wait: float = _setting(
        2, "pause after a holder died during a request", "its request may still be on the way"
    )
    close_timeout: float = _setting(
        25, "closing: all of it", "most service managers kill a process after 30 s"
    )
    requests_per_hour: float = _setting(
        300,
        "most token requests in an hour for one credential",
        "servers ban addresses and lock accounts; short-lived tokens get as many as they need",
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigurationError(
                    f"Policy.{setting.name} must be a finite number of 0 or more, not {value!r}."
                )
            if setting.name in _ABOVE_ZERO and value == 0:
                raise ConfigurationError(f"Policy.{setting.name} must be more than 0.")
            if setting.name.endswith(("_fraction", "_jitter")) and value > 1:
                raise ConfigurationError(
                    f"Policy.{setting.name} must be a fraction from 0 to 1, not {value!r}."
                )


_ABOVE_ZERO = (
    "connect_timeout",
    "request_timeout",
    "response_timeout",
    "caller_timeout",
    "store_timeout",
    "requests_per_hour",
)

# Fixed numbers. You cannot change them, because a wrong value would break a promise. All are in seconds.

LOOK_INTERVAL = 1.0
"""While callers ask and there is no token, the store is looked at about this often."""

UNKNOWN_PAUSE = 2.0
"""After a lost answer: then the connection is certainly gone, and many servers still accept a repetition."""

REPEAT_WITHIN = 60.0
"""After a lost answer, a repetition makes sense for so long: servers accept one for 30 to 60 s."""

UNKNOWN_TRIES = 10
"""After so many lost answers in a row the pause may grow to `UNKNOWN_PAUSE_MAX`."""

UNKNOWN_PAUSE_MAX = 300.0
"""The longest pause after lost answers."""

UNEXPLAINED_PAUSE = 30.0
"""After a refusal without an error code."""

UNEXPLAINED_LIMIT = 3
"""So many of them in a row, over at least `UNEXPLAINED_SPAN`, count as a rejection."""

UNEXPLAINED_SPAN = 60.0
"""A minute: a gateway's bad moment is shorter."""

CLIENT_PAUSE = 60.0
"""After the provider rejected the client. Doubled each time."""

CLIENT_PAUSE_MAX = 3600.0
"""The longest pause after the provider rejected the client."""

CHANGED_PAUSE = 10.0
"""After a refusal, a request that has changed is sent at the earliest then. Doubled each time."""

CHANGED_PAUSE_MAX = 300.0
"""The longest pause before a changed request: a secret may differ each time, and never be right."""

PROBABLE_PAUSE = 900.0
"""Between two tries of a credential that is probably rejected, at first."""

PROBABLE_TRIES = 8
"""So many tries later, the pause is `PROBABLE_PAUSE_MAX`."""

PROBABLE_PAUSE_MAX = 6 * 3600.0
"""Between two tries of a credential that has been rejected for hours."""

FORCE_INTERVAL = 60.0
"""Between two requests by `refresh(force=True)`, over all processes."""

FORCED_REFRESH_MAX = 3600.0
"""An API that answers 401 to every token causes one forced refresh per this pause in the end."""

RESTORE_WAIT = 60.0
"""A process whose record is gone and whose token has expired waits this long for one that has a newer."""

MEMORY_LIFE = 7 * 86400.0
"""A process that has not seen its record for longer never writes it back, so it may be deleted for good."""

CODE_LIFE = 86400.0
"""For so long a redeemed code is remembered. Codes live for minutes."""

SUPERSEDED_LIMIT = 16
"""So many configured credentials are remembered after they were replaced."""

ENDS_SOON = 3 * 86400.0
"""A sign-in that ends within this time, or within a tenth of its life, "ends soon"."""

MAX_LIFETIME = 365 * 86400.0
"""A longer `expires_in` is a mistake, and is cut to this."""

RATE_LIMIT_PAUSE = 60.0
"""At least, after a rate limit that only an error code names."""

WALL_CLOCK_CHECK = 1.0
"""In which a step of the wall clock may go unnoticed while the boot clock goes on."""

SHORTEST_DRAW = 0.5
"""The smallest jitter of a back-off: the token requests of a minute have a bound."""
