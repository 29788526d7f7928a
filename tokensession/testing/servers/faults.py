"""What can go wrong at a token endpoint, on purpose and in the order you say.

`server.script(...)` queues faults; each is used for one token request, then the server is itself
again. A fault is anything with `perform`; it decides whether the genuine reply is made at all, and so
whether the grant is spent:

- `Reply(status, body, headers)`: answer this instead; nothing is spent. `json_response`, `redirect`.
- `Edit(change)`: make the genuine reply, then change its JSON document.
- `Reset(spent=)`: reset the connection, before or after the grant was spent.
- `Truncate(keep=)`: spend the grant, send the first bytes of the reply, reset.
- `Drip(pause=)`: spend the grant, then send the reply one byte at a time.
- `Hang(spent=)`: never answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

__all__ = [
    "Drip",
    "Edit",
    "Fault",
    "Gate",
    "Hang",
    "Reset",
    "Response",
    "Truncate",
    "json_response",
    "redirect",
]

CLOSING: web.AppKey[asyncio.Event] = web.AppKey("closing", asyncio.Event)
"""Set when the server shuts down: whoever hangs here lets go."""


@dataclass(frozen=True, slots=True, repr=False)
class Response:
    """A whole reply, byte for byte. As a fault: it is sent instead of the genuine one."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    def response(self) -> web.Response:
        """The same for aiohttp; without a Content-Type of its own it gets aiohttp's default."""
        return web.Response(status=self.status, body=self.body, headers=list(self.headers))

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Answer it; the token request has no other effect."""
        return self.response()

    def __repr__(self) -> str:
        return f"<Reply {self.status} {len(self.body)} bytes>"


Genuine = Callable[[], Awaitable[Response]]
"""Does what the server would do, spending the grant, and gives the reply it would send."""


class Fault(Protocol):
    """One thing that goes wrong with one token request."""

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Answer the request, or break the connection. Await `genuine()` to spend the grant."""
        ...


def json_response(status: int, document: object, *, content_type: str = "application/json") -> Response:
    """A JSON document as a `Reply`."""
    return Response(status, json.dumps(document).encode(), (("Content-Type", content_type),))


def redirect(url: str, status: int = 307) -> Response:
    """Send the client elsewhere. A token request must not go there."""
    return Response(status, b"", (("Location", url),))


@dataclass(frozen=True, slots=True)
class Edit:
    """The genuine reply with its JSON document changed: `Edit(lambda reply: reply | {"expires_in": 0})`.

    The document of a success has the tokens in it, and the server honours them.
    """

    change: Callable[[dict[str, Any]], object]

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Spend the grant and answer the changed document."""
        answer = await genuine()
        body = json.dumps(self.change(json.loads(answer.body))).encode()
        return Response(answer.status, body, answer.headers).response()


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection without a byte of reply."""

    spent: bool = True

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Spend the grant if told to, then reset."""
        if self.spent:
            await genuine()
        return _reset(request)


@dataclass(frozen=True, slots=True)
class Truncate:
    """The grant is spent, and only the first `keep` bytes of the reply arrive."""

    keep: int = 20

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Promise the whole reply, send its beginning, close."""
        response, body = await _begin(request, genuine)
        await response.write(body[: self.keep])
        if request.transport is not None:
            request.transport.close()  # after what was written: a reset could overtake it
        return response


@dataclass(frozen=True, slots=True)
class Drip:
    """The grant is spent, and the reply arrives one byte every `pause` seconds (of real time)."""

    pause: float = 0.05

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Send byte by byte until the client has had enough or the server shuts down."""
        response, body = await _begin(request, genuine)
        closing = request.app[CLOSING]
        for position in range(len(body)):
            if closing.is_set() or request.transport is None:
                return _reset(request)
            with contextlib.suppress(ConnectionError):
                await response.write(body[position : position + 1])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closing.wait(), self.pause)
        return response


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer. The connection stays open until the client leaves or the server shuts down."""

    spent: bool = False

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Spend the grant if told to, then wait."""
        if self.spent:
            await genuine()
        await request.app[CLOSING].wait()
        return _reset(request)


class Gate:
    """Holds requests until it is opened: `async with server.hold("before") as gate`.

    Leaving the block opens it for good.
    """

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._arrival = asyncio.Condition()
        self._arrived = 0

    @property
    def arrived(self) -> int:
        """How many requests have come to this gate so far, those that went through included."""
        return self._arrived

    async def reached(self, count: int = 1) -> None:
        """Wait until `count` requests have come to this gate."""
        async with self._arrival:
            await self._arrival.wait_for(lambda: self._arrived >= count)

    def open(self) -> None:
        """Let everybody through, now and later."""
        self._open.set()

    async def wait(self) -> None:
        """What the server does here."""
        async with self._arrival:
            self._arrived += 1
            self._arrival.notify_all()
        await self._open.wait()

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._open.is_set() else 'closed'}, {self._arrived} arrived>"


async def _begin(request: web.Request, genuine: Genuine) -> tuple[web.StreamResponse, bytes]:
    answer = await genuine()
    response = web.StreamResponse(status=answer.status, headers=list(answer.headers))
    response.content_length = len(answer.body)
    await response.prepare(request)
    return response, answer.body


def _reset(request: web.Request) -> web.StreamResponse:
    """A TCP reset instead of an orderly end."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()
