"""Plain http: to this machine by every name of it, and to the hosts that you name."""

from __future__ import annotations

import logging
import pickle
import socket
from typing import Any

import aiohttp
import pytest
from _api import api, echo
from _event_loop import in_event_loop
from _names import Names, name_server
from _raw_endpoint import listening, send, with_head
from aiohttp import web

from tokensession import AuthedSession, ConfigurationError, ForeignOrigin, ManagedSource, NotSent
from tokensession.providers import OAuth2
from tokensession.testing import OAuth2Server


@pytest.fixture
def astray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A name server that leads every name away. The names that it was asked for."""
    return name_server(monkeypatch).asked


def provider_at(server: OAuth2Server, host: str, **settings: Any) -> OAuth2:
    at = {
        name: str(server.credentials[name]).replace("127.0.0.1", host) for name in ("base_url", "token_url")
    }
    return OAuth2(**{**server.credentials, **at, **settings})


@pytest.mark.parametrize("host", ["localhost", "shop.localhost", "a.B.LocalHost", "shop.localhost."])
@in_event_loop
async def test_k57_names_below_localhost_are_this_machine_whatever_a_name_server_says(
    host: str, astray: list[str]
) -> None:
    """RFC 6761, 6.3: for token requests and for those to the API."""
    async with OAuth2Server() as server:
        async with AuthedSession(provider_at(server, host), store="memory:") as session:
            for _ in range(2):
                await echo(session.get("/echo"))
        assert server.stats.token_requests == 1
    assert astray == []


@pytest.mark.parametrize("scheme", ["http", "ws"])
@in_event_loop
async def test_k57_a_client_of_yours_that_leads_such_a_name_away_sends_nothing(
    scheme: str, astray: list[str]
) -> None:
    """Its resolver is yours, and a token would leave the machine in plain http."""
    async with OAuth2Server() as server, aiohttp.ClientSession() as client:
        provider = provider_at(server, "shop.localhost")
        async with AuthedSession(provider, store="memory:", client=client) as session:
            url = f"{scheme}://shop.localhost:{server.base_url.rpartition(':')[2]}/echo"
            for _ in range(2):
                with pytest.raises(ForeignOrigin, match=r"shop\.localhost leads to 192\.0\.2\.1"):
                    await session.get(url)
        assert server.stats.requests == 0


@in_event_loop
async def test_k57_a_client_of_yours_that_knows_such_a_name_is_used() -> None:
    connector = aiohttp.TCPConnector(resolver=Names())
    async with OAuth2Server() as server, aiohttp.ClientSession(connector=connector) as client:
        provider = provider_at(server, "shop.localhost")
        async with AuthedSession(provider, store="memory:", client=client) as session:
            await echo(session.get("/echo"))
            await echo(session.get("/echo"))


@in_event_loop
async def test_k57_a_client_of_yours_that_does_not_find_such_a_name_raises_what_aiohttp_raises() -> None:
    class NoNames(Names):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
            raise OSError("no such name")

    connector = aiohttp.TCPConnector(resolver=NoNames())
    async with OAuth2Server() as server, aiohttp.ClientSession(connector=connector) as client:
        provider = provider_at(server, "shop.localhost")
        async with AuthedSession(provider, store="memory:", client=client) as session:
            with pytest.raises(aiohttp.ClientConnectorDNSError, match=r"shop\.localhost"):
                await session.get("/echo")
            with pytest.raises(aiohttp.ClientConnectorDNSError, match=r"shop\.localhost"):
                await client.get(f"{session.source.provider.base_url}/echo")


@in_event_loop
async def test_k57_a_proxy_gets_no_request_to_this_machine(astray: list[str]) -> None:
    """The proxy's `localhost` is the proxy's own machine. Token requests go past it, others are refused."""
    async with listening(with_head()) as endpoint, listening(with_head(status=b"500 No")) as proxy:
        at = f"http://127.0.0.1:{proxy.port}"
        assert (await send(endpoint.url.replace("127.0.0.1", "id.localhost"), proxy=at)).status == 200
        assert proxy.connections == 0
    async with OAuth2Server() as server:
        async with AuthedSession(provider_at(server, "shop.localhost"), store="memory:") as session:
            with pytest.raises(ForeignOrigin, match="leads through a proxy"):
                await session.get("/echo", proxy="http://127.0.0.1:9")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@in_event_loop
async def test_k57_a_proxy_on_another_machine_gets_no_plain_http_to_this_one(
    host: str, astray: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would read the token. A variable such as HTTP_PROXY is enough to name one."""
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with OAuth2Server() as server, aiohttp.ClientSession(trust_env=True) as client:
        async with AuthedSession(OAuth2(**server.credentials), store="memory:", client=client) as session:
            await echo(session.get("/echo"))
            with pytest.raises(ForeignOrigin, match=r"127\.0\.0\.1 leads through a proxy"):
                await session.get("/echo", proxy="http://proxy.example:3128")
            await echo(session.get("/echo"))
        provider = provider_at(server, host, token_url=server.credentials["token_url"])
        monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
        async with AuthedSession(provider, store="memory:", client=client) as session:
            with pytest.raises(ForeignOrigin, match=r"leads through a proxy.* Use no proxy"):
                await session.get("/echo")
    assert astray == []


