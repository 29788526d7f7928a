"""Token requests over a real network: what comes back, what may have arrived, what is too much."""

from __future__ import annotations

import asyncio
import gzip
import re
import traceback
import zlib
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from _api import PROVIDERS
from _event_loop import in_event_loop
from _names import name_server
from _raw_endpoint import GRANTED, REQUEST, listening, send, with_head
from yarl import URL

from tokensession import AiohttpTransport, ConfigurationError, InvalidTokenResponse, NotSent, OutcomeUnknown
from tokensession.providers import OAuth2, Priava
from tokensession.providers.protocol import TokenRequest, TokenResponse
from tokensession.testing import (
    Drip,
    Hang,
    OAuth2Server,
    PriavaServer,
    Reset,
    Response,
    Truncate,
    redirect,
)
from tokensession.transport import MAX_BODY, MAX_FIELDS, MAX_LINE


def request_of(server: PriavaServer | OAuth2Server) -> TokenRequest:
    provider = PROVIDERS[type(server)](**server.credentials)
    return provider.request(provider.credential)


@in_event_loop
async def test_an_impossible_host_name_means_not_sent() -> None:
    """Two dots in a row are a typing error, so no credential can be spent."""
    with pytest.raises(NotSent, match="aiohttp cannot request the token URL"):
        await send("https://id..example/token")
    with pytest.raises(NotSent, match="proxy"):
        await send("https://id.example.com/", proxy="http://proxy..example:3128")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ssl": "no"}, "ssl must be an ssl.SSLContext, .* or a bool, not a string of 2 characters"),
        ({"ssl": None}, "ssl must be an ssl.SSLContext, .* or a bool, not None"),
        ({"proxy": ""}, "proxy must be an http or https URL .*, not an empty string"),
        ({"proxy": 3128}, "proxy must be an http or https URL .*, not an int"),
        ({"proxy": "proxy.example:3128"}, "proxy must be .*, not a string of 18 characters"),
        ({"proxy": "socks5://proxy.example"}, "proxy must be .*, not a string of 22 characters"),
        ({"proxy": "http://me:hunter2@[::1"}, "proxy must be .*, not a string of 22 characters"),
    ],
    ids=str,
)
def test_invalid_arguments_are_an_error_that_names_them(wrong: dict[str, Any], says: str) -> None:
    """At the first token request they would look like a lost response."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        AiohttpTransport(**wrong)
    assert "hunter2" not in repr(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "fault", [Reset(spent=False), Reset(spent=True), Truncate()], ids=["reset", "reset, spent", "truncated"]
)
@in_event_loop
async def test_f39_a_broken_connection_after_sending_means_unknown_and_is_not_retried(
    fault: Reset | Truncate,
) -> None:
    """A connection that is reset after sending, or during the response, causes exactly one POST."""
    async with PriavaServer() as server:
        server.script(fault)
        with pytest.raises(OutcomeUnknown):
            await send(request_of(server))
        assert server.stats.token_requests == 1


@pytest.mark.parametrize("fault", [Hang(), Drip(pause=0)], ids=["hang", "slow drip"])
@in_event_loop
async def test_f03_f10_a_slow_server_is_waited_for_until_the_caller_cancels(fault: Hang | Drip) -> None:
    """The transport has no time-out of its own: the answer may have the only copy of a refresh token."""
    async with PriavaServer() as server:
        server.script(fault)
        sending = asyncio.create_task(AiohttpTransport().send(request_of(server), connect=30, total=0))
        if isinstance(fault, Drip):
            assert (await sending).status == 200
            return
        async with server.hold("before") as gate:
            await gate.reached()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert server.stats.token_requests == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@in_event_loop
async def test_f38_a_redirect_of_the_token_endpoint_is_not_followed(status: int) -> None:
    """A token endpoint that redirects causes no further request, so the secrets go nowhere else."""
    async with PriavaServer() as server, PriavaServer() as elsewhere:
        server.script(redirect(elsewhere.token_url, status))
        provider: Any = Priava(**server.credentials)
        response = await send(request_of(server))
        with pytest.raises(InvalidTokenResponse, match="redirect"):
            provider.read(response, provider.credential, sent_at=0)
        assert elsewhere.stats.token_requests == 0


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "bare deflate"])
@in_event_loop
async def test_a_compressed_response_is_read_although_it_was_not_asked_for(encoding: str) -> None:
    """Some gateways compress whatever you ask for."""
    body = b'{"access_token": "a"}'
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = {
        "gzip": gzip.compress(body),
        "x-gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "bare deflate": bare.compress(body) + bare.flush(),
    }[encoding]
    async with PriavaServer() as server:
        server.script(Response(200, packed, (("Content-Encoding", encoding.split()[-1]),)))
        assert (await send(request_of(server))).body == body


BODY = b'{"access_token": "a", "refresh_token": "\xc3\xa9"}'
LINES = re.findall(rb".{1,9}", BODY)
LATIN = BODY.decode().encode("latin-1")


@pytest.mark.parametrize(
    ("packed", "codings"),
    [
        (BODY, ["gzip"]),
        (b"\xef\xbb\xbf" + BODY, ["x-gzip"]),
        (BODY, ["deflate"]),
        (gzip.compress(gzip.compress(BODY)), ["gzip, gzip"]),
        (gzip.compress(gzip.compress(BODY)), ["gzip", "gzip"]),
        (gzip.compress(zlib.compress(BODY)), ["deflate , GZIP"]),
        (gzip.compress(BODY), ["gzip, gzip"]),
        (gzip.compress(BODY), ["identity, gzip"]),
        (gzip.compress(BODY), ["gzip,, identity"]),
        (gzip.compress(BODY), ["", "gzip"]),
        (b"".join(map(gzip.compress, LINES)), ["gzip"]),
        (b"".join(map(gzip.compress, LINES)) + bytes(8), ["gzip"]),
        (BODY, ["identity"]),
        (BODY, ["br"]),
    ],
    # Not the bytes: a gzip member says when it was made, and each worker of a test run makes its own.
    ids=[
        *("plain", "plain after a mark", "plain, not deflated"),
        *("twice", "twice, in two headers", "deflated, then zipped", "named twice"),
        *("with identity", "with an empty name", "with an empty header"),
        *("members", "members and padding", "identity", "unknown"),
    ],
)
@in_event_loop
async def test_k58_a_response_is_read_however_a_gateway_labels_and_packs_it(
    packed: bytes, codings: list[str]
) -> None:
    """Plain JSON that is labelled gzip, two codings or one coding named twice, several gzip members."""
    async with PriavaServer() as server:
        server.script(Response(200, packed, tuple(("Content-Encoding", name) for name in codings)))
        assert (await send(request_of(server))).body.removeprefix(b"\xef\xbb\xbf") == BODY


@pytest.mark.parametrize(
    ("packed", "coding", "body"),
    [
        (gzip.compress(BODY)[:-8] + bytes(8), "gzip", BODY),
        (gzip.compress(BODY)[:-4] + bytes(4), "gzip", BODY),
        (gzip.compress(BODY)[:-8], "gzip", BODY),
        (gzip.compress(LINES[0]) + gzip.compress(BODY)[:-8] + bytes(8), "gzip", LINES[0] + BODY),
        (zlib.compress(BODY)[:-4] + bytes(4), "deflate", BODY),
        (LATIN, "gzip", LATIN),
        (b"\r\n" + LATIN, "deflate", b"\r\n" + LATIN),
    ],
    ids=["checksum", "length", "without both", "last member", "zlib", "Latin-1", "Latin-1 not deflated"],
)
@in_event_loop
async def test_a_token_that_arrived_whole_is_not_lost_to_a_wrong_checksum_or_label(
    packed: bytes, coding: str, body: bytes
) -> None:
    """The old refresh token is spent then."""
    async with PriavaServer() as server:
        server.script(Response(200, packed, (("Content-Encoding", coding),)))
        assert (await send(request_of(server))).body == body


@pytest.mark.parametrize(
    ("packed", "codings", "says"),
    [
        (gzip.compress(gzip.compress(bytes(64 * MAX_BODY))), "gzip, gzip", "inflates to more than"),
        (gzip.compress(bytes(MAX_BODY)) + gzip.compress(b"x"), "gzip", "inflates to more than"),
        (gzip.compress(bytes(MAX_BODY)) + gzip.compress(bytes(64 * MAX_BODY)), "gzip", "inflates to more"),
        (gzip.compress(b"{") * 101, "gzip", "more than 100 gzip members"),
        (BODY, ", ".join(["gzip"] * 5), "has 5 content codings"),
        (gzip.compress(b"\x1f\x8bnot gzip"), "gzip, gzip", "cannot be decompressed"),
    ],
    ids=["bomb in a bomb", "byte too many", "second member", "members", "codings", "garbage inside"],
)
@in_event_loop
async def test_k58_the_bounds_hold_over_all_codings_and_members(
    packed: bytes, codings: str, says: str
) -> None:
    async with PriavaServer() as server:
        server.script(Response(200, packed, (("Content-Encoding", codings),)))
        with pytest.raises(InvalidTokenResponse, match=says) as caught:
            await send(request_of(server))
        assert caught.value.granted


@in_event_loop
async def test_k58_a_body_of_exactly_the_bound_is_read() -> None:
    whole = b"{" + b" " * (MAX_BODY - 2) + b"}"
    async with PriavaServer() as server:
        packed = gzip.compress(whole[:99]) + gzip.compress(whole[99:])
        server.script(Response(200, packed, (("Content-Encoding", "gzip"),)))
        assert (await send(request_of(server))).body == whole


@in_event_loop
async def test_token_requests_ask_for_an_uncompressed_response() -> None:
    """A response that cannot be decompressed may contain a rotated token."""
    _, head = await sent_by(with_head())
    assert re.findall(rb"(?i)\r\naccept-encoding:(.*)\r\n", head) == [b" identity"]


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("what", ["long", "bomb", "garbage"])
@in_event_loop
async def test_a_response_that_is_too_long_is_not_read_to_its_end(what: str, status: int) -> None:
    """Row 35: a long body, a small one that inflates to a huge one, one that does not inflate.

    If the status was 2xx, the error says that the response may have carried a token.
    """
    gzipped = (("Content-Encoding", "gzip"),)
    fault = {
        "long": Response(status, b"x" * (MAX_BODY + 1)),
        "bomb": Response(status, gzip.compress(b"x" * 64 * MAX_BODY), gzipped),
        "garbage": Response(status, b"\x1f\x8bnot gzip", gzipped),
    }[what]
    async with PriavaServer() as server:
        server.script(fault)
        with pytest.raises(InvalidTokenResponse) as caught:
            await send(request_of(server))
        assert caught.value.granted == (status == 200)


@in_event_loop
async def test_f45_no_secret_is_in_an_error_of_the_transport_or_in_its_traceback() -> None:
    """aiohttp's exceptions contain the request's headers; ours contain neither those nor the exceptions."""
    async with listening(b"this is not HTTP\r\n\r\n") as endpoint:
        provider: Any = OAuth2(
            token_url=endpoint.url,
            client_id="client",
            client_secret="planted-client-secret",
            refresh_token="planted-refresh-token",
        )
        request = provider.request(provider.credential)
        with pytest.raises(OutcomeUnknown) as caught:
            await send(request)
    error = caught.value
    assert error.__cause__ is error.__context__ is None
    shown = "".join(traceback.format_exception(error)) + repr(vars(error))
    basic = dict(request.headers)["Authorization"].removeprefix("Basic ")
    assert not any(secret in shown for secret in ("planted", basic))


@in_event_loop
async def test_token_requests_do_not_wait_for_the_connection_pool_of_the_api() -> None:
    """An API request holds the only connection of the pool."""
    async with OAuth2Server() as server:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as client:
            async with client.get(server.base_url + "/open/echo") as taken:
                assert (await send(request_of(server))).status == 200
                await taken.read()


@in_event_loop
async def test_cookies_of_a_token_endpoint_are_ignored() -> None:
    async with listening(with_head(b"Set-Cookie: sticky=1; Path=/")) as endpoint:
        transport = AiohttpTransport()
        request = replace(REQUEST, url=endpoint.url.replace("127.0.0.1", "localhost"))
        for _ in range(2):
            await transport.send(request, connect=30, total=60)
        assert endpoint.connections == 2
        assert b"cookie:" not in endpoint.received.lower()


async def sent_by(answer: bytes, *secrets: str, path: str = "/token") -> tuple[TokenResponse, bytes]:
    """The response to one token request that a server answers with these bytes, and the request's head."""
    async with listening(answer, closes=True) as endpoint:
        url = endpoint.url.replace("/token", path)
        return await send(TokenRequest(url, headers=(), body=b"", secrets=secrets)), endpoint.received


