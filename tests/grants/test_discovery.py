"""Finding a server by its issuer (RFC 8414; OpenID Connect Discovery)."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import AsyncIterator
from typing import Any, Required, get_origin, get_type_hints

import aiohttp
import pytest
from _event_loop import in_event_loop
from _names import Names, name_server
from aiohttp import web

from tokensession import ConfigurationError, TokenSessionError, TokenUnavailable
from tokensession.grants import AuthorizationRequest
from tokensession.providers import ClientAuth, Discovery, OAuth2, OAuth2Settings
from tokensession.testing import OAuth2Server

FIRST, SECOND = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"


class Site:
    """Answers GET requests by path, and remembers them."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.origin = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        answer = self.answers.get(request.path, 404)
        if isinstance(answer, int):
            return web.Response(status=answer, headers={"Location": f"{self.origin}/elsewhere"})
        return web.Response(body=answer if isinstance(answer, bytes) else json.dumps(answer).encode())


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[Site]:
    made = Site()
    app = web.Application()
    app.router.add_get("/{path:.*}", made.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        await runner.cleanup()


def metadata(issuer: str, **changes: Any) -> dict[str, Any]:
    return {"issuer": issuer, "token_endpoint": f"{issuer}/token", **changes}


async def found(issuer: str, **settings: Any) -> OAuth2:
    return await OAuth2.discover(issuer, client_id="app", **{"client_secret": "s", **settings})


@in_event_loop
async def test_all_endpoints_are_found() -> None:
    async with OAuth2Server(auth="post") as server:
        provider = await found(server.base_url)
        assert provider.token_url == server.token_url
        assert provider.authorization_url == f"{server.base_url}/authorize"
        assert provider.device_authorization_url == f"{server.base_url}/device"
        assert provider.revocation_url == f"{server.base_url}/revoke"
        assert provider.issuer == server.base_url
        assert provider._auth == ClientAuth.post()  # the server takes nothing else
        assert (await found(server.base_url, auth=None))._auth == ClientAuth.post()
        assert (await found(server.base_url, auth=ClientAuth.basic()))._auth == ClientAuth.basic()


@in_event_loop
async def test_an_issuer_with_a_path_is_looked_up_in_both_places() -> None:
    """RFC 8414, 3.1: between host and path. OpenID: behind the path."""
    async with site() as server:
        issuer = f"{server.origin}/tenant"
        server.answers[f"/tenant{SECOND}"] = metadata(issuer)
        assert (await found(issuer)).token_url == f"{issuer}/token"
        assert server.asked == [f"{FIRST}/tenant", f"/tenant{SECOND}"]


@in_event_loop
async def test_an_issuer_may_end_with_a_slash() -> None:
    async with site() as server:
        issuer = f"{server.origin}/"
        server.answers[FIRST] = metadata(issuer, token_endpoint=f"{server.origin}/token")
        assert (await found(issuer)).issuer == issuer
        with pytest.raises(ConfigurationError, match=r"another issuer.*with or without a slash"):
            await found(server.origin)


@in_event_loop
async def test_what_you_pass_counts_more_than_the_metadata() -> None:
    async with site() as server:
        server.answers[FIRST] = metadata(server.origin, revocation_endpoint=f"{server.origin}/revoke")
        provider = await found(server.origin, revocation_url=None, base_url="https://api.example.com")
        assert (provider.revocation_url, provider.base_url) == (None, "https://api.example.com")


@pytest.mark.parametrize(
    ("auth", "token", "device"),
    [(ClientAuth.tls(), "mtls/token", "device"), (ClientAuth.none(), "token", "device")],
)
@in_event_loop
async def test_a_client_with_a_certificate_is_sent_where_the_server_asks_for_one(
    auth: ClientAuth, token: str, device: str
) -> None:
    """RFC 8705, 5. What has no address of its own for such clients has the usual one. A browser has none."""
    async with site() as server:
        at = server.origin
        names = ("authorization_endpoint", "device_authorization_endpoint")
        usual = dict(zip(names, (f"{at}/authorize", f"{at}/device"), strict=True))
        aliases = {"token_endpoint": f"{at}/mtls/token", "authorization_endpoint": f"{at}/mtls/authorize"}
        server.answers[FIRST] = metadata(at, **usual, mtls_endpoint_aliases=aliases)
        provider = await found(at, client_secret=None, auth=auth)
        assert provider.token_url == f"{at}/{token}"
        assert provider.device_authorization_url == f"{at}/{device}"
        assert provider.authorization_url == f"{at}/authorize"


@in_event_loop
async def test_addresses_for_certificates_that_cannot_be_read_matter_only_to_a_client_that_has_one() -> None:
    async with site() as server:
        server.answers[FIRST] = metadata(server.origin, mtls_endpoint_aliases=["x"])
        assert (await found(server.origin)).token_url == f"{server.origin}/token"
        with pytest.raises(ConfigurationError, match="aliases in the metadata must be a JSON object, not a"):
            await found(server.origin, client_secret=None, auth=ClientAuth.tls())


@in_event_loop
async def test_a_discovery_remembers_what_it_has_found_and_nothing_else_does() -> None:
    async with site() as server:
        server.answers[FIRST] = metadata(server.origin)
        discovery = Discovery()
        for _ in range(3):
            await found(server.origin, discovery=discovery)
        assert server.asked == [FIRST]
        await found(server.origin)
        assert server.asked == [FIRST] * 2
        assert repr(discovery) == "<Discovery of 1 issuers>"


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ({"issuer": "https://e.example/" + "a1" * 40}, ConfigurationError, "another issuer: '.*(a1){40}'"),
        ({"issuer": "\x1b[31m"}, ConfigurationError, "another issuer: a string of 5 characters"),
        ({"issuer": "a" * 301}, ConfigurationError, "another issuer: a string of 301 characters"),
        ({"issuer": "https://evil.example"}, ConfigurationError, "with or without a slash"),
        ({"token_endpoint": "x"}, ConfigurationError, "another issuer: None"),
        (b"<html>", ConfigurationError, "not JSON"),
        (b" " * 300_000, ConfigurationError, "longer than"),
        (404, ConfigurationError, "answered 404.*answered 404"),
        (500, TokenUnavailable, "answered 500"),
        (302, ConfigurationError, "answered 302"),
        (429, TokenUnavailable, "answered 429"),
    ],
)
@in_event_loop
async def test_metadata_that_cannot_be_used_is_an_error(
    answer: Any, error: type[TokenSessionError], says: str
) -> None:
    async with site() as server:
        server.answers[FIRST] = answer
        with pytest.raises(error, match=says):
            await found(server.origin)
        assert "/elsewhere" not in server.asked


