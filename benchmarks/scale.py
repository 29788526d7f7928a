"""What a token's expiry costs a server: commands and bytes, for one to a thousand clients that wait.

A client is a process with a store of its own, however many callers it has: they share one wait. Here all
clients are in one process, each with a store object and connections of its own. One more client holds the
claim for a second, as for a token request, and commits; every other one waits for the claim from the
beginning to the end, and gets the new record. All connections are there before, so connecting is not counted.

`commands` are those that the server got from clients: a script is one. Redis counts them itself. Postgres
logs every statement, and the lines are counted. Bytes are those of TCP, as the kernel counts them in each
socket, without headers.

A waiter is woken by a message, and looks by itself every half second. So a longer token request costs two
commands a second and client more. `polling` is Postgres without LISTEN, as behind a pooler: a waiter looks
every 50 ms. A thousand of them would look 20,000 times a second, which this one process cannot, so a hundred
are the most.

Not measured: times. A thousand clients of one process would wait for that process.

`series`: {"x": [clients], "lines": {"redis, commands": [...], "redis, bytes": [...], ...}}.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from tokensession import StoreUnavailable
from tokensession.stores import Record, Store, open_store

from .harness import command
from .harness.results import Result, progress
from .servers import NotInstalled, PostgresServer, RedisServer

NAMES = ("redis", "postgres", "polling")
SIZES = (1, 10, 100, 1000)
DATA = b"x" * 700
"""About the size of a record with two tokens."""

_MOST = {"polling": 100}  # clients that one process can play
_AT_ONCE = 50  # clients that connect at the same time
_SETTLED = 0.3  # seconds
_BYTES = struct.Struct("=120xQQ")  # of `struct tcp_info`: acknowledged and received, without what follows
_IN_SCRIPTS = {"hget", "hmget", "hset", "hdel", "hexists", "time", "publish"}
_POSTGRES = "max_connections = 4400\nlog_statement = 'all'\nlog_min_messages = log\n"


class _RedisMeter:
    """A Redis server that counts commands."""

    def __init__(self) -> None:
        self.server = RedisServer("redis")

    def url(self) -> str:
        return self.server.url()

    def commands(self) -> int:
        stats: dict[str, dict[str, Any]] = self.server.call("INFO", "commandstats")
        names = {name: name.removeprefix("cmdstat_").partition("|")[0] for name in stats}
        ignored = _IN_SCRIPTS | {"info"}
        return sum(int(stats[name]["calls"]) for name, known in names.items() if known not in ignored)


class _PostgresMeter:
    """A Postgres server that logs commands."""

    def __init__(self, **options: object) -> None:
        self.server = PostgresServer(settings=_POSTGRES)
        self._options = options

    def url(self) -> str:
        return self.server.store_url(**self._options)

    def commands(self) -> int:
        text = self.server.log.read_text(errors="replace")
        return text.count("LOG:  execute ") + text.count("LOG:  statement: ")


_Meter: TypeAlias = _RedisMeter | _PostgresMeter
_METERS: dict[str, Callable[[], _Meter]] = {
    "redis": _RedisMeter,
    "postgres": _PostgresMeter,
    "polling": lambda: _PostgresMeter(listen="false"),
}


def _traffic(port: int) -> dict[object, tuple[int, int]]:
    """The bytes that each of our sockets has sent to this port, and received from it."""
    found: dict[object, tuple[int, int]] = {}
    for entry in Path("/proc/self/fd").iterdir():
        if not entry.is_socket():
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as ours:
            if ours.getpeername()[1:2] == (port,):
                info = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES.size)
                found[ours.getsockname()] = _BYTES.unpack(info)
    return found


def _since(before: dict[object, tuple[int, int]], after: dict[object, tuple[int, int]]) -> list[int]:
    """The bytes sent and received since then, by the sockets that are still there."""
    return [
        sum(count[way] - before.get(ours, (0, 0))[way] for ours, count in after.items()) for way in (0, 1)
    ]


async def _quiet(port: int) -> None:
    """Wait until nothing more arrives."""
    before: object = None
    while before != (before := _traffic(port)):  # noqa: ASYNC110 - the kernel has no event for it
        await asyncio.sleep(_SETTLED)


async def _wait(store: Store, seen: str | None) -> Record:
    found = await store.claim("k", seen=seen, timeout=60)
    assert isinstance(found, Record), "the holder has not committed"
    return found


async def _expiry(holder: Store, waiters: list[Store], seconds: float) -> None:
    """One expiry: one client refreshes, the others wait."""
    record = await holder.load("k")
    seen = None if record is None else record.version
    claim = await holder.claim("k", seen=seen, timeout=60)
    assert not isinstance(claim, Record), "there is no other writer"
    waiting = [asyncio.ensure_future(_wait(store, seen)) for store in waiters]
    await asyncio.sleep(0)
    await claim.sending(listening=10)
    await asyncio.sleep(seconds)
    committed = await claim.commit(DATA)
    await asyncio.wait(waiting)
    assert {task.result() for task in waiting} == {committed}


async def _counted(
    meter: _Meter, holder: Store, waiters: list[Store], seconds: float
) -> tuple[int, list[int]]:
    """The commands and bytes of one expiry. If the machine is too busy for the stores, it is repeated."""
    for last in (False, False, True):
        commands, traffic = meter.commands(), _traffic(meter.server.port)
        try:
            await _expiry(holder, waiters, seconds)
        except StoreUnavailable:
            if last:
                raise
            await _quiet(meter.server.port)
            continue
        await _quiet(meter.server.port)
        break
    return meter.commands() - commands, _since(traffic, _traffic(meter.server.port))


async def _measured(name: str, sizes: list[int], seconds: float, progress: Any) -> list[dict[str, Any]]:
    meter, rows = _METERS[name](), []
    most = _MOST.get(name, max(sizes))
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(meter.server)
        url, waiters = meter.url(), list[Store]()

        def opened() -> Store:
            store = open_store(url)
            stack.push_async_callback(store.aclose)
            return store

        holder = opened()
        for size in (size for size in sizes if size <= most):
            more = [opened() for _ in range(size - len(waiters))]
            for start in range(0, len(more), _AT_ONCE):  # connects all that a waiter needs
                await _expiry(holder, more[start : start + _AT_ONCE], _SETTLED)
            waiters += more
            await _quiet(meter.server.port)
            commands, (sent, received) = await _counted(meter, holder, waiters, seconds)
            rows.append(
                {
                    "store": name,
                    "clients": size,
                    "commands": commands,
                    "commands a client": commands / size,
                    "bytes to the server": sent,
                    "bytes from it": received,
                    "bytes a client": (sent + received) / size,
                }
            )
            progress(len(rows), len(sizes))
    return rows


@contextlib.contextmanager
def _many_files() -> Iterator[None]:
    """As many sockets as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def measure(names: list[str], sizes: list[int], seconds: float) -> Result:
    """One expiry for each store and number of clients."""
    result = Result("scale")
    for name in names:
        try:
            result.rows += await _measured(name, sizes, seconds, progress(f"scale, {name}"))
        except NotInstalled as missing:
            result.rows.append({"store": name, "cannot": str(missing)})
    measured = [row for row in result.rows if "commands" in row]
    result.series = {
        "x": sizes,
        "lines": {
            f"{name}, {what}": [
                sum(row[column] for column in columns) for row in measured if row["store"] == name
            ]
            for name in dict.fromkeys(row["store"] for row in measured)
            for what, columns in (
                ("commands", ("commands",)),
                ("bytes", ("bytes to the server", "bytes from it")),
            )
        },
    }
    result.notes = [
        f"One expiry: the claim is held for {seconds:g} s, and all clients wait for it.",
        "The holder's own commands are among them: load, claim, mark, commit, and a renewal every 3.3 s.",
        "polling: Postgres without LISTEN.",
    ]
    return result


def main(arguments: list[str]) -> int:
    """Count, print, save."""
    parser = command.parser("scale", __doc__)
    parser.add_argument("--stores", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--clients", type=int, nargs="+", default=SIZES, metavar="N", help="in rising order")
    parser.add_argument("--seconds", type=float, default=1.0, help="that the token request takes (1)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.clients, options.seconds = [1, 4], 0.1
    with _many_files():
        result = asyncio.run(measure(list(options.stores), sorted(options.clients), options.seconds))
    command.finish(result, arguments, quick=options.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
