"""Token requests over a real network: what was not sent, what may have arrived, what is too much."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import traceback
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

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
    json_response,
    redirect,
)
from tokensession.transport import MAX_BODY


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scene()

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def serving(handler: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """A token endpoint of our own."""
    app = web.Application()
    app.router.add_post("/token", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    finally:
        await runner.cleanup()


async def post(server: PriavaServer, *, connect: float = 5, total: float = 20) -> TokenResponse:
    provider = Priava(**server.credentials)
    assert provider.credential is not None
    return await AiohttpTransport().send(provider.request(provider.credential), connect=connect, total=total)


def test_a_reply_comes_back_whole() -> None:
    """Status, headers by lower-case name, body."""

    async def scene() -> None:
        async with PriavaServer() as server:
            response = await post(server)
            assert response.status == 200
            assert response.header("content-type") == "application/json"
            assert b"access_token" in response.body
            assert server.invalid_requests == []

    run(scene)


def test_a_closed_port_means_not_sent() -> None:
    """The provider has seen nothing: no grant can be spent."""

    async def scene() -> None:
        server = PriavaServer()
        async with server:
            pass
        with pytest.raises(NotSent, match="ClientConnectorError"):
            await post(server)

    run(scene)


def test_a_host_that_no_name_server_can_be_asked_for_means_not_sent() -> None:
    """Two dots in a row are a typing error, and no lost reply: nothing can have been spent."""

    async def scene() -> None:
        request = TokenRequest("https://id..example/token", headers=(), body=b"")
        with pytest.raises(NotSent, match="none that aiohttp can request"):
            await AiohttpTransport().send(request, connect=5, total=20)
        elsewhere, proxied = replace(request, url="http://127.0.0.1:9/"), "http://proxy..example:3128"
        with pytest.raises(NotSent, match="proxy"):
            await AiohttpTransport(proxy=proxied).send(elsewhere, connect=5, total=20)

    run(scene)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ssl": "no"},
        {"ssl": None},
        {"proxy": ""},
        {"proxy": 3128},
        {"proxy": "proxy.example:3128"},
        {"proxy": "socks5://proxy.example"},
        {"proxy": "http://me:hunter2@[::1"},
    ],
    ids=str,
)
def test_an_endpoint_that_could_send_nothing_is_refused_when_it_is_made(wrong: dict[str, Any]) -> None:
    """Found out at the first token request, it would look like a reply that was lost."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))) as caught:
        AiohttpTransport(**wrong)
    assert "hunter2" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_a_connection_that_is_never_accepted_means_not_sent() -> None:
    """A full backlog: the connect time-out ends it."""

    async def scene() -> None:
        with socket.socket() as full, socket.socket() as first, socket.socket() as second:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for filler in (first, second):
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
            provider = OAuth2(
                token_url=f"http://127.0.0.1:{full.getsockname()[1]}/token",
                client_id="c",
                client_secret="s",
                refresh_token="r",
            )
            assert provider.credential is not None
            with pytest.raises(NotSent):
                await AiohttpTransport().send(provider.request(provider.credential), connect=0.05, total=20)

    run(scene)


@pytest.mark.parametrize(
    "fault", [Reset(spent=False), Reset(spent=True), Truncate()], ids=["reset", "reset, spent", "truncated"]
)
def test_f39_a_broken_connection_after_sending_means_unknown_and_is_not_repeated(
    fault: Reset | Truncate,
) -> None:
    """A connection reset after sending, or in the reply, costs exactly one POST, of unknown outcome."""

    async def scene() -> None:
        async with PriavaServer() as server:
            server.script(fault)
            with pytest.raises(OutcomeUnknown):
                await post(server)
            assert server.stats.token_requests == 1

    run(scene)


@pytest.mark.parametrize("fault", [Hang(), Drip(pause=0.01)], ids=["hang", "slow drip"])
def test_f03_f10_a_server_that_dawdles_is_ended_by_the_total_time_out(fault: Hang | Drip) -> None:
    """A real server that hangs, or sends a byte now and then for ever, is ended by the total time-out."""

    async def scene() -> None:
        async with PriavaServer() as server:
            server.script(fault)
            with pytest.raises(OutcomeUnknown, match="TimeoutError"):
                await post(server, total=0.2)

    run(scene)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_f38_a_redirect_of_the_token_endpoint_is_not_followed(status: int) -> None:
    """A token endpoint that redirects gets no second request anywhere: the secrets in the body stay here."""

    async def scene() -> None:
        async with PriavaServer() as server, PriavaServer() as elsewhere:
            server.script(redirect(elsewhere.token_url, status))
            provider = Priava(**server.credentials)
            assert provider.credential is not None
            response = await post(server)
            with pytest.raises(InvalidTokenResponse, match="redirect"):
                provider.read(response, provider.credential, sent_at=0)
            assert elsewhere.stats.token_requests == 0

    run(scene)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "bare deflate"])
