"""What one cold refresh does, through each store: `python -m benchmarks cold-path [--tree sqlite]`.

A process starts, and its store has a token that has expired: the refresh reads the record, claims the key,
sends one token request, commits and hands the token out. Everything that happens until then is counted:

- *calls*, *functions* and *modules* of tokensession's own code. A coroutine that continues is not a new call;
- *moves*: calls from one of these modules into another. They are what a reader has to follow;
- asyncio *tasks*: those that tokensession makes, and those that aiohttp makes for the token request;
- *hand-overs*: jobs of another thread whose result the event loop waits for;
- *fsyncs* that Python makes, and SQL *statements* and *commits*. SQLite's own fsyncs cannot be seen from
  Python. Under strace there is one for each commit, and two more when it begins its write-ahead log;
- *store calls* and *token requests*.

`--tree` prints the moves of one refresh in order: which module calls into which. Read it from top to bottom.

Calls, functions, modules and moves are shown, and have no limit: less is easier to read, but not by itself
better. The rest costs time, so it has limits, which tests/benchmarks/test_guards.py checks.

One profile function (`sys.setprofile`) sees everything, in the thread of the event loop and in threads that
start after it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import tokensession
from tokensession import ManagedSource
from tokensession.providers import OAuth2
from tokensession.stores import FileStore, MemoryStore, SQLiteStore
from tokensession.stores._local.worker import Worker
from tokensession.stores.protocol import Store

from .harness import command
from .harness.results import Goal, Result
from .harness.server import Server

__all__ = ["LIMITS", "STORES", "Call", "Refresh", "main", "refreshes"]

STORES = ("memory", "file", "sqlite")
LIMITS: dict[str, dict[str, int]] = {
    "memory": {"tasks": 4, "hand-overs": 0, "fsyncs": 0, "commits": 0, "store calls": 4, "token requests": 1},
    "file": {"tasks": 4, "hand-overs": 4, "fsyncs": 2, "commits": 0, "store calls": 4, "token requests": 1},
    "sqlite": {"tasks": 4, "hand-overs": 4, "fsyncs": 0, "commits": 1, "store calls": 4, "token requests": 1},
}
"""The most that one refresh may cost."""

_COUNTED = (
    "tasks",
    "aiohttp's tasks",
    "hand-overs",
    "fsyncs",
    "statements",
    "commits",
    "store calls",
    "token requests",
)
_PACKAGE = str(Path(tokensession.__file__).parent) + os.sep
_STORES = f"{tokensession.__name__}.stores."
_CONTRACT = {"load", "claim", "put", "delete", "keys", "sending", "commit", "abandon"}
_COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}  # not functions to a reader
_CREATE_TASK = asyncio.BaseEventLoop.create_task.__code__
_HAND_BACK = asyncio.BaseEventLoop.call_soon_threadsafe.__code__
_QUEUE_JOB = Worker._queue.__code__
_RUN_JOB = Worker._attempt.__code__
_LIFETIME = 1  # seconds, of the token that has expired


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a function of tokensession. `caller`: the call of ours that led to it, if any.

    `where`: "in a new task", "in a thread" or "by the event loop", if it does not run where its caller does.
    """

    module: str
    function: str
    caller: Call | None
    where: str

    @property
    def moves(self) -> bool:
        """Whether its caller is in another module."""
        return self.caller is None or self.caller.module != self.module

    def origin(self) -> tuple[Call | None, str]:
        """The nearest move that led to it, and `where`, if one of the calls between is somewhere else."""
        if self.caller is None or self.caller.moves:
            return self.caller, self.where
        origin, where = self.caller.origin()
        return origin, self.where or where


@dataclass(slots=True)
class Refresh:
    """What one refresh did: its calls in order, and the other counts by name."""

    calls: list[Call] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def row(self, store: str) -> dict[str, Any]:
        """A line of the table."""
        calls, counts = self.calls, self.counts
        return {
            "store": store,
            "calls": len(calls),
            "functions": len({(call.module, call.function) for call in calls}),
            "modules": len({call.module for call in calls}),
            "moves": sum(call.moves for call in calls),
            **{name: counts[name] for name in _COUNTED},
        }

    def tree(self) -> list[str]:
        """The moves in order, each below the move that led to it. Equal neighbours are one line."""
        below: dict[Call | None, list[tuple[str, Call]]] = {}
        for call in self.calls:
            if call.moves:
                origin, where = call.origin()
                module, function = call.module.removeprefix("tokensession."), call.function
                line = f"{module}: {function.replace('.<locals>', '')}" + (f"  [{where}]" if where else "")
                below.setdefault(origin, []).append((line, call))

        def lines(origin: Call | None) -> list[str]:
            found: list[str] = []
            blocks = [(line, lines(call)) for line, call in below.get(origin, ())]
            for (line, inner), equal in groupby(blocks):
                times = len(list(equal))
                found += [f"{line}  ({times} times)" if times > 1 else line, *(f"  {each}" for each in inner)]
            return found

        return lines(None)


