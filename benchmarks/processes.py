"""Processes that share a store find their token expired at the same moment: how soon is each served?

One process makes the token request; the others wait for what it stores. Measured is the time from the
token's *arrival* (the holder has its reply, and has stored nothing yet) until `await source.token()`
returns in each waiter: for the median waiter and for the last one. Real processes, one store, a server
that rotates refresh tokens and notices reuse. All read CLOCK_MONOTONIC, which one machine's processes share.

A round: the server holds token requests; each process is told that so much time has passed that its
token has expired (its source's clock is set forward; the store's is not) and asks for a token; when one
has reached the server and all others wait, they are left to wait a while, as
for a real provider; then the server answers. Nobody says anything until the round is over, for with
two processors to share every message would be in the way of what is measured.

The floor beside it is the time in which this machine wakes so many event loops at all: this process writes
a line into a socket of each.

What it does not show: hosts that share a store, and processes that have a processor each. `cpu` is the
share of one processor that one waiter takes while it waits, its start included.

`series`: {"x": [processes], "lines": {"file, last": [...], "file, median": [...], "sqlite, last": [...],
..., "floor, last": [...]}, "unit": "ms"}, medians of the rounds.
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
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tokensession import AiohttpTransport, ManagedSource, Policy
from tokensession.clock import SystemClock
from tokensession.providers import OAuth2
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.stores import open_store
from tokensession.testing.conformance.peer import nursery, rear

from .harness import command
from .harness.results import Goal, Result, progress
from .harness.rounds import interleaved, spread
from .harness.server import Server

STORES = ("file", "sqlite")
LIMIT = 0.025  # seconds; the last of 32 must be served in them
LIFETIME = 3600

_ROOT = str(Path(__file__).parents[1])
_PROGRAM = f"""
import sys
sys.path.insert(0, {_ROOT!r})
from benchmarks.processes import nurse
nurse(int(sys.argv[1]))
"""
_HELD = 0.15  # seconds that everybody waits at least: by then the pauses between two looks are the longest
_QUIET = 0.2  # seconds without a message, in which all are served


# -- a worker process -----------------------------------------------------------------------------


class _Ahead(SystemClock):
    """So many seconds ahead of the machine's clocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wall(self) -> float:  # type: ignore[override]
        return time.time() + self.seconds

    def boot(self) -> float:  # type: ignore[override]
        return time.monotonic() + self.seconds


class _Transport:
    """The usual one; it notes when its last reply was there."""

    def __init__(self) -> None:
        self._transport = AiohttpTransport()
        self.arrived: float | None = None

    async def send(self, request: TokenRequest, *, connect: float, total: float) -> TokenResponse:
        token_response = await self._transport.send(request, connect=connect, total=total)
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


async def _live(fd: int, setup: dict[str, Any]) -> None:
    """One process with one source per store, told what to do line by line."""
    lines, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    clock, transport = _Ahead(), _Transport()
    stores = {name: open_store(url) for name, url in setup["stores"].items()}
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
            case "hear":  # and say nothing until the report
                answer = {"served": now}
                continue
            case "report" if work is not None:
                answer = await work | {"arrived": transport.arrived}
                work = None
        writer.write(json.dumps(answer).encode() + b"\n")


def nurse(fd: int) -> None:
    """Be the parent of the workers: imported once, forked often."""
    gc.freeze()  # what the children share with their parent stays shared
    rear(socket.socket(fileno=fd), _live)


# -- the experiment -------------------------------------------------------------------------------


class _Worker:
    """The remote control of one of them."""

    def __init__(self, lines: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines = lines
        self._writer = writer

    def tell(self, do: str, **order: Any) -> None:
        self._writer.write(json.dumps({"do": do, **order}).encode() + b"\n")

    async def answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self._lines.readline())
        return answer


@dataclass(slots=True)
class _Book:
    """What was seen of one contestant: a store and a number of processes. Times in seconds."""

    median: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    reuse: int = 0
    tokens: int = 0  # rounds in which not all had one and the same token

    def row(self, who: str, processes: int) -> dict[str, Any]:
        row: dict[str, Any] = {"store": who, "processes": processes}
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
        return self.reuse > 0 or self.tokens > 0 or any(number != 1 for number in self.requests)


def _ms(seconds: list[float]) -> dict[str, float]:
    return spread([1000 * second for second in seconds]).as_json()


