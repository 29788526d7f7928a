"""Scripted faults, gates, and the API's endpoints."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import anyio
import pytest
from _event_loop import in_event_loop
from _exchange import Client, connected

from tokensession.testing import (
    Drip,
    Edit,
    Hang,
    OtoServer,
    PriavaServer,
    Reset,
    Response,
    Truncate,
    json_response,
    redirect,
)
from tokensession.token import fingerprint


@in_event_loop
async def test_scripted_responses_are_sent_in_order_byte_for_byte_and_spend_nothing() -> None:
    async with connected(PriavaServer()) as client:
        client.server.script(
            Response(502, b"\xff<html>", (("Content-Type", "text/html"), ("Retry-After", "7"))),
            json_response(400, {"error": "invalid_client"}),
            redirect("https://elsewhere.example/token"),
        )
        first = await client.send()
        assert (first.status, first.body, first.header("retry-after")) == (502, b"\xff<html>", "7")
        assert json.loads((await client.send()).body) == {"error": "invalid_client"}
        third = await client.send()
        assert (third.status, third.header("location")) == (307, "https://elsewhere.example/token")
        assert (await client.send()).status == 200


@in_event_loop
async def test_a_scripted_response_may_spend_the_credential() -> None:
    """As a gateway does that gives up on a server which carries the request out."""
    async with connected(PriavaServer()) as client:
        client.server.script(Response(502, b"Bad Gateway", spent=True))
        assert (await client.send()).status == 502
        assert (await client.redeem())["error"] == "invalid_grant"
        assert client.server.stats.reuse_detections == 1


@in_event_loop
async def test_an_edited_response_has_tokens_that_work() -> None:
    async with connected(OtoServer()) as client:
        client.server.script(Edit(lambda document: document | {"expires_in": 0}))
        response = await client.redeem()
        assert response["expires_in"] == 0
        assert await client.api("/echo", response["access_token"]) == 200


@pytest.mark.parametrize(
    ("fault", "spent"),
    [(Reset(spent=True), True), (Reset(spent=False), False), (Truncate(keep=30), True)],
)
@in_event_loop
async def test_a_lost_response_leaves_the_credential_spent_or_not_as_scripted(
    fault: Reset | Truncate, spent: bool
) -> None:
    async with connected(PriavaServer()) as client:
        client.server.script(fault)
        with pytest.raises(
            (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError)
        ):
            await client.send()
        again = await client.redeem()
        assert again["status"] == (400 if spent else 200)
        assert client.server.stats.reuse_detections == int(spent)


@pytest.mark.parametrize("spent", [True, False])
@in_event_loop
async def test_a_hanging_request_ends_when_the_server_closes(spent: bool) -> None:
    async with connected(PriavaServer()) as client:
        client.server.script(Hang(spent=spent))
        async with client.server.hold("before") as gate:
            request = asyncio.ensure_future(client.send())
            await gate.reached()
        await client.server.close()
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await request


async def _begin(client: Client) -> aiohttp.ClientResponse:
    """A token request whose response has begun."""
    request = client.request()
    response = await client.http.post(request.url, data=request.body, headers=request.headers)
    await response.content.readexactly(1)
    return response


@in_event_loop
async def test_a_dripping_response_ends_when_the_server_closes() -> None:
    async with connected(OtoServer()) as client:
        client.server.script(Drip(pause=3600))
        response = await _begin(client)
        await client.server.close()
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await response.read()


@in_event_loop
async def test_a_dripping_response_ends_when_the_client_disconnects() -> None:
    async with connected(OtoServer()) as client:
        client.server.script(Drip(pause=0.001))
        (await _begin(client)).close()
        await client.redeem()


@in_event_loop
async def test_a_gate_before_redeeming_holds_requests_with_nothing_spent_yet() -> None:
    async with connected(PriavaServer()) as client:
        async with client.server.hold("before") as gate:
            request = asyncio.ensure_future(client.redeem())
            await gate.reached()
            assert not client.server._ledger._credentials[client.credential].spent
            assert gate.arrived == 1
        assert (await request)["status"] == 200


@in_event_loop
async def test_a_request_that_has_arrived_is_carried_out_even_if_the_client_disconnects() -> None:
    async with connected(PriavaServer()) as client:
        async with client.server.hold("before") as gate, client.server.hold("after") as spent:
            request = asyncio.ensure_future(client.redeem())
            await gate.reached()
            request.cancel()
            await asyncio.wait([request])
            gate.open()
            await spent.reached()
        assert (await client.redeem())["error"] == "invalid_grant"


@in_event_loop
async def test_a_gate_at_the_api_holds_requests_before_their_token_is_checked() -> None:
    async with connected(OtoServer()) as client:
        token = await client.token()
        async with client.server.hold("api") as gate:
            requests = [asyncio.ensure_future(client.api("/echo", token)) for _ in range(5)]
            await gate.reached(5)
            client.server.revoke_access_tokens()
        assert await asyncio.gather(*requests) == [401] * 5
        assert "open, 5 arrived" in repr(gate)


@in_event_loop
async def test_closing_the_server_opens_its_gates() -> None:
    async with connected(OtoServer()) as client:
        async with client.server.hold("before") as gate:
            request = asyncio.ensure_future(client.redeem())
            await gate.reached()
            await client.server.close()
            await asyncio.wait([request])


@in_event_loop
async def test_a_server_closes_in_a_cancelled_scope_too() -> None:
    server = OtoServer()
    with anyio.CancelScope() as scope:
        async with server:
            scope.cancel()
    async with OtoServer(port=int(server.origin.rpartition(":")[2])):
        pass


@in_event_loop
async def test_the_echo_shows_the_request_without_its_token() -> None:
    async with connected(OtoServer()) as client:
        token = await client.token()
        url = client.server.base_url + "/echo?page=2"
        headers = {"Authorization": f"Bearer {token}", "X-Trace": "7"}
        async with client.http.patch(url, data=b"some body", headers=headers) as response:
            echo = await response.json()
        assert (echo["method"], echo["path"], echo["query"]) == ("PATCH", "/echo", "page=2")
        assert (echo["body"], echo["authorized"]) == ("some body", True)
        assert ["X-Trace", "7"] in echo["headers"]
        assert token not in json.dumps(echo)
        async with client.get("/open/echo") as response:
            assert (await response.json())["authorized"] is False
        assert client.server.stats.requests == 1


@in_event_loop
async def test_the_log_has_the_fingerprint_of_each_requests_token() -> None:
    async with connected(OtoServer()) as client:
        token = await client.token()
        for path, sent in (
            ("/status/403", token),
            ("/status/401", token),
            ("/echo", "wrong"),
            ("/echo", ""),
        ):
            await client.api(path, sent)
        assert [(seen.path, seen.status, seen.token) for seen in client.server.log] == [
            ("/status/403", 403, fingerprint(token)),
            ("/status/401", 401, fingerprint(token)),
            ("/echo", 401, fingerprint("wrong")),
            ("/echo", 401, None),
        ]
        assert client.server.stats.unauthorized == 2


@in_event_loop
async def test_the_large_401_is_large_and_only_for_an_invalid_token() -> None:
    async with connected(OtoServer()) as client:
        assert await client.api("/large-401", await client.token()) == 200
        async with client.get("/large-401", "wrong") as response:
            assert response.status == 401
            assert len(await response.read()) > 1 << 22


@in_event_loop
async def test_redirects_streams_and_websockets_need_a_valid_token_too() -> None:
    async with connected(PriavaServer()) as client:
        token, base = await client.token(), client.server.base_url
        async with client.get(f"/redirect?to={base}/echo&status=307", token) as response:
            assert (response.status, response.headers["Location"]) == (307, base + "/echo")
        async with client.get("/stream/200000", token) as response:
            assert len(await response.read()) == 200_000
        headers = {"Authorization": f"Bearer {token}"}
        async with client.http.ws_connect(base + "/ws", headers=headers) as socket:
            await socket.send_str("text")
            assert (await socket.receive()).data == "text"
            await socket.send_bytes(b"bytes")
            assert (await socket.receive()).data == b"bytes"
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await client.http.ws_connect(base + "/ws")


@in_event_loop
async def test_closing_the_server_closes_its_websockets() -> None:
    async with connected(OtoServer()) as client:
        headers = {"Authorization": f"Bearer {await client.token()}"}
        async with client.http.ws_connect(client.server.base_url + "/ws", headers=headers) as socket:
            closing = asyncio.ensure_future(client.server.close())
            assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        await closing


@in_event_loop
async def test_a_stream_ends_when_the_client_disconnects() -> None:
    async with connected(OtoServer()) as client:
        async with client.get(f"/stream/{1 << 40}", await client.token()) as response:
            await response.content.readexactly(10)
