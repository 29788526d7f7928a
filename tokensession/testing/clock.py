"""A clock that stands still until you move it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

__all__ = ["FakeClock"]


class FakeClock:
    """A clock for your tests: time moves only when you call `advance` or `step_wall`.

    A `tokensession.clock.Clock`. Pass it as `clock=` to a session or source, a store and a test server.
    All values are in seconds.

    `jitter` is one number for every draw, or an iterable of numbers, one per draw. A draw after the last
    one raises `AssertionError`. `boot_counts_sleep` is the attribute of that name in `Clock`.

    Use it in one event loop at a time.
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
        """Seconds since an arbitrary fixed point. Only `advance` moves it."""
        return self._boot

    def jitter(self) -> float:
        """The fixed number, or the next one of the iterable."""
        if self._fixed is not None:
            return self._fixed
        try:
            return next(self._draws)
        except StopIteration:
            raise AssertionError("FakeClock: no number is left for another draw of jitter") from None

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has moved the clock by `seconds`. Zero or less only yields to other tasks."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        sleeper = (self._boot + seconds, future)
        self._sleepers.append(sleeper)
        self._notify()
        try:
            await future
        finally:
            self._sleepers.remove(sleeper)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.Future[None]:
        """Call it when `advance` has moved the clock by `seconds`. Counts as a sleeper until then."""
        future = asyncio.get_running_loop().create_future()
        sleeper = (self._boot + max(seconds, 0.0), future)
        self._sleepers.append(sleeper)

        def done(_: asyncio.Future[None]) -> None:
            self._sleepers.remove(sleeper)
            if not future.cancelled():
                callback()

        future.add_done_callback(done)
        if seconds <= 0:
            future.set_result(None)
        self._notify()
        return future

    def advance(self, seconds: float) -> None:
        """Move both clocks forward, and wake the tasks whose sleep is over, the earliest first.

        They run when you next await something. All of them see the time after the whole step.
        """
        if seconds < 0:
            raise ValueError(
                f"seconds must be 0 or more, not {seconds!r}; step_wall can turn back the wall clock"
            )
        self._wall += seconds
        self._boot += seconds
        for _, future in sorted(self._due(), key=lambda sleeper: sleeper[0]):
            future.set_result(None)

    def step_wall(self, seconds: float) -> None:
        """Step the wall clock, forward or back, as NTP or a person does. Wakes no sleeper."""
        self._wall += seconds

    @property
    def sleepers(self) -> tuple[float, ...]:
        """How many seconds each sleeping task has left, shortest first."""
        return tuple(sorted(until - self._boot for until, future in self._sleepers if not future.done()))

    async def slept(self, count: int = 1) -> None:
        """Wait until at least `count` tasks are asleep on this clock at once."""
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

    def _notify(self) -> None:
        asleep = len(self.sleepers)
        for count, future in self._changed:
            if asleep >= count and not future.done():
                future.set_result(None)

    def __repr__(self) -> str:
        return f"<FakeClock wall={self._wall:.3f} boot={self._boot:.3f}, {len(self.sleepers)} asleep>"
