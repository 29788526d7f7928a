"""What a demo prints: a live table on a terminal, plain lines elsewhere, nothing with --json."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .report import PROVIDERS, Plan, Report, Row, Rows, problems

__all__ = ["Display", "LiveDisplay", "PlainDisplay"]

_TITLES = {"shared": "tokensession", "baseline": "every task for itself"}
_LINE_INTERVAL = 1.0  # seconds between two plain lines


class Display:
    """Shows a demo while it runs. This one prints nothing."""

    def begin(self, plan: Plan) -> None:
        """The demo starts."""

    def update(self, load: str, seconds: float, rows: Rows) -> None:
        """This load has run for `seconds`. Called ten times a second."""

    def end(self, report: Report | None) -> None:
        """The demo has ended. There is no report if it failed or was interrupted. Called once."""


class PlainDisplay(Display):
    """Prints about one line per second, without control characters."""

    def __init__(self) -> None:
        self._console = Console(no_color=True, force_terminal=False, highlight=False, width=100)
        self._next: dict[str, float] = {}

    def begin(self, plan: Plan) -> None:
        """Print the plan."""
        self._console.print(_plan(plan), soft_wrap=True)

    def update(self, load: str, seconds: float, rows: Rows) -> None:
        """Print a line, if the last one was a second ago."""
        if seconds >= self._next.get(load, 0.0):
            self._next[load] = seconds + _LINE_INTERVAL
            numbers = "; ".join(f"{name} {_brief(row)}" for name, row in rows[load].items())
            self._console.print(f"{_TITLES[load]} {seconds:4.1f} s: {numbers}", soft_wrap=True)

    def end(self, report: Report | None) -> None:
        """Print the table and the verdict."""
        if report is not None:
            self._console.print(_final(report))


class LiveDisplay(Display):
    """Shows the table, and updates its numbers."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = Console(highlight=False) if console is None else console
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def begin(self, plan: Plan) -> None:
        """Print the plan, and start the table below it."""
        self._console.print(_plan(plan))
        self._live.start()

    def update(self, load: str, seconds: float, rows: Rows) -> None:
        """Update the numbers."""
        status = Text(f"{_TITLES[load]}: {seconds:.1f} s", style="dim")
        self._live.update(Group(_table(rows, {}), status), refresh=True)

    def end(self, report: Report | None) -> None:
        """Leave the last table, with the verdict below it."""
        self._live.stop()
        if report is not None:
            self._console.print(_final(report))


def _plan(plan: Plan) -> str:
    tasks = plan.processes * plan.tasks
    return (
        f"{plan.processes} processes, {tasks} tasks per provider, one SQLite store. "
        f"Tokens live {plan.lifetime} s. Runs for {plan.expiries} expiries per provider."
    )


def _brief(row: Row) -> str:
    return (
        f"{row.requests} requests, {row.failures} failures, {row.expiries} expiries, "
        f"{row.token_requests} token requests, {row.reuse_detections} reuse detections"
    )


def _table(rows: Rows, load_seconds: Mapping[str, float]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    counts = ("requests", "failures", "expiries", "token\nrequests", "reuse\ndetections")
    for title in (*counts, "p50\nms", "p99\nms"):
        table.add_column(title, justify="right")
    for load, title in _TITLES.items():
        label = f"{title}, {load_seconds[load]:.1f} s" if load in load_seconds else title
        table.add_row(Text(label, style="bold"))
        for provider in PROVIDERS:
            table.add_row(f"  {provider.capitalize()}", *_cells(rows[load][provider]))
    return table


def _cells(row: Row) -> list[Text]:
    style = "red" if row.token_requests > row.expiries else "green" if row.token_requests else ""
    return [
        Text(f"{row.requests:,}"),
        Text(f"{row.failures:,}", style="red" if row.failures else ""),
        Text(f"{row.expiries:,}"),
        Text(f"{row.token_requests:,}", style=style),
        Text(f"{row.reuse_detections:,}", style="red" if row.reuse_detections else ""),
        Text(f"{row.p50:.1f}"),
        Text(f"{row.p99:.1f}"),
    ]


def _final(report: Report) -> RenderableType:
    verdict = [Text(sentence, style="red") for sentence in problems(report)] or [
        Text("Every expiry took one token request, and no request failed.", style="green")
    ]
    return Group(
        "",
        _table(report.rows, report.load_seconds),
        "",
        *verdict,
        Text(f"{report.seconds:.1f} s", style="dim"),
    )
