"""How much of everything, and the policy of the workers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokensession import Policy
from tokensession.policy import SHORTEST_DRAW

__all__ = ["KEY", "LEEWAY", "POLICY", "Plan"]

KEY = "torture"
LEEWAY = 60.0

POLICY = Policy(connect_timeout=2.5, caller_timeout=2, retry_within=2, response_timeout=6, close_timeout=8)
"""A server that answers late must not take minutes. The rest is the default, above all `orphan_wait`: it has
to outlast what the provider may still do with the request of a killed client. Loopback ends such a request at
once, so here the provider delays it, by `chaos.LATEST` at most, half of `orphan_wait`. If a request still
meets a dead client's, that is the library's fault and not the clock's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. Times in seconds."""

    seconds: float = 60.0
    processes: int = 8
    store: str
    seed: int
    rate: float = 240.0
    """API requests a second, of all processes together: what two cores carry besides the rest."""
    tasks: int = 4
    """In each process."""
    lifetime: int = 3
    """Of an access token: DUE after about 2.3, ENDING after 2.7."""
    latency: float = 0.2
    """How long a token request takes at the provider, at most; half of it before the grant is spent. On
    loopback a token request takes a millisecond, and a broken lock would go unnoticed."""
    skew: float = 3600.0
    """How far a wall clock is off, at most, in either direction."""
    leeway: float = LEEWAY
    """So long the provider accepts a refresh token once more if a fault has lost the response to it, as many
    servers do. Never if a process was killed: then it takes the repetition for theft. 0: nor after a fault,
    and each lost response costs a sign-in (`--strict`)."""
    lease: float = 0.0
    """How long a claim outlives the last sign of life of its holder. 0: a claim ends with its process."""
    restart_store: bool = False
    """Whether the store's server is killed and started again."""
    settling: float = 90.0
    """How long everything may take to recover once chaos is over. A process that has lost its record and
    whose token has expired waits a minute for one that knows more."""

    @property
    def lapse(self) -> float:
        """After so long without a sign of life, a holder may have lost its lease: it was renewed last up to a
        third of it before."""
        return self.lease * 2 / 3 if self.lease else math.inf

    @property
    def pause(self) -> float:
        """Of a task between two requests, on average."""
        return self.processes * self.tasks / self.rate

    def allowed(self, seconds: float) -> int:
        """The most token requests in an outage of so many seconds: those of one process that always draws the
        shortest pause, and one more of each process."""
        moment, requests = 0.0, 0
        while moment <= seconds:
            pause = max(POLICY.waiting_back_off, moment * POLICY.waiting_back_off_fraction)
            moment += SHORTEST_DRAW * min(pause, POLICY.waiting_back_off_max)
            requests += 1
        return requests + self.processes
