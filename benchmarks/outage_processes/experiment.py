"""The outages, each with one process and with several, in real time."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokensession.cli.child_process import Child

from ..harness.results import Goal, Result, say
from ..harness.server import Server
from .worker import CALLERS

__all__ = ["LONG", "OUTAGES", "QUICK", "Outage", "measure"]

_LIFETIME = 1  # seconds, of the token that has expired when the outage begins
_LATE = 2.0  # seconds after the end in which the last process must be served
_PATIENCE = 30.0  # seconds after that in which it may still be


@dataclass(frozen=True, slots=True)
class Outage:
    """One outage, and the numbers of processes that go through it. `kind` is one of `Server.outage`'s.

    `response_timeout` is `Policy`'s: so long does a request that is never answered hold up the next one.
    """

    kind: str
    seconds: float = 10
    processes: tuple[int, ...] = (1, 16)
    response_timeout: float | None = None

    @property
    def name(self) -> str:
        """What the rows and goals call it."""
        return self.kind + (f", response_timeout={self.response_timeout:g}" if self.response_timeout else "")

    @property
    def late(self) -> float:
        """After its end, seconds in which the last process must be served."""
        return self.response_timeout or _LATE


OUTAGES = (
    Outage("refused"),
    Outage("reset"),
    Outage("500"),
    Outage("503"),
    Outage("429"),
    Outage("swallowed", response_timeout=5),
    Outage("swallowed", response_timeout=120),
)
LONG = (Outage("500", 300, (1, 4, 16)),)
QUICK = (Outage("500", 1, (1, 2)),)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What these processes did. `served`: seconds from the end until each had a token, or None."""

    processes: int
    requests: int
    reused: int
    served: list[float | None]
    failed: int
    lost: int

    def row(self, outage: Outage, single: _Outcome) -> dict[str, Any]:
        return {
            "outage": outage.name,
            "seconds": outage.seconds,
            "processes": self.processes,
            "token requests": self.requests,
            "more than one process": self.requests - single.requests,
            "first s": min(self._times, default=None),
            "last s": max(self._times, default=None),
            "calls failed": self.failed,
            "remark": self._remark or None,
        }

    def goal(self, outage: Outage, single: _Outcome, *, judged: bool) -> Goal:
        more = self.requests - single.requests
        in_time = all(seconds <= outage.late for seconds in self._times)
        must = [f"the last after <= {outage.late:g} s"]
        found = [f"{max(self._times):.3g} s"] if self._times else []
        if self is not single:
            must.insert(0, f"<= {self.processes} token requests more than one process")
            found.insert(0, f"{more} more")
        if self._remark:
            found.append(self._remark)
        return Goal(
            f"{outage.name}, {outage.seconds:g} s, processes: {self.processes}",
            ", ".join(must),
            ", ".join(found),
            (more <= self.processes and in_time and not self._remark) if judged else None,
            "" if judged else "A small trial.",
        )

    @property
    def _times(self) -> list[float]:
        return [seconds for seconds in self.served if seconds is not None]

    @property
    def _remark(self) -> str:
        counts = {
            "not served": self.served.count(None) - self.lost,
            "must sign in": self.lost,
            "spent refresh tokens sent": self.reused,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


@contextlib.asynccontextmanager
async def _workers(count: int, **setup: Any) -> AsyncIterator[list[Child]]:
    """Processes that have had a token."""
    children: list[Child] = []
    try:
        for number in range(count):
            children.append(await Child.start(f"worker {number}", "benchmarks.outage_processes.worker"))
        await _ask(children, **setup)
        yield children
    finally:
        await asyncio.gather(*(child.stop() for child in children))


async def _ask(children: Sequence[Child], **order: Any) -> list[dict[str, Any]]:
    """Send this order to all of them. Returns their answers."""
    for child in children:
        await child.tell(**order)
    return await asyncio.gather(*(child.hear() for child in children))


async def _go_through(outage: Outage, processes: int) -> _Outcome:
    """One outage, with this many processes, a server and a store of its own."""
    policy = {} if outage.response_timeout is None else {"response_timeout": outage.response_timeout}
    with tempfile.TemporaryDirectory() as directory:
        store = f"sqlite:///{directory}/tokens.db"
        async with (
            Server(lifetime=_LIFETIME, auth="basic") as server,
            _workers(processes, credentials=server.credentials, store=store, policy=policy) as workers,
        ):
            await asyncio.sleep(_LIFETIME + 0.1)
            await server.set_lifetime(3600)
            before = await server.stats()
            await server.outage(outage.kind, outage.seconds)
            answers = await _ask(workers, limit=outage.seconds + outage.late + _PATIENCE)
            ended = await server.outage_ended()
            after = await server.stats()
    return _Outcome(
        processes,
        after["token_requests"] - before["token_requests"],
        after["reuse_detections"] - before["reuse_detections"],
        [None if answer["served"] is None else answer["served"] - ended for answer in answers],
        sum(answer["failed"] for answer in answers),
        sum(answer["lost"] for answer in answers),
    )


async def measure(result: Result, outages: Sequence[Outage], *, judged: bool = True) -> None:
    """Go through these outages. Adds rows, goals and notes."""
    for outage in outages:
        say(f"  outage: {outage.name}")
        # At the same time: they have nothing in common, and all do little but wait.
        outcomes = await asyncio.gather(*(_go_through(outage, number) for number in outage.processes))
        single = outcomes[0]
        result.rows += [outcome.row(outage, single) for outcome in outcomes]
        result.goals += [outcome.goal(outage, single, judged=judged) for outcome in outcomes]
    result.notes += [
        f"Processes: each has {CALLERS} callers that keep asking, and no usable token; all share one SQLite "
        "store. Token requests: those that reached the server until all processes were served.",
        "first s, last s: from the end of the outage until the first and the last process was served. A "
        "process is served when all its callers have a token.",
    ]
