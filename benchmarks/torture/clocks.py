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

    Its boot clock is right: that clock cannot be set.
    """

    boot = staticmethod(_TRUE.boot)
    call_later = staticmethod(_TRUE.call_later)
    jitter = staticmethod(random.random)
    sleep = staticmethod(asyncio.sleep)

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def wall(self) -> float:
        """The time on a machine whose clock is set wrong."""
        return time.time() + self.offset

    def __repr__(self) -> str:
        return f"<SkewedClock {self.offset:+.0f} s>"
