"""Contestants taken in turn, so that what the machine does to one it does to the others.

A figure is never one run: `Spread` has the median and the quartiles. Two contestants are compared by the
ratio of the figures of one and the same round, and then by the median of these ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

__all__ = ["Spread", "interleaved", "percentile", "ratios", "spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several figures, their quartiles, and the extremes."""

    median: float
    q1: float
    q3: float
    least: float
    most: float
    count: int

    def as_json(self) -> dict[str, float]:
        """For a results file."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.q1:.3g}-{self.q3:.3g})"


def spread(figures: Sequence[float]) -> Spread:
    """What these figures come to."""
    ordered = sorted(figures)
    return Spread(
        statistics.median(ordered),
        percentile(ordered, 25),
        percentile(ordered, 75),
        ordered[0],
        ordered[-1],
        len(ordered),
    )


def percentile(figures: Sequence[float], percent: float) -> float:
    """Between the two nearest figures, in proportion. The figures need not be sorted."""
    ordered = sorted(figures)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratios(figures: Sequence[float], base: Sequence[float]) -> Spread:
    """Round by round, how many times the base."""
    return spread([one / other for one, other in zip(figures, base, strict=True)])


async def interleaved(
    contestants: Mapping[str, Callable[[], Awaitable[float]]],
    rounds: int,
    *,
    warm_up: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """The figures of each, a round after the other; every other round goes backwards."""
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-warm_up, rounds):
        order = list(contestants.items())
        for name, contestant in order if number % 2 == 0 else reversed(order):
            figure = await contestant()
            if number >= 0:
                figures[name].append(figure)
        progress(max(0, number + 1), rounds)
    return figures
