"""How the plots look: few colours, direct labels, and one file for light and dark backgrounds.

matplotlib writes the colours for a light background into each element. `save` adds a style sheet that
replaces them in dark mode. Colours mean the same everywhere: tokensession is blue, a limit, floor or goal is
orange, all others are grey. Blue and orange differ for every kind of colour vision, and no plot relies on
them alone: each line and bar has its name next to it.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = [
    "INK",
    "LIMIT",
    "OTHER",
    "OURS",
    "applied",
    "axes",
    "bars",
    "colour",
    "dots",
    "end_labels",
    "plain_log",
    "rounded",
    "save",
]

INK, OURS, LIMIT, OTHER, GRID = "#57606a", "#0b62c4", "#b3510c", "#8a939c", "#d8dee4"
_ON_DARK = {INK: "#a9b3bd", OURS: "#5aa9ff", LIMIT: "#f0a050", OTHER: "#77818c", GRID: "#30363d"}

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: small, accessible and searchable
    "svg.hashsalt": "tokensession",  # the same ids each time
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
}


def colour(name: str) -> str:
    """The colour of a contestant by its name: ours, a limit, or another."""
    if name.startswith("tokensession"):
        return OURS
    bound = ("limit", "floor", "goal", "raw aiohttp", "never expires", "empty")
    return LIMIT if any(word in name for word in bound) else OTHER


@contextmanager
def applied() -> Iterator[None]:
    """Our style, for what is drawn and saved in the block."""
    with mpl.rc_context(_SETTINGS):
        yield


def axes(height: float = 3.6, rows: int = 1, columns: int = 1, **options: Any) -> list[Axes]:
    """New axes, row by row. A page is about 7.6 inches wide."""
    figure = Figure(figsize=(7.6, height), layout="constrained")
    FigureCanvasSVG(figure)
    return list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def save(figure: Figure, path: Path, title: str, source: str) -> Path:
    """Write a figure as SVG. `source` names its data."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_accessible(text.getvalue(), title, source), encoding="utf-8")
    return path


def _accessible(svg: str, title: str, source: str) -> str:
    # The metadata has the date; without it, a plot changes only if its figures do.
    svg = re.sub(r" <metadata>.*?</metadata>\n", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<\?xml.*?(?=<svg)", '<?xml version="1.0" encoding="utf-8"?>\n', svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r"(\d+\.\d{2})\d+", r"\1", svg)  # a hundredth of a point is enough
    svg = "\n".join(line.strip() for line in svg.splitlines()) + "\n"
    rules = [
        f'[style*="{what}: {light}"] {{ {what}: {dark} !important }}'
        for light, dark in _ON_DARK.items()
        for what in ("fill", "stroke")
    ]
    style = (
        "text { font-family: system-ui, sans-serif }\n@media (prefers-color-scheme: dark) {\n"
        + "\n".join(rules)
        + "\n}"
    )
    svg = re.sub(r"<title>.*?</title>\n", "", svg, flags=re.DOTALL)
    head, opened, rest = svg.partition('version="1.1">\n')
    return f"{head}{opened}<title>{title}</title>\n<desc>{source}</desc>\n<style>\n{style}\n</style>\n{rest}"


def plain_log(axis: Any, fine: float = 100) -> None:
    """Plain numbers on a logarithmic axis. If it spans less than `fine`, 2 and 5 get ticks as well."""
    low, high = axis.get_view_interval()
    steps = (1.0,) if high / low > fine else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(base=10, subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def end_labels(
    on: Axes,
    ends: Mapping[str, tuple[float, float]],
    shade: Callable[[str], str] = colour,
    apart: float = 12,
) -> None:
    """Write each line's name at its end, moved up or down so that names do not overlap.

    Call it when the limits of the axes are final.
    """
    on.get_figure().draw_without_rendering()
    place = {name: on.transData.transform(end)[1] * 72 / on.get_figure().dpi for name, end in ends.items()}
    ordered = sorted(place, key=lambda name: place[name])
    wanted = [place[name] for name in ordered]
    for name, height in zip(ordered, _dodged(wanted, apart), strict=True):
        on.annotate(
            name,
            ends[name],
            xytext=(7, height - place[name]),
            textcoords="offset points",
            va="center",
            color=INK if shade(name) == OTHER else shade(name),
            fontweight="bold" if shade(name) == OURS else "normal",
            annotation_clip=False,
        )


def _dodged(heights: list[float], apart: float) -> list[float]:
    """These ascending heights moved apart, each group around its middle."""
    groups: list[list[float]] = []  # of heights; a group is placed around its mean
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _edge(groups[-2], apart, +1) + apart > _edge(groups[-1], apart, -1):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [
        sum(group) / len(group) + apart * (place - (len(group) - 1) / 2)
        for group in groups
        for place in range(len(group))
    ]


def _edge(group: list[float], apart: float, side: int) -> float:
    return sum(group) / len(group) + side * apart * (len(group) - 1) / 2


def rounded(value: float) -> str:
    """A number with three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


Figures = Mapping[str, Mapping[str, float]]
"""For each name: the median, and the quartiles q1 and q3 if there are any."""


def bars(
    on: Axes, figures: Figures, shown: Callable[[float], str] = rounded, shade: Callable[[str], str] = colour
) -> None:
    """A bar for each, the first on top, with the quartiles as a whisker and the figure next to it."""
    for place, (name, figure) in enumerate(figures.items()):
        on.barh(place, figure["median"], height=0.6, color=shade(name), edgecolor="none")
        _whisker(on, place, figure, INK)
    _named_rows(on, figures, shown, shade)


def dots(
    on: Axes, figures: Figures, shown: Callable[[float], str] = rounded, shade: Callable[[str], str] = colour
) -> None:
    """As `bars`, for a logarithmic axis, where a bar has no zero to start from."""
    on.set_xscale("log")
    for place, (name, figure) in enumerate(figures.items()):
        on.plot([figure["median"]], [place], "o", color=shade(name), markersize=7)
        _whisker(on, place, figure, shade(name))
    _named_rows(on, figures, shown, shade)
    on.grid(visible=True, axis="y")


def _whisker(on: Axes, place: int, figure: Mapping[str, float], shade: str) -> None:
    if "q1" in figure:
        on.plot(
            [figure["q1"], figure["q3"]], [place, place], color=shade, linewidth=2.4, solid_capstyle="butt"
        )


def _named_rows(
    on: Axes, figures: Figures, shown: Callable[[float], str], shade: Callable[[str], str]
) -> None:
    ours = {name for name in figures if shade(name) == OURS}
    bold = ours if ours != set(figures) else set()
    for place, (name, figure) in enumerate(figures.items()):
        on.annotate(
            "-" if math.isnan(figure["median"]) else shown(figure["median"]),
            (1, place),
            xycoords=("axes fraction", "data"),  # a column at the right, outside of all lines
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=OURS if name in bold else INK,
            fontweight="bold" if name in bold else "normal",
        )
    on.set_yticks(range(len(figures)), list(figures))
    on.set_ylim(len(figures) - 0.4, -0.6)
    on.tick_params(axis="y", length=0)
    on.grid(visible=False, axis="y")
    on.spines["left"].set_visible(False)
    for label in on.get_yticklabels():
        if label.get_text() in bold:
            label.set(color=OURS, fontweight="bold")
