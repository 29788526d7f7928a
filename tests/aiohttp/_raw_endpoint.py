"""Token endpoints and proxies made of bare sockets, with TLS: they see each byte that a request sends."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from tokensession import AiohttpTransport
from tokensession.providers.protocol import TokenRequest, TokenResponse

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# Of the server on loopback in these tests, and of nothing else. For id.example.com, localhost and 127.0.0.1.
_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgCDX/DYInPBc+oNIv
N3cXfgZ8SsqbOUf50ypKfnb/i+uhRANCAASMEXGB+uAYsLI/A8TavBkVNFDZSsZ0
6u7xtRKnw0Rma0nBVIFPaXijp4hq8rQ1d3HP/cHcvFDJcu9X6Rw9fl5b
-----END PRIVATE KEY-----
"""
_CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIBATAKBggqhkjOPQQDAjAdMRswGQYDVQQDDBJ0b2tlbnNl
c3Npb24gdGVzdHMwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMB0x
GzAZBgNVBAMMEnRva2Vuc2Vzc2lvbiB0ZXN0czBZMBMGByqGSM49AgEGCCqGSM49
AwEHA0IABIwRcYH64Biwsj8DxNq8GRU0UNlKxnTq7vG1EqfDRGZrScFUgU9peKOn
iGrytDV3cc/9wdy8UMly71fpHD1+XlujXjBcMCoGA1UdEQQjMCGCDmlkLmV4YW1w
bGUuY29tgglsb2NhbGhvc3SHBH8AAAEwDwYDVR0TAQH/BAUwAwEB/zAdBgNVHQ4E
FgQUH8ru6ujRJPfTi6H73F6Ug5UiNSQwCgYIKoZIzj0EAwIDSAAwRQIhAKWBxn4D
gUAndop2KhE8qr8Hoals+uRomMvmBnNgRzgcAiBfV7Wh8C7SfCFefK9leAWLKvZs
dI1e2xybRvOJLtRIuQ==
-----END CERTIFICATE-----
"""

GRANTED = b'{"access_token": "a", "refresh_token": "r2"}'

FINGERPRINT = aiohttp.Fingerprint(hashlib.sha256(ssl.PEM_cert_to_DER_cert(_CERTIFICATE)).digest())
ANOTHER = aiohttp.Fingerprint(bytes(32))


def server_side() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        pem = Path(directory) / "pem"
        pem.write_text(_KEY + _CERTIFICATE)
        context.load_cert_chain(pem)
    return context


TRUSTING = ssl.create_default_context(cadata=_CERTIFICATE)
"""A client's context that trusts this server."""

REQUEST = TokenRequest("", (("X-Secret", "planted"),), b"refresh_token=planted", secrets=("planted",))


async def send(
    request: str | TokenRequest,
    on_sending: Callable[[], Awaitable[None]] | None = None,
    *,
    connect: float = 30,
    **settings: Any,
) -> TokenResponse:
    """Send this token request, or `REQUEST` to this URL."""
    request = replace(REQUEST, url=request) if isinstance(request, str) else request
    return await AiohttpTransport(**settings).send(request, connect=connect, total=60, on_sending=on_sending)


def with_head(*lines: bytes, status: bytes = b"200 OK") -> bytes:
    length = b"Content-Length: %d" % len(GRANTED)
    return b"\r\n".join((b"HTTP/1.1 " + status, *lines, length, b"", GRANTED))


class Endpoint:
    """Counts its connections, and records what comes in. `closed` is set when a client has closed one."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}/token"
        self.connections = 0
        self.received = b""
        self.connected = asyncio.Event()
        self.closed = asyncio.Event()


@contextlib.asynccontextmanager
async def listening(
    answer: bytes | Handler, *, tls: bool = False, closes: bool = False
) -> AsyncIterator[Endpoint]:
    """An endpoint that answers each head with these bytes, and may close then. Or a handler does all that."""
    tasks: set[asyncio.Task[None]] = set()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b""
        while chunk := await reader.read(4096):
            endpoint.received += chunk
            head += chunk
            if b"\r\n\r\n" in head and not callable(answer):
                head = b""
                writer.write(answer)
                await writer.drain()
                if closes:
                    return

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        endpoint.connections += 1
        endpoint.connected.set()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            if callable(answer):
                await answer(reader, writer)
            await respond(reader, writer)
        endpoint.closed.set()
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=server_side() if tls else None)
    endpoint = Endpoint(server.sockets[0].getsockname()[1], "https" if tls else "http")
    async with server:
        yield endpoint
        server.close()
        while tasks:
            await asyncio.wait(tasks)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close the connection as soon as something comes in."""
    await reader.read(4096)
    writer.close()


def tunnel(port: int) -> Handler:
    """A proxy that connects every CONNECT to this port."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

    return connect


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(4096):
            writer.write(chunk)
            await writer.drain()
    writer.close()
