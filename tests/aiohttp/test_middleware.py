"""`BearerAuth` on a ClientSession of your own: origins at every hop, 401s, bodies, secrets."""

from __future__ import annotations

import asyncio
import io
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from _api import client_of, echo, session_of, status
from _event_loop import in_event_loop

from tokensession import AiohttpTransport, BearerAuth, ConfigurationError, ManagedSource, Policy, Token
from tokensession.providers import Oto
from tokensession.stores import MemoryStore
from tokensession.testing import OtoServer, json_response


class Fixed:
    """The smallest possible token source."""

    async def token(self) -> Token:
        return Token("secret", obtained_at=0.0)


def managed(server: OtoServer, policy: Policy | None = None) -> ManagedSource:
    return ManagedSource(Oto(**server.credentials), AiohttpTransport(), store=MemoryStore(), policy=policy)


def with_auth(server: OtoServer, policy: Policy | None = None, **options: Any) -> aiohttp.ClientSession:
    return client_of(server.base_url, managed(server, policy), **options)


@in_event_loop
async def test_f37_a_clientsession_of_your_own_sends_the_token_to_the_providers_origin_only() -> None:
    """Requests to another origin than those allowed pass through without the token."""
    async with OtoServer() as server, OtoServer() as other:
        async with aiohttp.ClientSession(middlewares=(BearerAuth(managed(server)),)) as client:
            assert (await echo(client.get(server.base_url + "/open/echo")))["authorized"]
            assert not (await echo(client.get(other.base_url + "/open/echo")))["authorized"]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@in_event_loop
async def test_f37_a_redirect_to_another_origin_is_followed_without_the_token(code: int) -> None:
    """Every hop is checked: a redirect to another origin loses the token, one within the origin keeps it."""
    async with OtoServer() as server, OtoServer() as other:
        async with with_auth(server) as client, session_of(server) as session:
            for get in (client.get, session.get):
                for target, expected in ((other, False), (server, True)):
                    to = {"to": target.base_url + "/open/echo", "status": str(code)}
                    assert (await echo(get("/redirect", params=to)))["authorized"] is expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"data": b"bytes"},
        lambda: {"data": "text"},
        lambda: {"json": {"a": 1}},
        lambda: {"data": {"field": "value"}},
        lambda: {"data": io.BytesIO(b"in memory")},
        lambda: {"data": b"large" * 100_000},
        lambda: {"data": b"expected", "expect100": True},
        dict,
    ],
    ids=["bytes", "text", "json", "form", "file in memory", "large", "100-continue", "none"],
)
@in_event_loop
async def test_f32_a_401_is_answered_by_one_refresh_and_one_replay_with_the_body(
    make: Callable[[], dict[str, Any]],
) -> None:
    """A 401 on a token that looks valid: one forced refresh, one replay with the whole body."""
    async with OtoServer() as server, with_auth(server) as client:
        first = await echo(client.post("/echo", **make()))
        server.revoke_access_tokens()
        assert (await echo(client.post("/echo", **make())))["body"] == first["body"]
        assert (server.stats.token_requests, server.stats.unauthorized) == (2, 1)


@in_event_loop
async def test_f46_a_stream_that_has_been_read_is_never_replayed_empty() -> None:
    """A body that was a stream is not replayed empty: the 401 is returned, and the next request succeeds."""

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000

    async with OtoServer() as server, with_auth(server) as client:
        await client.get("/echo")
        server.revoke_access_tokens()
        before = server.stats.requests
        async with client.post("/echo", data=stream()) as response:
            assert response.status == 401
            assert await response.read()
        assert server.stats.requests == before + 1
        assert len((await echo(client.post("/echo", data=stream())))["body"]) == 10_000


@in_event_loop
async def test_f47_a_large_401_and_a_pool_of_one_connection_do_not_deadlock() -> None:
    """A large 401 is released before the replay: a pool of one connection does not wait for itself."""
    connector = aiohttp.TCPConnector(limit=1)
    async with OtoServer() as server, with_auth(server, connector=connector) as client:
        await client.get("/echo")
        server.revoke_access_tokens()
        assert await status(client.get("/large-401")) == 200


@in_event_loop
async def test_f33_a_second_401_is_returned_and_further_requests_cause_no_refresh() -> None:
    """Twenty requests that are always answered 401 cause one forced refresh, one replay, and twenty 401s."""
    async with OtoServer() as server, with_auth(server) as client:
        assert [await status(client.get("/status/401")) for _ in range(20)] == [401] * 20
        assert (server.stats.token_requests, server.stats.requests) == (2, 21)


@in_event_loop
async def test_if_the_token_cannot_be_replaced_its_error_is_raised_and_nothing_stays_open() -> None:
    """The error says more than the 401, and the connection is released."""
    async with OtoServer() as server, with_auth(server, Policy(retry_within=0)) as client:
        await client.get("/echo")
        server.revoke_access_tokens()
        server.script(json_response(500, {}))
        with pytest.raises(Exception, match="answered 500"):
            await client.get("/large-401")
        assert not client.connector._acquired


