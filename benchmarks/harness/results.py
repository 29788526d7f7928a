"""A benchmark's result: printed for you, saved for the plots and the page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .environment import environment

__all__ = ["RESULTS", "Goal", "Result", "progress", "say", "tables"]

RESULTS = Path(__file__).parents[1] / "results"

_console = Console(highlight=False, width=None if sys.stdout.isatty() else 132)


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure must reach. `met` is None if it cannot be judged here; `why` says why."""

    what: str
    must: str
    found: str
    met: bool | None
    why: str = ""


@dataclass(slots=True)
class Result:
    """One run of one benchmark.

    `rows`: one dict for each line of the table, with the same keys: text, numbers, or None. A contestant that
    cannot take part has a row with "cannot" and the reason. `series`: the data of the plot, in a shape that
    the plot of this benchmark knows. `command`: the command line.
    """

    name: str
    command: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    series: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self) -> None:
        """Print the table, the goals and the notes."""
        _console.print(self.name, style="italic")
        for rows in tables(self.rows):
            columns = list(dict.fromkeys(key for row in rows for key in row))
            table = Table(box=None, pad_edge=False)
            for number, column in enumerate(columns):
                table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
            for row in rows:
                table.add_row(*(_shown(row.get(column)) for column in columns))
            _console.print(table)
        for goal in self.goals:
            verdict = {True: "met", False: "MISSED", None: "not judged"}[goal.met]
            _console.print(f"  {goal.what}: {goal.found} (must: {goal.must}): {verdict}. {goal.why}".rstrip())
        for note in self.notes:
            _console.print(f"  {note}")

    def save(self, directory: Path = RESULTS) -> Path:
        """Write `NAME.json`, with the environment as it is now.

        One value a line, in the order of the code: in a diff with the previous file, only the lines of
        changed values show. Keep it so: do not reformat the saved files.
        """
        directory.mkdir(parents=True, exist_ok=True)
        document = {
            "name": self.name,
            "command": self.command,
            "date": datetime.now(UTC).date().isoformat(),
            "environment": environment(),
            "rows": self.rows,
            "goals": [
                {"what": g.what, "must": g.must, "found": g.found, "met": g.met, "why": g.why}
                for g in self.goals
            ],
            "series": self.series,
            "notes": self.notes,
        }
        path = directory / f"{self.name}.json"
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @property
    def missed(self) -> Sequence[Goal]:
        """The goals that were missed."""
        return [goal for goal in self.goals if goal.met is False]


def tables(rows: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows by table. A row whose columns do not fit those above it starts a new one."""
    found: list[list[Mapping[str, Any]]] = []
    for row in rows:
        if found and (set(row) <= set(found[-1][0]) or set(row) >= set(found[-1][0])):
            found[-1].append(row)
        else:
            found.append([row])
    return found


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def progress(name: str) -> Any:
    """A function for `interleaved` that prints each round."""

    def show(done: int, total: int) -> None:
        say(f"  {name}: round {done} of {total}")

    return show


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Mapping) and "median" in value:
        return f"{_shown(float(value['median']))} ({_shown(float(value['q1']))}-{_shown(float(value['q3']))})"
    return str(value)
