"""`async with session.get(...)` opens and closes a response as aiohttp's own client does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from _api import api
from _event_loop import in_event_loop
from aiohttp import web

from tokensession import AuthedSession, BearerAuth, ManagedSource, Token
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore
from tokensession.testing import OAuth2Server

Get = Callable[..., Any]
"""`client.get`, of aiohttp's client or of a session."""


async def answer(request: web.Request) -> web.StreamResponse:
    if request.path.endswith("/early"):  # without reading the body that is being sent
        return web.Response(text="no, thank you")
    if request.path.endswith("/moved"):
        raise web.HTTPFound("/end")
    return web.Response(body=b"x" * 300_000, status=418 if request.path.endswith("/teapot") else 200)


async def outcome(work: Awaitable[Any]) -> Any:
    """The result, or the error's type and text."""
    try:
        return await work
    except (aiohttp.ClientError, RuntimeError, ValueError, EOFError) as error:
        return type(error), str(error)


def look(response: aiohttp.ClientResponse) -> tuple[Any, ...]:
    return response.status, response.closed, response.connection is None, response._released


async def read(get: Get) -> Any:
    async with get("/x") as response:
        body = await response.read()
    return len(body), look(response), await outcome(response.read()), await outcome(response.content.read())


async def unread(get: Get) -> Any:
    async with get("/x") as response:
        inside = look(response)
    return inside, look(response), await outcome(response.read()), await outcome(response.content.read())


async def streamed(get: Get) -> Any:
    async with get("/x") as response:
        first = len(await response.content.readexactly(10))
    return first, look(response), await outcome(response.text())


async def streamed_to_its_end(get: Get) -> Any:
    async with get("/x") as response:
        size = sum([len(part) async for part in response.content.iter_any()])
    return size, look(response), await outcome(response.read())


async def an_error_inside(get: Get) -> Any:
    kept: list[aiohttp.ClientResponse] = []

    async def block() -> None:
        async with get("/x") as response:
            kept.append(response)
            raise ValueError("of the block")

    return await outcome(block()), look(kept[0]), await outcome(kept[0].read())


async def raise_for_status(get: Get) -> Any:
    """Inside the block, the body can still be read."""
    async with get("/teapot") as response:
        with pytest.raises(aiohttp.ClientResponseError):
            response.raise_for_status()
        return look(response), await outcome(response.read())


async def a_body_that_is_still_being_sent(get: Get) -> Any:
    sent = asyncio.Event()

    async def body() -> Any:
        yield b"x"
        sent.set()
        await asyncio.Event().wait()

    async with get("/early", data=body()) as response:
        await sent.wait()
    return look(response)


async def awaited(get: Get) -> Any:
    response = await get("/x")
    async with response:
        size = len(await response.read())
    return size, look(response)


async def redirected(get: Get) -> Any:
    async with get("/moved") as response:
        return [hop.status for hop in response.history], len(await response.read())


async def cancelled_inside(get: Get) -> Any:
    kept: list[aiohttp.ClientResponse] = []

    async def block() -> None:
        async with get("/x") as response:
            kept.append(response)
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    while not kept:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled(), look(kept[0])


async def never_awaited(get: Get) -> Any:
    opening = get("/x")
    opening.close()
    return await outcome(opening)


SCENES = [
    read,
    unread,
    streamed,
    streamed_to_its_end,
    an_error_inside,
    raise_for_status,
    a_body_that_is_still_being_sent,
    awaited,
    redirected,
    cancelled_inside,
    never_awaited,
]


class Plain(aiohttp.ClientResponse):
    """A response class of the owner of the client."""


@pytest.mark.parametrize("kind", [aiohttp.ClientResponse, Plain])
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@in_event_loop
async def test_a_response_is_left_as_aiohttp_leaves_it(
    scene: Callable[[Get], Awaitable[Any]], kind: type[aiohttp.ClientResponse]
) -> None:
    """With one connection, which the next request needs: a response that keeps it holds up the next scene."""
    async with OAuth2Server() as server, api(answer) as url:

        def client() -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(limit=1)
            return aiohttp.ClientSession(url, connector=connector, response_class=kind)

        provider = OAuth2(**server.credentials | {"base_url": url})
        async with client() as raw, client() as ours:
            async with AuthedSession(provider, store=MemoryStore(), client=ours) as session:
                for _ in range(2):
                    assert await scene(session.get) == await scene(raw.get)


