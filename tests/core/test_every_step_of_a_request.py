"""The same stepping through the whole of it: AuthedSession, real HTTP, a strict server, real files."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from _rig import run
from _steps import REFRESH, Steps

from tokensession import AiohttpTransport, AuthedSession, ManagedSource
from tokensession._refresh.state import decode
from tokensession.providers import Priava
from tokensession.stores import FileStore
from tokensession.testing import FakeClock, PriavaServer

LIFE = 3600
MANY = 300
"""More suspensions than one request or refresh can have: the stepping must have come to an end before."""


class Desk:
    """A session of its own, signed in at the server for itself, with its record in a file."""

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

    async def leave(self) -> str | None:
        """Close all, and read the stored refresh token with a store object that has never seen it."""
        await self.session.close()
        await self.session.source.aclose()
        await self.store.aclose()
        store = FileStore(self.directory)
        record = await store.load(self.session.source.key)
        await store.aclose()
        grant = decode(record.data) if record else None
        return grant.token.refresh_token if grant is not None and grant.token is not None else None


async def stepped(once: Callable[[int], Awaitable[bool]]) -> int:
    """As many runs as it takes until one ends without a k-th suspension: over a network they vary."""
    for k in itertools.count():
        assert k < MANY
        if not await once(k):
            return k
    raise AssertionError


async def late_refresh_works(desk: Desk, server: PriavaServer) -> None:
    """What is stored is good for the next refresh: the rotated token, and not one that was spent."""
    desk.clock.advance(LIFE)
    assert await desk.get() == 200
    assert (server.stats.reuse_detections, server.stats.rejections) == (0, 0)


@pytest.mark.parametrize("earlier", [False, True], ids=["first token", "earlier one expired"])
def test_f01_over_real_http_the_caller_may_be_cancelled_wherever_the_refresh_stands(
    tmp_path: Path, earlier: bool
) -> None:
    """Session, server and files are real: one POST, the rotated token on disk, the others answered."""

    async def scene() -> None:
        clock = FakeClock()
        async with PriavaServer(lifetime=LIFE, clock=clock) as server:

            async def once(k: int) -> bool:
                desk = Desk(server, tmp_path / str(k), clock)
                if earlier:
                    assert await desk.get() == 200
                    clock.advance(LIFE)
                before = server.stats.token_requests
                with Steps(REFRESH, at=k, then=lambda: leader.cancel()) as steps:
                    leader = asyncio.create_task(desk.get())
                    others = [asyncio.create_task(desk.get()) for _ in range(2)]
                    await asyncio.wait([leader, *others])
                assert leader.cancelled() is steps.reached
                assert [await task for task in others] == [200, 200]
                assert server.stats.token_requests == before + 1
                token = await desk.session.source.token()
                assert await desk.leave() == token.refresh_token
                return steps.reached

            found = await stepped(once)
            assert found >= 15, f"only {found} points were found"
            assert (server.stats.reuse_detections, server.stats.rejections) == (0, 0)

    run(scene)


@pytest.mark.parametrize("reason", ["expired", "error_response"])
def test_f01_a_request_may_be_cancelled_at_each_of_its_own_suspensions(tmp_path: Path, reason: str) -> None:
    """Wherever session.get() is cancelled around a refresh: one POST, the other answered, nothing leaked."""

    async def scene() -> None:
        clock = FakeClock()
        async with PriavaServer(lifetime=LIFE, clock=clock) as server:
            desk = Desk(server, tmp_path / "tokens", clock)
            assert await desk.get() == 200

            async def once(k: int) -> bool:
                clock.advance(LIFE / 2)  # long enough ago for a 401 to be believed again
                if reason == "expired":
                    clock.advance(LIFE)
                else:
                    server.revoke_access_tokens()
                before = server.stats.token_requests

                def cancel() -> None:
                    asyncio.current_task().cancel()  # type: ignore[union-attr]

                with Steps("caller", at=k, then=cancel, children=False) as steps:
                    caller = asyncio.create_task(desk.get(), name="caller")
                    other = asyncio.create_task(desk.get())
                    await asyncio.wait([caller, other])
                assert caller.cancelled() is steps.reached
                assert await other == 200
                assert server.stats.token_requests == before + 1
                connector: Any = desk.session.client.connector
                assert not connector._acquired
                return steps.reached

            found = await stepped(once)
            assert found >= (2 if reason == "expired" else 3), f"only {found} points were found"
            await late_refresh_works(desk, server)
            assert await desk.leave() == (await desk.session.source.token()).refresh_token

    run(scene)
