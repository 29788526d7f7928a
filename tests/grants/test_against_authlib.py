"""Every grant and client authentication, against an authorization server of Authlib's in its own process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from _event_loop import in_event_loop

from tokensession import AuthedSession, ClientRejected, GrantRejected, SignedOut
from tokensession.grants import AuthorizationRequest, DeviceSignIn, LoopbackRedirect
from tokensession.providers import ClientAuth, OAuth2


@pytest.fixture(scope="module")
def authlib() -> Iterator[dict[str, str]]:
    """A running server: its issuer, the client secret, and the private key of its clients."""
    command = [sys.executable, str(Path(__file__).with_name("_authlib_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())
        child.kill()


METHODS = ["none", "client_secret_basic", "client_secret_post", "private_key_jwt", "client_secret_jwt"]
CONFIDENTIAL = METHODS[1:]


async def client_of(authlib: dict[str, str], method: str, **settings: Any) -> OAuth2:
    """The client that authenticates in this way. The server is found by its issuer."""
    auth = {
        "none": ClientAuth.none,
        "client_secret_basic": ClientAuth.basic,
        "client_secret_post": ClientAuth.post,
        "private_key_jwt": lambda: ClientAuth.private_key_jwt(key=authlib["key"], algorithm="ES256"),
        "client_secret_jwt": ClientAuth.client_secret_jwt,
    }[method]()
    secret = {"client_secret": authlib["secret"]} if auth.wants_secret else {}
    return await OAuth2.discover(authlib["issuer"], client_id=method, auth=auth, **secret, **settings)


async def status(session: AuthedSession) -> int:
    async with session.get("/api") as response:
        return response.status


async def in_a_browser(session: AuthedSession, provider: OAuth2) -> None:
    """Sign in as a person does whose browser is on this machine."""
    async with LoopbackRedirect() as redirect, aiohttp.ClientSession() as browser:
        request = AuthorizationRequest.begin(provider, redirect_uri=redirect.uri)
        visit = browser.get(request.url)
        received, page = await asyncio.gather(redirect.receive(request), visit)
        assert page.status == 200
        await request.sign_in(session.source, received)


@pytest.mark.parametrize("method", METHODS)
@in_event_loop
async def test_a_code_with_pkce_refreshes_is_revoked_and_is_followed_by_another(
    authlib: dict[str, str], method: str
) -> None:
    provider = await client_of(authlib, method, scope="read")
    async with AuthedSession(provider, store="memory:", key="account") as session:
        await in_a_browser(session, provider)
        first = await session.source.token()
        assert await status(session) == 200
        second = await session.source.refresh()
        assert second.access_token != first.access_token
        assert second.refresh_token not in (None, first.refresh_token)
        assert await status(session) == 200
        await session.source.sign_out()
        async with session.client.get(
            f"{authlib['issuer']}/api", headers={"Authorization": second.authorization}
        ) as response:
            assert response.status == 401  # revoked
        with pytest.raises(SignedOut):
            await session.source.token()
        with pytest.raises(GrantRejected):
            await session.source.sign_in(refresh_token=second.refresh_token)
        await in_a_browser(session, provider)
        assert await status(session) == 200


@pytest.mark.parametrize("method", CONFIDENTIAL)
@in_event_loop
async def test_a_machine_gets_one_token_after_the_other(authlib: dict[str, str], method: str) -> None:
    provider = await client_of(authlib, method, grant="client_credentials", scope="jobs")
    async with AuthedSession(provider) as session:
        assert await status(session) == 200
        first = await session.source.token()
        assert first.refresh_token is None
        assert (await session.source.refresh()).access_token != first.access_token
        assert await status(session) == 200
        await session.source.sign_out()
        with pytest.raises(SignedOut):
            await session.source.token()
        await session.source.sign_in()
        assert await status(session) == 200


@pytest.mark.parametrize("method", METHODS)
@in_event_loop
async def test_a_device_is_approved_and_signed_in(authlib: dict[str, str], method: str) -> None:
    provider = await client_of(authlib, method)
    async with AuthedSession(provider, store="memory:", key="device") as session:
        device = await DeviceSignIn.begin(session.source)
        assert device.interval == 1
        async with session.client.get(device.verification_uri_complete or "") as page:
            assert page.status == 200
        await device.complete(session.source)
        assert await status(session) == 200
        await session.source.refresh()
        assert await status(session) == 200


@in_event_loop
async def test_a_device_that_a_person_denies_is_rejected(authlib: dict[str, str]) -> None:
    provider = await client_of(authlib, "none")
    async with AuthedSession(provider, store="memory:", key="device") as session:
        device = await DeviceSignIn.begin(session.source)
        async with session.client.get(f"{device.verification_uri_complete}&deny=1"):
            pass
        with pytest.raises(GrantRejected) as caught:
            await device.complete(session.source)
        assert caught.value.code == "access_denied"


@in_event_loop
async def test_a_wrong_secret_is_the_clients_fault(authlib: dict[str, str]) -> None:
    wrong = {**authlib, "secret": "wrong"}
    provider = await client_of(wrong, "client_secret_post", grant="client_credentials")
    async with AuthedSession(provider) as session:
        with pytest.raises(ClientRejected):
            await session.source.token()
