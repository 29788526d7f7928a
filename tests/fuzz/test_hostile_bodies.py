"""What a broken or hostile server may send, through the real transport and a real source.

The server is a plain socket server, so it can send what no HTTP library would. Nothing here waits for time to
pass: if only the time-out ends a response, the test moves its clock once the server has sent enough. See
`aiohttp/test_transport.py` for milder faults.
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
from _raw_server import Answer, RawServer, http
from _targets import assert_safe_to_show

from tokensession import AiohttpTransport, ManagedSource, NotSent
from tokensession.errors import InvalidTokenResponse, OutcomeUnknown, TokenSessionError, TokenUnavailable
from tokensession.policy import Policy
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


def bomb(wbits: int) -> bytes:
    """Less than a mebibyte that inflates to 900 MiB: one compressed block, repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * 899


def sized(body: bytes, length: str) -> bytes:
    return OK + f"Content-Length: {length}\r\n\r\n".encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@dataclass(frozen=True)
class Case:
    """An answer, and the error that it causes. `bounded`: little of it is read and held.

    `until`: only the time-out ends it. The clock moves when this many bytes were sent.
    """

    name: str
    make: Callable[[], Answer]
    want: type[TokenSessionError]
    says: str = ""
    bounded: bool = False
    until: int | None = None


def lost(name: str, answer: bytes) -> Case:
    """A response that is not complete."""
    return Case(name, lambda: answer, OutcomeUnknown)


def invalid(name: str, answer: bytes) -> Case:
    """A complete response without a token."""
    return Case(name, lambda: answer, InvalidTokenResponse)


def inflating(name: str, wbits: int, encoding: str) -> Case:
    answer = http(bomb(wbits), f"Content-Encoding: {encoding}")
    says = f"inflates to more than {MAX_BODY} bytes"
    return Case(name, lambda: answer, InvalidTokenResponse, says, bounded=True)


def endless(
    name: str,
    first: bytes,
    then: bytes,
    want: type[TokenSessionError] = OutcomeUnknown,
    until: int | None = None,
) -> Case:
    def parts() -> Iterable[bytes]:
        return itertools.chain((first,), itertools.repeat(then))

    return Case(name, parts, want, bounded=until is None, until=until)


