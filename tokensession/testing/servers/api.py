"""The API behind a test server: small endpoints for your client to call.

All but `/open/echo` need a valid bearer token. All paths are below the server's base path.

| path | response |
|---|---|
| `/echo`, any method | method, path, query, headers and body as JSON, and whether it was `authorized` |
| `/open/echo` | the same, without a token too |
| `/status/{code}` | that status, always: `/status/401` answers 401 to a valid token |
| `/large-401` | 200, or without a valid token a 401 of 4 MiB |
| `/redirect?to=URL&status=302` | a redirect |
| `/stream/{count}` | `count` bytes in chunks, without a Content-Length |
| `/ws` | a WebSocket that echoes |
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiohttp import WSMsgType, web
from anyio import create_task_group

from .faults import CLOSING, Response

__all__ = ["bearer_token", "echo", "ok", "padded", "routes"]

_CHUNK = 1 << 16
_LARGE = 1 << 22


def routes() -> list[web.RouteDef]:
    """The endpoints that every server has and that need a valid token."""
    return [
        web.route("*", "/echo", echo),
        web.route("*", "/status/{code:[2-5][0-9][0-9]}", _status),
        web.route("*", "/large-401", ok),
        web.route("*", "/redirect", _redirect),
        web.get("/stream/{count:[0-9]+}", _stream),
        web.get("/ws", _websocket),
    ]


def bearer_token(request: web.Request) -> str | None:
    """The access token of a request with exactly one `Authorization: Bearer …` header, else None.

    RFC 9110 makes schemes case-insensitive. Priava issues `token_type: "BEARER"` but wants `Bearer`, so
    only that spelling counts here.
    """
    values = request.headers.getall("Authorization", [])
    if len(values) != 1 or not values[0].startswith("Bearer "):
        return None
    return values[0].removeprefix("Bearer ")


def padded(request: web.Request, response: Response) -> Response:
    """The 401 for this path: a large one at `/large-401`."""
    if not request.path.endswith("/large-401"):
        return response
    return Response(response.status, response.body + b" " * _LARGE, response.headers)


async def echo(request: web.Request) -> web.Response:
    """The request as JSON. Instead of its Authorization header, whether it had one, as `authorized`."""
    headers = [[name, value] for name, value in request.headers.items() if name.lower() != "authorization"]
    document: dict[str, Any] = {
        "method": request.method,
        "path": request.path,
        "query": request.query_string,
        "headers": headers,
        "body": (await request.read()).decode("utf-8", errors="replace"),
        "authorized": "Authorization" in request.headers,
    }
    return web.json_response(document)


async def ok(request: web.Request) -> web.Response:
    """200 and `{"status": "ok"}`."""
    await request.read()
    return web.json_response({"status": "ok"})


async def _status(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(status=int(request.match_info["code"]))


async def _redirect(request: web.Request) -> web.Response:
    status = int(request.query.get("status", "302"))
    return web.Response(status=status, headers={"Location": request.query["to"]})


async def _stream(request: web.Request) -> web.StreamResponse:
    left = int(request.match_info["count"])
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while left > 0 and not request.app[CLOSING].is_set():
            await response.write(b"x" * min(left, _CHUNK))
            left -= _CHUNK
    return response


async def _websocket(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async with create_task_group() as group:
        group.start_soon(_close_with, request.app[CLOSING], socket)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        group.cancel_scope.cancel()
    return socket


async def _close_with(closing: asyncio.Event, socket: web.WebSocketResponse) -> None:
    await closing.wait()
    await socket.close()
