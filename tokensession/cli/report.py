"""What a demo found out: its numbers, its verdict, its JSON. All of it pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .latency import Latencies

__all__ = ["LOADS", "PROVIDERS", "Board", "Plan", "Report", "Row", "as_json", "problems"]

LOADS = ("shared", "naive")
"""With tokensession and one store; and every task refreshing for itself."""

PROVIDERS = ("oto", "priava")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything. `tasks` are for each provider in each process; times in seconds."""

    processes: int = 4
    tasks: int = 100
    expiries: int = 6
    lifetime: int = 2
    pace: float = 1.5
    """A task's average pause between two requests: 4 x 2 x 100 tasks make some 500 requests a second. That
    leaves two cores more than half idle, so that the latencies are those of the library."""

    @property
    def naive_for(self) -> float:
        """How long the naive load runs at most: by then its tokens would have expired twice."""
        return 2.5 * self.lifetime

    @property
    def longest(self) -> float:
        """When to give up waiting for the expiries: more than their time, and something for a slow start."""
        return 1.2 * self.lifetime * self.expiries + 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One provider under one load. Latencies in milliseconds; `reasons` are the failures by kind."""

    requests: int = 0
    failures: int = 0
    expiries: int = 0
    token_requests: int = 0
    reuse_detections: int = 0
    invalid_requests: int = 0
    p50: float = 0.0
    p99: float = 0.0
    reasons: tuple[tuple[str, int], ...] = ()


Rows = Mapping[str, Mapping[str, Row]]
"""By load, then by provider."""


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. `lasted` are the seconds of each load, `seconds` those of the whole demo."""

    plan: Plan
    rows: Rows
    lasted: Mapping[str, float]
    seconds: float


@dataclass(slots=True)
class Board:
    """The latest word of every process, each word being all it has counted so far."""

    servers: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """By load and provider: the server's counters."""
    tallies: dict[tuple[str, int], dict[str, dict[str, Any]]] = field(default_factory=dict)
    """By load and process, then by provider: requests, failures by kind, latency bins."""

    def expiries(self, load: str) -> int:
        """How often a new token was due, at the provider where it was least often."""
        counters = self.servers.get(load, {})
        return min((counters.get(provider, {}).get("expiries", 0) for provider in PROVIDERS), default=0)

    def rows(self) -> Rows:
        """Everything added up."""
        return {load: {provider: self._row(load, provider) for provider in PROVIDERS} for load in LOADS}

    def _row(self, load: str, provider: str) -> Row:
        latencies = Latencies()
        reasons: Counter[str] = Counter()
        requests = 0
        for (of_load, _), tally in self.tallies.items():
            if of_load == load and provider in tally:
                requests += tally[provider]["requests"]
                reasons.update(tally[provider]["reasons"])
                latencies.merge(tally[provider]["latencies"])
        counted = self.servers.get(load, {}).get(provider, {})
        names = ("expiries", "token_requests", "reuse_detections", "invalid_requests")
        return Row(
            requests=requests,
            failures=reasons.total(),
            **{name: counted.get(name, 0) for name in names},
            p50=latencies.quantile(0.5),
            p99=latencies.quantile(0.99),
            reasons=tuple(reasons.most_common()),
        )


def problems(report: Report) -> list[str]:
    """Why the demo failed, a sentence each; empty if tokensession kept its promise.

    The naive load may do as badly as it likes.
    """
    found = []
    for provider, row in report.rows["shared"].items():
        if row.requests == 0:
            found.append(f"{provider}: no request was made.")
        if row.failures:
            kinds = ", ".join(f"{count} {kind}" for kind, count in row.reasons)
            found.append(f"{provider}: {row.failures} requests failed ({kinds}).")
        if row.expiries < report.plan.expiries:
            found.append(f"{provider}: {row.expiries} expiries of {report.plan.expiries} were reached.")
        if row.token_requests != row.expiries:
            found.append(f"{provider}: {row.token_requests} token requests for {row.expiries} expiries.")
        if row.reuse_detections:
            found.append(f"{provider}: a spent refresh token was sent again.")
        if row.invalid_requests:
            found.append(f"{provider}: {row.invalid_requests} token requests were not byte-exact.")
    return found


def as_json(report: Report) -> str:
    """One document: the providers under tokensession, then `naive`, then how it was measured."""
    document: dict[str, Any] = {name: _numbers(row) for name, row in report.rows["shared"].items()}
    document["naive"] = {name: _numbers(row) for name, row in report.rows["naive"].items()}
    plan = report.plan
    document["run"] = {
        "processes": plan.processes,
        "tasks": plan.processes * plan.tasks * len(PROVIDERS),
        "lifetime": plan.lifetime,
        "load_seconds": {load: round(lasted, 1) for load, lasted in report.lasted.items()},
        "seconds": round(report.seconds, 1),
    }
    document["problems"] = problems(report)
    return json.dumps(document, indent=2)


def _numbers(row: Row) -> dict[str, Any]:
    return {
        "requests": row.requests,
        "failures": row.failures,
        "expiries": row.expiries,
        "token_requests": row.token_requests,
        "reuse_detections": row.reuse_detections,
        "latency_ms": {"p50": round(row.p50, 2), "p99": round(row.p99, 2)},
    }
