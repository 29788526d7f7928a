"""Processes that share a store find their token expired at the same moment: how soon is each served?

One process makes the token request; the others wait for what it stores. Measured is the time from the
token's *arrival* (the holder has the response, and has stored nothing yet) until `await source.token()`
returns in each waiter: for the median waiter and for the last one. Real processes, one store, and a server
that rotates refresh tokens and detects reuse. All read CLOCK_MONOTONIC, which the processes of a machine
share.

A round: the server holds token requests. Each process moves its clock ahead, so that its token has expired,
and asks for a token. When one has reached the server and all others wait, they are left waiting for a while,
as for a real provider; then the server answers. No process sends a message until the round is over: with two
processors to share, every message would disturb the measurement.

The floor next to it is the time in which this machine wakes so many event loops at all: this process writes
a line into a socket of each. Next to a store on a server is one bare round trip to that server. The servers
run on this machine, and have the processors to share with the processes.

Not measured: hosts that share a store, and processes that have a processor each. `cpu` is the share of one
processor that one waiter uses while it waits, including its start.

`series`: {"x": [processes], "lines": {"file, last": [...], "file, median": [...], "sqlite, last": [...],
..., "floor, last": [...]}, "unit": "ms"}, medians of the rounds, for the stores that were measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tokensession import AiohttpTransport, ManagedSource, Policy
from tokensession.clock import SystemClock
from tokensession.providers import OAuth2
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import Store, open_store
from tokensession.testing.conformance.peer import fork_server, serve_forks

from .harness import command
from .harness.aged import AgedStore
from .harness.results import Goal, Result, progress
from .harness.rounds import interleaved, spread
from .harness.server import Server
from .servers import REMOTE, NotInstalled, local_url, remote
from .servers.round_trip import round_trip

STORES = ("file", "sqlite", "redis", "valkey", "postgres")
LIMITS = {"file": 0.025, "sqlite": 0.025, "redis": 0.020, "valkey": 0.020, "postgres": 0.040}
"""Seconds in which the last of 32 must be served."""
LIFETIME = 3600

_ROOT = str(Path(__file__).parents[1])
_PROGRAM = f"""
import sys
sys.path.insert(0, {_ROOT!r})
from benchmarks.processes import serve
serve(int(sys.argv[1]))
"""
_WAIT = 0.15  # seconds that all wait, at least: by then the pauses between two polls are the longest
_SERVING = 0.2  # seconds without a message, in which all are served


# -- a worker process -----------------------------------------------------------------------------


class _AdvancedClock(SystemClock):
    """Some seconds ahead of the machine's clocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wall(self) -> float:
        return time.time() + self.seconds

    def boot(self) -> float:
        return time.monotonic() + self.seconds


class _Transport:
    """The usual one. It notes when its last response arrived."""

    def __init__(self) -> None:
        self._transport = AiohttpTransport()
        self.arrived: float | None = None

    async def send(
        self, request: TokenRequest, *, connect: float, total: float, **options: Any
    ) -> TokenResponse:
        token_response = await self._transport.send(request, connect=connect, total=total, **options)
        self.arrived = time.monotonic()
        return token_response


async def _ask(source: ManagedSource) -> dict[str, Any]:
    began, cpu = time.monotonic(), time.process_time()
    token = await source.token()
    served = time.monotonic()
    return {
        "served": served,
        "token": token.fingerprint,
        "cpu": (time.process_time() - cpu) / (served - began),
    }


def _opened(name: str, url: str, clock: _AdvancedClock) -> Store:
    return (
        AgedStore(open_store(url), lambda: clock.seconds) if name in REMOTE else open_store(url, clock=clock)
    )


async def _work(fd: int, setup: dict[str, Any]) -> None:
    """One worker process with one source per store. It reads one order per line."""
    lines, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    clock, transport = _AdvancedClock(), _Transport()
    stores = {name: _opened(name, url, clock) for name, url in setup["stores"].items()}
    sources = {
        name: ManagedSource(
            OAuth2(**setup["credentials"][name]),
            transport,
            store=store,
            policy=Policy(claim_timeout=60, request_timeout=30),
            clock=clock,
        )
        for name, store in stores.items()
    }
    work: asyncio.Future[dict[str, Any]] | None = None
    answer: dict[str, Any] = {}
    while line := await lines.readline():
        now, order = time.monotonic(), json.loads(line)
        match order["do"]:
            case "expire":
                clock.seconds, transport.arrived = order["ahead"], None
                work = asyncio.ensure_future(_ask(sources[order["store"]]))
                answer = {}
            case "wake":  # no response until the report
                answer = {"served": now}
                continue
            case "report" if work is not None:
                answer = await work | {"arrived": transport.arrived}
                work = None
        writer.write(json.dumps(answer).encode() + b"\n")


