"""Faults for token requests: `server.script(...)` queues them, one for each token request, in order.

A fault is anything with `perform`. It decides whether the server carries out the token request (then the
credential is spent) and what the client gets:

| fault | the client gets | credential |
|---|---|---|
| `Response(status, body, headers, spent=)` | this response instead | not spent, unless you say so |
| `json_response(...)`, `redirect(...)` | the same, built for you | not spent |
| `Edit(change)` | the genuine response with its JSON document changed | spent |
| `Reset(spent=)` | a reset connection | spent or not, as you say |
| `Truncate(keep=)` | the first bytes of the response | spent |
| `Drip(pause=)` | the response, one byte at a time | spent |
| `Hang(spent=)` | nothing | spent or not, as you say |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from aiohttp import web
from anyio import move_on_after

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
"""Set when the server closes, so that handlers that wait come to an end."""


@dataclass(frozen=True, slots=True, repr=False)
class Response:
    """A whole response, byte for byte. As a fault: the server sends it instead of the genuine one.

    `spent`: carry out the request first, as behind a gateway that answers 502 because the server was slow.
    """

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    spent: bool = False

    def to_web(self) -> web.Response:
        """The same as an aiohttp response. Without a Content-Type in `headers` it gets aiohttp's default."""
        return web.Response(status=self.status, body=self.body, headers=list(self.headers))

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Carry out the request if `spent`, then send this."""
        if self.spent:
            await genuine()
        return self.to_web()

    def __repr__(self) -> str:
        return f"<Response {self.status} {len(self.body)} bytes>"


Genuine: TypeAlias = Callable[[], Awaitable[Response]]
"""Carries out the token request, which spends its credential, and returns the response it would send."""


class Fault(Protocol):
    """Something that goes wrong with one token request. Write your own with a `perform` method."""

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Respond to `request`, or break its connection. Await `genuine()` to carry it out."""
        ...


def json_response(status: int, document: object, *, content_type: str = "application/json") -> Response:
    """A `Response` with this JSON document."""
    return Response(status, json.dumps(document).encode(), (("Content-Type", content_type),))


def redirect(url: str, status: int = 307) -> Response:
    """A redirect. A client must not follow it with a token request."""
    return Response(status, b"", (("Location", url),))


@dataclass(frozen=True, slots=True)
class Edit:
    """Change the genuine response's JSON: `Edit(lambda document: document | {"expires_in": 0})`.

    The tokens in the document are real: the server accepts them.
    """

    change: Callable[[dict[str, Any]], object]

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Carry out the request, and send the changed document."""
        response = await genuine()
        body = json.dumps(self.change(json.loads(response.body))).encode()
        return Response(response.status, body, response.headers).to_web()


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the connection before a byte is sent. `spent`: carry out the request first."""

    spent: bool = True

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Carry out the request if `spent`, then reset the connection."""
        if self.spent:
            await genuine()
        return _reset(request)


@dataclass(frozen=True, slots=True)
class Truncate:
    """Carry out the request, but send only the first `keep` bytes of the response."""

    keep: int = 20

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Announce the whole response, send its beginning, and close the connection."""
        response, body = await _begin(request, genuine)
        await response.write(body[: self.keep])
        if request.transport is not None:
            request.transport.close()  # after what was written: a reset could overtake it
        return response


@dataclass(frozen=True, slots=True)
class Drip:
    """Carry out the request, and send the response one byte every `pause` seconds of real time."""

    pause: float = 0.05

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Send byte by byte until the client disconnects or the server closes."""
        response, body = await _begin(request, genuine)
        closing = request.app[CLOSING]
        for position in range(len(body)):
            if closing.is_set() or request.transport is None:
                return _reset(request)
            with contextlib.suppress(ConnectionError):
                await response.write(body[position : position + 1])
            with move_on_after(self.pause):
                await closing.wait()
        return response


@dataclass(frozen=True, slots=True)
class Hang:
    """Never respond: the connection stays open until the server closes. `spent`: carry out the request."""

    spent: bool = False

    async def perform(self, request: web.Request, genuine: Genuine) -> web.StreamResponse:
        """Carry out the request if `spent`, then wait."""
        if self.spent:
            await genuine()
        await request.app[CLOSING].wait()
        return _reset(request)


class Gate:
    """Holds requests at one point: `async with server.hold("before") as gate`.

    It stays open once you call `open()` or leave the block.
    """

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._arrival = asyncio.Condition()
        self._arrived = 0

    @property
    def arrived(self) -> int:
        """How many requests have come to this gate so far, including those that went through."""
        return self._arrived

    async def reached(self, count: int = 1) -> None:
        """Wait until `count` requests have come to this gate."""
        async with self._arrival:
            await self._arrival.wait_for(lambda: self._arrived >= count)

    def open(self) -> None:
        """Let every request through, now and later."""
        self._open.set()

    async def wait(self) -> None:
        """Called by the server: count the request, and wait until the gate is open."""
        async with self._arrival:
            self._arrived += 1
            self._arrival.notify_all()
        await self._open.wait()

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._open.is_set() else 'closed'}, {self._arrived} arrived>"


async def _begin(request: web.Request, genuine: Genuine) -> tuple[web.StreamResponse, bytes]:
    genuine_response = await genuine()
    response = web.StreamResponse(status=genuine_response.status, headers=list(genuine_response.headers))
    response.content_length = len(genuine_response.body)
    await response.prepare(request)
    return response, genuine_response.body


def _reset(request: web.Request) -> web.StreamResponse:
    """Send a TCP reset instead of an orderly end."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()
