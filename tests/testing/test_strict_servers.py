"""The servers turn down what is not exactly as documented, and respond as documented."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from _event_loop import in_event_loop
from _exchange import code, connected, refresh

from tokensession.providers import ClientAuth, TokenRequest
from tokensession.providers._wire import encode_form
from tokensession.testing import FakeClock, OAuth2Server, OtoServer, PriavaServer

FORM = "application/x-www-form-urlencoded;charset=utf-8"


@in_event_loop
async def test_oto_responds_as_has_been_seen() -> None:
    async with connected(OtoServer(lifetime=3, clock=FakeClock())) as client:
        response = await client.send()
        assert response.header("content-type") == "text/plain;charset=iso-8859-1"
        document = json.loads(response.body)
        assert list(document) == ["access_token", "refresh_token", "success", "token_type", "expires_in"]
        assert (document["expires_in"], document["success"]) == ("3", True)
        assert document["refresh_token"] == client.credential.secret
        issued = client.provider.read(response, client.credential, sent_at=0.0)
        assert issued.notes == ()
        assert await client.api("/rest/v2/healthCheck", issued.token.access_token) == 200


JSON = ("Content-Type", "application/json")
PLANTED = b'{"refresh_token": "planted"}'


@pytest.mark.parametrize(
    ("body", "headers", "query", "says"),
    [
        (b'{"refresh_token": "planted", "grant_type": "refresh_token"}', (JSON,), "", "2 keys"),
        (b"{}", (JSON,), "", "0 keys"),
        (b'{"refresh_token": ""}', (JSON,), "", "not a non-empty string"),
        (b'{"refresh_token": 7}', (JSON,), "", "not a non-empty string"),
        (b'["planted"]', (JSON,), "", "not one JSON object"),
        (b'{"refresh_token": "planted", "refresh_token": "planted"}', (JSON,), "", "not one JSON object"),
        (b'{"refresh_token": "planted\xff"}', (JSON,), "", "not one JSON object"),
        (b"refresh_token=planted", (("Content-Type", FORM),), "", "Content-Type"),
        (PLANTED, (JSON, ("Authorization", "Bearer planted")), "", "Authorization"),
        (PLANTED, (JSON,), "?refresh_token=planted", "query"),
    ],
)
@in_event_loop
async def test_oto_answers_400_to_a_request_that_is_not_as_documented(
    body: bytes, headers: tuple[tuple[str, str], ...], query: str, says: str
) -> None:
    async with connected(OtoServer()) as client:
        response = await client.send(TokenRequest(client.server.token_url + query, headers, body))
        document = json.loads(response.body)
        assert (response.status, document["success"]) == (400, False)
        assert says in document["errorMsg"]
        assert says in client.server.invalid_requests[0]
        assert "planted" not in response.body.decode()
        assert client.server.stats.invalid_requests == client.server.stats.token_requests == 1


@in_event_loop
async def test_a_get_of_the_token_endpoint_is_invalid() -> None:
    async with connected(OtoServer()) as client, client.http.get(client.server.token_url) as response:
        assert response.status == 400
        assert client.server.invalid_requests == ["the method is GET, not POST"]


@in_event_loop
async def test_oto_answers_oto1083_to_an_unknown_refresh_token() -> None:
    async with connected(OtoServer()) as client:
        response = await client.redeem(refresh("of-another-environment"))
        assert (response["status"], response["otoErrorCode"]) == (400, "OTO1083")
        assert client.server.stats.rejections == 1
        assert client.server.stats.invalid_requests == client.server.stats.expiries == 0


@in_event_loop
async def test_the_test_path_exists_in_staging_only() -> None:
    for server, status in ((OtoServer(), 404), (OtoServer(environment="staging"), 200)):
        async with connected(server) as client:
            assert await client.api("/rest/v2/test", await client.token()) == status


@in_event_loop
async def test_priava_responds_as_documented_to_both_grant_types_with_awkward_secrets() -> None:
    async with connected(PriavaServer(client_secret="a %&+£€", region="APAC", lifetime=5)) as client:
        first = await client.redeem()
        assert list(first) == ["access_token", "refresh_token", "token_type", "expires_in", "status"]
        assert (first["token_type"], first["expires_in"]) == ("BEARER", 5)
        second = await client.redeem(refresh(first["refresh_token"]))
        assert second["refresh_token"] != first["refresh_token"]
        assert client.server.invalid_requests == []


PAIRS = (
    ("grant_type", "refresh_token"),
    ("client_id", "fake-priava-client"),
    ("client_secret", "fake-priava-secret"),
    ("refresh_token", "planted"),
    ("redirect_uri", "https://my.app.com/oauth2callback"),
)
BODY = encode_form(PAIRS)


def priava(
    body: bytes = BODY, content_type: str = FORM, *more: tuple[str, str], regions: tuple[str, ...] = ("EU",)
) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """A body and its headers."""
    return body, (("Content-Type", content_type), *(("TenantRegion", region) for region in regions), *more)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (priava(BODY + b"\xc2\xa0"), "no-break space"),
        (priava(BODY + b"%C2%A0"), "redirect_uri"),
        (priava(BODY + b"\xff"), "not ASCII"),
        (priava(content_type="application/x-www-form-urlencoded; charset=utf-8"), "Content-Type"),
        (priava(content_type="application/x-www-form-urlencoded"), "Content-Type"),
        (priava(regions=()), "TenantRegion"),
        (priava(regions=("eu",)), "TenantRegion"),
        (priava(regions=("EU", "EU")), "TenantRegion"),
        (priava(regions=("US",)), "not the region of this tenant"),
        (priava(encode_form(PAIRS[:4])), "redirect_uri, in this order"),
        (priava(encode_form(PAIRS[::-1])), "in this order"),
        (priava(encode_form((*PAIRS, ("scope", "planted")))), "in this order"),
        (priava(encode_form((*PAIRS, ("planted", "planted")))), "1 unknown fields"),
        (priava(encode_form((*PAIRS, PAIRS[4]))), "the same field twice"),
        (priava(encode_form((*PAIRS[:3], ("refresh_token", ""), PAIRS[4]))), "refresh_token is empty"),
        (priava(encode_form((("grant_type", "password"), *PAIRS[1:]))), "grant_type"),
        (priava(BODY.replace(b"://", b"%3A%2F%2F")), "not encoded as in the documentation"),
        (priava(BODY.replace(b"planted", b"pl%61nted")), "not encoded as in the documentation"),
        (priava(PLANTED), "not form-encoded"),
        (priava(BODY, FORM, ("Authorization", "Bearer planted")), "Authorization"),
    ],
)
@in_event_loop
async def test_priava_answers_400_to_a_request_that_is_not_exactly_as_documented(
    sent: tuple[bytes, tuple[tuple[str, str], ...]], says: str
) -> None:
    body, headers = sent
    async with connected(PriavaServer()) as client:
        response = await client.send(TokenRequest(client.server.token_url, headers, body))
        document = json.loads(response.body)
        assert (response.status, document["error"]) == (400, "invalid_request")
        assert says in document["error_description"]
        assert "planted" not in response.body.decode()
        assert client.server.stats.invalid_requests == 1


@in_event_loop
async def test_priava_rejects_a_wrong_client_secret_but_counts_the_request_as_valid() -> None:
    async with connected(PriavaServer(), client_secret="another") as client:
        response = await client.redeem()
        assert (response["status"], response["error"]) == (400, "invalid_client")
        assert (client.server.stats.rejections, client.server.stats.invalid_requests) == (1, 0)


@pytest.mark.parametrize("auth", ["basic", "post"])
@pytest.mark.parametrize("rotates", [True, False])
@in_event_loop
async def test_a_generic_server_accepts_the_client_in_the_configured_place(auth: Any, rotates: bool) -> None:
    server = OAuth2Server(auth=auth, rotates=rotates, client_secret="a secret: %&+")
    async with connected(server) as client:
        assert ("refresh_token" in await client.redeem()) is rotates
        for credential in (code(server.new_code()), refresh(server.new_credential())):
            assert (await client.redeem(credential))["status"] == 200
        assert server.invalid_requests == []


@pytest.mark.parametrize(("mine", "theirs"), [("basic", "post"), ("post", "basic")])
@in_event_loop
async def test_a_generic_server_answers_400_to_a_client_in_the_wrong_place(mine: Any, theirs: Any) -> None:
    async with connected(OAuth2Server(auth=mine), auth=ClientAuth(theirs)) as client:
        assert (await client.redeem())["error"] == "invalid_request"
        assert client.server.stats.invalid_requests == 1


@in_event_loop
async def test_a_generic_server_answers_401_to_wrong_basic_credentials() -> None:
    async with connected(OAuth2Server(), client_secret="another") as client:
        response = await client.send()
        assert (response.status, response.header("www-authenticate")) == (401, "Basic")
    async with connected(OAuth2Server(auth="post"), client_secret="another") as client:
        assert (await client.redeem())["status"] == 400


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        ("text/plain", b"grant_type=refresh_token&refresh_token=planted", "Content-Type"),
        (FORM, b"grant_type=authorization_code&refresh_token=planted", "its grant_type names"),
    ],
)
@in_event_loop
async def test_a_generic_server_answers_400_to_a_grant_type_without_its_credential(
    content_type: str, body: bytes, says: str
) -> None:
    async with connected(OAuth2Server()) as client:
        good = client.request()
        headers = tuple((dict(good.headers) | {"Content-Type": content_type}).items())
        response = await client.send(replace(good, headers=headers, body=body))
        assert response.status == 400
        assert says in client.server.invalid_requests[0]
        assert b"planted" not in response.body


@pytest.mark.parametrize(
    "authorization", [None, "bearer {}", "BEARER {}", "Bearer  {}", "Bearer wrong", "{}"]
)
@in_event_loop
async def test_the_api_accepts_only_the_scheme_bearer_in_this_spelling(authorization: str | None) -> None:
    for server in (OtoServer(), PriavaServer(), OAuth2Server()):
        async with connected(server) as client:
            token = await client.token()
            headers = {"Authorization": authorization.format(token)} if authorization else {}
            async with client.http.get(server.base_url + "/echo", headers=headers) as response:
                assert response.status == 401
                if isinstance(server, OtoServer):
                    assert await response.json() == {"message": "Jwt is expired", "code": 401}
            assert await client.api("/echo", token) == 200
            assert (server.stats.requests, server.stats.unauthorized) == (2, 1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        *(({"lifetime": each}, "whole seconds") for each in (0, -1, 0.5, 2.5)),
        ({"region": "eu"}, "APAC, EU, US"),
    ],
)
def test_a_lifetime_or_region_that_cannot_be_is_a_value_error(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PriavaServer(**wrong)


def test_a_server_has_no_address_before_its_first_start() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        _ = OtoServer().base_url


@in_event_loop
async def test_a_server_binds_loopback_only_and_keeps_its_port_over_a_restart() -> None:
    server = PriavaServer()
    async with server:
        url = server.base_url
        assert url.startswith("http://127.0.0.1:")
        assert url.endswith("/api")
        with pytest.raises(OSError, match="address already in use"):
            await OtoServer(port=int(server.origin.rsplit(":", 1)[1])).start()
    await server.close()
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(url)
        async with server, http.get(url + "/echo") as response:
            assert server.base_url == url
            assert response.status == 401


@in_event_loop
async def test_no_repr_shows_a_secret() -> None:
    for server in (OtoServer(), PriavaServer(), OAuth2Server()):
        async with server:
            issue = server._ledger.redeem(next(iter(server._ledger._credentials)), 0.0)
            shown = repr(server) + repr(server._ledger) + repr(issue) + repr(server.stats)
            assert "fake-" not in shown
