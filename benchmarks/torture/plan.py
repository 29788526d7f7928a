"""How much of everything, and the policy under which it must go well."""

from __future__ import annotations

from dataclasses import dataclass

from tokensession import Policy

__all__ = ["KEY", "POLICY", "Plan"]

KEY = "torture"

POLICY = Policy(request_timeout=2.5, connect_timeout=2.5, close_timeout=8)
"""A hang shall not take twenty seconds. All else is the default, `settle` above all: that pause has to
outlast what the provider may still do with the request of a client that was killed. Loopback ends such a
request at once, so here it is the provider that takes its time, by `chaos.LATEST` at most, which is half of
`settle`: a request that meets a dead client's is then the library's fault, not the clock's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. Times in seconds."""

    seconds: float = 60.0
    processes: int = 8
    store: str
    seed: int
    rate: float = 240.0
    """API requests a second, of all processes together: what two cores carry beside the rest."""
    tasks: int = 4
    """In each process."""
    lifetime: int = 3
    """Of an access token: DUE after some 2.3, EXPIRED after 2.7."""
    latency: float = 0.2
    """What a token request takes at the provider, at most: half of it before the grant is spent. Without it
    a broken lock goes unnoticed, for on loopback a token request is over in a millisecond."""
    skew: float = 3600.0
    """How far a wall clock is off, at most, either way."""
    lose_replies: bool = False
    """Whether replies are also lost after the provider has rotated. Each costs a sign-in."""
    settling: float = 60.0
    """How long everything may take to recover once chaos is over."""

    @property
    def pause(self) -> float:
        """Of a task between two requests, on average."""
        return self.processes * self.tasks / self.rate
