"""A process that was stopped past its deadlines uses the responses that have arrived."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from _rig import run

from tokensession import AiohttpTransport, ManagedSource, OutcomeUnknown
from tokensession.clock import within
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock


def test_f11_a_token_response_that_arrived_while_the_process_was_stopped_is_used() -> None:
    """It is read, stored and served, although its deadline has passed."""

    async def main() -> None:
        clock = FakeClock()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            provider = OAuth2(
                token_url=f"http://127.0.0.1:{listener.getsockname()[1]}/token",
                client_id="client",
                client_secret="client-secret",
                refresh_token="configured-token",
                rotates=True,
            )
            transport = AiohttpTransport(clock=clock)
            source = ManagedSource(provider, transport, store=MemoryStore(clock=clock), clock=clock)
            caller = asyncio.create_task(source.token())
            loop = asyncio.get_running_loop()
            connection, _ = await loop.sock_accept(listener)
            with connection:
                request = b""
                while b"refresh_token=configured-token" not in request:
                    request += await loop.sock_recv(connection, 65536)
                # Without suspending: the response arrives, and an hour passes.
                body = json.dumps({"access_token": "access", "expires_in": 86400}).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.setblocking(True)
                connection.sendall(head.encode() + body)
                clock.advance(3600)
                assert (await caller).access_token == "access"
            await source.aclose()

    run(main)


def test_f03_a_deadline_still_ends_what_has_not_arrived() -> None:
    """After the deadline only what has already arrived is read. Work that needs more time is ended."""

    async def main() -> None:
        clock = FakeClock()
        never = asyncio.Event()
        work = asyncio.create_task(within(clock, 20, never.wait()))
        await clock.slept()
        clock.advance(20)
        with pytest.raises(TimeoutError):
            await work

    run(main)


def test_f10_the_deadline_of_a_token_request_covers_the_body() -> None:
    """A response of which only half has arrived at the deadline is lost."""

    async def main() -> None:
        clock = FakeClock()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            provider = OAuth2(
                token_url=f"http://127.0.0.1:{listener.getsockname()[1]}/token",
                client_id="client",
                client_secret="client-secret",
                refresh_token="configured-token",
            )
            assert provider.credential is not None
            request = provider.request(provider.credential)
            transport = AiohttpTransport(clock=clock)
            sending = asyncio.create_task(transport.send(request, connect=5, total=20))
            loop = asyncio.get_running_loop()
            connection, _ = await loop.sock_accept(listener)
            with connection:
                await loop.sock_recv(connection, 65536)
                await loop.sock_sendall(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
                clock.advance(20)
                with pytest.raises(OutcomeUnknown):
                    await sending

    run(main)
