"""K32: redirects that leave the allowed origins, and come back. The token stays away from then on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from _api import Numbered, api, run
from aiohttp import web

from tokensession import AuthedSession, BearerAuth, ManagedSource
from tokensession.providers import OAuth2
from tokensession.testing import ScriptedTransport, token_response

Get = Callable[..., Any]


class World:
    """An API and a foreign host, which record where the token came.

    `?hops=302:F:there,307:A:back` redirects by 302 to the foreign host, which redirects by 307 to the API.
    """

    def __init__(self) -> None:
        self.base = self.foreign = ""
        self.seen: list[tuple[str, str, bool]] = []

    async def _answer(self, request: web.Request, where: str) -> web.Response:
        self.seen.append((where, request.path, "Authorization" in request.headers))
        hops = request.query.get("hops", "")
        if not hops:
            return web.Response()
        hop, _, rest = hops.partition(",")
        code, target, path = hop.split(":")
        to = self.foreign if target == "F" else self.base
        return web.Response(status=int(code), headers={"Location": f"{to}/{path}?hops={rest}"})

    async def on_api(self, request: web.Request) -> web.Response:
        return await self._answer(request, "api")

    async def on_foreign(self, request: web.Request) -> web.Response:
        return await self._answer(request, "foreign")

    def tokens(self) -> list[tuple[str, bool]]:
        """Where each hop went, and whether it carried the token. Forgets them."""
        seen, self.seen = self.seen, []
        return [(where, had) for where, _, had in seen]


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    it = World()
    async with api(it.on_api) as it.base, api(it.on_foreign) as it.foreign:
        yield it


def session_of(it: World, **options: Any) -> AuthedSession:
    provider = OAuth2(
        token_url=f"{it.base}/token", client_id="c", refresh_token="r", base_url=it.base, auth="post"
    )
    transport = ScriptedTransport(token_response({"access_token": "a", "expires_in": 3600}))
    return AuthedSession(ManagedSource(provider, transport, store="memory:"), **options)


@contextlib.asynccontextmanager
async def getting(it: World, how: str) -> AsyncIterator[Get]:
    """How a request is made: by a session, a session over your client, or the middleware alone."""
    async with contextlib.AsyncExitStack() as stack:
        if how == "session":
            yield (await stack.enter_async_context(session_of(it))).request
        elif how == "session over a client":
            client = await stack.enter_async_context(
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), trace_configs=[traces()])
            )
            yield (await stack.enter_async_context(session_of(it, client=client))).request
        else:
            bearer = BearerAuth(Numbered(), origins=[it.base])
            client = await stack.enter_async_context(aiohttp.ClientSession(middlewares=(bearer,)))
            yield client.request


def traces() -> aiohttp.TraceConfig:
    async def nothing(*_: Any) -> None: ...

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(nothing)
    config.on_request_end.append(nothing)
    return config


HOW = pytest.mark.parametrize("how", ["session", "session over a client", "middleware"])


async def follow(
    get: Get, it: World, hops: str, method: str = "GET", start: str = ""
) -> list[tuple[str, bool]]:
    async with get(method, f"{start or it.base}/first", params={"hops": hops}) as response:
        assert response.status == 200
    return it.tokens()


@HOW
@pytest.mark.parametrize("back", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("away", [302, 307])
def test_k32_a_redirect_chain_that_has_left_the_origins_stays_without_the_token(
    how: str, away: int, back: int
) -> None:
    """Otherwise a foreign host chooses what is requested with it."""

    async def scene() -> None:
        async with world() as it, getting(it, how) as get:
            for method in ("GET", "POST", "PUT"):
                hops = f"{away}:F:there,{back}:A:chosen"
                assert await follow(get, it, hops, method) == [
                    ("api", True),
                    ("foreign", False),
                    ("api", False),
                ]
            hops = f"{away}:F:1,{away}:F:2,{back}:A:3,302:A:4,307:F:5,{back}:A:6"
            found = await follow(get, it, hops)
            assert [had for _, had in found] == [True, *[False] * 6]
            assert await follow(get, it, "") == [("api", True)]  # the next request has it

    run(scene)


@HOW
def test_k32_redirects_within_the_origins_keep_the_token(how: str) -> None:
    async def scene() -> None:
        async with world() as it, getting(it, how) as get:
            assert await follow(get, it, "302:A:1,307:A:2") == [("api", True)] * 3

    run(scene)


@pytest.mark.parametrize("back", [302, 307])
def test_f74_a_chain_that_begins_at_a_foreign_host_never_gets_the_token(back: int) -> None:
    """With the middleware alone, any URL can be requested."""

    async def scene() -> None:
        async with world() as it, getting(it, "middleware") as get:
            found = await follow(get, it, f"{back}:A:chosen", start=it.foreign)
            assert found == [("foreign", False), ("api", False)]
            assert await follow(get, it, "") == [("api", True)]

    run(scene)


@HOW
def test_f74_requests_at_the_same_time_do_not_disturb_each_other(how: str) -> None:
    """Each chain is its own, in tasks of their own and by turns in one."""

    async def scene() -> None:
        async with world() as it, getting(it, how) as get:

            async def one(number: int) -> None:
                hops = "307:F:there,307:A:chosen" if number % 2 else "307:A:x,307:A:y"
                async with get("GET", f"{it.base}/first", params={"hops": hops}) as response:
                    assert response.status == 200

            await asyncio.gather(*(one(number) for number in range(40)))
            seen = it.seen
            assert all(had for _, path, had in seen if path in ("/first", "/x", "/y"))
            assert not any(had for _, path, had in seen if path in ("/there", "/chosen"))
            assert len(seen) == 120

    run(scene)


def test_f74_a_middleware_that_runs_each_hop_in_a_task_of_its_own_changes_nothing() -> None:
    """As `asyncio.wait_for` does before Python 3.12."""

    async def apart(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        return await asyncio.ensure_future(handler(request))

    async def scene() -> None:
        async with world() as it, session_of(it) as session:
            async with session.get("/first", params={"hops": "307:F:a,307:A:b"}, middlewares=[apart]):
                pass
            assert it.tokens() == [("api", True), ("foreign", False), ("api", False)]

    run(scene)


def test_f74_a_request_made_while_another_one_is_redirected_is_its_own_chain() -> None:
    """A trace makes it, in the same task and with the same client, between two hops."""

    async def scene() -> None:
        async with world() as it:
            bearer = BearerAuth(Numbered(), origins=[it.base])
            config = aiohttp.TraceConfig()

            async def between(session: Any, context: Any, params: Any) -> None:
                if context.trace_request_ctx is None:
                    async with client.get(f"{it.base}/between", trace_request_ctx="inner"):
                        pass
                    async with client.get(
                        f"{it.base}/first", params={"hops": "302:F:x,302:A:y"}, trace_request_ctx="inner"
                    ):
                        pass

            config.on_request_redirect.append(between)
            async with aiohttp.ClientSession(middlewares=(bearer,), trace_configs=[config]) as client:
                async with client.get(f"{it.base}/first", params={"hops": "302:F:there,302:A:chosen"}):
                    pass
            inner = [("api", True), ("api", True), ("foreign", False), ("api", False)]
            assert it.tokens() == [("api", True), *inner, ("foreign", False), *inner, ("api", False)]

    run(scene)


def test_f74_what_has_left_one_middleware_s_origins_may_be_within_those_of_another() -> None:
    async def scene() -> None:
        async with world() as it:
            narrow = BearerAuth(Numbered(), origins=[it.base])
            wide = BearerAuth(Numbered(), origins=[it.base, it.foreign])
            async with aiohttp.ClientSession(middlewares=(narrow, wide)) as client:
                async with client.get(f"{it.base}/first", params={"hops": "302:F:there,302:A:back"}):
                    pass
            assert it.tokens() == [("api", True), ("foreign", True), ("api", True)]

    run(scene)


def test_f74_a_redirect_from_elsewhere_gets_the_token_of_neither_of_two_middlewares() -> None:
    """Each has its own origins, and the redirect comes from outside of one and leaves the other."""

    async def scene() -> None:
        async with world() as it:
            ours, theirs = (
                BearerAuth(Numbered(), origins=[it.base]),
                BearerAuth(Numbered(), origins=[it.foreign]),
            )
            async with aiohttp.ClientSession(middlewares=(ours, theirs)) as client:
                async with client.get(f"{it.base}/first", params={"hops": "302:F:there"}):
                    pass
            assert it.tokens() == [("api", True), ("foreign", False)]
            async with aiohttp.ClientSession(middlewares=(ours, theirs)) as client:
                async with client.get(f"{it.foreign}/first"):
                    pass
            assert it.tokens() == [("foreign", True)]

    run(scene)


def test_k32_a_handshake_that_is_redirected_away_and_back_has_no_token() -> None:
    async def scene() -> None:
        async with world() as it, session_of(it) as session:
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect("/first", params={"hops": "302:F:there,302:A:chosen"})
            assert it.tokens() == [("api", True), ("foreign", False), ("api", False)]

    run(scene)
