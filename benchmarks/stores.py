"""What a store costs, next to the least that its medium allows.

For each store:

* `load`: `await store.load(key)`.
* `claim + commit`: take the claim, and store a record of 700 bytes durably.
* `hand-over, same process`: from the call of `commit` until a task that waits for the claim has the new
  record. The task uses its own store object, unless the store is memory.
* `hand-over, other process`: the same for a waiter in another process, which answers through a socket.

The floor is the least work that the medium needs, timed inside one thread, so without a thread hop. For the
file store: read one file; or write one, fsync it, rename it and fsync the directory. For SQLite: one SELECT;
or one BEGIN IMMEDIATE ... COMMIT with journal_mode=TRUNCATE and synchronous=EXTRA. For memory: an `async def`
that reads or sets an entry of a dict. The hop is `await asyncio.to_thread(nothing)`; next to it is the
store's own hop, to its one thread.

Also measured: the same commit in a database with a write-ahead log. It costs less, and is lost if another
part of the program opens and closes the file. And what a claim does so that a commit will not find the disk
full: it reserves 64 KiB in a file and frees them. This is not in the floor, but in the figures of both
stores.

A round takes each of them once, in turn. The bound of a round is 2 x floor + hop, both of that same round
(for memory, which needs no thread, 2 x floor); `of bound` is the median of the rounds' ratios. Hand-overs
have no such bound, because a waiter polls.

A store on a server (on this machine; Redis and Valkey with `appendfsync everysec`, Postgres with `fsync`)
has one row more, `claim + mark + commit`: what a refresh does. Its floor is one bare round trip with the same
driver, PING or SELECT 1. For Redis and Valkey the bound of that row is four of them and 0.1 ms; the other
rows of servers have none. Behind pgbouncer, waiters poll every 50 ms.

Not measured: servers on other machines, and other disks. If others write to the disk, this shows mostly
them. On a file system in memory, where fsync does nothing, it shows what the code takes.

`series`: {"x": ["memory", "file", "sqlite", ...], "lines": {"load": [...], "load, bound": [...],
"claim + commit": [...], "claim + commit, bound": [...], "hand-over, same process": [...], ...},
"unit": "us"}: medians, or None if there is no figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokensession.stores import MemoryStore, Record, Store, open_store
from tokensession.stores._local.worker import Worker
from tokensession.stores.protocol import Claim
from tokensession.testing.conformance.peer import Peer

from .harness import command
from .harness.results import Goal, Result, progress
from .harness.rounds import interleaved, ratios, spread
from .servers import REMOTE, NotInstalled, RedisServer, remote
from .servers.round_trip import round_trip

NAMES = ("memory", "file", "sqlite", *REMOTE)
ROUND_TRIPS, MORE = 4, 0.0001
"""The bound of a claim, a mark and a commit on Redis: round trips, and seconds."""
DATA = b"x" * 700
"""About the size of a record with two tokens."""

Contestant = Callable[[], Awaitable[float]]

_SETTLED = 0.05  # seconds: by then the waiter has tried the claim


# -- floors -----------------------------------------------------------------------------------------


def _nothing() -> None:
    pass


async def _in_thread(work: Callable[[], object], times: int) -> float:
    """Seconds that the work takes in another thread, without the hop."""

    def timed() -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - began) / times

    return await asyncio.to_thread(timed)


async def _awaited(work: Callable[[], Awaitable[object]], times: int) -> float:
    """Seconds that the work takes, awaited here."""
    began = time.perf_counter()
    for _ in range(times):
        await work()
    return (time.perf_counter() - began) / times


class _Reserve:
    """The space that a claim reserves and a commit frees."""

    def __init__(self, directory: str) -> None:
        self._fd = os.open(Path(directory) / "reserve", os.O_RDWR | os.O_CREAT, 0o600)

    def take(self) -> None:
        os.posix_fallocate(self._fd, 4096, 65_536)
        os.ftruncate(self._fd, 128)
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        os.close(self._fd)


class _FileFloor:
    """One private file, replaced durably."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._path, self._temporary = self._directory / "floor", self._directory / "floor.tmp"
        self.write()

    def read(self) -> bytes:
        with self._path.open("rb", buffering=0) as file:
            return file.read()

    def write(self) -> None:
        fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, DATA)
        os.fsync(fd)
        os.close(fd)
        self._temporary.replace(self._path)
        fd = os.open(self._directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


class _SQLiteFloor:
    """One row of a table, replaced durably."""

    def __init__(self, directory: str, journal: str = "TRUNCATE", synchronous: str = "EXTRA") -> None:
        self._connection = sqlite3.connect(
            Path(directory) / f"floor-{journal}.db", isolation_level=None, check_same_thread=False
        )
        self._connection.execute(f"PRAGMA journal_mode = {journal}").fetchall()
        self._connection.execute(f"PRAGMA synchronous = {synchronous}").fetchall()
        self._connection.execute("CREATE TABLE tokens (key TEXT PRIMARY KEY, version TEXT, data BLOB)")
        self.write()

    def read(self) -> object:
        return self._connection.execute("SELECT version, data FROM tokens WHERE key = 'k'").fetchall()

    def write(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(
            "INSERT INTO tokens VALUES ('k', ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET version = excluded.version, data = excluded.data",
            (os.urandom(16).hex(), DATA),
        )
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


class _MemoryFloor:
    """An entry of a dict."""

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}

    async def read(self) -> bytes | None:
        return self._records.get("k")

    async def write(self) -> None:
        self._records["k"] = DATA


# -- stores -----------------------------------------------------------------------------------------


async def _claimed(store: Store, record: Record | None) -> Claim:
    claim = await store.claim("k", seen=_seen(record), timeout=60)
    assert not isinstance(claim, Record), "there is no other writer"
    return claim


def _seen(record: Record | None) -> str | None:
    return None if record is None else record.version


async def _cost_of_commits(store: Store, times: int, *, mark: bool = False) -> float:
    """Seconds of a claim and its commit, with a mark if it is wanted. The loads between are not counted."""
    spent = 0.0
    for _ in range(times):
        record = await store.load("k")
        began = time.perf_counter()
        claim = await _claimed(store, record)
        if mark:
            await claim.sending(listening=10)
        await claim.commit(DATA)
        spent += time.perf_counter() - began
    return spent / times


async def _hand_over(store: Store, wait: Callable[[str | None], Awaitable[Any]]) -> float:
    """Seconds from the call of commit until `wait`, which started before, returns."""
    record = await store.load("k")
    claim = await _claimed(store, record)
    waiting = asyncio.ensure_future(_until(wait(_seen(record))))
    await asyncio.sleep(_SETTLED)
    began = time.perf_counter()
    await claim.commit(DATA)
    return await waiting - began


async def _until(work: Awaitable[Any]) -> float:
    await work
    return time.perf_counter()


async def _wait_here(store: Store, seen: str | None) -> None:
    await store.claim("k", seen=seen, timeout=60)


async def _wait_there(peer: Peer, seen: str | None) -> None:
    await asyncio.to_thread(peer.ask, "claim", key="k", seen=seen)


# -- the experiment ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _contestants(
    directory: str, times: int, names: Sequence[str], missing: dict[str, str]
) -> AsyncIterator[dict[str, Contestant]]:
    memory, worker = MemoryStore(), Worker("benchmark")
    contestants: dict[str, Contestant] = {
        "hop": partial(_awaited, partial(asyncio.to_thread, _nothing), times),
        "own hop": partial(_awaited, partial(worker.run, _nothing), times),
    }

    def opened(url: str) -> Store:
        store = open_store(url)
        stack.push_async_callback(store.aclose)
        return store

    async def add_shared(name: str, url: str) -> Store:
        store, other = opened(url), opened(url)
        peer = stack.enter_context(Peer(url))
        await store.put("k", DATA)
        add(name, store, other)
        contestants[f"{name}, hand-over, other process"] = partial(
            _hand_over, store, partial(_wait_there, peer)
        )
        return store

    def add(name: str, store: Store, other: Store) -> None:
        contestants[f"{name}, load"] = partial(_awaited, partial(store.load, "k"), times)
        contestants[f"{name}, claim + commit"] = partial(_cost_of_commits, store, times)
        contestants[f"{name}, hand-over, same process"] = partial(
            _hand_over, store, partial(_wait_here, other)
        )

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(worker.aclose, _nothing)
        add("memory", memory, memory)
        in_memory = _MemoryFloor()
        contestants["memory, load, floor"] = partial(_awaited, in_memory.read, times)
        contestants["memory, claim + commit, floor"] = partial(_awaited, in_memory.write, times)
        in_database, with_log = _SQLiteFloor(directory), _SQLiteFloor(directory, "WAL", "FULL")
        reserve = _Reserve(directory)
        stack.callback(in_database.close)
        stack.callback(with_log.close)
        stack.callback(reserve.close)
        contestants["reserve"] = partial(_in_thread, reserve.take, times)
        contestants["commit with a log"] = partial(_in_thread, with_log.write, times)
        for name, url, floor in (
            ("file", f"file://{directory}/tokens", _FileFloor(directory)),
            ("sqlite", f"sqlite:///{directory}/tokens.db", in_database),
        ):
            await add_shared(name, url)
            contestants[f"{name}, load, floor"] = partial(_in_thread, floor.read, times)
            contestants[f"{name}, claim + commit, floor"] = partial(_in_thread, floor.write, times)
        for name in names:
            try:
                found = stack.enter_context(remote(name, fsync=True))
            except NotInstalled as reason:
                missing[name] = str(reason)
                continue
            options = {"listen": "false"} if name == "pgbouncer" else {}
            await add_shared(name, found.url(**options))
            store = opened(found.url(**options))  # alone: no one listens to what it commits
            await store.put("k", DATA)
            contestants[f"{name}, load"] = partial(_awaited, partial(store.load, "k"), times)
            contestants[f"{name}, claim + commit"] = partial(_cost_of_commits, store, times)
            contestants[f"{name}, claim + mark + commit"] = partial(_cost_of_commits, store, times, mark=True)
            trip = await stack.enter_async_context(round_trip(found, 5 * times))
            contestants[f"{name}, one bare round trip"] = trip
        yield contestants


