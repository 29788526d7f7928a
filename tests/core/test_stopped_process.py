"""A stopped process uses what has arrived meanwhile. A killed one leaves a mark only if it has sent."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import pytest
from _moments import refused
from _rig import run, seconds_until_done
from _shared_store import SharedStore

from tokensession import ManagedSource, OutcomeUnknown, Policy
from tokensession.clock import SystemClock, within
from tokensession.providers import OAuth2
from tokensession.stores import MemoryStore
from tokensession.testing import FakeClock


class Endpoint:
    """A token endpoint that the test runs by hand, and a source that sends its token requests there."""

    def __init__(self, listener: socket.socket, clock: FakeClock, *, rotates: bool = True) -> None:
        listener.setblocking(False)
        self._listener = listener
        provider = OAuth2(
            token_url=f"http://127.0.0.1:{listener.getsockname()[1]}/token",
            client_id="client",
            client_secret="client-secret",
            refresh_token="configured-token",
            rotates=rotates,
        )
        policy = Policy(retry_within=0)
        self.source = ManagedSource(provider, store=MemoryStore(clock=clock), clock=clock, policy=policy)

    async def request(self) -> socket.socket:
        """The connection on which the whole token request has arrived."""
        loop = asyncio.get_running_loop()
        connection, _ = await loop.sock_accept(self._listener)
        request = b""
        while b"refresh_token=configured-token" not in request:
            request += await loop.sock_recv(connection, 65536)
        return connection


def test_f11_a_token_response_that_arrived_while_the_process_was_stopped_is_used() -> None:
    """It is read, stored and served, although its deadline has passed."""

    async def main() -> None:
        clock = FakeClock()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            endpoint = Endpoint(listener, clock)
            caller = asyncio.create_task(endpoint.source.token())
            with await endpoint.request() as connection:
                # Without suspending: the response arrives, and an hour passes.
                body = json.dumps({"access_token": "access", "expires_in": 86400}).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.setblocking(True)
                connection.sendall(head.encode() + body)
                clock.advance(3600)
                await asyncio.gather(caller, return_exceptions=True)
                while endpoint.source.snapshot().refreshing:
                    await asyncio.sleep(0)
                assert (await endpoint.source.token()).access_token == "access"
            await endpoint.source.aclose()

    run(main)


def test_f03_a_deadline_still_ends_what_has_not_arrived() -> None:
    """After the deadline only what has already arrived is read. Work that needs more time is ended."""

    async def main() -> None:
        clock = FakeClock()
        never = asyncio.Event()
        work = asyncio.create_task(within(clock, 20, never.wait()))
        await clock.slept()
        clock.advance(20)
        await refused(TimeoutError, work)

    run(main)


@pytest.mark.parametrize(("rotates", "limit"), [(False, 20), (True, 120)], ids=["permanent", "rotating"])
def test_f03_f10_the_deadline_of_a_token_request_covers_the_body(rotates: bool, limit: int) -> None:
    """A response of which only half has arrived at the deadline is lost."""

    async def main() -> None:
        clock = FakeClock()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            endpoint = Endpoint(listener, clock, rotates=rotates)
            caller = asyncio.create_task(endpoint.source.token())
            with await endpoint.request() as connection:
                half = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"
                await asyncio.get_running_loop().sock_sendall(connection, half)
                assert await seconds_until_done(caller, clock) == 20
                await refused(OutcomeUnknown, caller)

                async def over() -> None:
                    while endpoint.source.snapshot().refreshing:
                        await asyncio.sleep(0)

                assert 20 + await seconds_until_done(asyncio.create_task(over()), clock) == limit
                snapshot = endpoint.source.snapshot()
                assert snapshot.last_error == "OutcomeUnknown"

    run(main)


PROGRAM = """
import asyncio, sys
from tokensession import ManagedSource
from tokensession.providers import OAuth2

url, store = sys.argv[1:]
provider = OAuth2(token_url=url, client_id="client", client_secret="s", refresh_token="configured-token")

async def main():
    async with ManagedSource(provider, store=store, key="account") as source:
        try:
            await source.token()
        finally:  # not here: a Ctrl-C now would be in this block, and not in closing
            asyncio.get_running_loop().call_soon(lambda: print("closing", flush=True))

asyncio.run(main())
"""


@pytest.mark.parametrize("scheme", ["https", "http"], ids=["in the handshake", "after sending"])
@pytest.mark.parametrize("way", ["SIGKILL", "Ctrl-C twice"])
def test_f17_f55_k02_a_process_that_is_ended_leaves_a_mark_only_if_its_request_has_left(
    tmp_path: Path, scheme: str, way: str
) -> None:
    """Killed while it connects, it has spent nothing, and the next process refreshes at once."""

    async def main() -> None:
        loop, pipe = asyncio.get_running_loop(), asyncio.subprocess.PIPE
        shared = SharedStore("sqlite", tmp_path, SystemClock())
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/token"
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", PROGRAM, url, f"sqlite:///{tmp_path / 'tokens.db'}"),
                stdout=pipe,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                connection, _ = await loop.sock_accept(listener)
                with connection:
                    assert await loop.sock_recv(connection, 65536)  # the handshake, or the request
                    if way == "SIGKILL":
                        child.kill()
                    else:
                        child.send_signal(signal.SIGINT)
                        assert child.stdout is not None
                        assert await child.stdout.readline() == b"closing\n"
                        child.send_signal(signal.SIGINT)
                    await child.wait()
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
        stored, interrupted = await shared.stored(), await shared.interrupted()
        marks = (stored is not None and stored.failures is not None, interrupted is not None)
        sent = scheme == "http"
        assert marks == (sent and way != "SIGKILL", sent and way == "SIGKILL")

    run(main)
