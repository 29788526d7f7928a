"""The plots of docs/benchmarks.md, drawn from benchmarks/results with matplotlib (extra `bench`).

| module | what it is |
|---|---|
| `figures` | one function for each plot: what it draws |
| `lines` | lines, and the marks of goals and limits |
| `style` | how all plots look, on a light and on a dark background |
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.page import RESULTS, load

__all__ = ["PLOTS", "draw", "source"]

PLOTS = Path(__file__).parents[2] / "docs" / "plots"


def source(results: Path, name: str) -> str:
    """The source note of a plot. It changes when the figures change."""
    digest = hashlib.sha256((results / f"{name}.json").read_bytes()).hexdigest()
    return f"Drawn from benchmarks/results/{name}.json, sha256 {digest[:16]}"


def draw(results: Path = RESULTS, plots: Path = PLOTS) -> list[Path]:
    """Draw one SVG for each benchmark that has figures and a plot."""
    from . import figures, style

    drawn = []
    with style.applied():
        for name, result in load(results).items():
            if plot := figures.FIGURES.get(name):
                title = str(plot.__doc__).splitlines()[0].rstrip(".")
                figure = plot(result)
                drawn.append(style.save(figure, plots / f"{name}.svg", title, source(results, name)))
    return drawn
