"""How much of everything, and the policy of the workers."""

from __future__ import annotations

from dataclasses import dataclass

from tokensession import Policy

__all__ = ["KEY", "POLICY", "Plan"]

KEY = "torture"

POLICY = Policy(request_timeout=2.5, connect_timeout=2.5, close_timeout=8)
"""A hang must not take twenty seconds. The rest is the default, above all `orphan_wait`: it has to outlast
what the provider may still do with the request of a killed client. Loopback ends such a request at once, so
here the provider delays it, by `chaos.LATEST` at most, half of `orphan_wait`. If a request still meets a
dead client's, that is the library's fault and not the clock's."""


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
    lose_responses: bool = False
    """Whether responses are also lost after the provider has rotated. Each costs a sign-in."""
    settling: float = 60.0
    """How long everything may take to recover once chaos is over."""

    @property
    def pause(self) -> float:
        """Of a task between two requests, on average."""
        return self.processes * self.tasks / self.rate
