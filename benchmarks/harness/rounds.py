"""Contestants taken in turn, so that noise on the machine hits all of them.

A figure is never one run: `Spread` has the median and the quartiles. To compare two contestants, take the
ratio of their figures in each round, and the median of these ratios.
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
    """The spread of these figures."""
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
    """The percentile, interpolated between the two nearest figures."""
    ordered = sorted(figures)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def ratios(figures: Sequence[float], base: Sequence[float]) -> Spread:
    """The spread of the ratios to the base, round by round."""
    return spread([one / other for one, other in zip(figures, base, strict=True)])


async def interleaved(
    contestants: Mapping[str, Callable[[], Awaitable[float]]],
    rounds: int,
    *,
    warm_up: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """The figures of each contestant, round after round. Every other round goes backwards."""
    figures: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-warm_up, rounds):
        order = list(contestants.items())
        for name, contestant in order if number % 2 == 0 else reversed(order):
            figure = await contestant()
            if number >= 0:
                figures[name].append(figure)
        progress(max(0, number + 1), rounds)
    return figures
