"""What a session costs on top of raw aiohttp: `python -m benchmarks overhead`.

GET requests of a few bytes, over loopback, to a server in its own process. The token is fresh all the time.
First one request after the other, then 100 tasks at once over 100 connections.

A round is some dozens of GETs of each contestant (hundreds, with 100 tasks), forwards and backwards in turn.
The session, raw aiohttp with a fixed header (twice), and aiohttp with two middlewares (the smallest possible,
and one from its cookbook) are compared in hundreds of short rounds of their own, so that noise on the machine
hits all of them and the quartiles of the ratio come close to each other. The others, which differ by more,
are compared with raw aiohttp in fewer rounds.

The close contest runs in ten processes, one after the other, in each with the contestants in another order.
For within one process the same client twice differs by up to four per cent, in all of its rounds alike: it
depends on where its memory lies.

- "of raw": requests per second as a part of raw aiohttp's in the same round.
- "CPU": microseconds of this process's processor time per GET, without the server's.
- Latency is that of each single GET, over all rounds. With 100 tasks it is mostly waiting for the processor.

Loopback is the worst case for the overhead. A GET takes about 0.3 ms here; where the network takes 10 ms, the
same microseconds are a thirtieth of the share they are here.

`series`: {"unit": "requests/s", "names": [...], "sequential": {...}, "100 tasks": {...}}, both with
"median", "q1", "q3" (requests per second), "of_raw" (median, or null), "p50" and "p99" (ms), lists in the
order of "names".
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from tokensession import AuthedSession
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore

from .harness import command
from .harness.results import Goal, Result, progress, say
from .harness.rounds import interleaved, percentile, ratios, spread
from .harness.server import Server
from .peers import PEERS, AiohttpCookbook, Peer, RawAiohttp, Tokensession, excuse

__all__ = ["CLOSE", "GOAL", "Size", "main", "measure"]

GOAL = 0.99
_PATH = "/ping"
_PROCESSES = 10
_ROOT = Path(__file__).parents[1]


class _Session(Tokensession):
    """The session with the system's clock. The peer's own clock can be moved, which costs time."""

    async def open(self, stack: AsyncExitStack) -> None:
        session = AuthedSession(OAuth2(**self.credentials), store=MemoryStore())
        self._session = await stack.enter_async_context(session)
        self._source = session.source


class _Again(RawAiohttp):
    """The same once more: how far apart two equal clients are in this run."""

    name = "raw aiohttp, again"


class _Smallest(RawAiohttp):
    """With a middleware that does nothing: what aiohttp itself takes for any middleware."""

    name = "aiohttp, empty middleware"

    async def open(self, stack: AsyncExitStack) -> None:
        await super().open(stack)
        self._client._middlewares = (_nothing,)


async def _nothing(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    return await handler(request)


CLOSE: tuple[type[Peer], ...] = (_Session, RawAiohttp, AiohttpCookbook)
_CLOSE = (*CLOSE, _Smallest, _Again)


@dataclass(frozen=True, slots=True)
class Size:
    """How much: rounds of the close contest and of the others, and GETs in a round of each."""

    rounds: int
    others: int
    gets: int = 40
    tasks: int = 100
    each: int = 3


QUICK = Size(rounds=6, others=2, gets=10, tasks=20, each=2)


@dataclass(slots=True)
class _Figures:
    """Of one contestant: seconds per GET in each round, of each GET, and of the processor in each round."""

    rounds: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def add(self, other: _Figures) -> None:
        self.rounds += other.rounds
        self.latencies += other.latencies
        self.processor += other.processor


@dataclass(slots=True)
class _Entrant:
    """A peer and its figures."""

    peer: Peer
    figures: _Figures = field(default_factory=_Figures)

    async def gets(self, count: int) -> None:
        """This many GETs, one after the other."""
        clock, note, get = time.perf_counter, self.figures.latencies.append, self.peer.get
        for _ in range(count):
            start = clock()
            status = await get(_PATH)
            note(clock() - start)
            if status != 200:
                raise RuntimeError(f"{self.peer.name}: the API answered {status}, not 200.")

    async def round(self, size: Size, tasks: int) -> float:
        """Seconds per GET."""
        count = size.gets if tasks == 1 else tasks * size.each
        start, used = time.perf_counter(), time.process_time()
        if tasks == 1:
            await self.gets(count)
        else:
            await asyncio.gather(*(self.gets(size.each) for _ in range(tasks)))
        took = time.perf_counter() - start
        self.figures.processor.append((time.process_time() - used) / count * 1e6)
        return took / count


_Contest = Mapping[str, _Figures]


async def _contest(
    server: Server, peers: Sequence[type[Peer]], size: Size, tasks: int, rounds: int, title: str
) -> _Contest:
    """Rounds of these peers, each with its own configuration and grant."""
    async with AsyncExitStack() as stack:
        entrants: dict[str, _Entrant] = {}
        for make in peers:
            credentials = server.credentials | {"refresh_token": await server.new_credential()}
            peer = await stack.enter_async_context(make(credentials))
            await peer.prime()
            entrants[make.name] = _Entrant(peer)
            await entrants[make.name].round(size, tasks)  # opens the connections
        for entrant in entrants.values():
            entrant.figures = _Figures()
        contestants = {name: _rounds_of(entrant, size, tasks) for name, entrant in entrants.items()}
        show = _at_quarters(title, rounds) if title else lambda done, total: None
        for name, seconds in (await interleaved(contestants, rounds, warm_up=0, progress=show)).items():
            entrants[name].figures.rounds = seconds
        return {name: entrant.figures for name, entrant in entrants.items()}


def _close_contest(size: Size, tasks: int, title: str) -> _Contest:
    """The rounds of the close contest, spread over several processes."""
    found = {peer.name: _Figures() for peer in _CLOSE}
    processes = min(_PROCESSES, size.rounds)
    show = _at_quarters(title, processes)
    for number in range(processes):
        rounds = size.rounds // processes + (number < size.rounds % processes)
        part = asdict(size) | {"rounds": rounds}
        program = [sys.executable, "-m", "benchmarks.overhead", json.dumps(part), str(tasks), str(number)]
        done = subprocess.run(program, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
        for name, figures in json.loads(done.stdout).items():
            found[name].add(_Figures(**figures))
        show(number + 1, processes)
    return found


async def _in_this_process(size: Size, tasks: int, seed: int) -> _Contest:
    """Some rounds of the close contest, with the contestants in an order of this seed."""
    peers = random.Random(seed).sample(_CLOSE, len(_CLOSE))
    async with Server() as server:
        return await _contest(server, peers, size, tasks, size.rounds, "")


def _rounds_of(entrant: _Entrant, size: Size, tasks: int) -> Callable[[], Awaitable[float]]:
    return lambda: entrant.round(size, tasks)


def _at_quarters(title: str, rounds: int) -> Callable[[int, int], None]:
    show, step = progress(title), max(1, rounds // 4)
    return lambda done, total: show(done, total) if done and done % step == 0 else None


def _row(name: str, how: str, contest: _Contest) -> dict[str, Any]:
    ours, raw = contest[name], contest[RawAiohttp.name]
    rates = [1 / each for each in ours.rounds]
    return {
        "client": name,
        "how": how,
        "requests/s": spread(rates).as_json(),
        "of raw": ratios(raw.rounds, ours.rounds).as_json(),
        "p50 ms": percentile(ours.latencies, 50) * 1000,
        "p99 ms": percentile(ours.latencies, 99) * 1000,
        "CPU us": spread(ours.processor).as_json(),
        "CPU of raw": ratios(ours.processor, raw.processor).as_json(),
    }


def _series(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(row["client"] for row in rows))
    series: dict[str, Any] = {"unit": "requests/s", "names": names}
    for row in rows:
        columns = series.setdefault(
            row["how"], {key: [] for key in ("median", "q1", "q3", "of_raw", "p50", "p99")}
        )
        for key in ("median", "q1", "q3"):
            columns[key].append(row["requests/s"][key])
        columns["of_raw"].append(row["of raw"]["median"])
        columns["p50"].append(row["p50 ms"])
        columns["p99"].append(row["p99 ms"])
    return series


async def measure(size: Size) -> Result:
    """Both ways, all contestants that can take part."""
    result = Result("overhead")
    out = {peer.name: why for peer in PEERS if (why := excuse(peer, "overhead")) is not None}
    others = tuple(
        p for p in PEERS if p.name not in out and (p is RawAiohttp or p not in (Tokensession, *CLOSE))
    )
    async with Server() as server:
        for how, tasks in (("sequential", 1), (f"{size.tasks} tasks", size.tasks)):
            say(f"overhead: {how}")
            close = _close_contest(size, tasks, how)
            rest = await _contest(server, others, size, tasks, size.others, f"{how}, the others")
            result.rows += [_row(name, how, close) for name in close]
            result.rows += [_row(name, how, rest) for name in rest if name != RawAiohttp.name]
            raw = close[RawAiohttp.name].rounds
            found, again = (ratios(raw, close[name].rounds) for name in (Tokensession.name, _Again.name))
            result.goals.append(
                Goal(
                    f"requests per second, {how}",
                    f"at least {GOAL} of raw aiohttp's, which differs from itself by {again.median:.3f}",
                    f"{found.median:.3f} ({found.q1:.3f}-{found.q3:.3f})",
                    found.median >= min(1.0, again.median) - (1 - GOAL),
                )
            )
    result.series = _series(result.rows)
    result.rows += [{"client": name, "how": f"cannot: {why}"} for name, why in out.items()]
    result.notes.append(
        f"Median (quartiles) of {size.rounds} rounds, in {min(_PROCESSES, size.rounds)} processes, of "
        f"{size.gets} GETs in sequence, and as many of {size.tasks} tasks with {size.each} GETs each; the "
        f"others: {size.others}."
    )
    return result


def main(arguments: list[str]) -> int:
    """Measure, print, save."""
    parser = command.parser("overhead", __doc__)
    parser.add_argument("--rounds", type=int, default=400, help="of the close contest (default: %(default)s)")
    parser.add_argument("--others", type=int, default=45, help="rounds of the others (default: %(default)s)")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else Size(options.rounds, options.others)
    result = asyncio.run(measure(size))
    command.finish(result, arguments, quick=options.quick)
    return 0


if __name__ == "__main__":  # one process of the close contest
    _size, _tasks, _seed = sys.argv[1:]
    _found = asyncio.run(_in_this_process(Size(**json.loads(_size)), int(_tasks), int(_seed)))
    print(json.dumps({name: asdict(figures) for name, figures in _found.items()}))
