"""What a demo has found: its numbers, its verdict, its JSON. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .latency import Latencies

__all__ = ["LOADS", "PROVIDERS", "Plan", "Progress", "Report", "Row", "as_json", "problems"]

LOADS = ("shared", "baseline")
"""With tokensession and one store, and with every task refreshing for itself."""

PROVIDERS = ("oto", "priava")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The size of a demo. `tasks` is per provider and process. Times are in seconds."""

    processes: int = 4
    tasks: int = 100
    expiries: int = 6
    lifetime: int = 2
    pause: float = 1.5
    """A task's average pause between two requests. 4 x 2 x 100 tasks make some 500 requests a second. That
    leaves two cores more than half idle, so that the latencies are those of the library."""

    @property
    def baseline_seconds(self) -> float:
        """How long the baseline runs at most: long enough for its tokens to expire twice."""
        return 2.5 * self.lifetime

    @property
    def longest(self) -> float:
        """How long to wait for the expiries at most, with a margin for a slow start."""
        return 1.2 * self.lifetime * self.expiries + 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One provider under one load. Latencies are in milliseconds. `reasons` has the failures by kind."""

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
    """The outcome of a demo. `load_seconds` is how long each load took, `seconds` the whole demo."""

    plan: Plan
    rows: Rows
    load_seconds: Mapping[str, float]
    seconds: float


@dataclass(slots=True)
class Progress:
    """The latest message of every process. Each has all that the process has counted so far."""

    servers: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """By load and provider: the server's counters."""
    tallies: dict[tuple[str, int], dict[str, dict[str, Any]]] = field(default_factory=dict)
    """By load and process, then by provider: requests, failures by kind, latency bins."""

    def expiries(self, load: str) -> int:
        """The expiries so far, at the provider that has had the fewest."""
        counters = self.servers.get(load, {})
        return min((counters.get(provider, {}).get("expiries", 0) for provider in PROVIDERS), default=0)

    def rows(self) -> Rows:
        """All numbers, added up."""
        return {load: {provider: self._row(load, provider) for provider in PROVIDERS} for load in LOADS}

    def _row(self, load: str, provider: str) -> Row:
        latencies = Latencies()
        reasons: Counter[str] = Counter()
        requests = 0
        for (tally_load, _), tally in self.tallies.items():
            if tally_load == load and provider in tally:
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
    """Why the demo failed, one sentence per reason. Empty if tokensession did what it promises.

    The numbers of the baseline do not matter.
    """
    found = []
    for provider, row in report.rows["shared"].items():
        if row.requests == 0:
            found.append(f"{provider}: no requests were made.")
        if row.failures:
            kinds = ", ".join(f"{count} {kind}" for kind, count in row.reasons)
            found.append(f"{provider}: {row.failures} requests failed ({kinds}).")
        if row.expiries < report.plan.expiries:
            found.append(f"{provider}: only {row.expiries} of {report.plan.expiries} expiries were reached.")
        if row.token_requests != row.expiries:
            found.append(f"{provider}: {row.token_requests} token requests for {row.expiries} expiries.")
        if row.reuse_detections:
            found.append(f"{provider}: a spent refresh token was sent again.")
        if row.invalid_requests:
            found.append(f"{provider}: {row.invalid_requests} token requests were invalid.")
    return found


def as_json(report: Report) -> str:
    """One document: each provider with tokensession, then `baseline`, `run` and `problems`."""
    document: dict[str, Any] = {name: _numbers(row) for name, row in report.rows["shared"].items()}
    document["baseline"] = {name: _numbers(row) for name, row in report.rows["baseline"].items()}
    plan = report.plan
    document["run"] = {
        "processes": plan.processes,
        "tasks": plan.processes * plan.tasks * len(PROVIDERS),
        "lifetime": plan.lifetime,
        "load_seconds": {load: round(seconds, 1) for load, seconds in report.load_seconds.items()},
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
