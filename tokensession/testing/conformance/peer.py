"""Real processes that use a store, and that a test can kill, stop and fork.

A test sends commands over a socket, one JSON object per line each way. So the test decides what happens
when, and not chance::

    with Peer(url) as peer:
        claim = peer.ask("claim", key="k", seen=None)      # returns when the claim is granted
        peer.kill()                                        # SIGKILL, and waits for the end

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
import pickle
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

__all__ = [
    "OPENER",
    "UNPICKLE",
    "ForkServer",
    "Peer",
    "fork_server",
    "is_whole",
    "peers",
    "serve_forks",
    "unpickle",
    "whole",
]

OPENER = "tokensession.stores:open_store"
UNPICKLE = "tokensession.testing.conformance.peer:unpickle"
_PATIENCE = 60.0  # seconds without an answer that count as a hang
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "resume": signal.SIGCONT}


def whole(number: int) -> bytes:
    """Data for `is_whole`. Its length depends on its number."""
    return number.to_bytes(8, "big") * (1 + number % 4096)


def unpickle(content: str) -> Store:
    """The store whose pickle this is, in hexadecimal."""
    store: Store = pickle.loads(bytes.fromhex(content))  # noqa: S301 - a test has made it
    return store


def is_whole(data: bytes) -> int:
    """The number of this data. Raises AssertionError if it is torn, or mixed from two writes."""
    number = int.from_bytes(data[:8], "big")
    assert data == whole(number), f"torn: {len(data)} bytes that begin with {number}"
    return number


class Peer:
    """A process that has opened the store at `url` with `opener` ("module:callable").

    `patience`: seconds without an answer that count as a hang.
    """

    def __init__(self, url: str, *, opener: str = OPENER, patience: float = _PATIENCE) -> None:
        self._patience = patience
        self._fork_server = fork_server("-m", "tokensession.testing.conformance.peer")
        self._socket, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.callback(self._socket.close)
            # With our path, so that it finds the opener.
            setup = {"opener": opener, "url": url, "path": sys.path}
            self._pid = self._fork_server.start(setup, theirs)
            unless_started.pop_all()
        self._buffer = b""
        self._alive = True

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

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
        """Send SIGKILL. The process has ended when this returns."""
        if self._alive:
            self._alive = False
            self._fork_server.signal("kill", self._pid)

    def stop(self) -> None:
        """Send SIGSTOP. The process is stopped when this returns."""
        self._fork_server.signal("stop", self._pid)

    def resume(self) -> None:
        """Send SIGCONT."""
        self._fork_server.signal("resume", self._pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._socket:
            self.kill()


@contextlib.contextmanager
def peers(count: int, url: str, *, opener: str = OPENER, patience: float = _PATIENCE) -> Iterator[list[Peer]]:
    """So many peers, all of them started."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(Peer(url, opener=opener, patience=patience)) for _ in range(count)]
        for peer in started:
            peer.send("hello")
        for peer in started:
            peer.read()
        yield started


