"""Child processes that end with their parent, and the messages between the two.

Each message is a line of JSON: from the parent to the child's stdin, from the child's stdout to the parent.
Secrets travel only here, never on a command line. A child exits when its stdin ends. The kernel closes that
pipe even if the parent is killed, so no child outlives its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from typing import IO, Any, Self

from anyio import BrokenResourceError, CancelScope, IncompleteRead, move_on_after, open_process
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

__all__ = ["Child", "ChildFailed", "messages", "say"]

_MAX_LINE = 1 << 20  # bytes
_EXIT_TIMEOUT = 20.0  # seconds from closing stdin to SIGKILL; a killed child cannot clean up
_LAST_LINES = 15  # of stderr, in the error


class ChildFailed(Exception):
    """A child process ended before its work was done. The message ends with its last lines of stderr."""


class Child:
    """A child process, seen from its parent. `await Child.start(...)`, then `await child.stop()`."""

    def __init__(self, name: str, process: Process, stderr: IO[bytes]) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("process must have a pipe as stdin and as stdout")
        self.name = name
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._lines = BufferedByteReceiveStream(process.stdout)
        self._stderr = stderr

    @classmethod
    async def start(cls, name: str, module: str) -> Self:
        """Start `python -m module`. Send its settings as the first message."""
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it; a full pipe would block the child
        process = await open_process(
            # -P: with -m alone, a file in the user's directory could replace one of our modules
            [sys.executable, "-P", "-m", module],
            stderr=stderr,
            start_new_session=True,  # Ctrl-C goes to the parent only, which then ends its children in order
        )
        return cls(name, process, stderr)

    async def tell(self, **message: Any) -> None:
        """Send a message. If the child has ended, the message is lost, and `hear` raises `ChildFailed`."""
        with contextlib.suppress(BrokenResourceError, ConnectionError):
            await self._stdin.send(json.dumps(message).encode() + b"\n")

    async def hear(self) -> dict[str, Any]:
        """The child's next message. Raises `ChildFailed` if the child has ended."""
        try:
            message: dict[str, Any] = json.loads(await self._lines.receive_until(b"\n", _MAX_LINE))
        except IncompleteRead:
            status = await self._process.wait()
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
            said = "\n".join([f"The {self.name} process ended early (status {status}).", *lines])
            raise ChildFailed(said) from None
        return message

    async def stop(self) -> None:
        """Close its stdin, which tells it to exit, and wait. Kill it after 20 seconds.

        A cancelled scope does not cut this short.
        """
        with CancelScope(shield=True):
            with move_on_after(_EXIT_TIMEOUT):
                await self._stdin.aclose()
                async for _ in self._stdout:  # it could not exit with a full pipe
                    pass
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
            await self._process.aclose()
            self._stderr.close()


async def messages() -> AsyncIterator[dict[str, Any]]:
    """In a child: the parent's messages, until the parent closes the pipe or ends."""
    # Not anyio: it reads a file in a thread, and a thread that waits for a line cannot be cancelled.
    reader = asyncio.StreamReader(limit=_MAX_LINE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while (line := await reader.readline()).endswith(b"\n"):
            yield json.loads(line)
    finally:
        transport.close()


def say(**message: Any) -> None:
    """In a child: send a message to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
