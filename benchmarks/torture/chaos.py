"""What is done, when and to which worker, drawn from a seed.

The timetable depends on the seed only: the same seed does the same things at the same moments, whatever the
processes do. Some acts happen at their moment. The others are *aimed*: each waits for the next token request
of a worker, and happens to that one.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from .plan import POLICY, Plan

__all__ = ["AIMED", "FAULTS", "LATEST", "OUTAGES", "Act", "AimedActs", "timetable"]

LATEST = POLICY.orphan_wait / 2
"""How long the provider may continue with the request of a killed client, in seconds."""

FAULTS = ("500", "429", "502", "hang", "reset", "truncate", "freeze")
"""What happens to one token request. Of the last five, 502 always comes after the grant is spent, and the
others half of the time."""

OUTAGES = ("500", "503", "429", "reset")
"""What happens to every token request for some seconds. No grant is spent."""

AIMED = ("kill arriving", "kill late", "kill rotated", "kill answered", "stop refreshing", *FAULTS)

_EVERY = {  # seconds between two of a kind, on average; there is about one token request a second
    "kill": 6.0,
    "kill arriving": 20.0,  # as its request arrives; the provider drops it, nothing is spent
    "kill late": 45.0,  # the same, but the provider carries the request out a little later
    "kill rotated": 40.0,  # the provider has rotated, and has not answered
    "kill answered": 15.0,  # the response is on its way; whether it is saved is chance
    "stop": 7.0,
    "stop refreshing": 15.0,
    "step": 2.0,
    "revoke": 8.0,
    "put back": 25.0,  # an older copy of the record
    "delete": 40.0,  # the record
    "outage": 45.0,
    "restart store": 12.0,  # its server
    "500": 15.0,
    "429": 20.0,
    "502": 30.0,
    "hang": 60.0,
    "freeze": 40.0,  # the answer comes after the callers' bound; if the client has given up, never
    "reset": 25.0,
    "truncate": 25.0,
}
_APART = {"revoke": 4.0, "restart store": 6.0}
"""Seconds between two of a kind, at least. By design, a token that a 401 has just brought is not replaced
within the minimum refresh interval, even if it gets a 401 too. Until then every caller gets a 401. And the
store is there most of the time."""
_LONGEST_STOP = 5.0  # seconds
_LONGEST_OUTAGE = 8.0  # seconds
_LONGEST_FREEZE = 1.5 * POLICY.response_timeout
_LONGEST_DOWN = 3.0  # seconds; writes are repeated for 5 s
_SPARED = 0.8  # share of the aimed acts that spare the next token request


@dataclass(frozen=True, slots=True)
class Act:
    """One thing to do at `at` (seconds from the beginning). The other fields are random, from 0 to 1."""

    at: float
    what: str
    which: float
    much: float
    coin: float

    @property
    def stop_seconds(self) -> float:
        """How long a stop lasts."""
        return 0.2 + (_LONGEST_STOP - 0.2) * self.much

    @property
    def outage_seconds(self) -> float:
        """How long an outage lasts."""
        return 1 + (_LONGEST_OUTAGE - 1) * self.much

    @property
    def freeze_seconds(self) -> float:
        """How long the server is frozen: longer than callers wait, and perhaps than a process listens."""
        return POLICY.caller_timeout + (_LONGEST_FREEZE - POLICY.caller_timeout) * self.much

    @property
    def down_seconds(self) -> float:
        """How long the store's server is down."""
        return _LONGEST_DOWN * self.much

    @property
    def outage(self) -> str:
        """The kind of an outage."""
        return OUTAGES[int(self.which * len(OUTAGES))]

    @property
    def spends(self) -> bool:
        """Whether the fault comes after the grant is spent."""
        return self.what == "502" or self.coin < 0.5


def timetable(plan: Plan) -> Iterator[Act]:
    """Every act of the run, in order. A short run gets the first of each kind a little earlier."""
    kinds = [what for what in _EVERY if what != "restart store" or plan.restart_store]
    rngs = {what: random.Random(f"{plan.seed} {what}") for what in kinds}
    first = min(1.0, plan.seconds / 60)
    heap = [(rng.random() * _EVERY[what] * first, what) for what, rng in rngs.items()]
    heapq.heapify(heap)
    while heap[0][0] < plan.seconds:
        at, what = heapq.heappop(heap)
        rng = rngs[what]
        yield Act(at, what, rng.random(), rng.random(), rng.random())
        heapq.heappush(heap, (at + _APART.get(what, 0.0) + rng.expovariate(1 / _EVERY[what]), what))


class AimedActs:
    """Acts that wait for the next token requests, in order. At most one of each kind waits.

    Most of them spare the request after theirs. Otherwise, what has piled up while no worker could refresh
    would hit one request after another, and hardly any would succeed.
    """

    def __init__(self) -> None:
        self._waiting: deque[Act] = deque()
        self._spare = False

    def aim(self, act: Act) -> None:
        """Let it happen to the next token request."""
        if all(other.what != act.what for other in self._waiting):
            self._waiting.append(act)

    def next(self) -> Act | None:
        """The act for a token request that has just arrived, or None."""
        if self._spare or not self._waiting:
            self._spare = False
            return None
        act = self._waiting.popleft()
        self._spare = act.which < _SPARED
        return act

    def clear(self) -> None:
        """Drop all that wait."""
        self._waiting.clear()
        self._spare = False
