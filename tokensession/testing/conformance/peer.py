"""Another process that uses a store: a real one, which can be killed, stopped and forked.

A test drives it by commands over a pipe, one JSON object per line each way, so that what happens when
is decided by the test and not by chance::

    with Peer(url) as peer:
        claim = peer.ask("claim", key="k", seen=None)      # answered when the claim is granted
        peer.kill()                                        # SIGKILL, and its end awaited

POSIX only.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NoReturn, Self

from ...errors import Superseded, TokenSessionError
from ...stores.protocol import ANY, Claim, Record, Store

__all__ = ["OPENER", "Nursery", "Peer", "is_whole", "nursery", "peers", "rear", "whole"]

OPENER = "tokensession.stores:open_store"
_PATIENCE = 60.0  # seconds without an answer: a guard against a hang, never a measurement
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "resume": signal.SIGCONT}


def whole(number: int) -> bytes:
    """Data that tells whether it is all there; its length changes with its number."""
    return number.to_bytes(8, "big") * (1 + number % 4096)


def is_whole(data: bytes) -> int:
    """The number of this data. Raises AssertionError if it is torn, or mixed from two."""
    number = int.from_bytes(data[:8], "big")
    assert data == whole(number), f"torn: {len(data)} bytes that begin with {number}"
    return number


class Peer:
    """A process that has opened the store at `url` with `opener` ("module:callable").

    `patience` is how many seconds without an answer count as a hang.
    """

    def __init__(self, url: str, *, opener: str = OPENER, patience: float = _PATIENCE) -> None:
        self._patience = patience
        self._nursery = nursery("-m", "tokensession.testing.conformance.peer")
        self._socket, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.callback(self._socket.close)
            setup = {"opener": opener, "url": url, "path": sys.path}  # where the opener is, is known to this process
            self._pid = self._nursery.start(setup, theirs)
            unless_started.pop_all()
        self._buffer = b""
        self._alive = True

    def send(self, do: str, **arguments: Any) -> None:
        """Send a command; `read` its answer later."""
        self._socket.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")

    def read(self) -> Any:
        """The next answer. Raises AssertionError if there is none."""
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._socket], [], [], self._patience)
            chunk = self._socket.recv(65536) if ready else b""
            assert chunk, f"the peer {'has ended' if ready else 'does not answer'}"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send a command and read its answer."""
        self.send(do, **arguments)
        return self.read()

    def kill(self) -> None:
        """SIGKILL: it ends where it stands, and has ended when this returns."""
        if self._alive:
            self._alive = False
            self._nursery.signal("kill", self._pid)

    def stop(self) -> None:
        """SIGSTOP: it stands still when this returns."""
        self._nursery.signal("stop", self._pid)

    def resume(self) -> None:
        """SIGCONT."""
        self._nursery.signal("resume", self._pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._socket:
            self.kill()


@contextlib.contextmanager
def peers(count: int, url: str, *, opener: str = OPENER, patience: float = _PATIENCE) -> Iterator[list[Peer]]:
    """That many, all of them up before the first is used."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(Peer(url, opener=opener, patience=patience)) for _ in range(count)]
        for peer in started:
            peer.send("hello")
        for peer in started:
            peer.read()
        yield started


class _Server:
    """The other end: runs one command after another against its store."""

    def __init__(self, store: Store, writer: asyncio.StreamWriter) -> None:
        self._store = store
        self._writer = writer
        self._claim: Claim | None = None
        self._claims: dict[str, Claim] = {}
        self._waiting: asyncio.Future[Any] | None = None

    async def say(self, answer: Any) -> None:
        self._writer.write(json.dumps(answer).encode() + b"\n")
        await self._writer.drain()

    async def hello(self) -> str:
        return "hello"

    async def umask(self, mask: int) -> int:
        return os.umask(mask)

    async def load(self, key: str) -> Any:
        return _plain(await self._store.load(key))

    async def put(self, key: str, data: str, expect: str | None = "any") -> Any:
        return _plain(await self._store.put(key, data.encode(), expect=ANY if expect == "any" else expect))

    async def delete(self, key: str) -> bool:
        return await self._store.delete(key)

    async def claim(self, key: str, seen: str | None, timeout: float = _PATIENCE) -> Any:
        found = await self._store.claim(key, seen=seen, timeout=timeout)
        if isinstance(found, Record):
            return _plain(found)
        self._claim = found
        return {"current": _plain(found.current), "interrupted": found.interrupted}

    async def begin_claim(self, key: str, seen: str | None) -> str:
        """Begin to wait for the claim; `granted` waits for the outcome."""
        self._waiting = asyncio.ensure_future(self.claim(key, seen))
        await asyncio.sleep(0)  # it asks first
        await self._store.load(key)  # by then it has looked at least once
        return "waiting"

    async def granted(self) -> Any:
        assert self._waiting is not None
        return await self._waiting

    async def commit(self, data: str) -> Any:
        assert self._claim is not None
        return _plain(await self._claim.commit(data.encode()))

    async def abandon(self) -> None:
        assert self._claim is not None
        await self._claim.abandon()

    async def claim_all(self, keys: list[str]) -> int:
        """Claim all of these keys, of which none has a record; how many they are."""
        for key in keys:
            found = await self._store.claim(key, seen=None, timeout=_PATIENCE)
            assert not isinstance(found, Record), "nobody else writes"
            self._claims[key] = found
        return len(self._claims)

    async def commit_all(self) -> dict[str, str]:
        """Commit what `claim_all` has claimed, each key with itself for data; the versions."""
        return {key: (await claim.commit(key.encode())).version for key, claim in self._claims.items()}

    async def block(self) -> str:
        """Say so, and block the event loop until the next command is there."""
        await self.say("blocked")
        select.select([self._writer.get_extra_info("socket").fileno()], [], [])
        return "unblocked"

    async def aclose(self) -> None:
        await self._store.aclose()

    async def contend(self, key: str, times: int, arena: str, commits: bool = True) -> dict[str, int]:
        """Claim and commit so often; count how often somebody else was in the arena meanwhile."""
        granted = overlaps = 0
        seen = None
        while granted < times:
            found = await self._store.claim(key, seen=seen, timeout=_PATIENCE)
            if isinstance(found, Record):
                seen = found.version
                continue
            granted += 1
            try:
                os.mkdir(arena)  # noqa: PTH102 - atomic, and quick enough for an event loop
            except FileExistsError:
                overlaps += 1
            else:
                await asyncio.sleep(0)
                os.rmdir(arena)  # noqa: PTH106
            if commits and granted % 3:
                seen = (await found.commit(whole(granted))).version
            else:
                await found.abandon()
        return {"granted": granted, "overlaps": overlaps}

    async def churn(self, key: str, start: int) -> None:
        """Store one record after another for ever, and say so each time one is stored."""
        number = start
        while True:
            if number % 2:
                record = await self._store.put(key, whole(number))
            else:
                found = await self._store.claim(key, seen=await self._version(key), timeout=_PATIENCE)
                assert not isinstance(found, Record), "nobody else writes"
                record = await found.commit(whole(number))
            await self.say({"stored": number, "version": record.version})
            number += 1

    async def fork(self) -> int:
        """Fork a child that does nothing, for ever; its process id."""
        child = os.fork()
        if child == 0:
            while True:
                signal.pause()
        return child

    async def fork_and_put(self, key: str, data: str) -> int:
        """Fork a child that uses the store that it inherited; its exit status, 0 for success."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                # The inherited loop is the parent's; this is one of our own.
                asyncio.run(self._put_and_close(key, data))
                status = 0
            finally:
                os._exit(status)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        return os.waitstatus_to_exitcode(status)

    async def _put_and_close(self, key: str, data: str) -> None:
        await self._store.put(key, data.encode())
        await self._store.aclose()

    async def _version(self, key: str) -> str | None:
        record = await self._store.load(key)
        return None if record is None else record.version


def _plain(record: Record | None) -> Any:
    return record and {"version": record.version, "data": record.data.decode("latin-1")}


async def _serve(store: Store, connection: socket.socket) -> None:
    lines, writer = await asyncio.open_connection(sock=connection)
    server = _Server(store, writer)
    while line := await lines.readline():
        command = json.loads(line)
        method: Callable[..., Awaitable[Any]] = getattr(server, command.pop("do"))
        try:
            await server.say(await method(**command))
        except Superseded as error:
            await server.say({"error": "Superseded", "record": _plain(error.record)})
        except TokenSessionError as error:
            await server.say({"error": type(error).__name__, "message": str(error)})


class Nursery:
    """The process that starts others, so that only one has to import everything: they are forked.

    It is their parent, so it also signals them, and sees what has become of them. `program` is what
    follows the interpreter's name on its command line; it calls `rear`.
    """

    def __init__(self, *program: str) -> None:
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, *program, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def start(self, setup: dict[str, Any], connection: socket.socket) -> int:
        """Fork a process that lives by this setup, with this connection; its id."""
        return self._ask({"do": "start", "setup": setup}, connection.fileno())

    def signal(self, what: str, pid: int) -> None:
        """`kill`, `stop` or `resume` one: it has ended, or stands still, when this returns."""
        self._ask({"do": what, "pid": pid})

    def _ask(self, request: dict[str, Any], *fds: int) -> int:
        """One request, and the number that answers it."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
            ready, _, _ = select.select([self._socket], [], [], _PATIENCE)
            answer = self._socket.recv(64) if ready else b""
            if not answer:
                nursery.cache_clear()  # a late answer must not be taken for the next one's
                self._process.kill()
            assert answer, "the peers' parent does not answer"
            return int(answer)

    def close(self) -> None:
        """End it, and all that it has started."""
        self._socket.close()  # it ends when it reads that, and takes its children with it
        self._process.wait(_PATIENCE)


@functools.cache
def nursery(*program: str) -> Nursery:
    """The one that runs this program, until the interpreter ends."""
    started = Nursery(*program)
    atexit.register(started.close)
    return started


def rear(control: socket.socket, live: Callable[[int, dict[str, Any]], Awaitable[None]]) -> None:
    """Fork processes, and signal them, until the control connection closes.

    Each runs `live` with the descriptor of its connection and its setup, in an event loop of its own.
    """
    alive: set[int] = set()
    while True:
        message, fds, _, _ = socket.recv_fds(control, 65536, 1)
        if not message:
            break
        request = json.loads(message)
        if request["do"] == "start":
            pid = os.fork()
            if pid == 0:
                control.close()
                _run(live(fds[0], request["setup"]))
            os.close(fds[0])
            alive.add(pid)
        else:
            pid = request["pid"]
            _signal(pid, request["do"])
            if request["do"] == "kill":
                alive.discard(pid)
        control.sendall(str(pid).encode())
    for pid in alive:
        _signal(pid, "kill")


def _signal(pid: int, what: str) -> None:
    """Send the signal, and wait until it has done its work. A peer that has ended is left alone."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, _SIGNALS[what])
        if what in ("kill", "stop"):
            os.waitpid(pid, os.WUNTRACED if what == "stop" else 0)


def _run(life: Awaitable[None]) -> NoReturn:
    status = 1

    async def main() -> None:
        await life

    try:
        asyncio.run(main())
        status = 0
    finally:
        sys.stderr.flush()
        if status:
            traceback.print_exc()
        os._exit(status)  # not back into the parent's stack


async def _live(fd: int, setup: dict[str, Any]) -> None:
    sys.path[:] = setup["path"]
    module, _, name = setup["opener"].partition(":")
    store = getattr(importlib.import_module(module), name)(setup["url"])
    await _serve(store, socket.socket(fileno=fd))


if __name__ == "__main__":
    rear(socket.socket(fileno=int(sys.argv[1])), _live)