async def measure(rounds: int, times: int, directory: str | None, servers: Sequence[str] = REMOTE) -> Result:
    """`rounds` rounds. In each, every operation except the hand-overs runs `times` times in a row."""
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=directory) as place:
        async with _contestants(place, times, servers, missing) as contestants:
            figures = await interleaved(contestants, rounds, progress=progress("stores"))
    result = Result("stores")
    for name in NAMES:
        if name not in REMOTE:
            for what in ("load", "claim + commit"):
                result.rows.append(_bounded(name, what, figures, result.goals))
        elif f"{name}, load" in figures:
            result.rows += _over_a_server(name, figures, result.goals)
        for what in ("hand-over, same process", "hand-over, other process"):
            found = figures.get(f"{name}, {what}")
            if found is not None:
                result.rows.append({"store": name, "what": what, "us": _us(found)})
    for hop in ("hop", "own hop"):
        result.rows.append({"store": "thread", "what": hop, "us": _us(figures[hop])})
    for what in ("reserve", "commit with a log"):
        result.rows.append({"store": "disk", "what": what, "us": _us(figures[what])})
    result.rows += [{"store": name, "cannot": reason} for name, reason in missing.items()]
    cost = ratios(figures["sqlite, claim + commit, floor"], figures["commit with a log"])
    result.series = _series(result.rows)
    result.notes = [
        "Bound: 2 x floor + one thread hop, of the same round; for memory 2 x floor.",
        f"SQLite's own commit, journal_mode=TRUNCATE and synchronous=EXTRA: {cost} times that with a log.",
    ]
    return result


