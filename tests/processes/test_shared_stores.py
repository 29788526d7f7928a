"""Real processes on one store: one token request, whoever is killed or stopped on the way."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from _fleet import fleet

from tokensession.testing import Hang, PriavaServer

pytestmark = pytest.mark.parametrize("scheme", ["file", "sqlite"])


def run(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await scene()

    asyncio.run(bounded())


def url(scheme: str, where: Path) -> str:
    """An absolute store URL."""
    return f"file://{where}/tokens" if scheme == "file" else f"sqlite:///{where}/tokens.db"


def test_six_processes_that_find_no_token_make_one_request(tmp_path: Path, scheme: str) -> None:
    """All at the same moment, fifty tasks in each."""

    async def scene() -> None:
        async with (
            PriavaServer() as server,
            fleet(6, server.credentials, url(scheme, tmp_path)) as workers,
            server.hold("before") as gate,
        ):
            for worker in workers:
                await worker.tell("token", 50)
            await gate.reached()
            gate.open()
            answers = [await worker.answer() for worker in workers]
            assert len({tuple(answer) for answer in answers}) == 1
            assert len(answers[0]) == 1
            assert server.stats.token_requests == 1

    run(scene)


def test_processes_that_share_a_rotating_token_refresh_it_once_each_time(tmp_path: Path, scheme: str) -> None:
    """Revoked under all of them, three times: one request each time, and no spent token is presented."""

    async def scene() -> None:
        async with PriavaServer(lifetime=3600) as server:
            async with fleet(4, server.credentials, url(scheme, tmp_path)) as workers:
                for worker in workers:
                    assert await worker.ask("get") == ["200"]
                server.revoke_access_tokens()
                for worker in workers:
                    await worker.tell("get", 50)
                assert [await worker.answer() for worker in workers] == [["200"]] * 4
                assert server.stats.token_requests == 2
                assert server.stats.concurrent_token_requests_max == 1
                assert server.stats.reuse_detections == 0

    run(scene)


def test_a_holder_killed_before_the_provider_acted_costs_nothing(tmp_path: Path, scheme: str) -> None:
    """The next process sends the same code once more, and goes on."""

    async def scene() -> None:
        async with PriavaServer() as server:
            async with fleet(2, server.credentials, url(scheme, tmp_path)) as (victim, heir):
                server.script(Hang())
                async with server.hold("before") as gate:
                    await victim.tell("token")
                    await gate.reached()
                await heir.tell("get")
                await victim.kill()
                assert await heir.answer() == ["200"]
                assert (server.stats.token_requests, server.stats.reuse_detections) == (2, 0)

    run(scene)


def test_a_holder_killed_after_the_provider_acted_ends_in_a_request_to_sign_in(
    tmp_path: Path, scheme: str
) -> None:
    """The rotated token died with it: one replay, then a typed error everywhere and no further request."""

    async def scene() -> None:
        async with PriavaServer() as server:
            async with fleet(3, server.credentials, url(scheme, tmp_path)) as (victim, heir, third):
                assert len(await victim.ask("token")) == 1
                async with server.hold("after") as gate:
                    await victim.tell("refresh")
                    await gate.reached()
                    await victim.kill()
                server.revoke_access_tokens()
                assert await heir.ask("get") == ["GrantRejected"]
                assert await third.ask("get", 20) == ["GrantRejected"]
                assert server.stats.token_requests == 3
                assert server.stats.reuse_detections == 1

    run(scene)


def test_a_holder_that_is_stopped_and_goes_on_loses_nothing(tmp_path: Path, scheme: str) -> None:
    """A laptop lid: the others wait for it, or for the record; its result is kept."""

    async def scene() -> None:
        async with PriavaServer() as server:
            async with fleet(2, server.credentials, url(scheme, tmp_path)) as (sleeper, other):
                async with server.hold("after") as gate:
                    await sleeper.tell("token")
                    await gate.reached()
                    sleeper.process.send_signal(signal.SIGSTOP)
                    await other.tell("token")
                sleeper.process.send_signal(signal.SIGCONT)
                assert await sleeper.answer() == await other.answer()
                assert server.stats.token_requests == 1

    run(scene)