class _Scene:
    """The server, the workers, and the time that they take it to be."""

    def __init__(self, server: Server, workers: list[_Worker]) -> None:
        self._server = server
        self._workers = workers
        self._ahead = 0

    async def expire(self, store: str, processes: int, book: _Book) -> float:
        """One round; the last waiter's time."""
        workers, before = self._workers[:processes], await self._server.stats()
        self._ahead += 2 * LIFETIME
        await self._server.hold()
        for worker in workers:
            worker.tell("expire", store=store, ahead=self._ahead)
        await asyncio.gather(*(worker.answer() for worker in workers))
        await self._server.reached()
        await asyncio.sleep(_HELD + random.random() * 0.025)
        await self._server.release()
        await asyncio.sleep(_QUIET)
        answers = await self._reports(workers)
        after = await self._server.stats()
        arrived = max(answer["arrived"] or 0.0 for answer in answers)
        waits = [answer["served"] - arrived for answer in answers if answer["arrived"] is None]
        book.requests.append(after["token_requests"] - before["token_requests"])
        book.reuse += after["reuse_detections"] - before["reuse_detections"]
        book.tokens += len({answer["token"] for answer in answers}) != 1
        book.cpu.extend(answer["cpu"] for answer in answers if answer["arrived"] is None)
        return _noted(book, waits)

    async def floor(self, processes: int, book: _Book) -> float:
        """One round in which they are all just woken."""
        workers, began = self._workers[:processes], time.monotonic()
        for worker in workers:
            worker.tell("hear")
        await asyncio.sleep(_QUIET / 4)
        answers = await self._reports(workers)
        return _noted(book, [answer["served"] - began for answer in answers])

    async def _reports(self, workers: list[_Worker]) -> list[dict[str, Any]]:
        for worker in workers:
            worker.tell("report")
        return await asyncio.gather(*(worker.answer() for worker in workers))


def _noted(book: _Book, waits: list[float]) -> float:
    book.median.append(statistics.median(waits))
    book.last.append(max(waits))
    return max(waits)


@contextlib.asynccontextmanager
async def _scene(most: int, directory: str) -> AsyncIterator[_Scene]:
    urls = {"file": f"file://{directory}/tokens", "sqlite": f"sqlite:///{directory}/tokens.db"}
    async with Server(lifetime=LIFETIME) as server, contextlib.AsyncExitStack() as stack:
        credentials = {
            name: server.credentials | {"refresh_token": await server.new_credential()} for name in STORES
        }
        home, workers = nursery("-c", _PROGRAM), []
        for _ in range(most):
            ours, theirs = socket.socketpair()
            with theirs:
                pid = home.start({"stores": urls, "credentials": credentials}, theirs)
            stack.callback(home.signal, "kill", pid)
            lines, writer = await asyncio.open_connection(sock=ours)
            stack.callback(writer.transport.abort)
            workers.append(_Worker(lines, writer))
        for worker in workers:
            worker.tell("report")
            await worker.answer()
        yield _Scene(server, workers)


async def measure(sizes: list[int], rounds: int) -> Result:
    """All stores and sizes in turn, so many rounds."""
    books = {(who, size): _Book() for size in sizes for who in (*STORES, "floor")}
    with tempfile.TemporaryDirectory() as directory:
        async with _scene(max(sizes), directory) as scene:
            await interleaved(
                {
                    f"{who} {size}": partial(scene.floor, size, book)
                    if who == "floor"
                    else partial(scene.expire, who, size, book)
                    for (who, size), book in books.items()
                },
                rounds,
                progress=progress("processes"),
            )
    for book in books.values():  # without the warm-up round, in which the first token was fetched
        del book.median[:-rounds], book.last[:-rounds]
    result = Result("processes")
    result.rows = [book.row(who, size) for (who, size), book in books.items()]
    result.series = {
        "x": sizes,
        "lines": {
            f"{who}, {what}": [1000 * statistics.median(getattr(books[who, size], what)) for size in sizes]
            for who in (*STORES, "floor")
            for what in ("median", "last")
        },
        "unit": "ms",
    }
    result.goals = [*_counts(books), *_times(books)]
    result.notes = [
        "From the token's arrival (the holder has its reply, nothing is stored yet) to each waiter served.",
        "cpu: the share of one processor that one waiter takes while it waits.",
        "floor: a line written into a socket of each process.",
    ]
    return result


def _counts(books: dict[tuple[str, int], _Book]) -> list[Goal]:
    kept = [book for book in books.values() if book.requests]
    rounds = sum(len(book.requests) for book in kept)
    requests = sum(sum(book.requests) for book in kept)
    reuse = sum(book.reuse for book in kept)
    found = f"{requests} in {rounds} rounds; reuse detected {reuse} times"
    return [Goal("token requests", "1 a round, none reused", found, not any(book.broken for book in kept))]


def _times(books: dict[tuple[str, int], _Book]) -> list[Goal]:
    goals = []
    for store in STORES:
        book = books.get((store, 32))
        if book is not None:
            last = statistics.median(book.last)
            goals.append(
                Goal(
                    f"{store}: the last of 32",
                    f"<= {1000 * LIMIT:.0f} ms",
                    f"{1000 * last:.1f} ms",
                    last <= LIMIT,
                )
            )
    return goals


def main(arguments: list[str]) -> int:
    """The exit status: 1 if a token was requested twice."""
    parser = command.parser("processes", __doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 8, 32, 64], metavar="P")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args(arguments)
    if options.quick:
        options.processes, options.rounds = [4], 1
    result = asyncio.run(measure(options.processes, options.rounds))
    command.finish(result, arguments, quick=options.quick)
    return 0 if result.goals[0].met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
