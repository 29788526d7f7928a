"""A moment by both clocks: how old is what was written then?"""

from __future__ import annotations

import struct
from typing import NamedTuple, Self

from ...clock import Clock

__all__ = ["Moment"]


class Moment(NamedTuple):
    """A moment, by the wall clock and by the boot clock."""

    wall: float
    boot: float

    @classmethod
    def now(cls, clock: Clock) -> Self:
        """This moment."""
        return cls(clock.wall(), clock.boot())

    def packed(self) -> bytes:
        """For a checksum."""
        return struct.pack(">dd", *self)

    def age(self, clock: Clock) -> float:
        """Seconds since then, never negative.

        Each clock can only make it too young: the wall clock may have been set back, and the boot clock
        starts again with the machine. So the larger difference counts. (A wall clock that was set forward
        makes it too old, which is the safe mistake: what was stored for a while ends early, and never late.)
        """
        return max(clock.wall() - self.wall, clock.boot() - self.boot, 0.0)
