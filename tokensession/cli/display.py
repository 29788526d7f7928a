"""How a demo looks: live on a terminal, plain lines elsewhere, not at all with --json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .report import PROVIDERS, Plan, Report, Row, Rows, problems

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "SilentDisplay"]

_TITLES = {"shared": "tokensession", "naive": "every task for itself"}
_EVERY = 1.0  # seconds between two plain lines


class Display(Protocol):
    """What a demo tells while it runs."""

    def begin(self, plan: Plan) -> None:
        """It starts."""
        ...

    def update(self, load: str, seconds: float, rows: Rows) -> None:
        """It is at this load, `seconds` into it."""
        ...

    def end(self, report: Report | None) -> None:
        """It is over; without a report if it was broken off. Called once, after `begin`."""
        ...


class SilentDisplay:
    """Nothing."""

    def begin(self, plan: Plan) -> None:
        """Nothing."""

    def update(self, load: str, seconds: float, rows: Rows) -> None:
        """Nothing."""

    def end(self, report: Report | None) -> None:
        """Nothing."""


class PlainDisplay:
    """Lines without any control characters, about one a second."""

    def __init__(self) -> None:
        self._console = Console(no_color=True, force_terminal=False, highlight=False, width=100)
        self._next: dict[str, float] = {}

    def begin(self, plan: Plan) -> None:
        """The plan."""
        self._console.print(_plan(plan), soft_wrap=True)

    def update(self, load: str, seconds: float, rows: Rows) -> None:
        """A line, if the last one is old enough."""
        if seconds >= self._next.get(load, 0.0):
            self._next[load] = seconds + _EVERY
            said = "; ".join(f"{name} {_brief(row)}" for name, row in rows[load].items())
            self._console.print(f"{_TITLES[load]} {seconds:4.1f} s: {said}", soft_wrap=True)

    def end(self, report: Report | None) -> None:
        """The table and the verdict."""
        if report is not None:
            self._console.print(_final(report))


class LiveDisplay:
    """The table itself, while its numbers grow."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = Console(highlight=False) if console is None else console
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def begin(self, plan: Plan) -> None:
        """The plan, and the table below it."""
        self._console.print(_plan(plan))
        self._live.start()

    def update(self, load: str, seconds: float, rows: Rows) -> None:
        """New numbers."""
        status = Text(f"{_TITLES[load]}: {seconds:.1f} s", style="dim")
        self._live.update(Group(_table(rows, {}), status), refresh=True)

    def end(self, report: Report | None) -> None:
        """The last table stays, with the verdict below it."""
        self._live.stop()
        if report is not None:
            self._console.print(_final(report))


def _plan(plan: Plan) -> str:
    tasks = plan.processes * plan.tasks
    return (
        f"{plan.processes} processes, {tasks} tasks at each provider, one SQLite store; "
        f"tokens live {plan.lifetime} s and shall fall due {plan.expiries} times."
    )


def _brief(row: Row) -> str:
    return (
        f"{row.requests} requests, {row.failures} failures, {row.expiries} expiries, "
        f"{row.token_requests} token requests, {row.reuse_detections} reuse detections"
    )


def _table(rows: Rows, lasted: Mapping[str, float]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("requests", "failures", "expiries", "token\nrequests", "reuse\ndetections"):
        table.add_column(title, justify="right")
    for title in ("p50\nms", "p99\nms"):
        table.add_column(title, justify="right")
    for load, title in _TITLES.items():
        label = f"{title}, {lasted[load]:.1f} s" if load in lasted else title
        table.add_row(Text(label, style="bold"))
        for provider in PROVIDERS:
            table.add_row(f"  {provider.capitalize()}", *_cells(rows[load][provider]))
    return table


def _cells(row: Row) -> list[Text]:
    return [
        Text(f"{row.requests:,}"),
        Text(f"{row.failures:,}", style="red" if row.failures else ""),
        Text(f"{row.expiries:,}"),
        Text(f"{row.token_requests:,}", style=_judged(row)),
        Text(f"{row.reuse_detections:,}", style="red" if row.reuse_detections else ""),
        Text(f"{row.p50:.1f}"),
        Text(f"{row.p99:.1f}"),
    ]


def _judged(row: Row) -> str:
    if row.token_requests > row.expiries:
        return "red"
    return "green" if row.token_requests else ""


def _final(report: Report) -> RenderableType:
    found = problems(report)
    verdict = [Text(sentence, style="red") for sentence in found] or [
        Text("Every expiry took one token request, and no request failed.", style="green")
    ]
    return Group(
        "", _table(report.rows, report.lasted), "", *verdict, Text(f"{report.seconds:.1f} s", style="dim")
    )
