"""What a session costs on top of raw aiohttp: `python -m benchmarks overhead`.

GET requests of a few bytes, over loopback, to a server in its own process. The token is fresh all the time.
First one request after the other, then 100 tasks at once over 100 connections.

A round is some dozens of GETs of each contestant (hundreds, with 100 tasks), forwards and backwards in turn.
The session, raw aiohttp with a fixed header (twice), and aiohttp with a middleware from its cookbook are
compared in hundreds of short rounds of their own, so that noise on the machine hits all of them and the
quartiles of the ratio come close to each other. The others, which differ by more, are compared with raw
aiohttp in fewer rounds.

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
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

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


class _Session(Tokensession):
    """The session with the system's clock. The peer's own clock can be moved, which costs time."""

    async def open(self, stack: AsyncExitStack) -> None:
        session = AuthedSession(OAuth2(**self.credentials), store=MemoryStore())
        self._session = await stack.enter_async_context(session)
        self._source = session.source


class _Again(RawAiohttp):
    """The same once more: how far apart two equal clients are in this run."""

    name = "raw aiohttp, again"


CLOSE: tuple[type[Peer], ...] = (_Session, RawAiohttp, AiohttpCookbook)


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
class _Entrant:
    """A peer and its figures."""

    peer: Peer
    latencies: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    async def gets(self, count: int) -> None:
        """This many GETs, one after the other."""
        clock, note, get = time.perf_counter, self.latencies.append, self.peer.get
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
        self.processor.append((time.process_time() - used) / count * 1e6)
        return took / count


Contest = Mapping[str, tuple[_Entrant, list[float]]]


async def _contest(
    server: Server, peers: tuple[type[Peer], ...], size: Size, tasks: int, rounds: int, title: str
) -> Contest:
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
            entrant.latencies.clear()
            entrant.processor.clear()
        contestants = {name: _rounds_of(entrant, size, tasks) for name, entrant in entrants.items()}
        figures = await interleaved(contestants, rounds, warm_up=0, progress=_at_quarters(title, rounds))
        return {name: (entrants[name], figures[name]) for name in entrants}


def _rounds_of(entrant: _Entrant, size: Size, tasks: int) -> Callable[[], Awaitable[float]]:
    return lambda: entrant.round(size, tasks)


def _at_quarters(title: str, rounds: int) -> Callable[[int, int], None]:
    show, step = progress(title), max(1, rounds // 4)
    return lambda done, total: show(done, total) if done and done % step == 0 else None


def _row(name: str, how: str, contest: Contest) -> dict[str, Any]:
    entrant, seconds = contest[name]
    raw_entrant, raw = contest[RawAiohttp.name]
    rates = [1 / each for each in seconds]
    return {
        "client": name,
        "how": how,
        "requests/s": spread(rates).as_json(),
        "of raw": ratios(raw, seconds).as_json(),
        "p50 ms": percentile(entrant.latencies, 50) * 1000,
        "p99 ms": percentile(entrant.latencies, 99) * 1000,
        "CPU us": spread(entrant.processor).as_json(),
        "CPU of raw": ratios(entrant.processor, raw_entrant.processor).as_json(),
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
            close = await _contest(server, (*CLOSE, _Again), size, tasks, size.rounds, how)
            rest = await _contest(server, others, size, tasks, size.others, f"{how}, the others")
            result.rows += [_row(name, how, close) for name in close]
            result.rows += [_row(name, how, rest) for name in rest if name != RawAiohttp.name]
            raw = close[RawAiohttp.name][1]
            found, again = (ratios(raw, close[name][1]) for name in (Tokensession.name, _Again.name))
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
        f"Median (quartiles) of {size.rounds} rounds of {size.gets} GETs in sequence, and as many of "
        f"{size.tasks} tasks with {size.each} GETs each; the others: {size.others}."
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
