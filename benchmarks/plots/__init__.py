"""The plots of docs/benchmarks.md, drawn from benchmarks/results with matplotlib (extra `bench`).

| module | what it is |
|---|---|
| `pictures` | one function a picture: what is drawn of which figures |
| `lines` | lines over a number of something, and the marks of goals and limits |
| `style` | how all of them look, on light and on dark ground |
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.page import RESULTS, load

__all__ = ["PLOTS", "draw", "source"]

PLOTS = Path(__file__).parents[2] / "docs" / "plots"


def source(results: Path, name: str) -> str:
    """What a plot says it was drawn from. When the figures have changed, so has this."""
    digest = hashlib.sha256((results / f"{name}.json").read_bytes()).hexdigest()
    return f"Drawn from benchmarks/results/{name}.json, sha256 {digest[:16]}"


def draw(results: Path = RESULTS, plots: Path = PLOTS) -> list[Path]:
    """One SVG for each benchmark that has figures and a picture."""
    from . import figures, style

    drawn = []
    with style.applied():
        for name, result in load(results).items():
            if picture := figures.FIGURES.get(name):
                title = str(picture.__doc__).splitlines()[0].rstrip(".")
                figure = picture(result)
                drawn.append(style.save(figure, plots / f"{name}.svg", title, source(results, name)))
    return drawn
