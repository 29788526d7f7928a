"""Every grant with every client authentication, against our strict server in a process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest
from _event_loop import in_event_loop
from _server_process import Served, ServerProcess

from tokensession import AuthedSession, ConfigurationError, ManagedSource, SignedOut
from tokensession.grants import AuthorizationRequest, DeviceSignIn
from tokensession.providers import OAUTH2, ClientAuth, Fields, OAuth2
from tokensession.testing.servers.client_proofs import AuthMethod

METHODS = list(get_args(AuthMethod))
ServerOf = Callable[..., Served]
SECRET = "a secret: %&+ of more than 14 bytes"


@pytest.fixture(scope="module")
def process() -> Iterator[ServerProcess]:
    with ServerProcess.start() as process:
        assert process.pid != os.getpid()
        yield process


@pytest.fixture
def server_of(process: ServerProcess) -> ServerOf:
    """Starts a server in that process."""
    return lambda method, **settings: process.serve(method, SECRET, **settings)


def client_of(server: Served, **settings: Any) -> OAuth2:
    """Its client. What a platform signs is made for each request, as a file that is written again."""
    return OAuth2(**{**server.client, **settings})


async def redirected(request: AuthorizationRequest, *, deny: bool = False) -> str:
    """Where the browser is sent after the person has answered."""
    async with (
        aiohttp.ClientSession() as browser,
        browser.get(request.url + ("&deny=1" if deny else ""), allow_redirects=False) as response,
    ):
        return response.headers["Location"]


async def status(session: AuthedSession) -> int:
    async with session.get("/echo") as response:
        return response.status


@pytest.mark.parametrize("method", METHODS)
@in_event_loop
async def test_a_code_with_pkce_refreshes_is_revoked_and_is_followed_by_another(
    method: str, server_of: ServerOf
) -> None:
    server = server_of(method)
    provider = client_of(server, redirect_uri="https://app.example.com/back", scope="read")
    async with AuthedSession(provider, store="memory:", key="account") as session:
        for count in (1, 2):
            request = AuthorizationRequest.begin(provider)
            await request.sign_in(session.source, await redirected(request))
            assert await status(session) == 200
            old = await session.source.token()
            await session.source.refresh()
            assert await status(session) == 200
            assert (await session.source.token()).refresh_token != old.refresh_token
            token = await session.source.token()
            await session.source.sign_out()
            assert server.seen["revocations"] == count
            assert not server.accepts(token.access_token)
            with pytest.raises(SignedOut):
                await session.source.token()
    assert (server.seen["invalid_requests"], server.seen["rejections"]) == ([], 0)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "none"])
@in_event_loop
async def test_a_machine_gets_one_token_after_the_other(method: str, server_of: ServerOf) -> None:
    server = server_of(method)
    provider = client_of(
        server,
        grant="client_credentials",
        scope="jobs",
        audience="api",
        resource=["https://a.example", "urn:b"],
    )
    async with AuthedSession(provider) as session:
        for _ in range(2):
            first = await session.source.token()
            assert await status(session) == 200
            assert (await session.source.refresh()).access_token != first.access_token
            await session.source.sign_out()
            with pytest.raises(SignedOut):
                await session.source.token()
            await session.source.sign_in()
            assert await status(session) == 200
    asked = {"scope": "jobs", "audience": "api", "resource": "https://a.example urn:b"}
    assert all(each == asked for each in server.seen["requested"])
    assert (server.seen["invalid_requests"], server.seen["rejections"]) == ([], 0)


@pytest.mark.parametrize("method", METHODS)
@in_event_loop
async def test_a_device_is_approved_and_signed_in(method: str, server_of: ServerOf) -> None:
    server = server_of(method, interval=0.05)
    async with AuthedSession(client_of(server), store="memory:", key="tv") as session:
        device = await DeviceSignIn.begin(session.source)
        waiting = asyncio.create_task(device.complete(session.source))
        while not server.seen["rejections"]:  # it has been told to wait
            await asyncio.sleep(0.01)
        async with session.client.get(device.verification_uri_complete or "") as page:
            assert page.status == 200
        await waiting
        assert await status(session) == 200
        await session.source.refresh()
        assert await status(session) == 200
    assert server.seen["invalid_requests"] == []


@in_event_loop
async def test_an_assertion_in_a_file_is_read_again_for_each_request(
    tmp_path: Path, server_of: ServerOf
) -> None:
    """As Kubernetes writes it for its workloads. Our server takes each assertion once."""
    file = tmp_path / "token"
    server = server_of("assertion")
    provider = client_of(server, grant="client_credentials")
    provider = OAuth2(**{**server.client, "auth": ClientAuth.assertion(file)}, grant="client_credentials")
    assert provider.key
    async with AuthedSession(provider) as session:
        for _ in range(3):
            file.write_text(server.proofs.assertion() + "\n")
            await session.source.refresh()
            assert await status(session) == 200
    assert server.seen["rejections"] == 0


@in_event_loop
async def test_a_device_sign_in_without_an_endpoint_is_an_error_before_any_request(
    server_of: ServerOf,
) -> None:
    server = server_of("basic")
    provider = OAuth2(**{**server.client, "device_authorization_url": None})
    async with ManagedSource(provider, store="memory:", key="tv") as source:
        with pytest.raises(ConfigurationError, match="device_authorization_url is missing"):
            await DeviceSignIn.begin(source)
    assert server.seen["token_requests"] == 0


@in_event_loop
async def test_a_token_url_keeps_its_query(server_of: ServerOf) -> None:
    """(K50)."""
    server = server_of("basic", token_query="p=policy_1&x=%2F")
    async with AuthedSession(client_of(server, grant="client_credentials")) as session:
        assert await status(session) == 200
    assert server.seen["invalid_requests"] == []


@in_event_loop
async def test_other_declared_fields_of_the_response_are_in_the_token(server_of: ServerOf) -> None:
    """(K55)."""
    strategy = replace(OAUTH2, fields=Fields(extra=("instance_url", "team.id")))
    extra = {"instance_url": "https://eu.example.com", "team": {"id": 7}}
    server = server_of("basic", extra=extra)
    provider = client_of(server, grant="client_credentials", strategy=strategy)
    async with ManagedSource(provider) as source:
        token = await source.token()
        assert token.extra == {"instance_url": "https://eu.example.com", "team.id": 7}
        assert "eu.example.com" not in repr(token)