def drip(name: str, first: bytes, then: bytes) -> Case:
    """Endless, byte by byte."""

    def parts() -> Iterable[bytes]:
        return itertools.chain((first,), (bytes((byte,)) for byte in itertools.cycle(then)))

    return Case(name, parts, OutcomeUnknown, until=200)


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
    lost("a header without a colon", OK + b"no colon here\r\n\r\n"),
    lost("a NUL in a header", OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}"),
    lost("a negative length", sized(GRANTED, "-1")),
    lost("a length that is a word", sized(GRANTED, "many")),
    lost("a length beyond 64 bits", sized(GRANTED, "18446744073709551616")),
    lost("two lengths", sized(GRANTED, f"2\r\nContent-Length: {len(GRANTED)}")),
    lost("a length and chunks", sized(b"2\r\n{}\r\n0\r\n\r\n", "2\r\nTransfer-Encoding: chunked")),
    lost("an end before the length is reached", sized(GRANTED, "200")),
    lost("a chunk whose size is not a number", CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n"),
    lost("a chunk of negative size", CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n"),
    lost("a chunk of a size beyond 64 bits", CHUNKED + b"f" * 20 + b"\r\n{}"),
    lost("a chunk of exabytes that ends at once", CHUNKED + b"7fffffffffffffff\r\n{}"),
    lost("a chunk longer than it says", CHUNKED + b"2\r\n{}xx\r\n0\r\n\r\n"),
    lost("chunks without the last one", CHUNKED + b"2\r\n{}\r\n"),
    lost("a truncated gzip stream", http(gzip.compress(GRANTED)[:-12], GZIP)),
    invalid("a status of 000", b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n"),
    Case("a status of 999", lambda: http(b"", status=999), TokenUnavailable),
    invalid("gzip inside gzip", http(gzip.compress(gzip.compress(GRANTED)), GZIP)),
    invalid("five codings, as declared", http(gzip.compress(GRANTED), GZIP + ", gzip" * 4)),
    invalid("a hundred and one members", http(gzip.compress(b"") * 101, GZIP)),
    invalid("brotli, which was not asked for", http(b"\x0b\x0a\x80{}\x03", "Content-Encoding: br")),
    invalid("100,000 levels of nesting", http(nested(100_000))),
    invalid("a mebibyte of nesting, from a kilobyte", http(gzip.compress(b"[" * MIB), GZIP)),
    invalid("a mebibyte of digits", http(b"1" * MIB)),
    invalid("an expires_in of a mebibyte", http(GRANTED[:-5] + b"3" * (MIB - 99) + b"}")),
    invalid("90,000 keys", http(b"{" + b",".join(b'"%d":1' % i for i in range(90_000)) + b"}")),
    invalid("a million keys", http(b"{" + b",".join(b'"%d":1' % i for i in range(1_000_000)) + b"}")),
    inflating("a gzip bomb", 31, "gzip"),
    inflating("a deflate bomb", 15, "deflate"),
    inflating("a bomb of raw deflate", -15, "deflate"),
)

BLOCK = b"x" * 65_536
ZIPPED = OK + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"HTTP/1.1 101 Up\r\nUpgrade: x\r\n\r\n"
ENDLESS = (
    endless("2 GiB by their length", sized(b"", str(2 << 30)), BLOCK, InvalidTokenResponse),
    endless("a body until an end that never comes", OK + b"\r\n", BLOCK, InvalidTokenResponse),
    endless("another protocol, after a 101", UPGRADE, BLOCK, InvalidTokenResponse),
    endless("endless chunks", CHUNKED, chunk(BLOCK), InvalidTokenResponse),
    endless("endless zeros in gzip", ZIPPED, chunk(bomb(31)), InvalidTokenResponse),
    endless("endless headers", OK, b"A: b\r\n" * 10_000),
    endless("one endless header", OK + b"A: ", BLOCK),
    endless("an endless reason", b"HTTP/1.1 200 ", BLOCK),
    endless("endless trailers", CHUNKED + b"0\r\n", b"A: b\r\n" * 10_000),
    endless("a body after a 204", b"HTTP/1.1 204 No\r\n\r\n", BLOCK),
    endless("an endless chunk extension", CHUNKED + b"2;", BLOCK),
    endless("endless empty lines", b"", b"\r\n" * 32_768),
    endless("endless long headers", OK, b"A: " + BLOCK * 3 + b"\r\n"),
    endless("endless long trailers", CHUNKED + b"0\r\n", b"A: " + BLOCK * 3 + b"\r\n"),
    endless("endless long lines in chunks of a byte", CHUNKED, b"1;" + BLOCK + b"\r\n \r\n"),
    endless("endless 100 Continue", b"", b"HTTP/1.1 100 Go on\r\n\r\n" * 50, until=99_000),
    drip("a status line, byte by byte", b"HTTP/1.1 200 ", b"OK"),
    drip("a header, byte by byte", OK + b"X: ", b"a"),
    drip("a body, byte by byte", sized(b"", "9999"), b" "),
    drip("chunks of a byte, byte by byte", CHUNKED, b"1\r\n \r\n"),
)


@pytest.mark.parametrize("case", [*BROKEN, *ENDLESS], ids=lambda case: case.name)
def test_a_hostile_response_is_one_documented_error_after_one_post_and_the_source_still_works(
    case: Case,
) -> None:
    """The connection is closed, so that an endless server stops. At most a few mebibytes are read and held.

    The server has sent what was read and what the kernel buffers.
    """

    async def scene() -> None:
        clock = FakeClock()
        async with RawServer(case.make(), http(GRANTED)) as server:
            # The first caller gets the error at once, and no request is made for a second one.
            policy = Policy(retry_within=0, response_timeout=TOTAL, caller_timeout=2 * TOTAL)
            known = {"store": MemoryStore(clock=clock), "clock": clock, "policy": policy}
            source = ManagedSource(oauth2(server.url), AiohttpTransport(), **known)
            if case.bounded:
                tracemalloc.start()
            try:
                task = asyncio.create_task(source.token())
                if case.until is not None:
                    await server.reached(case.until)
                    clock.advance(TOTAL)
                with pytest.raises(TokenSessionError) as caught:
                    await task
                await server.idle()
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert type(caught.value) is case.want
            assert case.says in str(caught.value)
            assert_safe_to_show(caught.value, thorough=True)
            assert server.posts == 1
            if case.bounded:
                assert server.sent < 16 * MIB
                assert peak < 8 * MIB
            clock.advance(3600)
            assert (await source.token()).access_token == "at-1"
            assert server.posts == 2
            await source.aclose()

    run(scene)


def test_an_https_request_to_a_plain_http_port_was_not_sent() -> None:
    """The handshake failed, so no secret was sent and no credential can be spent."""

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
            assert_safe_to_show(caught.value, thorough=True)

    run(scene)