def serve(fd: int) -> None:
    """Be the parent of the workers: it imports everything once, and forks each."""
    gc.freeze()  # keeps the memory that children share with their parent shared
    serve_forks(socket.socket(fileno=fd), _work)


# -- the experiment -------------------------------------------------------------------------------


class _Worker:
    """The remote control of one worker."""

    def __init__(self, lines: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines = lines
        self._writer = writer

    def tell(self, do: str, **order: Any) -> None:
        self._writer.write(json.dumps({"do": do, **order}).encode() + b"\n")

    async def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self._lines.readline())
        return answer


@dataclass(slots=True)
class _Figures:
    """The figures of one contestant: a store and a number of processes. Times in seconds."""

    median: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    reuse: int = 0
    mixed: int = 0  # rounds in which not all got the same token

    def row(self, name: str, processes: int) -> dict[str, Any]:
        row: dict[str, Any] = {"store": name, "processes": processes}
        if self.requests:
            row |= {"token requests a round": max(self.requests), "reuse": self.reuse}
        row |= {
            "median ms": _ms(self.median),
            "last ms": _ms(self.last),
            "cpu": statistics.median(self.cpu) if self.cpu else None,
        }
        return row

    @property
    def broken(self) -> bool:
        return self.reuse > 0 or self.mixed > 0 or any(number != 1 for number in self.requests)


def _ms(seconds: list[float]) -> dict[str, float]:
    return spread([1000 * second for second in seconds]).as_json()


class _Experiment:
    """The server, the workers, and how far their clocks are ahead."""

    def __init__(self, server: Server, workers: list[_Worker]) -> None:
        self._server = server
        self._workers = workers
        self._ahead = 0

    async def expire(self, store: str, figures: _Figures) -> float:
        """One round. Returns the last waiter's time."""
        workers, before = self._workers, await self._server.stats()
        self._ahead += 2 * LIFETIME
        await self._server.hold()
        for worker in workers:
            worker.tell("expire", store=store, ahead=self._ahead)
        await asyncio.gather(*(worker.answer() for worker in workers))
        await self._server.reached()
        await asyncio.sleep(_WAIT + random.random() * 0.025)
        await self._server.release()
        await asyncio.sleep(_SERVING)
        answers = await self._reports(workers)
        after = await self._server.stats()
        arrived = max(answer["arrived"] or 0.0 for answer in answers)
        waits = [answer["served"] - arrived for answer in answers if answer["arrived"] is None]
        figures.requests.append(after["token_requests"] - before["token_requests"])
        figures.reuse += after["reuse_detections"] - before["reuse_detections"]
        figures.mixed += len({answer["token"] for answer in answers}) != 1
        figures.cpu.extend(answer["cpu"] for answer in answers if answer["arrived"] is None)
        return _note(figures, waits)

    async def floor(self, figures: _Figures) -> float:
        """One round in which all are only woken."""
        workers, began = self._workers, time.monotonic()
        for worker in workers:
            worker.tell("wake")
        await asyncio.sleep(_SERVING / 4)
        answers = await self._reports(workers)
        return _note(figures, [answer["served"] - began for answer in answers])

    async def _reports(self, workers: list[_Worker]) -> list[dict[str, Any]]:
        for worker in workers:
            worker.tell("report")
        return await asyncio.gather(*(worker.answer() for worker in workers))


def _note(figures: _Figures, waits: list[float]) -> float:
    figures.median.append(statistics.median(waits))
    figures.last.append(max(waits))
    return max(waits)


@contextlib.asynccontextmanager
async def _experiment(size: int, urls: dict[str, str]) -> AsyncIterator[_Experiment]:
    async with Server(lifetime=LIFETIME, auth="basic") as server, contextlib.AsyncExitStack() as stack:
        credentials = {
            name: server.credentials | {"refresh_token": await server.new_credential()} for name in urls
        }
        forks, workers = fork_server("-c", _PROGRAM), []
        for _ in range(size):
            ours, theirs = socket.socketpair()
            with theirs:
                pid = forks.start({"stores": urls, "credentials": credentials}, theirs)
            stack.callback(forks.signal, "kill", pid)
            lines, writer = await asyncio.open_connection(sock=ours)
            stack.callback(writer.transport.abort)
            workers.append(_Worker(lines, writer))
        for worker in workers:
            worker.tell("report")
            await worker.answer()
        yield _Experiment(server, workers)