@in_event_loop
async def test_k57_a_proxy_on_this_machine_may_get_plain_http_to_it() -> None:
    """One that shows what is sent, for example."""
    async with OAuth2Server() as server, listening(with_head()) as proxy:
        async with AuthedSession(OAuth2(**server.credentials), store="memory:") as session:
            async with session.get("/echo", proxy=f"http://127.0.0.1:{proxy.port}") as response:
                assert response.status == 200
    assert b"Authorization: Bearer " in proxy.received


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "id.localhost"])
@in_event_loop
async def test_k57_a_token_request_to_this_machine_uses_no_proxy(host: str) -> None:
    async with listening(with_head()) as endpoint:
        if host == "127.9.9.9":
            with pytest.raises(NotSent, match=r"Cannot connect to host 127\.9\.9\.9"):
                await send(f"http://{host}:9/token", proxy=endpoint.url)
        else:
            await send(endpoint.url.replace("127.0.0.1", host), proxy="http://proxy.example:3128")
            assert endpoint.received.startswith(b"POST /token ")


@in_event_loop
async def test_k57_nothing_listens_on_this_machine_means_not_sent(astray: list[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://id.localhost:{unused.getsockname()[1]}/token"
        with pytest.raises(NotSent, match="cannot be reached: "):
            await send(url, proxy="http://127.0.0.1:9")
    assert astray == []


@in_event_loop
async def test_k57_plain_http_goes_to_a_host_that_you_name_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a network of containers, where names have no certificates."""
    asked = name_server(monkeypatch, "127.0.0.1").asked
    caplog.set_level(logging.WARNING, "tokensession")
    async with OAuth2Server() as server:
        with pytest.raises(ConfigurationError, match="must use https"):
            provider_at(server, "keycloak")
        assert caplog.records == []
        provider = provider_at(server, "keycloak", insecure_http_hosts=("keycloak",))
        said = [record.getMessage() for record in caplog.records]
        assert [text.partition(", as insecure_http_hosts allows")[0] for text in said] == [
            "oauth2: base_url is plain http to keycloak",
            "oauth2: token_url is plain http to keycloak",
        ]
        caplog.clear()
        others = ("authorization_url", "device_authorization_url", "revocation_url")
        settings: dict[str, Any] = {name: f"http://keycloak/{name}" for name in others}
        OAuth2(
            token_url="https://id.example.com/token",
            client_id="c",
            client_secret="s",
            insecure_http_hosts=("keycloak",),
            **settings,
        )
        said = [record.getMessage().partition(" is plain http")[0] for record in caplog.records]
        assert sorted(said) == [f"oauth2: {name}" for name in others]
        copied: OAuth2 = pickle.loads(pickle.dumps(provider))
        assert copied.insecure_http_hosts == ("keycloak",)
        async with AuthedSession(provider, store="memory:") as session:
            await echo(session.get("/echo"))
            with pytest.raises(ForeignOrigin):
                await session.get(session.source.origins[0].replace("keycloak", "keycloak.example"))
    assert set(asked) == {"keycloak"}


def test_k57_no_warning_is_logged_for_this_machine_and_for_https(caplog: pytest.LogCaptureFixture) -> None:
    """Also if hosts are named that are not used."""
    caplog.set_level(logging.WARNING, "tokensession")
    for base in ("https://id.example.com", "http://127.0.0.1", "http://x.localhost"):
        OAuth2(
            token_url=f"{base}/token",
            client_id="c",
            client_secret="s",
            refresh_token="r",
            insecure_http_hosts=("keycloak", "id.example.com"),
        )
    assert caplog.records == []


@in_event_loop
async def test_k57_a_redirect_to_this_machine_by_another_name_takes_no_token_along() -> None:
    """Each name and port is an origin of its own."""
    seen: list[str | None] = []

    async def redirect(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        if request.path == "/start":
            port = request.url.port
            return web.Response(status=307, headers={"Location": f"http://other.localhost:{port}/end"})
        return web.json_response({})

    connector = aiohttp.TCPConnector(resolver=Names())
    async with OAuth2Server() as server, api(redirect) as base:
        at = base.replace("127.0.0.1", "shop.localhost")
        source = ManagedSource(provider_at(server, "id.localhost", base_url=at), store="memory:")
        async with aiohttp.ClientSession(connector=connector) as client, source:
            async with AuthedSession(source, client=client) as session:
                await echo(session.get("/start"))
    assert [bool(header) for header in seen] == [True, False]
