"""A token endpoint that answers with any bytes, as a broken or hostile one may."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable

Answer = bytes | Iterable[bytes]

_BUFFER = 64 * 1024


class RawServer:
    """Reads a token request, sends the next of its answers, and closes the connection.

    An answer is bytes, or an iterable of bytes (which may be endless). The last answer is repeated. `posts`
    counts requests, `sent` the bytes sent, including buffered ones.
    """

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._more = asyncio.Event()
        self.posts = 0
        self.sent = 0

    async def reached(self, sent: int) -> None:
        """Wait until this many bytes have been sent."""
        while self.sent < sent:
            self._more.clear()
            await self._more.wait()

    @property
    def url(self) -> str:
        """The token URL."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/token"

    async def __aenter__(self) -> RawServer:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)  # of each connection, too
        listening.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._serve, sock=listening)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.idle()

    async def idle(self) -> None:
        """Wait until no client is being answered."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # the client has closed it
            await _request(reader)
            self.posts += 1
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
            for part in (answer,) if isinstance(answer, bytes) else answer:
                writer.write(part)
                self.sent += len(part)
                self._more.set()
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    await reader.readexactly(length)


def http(body: bytes, *headers: str, status: int = 200) -> bytes:
    """A whole response with the right Content-Length."""
    head = (f"HTTP/1.1 {status} Status", *headers, f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(head).encode() + body
