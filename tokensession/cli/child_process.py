"""Child processes that live no longer than their parent, and what the two say to each other.

Both ends speak JSON, a line a message: the parent into the child's stdin, the child out of its stdout.
Secrets travel here and never on a command line. The child takes the end of its stdin for the end of
its parent, however that came about: the kernel closes the pipe for a killed process too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Self, TypeVar

__all__ = ["Child", "ChildFailed", "messages", "say"]

_Stream = TypeVar("_Stream")

_LINE = 1 << 20  # bytes
_GRACE = 20.0  # seconds, from being asked to leave to being killed: who is killed tidies nothing up


class ChildFailed(Exception):
    """A child process ended before its work was done. The message has the end of its stderr."""


class Child:
    """One child process, seen from its parent. `await Child.start(...)`; `await child.stop()`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._stdin = _piped(process.stdin)
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._last_words: deque[str] = deque(maxlen=15)
        # Read at all times, so that a child never waits for us with a full pipe.
        self._ears = asyncio.gather(
            self._listen(_piped(process.stdout)), self._mutter(_piped(process.stderr))
        )

    @classmethod
    async def start(cls, name: str, module: str) -> Self:
        """Start `python -m module`. The first thing it wants to be told is its settings."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # with -m alone, a file in the user's directory could stand in for a module of ours
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE,
            process_group=0,  # Ctrl-C is for the parent, which then ends its children in order
        )
        return cls(name, process)

    def tell(self, **message: Any) -> None:
        """Send a message; one to a child that has died is lost, as `hear` will say."""
        with contextlib.suppress(ConnectionError):
            self._stdin.write(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        """The child's next message. Raises `ChildFailed` if it has none and never will."""
        message = await self._messages.get()
        if message is not None:
            return message
        status = await self._process.wait()
        await asyncio.wait([self._ears])
        words = "\n".join(self._last_words)
        raise ChildFailed(f"The {self.name} process ended early (status {status}).\n{words}".rstrip())

    async def stop(self) -> None:
        """Close its stdin, which asks it to leave; kill it if it does not."""
        self._stdin.close()
        try:
            async with asyncio.timeout(_GRACE):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.wait([self._ears])

    async def _listen(self, stdout: asyncio.StreamReader) -> None:
        while (line := await stdout.readline()).endswith(b"\n"):
            self._messages.put_nowait(json.loads(line))
        self._messages.put_nowait(None)

    async def _mutter(self, stderr: asyncio.StreamReader) -> None:
        async for line in stderr:
            self._last_words.append(line.decode(errors="replace").rstrip())


def _piped(stream: _Stream | None) -> _Stream:
    if stream is None:
        raise RuntimeError("The child was started without this pipe.")
    return stream


async def messages() -> AsyncIterator[dict[str, Any]]:
    """In a child: what the parent says, until it has nothing more to say or is gone."""
    reader = asyncio.StreamReader(limit=_LINE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while (line := await reader.readline()).endswith(b"\n"):
            yield json.loads(line)
    finally:
        transport.close()


def say(**message: Any) -> None:
    """In a child: tell the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