async def measure(sizes: list[int], rounds: int, names: Sequence[str] = STORES) -> Result:
    """All stores and sizes in turn, for this many rounds."""
    result = Result("processes")
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        urls, trips = {}, {}
        for name in names:
            if name not in REMOTE:
                urls[name] = local_url(name, directory)
                continue
            try:
                server = stack.enter_context(remote(name, fsync=True))
            except NotInstalled as missing:
                result.rows.append({"store": name, "cannot": str(missing)})
                continue
            urls[name] = server.url()
            trips[name] = await stack.enter_async_context(round_trip(server, 100))
        all_figures = {(name, size): _Figures() for size in sizes for name in (*urls, "floor")}
        times: dict[str, list[float]] = {name: [] for name in trips}
        for size in sizes:  # no more processes than that: each that listens would be woken
            async with _experiment(size, urls) as experiment:
                contestants = {
                    name: partial(experiment.expire, name, all_figures[name, size]) for name in urls
                }
                contestants["floor"] = partial(experiment.floor, all_figures["floor", size])
                contestants |= {f"{name}, round trip": trip for name, trip in trips.items()}
                found = await interleaved(contestants, rounds, progress=progress(f"processes, {size}"))
                for name in trips:
                    times[name] += found[f"{name}, round trip"]
    for figures in all_figures.values():  # drop the warm-up round, which fetched the first token
        del figures.median[:-rounds], figures.last[:-rounds]
    result.rows += [figures.row(name, size) for (name, size), figures in all_figures.items()]
    result.rows += [{"server": name, "one bare round trip, ms": _ms(times[name])} for name in trips]
    result.series = {
        "x": sizes,
        "lines": {
            f"{name}, {what}": [
                1000 * statistics.median(getattr(all_figures[name, size], what)) for size in sizes
            ]
            for name in (*urls, "floor")
            for what in ("median", "last")
        },
        "unit": "ms",
    }
    result.goals = [*_counts(all_figures), *_times(all_figures, times)]
    result.notes = [
        "From the token's arrival (the response is there, nothing is stored yet) to each waiter served.",
        "cpu: the share of one processor that one waiter uses while it waits.",
        "floor: a line written into a socket of each process.",
    ]
    return result


def _counts(all_figures: dict[tuple[str, int], _Figures]) -> list[Goal]:
    redeeming = [figures for figures in all_figures.values() if figures.requests]
    rounds = sum(len(figures.requests) for figures in redeeming)
    requests = sum(sum(figures.requests) for figures in redeeming)
    reuse = sum(figures.reuse for figures in redeeming)
    found = f"{requests} in {rounds} rounds; reuse detected {reuse} times"
    return [
        Goal(
            "token requests",
            "1 a round, none reused",
            found,
            not any(figures.broken for figures in redeeming),
        )
    ]


def _times(all_figures: dict[tuple[str, int], _Figures], trips: dict[str, list[float]]) -> list[Goal]:
    goals = []
    for store, limit in LIMITS.items():
        figures = all_figures.get((store, 32))
        if figures is not None:
            last = statistics.median(figures.last)
            trip = f"; one bare round trip {_ms(trips[store])['median']:.2g} ms" if store in trips else ""
            goals.append(
                Goal(
                    f"{store}: the last of 32",
                    f"<= {1000 * limit:.0f} ms",
                    f"{1000 * last:.1f} ms{trip}",
                    last <= limit,
                )
            )
    return goals


def main(arguments: list[str]) -> int:
    """Measure, print, save. Returns 1 if a token was requested twice."""
    parser = command.parser("processes", __doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 8, 32, 64], metavar="P")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--stores", nargs="+", default=STORES, choices=("file", "sqlite", *REMOTE), help="all but pgbouncer"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.processes, options.rounds = [4], 1
    result = asyncio.run(measure(options.processes, options.rounds, options.stores))
    command.finish(result, arguments, quick=options.quick)
    return 0 if result.goals[0].met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
