"""SIGKILL during a refresh, at every stage where it makes a difference."""

from __future__ import annotations

import pytest
from _event_loop import in_event_loop
from _fleet import Worker, fleet, ready
from _stored import stored_state

from tokensession.testing import Hang, PriavaServer


async def kill_at(stage: str, victim: Worker, server: PriavaServer) -> None:
    """Kill it during a refresh: at one of its stages, or while the server has its request."""
    if stage in ("arrived", "spent"):
        if stage == "arrived":
            server.script(Hang())  # the server does not process the request, as if it had died too
        async with server.hold("before" if stage == "arrived" else "after") as gate:
            await victim.begin("get")
            await gate.reached()
            victim.kill()
    else:
        await victim.stop(stage)
        await victim.begin("get")
        await victim.at(stage)
        victim.kill()


@in_event_loop
async def test_f14_when_the_holder_is_killed_a_waiting_process_proceeds(where: str) -> None:
    """A killed process's claim goes at once to one that waits for it: there is no lease to wait for."""
    async with PriavaServer() as server, fleet(2, server.credentials, where) as (victim, survivor):
        await ready(victim, survivor)
        server.revoke_access_tokens()
        server.script(Hang())
        async with server.hold("before") as gate:
            await victim.begin("get")
            await gate.reached()
        await survivor.begin_and_wait("get")
        victim.kill()
        assert await survivor.answer() == ["200"]
        assert (server.stats.token_requests, server.stats.reuse_detections) == (3, 0)


# The stage of the kill, the token requests of both processes, and what the survivor's caller gets.
STAGES = [
    ("granted", 1, "200"),
    ("send", 1, "200"),
    ("sending", 1, "200"),
    ("arrived", 2, "200"),
    ("spent", 2, "GrantLost"),
    ("received", 2, "GrantLost"),
    ("commit", 2, "GrantLost"),
    ("committed", 1, "200"),
]


@pytest.mark.parametrize(("stage", "requests", "outcome"), STAGES, ids=[stage for stage, _, _ in STAGES])
@in_event_loop
async def test_f17_a_process_killed_in_mid_refresh_costs_at_most_one_more_request(
    where: str, stage: str, requests: int, outcome: str
) -> None:
    """After a crash, the refresh token is sent once more; if it was spent, you sign in again."""
    async with PriavaServer() as server, fleet(3, server.credentials, where) as (victim, survivor, third):
        await ready(victim, survivor, third)
        server.revoke_access_tokens()
        await kill_at(stage, victim, server)
        assert await survivor.ask("get") == [outcome]
        assert await third.ask("get", 20) == [outcome]
        assert await survivor.ask("get", 20) == [outcome]
        assert server.stats.token_requests == 1 + requests
        if outcome != "200":
            assert "Sign in again" in (await survivor.ask("why"))[0]
            assert "Sign in again" in (await third.ask("why"))[0]
        assert len(await survivor.ask("sign_in", code=server.new_credential())) == 1
        for worker in (survivor, third):
            await worker.served_after(outcome, 5)
        assert server.stats.token_requests == 2 + requests  # all have the token of the sign-in


@in_event_loop
async def test_f17_f53_a_second_crash_in_the_repetition_loses_no_sign_in(where: str) -> None:
    """Two processes are killed before the server has done anything. The next one gets a token."""
    async with (
        PriavaServer() as server,
        fleet(4, server.credentials, where) as (one, two, three, four),
    ):
        await ready(one, two, three, four)
        server.revoke_access_tokens()
        await kill_at("arrived", one, server)
        await kill_at("arrived", two, server)
        for worker in (three, four, three):
            assert await worker.ask("get", 5) == ["200"]
        assert (server.stats.token_requests, server.stats.reuse_detections) == (4, 0)
        state = await stored_state(where)
        assert (state.failures, state.rejections) == (None, ())


@in_event_loop
async def test_f17_a_process_that_starts_after_the_crash_knows_of_it(where: str) -> None:
    """The store remembers the crash: a later process makes one more request, and the next one none."""
    async with PriavaServer() as server:
        async with fleet(1, server.credentials, where) as [victim]:
            await ready(victim)
            server.revoke_access_tokens()
            await kill_at("spent", victim, server)
        for _ in range(2):
            async with fleet(1, server.credentials, where) as [started]:
                assert await started.ask("get", 5) == ["GrantLost"]
                assert server.stats.token_requests == 3
        assert server.stats.reuse_detections == 1
