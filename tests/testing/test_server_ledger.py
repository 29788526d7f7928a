"""Rotation, reuse detection and what counts as an expiry, with a fake clock."""

from __future__ import annotations

import asyncio

import pytest
from _event_loop import in_event_loop
from _exchange import code, connected, refresh

from tokensession.testing import FakeClock, OtoServer, PriavaServer, Response, ServerStats


@in_event_loop
async def test_an_access_token_expires_at_the_end_of_its_life_whatever_the_wall_clock_does() -> None:
    clock = FakeClock()
    async with connected(OtoServer(lifetime=10, clock=clock)) as client:
        token = await client.token()
        clock.step_wall(3600)
        clock.advance(9.999)
        assert await client.api("/echo", token) == 200
        clock.advance(0.001)
        assert await client.api("/echo", token) == 401


@in_event_loop
async def test_a_spent_refresh_token_that_comes_again_revokes_all_tokens_of_its_sign_in() -> None:
    async with connected(PriavaServer()) as client:
        first = await client.redeem()
        second = await client.redeem(refresh(first["refresh_token"]))
        assert await client.api("/echo", first["access_token"]) == 200
        reused = await client.redeem(refresh(first["refresh_token"]))
        assert (reused["status"], reused["error"]) == (400, "invalid_grant")
        assert await client.api("/echo", first["access_token"]) == 401
        assert await client.api("/echo", second["access_token"]) == 401
        revoked = await client.redeem(refresh(second["refresh_token"]))
        assert revoked["error"] == "invalid_grant"
        assert (client.server.stats.reuse_detections, client.server.stats.rejections) == (1, 2)


@in_event_loop
async def test_a_code_works_once_and_its_reuse_revokes_the_tokens_of_its_sign_in_only() -> None:
    async with connected(PriavaServer()) as client:
        other = await client.redeem(code(client.server.new_credential()))
        token = await client.token()
        assert (await client.redeem())["error"] == "invalid_grant"
        assert await client.api("/echo", token) == 401
        assert await client.api("/echo", other["access_token"]) == 200
        assert client.server.stats.reuse_detections == 1


@in_event_loop
async def test_a_permanent_refresh_token_can_be_revoked_and_replaced() -> None:
    async with connected(OtoServer()) as client:
        token = await client.token()
        client.server.revoke_grants()
        assert await client.api("/echo", token) == 401
        assert (await client.redeem())["otoErrorCode"] == "OTO1083"
        fresh = await client.redeem(refresh(client.server.new_credential()))
        assert await client.api("/echo", fresh["access_token"]) == 200
        assert client.server.stats.reuse_detections == 0


@pytest.mark.parametrize(("age", "expiries"), [(0.0, 1), (4.9, 1), (5.0, 2), (9.9, 2), (10.0, 2), (500.0, 2)])
@in_event_loop
async def test_a_new_token_is_due_in_the_second_half_of_a_life_and_after(age: float, expiries: int) -> None:
    clock = FakeClock(boot=0.0)
    async with connected(OtoServer(lifetime=10, clock=clock)) as client:
        await client.redeem()
        clock.advance(age)
        await client.redeem()
        assert (client.server.stats.expiries, client.server.stats.token_requests) == (expiries, 2)


@in_event_loop
async def test_several_requests_for_one_expiry_count_as_one_even_if_the_first_failed() -> None:
    async with connected(OtoServer()) as client:
        client.server.script(Response(503))
        assert [(await client.send()).status for _ in range(3)] == [503, 200, 200]
        assert (client.server.stats.expiries, client.server.stats.token_requests) == (1, 3)


@in_event_loop
async def test_requests_at_the_same_moment_are_one_expiry_and_show_as_concurrent() -> None:
    async with connected(OtoServer()) as client:
        async with client.server.hold("before") as gate, asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(client.redeem())
            await gate.reached(3)
            gate.open()
        assert client.server.stats == ServerStats(
            token_requests=3, concurrent_token_requests_max=3, expiries=1
        )


@in_event_loop
async def test_revoking_an_access_token_makes_a_new_one_due() -> None:
    async with connected(OtoServer()) as client:
        token = await client.token()
        client.server.revoke_access_tokens()
        assert await client.api("/echo", token) == 401
        await client.redeem()
        assert client.server.stats.expiries == 2


@in_event_loop
async def test_a_life_counts_from_the_request_however_long_the_server_takes() -> None:
    clock = FakeClock()
    async with connected(OtoServer(lifetime=10, clock=clock)) as client:
        async with client.server.hold("before") as gate:
            request = asyncio.ensure_future(client.token())
            await gate.reached()
            clock.advance(5)
        token = await request
        await client.redeem()
        assert client.server.stats.expiries == 2
        clock.advance(9.9)
        assert await client.api("/echo", token) == 200


@in_event_loop
async def test_expiries_are_counted_per_sign_in() -> None:
    async with connected(OtoServer()) as client:
        await client.redeem()
        await client.redeem(refresh(client.server.new_credential()))
        assert client.server.stats.expiries == 2


@in_event_loop
async def test_expired_access_tokens_are_forgotten() -> None:
    clock = FakeClock()
    async with connected(OtoServer(lifetime=1, clock=clock)) as client:
        for _ in range(20):
            await client.redeem()
            clock.advance(1)
        assert len(client.server._ledger._access) == 1