@in_event_loop
async def test_f01_a_request_cancelled_during_its_refresh_leaves_no_connection_behind() -> None:
    """Cancelling a request that waits for its refresh leaves no connection open, and the refresh goes on."""
    async with OtoServer() as server, with_auth(server) as client:
        await client.get("/echo")
        server.revoke_access_tokens()
        async with server.hold("before") as gate:
            request = asyncio.create_task(client.get("/echo")._coro)
            await gate.reached()
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        assert await status(client.get("/echo")) == 200
        assert server.stats.token_requests == 2
        assert len(client.connector._acquired) <= 1


@in_event_loop
async def test_f45_the_token_is_in_no_response_and_no_exception() -> None:
    """request_info, raise_for_status, redirect history and tracebacks of aiohttp all show [redacted]."""
    async with OtoServer() as server:
        source = managed(server)
        secret = (await source.token()).access_token
        async with client_of(server.base_url, source, raise_for_status=True) as client:
            with pytest.raises(aiohttp.ClientResponseError) as caught:
                await client.get("/status/404")
            async with client.get("/redirect", params={"to": "/echo"}) as response:
                infos = [each.request_info for each in (caught.value, response, *response.history)]
            await server.close()
            with pytest.raises(aiohttp.ClientConnectionError) as broken:
                await client.get("/echo")
            errors = (caught.value, broken.value)
            shown = [repr(each) for each in (*infos, *errors)]
            shown += [line for error in errors for line in traceback.format_exception(error)]
            assert not any(secret in text for text in shown)
            assert "[redacted]" in repr(response.request_info)


@pytest.mark.parametrize("limit", [1, 100])
@in_event_loop
async def test_f48_a_refresh_cannot_re_enter_the_session_that_waits_for_it(limit: int) -> None:
    """Token requests use no middleware and no connection pool of the session, even on the same origin."""
    seen: list[str] = []

    async def own(request: Any, handler: Any) -> Any:
        seen.append(request.url.path)
        return await handler(request)

    async with OtoServer() as server:
        middlewares = own, BearerAuth(managed(server))
        connector = aiohttp.TCPConnector(limit=limit)
        async with aiohttp.ClientSession(
            server.base_url, connector=connector, middlewares=middlewares
        ) as client:
            for _ in range(2):
                assert await status(client.get("/large-401")) == 200
                server.revoke_access_tokens()
        assert server.stats.token_requests == 2
        assert server.invalid_requests == [], "no token request had an Authorization header"
    assert seen == ["/large-401"] * 2


@in_event_loop
async def test_with_a_source_that_cannot_refresh_the_401_is_returned() -> None:
    async with OtoServer() as server, client_of(server.base_url, Fixed()) as client:
        assert await status(client.get("/echo")) == 401
        assert server.stats.requests == 1


def test_invalid_arguments_are_an_error_that_names_them() -> None:
    """Without origins, the token could go anywhere."""
    provider: Any = Oto(refresh_token="rt-secret")
    for source, origins, says in (
        (Fixed(), None, "origins must name at least one origin .* this is None"),
        (Fixed(), [], "origins must name at least one origin .* this is a list"),
        (Fixed(), 7, "origins must be strings, not an int"),
        (Fixed(), [7], "origins must be a string, not an int"),
        (Fixed(), ["api.example.com"], "origins must be an absolute https URL .* 15 characters"),
        (Fixed(), ["https://*.example.com"], "There are no patterns"),  # its requests would have no token
        (Fixed(), ["https://api.example.com/v1"], r"not have a path \(https://api\.example\.com/"),
        (provider, None, r"source must have a token\(\) method, and an Oto has none.*ManagedSource"),
        (Fixed, None, r"source must have a token\(\) method, and the class Fixed has none"),
        ("at-secret", None, "source must have .*, and a string of 9 characters has none"),
    ):
        with pytest.raises(ConfigurationError, match=says) as caught:
            BearerAuth(source, origins=origins)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)


def test_middleware_is_compared_and_hashed_by_identity() -> None:
    """You may put it into a set."""
    one, other = (BearerAuth(Fixed(), origins=["https://a.example"]) for _ in range(2))
    assert len({one, other, one}) == 2


@in_event_loop
async def test_configured_headers_are_added_for_the_allowed_origins_only() -> None:
    """Priava's TenantRegion, for example. A request's own value wins."""
    async with OtoServer() as server, OtoServer() as other:
        bearer = BearerAuth(managed(server), headers=[("TenantRegion", "EU")])
        async with aiohttp.ClientSession(server.base_url, middlewares=(bearer,)) as client:
            assert ["TenantRegion", "EU"] in (await echo(client.get("/echo")))["headers"]
            seen = await echo(client.get("/echo", headers={"tenantregion": "US"}))
            assert ["tenantregion", "US"] in seen["headers"]
            seen = await echo(client.get(other.base_url + "/open/echo"))
            assert not any(name == "TenantRegion" for name, _ in seen["headers"])


@in_event_loop
async def test_k40_a_configured_header_that_comes_twice_is_sent_with_both_values() -> None:
    async with OtoServer() as server:
        bearer = BearerAuth(managed(server), headers=[("Prefer", "a"), ("X-One", "1"), ("prefer", "b")])
        async with aiohttp.ClientSession(middlewares=(bearer,)) as client:
            headers = (await echo(client.get(f"{server.base_url}/echo")))["headers"]
            assert [pair for pair in headers if pair[0].lower() == "prefer"] == [["Prefer", "a, b"]]
            assert ["X-One", "1"] in headers
