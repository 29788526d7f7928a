"""Many tasks of one process find the token expired at the same moment: `python -m benchmarks contention`.

N tasks make one GET each while the token they share looks expired. A token request takes 50 ms at the
server. Counted: token requests for this expiry, and failures. Measured: the time until the last task has its
response, next to the limit, which is raw aiohttp doing one token request and then the same N GETs, on open
connections, in the same round. Every contestant has 100 connections at most, and opens them before the clock
runs.

Contestants take turns. Those that use aiohttp run all rounds. Of the others, one that takes more than 1.5
times the limit leaves after its first round of that size. One that would take longer than ten seconds, going
by its time per task so far, is not tried; one that does take longer is stopped. Refresh tokens rotate, with
reuse detection.

Not measured: several processes (see `processes`), and a token that is refreshed ahead of its expiry, for
which no task waits at all (see `steady`).

Series: {"x": [N, ...], "lines": {name: [median ratio or None, ...]}, "spread": {name: [[q1, q3] or None,
...]}, "unit": "x the limit"}.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from .harness import command
from .harness.results import Goal, Result, say
from .harness.rounds import interleaved, ratios, spread
from .harness.server import Server
from .peers import (
    CONNECTIONS,
    AiohttpCookbook,
    AiohttpOAuth2Client,
    GcloudAio,
    Peer,
    RawAiohttp,
    Tokensession,
)
from .peers.common import at_once, contestants, primed, worst

LATENCY = 0.05  # seconds that a token request takes at the server
ROUNDS = {10: 10, 100: 6, 1000: 5, 5000: 5, 10_000: 3}
_QUICK = {10: 2, 50: 1}
_FAR = 1.5  # times the limit: a slower contestant gets no second round
_JUDGED = (5000, 10_000)  # tasks
_LIMIT = 10.0  # seconds that one turn may take
_ALWAYS = (
    Tokensession,
    RawAiohttp,
    AiohttpCookbook,
    AiohttpOAuth2Client,
    GcloudAio,
)  # one bad round drops none of these


@dataclass(slots=True)
class _Entrant:
    """One contestant with one number of tasks."""

    peer: Peer
    tasks: int
    limit: float
    server: Server
    token_requests: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    trouble: str = ""
    stopped: bool = False
    seconds: list[float] = field(default_factory=list)

    async def round(self) -> float:
        """Seconds from the expiry to the last response."""
        await at_once(self.peer, min(self.tasks, CONNECTIONS))  # connections are open
        before = (await self.server.stats())["token_requests"]
        self.peer.expire()
        gc.collect()  # garbage that the others left is not measured
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(self.limit):
                if isinstance(self.peer, RawAiohttp):
                    await self.peer.prime()
                tally = await at_once(self.peer, self.tasks)
        except TimeoutError:
            self.stopped = True
            self.trouble = f"stopped after {self.limit:.0f} s"
        else:
            self.failed.append(tally.failed)
            self.trouble = self.trouble or str(tally)
        seconds = time.perf_counter() - begun
        self.token_requests.append((await self.server.stats())["token_requests"] - before)
        return seconds


async def _size(
    kinds: Sequence[type[Peer]], server: Server, tasks: int, rounds: int, limit: float
) -> dict[str, _Entrant]:
    """All rounds with this number of tasks."""
    async with AsyncExitStack() as stack:
        entrants = {}
        for kind in kinds:
            peer = await stack.enter_async_context(primed(kind, server))
            entrants[kind.name] = _Entrant(peer, tasks, limit, server)
        first = await interleaved({name: entrant.round for name, entrant in entrants.items()}, 1, warm_up=0)
        near = {
            name: entrant
            for name, entrant in entrants.items()
            if type(entrant.peer) in _ALWAYS
            or (not entrant.stopped and first[name][0] <= _FAR * first[RawAiohttp.name][0])
        }
        rest = await interleaved(
            {name: entrant.round for name, entrant in near.items()}, max(0, rounds - 1), warm_up=0
        )
        for name, entrant in entrants.items():
            entrant.seconds = first[name] + rest.get(name, [])
        return entrants


def _row(name: str, entrant: _Entrant, base: list[float]) -> dict[str, Any]:
    measured = not entrant.stopped
    shared = min(len(entrant.seconds), len(base))
    return {
        "contestant": name,
        "tasks": entrant.tasks,
        "token requests": worst(entrant.token_requests),
        "failed": worst(entrant.failed) if entrant.failed else None,
        "wall ms": 1000 * spread(entrant.seconds).median if measured else None,
        "x the limit": ratios(entrant.seconds[:shared], base[:shared]).as_json() if measured else None,
        "rounds": len(entrant.seconds),
        "remark": entrant.trouble or None,
    }


def _untried(name: str, tasks: int, limit: float) -> dict[str, Any]:
    return {"contestant": name, "tasks": tasks, "remark": f"not tried: it would take over {limit:.0f} s"}


async def measure(
    sizes: dict[int, int], *, limit: float = _LIMIT, only: Sequence[str] = (), latency: float = LATENCY
) -> Result:
    """All sizes. `limit` is the longest time of one contestant's turn, in seconds."""
    able, excused = contestants("contention", [*only, RawAiohttp.name] if only else ())
    result = Result("contention")
    slowness: dict[str, float] = {}  # seconds per task, at the last size
    async with Server(auth="post", delay=latency) as server:
        for tasks, rounds in sizes.items():
            tried = [
                kind for kind in able if slowness.get(kind.name, 0.0) * tasks <= limit or kind in _ALWAYS
            ]
            say(f"  contention: {tasks} tasks, {len(tried)} contestants, at most {rounds} rounds")
            entrants = await _size(tried, server, tasks, rounds, limit)
            base = entrants[RawAiohttp.name].seconds
            result.rows += [_row(name, entrant, base) for name, entrant in entrants.items()]
            result.rows += [_untried(kind.name, tasks, limit) for kind in able if kind not in tried]
            slowness |= {name: max(entrant.seconds) / tasks for name, entrant in entrants.items()}
            if Tokensession.name in entrants:
                result.goals += _goals(entrants, judged=tasks in _JUDGED)
        if _JUDGED[0] in sizes and not only:
            result.notes.append(await _uncollected([kind for kind in able if kind in _ALWAYS], server, limit))
    result.rows += [{"contestant": name, "remark": f"cannot: {reason}"} for name, reason in excused]
    result.series = _series(result.rows, list(sizes))
    result.notes += [
        f"The limit: one token request ({1000 * latency:.0f} ms at the server) and the same GETs by raw "
        f"aiohttp, in the same round. At most {CONNECTIONS} connections each.",
        f"A contestant slower than {_FAR} x the limit has one round of that size, unless it uses aiohttp.",
        "httpx, httpx2 and google-auth's threads are a large part of the time of those that use them; "
        "singleflight-auth sends every GET twice by design; mcp sends one request at a time.",
    ]
    return result