@pytest.mark.parametrize("size", [8_190, 8_191, 9_000, 65_536, MAX_LINE])
@in_event_loop
async def test_a_response_with_a_long_header_line_is_read(size: int) -> None:
    """The new refresh token in it must not be lost (K06)."""
    line = b"Set-Cookie: ".ljust(size, b"a")
    response, _ = await sent_by(with_head(line))
    assert response.body == GRANTED
    assert response.header("set-cookie") == "a" * (size - 12)


@pytest.mark.parametrize("count", [127, 128, 129, 500, MAX_FIELDS])
@in_event_loop
async def test_a_response_with_many_header_fields_is_read(count: int) -> None:
    """(K06)."""
    response, _ = await sent_by(with_head(*(b"X-%d: %d" % (n, n) for n in range(count - 1))))
    assert response.body == GRANTED
    assert len(response.headers) == count


@in_event_loop
async def test_a_response_with_a_long_reason_is_read() -> None:
    """(K06)."""
    response, _ = await sent_by(with_head(status=b"200 " + b"OK" * 10_000))
    assert response.body == GRANTED


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (with_head(b"X: ".ljust(MAX_LINE + 99, b"a")), f"Got more than {MAX_LINE} bytes when reading"),
        (with_head(*(b"X: a" for _ in range(MAX_FIELDS + 9))), "Too many headers received"),
        (
            with_head(*(b"X: ".ljust(MAX_LINE // 2, b"a") for _ in range(20))),
            f"Got more than {2 * MAX_BODY} bytes for one response",
        ),
        (with_head(b"X: a\0b"), "Invalid HTTP header"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "Bad status line"),
    ],
    ids=["line", "fields", "sum", "NUL", "no HTTP"],
)
@in_event_loop
async def test_a_response_beyond_the_limits_has_an_unknown_outcome_and_the_error_says_why(
    answer: bytes, reason: str
) -> None:
    """It may have carried a token. The error does not quote it (K06)."""
    with pytest.raises(OutcomeUnknown) as caught:
        await sent_by(answer)
    assert f"no complete answer: ClientResponseError: {reason}." in str(caught.value)


@in_event_loop
async def test_the_reason_of_a_parser_does_not_quote_the_response() -> None:
    """A header may contain a token (K06)."""
    for answer in (
        with_head(b"Set-Cookie: to k=en".ljust(MAX_LINE + 99, b"a")),
        with_head(b"X: to k=en\0"),
        with_head(b"to k=en"),
        b"HTTP/1.1 to k=en\r\n\r\n",
        b"to k=en\r\n\r\n",
    ):
        with pytest.raises(OutcomeUnknown) as caught:
            await sent_by(answer, "to k=en")
        assert "to k=en" not in repr(caught.value)
        assert "ClientResponseError: " in str(caught.value)


@in_event_loop
async def test_one_response_is_received_up_to_a_bound_however_it_is_made() -> None:
    """A hundred bytes of chunk extension for each byte of the body."""
    chunk = b"1;" + b"x" * 100 + b"\r\na\r\n"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    response, _ = await sent_by(answer + chunk * 1_000 + b"0\r\n\r\n")
    assert response.body == b"a" * 1_000
    with pytest.raises(OutcomeUnknown, match=r"ClientPayloadError: [A-Z]"):
        await sent_by(answer + chunk * 30_000 + b"0\r\n\r\n")
    lines = b"X: ".ljust(MAX_LINE - 2, b"a") + b"\r\n"
    until_the_end = b"HTTP/1.1 200 OK\r\n" + lines * 6 + b"\r\n"
    response, _ = await sent_by(until_the_end + GRANTED)
    assert response.body == GRANTED
    with pytest.raises(OutcomeUnknown, match=r"ClientPayloadError: Got more than 2097152 bytes"):
        await sent_by(until_the_end + b"x" * (MAX_BODY - 9))  # it must not look complete


@pytest.mark.parametrize(
    "path", ["/o/%7Etenant%2fx/%74oken", "/token/", "//token", "/a/../token", "/t%20k;v=1"]
)
@in_event_loop
async def test_a_token_url_is_sent_as_it_is(path: str) -> None:
    """Without yarl's normalization: a signed or picky path stays what the server expects."""
    _, head = await sent_by(with_head(), path=path)
    assert head.startswith(b"POST " + path.encode() + b" HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("host", "encoded"), [("faß.example", "xn--fa-hia.example"), ("Bücher.example", "xn--bcher-kva.example")]
)
@in_event_loop
async def test_f37_a_token_request_to_an_international_name_goes_where_api_requests_go(
    host: str, encoded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's own look-up follows an older standard, by which the secrets would go to fass.example."""
    names = name_server(monkeypatch, "127.0.0.1")
    async with listening(with_head()) as endpoint:
        await send(endpoint.url.replace("127.0.0.1", host).replace("/token", "/o/%7Et//a?x=%41"))
    assert names.asked == [encoded] == [URL(f"https://{host}").raw_host]
    head, *lines = endpoint.received.split(b"\r\n")
    assert head == b"POST /o/%7Et//a?x=%41 HTTP/1.1"
    assert f"Host: {encoded}:{endpoint.port}".encode() in lines
