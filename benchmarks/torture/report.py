"""The end of a run: its counts, its verdict, its table and its JSON."""

from __future__ import annotations

import json
import platform
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

import tokensession.errors
from tokensession.testing import ServerStats

from .event_log import Entry
from .plan import Plan
from .verdict import Findings, examine

__all__ = ["Report", "as_json", "show"]

_EXPECTED = (
    tokensession.errors.SignInRequired,
    tokensession.errors.TokenUnavailable,
    tokensession.errors.StoreUnavailable,
)
"""Errors that callers may get while all this happens. Any other is a defect."""

_WRONG = ("no token", "unknown token", "valid token")
"""Reasons for a 401 at the API that must not occur."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of a run. `failures` by type, `unauthorized` (401s at the API) by reason."""

    plan: Plan
    seconds: float
    entries: list[Entry]
    lines: list[str]
    stats: ServerStats
    invalid_requests: list[str]
    requests: int
    failures: Counter[str]
    unauthorized: Counter[str]
    reads: int
    failed_reads: int

    def findings(self) -> Findings:
        """What the event log shows, and what the counters show."""
        found = examine(self.entries)
        wrong = sum(self.unauthorized[reason] for reason in _WRONG)
        unexpected = [name for name in self.failures.elements() if not _is_expected(name)]
        found.counts = {"requests": self.requests, "expiries": self.stats.expiries, **found.counts}
        found.count("failures", self.failures)
        found.count("401s at the API", self.unauthorized)
        found.counts |= {"reads of the record": self.reads, "reads that failed": self.failed_reads}
        found.promise("unexpected failures", len(unexpected), *unexpected)
        found.promise("401s for a valid token, an unknown one or none", wrong)
        found.promise("invalid token requests", len(self.invalid_requests), *self.invalid_requests)
        if not self.requests:
            found.broken.append("No request was made.")
        return found


def _is_expected(name: str) -> bool:
    kind = getattr(tokensession.errors, name, None)
    return name == "status 401" or (isinstance(kind, type) and issubclass(kind, _EXPECTED))


def show(report: Report, found: Findings) -> None:
    """Print the counts, each with its kinds below it, then the promises, and the verdict."""
    plan, console = report.plan, Console(highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in found.counts.items():
        table.add_row(name, f"{count:,}")
        for kind, many in found.by_kind.get(name, Counter[str]()).most_common():
            table.add_row(f"    {kind}", f"[dim]{many:,}[/dim]")
    table.add_row("\n[bold]must be 0, or 1 at once[/bold]")
    for name, count in found.promises.items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    console.print(
        f"\n{plan.seconds:g} s, {plan.processes} processes, {plan.store.partition(':')[0]}, "
        f"seed {plan.seed}; {report.seconds:.1f} s in total"
    )
    for sentence in found.broken:
        console.print(sentence, style="bold red", markup=False)
    if not found.broken:
        console.print("Every promise held.", style="bold green")


def as_json(report: Report, found: Findings) -> str:
    """One document: the counts, their kinds, the broken promises, and the run."""
    document: dict[str, Any] = {
        "counts": found.counts,
        "promises": found.promises,
        "by_kind": found.by_kind,
        "broken": found.broken,
        "run": asdict(report.plan)
        | {
            "took": round(report.seconds, 1),
            "python": platform.python_version(),
            "platform": sys.platform,
        },
    }
    return json.dumps(document, indent=2)
