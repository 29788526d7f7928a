"""Writes the figures in docs/benchmarks.md from benchmarks/results. The prose there is written by hand.

Between `<!-- figures of NAME: ... -->` and `<!-- end of figures -->` it writes one benchmark: the command
and its date, the table, which contestants could not take part, the goals and the notes. Between `<!--
environment: ... -->` and `<!-- end of environment -->` it writes the usual environment. A benchmark that ran
in another one says so itself.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .harness.results import RESULTS, tables

__all__ = ["PAGE", "RESULTS", "load", "write", "written"]

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

_BY = "written by benchmarks/page.py"
_FIGURES = re.compile(rf"(<!-- figures of ([\w-]+): {_BY} -->\n).*?(<!-- end of figures -->)", re.DOTALL)
_ENVIRONMENT = re.compile(rf"(<!-- environment: {_BY} -->\n).*?(<!-- end of environment -->)", re.DOTALL)
_LONG = 24  # rows; a longer table is folded
_RAN_ON = ("python", "processor", "processors", "system")


def load(directory: Path = RESULTS) -> dict[str, Any]:
    """The saved results, by the name of the benchmark."""
    files = sorted(directory.glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def write(page: Path = PAGE, results: Path = RESULTS) -> Path:
    """Replace the figures on the page."""
    page.write_text(written(page.read_text(encoding="utf-8"), load(results)), encoding="utf-8")
    return page


def written(page: str, results: Mapping[str, Any]) -> str:
    """The page with these figures in it."""
    usual = _usual(results.values())

    def figures(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        return f"{begin}{_section(name, results.get(name), usual)}\n{end}"

    page = _FIGURES.sub(figures, page)
    return _ENVIRONMENT.sub(lambda found: f"{found[1]}{_environment(results, usual)}\n{found[2]}", page)


def _section(name: str, result: Any, usual: Mapping[str, Any]) -> str:
    if result is None:
        return f"Not measured yet: `python -m benchmarks {name}`."
    parts = [
        f"`{result['command']}`, on {result['date']}{_differences(result['environment'], usual)}:",
        _tables(result["rows"]),
        _cannot(result["rows"]),
        "\n".join(map(_goal, result["goals"])),
        "\n".join(f"- {note}" for note in result["notes"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _tables(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows that took part."""
    return "\n\n".join(map(_table, tables(row for row in rows if _excuse(row) is None)))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Numbers are aligned right. An empty column is left out."""
    columns = list(dict.fromkeys(key for row in rows for key in row if row[key] is not None))
    sides = ["---:" if _all_figures(row.get(column) for row in rows) else "---" for column in columns]
    lines = [[_shown(row.get(column)) for column in columns] for row in rows]
    table = "\n".join(map(_line, [columns, sides, *lines]))
    if len(rows) <= _LONG:
        return table
    return f"<details>\n<summary>The figures ({len(rows)} rows)</summary>\n\n{table}\n\n</details>"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _all_figures(values: Iterable[Any]) -> bool:
    return all(value is None or isinstance(value, int | float | Mapping) for value in values)


def _cannot(rows: Iterable[Mapping[str, Any]]) -> str:
    absent: dict[str, list[str]] = {}
    for row in rows:
        if reason := _excuse(row):
            names = absent.setdefault(reason, [])
            if (name := str(next(iter(row.values())))) not in names:
                names.append(name)
    lines = [f"- {', '.join(names)}: {reason}." for reason, names in absent.items()]
    return "\n".join(["Cannot take part:", "", *lines]) if lines else ""


def _excuse(row: Mapping[str, Any]) -> str | None:
    """Why a contestant could not take part: the value of "cannot", or a text that starts with it."""
    texts = [f"cannot: {row['cannot']}"] if row.get("cannot") else row.values()
    for text in texts:
        if isinstance(text, str) and text.startswith("cannot: "):
            return text.removeprefix("cannot: ").rstrip(".")
    return None


def _goal(goal: Mapping[str, Any]) -> str:
    verdict = {True: "met", False: "missed", None: "not judged"}[goal["met"]]
    why = f" {goal['why'].rstrip('.')}." if goal["why"] else ""
    return f"- Goal **{verdict}**: {goal['what']}: {goal['found']} (must: {goal['must']}).{why}"


def _shown(value: Any) -> str:
    """As a benchmark prints it: three digits, and for a spread the median and the quartiles."""
    if value is None:
        return ""
    if isinstance(value, Mapping) and "median" in value:
        low, high = _shown(float(value["q1"])), _shown(float(value["q3"]))
        return f"{_shown(float(value['median']))} ({low} to {high})"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _usual(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The environment of most of them."""
    found: dict[str, Any] = {}
    environments = [result["environment"] for result in results]
    for key in _RAN_ON:
        counts = Counter(environment[key] for environment in environments)
        found[key] = counts.most_common(1)[0][0] if counts else None
    versions = {name for environment in environments for name in environment["versions"]}
    found["versions"] = {
        name: Counter(e["versions"].get(name, "not installed") for e in environments).most_common(1)[0][0]
        for name in sorted(versions)
    }
    return found


def _differences(environment: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """How this environment differs from the usual one, if it does."""
    other = [f"{environment[key]}" for key in _RAN_ON if environment[key] != usual[key]]
    other += [
        f"{name} {version}"
        for name, version in environment["versions"].items()
        if version != usual["versions"][name]
    ]
    return f" (unlike the others with {', '.join(other)})" if other else ""


def _environment(results: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    if not results:
        return "Nothing has been measured yet."
    loads = [result["environment"]["load"] for result in results.values()]
    dates = sorted({result["date"] for result in results.values()})
    there = {name: version for name, version in usual["versions"].items() if version != "not installed"}
    lines = [
        f"- {usual['python']}, {usual['system']}",
        f"- {usual['processors']} virtual processors: {usual['processor']}",
        f"- {', '.join(f'{name} {version}' for name, version in there.items())}",
        f"- measured {dates[0] if len(dates) == 1 else f'from {dates[0]} to {dates[-1]}'}; "
        f"the load average when each ended was {min(loads):.2g} to {max(loads):.2g}",
    ]
    absent = [name for name, version in usual["versions"].items() if version == "not installed"]
    if absent:
        lines.append(f"- not installed: {', '.join(absent)}")
    return "\n".join(lines)