def _bounded(name: str, what: str, figures: dict[str, list[float]], goals: list[Goal]) -> dict[str, Any]:
    """The row of an operation that has a bound. Adds its goal to `goals`."""
    found, floor = figures[f"{name}, {what}"], figures[f"{name}, {what}, floor"]
    hops = [0.0] * len(floor) if name == "memory" else figures["hop"]
    bound = [2 * least + hop for least, hop in zip(floor, hops, strict=True)]
    ratio = ratios(found, bound)
    goals.append(
        Goal(f"{name}: {what}", "<= 2 x floor + one hop", f"{ratio} of it", ratio.median <= 1)
        if name != "memory"
        else Goal(
            f"{name}: {what}",
            "shown only",
            f"{1e6 * statistics.median(found):.1f} us",
            None,
            "An entry of a dict has no version, no exclusion and no waiters.",
        )
    )
    return {
        "store": name,
        "what": what,
        "us": _us(found),
        "floor us": _us(floor),
        "bound us": 1e6 * statistics.median(bound),
        "of bound": ratio.as_json(),
    }


def _over_a_server(name: str, figures: dict[str, list[float]], goals: list[Goal]) -> list[dict[str, Any]]:
    """The rows of a store on a server. Adds its goal to `goals`."""
    trips = figures[f"{name}, one bare round trip"]
    rows = []
    for what in ("load", "claim + commit", "claim + mark + commit"):
        found = figures[f"{name}, {what}"]
        row: dict[str, Any] = {"store": name, "what": what, "us": _us(found), "floor us": _us(trips)}
        if what == "claim + mark + commit" and name in RedisServer.KINDS:
            bound = [ROUND_TRIPS * trip + MORE for trip in trips]
            ratio = ratios(found, bound)
            row |= {"bound us": 1e6 * statistics.median(bound), "of bound": ratio.as_json()}
            goals.append(
                Goal(
                    f"{name}: {what}",
                    f"<= {ROUND_TRIPS} round trips + {1000 * MORE:g} ms",
                    f"{1e6 * statistics.median(found):.0f} us, {ratio} of it; "
                    f"one bare round trip {1e6 * statistics.median(trips):.0f} us",
                    ratio.median <= 1,
                )
            )
        rows.append(row)
    return rows