async def _uncollected(kinds: Sequence[type[Peer]], server: Server, limit: float) -> str:
    """The difference that is left when the garbage collector does not look at thousands of waiting tasks."""
    say(f"  contention: {_JUDGED[0]} tasks without the garbage collector")
    gc.disable()
    try:
        entrants = await _size(kinds, server, _JUDGED[0], ROUNDS[_JUDGED[0]], limit)
    finally:
        gc.enable()
    base = entrants[RawAiohttp.name].seconds
    found = [f"{name} {ratios(entrants[name].seconds, base)}" for name in entrants if name != RawAiohttp.name]
    return f"{_JUDGED[0]:,} tasks with the garbage collector off, x the limit: {', '.join(found)}."


def _goals(entrants: dict[str, _Entrant], *, judged: bool) -> list[Goal]:
    ours = entrants[Tokensession.name]
    limit = entrants[RawAiohttp.name].seconds
    counted = f"{worst(ours.token_requests)}, {worst(ours.failed) if ours.failed else 'stopped'}"
    good = set(ours.token_requests) == {1} and set(ours.failed) == {0}
    goals = [Goal(f"token requests, failures at {ours.tasks:,} tasks", "1, 0", counted, good)]
    if not judged:
        return goals
    found = ratios(ours.seconds, limit)
    own = spread(limit)
    scatter = own.most / own.median
    goals.append(
        Goal(
            f"time at {ours.tasks:,} tasks, x the limit",
            f"<= {scatter:.2f}, by which the limit itself varies in this run",
            str(found),
            found.median <= scatter,
        )
    )
    others = [
        (name, other)
        for name, other in entrants.items()
        if name not in (Tokensession.name, RawAiohttp.name) and len(other.seconds) == len(ours.seconds)
    ]
    if others:
        name, best = min(others, key=lambda item: spread(item[1].seconds).median)
        against = ratios(ours.seconds, best.seconds)
        goals.append(
            Goal(
                f"time at {ours.tasks:,} tasks, x the best peer's ({name})",
                "not above 1 by more than the spread",
                str(against),
                against.q1 <= 1.0,
            )
        )
    return goals


def _series(rows: list[dict[str, Any]], sizes: list[int]) -> dict[str, Any]:
    found = {(row["contestant"], row["tasks"]): row["x the limit"] for row in rows if row.get("x the limit")}
    names = list(dict.fromkeys(name for name, _ in found))
    cells = {name: [found.get((name, size)) for size in sizes] for name in names}
    return {
        "x": sizes,
        "lines": {name: [cell and cell["median"] for cell in line] for name, line in cells.items()},
        "spread": {
            name: [cell and [cell["q1"], cell["q3"]] for cell in line] for name, line in cells.items()
        },
        "unit": "x the limit",
    }


def main(arguments: list[str]) -> int:
    """Measure, print, save. Returns 1 unless tokensession made one token request and failed no task."""
    parser = command.parser("contention", __doc__, only=True)
    parser.add_argument("--tasks", type=int, nargs="+", help="only these numbers of tasks")
    parser.add_argument("--rounds", type=int, help="at most this many rounds of each size")
    parser.add_argument("--limit", type=float, default=_LIMIT, help="longest turn in seconds")
    options = parser.parse_args(arguments)
    sizes = _QUICK if options.quick else ROUNDS
    if options.tasks:
        sizes = {tasks: ROUNDS.get(tasks, 5) for tasks in options.tasks}
    if options.rounds:
        sizes = {tasks: min(rounds, options.rounds) for tasks, rounds in sizes.items()}
    result = asyncio.run(measure(sizes, limit=options.limit, only=options.only))
    command.finish(result, arguments, quick=options.quick)
    return int(any(goal.must == "1, 0" for goal in result.missed))
