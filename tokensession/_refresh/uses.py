"""How many requests of this process have been given a token, for tokens that end by count. Pure.

The server counts all requests with a token. So all sources of a process that serve the
same token share one count, which is forgotten with the last of them.
"""

from __future__ import annotations

from itertools import count
from weakref import WeakValueDictionary

from ..policy import Freshness, Policy
from ..token import Token

__all__ = ["Count", "Uses", "due_after"]


class Uses:
    """The requests with one token."""

    __slots__ = ("__weakref__", "_next", "taken")

    def __init__(self) -> None:
        self._next = count(1)  # sources in several threads lose no request
        self.taken = 0
        """How many have been given this token."""

    def take(self) -> None:
        """Count one more."""
        self.taken = next(self._next)


class Count:
    """The requests with the token that a source serves, of which the server allows `limit`.

    It is DUE after `due` of them. `uses` is None while there is no token.
    """

    __slots__ = ("due", "limit", "uses")

    def __init__(self, limit: int) -> None:
        self.limit = self.due = limit
        self.uses: Uses | None = None

    def begin(self, token: Token, policy: Policy, jitter: float) -> None:
        """Count the requests with this token, together with the other sources of this process."""
        self.uses = _uses.setdefault(token.fingerprint, Uses())
        self.due = due_after(self.limit, policy, jitter)

    def freshness(self) -> Freshness:
        """FRESH, DUE or ENDING. By the count, a token is never EXPIRED."""
        taken = 0 if self.uses is None else self.uses.taken
        if taken >= self.limit:
            return Freshness.ENDING
        return Freshness.DUE if taken >= self.due else Freshness.FRESH


def due_after(max_requests: int, policy: Policy, jitter: float) -> int:
    """After how many requests such a token is DUE: as much of it is left as of a token that ends by time."""
    left = max_requests * policy.due_fraction * (1 + policy.due_jitter * jitter)
    return max(1, int(max_requests - left))


_uses: WeakValueDictionary[str, Uses] = WeakValueDictionary()