def _us(seconds: list[float]) -> dict[str, float]:
    return spread([1e6 * second for second in seconds]).as_json()


def _series(rows: list[dict[str, Any]]) -> dict[str, Any]:
    lines: dict[str, list[float | None]] = {}
    rows = [row for row in rows if "what" in row]
    names = [name for name in NAMES if any(row["store"] == name for row in rows)]
    for number, name in enumerate(names):
        for row in rows:
            if row["store"] == name:
                lines.setdefault(row["what"], [None] * len(names))[number] = row["us"]["median"]
                if "bound us" in row:
                    lines.setdefault(f"{row['what']}, bound", [None] * len(names))[number] = row["bound us"]
    return {"x": names, "lines": lines, "unit": "us"}


def main(arguments: list[str]) -> int:
    """Measure, print, save."""
    parser = command.parser("stores", __doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--times", type=int, default=20, help="operations in a row")
    parser.add_argument(
        "--directory", help="where to make the files (default: the system's temporary directory)"
    )
    parser.add_argument(
        "--servers", nargs="*", default=REMOTE, choices=REMOTE, help="beside memory, file and SQLite (all)"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.times = 2, 3
    result = asyncio.run(measure(options.rounds, options.times, options.directory, options.servers))
    command.finish(result, arguments, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