@pytest.mark.parametrize(
    "first", [404, 302, 500, 503, 429, b"<html>", b"[]", b" " * 300_000, {"issuer": "https://evil.example"}]
)
@in_event_loop
async def test_the_second_place_is_looked_at_whatever_the_first_one_answers(first: Any) -> None:
    """A page for every address, a login, a gateway that fails on what it does not know, another tenant."""
    async with site() as server:
        server.answers |= {FIRST: first, SECOND: metadata(server.origin)}
        assert (await found(server.origin)).token_url == f"{server.origin}/token"
        assert server.asked == [FIRST, SECOND]


@in_event_loop
async def test_metadata_that_may_come_later_is_worth_another_try() -> None:
    """One place has nothing, and the other one cannot be read now."""
    async with site() as server:
        server.answers |= {FIRST: b"<html>", SECOND: 503}
        with pytest.raises(TokenUnavailable, match=r"not JSON.*answered 503.*Try again later"):
            await found(server.origin)


@in_event_loop
async def test_a_client_that_raises_for_a_status_changes_nothing() -> None:
    connector = aiohttp.TCPConnector(resolver=Names())
    async with site() as server, aiohttp.ClientSession(connector=connector, raise_for_status=True) as client:
        issuer = server.origin.replace("127.0.0.1", "keycloak")
        with pytest.raises(ConfigurationError, match=r"answered 404.*answered 404"):
            await found(issuer, discovery=Discovery(client), insecure_http_hosts=("keycloak",))


@in_event_loop
async def test_a_closed_client_session_is_named() -> None:
    async with aiohttp.ClientSession() as client:
        discovery = Discovery(client)
    with pytest.raises(RuntimeError, match="The ClientSession of this Discovery is closed"):
        await found("https://id.example.com", discovery=discovery)


