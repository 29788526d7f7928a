"""What is done, when and to whom, drawn from a seed.

The timetable is the seed's alone: the same seed does the same things at the same moments, whatever the
processes make of it. Some of it is done at its moment. The rest is *aimed*: it waits for the next token
request of a worker, and is done to that one.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from .plan import POLICY, Plan

__all__ = ["AIMED", "FAULTS", "LATEST", "Act", "Ordeals", "timetable"]

LATEST = POLICY.orphan_wait / 2
"""How long the provider may go on with the request of a client that was killed, in seconds."""

FAULTS = ("500", "429", "hang", "reset", "truncate")
AIMED = ("kill arriving", "kill late", "kill rotated", "kill answered", "stop refreshing", *FAULTS)

_EVERY = {  # seconds between two of a kind, on average; a token request is made about once a second
    "kill": 6.0,
    "kill arriving": 20.0,  # as its request arrives; the provider drops it, nothing is spent
    "kill late": 45.0,  # the same, but the provider carries the request out, a little later
    "kill rotated": 40.0,  # the provider has rotated, and has not answered
    "kill answered": 15.0,  # the answer is on its way: saved or not, by chance
    "stop": 7.0,
    "stop refreshing": 15.0,
    "step": 2.0,
    "revoke": 8.0,
    "500": 15.0,
    "429": 20.0,
    "hang": 40.0,
    "reset": 25.0,
    "truncate": 25.0,
}
_APART = {"revoke": 4.0}
"""Seconds between two of a kind, at least. A token that a 401 has just brought and that is refused as well is
not replaced before the spacing is over, by design; and every caller gets a 401 until then."""
_LONGEST_STOP = 5.0  # seconds
_SPARED = 0.8  # how many of the ordeals let the next token request alone


@dataclass(frozen=True, slots=True)
class Act:
    """One thing to do at `at` (seconds from the beginning). The rest are its numbers, from 0 to 1."""

    at: float
    what: str
    who: float
    much: float
    coin: float

    @property
    def standing(self) -> float:
        """How long a stop lasts, in seconds."""
        return 0.2 + (_LONGEST_STOP - 0.2) * self.much


def timetable(plan: Plan) -> Iterator[Act]:
    """Every act of the run, in order. A short run gets the first of each kind a little earlier."""
    rngs = {what: random.Random(f"{plan.seed} {what}") for what in _EVERY}
    first = min(1.0, plan.seconds / 60)
    heap = [(rng.random() * _EVERY[what] * first, what) for what, rng in rngs.items()]
    heapq.heapify(heap)
    while heap[0][0] < plan.seconds:
        at, what = heapq.heappop(heap)
        rng = rngs[what]
        yield Act(at, what, rng.random(), rng.random(), rng.random())
        heapq.heappush(heap, (at + _APART.get(what, 0.0) + rng.expovariate(1 / _EVERY[what]), what))


class Ordeals:
    """What waits for the next token requests, in order; none of a kind waits twice.

    Most of them spare the request after theirs. Without that, what has piled up while nobody could refresh
    would hit the replay as well, and nearly every accident would cost a sign-in: by design, and in vain.
    """

    def __init__(self) -> None:
        self._waiting: deque[Act] = deque()
        self._spare = False

    def aim(self, act: Act) -> None:
        """The next token request gets it."""
        if all(other.what != act.what for other in self._waiting):
            self._waiting.append(act)

    def next(self) -> Act | None:
        """For a token request that has just arrived."""
        if self._spare or not self._waiting:
            self._spare = False
            return None
        act = self._waiting.popleft()
        self._spare = act.who < _SPARED
        return act

    def clear(self) -> None:
        """No more of it."""
        self._waiting.clear()
        self._spare = False
