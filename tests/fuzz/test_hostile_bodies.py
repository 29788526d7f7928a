"""What a broken or hostile server may put on the wire, through the real endpoint and a real source.

The server is a plain socket server, so that it can say what no HTTP library would. Nothing here waits for
time to pass: where only the time-out ends a reply, the test's clock is moved on once the server has sent
enough of it. See `edge/test_endpoint.py` for the milder faults.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import pytest
from _hostile import CODE
from _raw_server import Answer, RawServer, chunked, http
from _targets import assert_fit_to_be_shown

from tokensession import AiohttpTransport, ManagedSource, NotSent
from tokensession.errors import InvalidTokenResponse, OutcomeUnknown, TokenSessionError, TokenUnavailable
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock
from tokensession.transport import MAX_BODY

TOTAL = 30.0
MIB = 1024 * 1024
GRANTED = b'{"access_token": "at-1", "refresh_token": "rt-2", "expires_in": 3600}'
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GZIP = "Content-Encoding: gzip"


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scene()

    asyncio.run(bounded())


def oauth2(url: str) -> OAuth2:
    return OAuth2(token_url=url, client_id="client-7", client_secret=CODE, refresh_token=CODE + "-refresh")


def endless(first: bytes, then: bytes) -> Callable[[], Iterable[bytes]]:
    return lambda: itertools.chain((first,), itertools.repeat(then))


def drip(first: bytes, then: bytes) -> Callable[[], Iterable[bytes]]:
    """Byte by byte, for ever."""
    return lambda: itertools.chain((first,), (bytes((byte,)) for byte in itertools.cycle(then)))


def bomb(wbits: int) -> bytes:
    """Less than a mebibyte that inflates to 900 MiB. One block, compressed once, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * 899


def sized(body: bytes, length: str) -> bytes:
    return OK + f"Content-Length: {length}\r\n\r\n".encode() + body


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@dataclass(frozen=True)
class Case:
    """An answer, and the error that it becomes. `until`: the clock moves on when so much was sent."""

    name: str
    make: Callable[[], Answer]
    want: type[TokenSessionError]
    until: int | None = None


def lost(name: str, answer: bytes) -> Case:
    """No whole reply."""
    return Case(name, lambda: answer, OutcomeUnknown)


def nonsense(name: str, answer: bytes) -> Case:
    """A whole reply without a meaning."""
    return Case(name, lambda: answer, InvalidTokenResponse)