class _Recorder:
    """Sees every call until it is stopped. Use it in one event loop, with a store that has no thread yet."""

    def __init__(self) -> None:
        self.refresh = Refresh()
        self._calls: dict[int, Call] = {}  # by the id of the frame; a new frame replaces a dead one
        self._tasks: dict[asyncio.Task[Any], Call] = {}  # who made it
        self._jobs: dict[int, Call] = {}  # who queued it, by the id of the job; a new job replaces a dead one
        self._connections: set[int] = set()
        self._thread = threading.get_ident()
        self._over = False

    @contextmanager
    def recording(self) -> Iterator[Refresh]:
        """Record in this thread, and in threads that start in this block."""
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        try:
            yield self.refresh
        finally:
            self._over = True  # the other threads still call us
            sys.setprofile(None)
            threading.setprofile(None)

    def _see(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if self._over:
            sys.setprofile(None)
        elif event == "c_call":
            self._count_write(argument)
        elif code is _CREATE_TASK and event == "return":
            self._count_task(frame, argument)
        elif event != "call" or not _begins(frame):
            pass
        elif code is _HAND_BACK:
            self.refresh.counts["hand-overs"] += threading.get_ident() != self._thread
        elif code.co_filename.startswith(_PACKAGE) and code.co_name not in _COMPREHENSIONS:
            call = Call(frame.f_globals["__name__"], code.co_qualname, *self._caller(frame))
            self._calls[id(frame)] = call
            self.refresh.calls.append(call)
            if code is _QUEUE_JOB:
                self._jobs[id(frame.f_locals["job"])] = call
            within = call.caller is not None and call.caller.module.startswith(_STORES)
            if code.co_name in _CONTRACT and call.module.startswith(_STORES) and not within:
                self.refresh.counts["store calls"] += 1

    def _caller(self, frame: FrameType) -> tuple[Call | None, str]:
        """The nearest call of ours that led to this frame, and `Call.where`."""
        if frame.f_code is _RUN_JOB:
            return self._jobs.get(id(frame.f_locals["job"])), "in a thread"
        outer = frame.f_back
        while outer is not None:
            if outer.f_code.co_filename.startswith(_PACKAGE) and (call := self._calls.get(id(outer))):
                return call, ""
            outer = outer.f_back
        if threading.get_ident() != self._thread:
            return None, "in a thread"
        task = asyncio.current_task()
        if task is None:
            return None, "by the event loop"
        caller = self._tasks.get(task)
        return caller, "in a new task" if caller else ""

    def _count_task(self, frame: FrameType, task: asyncio.Task[Any]) -> None:
        maker = frame.f_back
        while maker is not None and maker.f_globals["__name__"].partition(".")[0] in ("asyncio", "anyio"):
            maker = maker.f_back
        ours = maker is not None and maker.f_code.co_filename.startswith(_PACKAGE)
        self.refresh.counts["tasks" if ours else "aiohttp's tasks"] += 1
        if caller := self._caller(frame)[0]:
            self._tasks[task] = caller

    def _count_write(self, function: Any) -> None:
        if function in (os.fsync, os.fdatasync):
            self.refresh.counts["fsyncs"] += 1
        connection = getattr(function, "__self__", None)
        if isinstance(connection, sqlite3.Connection) and id(connection) not in self._connections:
            self._connections.add(id(connection))
            connection.set_trace_callback(self._count_statement)

    def _count_statement(self, statement: str) -> None:
        if self._over:
            return
        self.refresh.counts["statements"] += 1
        self.refresh.counts["commits"] += statement.upper().startswith("COMMIT")


def _begins(frame: FrameType) -> bool:
    """Whether the function begins. A coroutine or generator that continues is also reported as a call."""
    # The argument of RESUME: 0 when a function begins, 1 to 3 after a yield or an await.
    return frame.f_code.co_code[frame.f_lasti + 1] & 3 == 0


async def refreshes(*names: str) -> dict[str, Refresh]:
    """One refresh through each of these stores."""
    found: dict[str, Refresh] = {}
    with tempfile.TemporaryDirectory() as directory:
        stores: dict[str, Store] = {
            "memory": MemoryStore(),
            "file": FileStore(Path(directory, "tokens")),
            "sqlite": SQLiteStore(Path(directory, "tokens.db")),
        }
        async with Server(lifetime=_LIFETIME) as server:
            providers = {
                name: OAuth2(**server.credentials | {"refresh_token": await server.new_credential()})
                for name in names
            }
            for name, provider in providers.items():
                async with aclosing(stores[name]), ManagedSource(provider, store=stores[name]) as source:
                    await source.token()
            await asyncio.sleep(_LIFETIME + 0.1)
            for name, provider in providers.items():
                before = await server.stats()
                async with aclosing(stores[name]), ManagedSource(provider, store=stores[name]) as source:
                    with _Recorder().recording() as found[name]:
                        await source.token()
                        await asyncio.sleep(0.05)  # what it may still do when the caller has its token
                after = await server.stats()
                found[name].counts["token requests"] = after["token_requests"] - before["token_requests"]
    return found


def report(found: dict[str, Refresh]) -> Result:
    """Rows and goals."""
    result = Result("cold-path")
    result.rows = [refresh.row(name) for name, refresh in found.items()]
    for name, refresh in found.items():
        limits = LIMITS[name]
        counts = {what: refresh.counts[what] for what in limits}
        met = all(counts[what] <= limits[what] for what in limits)
        result.goals.append(Goal(name, f"at most {_list(limits)}", _list(counts), met))
    result.notes = [
        "Of tokensession's own code: calls, functions, modules, and moves from one module to another.",
        "SQLite syncs the journal and the database at each commit. Python cannot see that.",
    ]
    return result


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def main(arguments: list[str]) -> int:
    """Count, print, save. Returns 1 if a refresh costs more than its limit."""
    parser = command.parser("cold-path", __doc__)
    parser.add_argument("--tree", choices=STORES, help="print only this store's refresh, call by call")
    options = parser.parse_args(arguments)
    if options.tree:
        found = asyncio.run(refreshes(options.tree))
        print("\n".join(found[options.tree].tree()))
        return 0
    result = report(asyncio.run(refreshes(*STORES)))
    command.finish(result, arguments, quick=options.quick)
    return int(bool(result.missed))