class _Server:
    """The other end: runs commands on its store, one after another."""

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
        return {
            "current": _plain(found.current),
            "interrupted": found.interrupted,
            "listening": found.listening,
        }

    async def begin_claim(self, key: str, seen: str | None) -> str:
        """Begin to wait for the claim. `granted` waits for the outcome."""
        self._waiting = asyncio.ensure_future(self.claim(key, seen))
        await asyncio.sleep(0)  # let it begin
        await self._store.load(key)  # behind its first look, in the store's thread
        return "waiting"

    async def granted(self) -> Any:
        assert self._waiting is not None
        return await self._waiting

    async def sending(self, listening: float = 0.0) -> None:
        assert self._claim is not None
        await self._claim.sending(listening=listening)

    async def commit(self, data: str) -> Any:
        assert self._claim is not None
        return _plain(await self._claim.commit(data.encode()))

    async def abandon(self) -> None:
        assert self._claim is not None
        await self._claim.abandon()

    async def claim_all(self, keys: list[str]) -> int:
        """Claim all of these keys, which have no record. Returns their number."""
        for key in keys:
            found = await self._store.claim(key, seen=None, timeout=_PATIENCE)
            assert not isinstance(found, Record), "no other process writes"
            self._claims[key] = found
        return len(self._claims)

    async def commit_all(self) -> dict[str, str]:
        """Commit what `claim_all` has claimed, with each key as its data. Returns the versions."""
        return {key: (await claim.commit(key.encode())).version for key, claim in self._claims.items()}

    async def block(self) -> str:
        """Answer, and block the event loop until the next command arrives."""
        await self.say("blocked")
        select.select([self._writer.get_extra_info("socket").fileno()], [], [])
        return "unblocked"

    async def aclose(self) -> None:
        await self._store.aclose()

    async def contend(self, key: str, times: int, arena: str, commits: bool = True) -> dict[str, int]:
        """Claim and commit so many times, and count how often another holder was in the arena."""
        granted = overlaps = 0
        seen = None
        while granted < times:
            found = await self._store.claim(key, seen=seen, timeout=_PATIENCE)
            if isinstance(found, Record):
                seen = found.version
                continue
            granted += 1
            try:
                os.mkdir(arena)  # noqa: PTH102 - atomic, and fast enough for an event loop
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
        """Store one record after another without end, and report each of them."""
        number = start
        while True:
            if number % 2:
                record = await self._store.put(key, whole(number))
            else:
                found = await self._store.claim(key, seen=await self._version(key), timeout=_PATIENCE)
                assert not isinstance(found, Record), "no other process writes"
                record = await found.commit(whole(number))
            await self.say({"stored": number, "version": record.version})
            number += 1

    async def fork(self) -> int:
        """Fork a child that waits for a signal. Returns its process id."""
        child = os.fork()
        if child == 0:
            while True:
                signal.pause()
        return child

    async def fork_and_put(self, key: str, data: str) -> int:
        """Fork a child that uses the store it inherited. Returns its exit status, 0 for success."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                # A new loop: the inherited one belongs to the parent.
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


class ForkServer:
    """A process that forks others, so that only one has to import everything.

    As their parent it also sends them signals, and waits for their effect. `program` is the rest of its
    command line after the interpreter; the program must call `serve_forks`.
    """

    def __init__(self, *program: str) -> None:
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, *program, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def start(self, setup: dict[str, Any], connection: socket.socket) -> int:
        """Fork a process with this setup and this connection. Returns its process id."""
        return self._ask({"do": "start", "setup": setup}, connection.fileno())

    def signal(self, what: str, pid: int) -> None:
        """`kill`, `stop` or `resume` a process. It has ended, or is stopped, when this returns."""
        self._ask({"do": what, "pid": pid})

    def _ask(self, request: dict[str, Any], *fds: int) -> int:
        """Send a request, and return the number that answers it."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
            ready, _, _ = select.select([self._socket], [], [], _PATIENCE)
            answer = self._socket.recv(64) if ready else b""
            if not answer:
                fork_server.cache_clear()  # a late answer must not be taken for the next one
                self._process.kill()
            assert answer, "the fork server does not answer"
            return int(answer)

    def close(self) -> None:
        """End it and every process that it has started."""
        self._socket.close()  # it notices, kills its children and ends
        self._process.wait(_PATIENCE)


@functools.cache
def fork_server(*program: str) -> ForkServer:
    """The fork server that runs this program. It is shared, and ends with the interpreter."""
    started = ForkServer(*program)
    atexit.register(started.close)
    return started


def serve_forks(control: socket.socket, main: Callable[[int, dict[str, Any]], Awaitable[None]]) -> None:
    """Fork processes, and send them signals, until the control connection closes.

    Each process runs `main` with the descriptor of its connection and its setup, in a new event loop.
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
                _run(main(fds[0], request["setup"]))
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
    """Send the signal, and wait for its effect. Does nothing if the process has ended."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, _SIGNALS[what])
        if what in ("kill", "stop"):
            os.waitpid(pid, os.WUNTRACED if what == "stop" else 0)


def _run(work: Awaitable[None]) -> NoReturn:
    status = 1

    async def main() -> None:
        await work

    try:
        asyncio.run(main())
        status = 0
    finally:
        sys.stderr.flush()
        if status:
            traceback.print_exc()
        os._exit(status)  # not back into the stack of the parent


async def _main(fd: int, setup: dict[str, Any]) -> None:
    sys.path[:] = setup["path"]
    module, _, name = setup["opener"].partition(":")
    store = getattr(importlib.import_module(module), name)(setup["url"])
    await _serve(store, socket.socket(fileno=fd))


if __name__ == "__main__":
    serve_forks(socket.socket(fileno=int(sys.argv[1])), _main)
