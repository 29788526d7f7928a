"""Servers that take a token where others take a password: just enough of each protocol to log in."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

Session = Callable[[asyncio.StreamReader, asyncio.StreamWriter, list[str]], Awaitable[None]]


@contextlib.asynccontextmanager
async def speaking(session: Session) -> AsyncIterator[tuple[int, list[str]]]:
    """A server on loopback: its port, and the tokens that clients have logged in with."""
    tokens: list[str] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await session(reader, writer, tokens)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], tokens


async def postgres(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tokens: list[str]) -> None:
    """PostgreSQL's protocol 3.0, with the password in clear text."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!I", len(body) + 4) + body

    (length,) = struct.unpack("!I", await reader.readexactly(4))
    await reader.readexactly(length - 4)  # user, database
    writer.write(message(b"R", struct.pack("!I", 3)))  # AuthenticationCleartextPassword
    _, length = struct.unpack("!cI", await reader.readexactly(5))
    tokens.append((await reader.readexactly(length - 4)).rstrip(b"\0").decode())
    writer.write(message(b"R", struct.pack("!I", 0)))  # AuthenticationOk
    for name, value in (("server_version", "16.0"), ("client_encoding", "UTF8")):
        writer.write(message(b"S", f"{name}\0{value}\0".encode()))
    writer.write(message(b"K", struct.pack("!II", 1, 1)) + message(b"Z", b"I"))  # ReadyForQuery
    await reader.read()  # Terminate


async def imap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tokens: list[str]) -> None:
    """IMAP4rev1 with AUTHENTICATE XOAUTH2."""
    writer.write(b"* OK ready\r\n")
    while line := await reader.readline():
        tag, command, *_ = line.decode().split()
        if command == "CAPABILITY":
            writer.write(f"* CAPABILITY IMAP4rev1 AUTH=XOAUTH2\r\n{tag} OK done\r\n".encode())
        elif command == "AUTHENTICATE":
            writer.write(b"+ \r\n")
            answer = base64.b64decode(await reader.readline()).decode()
            assert answer.startswith("user=me@example.com\1auth=Bearer ")
            tokens.append(answer.split("Bearer ")[1].rstrip("\1"))
            writer.write(f"{tag} OK done\r\n".encode())
        else:
            writer.write(f"* BYE\r\n{tag} OK done\r\n".encode())


_API_VERSIONS, _HANDSHAKE, _AUTHENTICATE = 18, 17, 36


async def kafka(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tokens: list[str]) -> None:
    """Kafka's handshake for SASL: ApiVersions, SaslHandshake, SaslAuthenticate."""
    known = {_API_VERSIONS: 0, _HANDSHAKE: 1, _AUTHENTICATE: 0}
    while True:
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        request = await reader.readexactly(length)
        key, version, correlation = struct.unpack_from("!hhi", request)
        if key == _API_VERSIONS:
            ranges = (struct.pack("!hhh", name, latest, latest) for name, latest in known.items())
            body = struct.pack("!hi", 0, len(known)) + b"".join(ranges) + bytes(4 if version else 0)
        elif key == _HANDSHAKE:
            body = struct.pack("!hih", 0, 1, 11) + b"OAUTHBEARER"
        else:
            tokens.append(request.split(b"auth=Bearer ")[1].split(b"\1")[0].decode())
            body = struct.pack("!hhi", 0, -1, 0)
        writer.write(struct.pack("!ii", len(body) + 4, correlation) + body)
