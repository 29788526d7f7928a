"""A body is sent again after a 401 only if it is certainly whole."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from _api import Numbered, api, calling, client_of, has_token, status
from _event_loop import in_event_loop
from aiohttp import payload, web
from aiohttp.abc import AbstractStreamWriter

from tokensession import BearerAuth

CONTENT = bytes(number % 251 for number in range(200_000))


class Api:
    """Answers 401 to the first token: after it has read the body (`reads`), or before. Keeps the bodies."""

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.requests = 0
        self.bodies: list[bytes] = []

    async def __call__(self, request: web.Request) -> web.Response:
        self.requests += 1
        if has_token(request, 0):
            if self.reads:
                self.bodies.append(await request.read())
            return web.Response(status=401)
        self.bodies.append(await request.read())
        return web.Response()

    async def expect(self, request: web.Request) -> web.Response | None:
        """Answers 401 instead of "100 Continue"."""
        if has_token(request, 0):
            self.requests += 1
            return web.Response(status=401)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None


async def received_once(body: Any, source: Numbered | None = None) -> bytes:
    """What an API reads that answers 401 to it, and does not get it again."""
    server = Api(reads=True)
    async with calling(server, source) as client:
        assert await status(client.post("/", data=body)) == 401
    (received,) = server.bodies
    assert server.requests == 1
    return received


def nested(part: Any) -> aiohttp.MultipartWriter:
    outer, inner = (aiohttp.MultipartWriter("mixed", boundary=boundary) for boundary in "oi")
    inner.append(part)
    outer.append(inner)
    outer.append("text")
    return outer


def at(position: int, file: Any) -> Any:
    file.seek(position)
    return file


Open = Callable[..., Any]
IN_MEMORY: dict[str, Callable[[Open], dict[str, Any]]] = {
    "nothing": lambda _: {},
    "bytes": lambda _: {"data": CONTENT},
    "bytearray": lambda _: {"data": bytearray(CONTENT)},
    "text": lambda _: {"data": "a text" * 1000},
    "json": lambda _: {"json": {"a": [1] * 10_000}},
    "form": lambda _: {"data": {"field": "value" * 1000}},
    "BytesIO": lambda _: {"data": io.BytesIO(CONTENT)},
    "rest of a BytesIO": lambda _: {"data": at(1000, io.BytesIO(CONTENT))},
    "StringIO": lambda _: {"data": io.StringIO("text" * 1000)},
    "multipart": lambda _: {"data": {"a": "text", "b": io.BytesIO(CONTENT)}},
    "nested multipart": lambda _: {"data": nested(CONTENT)},
    "compressed": lambda _: {"data": CONTENT, "compress": "gzip"},
    "chunked": lambda _: {"data": CONTENT, "chunked": True},
}
FILES: dict[str, Callable[[Open], dict[str, Any]]] = {
    "file": lambda opened: {"data": opened("rb")},
    "rest of a file": lambda opened: {"data": at(1000, opened("rb"))},
    "raw file": lambda opened: {"data": opened("rb", buffering=0)},
    "text file": lambda opened: {"data": opened("r", encoding="latin-1", newline="")},
    "file in a form": lambda opened: {"data": {"field": "x", "file": opened("rb")}},
    "file in a nested multipart": lambda opened: {"data": nested(opened("rb"))},
}


@pytest.mark.parametrize("when", ["read whole", "before it is read", "instead of 100-continue"])
@pytest.mark.parametrize("kind", [*IN_MEMORY, *FILES])
@in_event_loop
async def test_f71_a_body_that_is_whole_is_replayed_to_the_byte(tmp_path: Path, kind: str, when: str) -> None:
    """Whatever is in memory, at any time; a file if it has been read whole, or not begun."""
    if kind in FILES and when == "before it is read":
        pytest.skip("of a file that is being read, nothing can be said")
    path = tmp_path / "upload"
    path.write_bytes(CONTENT)
    make = (IN_MEMORY | FILES)[kind]

    async def sent_by(base: str, server: Api, number: int, **options: Any) -> tuple[int, bytes]:
        with contextlib.ExitStack() as files:
            body = make(lambda *how, **more: files.enter_context(path.open(*how, **more)))
            async with client_of(base, Numbered(number)) as client:
                return await status(client.post("/", **body, **options)), server.bodies[-1]

    server = Api(reads=when == "read whole")
    options = {"expect100": True} if when == "instead of 100-continue" else {}
    async with api(server, expect=server.expect) as base:
        code, expected = await sent_by(base, server, 1)
        assert (code, server.requests) == (200, 1)
        code, replayed = await sent_by(base, server, 0, **options)
        assert code == 200
        if "multipart" in kind or "form" in kind:  # the boundary differs
            assert len(replayed) == len(expected)
        else:
            assert replayed == expected


class Readable(io.RawIOBase):
    """A file that is no file of the operating system."""

    def __init__(self) -> None:
        self.inner = io.BytesIO(CONTENT)

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.inner.tell()

    def read(self, size: int = -1) -> bytes:
        return self.inner.read(size)


class Gated(Readable):
    """A seekable file whose second read waits for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.opened = threading.Event()

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        return self.inner.seek(position, whence)

    def read(self, size: int = -1) -> bytes:
        self.reads += 1
        if self.reads == 2:
            self.opened.wait(30)
        return super().read(size)


