"""SIGKILL in the midst of a refresh, at every place where it makes a difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from _fleet import Worker, fleet, run, url
from _ledger import the_grant

from tokensession.testing import Hang, PriavaServer

pytestmark = pytest.mark.parametrize("scheme", ["file", "sqlite"])


async def killed_at(place: str, victim: Worker, server: PriavaServer) -> None:
    """Let it refresh, and kill it on the way: at one of its stages, or while its request is there."""
    if place in ("arrived", "spent"):
        if place == "arrived":
            server.script(Hang())  # what has arrived is not carried out, as if the server had died too
        async with server.hold("before" if place == "arrived" else "after") as gate:
            await victim.tell("get")
            await gate.reached()
            victim.kill()
    else:
        await victim.stop(place)
        await victim.tell("get")
        await victim.at(place)
        victim.kill()


async def all_works_again(server: PriavaServer, *workers: Worker) -> None:
    """Somebody signs in; then every process has a good token, with no further request."""
    assert len(await workers[0].ask("sign_in", code=server.new_credential())) == 1
    requests = server.stats.token_requests
    for worker in workers:
        assert await worker.ask("get", 5) == ["200"]
    assert server.stats.token_requests == requests


def test_f14_when_the_holder_is_killed_the_process_that_waits_proceeds(tmp_path: Path, scheme: str) -> None:
    """A killed process's claim goes at once to one that waits for it; there is no lease to wait for."""

    async def scene() -> None:
        async with PriavaServer() as server:
            async with fleet(2, server.credentials, url(scheme, tmp_path)) as (victim, heir):
                server.script(Hang())
                async with server.hold("before") as gate:
                    await victim.tell("token")
                    await gate.reached()
                await heir.tell_and_wait("get")
                victim.kill()
                assert await heir.answer() == ["200"]
                assert (server.stats.token_requests, server.stats.reuse_detections) == (2, 0)

    run(scene)


# Where it is killed; the token requests of it and its heir; what the heir's caller gets.
PLACES = [
    ("granted", 1, "200"),
    ("send", 1, "200"),
    ("arrived", 2, "200"),
    ("spent", 2, "GrantRejected"),
    ("received", 2, "GrantRejected"),
    ("commit", 2, "GrantRejected"),
    ("committed", 1, "200"),
]


@pytest.mark.parametrize(("place", "requests", "outcome"), PLACES, ids=[place for place, _, _ in PLACES])
def test_f17_a_process_killed_in_mid_refresh_costs_at_most_one_replay(
    tmp_path: Path, scheme: str, place: str, requests: int, outcome: str
) -> None:
    """After a crash the refresh token is sent at most once more; if it was spent: sign in, and all works."""

    async def scene() -> None:
        async with PriavaServer() as server:
            async with fleet(3, server.credentials, url(scheme, tmp_path)) as (victim, heir, third):
                for worker in (victim, heir, third):
                    assert await worker.ask("get") == ["200"]
                server.revoke_access_tokens()
                await killed_at(place, victim, server)
                assert await heir.ask("get") == [outcome]
                assert await third.ask("get", 20) == [outcome]
                assert await heir.ask("get", 20) == [outcome]
                assert server.stats.token_requests == 1 + requests
                if outcome != "200":
                    assert "Sign in again" in (await heir.ask("why"))[0]
                    assert "Sign in again" in (await third.ask("why"))[0]
                await all_works_again(server, heir, third)

    run(scene)


def test_f17_a_second_crash_in_the_replay_leads_to_no_third_request(tmp_path: Path, scheme: str) -> None:
    """A replay that is killed too is the last one: then every process asks for a new sign-in."""
    where = url(scheme, tmp_path)

    async def scene() -> None:
        async with PriavaServer() as server:
            async with fleet(4, server.credentials, where) as (first, second, third, fourth):
                for worker in (first, second, third, fourth):
                    assert await worker.ask("get") == ["200"]
                server.revoke_access_tokens()
                await killed_at("arrived", first, server)
                await killed_at("arrived", second, server)
                for worker in (third, fourth, third):
                    assert await worker.ask("get", 5) == ["GrantLost"]
                    assert "Sign in again" in (await worker.ask("why"))[0]
                assert server.stats.token_requests == 3
                assert server.stats.reuse_detections == 0
                await all_works_again(server, third, fourth)
                grant = await the_grant(where)
                assert (grant.attempt, grant.rejection) == (None, None)

    run(scene)


def test_f17_a_process_that_starts_after_the_crash_knows_of_it(tmp_path: Path, scheme: str) -> None:
    """The crash is written in the store: one that starts later makes the one replay, and the next none."""
    where = url(scheme, tmp_path)
    first: dict[str, Any] = {}

    async def scene() -> None:
        async with PriavaServer() as server:
            async with fleet(1, server.credentials, where) as [victim]:
                first["token"] = await victim.ask("token")
                server.revoke_access_tokens()
                await killed_at("spent", victim, server)
            for _ in range(2):
                async with fleet(1, server.credentials, where) as [started]:
                    assert await started.ask("get", 5) == ["GrantRejected"]
                    assert server.stats.token_requests == 3
            assert server.stats.reuse_detections == 1

    run(scene)
