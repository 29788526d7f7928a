"""Cancel a request at each suspension, with AuthedSession, real HTTP, a strict server and real files."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from _rig import LIFETIME, let_tasks_run, run, state_of
from _steps import REFRESH, Steps

from tokensession import AiohttpTransport, AuthedSession, ManagedSource
from tokensession._refresh.state import TokenState
from tokensession.providers import Priava
from tokensession.stores import FileStore
from tokensession.testing import FakeClock, PriavaServer

MANY = 300
"""More suspensions than one request or refresh has. A test that gets here would never end."""


class Client:
    """A session with its own sign-in at the server and its own record in a file."""

    def __init__(self, server: PriavaServer, directory: Path, clock: FakeClock) -> None:
        self.clock = clock
        self.directory = directory
        self.store = FileStore(directory, clock=clock)
        provider = Priava(**(server.credentials | {"code": server.new_credential()}))
        source = ManagedSource(provider, AiohttpTransport(), store=self.store, clock=clock)
        self.session = AuthedSession(source)

    async def get(self) -> int:
        async with self.session.get("/echo") as response:
            await response.read()
            return response.status

    async def close(self) -> TokenState:
        """Close everything, and return what is stored, read by a new store object."""
        await self.session.close()
        await self.session.source.aclose()
        await self.store.aclose()
        store = FileStore(self.directory, clock=self.clock)
        record = await store.load(self.session.source.key)
        await store.aclose()
        return state_of(record, self.clock) if record else TokenState()


Attempt = Callable[[Client, PriavaServer, int], Awaitable[bool]]


def at_every_step(attempt: Attempt, directory: Path, *, at_least: int) -> None:
    """Run it at each step k, with a new client, until it says that there is no step k.

    Over a network the number of steps varies.
    """

    async def main() -> None:
        clock = FakeClock()
        async with PriavaServer(lifetime=LIFETIME, clock=clock) as server:
            for k in itertools.count():
                assert k < MANY
                if not await attempt(Client(server, directory / str(k), clock), server, k):
                    break
            assert k >= at_least, f"only {k} steps were found"
            assert (server.stats.reuse_detections, server.stats.rejections) == (0, 0)

    run(main)


@pytest.mark.parametrize("earlier", [False, True], ids=["first token", "earlier one expired"])
def test_f01_over_real_http_the_caller_may_be_cancelled_at_any_step_of_the_refresh(
    tmp_path: Path, earlier: bool
) -> None:
    """With a real server and files: one token request, the new token on disk, the other callers answered."""

    async def attempt(client: Client, server: PriavaServer, k: int) -> bool:
        if earlier:
            assert await client.get() == 200
            client.clock.advance(LIFETIME)
        before = server.stats.token_requests
        with Steps(REFRESH, at=k, then=lambda: leader.cancel()) as steps:
            leader = asyncio.create_task(client.get())
            others = [asyncio.create_task(client.get()) for _ in range(2)]
            await asyncio.wait([leader, *others])
        assert leader.cancelled() is steps.reached
        assert [await task for task in others] == [200, 200]
        assert server.stats.token_requests == before + 1
        token = await client.session.source.token()
        assert (await client.close()).token == token
        return steps.reached

    at_every_step(attempt, tmp_path, at_least=7)


def test_f17_f55_over_real_http_a_stopped_refresh_is_noted_only_if_its_request_has_left(
    tmp_path: Path,
) -> None:
    """Stopped while it connects, it leaves nothing behind, and the next process refreshes at once."""
    ends: set[str] = set()

    async def attempt(client: Client, server: PriavaServer, k: int) -> bool:
        old = await client.session.source.token()
        client.clock.advance(LIFETIME)
        before = server.stats.token_requests
        with Steps(REFRESH, at=k, then=lambda: steps.root.cancel()) as steps:  # type: ignore[union-attr]
            await asyncio.gather(client.session.source.token(), return_exceptions=True)
        await let_tasks_run()
        state = await client.close()
        arrived = server.stats.token_requests - before
        if state.failures is not None:
            assert state.failures.unknown == 1
            ends.add("noted")
        elif state.token == old:
            assert arrived == 0
            ends.add("nothing")
        else:
            assert arrived == 1
            ends.add("stored")
        return steps.reached

    at_every_step(attempt, tmp_path, at_least=3)
    assert ends == {"nothing", "noted", "stored"}


@pytest.mark.parametrize(("reason", "at_least"), [("expired", 2), ("unauthorized", 3)])
def test_f01_a_request_may_be_cancelled_at_any_of_its_own_suspensions(
    tmp_path: Path, reason: str, at_least: int
) -> None:
    """Wherever session.get() is cancelled: one token request, the other caller answered, no leak."""

    async def attempt(client: Client, server: PriavaServer, k: int) -> bool:
        assert await client.get() == 200
        if reason == "expired":
            client.clock.advance(LIFETIME)
        else:
            server.revoke_access_tokens()
        before = server.stats.token_requests

        def cancel() -> None:
            asyncio.current_task().cancel()  # type: ignore[union-attr]

        with Steps("caller", at=k, then=cancel, children=False) as steps:
            caller = asyncio.create_task(client.get(), name="caller")
            other = asyncio.create_task(client.get())
            await asyncio.wait([caller, other])
        assert caller.cancelled() is steps.reached
        assert await other == 200
        assert server.stats.token_requests == before + 1
        connector: Any = client.session.client.connector
        assert not connector._acquired
        client.clock.advance(LIFETIME)  # the latest refresh token is stored, so the next refresh works
        assert await client.get() == 200
        token = await client.session.source.token()
        assert (await client.close()).token == token
        return steps.reached

    at_every_step(attempt, tmp_path, at_least=at_least)