@pytest.mark.parametrize("end", ["at once", "when the test says so"])
@pytest.mark.parametrize("where", ["alone", "in a form", "in a nested multipart"])
@in_event_loop
async def test_k23_a_file_that_is_being_read_when_the_401_comes_is_not_replayed(where: str, end: str) -> None:
    """A thread still reads it. A replay would begin somewhere in the middle, and be answered 200."""
    file = Gated()
    bodies = {"alone": file, "in a form": {"x": "1", "f": file}, "in a nested multipart": nested(file)}
    source, done = Numbered(), asyncio.Event()
    whole: list[bytes] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        if not has_token(request, 0):
            whole.append(await request.read())
            return web.Response()
        while not file.reads:
            await request.content.readany()
        response = web.StreamResponse(status=401)
        await response.prepare(request)
        await response.write(b"no")
        if end == "at once":
            await response.write_eof()
        else:
            await done.wait()
        return response

    async with calling(handle, source) as client:
        try:
            async with client.post("/", data=bodies[where]) as response:
                assert response.status == 401
                file.opened.set()
                done.set()
            assert source.refreshes == 1  # the next request has the new token
            assert await status(client.post("/", data=io.BytesIO(CONTENT))) == 200
        finally:
            file.opened.set()
            done.set()
    assert whole == [CONTENT]


class Own(payload.BytesPayload):
    """A payload class of a user's own."""


class OwnFile(payload.BufferedReaderPayload):
    """A payload class of a user's own."""


class OwnMultipart(aiohttp.MultipartWriter):
    """A payload class of a user's own."""


class OneShot(payload.Payload):
    """Says that it is not consumed, and sends nothing the second time."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__(chunks)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError

    async def write(self, writer: AbstractStreamWriter) -> None:
        for chunk in self._value:
            await writer.write(chunk)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OneShot(iter([CONTENT])),
        lambda: Own(CONTENT),
        lambda: OwnFile(io.BufferedReader(io.BytesIO(CONTENT))),  # type: ignore[arg-type]
        lambda: OwnMultipart("mixed"),
        lambda: nested(OneShot(iter([CONTENT]))),
    ],
    ids=["one shot", "bytes", "file", "multipart", "inside a multipart"],
)
@in_event_loop
async def test_k23_a_payload_of_your_own_class_is_not_replayed(make: Callable[[], payload.Payload]) -> None:
    """Only its author knows whether it can be sent twice."""
    body = make()
    if isinstance(body, OwnMultipart):
        body.append(CONTENT)
    assert CONTENT in await received_once(body)


class Forward(Readable):
    """Knows where it is, and cannot go back: as the bodies of botocore and urllib3."""

    def __init__(self, error: type[Exception] | None) -> None:
        super().__init__()
        self.error = error

    def seek(self, position: int, whence: int = 0) -> int:
        if self.error is not None:
            raise self.error
        return position


@pytest.mark.parametrize("error", [io.UnsupportedOperation, OSError, None])
@in_event_loop
async def test_f71_a_file_that_cannot_go_back_is_not_replayed(error: type[Exception] | None) -> None:
    assert await received_once(Forward(error)) == CONTENT


@in_event_loop
async def test_f71_a_pipe_is_not_replayed() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert await received_once(pipe) == b"from a pipe"


@pytest.mark.parametrize("what", ["shorter", "closed"])
@in_event_loop
async def test_f71_a_file_that_changes_before_the_replay_is_not_sent_short(tmp_path: Path, what: str) -> None:
    path = tmp_path / "upload"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:

        class Changing(Numbered):
            async def refresh(self, unauthorized: Any = None) -> Any:
                if what == "closed":
                    file.close()
                else:
                    path.write_bytes(CONTENT[:1000])
                return await super().refresh(unauthorized)

        assert await received_once(file, Changing()) == CONTENT


@in_event_loop
async def test_f71_a_stream_that_has_not_been_begun_is_replayed() -> None:
    """The server answered instead of "100 Continue"."""

    async def stream() -> AsyncIterator[bytes]:
        yield CONTENT

    server = Api(reads=True)
    async with calling(server, expect=server.expect) as client:
        assert await status(client.post("/", data=stream(), expect100=True)) == 200
    assert server.bodies == [CONTENT]


@in_event_loop
async def test_f71_mutant_14_a_replay_begins_after_the_first_writer_has_ended() -> None:
    """Both read the same body, so the first one's next chunk would be missing from the second."""
    seen: list[bool] = []
    writers: list[asyncio.Task[None]] = []

    async def watch(request: Any, handler: Any) -> Any:
        seen.extend(writer.done() for writer in writers)
        response = await handler(request)
        if request._writer is not None:
            writers.append(request._writer)
        return response

    done = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        if has_token(request, 0):
            response = web.StreamResponse(status=401)  # it does not end, so that the writer does not
            await response.prepare(request)
            await done.wait()
            return response
        done.set()
        return web.Response(text=str(len(await request.read())))

    async with api(handle) as base:
        bearer = BearerAuth(Numbered(), origins=[base])
        async with aiohttp.ClientSession(base, middlewares=(bearer, watch)) as client:
            async with client.post("/", data=io.BytesIO(bytes(30_000_000))) as response:
                assert await response.text() == "30000000"
    assert seen == [True]
