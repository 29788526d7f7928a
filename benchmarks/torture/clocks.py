"""A clock that is wrong."""

from __future__ import annotations

import asyncio
import random
import time

from tokensession.clock import SystemClock

__all__ = ["SkewedClock"]

_TRUE = SystemClock()


class SkewedClock:
    """A `tokensession.clock.Clock` whose wall clock is off by `offset` seconds, which may change.

    The clock since boot is true: it has no hands that anybody could turn.
    """

    boot = staticmethod(_TRUE.boot)
    jitter = staticmethod(random.random)
    sleep = staticmethod(asyncio.sleep)

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def wall(self) -> float:
        """What this machine would say if somebody had turned its clock."""
        return time.time() + self.offset

    def __repr__(self) -> str:
        return f"<SkewedClock {self.offset:+.0f} s>"