@pytest.mark.parametrize("promised", [True, False, None])
@in_event_loop
async def test_a_server_that_promises_its_name_in_each_redirect_is_taken_at_its_word(
    promised: bool | None,
) -> None:
    """RFC 9207, 2.4 and 3."""
    async with site() as server:
        server.answers[FIRST] = metadata(
            server.origin,
            authorization_endpoint=f"{server.origin}/authorize",
            authorization_response_iss_parameter_supported=promised,
        )
        provider = await found(server.origin)
        request = AuthorizationRequest.begin(provider)
        assert provider.names_issuer is request.names_issuer is bool(promised)
        assert not AuthorizationRequest.begin(await found(server.origin, names_issuer=False)).names_issuer


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"token_endpoint_auth_methods_supported": 5}, "must be a JSON array, not an int"),
        ({"token_endpoint_auth_methods_supported": "client_secret_post"}, "must be a JSON array, not a str"),
        ({"authorization_response_iss_parameter_supported": "false"}, "must be a JSON boolean, not a str"),
        ({"token_endpoint": None}, "names no token_endpoint"),
        ({"token_endpoint": "http://id.example.com/token"}, "token_url must use https"),
        ({"authorization_endpoint": "http://id.example.com/a"}, "authorization_url must use https"),
        ({"revocation_endpoint": 7}, "revocation_url must be a string"),
    ],
)
@in_event_loop
async def test_metadata_of_a_wrong_type_or_an_address_without_https_is_an_error(
    changes: dict[str, Any], says: str
) -> None:
    async with site() as server:
        server.answers[FIRST] = metadata(server.origin, **changes)
        with pytest.raises(ConfigurationError, match=says):
            await found(server.origin)


@in_event_loop
async def test_an_issuer_that_cannot_be_reached_or_is_not_https() -> None:
    async with site() as server:
        gone = server.origin
    with pytest.raises(TokenUnavailable, match="cannot be reached"):
        await found(gone)
    with pytest.raises(ConfigurationError, match="issuer must use https"):
        await found("http://id.example.com")


@in_event_loop
async def test_an_issuer_may_be_plain_http_to_a_host_that_you_name() -> None:
    connector = aiohttp.TCPConnector(resolver=Names())
    async with site() as server, aiohttp.ClientSession(connector=connector) as client:
        issuer = server.origin.replace("127.0.0.1", "keycloak")
        server.answers[FIRST] = metadata(issuer)
        discovery = Discovery(client)
        provider = await found(issuer, discovery=discovery, insecure_http_hosts=("Keycloak",))
        assert (provider.issuer, provider.token_url) == (issuer, f"{issuer}/token")
        for hosts in ((), ("another",)):  # although it is remembered
            with pytest.raises(ConfigurationError, match="issuer must use https"):
                await found(issuer, discovery=discovery, insecure_http_hosts=hosts)
        with pytest.raises(ConfigurationError, match="insecure_http_hosts must be host names"):
            await found(issuer, insecure_http_hosts="keycloak")
        assert server.asked == [FIRST]


@in_event_loop
async def test_an_address_in_the_metadata_may_be_plain_http_only_to_a_host_that_you_name() -> None:
    connector = aiohttp.TCPConnector(resolver=Names())
    async with site() as server, aiohttp.ClientSession(connector=connector) as client:
        issuer = server.origin.replace("127.0.0.1", "keycloak")
        server.answers[FIRST] = metadata(issuer, token_endpoint="http://elsewhere/token")
        with pytest.raises(ConfigurationError, match="token_url must use https"):
            await found(issuer, discovery=Discovery(client), insecure_http_hosts=("keycloak",))


@pytest.mark.parametrize("own", [False, True])
@in_event_loop
async def test_names_below_localhost_are_this_machine_whatever_a_name_server_says(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 6761, 6.3: plain http is allowed to them, so no name server may lead them away."""
    astray = name_server(monkeypatch)
    async with site() as server, aiohttp.ClientSession() as client:
        issuer = server.origin.replace("127.0.0.1", "id.localhost")
        server.answers[FIRST] = metadata(issuer)
        provider = await found(issuer, discovery=Discovery(client if own else None))
        assert provider.issuer == issuer
    assert astray.asked == []


@in_event_loop
async def test_f37_metadata_of_this_machine_in_plain_http_comes_through_no_proxy() -> None:
    """It says where the secrets go, and a proxy could say something else."""
    async with site() as server, aiohttp.ClientSession(proxy="http://127.0.0.1:9") as client:
        server.answers[FIRST] = metadata(server.origin)
        provider = await found(server.origin, discovery=Discovery(client))
    assert provider.token_url == f"{server.origin}/token"


def test_the_settings_are_the_parameters_of_the_provider() -> None:
    parameters = inspect.signature(OAuth2).parameters
    assert set(parameters) == {*OAuth2Settings.__annotations__, "issuer"}
    of_the_class, of_the_settings = get_type_hints(OAuth2.__init__), get_type_hints(OAuth2Settings)
    assert all(of_the_class[name] == kind for name, kind in of_the_settings.items())
    required = {name for name, each in parameters.items() if each.default is inspect.Parameter.empty}
    annotations = get_type_hints(OAuth2Settings, include_extras=True)
    needed = {name for name, kind in annotations.items() if get_origin(kind) is Required}
    assert needed == required - {"token_url"}  # which is what is found