@in_event_loop
async def test_a_request_method_that_a_tool_has_put_in_place_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, seen = aiohttp.ClientSession.request, []

    def request(self: aiohttp.ClientSession, method: str, *args: Any, **options: Any) -> Any:
        seen.append(method)
        return real(self, method, *args, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "request", request)
    async with OAuth2Server() as server:
        async with AuthedSession(OAuth2(**server.credentials), store=MemoryStore()) as session:
            async with session.get("/echo") as response:
                assert response.status == 200
    assert seen[-1] == "GET"


class Counting(ManagedSource):
    """Counts the calls of `token`."""

    count = 0

    async def token(self) -> Token:
        self.count += 1
        return await super().token()


@in_event_loop
async def test_a_source_whose_token_method_is_overridden_is_asked_for_each_request() -> None:
    async with OAuth2Server() as server:
        async with Counting(OAuth2(**server.credentials), store=MemoryStore()) as source:
            async with AuthedSession(source) as session:
                for _ in range(3):
                    async with session.get("/echo") as response:
                        assert response.status == 200
            assert source.count == 3


class Aside:
    """A source with `token` on the object, as test doubles have it."""

    def __init__(self, source: ManagedSource) -> None:
        self.token = source.token


@in_event_loop
async def test_a_source_may_have_its_token_method_on_the_object() -> None:
    async with (
        OAuth2Server() as server,
        ManagedSource(OAuth2(**server.credentials), store="memory:") as source,
    ):
        bearer = BearerAuth(Aside(source), origins=[server.credentials["base_url"]])  # type: ignore[arg-type]
        async with aiohttp.ClientSession(middlewares=(bearer,)) as client:
            async with client.get(server.credentials["base_url"] + "/echo") as response:
                assert response.status == 200


@in_event_loop
async def test_the_token_is_taken_off_headers_that_a_later_middleware_has_replaced() -> None:
    async def replacing(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        request.headers = request.headers.copy()
        response: aiohttp.ClientResponse = await handler(request)
        return response

    async with (
        OAuth2Server() as server,
        ManagedSource(OAuth2(**server.credentials), store="memory:") as source,
    ):
        middlewares = (BearerAuth(source), replacing)
        async with aiohttp.ClientSession(middlewares=middlewares) as client:
            async with client.get(server.credentials["base_url"] + "/echo") as response:
                assert response.status == 200
                assert response.request_info.headers["Authorization"] == "Bearer [redacted]"


@in_event_loop
async def test_closing_a_session_ends_every_request_of_a_crowd_that_waits_for_its_token() -> None:
    """Those that are awake by then, and those that are not."""
    async with OAuth2Server() as server:
        session = AuthedSession(OAuth2(**server.credentials), store="memory:")
        async with server.hold("before") as gate, session:
            requests = [asyncio.create_task(outcome(session.get("/echo"))) for _ in range(1000)]
            await gate.reached()
            gate.open()
        done, _ = await asyncio.wait(requests)
        assert len(done) == 1000


@in_event_loop
async def test_a_request_whose_client_is_closed_before_its_replay_raises_aiohttps_error() -> None:
    """Not an AssertionError from inside of aiohttp."""
    refreshing, refreshed = asyncio.Event(), asyncio.Event()

    class Source:
        async def token(self) -> Token:
            return Token("old", obtained_at=0)

        async def refresh(self, unauthorized: Token | None = None) -> Token:
            refreshing.set()
            await refreshed.wait()
            return Token("new", obtained_at=0)

    async def unauthorized(request: web.Request) -> web.Response:
        return web.Response(status=401)

    async with api(unauthorized) as base:
        client = aiohttp.ClientSession(middlewares=(BearerAuth(Source(), origins=[base]),))
        request = asyncio.create_task(outcome(client.get(f"{base}/x")))
        await refreshing.wait()
        await client.close()
        refreshed.set()
        error, says = await request
    assert error is aiohttp.ClientConnectionError
    assert says == "The session was closed while this request waited for its token."


class Named(AuthedSession):
    """A session with a `request` of its own."""

    seen = 0

    def request(self, method: str, url: Any, **options: Any) -> Any:
        self.seen += 1
        return super().request(method, url, **options)


@in_event_loop
async def test_a_request_method_of_a_subclass_is_called_by_every_method() -> None:
    async with OAuth2Server() as server:
        async with Named(OAuth2(**server.credentials), store="memory:") as session:
            for get in (session.get, session.options, session.delete):
                async with get("/echo"):
                    pass
            assert session.seen == 3