BROKEN = (
    lost("a status that is a word", b"HTTP/1.1 abc OK\r\n\r\n"),
    lost("a status of five digits", b"HTTP/1.1 99999 OK\r\n\r\n"),
    lost("no status", b"HTTP/1.1\r\n\r\n"),
    lost("another major version", b"HTTP/9.9 200 OK\r\n\r\n"),
    lost("a body without a head, as before HTTP/1.0", GRANTED),
    lost("a TLS alert on a plain port", b"\x15\x03\x01\x00\x02\x02\x28"),
    lost("a greeting of another protocol", b"220 mail.example.com ESMTP\r\n"),
    lost("nothing", b""),
    lost("half a status line", b"HTTP/1."),
    lost("half a header", OK + b"Content-Le"),
    lost("a header of a megabyte", OK + b"X: " + b"a" * MIB + b"\r\nContent-Length: 2\r\n\r\n{}"),
    lost("10,000 headers", OK + b"".join(b"X-%d: a\r\n" % i for i in range(10_000)) + b"\r\n" + GRANTED),
    lost("a header without a colon", OK + b"nonsense\r\n\r\n"),
    lost("a NUL in a header", OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}"),
    lost("a negative length", sized(GRANTED, "-1")),
    lost("a length that is a word", sized(GRANTED, "many")),
    lost("a length beyond 64 bits", sized(GRANTED, "18446744073709551616")),
    lost("two lengths", sized(GRANTED, f"2\r\nContent-Length: {len(GRANTED)}")),
    lost("a length and chunks", sized(b"2\r\n{}\r\n0\r\n\r\n", "2\r\nTransfer-Encoding: chunked")),
    lost("an end before the length is reached", sized(GRANTED, "200")),
    lost("a chunk whose size is no number", CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
    lost("a chunk of negative size", CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n"),
    lost("a chunk of a size beyond 64 bits", CHUNKED + b"f" * 20 + b"\r\n{}"),
    lost("a chunk of exabytes that ends at once", CHUNKED + b"7fffffffffffffff\r\n{}"),
    lost("a chunk longer than it says", CHUNKED + b"2\r\n{}xx\r\n0\r\n\r\n"),
    lost("chunks without the last one", CHUNKED + b"2\r\n{}\r\n"),
    lost("a gzip stream cut short", http(gzip.compress(GRANTED)[:-12], GZIP)),
    nonsense("a status of 000", b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n"),
    Case("a status of 999", lambda: http(b"", status=999), TokenUnavailable),
    nonsense("gzip inside gzip", http(gzip.compress(gzip.compress(GRANTED)), GZIP)),
    nonsense("gzip twice, and said so", http(gzip.compress(gzip.compress(GRANTED)), GZIP + ", gzip")),
    nonsense("brotli, which nobody asked for", http(b"\x0b\x0a\x80{}\x03", "Content-Encoding: br")),
    nonsense("100,000 levels of nesting", http(nested(100_000))),
    nonsense("a mebibyte of nesting, from a kilobyte", http(gzip.compress(b"[" * MIB), GZIP)),
    nonsense("a mebibyte of digits", http(b"1" * MIB)),
    nonsense("an expires_in of a mebibyte", http(GRANTED[:-5] + b"3" * (MIB - 99) + b"}")),
    nonsense("90,000 keys", http(b"{" + b",".join(b'"%d":1' % i for i in range(90_000)) + b"}")),
    nonsense("a million keys", http(b"{" + b",".join(b'"%d":1' % i for i in range(1_000_000)) + b"}")),
    nonsense("a gzip bomb", http(bomb(31), GZIP)),
    nonsense("a deflate bomb", http(bomb(15), "Content-Encoding: deflate")),
    nonsense("a bomb of bare deflate", http(bomb(-15), "Content-Encoding: deflate")),
)

BLOCK = b"x" * 65_536
ENDLESS = (
    Case("2 GiB by their length", endless(sized(b"", str(2 << 30)), BLOCK), InvalidTokenResponse),
    Case("chunks for ever", lambda: chunked(itertools.repeat(BLOCK)), InvalidTokenResponse),
    Case(
        "a body until the connection ends, which it never does",
        endless(OK + b"\r\n", BLOCK),
        InvalidTokenResponse,
    ),
    Case("zeros in gzip for ever", lambda: chunked(itertools.repeat(bomb(31)), GZIP), InvalidTokenResponse),
    Case(
        "another protocol, after a 101",
        endless(b"HTTP/1.1 101 Up\r\nUpgrade: x\r\n\r\n", BLOCK),
        InvalidTokenResponse,
    ),
    Case("headers for ever", endless(OK, b"A: b\r\n" * 10_000), OutcomeUnknown),
    Case("one header for ever", endless(OK + b"A: ", BLOCK), OutcomeUnknown),
    Case("a reason for ever", endless(b"HTTP/1.1 200 ", BLOCK), OutcomeUnknown),
    Case("trailers for ever", endless(CHUNKED + b"0\r\n", b"A: b\r\n" * 10_000), OutcomeUnknown),
    Case("a body behind a 204", endless(b"HTTP/1.1 204 No\r\n\r\n", BLOCK), OutcomeUnknown),
    Case("a chunk's extension for ever", endless(CHUNKED + b"2;", BLOCK), OutcomeUnknown, until=4 * MIB),
    Case("empty lines for ever", endless(b"", b"\r\n" * 32_768), OutcomeUnknown, until=4 * MIB),
    Case(
        "100 Continue for ever",
        endless(b"", b"HTTP/1.1 100 Go on\r\n\r\n" * 50),
        OutcomeUnknown,
        until=99_000,
    ),
    Case("a status line, byte by byte", drip(b"HTTP/1.1 200 ", b"OK"), OutcomeUnknown, until=200),
    Case("a header, byte by byte", drip(OK + b"X: ", b"a"), OutcomeUnknown, until=200),
    Case("a body, byte by byte", drip(sized(b"", "9999"), b" "), OutcomeUnknown, until=200),
    Case("chunks of a byte, byte by byte", drip(CHUNKED, b"1\r\n \r\n"), OutcomeUnknown, until=200),
)


async def moved_on(case: Case, server: RawServer, clock: FakeClock) -> None:
    """Let the time run out, if nothing else is to end this case."""
    if case.until is not None:
        await server.reached(case.until)
        clock.advance(TOTAL)


async def asked(case: Case, server: RawServer) -> BaseException | None:
    """The error of one token request."""
    provider, clock = oauth2(server.url), FakeClock()
    assert provider.credential is not None

    async def ask() -> None:
        request = provider.request(provider.credential)
        response = await AiohttpTransport(clock=clock).send(request, connect=30, total=TOTAL)
        provider.read(response, provider.credential, sent_at=0)

    task = asyncio.create_task(ask())
    await moved_on(case, server, clock)
    await asyncio.wait((task,))
    await server.idle()
    return task.exception()


@pytest.mark.parametrize("case", [*BROKEN, *ENDLESS], ids=lambda case: case.name)
def test_each_hostile_reply_is_one_documented_error_after_one_post(case: Case) -> None:
    """And the connection is hung up: the server, which would go on for ever, can send no more."""

    async def scene() -> None:
        async with RawServer(case.make()) as server:
            error = await asked(case, server)
            assert type(error) is case.want
            assert_fit_to_be_shown(error, thorough=True)
            assert server.posts == 1

    run(scene)


@pytest.mark.parametrize("case", [case for case in ENDLESS if case.until is None], ids=lambda case: case.name)
def test_no_more_than_a_few_mebibytes_are_taken_from_a_server_that_never_stops(case: Case) -> None:
    """What it managed to send is what was read and what the kernel keeps for a reader."""

    async def scene() -> None:
        async with RawServer(case.make()) as server:
            tracemalloc.start()
            try:
                await asked(case, server)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert server.sent < 16 * MIB
            assert peak < 8 * MIB

    run(scene)


@pytest.mark.parametrize("wbits", [31, 15, -15], ids=["gzip", "zlib", "bare deflate"])
def test_a_bomb_is_inflated_to_the_limit_and_no_further(wbits: int) -> None:
    """900 MiB in a mebibyte: memory is the limit's, not the bomb's."""
    packed = http(bomb(wbits), GZIP if wbits == 31 else "Content-Encoding: deflate")

    async def scene() -> None:
        async with RawServer(packed) as server:
            tracemalloc.start()
            try:
                error = await asked(Case("", lambda: packed, InvalidTokenResponse), server)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert f"inflates to more than {MAX_BODY} bytes" in str(error)
            assert peak < 8 * MIB

    run(scene)


def test_an_https_request_that_meets_a_plain_port_was_not_sent() -> None:
    """The handshake failed: no secret has left, and no grant can be spent."""

    async def plain(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(b"This port speaks plain HTTP.", status=400))
        await writer.drain()
        writer.close()

    async def scene() -> None:
        async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
            provider = oauth2(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/token")
            assert provider.credential is not None
            with pytest.raises(NotSent) as caught:
                await AiohttpTransport().send(provider.request(provider.credential), connect=30, total=60)
            assert_fit_to_be_shown(caught.value, thorough=True)

    run(scene)


@pytest.mark.parametrize("case", [*BROKEN, *ENDLESS], ids=lambda case: case.name)
def test_after_a_hostile_reply_the_source_still_works(case: Case) -> None:
    """One POST, one documented error for the caller; and when the server has come to its senses, a token."""

    async def scene() -> None:
        clock = FakeClock()
        async with RawServer(case.make(), http(GRANTED)) as server:
            provider = oauth2(server.url)
            store = MemoryStore(clock=clock)
            source = ManagedSource(provider, AiohttpTransport(clock=clock), store=store, clock=clock)
            task = asyncio.create_task(source.token())
            await moved_on(case, server, clock)
            with pytest.raises(case.want) as caught:
                await task
            assert_fit_to_be_shown(caught.value, thorough=False)
            assert server.posts == 1
            clock.advance(3600)
            assert (await source.token()).access_token == "at-1"
            assert server.posts == 2
            await source.aclose()

    run(scene)
