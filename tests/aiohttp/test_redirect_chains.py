"""K32: redirects that leave the allowed origins, and come back. The token stays away from then on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from _api import Numbered, api, client_of, scripted_session, status
from _event_loop import in_event_loop
from aiohttp import web

from tokensession import BearerAuth

Get = Callable[..., Any]


class World:
    """An API and a foreign host, which record where the token came.

    `?hops=302:F:there,307:A:back` redirects by 302 to the foreign host, which redirects by 307 to the API.
    """

    def __init__(self) -> None:
        self.base = self.foreign = ""
        self.seen: list[tuple[str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        where = "api" if str(request.url.origin()) == self.base else "foreign"
        self.seen.append((request.path, where + " with the token" * ("Authorization" in request.headers)))
        hops = request.query.get("hops", "")
        if not hops:
            return web.Response()
        hop, _, rest = hops.partition(",")
        code, target, path = hop.split(":")
        to = self.foreign if target == "F" else self.base
        return web.Response(status=int(code), headers={"Location": f"{to}/{path}?hops={rest}"})

    def hops(self) -> list[str]:
        """Where each hop went, and whether it carried the token. Forgets them."""
        seen, self.seen = self.seen, []
        return [where for _, where in seen]


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    it = World()
    async with api(it.answer) as it.base, api(it.answer) as it.foreign:
        yield it


@contextlib.asynccontextmanager
async def getting(it: World, how: str) -> AsyncIterator[Get]:
    """How a request is made: by a session, a session over your client, or the middleware alone."""
    if how == "session":
        async with scripted_session(it.base, "a") as session:
            yield session.request
    elif how == "session over a client":
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout, trace_configs=[traces()]) as client:
            async with scripted_session(it.base, "a", client=client) as session:
                yield session.request
    else:
        async with client_of(it.base) as client:
            yield client.request


def traces() -> aiohttp.TraceConfig:
    async def nothing(*_: Any) -> None: ...

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(nothing)
    config.on_request_end.append(nothing)
    return config


HOW = pytest.mark.parametrize("how", ["session", "session over a client", "middleware"])


TOKEN, API, FOREIGN = "api with the token", "api", "foreign"


async def follow(get: Get, it: World, hops: str, method: str = "GET", start: str = "") -> list[str]:
    assert await status(get(method, f"{start or it.base}/first", params={"hops": hops})) == 200
    return it.hops()


@HOW
@pytest.mark.parametrize("back", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("away", [302, 307])
@in_event_loop
async def test_k32_a_redirect_chain_that_has_left_the_origins_stays_without_the_token(
    how: str, away: int, back: int
) -> None:
    """Otherwise a foreign host chooses what is requested with it."""
    async with world() as it, getting(it, how) as get:
        for method in ("GET", "POST", "PUT"):
            there_and_back = f"{away}:F:there,{back}:A:chosen"
            assert await follow(get, it, there_and_back, method) == [TOKEN, FOREIGN, API]
        hops = f"{away}:F:1,{away}:F:2,{back}:A:3,302:A:4,307:F:5,{back}:A:6"
        assert await follow(get, it, hops) == [TOKEN, FOREIGN, FOREIGN, API, API, FOREIGN, API]
        assert await follow(get, it, "") == [TOKEN]  # the next request has it


@HOW
@in_event_loop
async def test_k32_redirects_within_the_origins_keep_the_token(how: str) -> None:
    async with world() as it, getting(it, how) as get:
        assert await follow(get, it, "302:A:1,307:A:2") == [TOKEN] * 3


@pytest.mark.parametrize("back", [302, 307])
@in_event_loop
async def test_f74_a_chain_that_begins_at_a_foreign_host_never_gets_the_token(back: int) -> None:
    """With the middleware alone, any URL can be requested."""
    async with world() as it, getting(it, "middleware") as get:
        assert await follow(get, it, f"{back}:A:chosen", start=it.foreign) == [FOREIGN, API]
        assert await follow(get, it, "") == [TOKEN]


@HOW
@in_event_loop
async def test_f74_requests_at_the_same_time_do_not_disturb_each_other(how: str) -> None:
    """Each chain is its own, in tasks of their own and by turns in one."""
    async with world() as it, getting(it, how) as get:

        async def one(number: int) -> None:
            hops = "307:F:there,307:A:chosen" if number % 2 else "307:A:x,307:A:y"
            assert await status(get("GET", f"{it.base}/first", params={"hops": hops})) == 200

        await asyncio.gather(*(one(number) for number in range(40)))
        seen = it.seen
        assert all(where == TOKEN for path, where in seen if path in ("/first", "/x", "/y"))
        assert not any("token" in where for path, where in seen if path in ("/there", "/chosen"))
        assert len(seen) == 120


@in_event_loop
async def test_f74_a_middleware_that_runs_each_hop_in_a_task_of_its_own_changes_nothing() -> None:
    """As `asyncio.wait_for` does before Python 3.12."""

    async def apart(request: Any, handler: Any) -> Any:
        return await asyncio.ensure_future(handler(request))

    async with world() as it, scripted_session(it.base, "a") as session:
        await session.get("/first", params={"hops": "307:F:a,307:A:b"}, middlewares=[apart])
        assert it.hops() == [TOKEN, FOREIGN, API]


@in_event_loop
async def test_f74_a_request_made_while_another_one_is_redirected_is_its_own_chain() -> None:
    """A trace makes it, in the same task and with the same client, between two hops."""
    async with world() as it:
        config = aiohttp.TraceConfig()

        async def between(session: Any, context: Any, params: Any) -> None:
            if context.trace_request_ctx is None:
                await client.get("/between", trace_request_ctx="inner")
                inner = {"hops": "302:F:x,302:A:y"}
                await client.get("/first", params=inner, trace_request_ctx="inner")

        config.on_request_redirect.append(between)
        async with client_of(it.base, trace_configs=[config]) as client:
            await client.get("/first", params={"hops": "302:F:there,302:A:chosen"})
        inner = [TOKEN, TOKEN, FOREIGN, API]
        assert it.hops() == [TOKEN, *inner, FOREIGN, *inner, API]


@in_event_loop
async def test_f74_what_has_left_one_middleware_s_origins_may_be_within_those_of_another() -> None:
    async with world() as it:
        narrow = BearerAuth(Numbered(), origins=[it.base])
        wide = BearerAuth(Numbered(), origins=[it.base, it.foreign])
        async with aiohttp.ClientSession(middlewares=(narrow, wide)) as client:
            await client.get(f"{it.base}/first", params={"hops": "302:F:there,302:A:back"})
        assert it.hops() == [TOKEN, "foreign with the token", TOKEN]


@in_event_loop
async def test_f74_a_redirect_from_elsewhere_gets_the_token_of_neither_of_two_middlewares() -> None:
    """Each has its own origins, and the redirect comes from outside of one and leaves the other."""
    async with world() as it:
        middlewares = [BearerAuth(Numbered(), origins=[each]) for each in (it.base, it.foreign)]
        async with aiohttp.ClientSession(middlewares=middlewares) as client:
            await client.get(f"{it.base}/first", params={"hops": "302:F:there"})
            assert it.hops() == [TOKEN, FOREIGN]
        async with aiohttp.ClientSession(middlewares=middlewares) as client:
            await client.get(f"{it.foreign}/first")
            assert it.hops() == ["foreign with the token"]


@in_event_loop
async def test_k32_a_handshake_that_is_redirected_away_and_back_has_no_token() -> None:
    async with world() as it, scripted_session(it.base, "a") as session:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect("/first", params={"hops": "302:F:there,302:A:chosen"})
        assert it.hops() == [TOKEN, FOREIGN, API]
