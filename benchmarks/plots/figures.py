"""What each plot draws. The shape of `series` is in the docstring of the benchmark's module.

The first line of a function's docstring is the title of its plot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..tenants import LIMIT as MOST_BYTES
from .lines import finish, goal_line, limit_line, lines_of, whiskers
from .style import LIMIT, OTHER, OURS, axes, bars, colour, dots, plain_log, rounded

__all__ = ["FIGURES"]

Result = Mapping[str, Any]


def hot_path(result: Result) -> Figure:
    """What it costs to ask for a token that is fresh."""
    series, found = result["series"], _by_name(result["series"])
    (on,) = axes(0.9 + 0.26 * len(found))
    dots(on, dict(sorted(found.items(), key=lambda item: item[1]["median"])))
    goal_line(on, 2.3 * found["empty async def"]["median"], "goal: 2.3 x the empty one")
    on.set_xlabel(f"{series['unit']} per call (logarithmic)")
    plain_log(on.xaxis)
    return _of(on)


def imports(result: Result) -> Figure:
    """How long `import tokensession` takes in a fresh interpreter."""
    found = _by_name(result["series"])
    base = "aiohttp, anyio, msgpack"
    (on,) = axes(0.9 + 0.3 * len(found))
    bars(on, found, shade=lambda name: LIMIT if name == base else OTHER if name == "aiohttp" else OURS)
    goal_line(on, 1.1 * found[base]["median"], "goal: 1.1 x what it needs", "right")
    on.set_xlabel(f"{_unit(result)} for the import, in a fresh interpreter")
    return _of(on)


def stores(result: Result) -> Figure:
    """Load, claim and commit, and hand-over in each store, beside the floor of its medium."""
    # With the mark, a claim and commit is compared with round trips, which are in the table only.
    other = {"thread", "claim + mark + commit"}
    found = [row for row in result["rows"] if "what" in row and not {row["store"], row["what"]} & other]
    rows = {f"{row['store']}: {row['what']}": row for row in found}
    (on,) = axes(0.9 + 0.27 * len(rows))
    dots(on, {name: row["us"] for name, row in rows.items()}, shade=lambda name: OURS)
    for place, row in enumerate(rows.values()):
        if row.get("floor us") is not None:
            on.plot([row["floor us"]["median"]], [place], "s", color=LIMIT, markersize=5)
        if row.get("bound us") is not None:
            on.plot([row["bound us"]] * 2, [place - 0.36, place + 0.36], color=LIMIT, linewidth=2)
    on.set_xlabel("us (logarithmic); orange: floor (square) and bound (line)")
    plain_log(on.xaxis)
    return _of(on)


def overhead(result: Result) -> Figure:
    """Requests per second as a share of what raw aiohttp reaches."""
    ways: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        if isinstance(found := row.get("of raw"), Mapping):
            ways.setdefault(row["how"], {})[row["client"]] = found
    names = list(dict.fromkeys(name for found in ways.values() for name in found))
    panels = axes(0.9 + 0.26 * len(names), columns=len(ways), sharey=True)
    for on, (how, found) in zip(panels, ways.items(), strict=True):
        # The panels share their names, so a name without a figure in one panel has an empty place there.
        bars(on, {name: found.get(name, {"median": math.nan}) for name in names}, "{:.2f}".format)
        on.axvline(1, color=LIMIT, linestyle=(0, (4, 2)), linewidth=1.3)
        on.set(xlim=(0, 1.1 * max(1, *(each["q3"] for each in found.values()))), title=how)
        on.set_xlabel("requests per second / raw aiohttp's")
    return _of(panels[0])


_NEAR = 1.5  # times the limit


def contention(result: Result) -> Figure:
    """How many times the limit it takes until N tasks are served that find the token expired."""
    series = result["series"]
    all_lines, near = axes(6.4, rows=2, height_ratios=(3, 2.6))
    highest = {name: max((y for y in ys if y is not None), default=0) for name, ys in series["lines"].items()}
    close = [name for name, ys in series["lines"].items() if highest[name] <= _NEAR and ys[-1] is not None]
    lines_of(all_lines, series, colour)
    all_lines.set(xscale="log", yscale="log", title="all", ylabel=series["unit"])
    all_lines.set_ylim(0.7, max(1.3 * _NEAR, 1.5 * max(highest.values())))
    far = {name: ys for name, ys in series["lines"].items() if name not in close or colour(name) == OURS}
    finish(all_lines, {"x": series["x"], "lines": far}, colour, logarithmic=True)
    for place, name in enumerate(close):  # side by side, so that their quartiles do not hide each other
        x = [tasks * 1.035 ** (place - (len(close) - 1) / 2) for tasks in series["x"]]
        lines_of(near, {"x": x, "lines": {name: series["lines"][name]}}, colour, dash=place)
        whiskers(near, x, series["spread"][name], colour(name))
    near.set(xscale="log", xlim=all_lines.get_xlim(), xlabel="tasks at once", ylabel=series["unit"])
    near.set_title(f"those that stay below {_NEAR:g} x the limit, with quartiles")
    finish(near, {"x": series["x"], "lines": {name: series["lines"][name] for name in close}}, colour)
    return _of(near)


def processes(result: Result) -> Figure:
    """How soon each of P processes has the token that one of them was given."""
    series = result["series"]
    kinds = {"last": "the last waiter", "median": "the median waiter"}
    panels = axes(3.5, columns=2, sharey=True)
    shades = {
        "floor": LIMIT,
        "file": OURS,
        "sqlite": OURS,
        "redis": OTHER,
        "valkey": OTHER,
        "postgres": OTHER,
    }
    for on, (kind, name) in zip(panels, kinds.items(), strict=True):
        lines = {
            store: series["lines"][f"{store}, {kind}"]
            for store in shades
            if f"{store}, {kind}" in series["lines"]
        }
        part = {"x": series["x"], "lines": lines}
        lines_of(on, part, shades.__getitem__)
        on.set(xscale="log", yscale="log", xlabel="processes", title=name)
        if kind == "last":
            limit_line(on, 25, "goal for 32: 25 ms")
        finish(on, part, shades.__getitem__, logarithmic=True)
    panels[0].set_ylabel(f"after the token's arrival ({series['unit']})")
    return _of(panels[0])


def steady(result: Result) -> Figure:
    """Latency under constant load, with a token that expires all the time and with one that never does."""
    series = result["series"]
    shown = [place for place, percent in enumerate(series["percent"]) if 50 <= percent < 100]
    part = {
        "x": [-math.log10(1 - series["percent"][place] / 100) for place in shown],
        "lines": {name: [line[place] for place in shown] for name, line in series["lines"].items()},
    }

    def shade(name: str) -> str:
        return LIMIT if "never" in name else OURS

    (on,) = axes(3.4)
    lines_of(on, part, shade)
    ticks = (50, 75, 90, 95, 99, 99.5, 99.9)
    on.set_xticks([-math.log10(1 - tick / 100) for tick in ticks], [f"{tick:g}" for tick in ticks])
    on.set(xlabel="per cent of the requests were answered ...", ylabel=f"... within ({_unit(result)})")
    on.set_ylim(bottom=0)
    finish(on, part, shade)
    return _of(on)


def outage(result: Result) -> Figure:
    """How many token requests an endpoint gets while it is down."""
    minute, peers = result["series"]["minute"], result["series"]["peers"]
    contestants, simulated = axes(0.9 + 0.26 * len(peers["x"]), columns=2, width_ratios=(4, 3))
    callers = {
        row["what"]: row["callers"] for row in result["rows"] if "remark" in row and row.get("callers")
    }
    asked = {}
    for name, requests in zip(peers["x"], peers["token requests"], strict=True):
        fewer = callers.get(name, peers["callers"]) < peers["callers"]
        asked[f"{name}, of {callers[name]} only" if fewer else name] = {"median": requests}
    bars(contestants, asked)
    contestants.set(title=f"{peers['callers']} callers, the endpoint says 500", xlabel="token requests")
    contestants.set_xlim(0, 1.15 * max(each["median"] for each in asked.values()))
    found = {
        trouble: {"median": median, "q1": least, "q3": most}
        for trouble, (least, median, most) in zip(minute["x"], minute["token requests"], strict=True)
    }
    bars(simulated, found, shade=lambda name: OURS)
    for place, bound in enumerate(minute["bound"]):
        simulated.plot([bound, bound], [place - 0.36, place + 0.36], color=LIMIT, linewidth=2)
    simulated.annotate(
        "bound",
        (minute["bound"][0], -0.36),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        color=LIMIT,
    )
    simulated.set(title=f"{minute['callers']:,} callers in a minute", xlabel="token requests")
    simulated.set_xlim(0, 1.2 * max(minute["bound"]))
    return _of(contestants)


def tenants(result: Result) -> Figure:
    """What an idle source takes, and how long a look-up, for up to a hundred thousand keys in one process."""
    series = result["series"]

    def shade(name: str) -> str:
        return LIMIT if "nothing" in name else OURS

    memory, times = axes(3.4, columns=2)
    for on, lines in ((memory, series["bytes"]), (times, series["lines"])):
        part = {"x": series["x"], "lines": lines}
        lines_of(on, part, shade)
        on.set(xscale="log", xlabel="keys")
        if on is memory:
            on.set_ylim(0, 1.1 * max(MOST_BYTES, *(height for line in lines.values() for height in line)))
            limit_line(on, MOST_BYTES, f"goal: {MOST_BYTES:,} bytes", "right")
            on.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rounded(value)))
        else:
            on.set_yscale("log")
        finish(on, part, shade, logarithmic=on is times)
    memory.set_title("bytes per idle source")
    times.set_title(f"time ({series['unit']})")
    return _of(memory)


def _of(on: Axes) -> Figure:
    figure = on.get_figure()
    assert isinstance(figure, Figure)
    return figure


def _by_name(series: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The median and quartiles for each name."""
    quartiles = zip(series["names"], series["median"], series["q1"], series["q3"], strict=True)
    return {name: {"median": median, "q1": q1, "q3": q3} for name, median, q1, q3 in quartiles}


def _unit(result: Result) -> str:
    return str(result["series"]["unit"])


FIGURES: dict[str, Callable[[Result], Figure]] = {
    "hot-path": hot_path,
    "import": imports,
    "stores": stores,
    "overhead": overhead,
    "contention": contention,
    "processes": processes,
    "steady": steady,
    "outage": outage,
    "tenants": tenants,
}