def test_compressed_replies_are_read_although_none_was_asked_for(encoding: str) -> None:
    """Some gateways compress whatever is asked. Brotli, which aiohttp would offer, is not offered."""
    body = b'{"access_token": "a"}'
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = {
        "gzip": gzip.compress(body),
        "x-gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "bare deflate": bare.compress(body) + bare.flush(),
    }[encoding]

    async def scene() -> None:
        async with PriavaServer() as server:
            server.script(Response(200, packed, (("Content-Encoding", encoding.split()[-1]),)))
            assert (await post(server)).body == body

    run(scene)


def test_token_requests_ask_for_a_reply_that_is_not_compressed() -> None:
    """What cannot be read for certain is not asked for: a rotated token could be in it."""
    seen: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Accept-Encoding"))
        return web.json_response({})

    async def scene() -> None:
        async with serving(handler) as url:
            provider = OAuth2(token_url=url, client_id="c", client_secret="s", refresh_token="r")
            assert provider.credential is not None
            await AiohttpTransport().send(provider.request(provider.credential), connect=5, total=5)
        assert seen == ["identity"]

    run(scene)


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("what", ["long", "bomb", "garbage"])
def test_too_much_is_refused_before_it_fills_the_memory(what: str, status: int) -> None:
    """Row 35: a long body, a small one that inflates to a huge one, one that does not inflate.

    A success may have been a rotated token all the same, which is known to who must not send the old one.
    """
    gzipped = (("Content-Encoding", "gzip"),)
    fault = {
        "long": Response(status, b"x" * (MAX_BODY + 1)),
        "bomb": Response(status, gzip.compress(b"x" * 64 * MAX_BODY), gzipped),
        "garbage": Response(status, b"no gzip at all", gzipped),
    }[what]

    async def scene() -> None:
        async with PriavaServer() as server:
            server.script(fault)
            with pytest.raises(InvalidTokenResponse) as caught:
                await post(server)
            assert caught.value.granted == (status == 200)

    run(scene)


def test_f45_no_secret_is_in_an_error_of_the_endpoint_or_in_anything_that_hangs_on_it() -> None:
    """aiohttp's exceptions carry the request's headers: none of them is in ours or in its traceback."""

    async def garbage(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"this is not HTTP\r\n\r\n")
        await writer.drain()
        writer.close()

    async def scene() -> None:
        server = await asyncio.start_server(garbage, "127.0.0.1", 0)
        async with server:
            provider = OAuth2(
                token_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token",
                client_id="client",
                client_secret="planted-client-secret",
                refresh_token="planted-refresh-token",
            )
            assert provider.credential is not None
            request = provider.request(provider.credential)
            with pytest.raises(OutcomeUnknown) as caught:
                await AiohttpTransport().send(request, connect=5, total=5)
        error: BaseException | None = caught.value
        assert error is not None
        assert error.__cause__ is None
        assert error.__context__ is None
        shown = "".join(traceback.format_exception(error)) + repr(vars(error))
        basic = dict(request.headers)["Authorization"].removeprefix("Basic ")
        assert not any(secret in shown for secret in ("planted", basic))

    run(scene)


def test_token_requests_do_not_wait_for_the_pool_of_the_api() -> None:
    """A pool of one connection, taken by an API request, while a token is fetched."""

    async def scene() -> None:
        async with OAuth2Server() as server:
            connector = aiohttp.TCPConnector(limit=1)
            async with aiohttp.ClientSession(connector=connector) as client:
                async with client.get(server.base_url + "/open/echo") as taken:
                    provider = OAuth2(**server.credentials)
                    assert provider.credential is not None
                    request = provider.request(provider.credential)
                    response = await AiohttpTransport().send(request, connect=5, total=5)
                    assert response.status == 200
                    await taken.read()

    run(scene)


def test_cookies_of_a_token_endpoint_are_not_kept() -> None:
    """A token request takes nothing along and brings nothing back but its reply."""
    seen: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        return web.json_response({}, headers={"Set-Cookie": "sticky=1; Path=/"})

    async def scene() -> None:
        async with serving(handler) as url:
            provider = OAuth2(token_url=url, client_id="c", client_secret="s", refresh_token="r")
            assert provider.credential is not None
            transport = AiohttpTransport()
            for _ in range(2):
                await transport.send(provider.request(provider.credential), connect=5, total=5)
        assert seen == [None, None]

    run(scene)


def test_json_with_any_content_type_is_passed_on() -> None:
    """Row 1: the Content-Type is nobody's business here."""

    async def scene() -> None:
        async with PriavaServer() as server:
            server.script(
                json_response(200, {"access_token": "a"}, content_type="text/plain;charset=iso-8859-1")
            )
            assert (await post(server)).body == b'{"access_token": "a"}'

    run(scene)
