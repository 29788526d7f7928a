"""A clock that stands still until it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

__all__ = ["FakeClock"]


class FakeClock:
    """A `tokensession.clock.Clock` whose time a test moves by hand. All values are in seconds.

    `jitter` is one number that is drawn for ever, or a script of numbers: then the draw after the last
    one raises AssertionError. `sleep` returns when the boot clock has been moved past its end. Use it
    from one event loop at a time; it may be used in several, one after another.

    `boot_counts_sleep` is what the clock says of itself: by default nothing, so both clocks are read at
    every look.
    """

    def __init__(
        self,
        wall: float = 1_750_000_000.0,
        boot: float = 1000.0,
        jitter: float | Iterable[float] = 0.0,
        *,
        boot_counts_sleep: bool = False,
    ) -> None:
        self.boot_counts_sleep = boot_counts_sleep
        self._wall = wall
        self._boot = boot
        self._fixed = float(jitter) if isinstance(jitter, int | float) else None
        self._draws: Iterator[float] = iter(() if isinstance(jitter, int | float) else jitter)
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self._changed: list[tuple[int, asyncio.Future[None]]] = []

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return self._wall

    def boot(self) -> float:
        """Seconds since some fixed moment; only `advance` moves it."""
        return self._boot

    def jitter(self) -> float:
        """The fixed number, or the next of the script."""
        if self._fixed is not None:
            return self._fixed
        try:
            return next(self._draws)
        except StopIteration:
            raise AssertionError("FakeClock: jitter was drawn more often than the script says") from None

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been moved `seconds` on. Zero or less only yields."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        sleeper = (self._boot + seconds, future)
        self._sleepers.append(sleeper)
        self._tell()
        try:
            await future
        finally:
            self._sleepers.remove(sleeper)

    def advance(self, seconds: float) -> None:
        """Move both clocks on, and wake those whose sleep is over, the earliest first.

        They run when the caller next yields; all of them see the time after the whole step.
        """
        if seconds < 0:
            raise ValueError("Time goes on: advance by 0 or more, or use step_wall.")
        self._wall += seconds
        self._boot += seconds
        for _, future in sorted(self._due(), key=lambda sleeper: sleeper[0]):
            future.set_result(None)

    def step_wall(self, seconds: float) -> None:
        """Step the wall clock, either way, as an operator or NTP does. Sleepers do not notice."""
        self._wall += seconds

    @property
    def sleepers(self) -> tuple[float, ...]:
        """How many seconds each sleeper has yet to sleep, shortest first."""
        return tuple(sorted(until - self._boot for until, future in self._sleepers if not future.done()))

    async def slept(self, count: int = 1) -> None:
        """Wait until `count` tasks are asleep on this clock at once."""
        while len(self.sleepers) < count:
            future = asyncio.get_running_loop().create_future()
            waiter = (count, future)
            self._changed.append(waiter)
            try:
                await future
            finally:
                self._changed.remove(waiter)

    def _due(self) -> list[tuple[float, asyncio.Future[None]]]:
        return [
            (until, future)
            for until, future in self._sleepers
            if until <= self._boot and not (future.done() or future.get_loop().is_closed())
        ]

    def _tell(self) -> None:
        asleep = len(self.sleepers)
        for count, future in self._changed:
            if asleep >= count and not future.done():
                future.set_result(None)

    def __repr__(self) -> str:
        return f"<FakeClock wall={self._wall:.3f} boot={self._boot:.3f}, {len(self.sleepers)} asleep>"
