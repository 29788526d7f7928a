"""Lines, and the marks of goals and limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .style import LIMIT, OTHER, OURS, end_labels, plain_log, rounded

__all__ = ["finish", "goal_line", "limit_line", "lines_of", "whiskers"]

_MARKS = {OURS: "o", LIMIT: "s", OTHER: "."}
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)))


def lines_of(on: Axes, series: Mapping[str, Any], shade: Callable[[str], str], dash: int = 0) -> None:
    """Draw the lines of a series, ours above the others. A missing figure is a gap."""
    many: dict[str, int] = {}
    for name, heights in series["lines"].items():
        tone = shade(name)
        number = many.setdefault(tone, 0 if tone == OURS else dash)
        many[tone] += 1
        on.plot(
            series["x"],
            [float("nan") if height is None else height for height in heights],
            color=tone,
            linestyle=_DASHES[number % len(_DASHES)],
            marker=_MARKS[tone],
            linewidth=2.2 if tone == OURS else 1.3,
            zorder=4 if tone == OURS else 3,
        )


def finish(
    on: Axes, series: Mapping[str, Any], shade: Callable[[str], str], *, logarithmic: bool = False
) -> None:
    """Set the ticks, and write the name of each line at its last figure."""
    if logarithmic:
        plain_log(on.yaxis, fine=1000)
    if on.get_xscale() == "log":
        on.xaxis.set_major_locator(FixedLocator(_apart(on, series["x"])))
        on.xaxis.set_major_formatter(FuncFormatter(lambda value, _: rounded(value)))
        on.xaxis.set_minor_locator(NullLocator())
    ends = {}
    for name, heights in series["lines"].items():
        there = [(x, height) for x, height in zip(series["x"], heights, strict=True) if height is not None]
        if there:
            ends[name] = there[-1]
    end_labels(on, ends, shade)


def _apart(on: Axes, x: Sequence[float]) -> list[float]:
    """The ticks that have room on a logarithmic axis, the last one included."""
    on.get_figure().draw_without_rendering()
    width = 0.75 * on.get_window_extent().width  # the names of the lines take the rest
    shown = [x[-1]]
    for place in reversed(x[:-1]):
        between = width * math.log(shown[-1] / place) / math.log(x[-1] / x[0])
        if between > 4.5 * len(rounded(place) + rounded(shown[-1])) + 8:
            shown.append(place)
    return shown


def whiskers(on: Axes, x: Sequence[float], quartiles: Sequence[Sequence[float] | None], shade: str) -> None:
    """A line from the lower to the upper quartile, at each figure that has them."""
    for place, pair in zip(x, quartiles, strict=True):
        if pair is not None:
            on.plot([place, place], list(pair), color=shade, linewidth=1, zorder=2)


def goal_line(on: Axes, at: float, text: str, side: str = "left") -> None:
    """A vertical line, for bars and dots. The text starts there, or ends there if `side` is "right"."""
    on.axvline(at, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.3)
    on.annotate(
        text,
        (at, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4 if side == "left" else -4, 2),
        textcoords="offset points",
        ha=side,
        color=LIMIT,
    )


def limit_line(on: Axes, at: float, text: str, side: str = "left") -> None:
    """A horizontal line, for lines, with its text at this side."""
    on.axhline(at, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.3)
    on.annotate(
        text,
        (0 if side == "left" else 1, at),
        xycoords=("axes fraction", "data"),
        xytext=(3 if side == "left" else -3, 3),
        textcoords="offset points",
        ha=side,
        color=LIMIT,
    )
